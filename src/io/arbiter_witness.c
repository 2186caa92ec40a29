/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "io/arbiter_backend.h"
#include "io/channel.h"
#include "io/keep_alive.h"

/* understudy-witness as the arbiter: one connection, made when there is something to ask (or by
 * warm), which lives until it breaks or a time-out shows that it is of no use; an idle one stays.
 *
 *   no channel --ask, warm--> connecting --hello answered--> ready
 *       ^----------- broken, refused, dropped ---------------'    */

struct witness {
    struct arbiter_backend backend;
    sd_event *event;
    const struct arbiter_config *config;
    struct tls_context *tls;
    struct channel *channel; /* NULL: not connected */
    bool ready;              /* the hellos are done */
    struct wire_hello hello; /* ours */
    bool waiting;            /* to be sent when ready: */
    uint64_t sequence;
    struct wire_arb_request request;
};

static struct witness *of(struct arbiter_backend *b)
{
    return (struct witness *)b; /* its first member */
}

static bool on_key(void *user, const struct public_key *theirs)
{
    const struct arbiter_config *config = user;

    return public_key_equal(&config->key, theirs);
}

/* Starts to connect, and sends the hello. config is borrowed for the channel's life. */
static int connect_channel(sd_event *event, const struct arbiter_config *config,
                           struct tls_context *tls, const struct wire_hello *hello,
                           const struct channel_callbacks *callbacks, void *user,
                           struct channel **ret_channel, struct err *err)
{
    const struct tls_params params = {.role = TLS_CLIENT,
                                      .purpose = TLS_ARBITER,
                                      .trusted = on_key,
                                      .user = (void *)(uintptr_t)config}; /* only read */
    struct transport *transport;
    int fd, r = transport_tcp_connect(config->address, &fd, err);

    if (r < 0)
        return r;
    transport = transport_tls_new(tls, fd, &params);
    if (!transport)
        return err_sys(err, -ENOMEM, "connect");
    keep_alive_asker(transport->ops->fd(transport));
    r = channel_new(event, transport, WIRE_CHANNEL_ARBITER, SD_EVENT_PRIORITY_IMPORTANT, callbacks,
                    user, ret_channel);
    if (r < 0)
        return err_sys(err, r, "connect");
    channel_send_hello(*ret_channel, hello);
    return 0;
}

static struct wire_hello hello_of(const char *host)
{
    struct wire_hello hello = {.version_min = WIRE_VERSION_MIN,
                               .version_max = WIRE_VERSION_MAX,
                               .channel = WIRE_CHANNEL_ARBITER};

    strcpy(hello.from, host); /* a valid name */
    return hello;
}

static void send_request(struct witness *w)
{
    struct wire_msg msg = {.type = WIRE_ARB_REQUEST, .epoch = w->sequence};

    msg.u.arb_request = w->request;
    channel_send(w->channel, &msg);
    w->waiting = false;
}

static void on_hello(void *user, const struct wire_hello *hello)
{
    struct witness *w = user;
    struct err err = {""};

    if (wire_hello_check_answer(&w->hello, hello, &err) < 0) {
        arbiter_client_lost(w->backend.client, err.text);
        return;
    }
    w->ready = true;
    if (w->waiting)
        send_request(w);
    arbiter_client_connected(w->backend.client);
}

static void on_message(void *user, const struct wire_msg *msg)
{
    struct witness *w = user;
    struct wire_arb_reply reply;
    const char *why = "";

    if (msg->type != WIRE_ARB_REPLY) {
        arbiter_client_lost(w->backend.client, "it said something that makes no sense");
        return;
    }
    reply = msg->u.arb_reply;
    if (reply.status == WIRE_ARB_ERROR)
        why = "it could not store the record";
    if (reply.status == WIRE_ARB_REFUSED) { /* to whoever asks that is the same: not done */
        reply.status = WIRE_ARB_ERROR;
        why = "it does not let this host make that change";
    }
    arbiter_client_replied(w->backend.client, msg->epoch, &reply, why);
}

static void on_broken(void *user, const char *why)
{
    struct witness *w = user;

    arbiter_client_lost(w->backend.client, why);
}

static int witness_warm(struct arbiter_backend *b, struct err *err)
{
    static const struct channel_callbacks callbacks = {
        .on_hello = on_hello, .on_message = on_message, .on_broken = on_broken};
    struct witness *w = of(b);
    int r;

    if (w->channel)
        return 0;
    r = connect_channel(w->event, w->config, w->tls, &w->hello, &callbacks, w, &w->channel, err);
    return r < 0 ? r : 1;
}

