/* SPDX-License-Identifier: Apache-2.0 */
#include "io/dial.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"

struct dial {
    struct dial_params params;
    char peer[HOST_NAME_BYTES];
    struct wire_hello hello;
    struct channel *door; /* NULL: over */
    dial_done_fn *on_done;
    void *user;
};

bool dial_trusts(void *config, const struct public_key *theirs)
{
    return host_config_peer_by_key(config, theirs) != NULL;
}

bool dial_peer_is(const struct host_config *config, const struct channel *c, const char *name)
{
    const struct public_key *key = channel_peer_key(c);
    const struct host_peer *peer = key ? host_config_peer_by_key(config, key) : NULL;

    return peer && strcmp(peer->name, name) == 0;
}

static struct transport *wrap(const struct dial *d, int fd, enum tls_purpose purpose)
{
    struct tls_params params = {
        .role = TLS_CLIENT,
        .purpose = purpose,
        .trusted = dial_trusts,
        .user = (void *)(uintptr_t)d->params.config, /* dial_trusts only reads it */
    };

    return transport_tls_new(d->params.tls, fd, &params);
}

/* The last thing to be called: the user may close the dial inside. */
static void fail(struct dial *d, const char *why)
{
    char text[WIRE_TEXT_BYTES];

    (void)snprintf(text, sizeof(text), "%s", why); /* why dies with the channel */
    channel_close(take_ptr(d->door));
    d->on_done(d->user, NULL, text);
}

/* The door has opened: the same socket leads to the VM's process now. */
static void enter(struct dial *d)
{
    int fd = tls_detach(channel_take_transport(take_ptr(d->door)));
    struct transport *t = fd < 0 ? NULL : wrap(d, fd, TLS_ROOM);

    fault_point("dial.enter");
    d->on_done(d->user, t, t ? "" : "out of memory, or the peer talks too early");
}

static void on_hello(void *user, const struct wire_hello *answer)
{
    struct dial *d = user;
    char text[128];
    struct err err;

    if (!dial_peer_is(d->params.config, d->door, d->peer)) {
        (void)snprintf(text, sizeof(text), "the host at its address is not %s, but another peer",
                       d->peer);
        fail(d, text);
    } else if (wire_hello_check_answer(&d->hello, answer, &err) < 0) {
        fail(d, err.text);
    } else {
        enter(d);
    }
}

static void on_message(void *user, const struct wire_msg *msg)
{
    fail(user, "the peer talks in the door"); /* not reached: the hello ends it */
}

static void on_broken(void *user, const char *why)
{
    fail(user, why);
}

int dial_new(const struct dial_params *params, const struct host_peer *peer,
             const struct wire_hello *hello, dial_done_fn *on_done, void *user,
             struct dial **ret_dial, struct err *err)
{
    static const struct channel_callbacks callbacks = {
        .on_hello = on_hello, .on_message = on_message, .on_broken = on_broken};
    struct transport *t;
    struct dial *d;
    int fd, r;

    r = transport_tcp_connect(peer->address, &fd, err);
    if (r < 0)
        return r;
    d = FAULTY_ALLOC("dial.room", calloc(1, sizeof(*d)));
    if (!d) {
        close(fd);
        return err_sys(err, -ENOMEM, "%s", peer->name);
    }
    *d = (struct dial){.params = *params, .hello = *hello, .on_done = on_done, .user = user};
    (void)snprintf(d->peer, sizeof(d->peer), "%s", peer->name);
    t = wrap(d, fd, TLS_DOOR);
    r = t ? channel_new(params->event, t, hello->channel, params->priority, &callbacks, d, &d->door)
          : -ENOMEM;
    if (r < 0) {
        free(d);
        return err_sys(err, r, "%s", peer->name);
    }
    channel_send_hello(d->door, hello);
    *ret_dial = d;
    return 0;
}

void dial_close(struct dial *d)
{
    if (!d)
        return;
    channel_close(d->door);
    free(d);
}
