/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "io/arbiter_backend.h"
#include "io/channel.h"

/* understudy-witness as the arbiter: one connection, made when there is something to ask (or by
 * warm), which lives until it breaks or a time-out shows that it is of no use; an idle one stays.
 *
 *   no channel --ask, warm--> connecting --hello answered--> ready
 *       ^----------- broken, refused, dropped ---------------'    */

struct witness {
    struct arbiter_backend backend;
    sd_event *event;
    const struct arbiter_config *config;
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

    if (msg->type != WIRE_ARB_REPLY)
        arbiter_client_lost(w->backend.client, "it said something that makes no sense");
    else
        arbiter_client_replied(
            w->backend.client, msg->epoch, &msg->u.arb_reply,
            msg->u.arb_reply.status == WIRE_ARB_ERROR ? "it could not store the record" : "");
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
    const int on = 1, idle_s = 5, interval_s = 1, probes = 3;
    struct transport *transport;
    struct witness *w = of(b);
    int fd, r;

    if (w->channel)
        return 0;
    r = transport_tcp_connect(w->config->address, &fd, err);
    if (r < 0)
        return r;
    transport = transport_tcp_new(fd);
    if (!transport)
        return err_sys(err, -ENOMEM, "connect");
    /* An idle connection has no heartbeats: the kernel finds out when the witness is gone, so that
     * the next request meets a fresh connection instead of a time-out. Best effort. */
    fd = transport->ops->fd(transport);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
    r = channel_new(w->event, transport, WIRE_CHANNEL_ARBITER, SD_EVENT_PRIORITY_IMPORTANT,
                    &callbacks, w, &w->channel);
    if (r < 0)
        return err_sys(err, r, "connect");
    channel_send_hello(w->channel, &w->hello);
    return 1;
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
                        struct tls_context *tls, const char *host,
                        struct arbiter_backend **ret_backend)
{
    struct witness *w = calloc(1, sizeof(*w));

    if (!w)
        return -ENOMEM;
    w->backend.ops = &arbiter_witness_ops;
    strcpy(w->backend.where, config->address);
    w->event = sd_event_ref(event);
    w->config = config;
    w->hello = (struct wire_hello){.version_min = WIRE_VERSION_MIN,
                                   .version_max = WIRE_VERSION_MAX,
                                   .channel = WIRE_CHANNEL_ARBITER};
    strcpy(w->hello.from, host);
    *ret_backend = &w->backend;
    return 0;
}

static int witness_list(const struct arbiter_config *config, struct tls_context *tls,
                        const char *host, uint64_t timeout_ns, arbiter_each_fn *each, void *user,
                        struct err *err)
{
    return err_set(err, -EOPNOTSUPP, "arbiter %s: a witness cannot list its registers",
                   config->address);
}

const struct arbiter_backend_ops arbiter_witness_ops = {
    .open = witness_open,
    .close = witness_close,
    .warm = witness_warm,
    .ask = witness_ask,
    .drop = witness_drop,
    .list = witness_list,
};