static int witness_ask(struct arbiter_backend *b, uint64_t sequence,
                       const struct wire_arb_request *request, struct err *err)
{
    struct witness *w = of(b);
    int r = witness_warm(b, err);

    if (r < 0)
        return r;
    w->waiting = true;
    w->sequence = sequence;
    w->request = *request;
    if (w->ready)
        send_request(w);
    return 0;
}

static void witness_drop(struct arbiter_backend *b)
{
    struct witness *w = of(b);

    channel_close(take_ptr(w->channel));
    w->ready = false;
    w->waiting = false;
}

static void witness_close(struct arbiter_backend *b)
{
    struct witness *w = of(b);

    witness_drop(b);
    sd_event_unref(w->event);
    free(w);
}

static int witness_open(sd_event *event, const struct arbiter_config *config,
                        struct tls_context *tls, const char *host, uint64_t timeout_ns,
                        struct arbiter_backend **ret_backend)
{
    struct witness *w = calloc(1, sizeof(*w));

    if (!w)
        return -ENOMEM;
    w->backend.ops = &arbiter_witness_ops;
    strcpy(w->backend.where, config->address);
    w->event = sd_event_ref(event);
    w->config = config;
    w->tls = tls;
    w->hello = hello_of(host);
    *ret_backend = &w->backend;
    return 0;
}

/* arbiter_list(): one connection, one question after the other. */
struct listing {
    sd_event *event;
    struct channel *channel;
    struct wire_hello hello;
    char after[WIRE_NAME_BYTES]; /* the last VM that was told */
    arbiter_each_fn *each;
    void *user;
    int result; /* 1: not done yet */
    struct err *err;
};

static void list_end(struct listing *l, int result, const char *why)
{
    if (l->result == 1)
        l->result = result < 0 ? err_set(l->err, result, "%s", why) : 0;
    (void)sd_event_exit(l->event, 0); /* cannot fail inside the loop */
}

static void list_ask(struct listing *l)
{
    struct wire_msg msg = {.type = WIRE_ARB_LIST};

    strcpy(msg.u.arb_list.after, l->after);
    channel_send(l->channel, &msg);
}

static void on_list_hello(void *user, const struct wire_hello *hello)
{
    struct listing *l = user;
    struct err err = {""};
    int r = wire_hello_check_answer(&l->hello, hello, &err);

    if (r < 0)
        list_end(l, r, err.text);
    else
        list_ask(l);
}

static void on_list_message(void *user, const struct wire_msg *msg)
{
    const struct wire_arb_registers *registers = &msg->u.arb_registers;
    struct listing *l = user;

    /* They are in order: so the first one tells whether the witness moves on. */
    if (msg->type != WIRE_ARB_REGISTERS ||
        (registers->n > 0 && strcmp(registers->entry[0].vm, l->after) <= 0)) {
        list_end(l, -EPROTO, "it said something that makes no sense");
        return;
    }
    for (uint32_t i = 0; i < registers->n; i++) {
        l->each(l->user, registers->entry[i].vm, &registers->entry[i].record);
        strcpy(l->after, registers->entry[i].vm);
    }
    if (registers->more)
        list_ask(l);
    else
        list_end(l, 0, "");
}

static void on_list_broken(void *user, const char *why)
{
    list_end(user, -ECOMM, why);
}

static int on_list_timeout(sd_event_source *source, uint64_t usec, void *user)
{
    list_end(user, -ETIMEDOUT, "no answer in time");
    return 0;
}

static int witness_list(const struct arbiter_config *config, struct tls_context *tls,
                        const char *host, uint64_t timeout_ns, arbiter_each_fn *each, void *user,
                        struct err *err)
{
    static const struct channel_callbacks callbacks = {
        .on_hello = on_list_hello, .on_message = on_list_message, .on_broken = on_list_broken};
    struct listing l = {
        .hello = hello_of(host), .each = each, .user = user, .result = 1, .err = err};
    int r = sd_event_new(&l.event);

    if (r >= 0)
        r = sd_event_add_time_relative(l.event, NULL, CLOCK_MONOTONIC, timeout_ns / 1000, 1000,
                                       on_list_timeout, &l);
    if (r < 0)
        (void)err_sys(err, r, "event loop");
    else
        r = connect_channel(l.event, config, tls, &l.hello, &callbacks, &l, &l.channel, err);
    if (r >= 0) {
        r = sd_event_loop(l.event);
        r = r < 0 ? err_sys(err, r, "event loop") : l.result;
    }
    channel_close(l.channel);
    sd_event_unref(l.event);
    if (r < 0)
        err_prefix(err, "arbiter %s", config->address);
    return r;
}

const struct arbiter_backend_ops arbiter_witness_ops = {
    .open = witness_open,
    .close = witness_close,
    .warm = witness_warm,
    .ask = witness_ask,
    .drop = witness_drop,
    .list = witness_list,
};
