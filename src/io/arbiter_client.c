/* SPDX-License-Identifier: Apache-2.0 */
#include "io/arbiter_client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "base/cleanup.h"
#include "io/channel.h"
#include "io/clock.h"

/* At most one connection and one open request. The connection is made when there is something to
 * ask (or by warm) and lives until it breaks or a time-out shows that it is of no use; an idle one
 * stays. Every way of losing a request ends in give_up(), which is only ever called from the loop.
 *
 *   no channel --ask, warm--> connecting --hello answered--> ready
 *       ^------- broken, refused, timed out, bad reply --------|
 *
 * On the wire requests have numbers of our own, which never repeat: a late reply to a request that
 * was given up cannot be taken for the answer to another. */

struct arbiter_client {
    sd_event *event;
    char address[128];
    char host[WIRE_NAME_BYTES];
    char vm[WIRE_NAME_BYTES];
    uint64_t timeout_us;
    arbiter_answer_fn *on_answer;
    void *user;

    struct channel *channel;  /* NULL: not connected */
    bool ready;               /* the hellos are done */
    struct wire_hello hello;  /* ours */
    sd_event_source *timer;   /* bounds the open request, or else connecting */
    sd_event_source *trouble; /* carries a failure inside ask() into the loop */
    char trouble_text[256];

    bool asking;
    uint64_t id;       /* the user's */
    uint64_t sequence; /* on the wire */
    struct wire_arb_request request;
};

static void disconnect(struct arbiter_client *c)
{
    channel_close(take_ptr(c->channel));
    c->ready = false;
}

/* Ends the open request. The last thing to be called: the user may ask again or close inside. */
static void answer(struct arbiter_client *c, uint8_t status, const struct arb_record *current,
                   const char *why)
{
    (void)sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
    (void)sd_event_source_set_enabled(c->trouble, SD_EVENT_OFF);
    if (!c->asking)
        return;
    c->asking = false;
    c->on_answer(c->user, c->id, status, current, why);
}

/* Drops the connection, and with it the open request, if there is one. Likewise the last thing. */
static void give_up(struct arbiter_client *c, const char *why)
{
    static const struct arb_record none;
    char text[384];

    (void)snprintf(text, sizeof(text), "arbiter %s: %s", c->address, why); /* why dies with it */
    disconnect(c);
    answer(c, 0, &none, text);
}

/* Reports a failure from the loop. If even that fails for want of memory, the timer does it. */
static void give_up_later(struct arbiter_client *c, const char *why)
{
    (void)snprintf(c->trouble_text, sizeof(c->trouble_text), "%s", why);
    (void)sd_event_source_set_enabled(c->trouble, SD_EVENT_ONESHOT);
}

static int on_trouble(sd_event_source *source, void *user)
{
    struct arbiter_client *c = user;

    give_up(c, c->trouble_text);
    return 0;
}

static int on_timeout(sd_event_source *source, uint64_t usec, void *user)
{
    struct arbiter_client *c = user;
    char why[64];

    (void)snprintf(why, sizeof(why), "no answer within %llu ms",
                   (unsigned long long)c->timeout_us / 1000);
    give_up(c, why);
    return 0;
}

static void start_timer(struct arbiter_client *c)
{
    /* Neither can fail for a source that exists, but for a clock beyond its end. */
    (void)sd_event_source_set_time_relative(c->timer, c->timeout_us);
    (void)sd_event_source_set_enabled(c->timer, SD_EVENT_ONESHOT);
}

static void send_request(struct arbiter_client *c)
{
    struct wire_msg msg = {.type = WIRE_ARB_REQUEST, .epoch = c->sequence};

    msg.u.arb_request = c->request;
    channel_send(c->channel, &msg);
}

static void on_hello(void *user, const struct wire_hello *hello)
{
    struct arbiter_client *c = user;
    struct err err = {""};

    if (wire_hello_check_answer(&c->hello, hello, &err) < 0) {
        give_up(c, err.text);
        return;
    }
    c->ready = true;
    if (c->asking)
        send_request(c);
    else
        (void)sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
}

/* True when a reply can be true at all. What an arbiter says is believed, but not against reason.
 */
static bool reply_plausible(const struct wire_arb_request *request,
                            const struct wire_arb_reply *reply)
{
    switch (reply->status) {
    case WIRE_ARB_DONE:
        return request->op == WIRE_ARB_GET || arb_record_equal(&reply->current, &request->wanted);
    case WIRE_ARB_CONFLICT:
        return request->op == WIRE_ARB_CAS &&
               !arb_record_equal(&reply->current, &request->expected);
    default:
        return true;
    }
}

static void on_message(void *user, const struct wire_msg *msg)
{
    struct arbiter_client *c = user;

    if (msg->type == WIRE_ARB_REPLY && (!c->asking || msg->epoch != c->sequence))
        return; /* to a request that was given up */
    if (msg->type != WIRE_ARB_REPLY || !reply_plausible(&c->request, &msg->u.arb_reply)) {
        give_up(c, "it said something that makes no sense");
        return;
    }
    answer(c, msg->u.arb_reply.status, &msg->u.arb_reply.current,
           msg->u.arb_reply.status == WIRE_ARB_ERROR ? "the arbiter could not store the record"
                                                     : "");
}

static void on_broken(void *user, const char *why)
{
    give_up(user, why);
}

static int connect_channel(struct arbiter_client *c, struct err *err)
{
    static const struct channel_callbacks callbacks = {
        .on_hello = on_hello, .on_message = on_message, .on_broken = on_broken};
    const int on = 1, idle_s = 5, interval_s = 1, probes = 3;
    struct transport *transport;
    int fd, r = transport_tcp_connect(c->address, &fd, err);

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
    r = channel_new(c->event, transport, WIRE_CHANNEL_ARBITER, SD_EVENT_PRIORITY_IMPORTANT,
                    &callbacks, c, &c->channel);
    if (r < 0)
        return err_sys(err, r, "connect");
    channel_send_hello(c->channel, &c->hello);
    return 0;
}

int arbiter_client_new(sd_event *event, const char *address, const char *host, const char *vm,
                       uint64_t timeout_ns, arbiter_answer_fn *on_answer, void *user,
                       struct arbiter_client **ret_client)
{
    struct arbiter_client *c;
    int r;

    if (!wire_name_valid(host) || !wire_name_valid(vm) || strlen(address) >= sizeof(c->address))
        return -EINVAL;
    c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->event = sd_event_ref(event);
    strcpy(c->address, address);
    strcpy(c->host, host);
    strcpy(c->vm, vm);
    c->timeout_us = timeout_ns / 1000;
    c->on_answer = on_answer;
    c->user = user;
    c->hello = (struct wire_hello){.version_min = WIRE_VERSION_MIN,
                                   .version_max = WIRE_VERSION_MAX,
                                   .channel = WIRE_CHANNEL_ARBITER};
    strcpy(c->hello.from, host);
    r = sd_event_add_time_relative(event, &c->timer, CLOCK_MONOTONIC, 0, 1000, on_timeout, c);
    if (r >= 0)
        r = sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
    if (r >= 0)
        r = sd_event_add_defer(event, &c->trouble, on_trouble, c);
    if (r >= 0)
        r = sd_event_source_set_enabled(c->trouble, SD_EVENT_OFF);
    if (r < 0) {
        arbiter_client_close(c);
        return r;
    }
    *ret_client = c;
    return 0;
}

void arbiter_client_ask(struct arbiter_client *c, uint64_t id,
                        const struct wire_arb_request *request)
{
    struct err err = {""};

    c->asking = true;
    c->id = id;
    c->sequence++;
    c->request = *request;
    strcpy(c->request.vm, c->vm);
    (void)sd_event_source_set_enabled(c->trouble, SD_EVENT_OFF); /* the previous request's */
    start_timer(c);
    if (arb_request_check(&c->request, &err) < 0 || (!c->channel && connect_channel(c, &err) < 0))
        give_up_later(c, err.text);
    else if (c->ready)
        send_request(c);
}

void arbiter_client_warm(struct arbiter_client *c)
{
    if (c->channel)
        return;
    start_timer(c);
    (void)!connect_channel(c, NULL); /* the first request will say what is wrong */
}

void arbiter_client_close(struct arbiter_client *c)
{
    if (!c)
        return;
    disconnect(c);
    sd_event_source_disable_unref(c->timer);
    sd_event_source_disable_unref(c->trouble);
    sd_event_unref(c->event);
    free(c);
}

/* Where the answer of arbiter_ask_once() arrives. */
struct once {
    sd_event *event;
    struct wire_arb_reply reply;
    struct err *err;
};

static void on_answer_once(void *user, uint64_t id, uint8_t status,
                           const struct arb_record *current, const char *why)
{
    struct once *once = user;

    once->reply = (struct wire_arb_reply){.status = status, .current = *current};
    if (status == 0)
        (void)err_set(once->err, 0, "%s", why);
    (void)sd_event_exit(once->event, 0); /* cannot fail inside the loop */
}

int arbiter_ask_once(const char *address, const char *host, const struct wire_arb_request *request,
                     uint64_t timeout_ns, struct wire_arb_reply *ret_reply, struct err *err)
{
    struct arbiter_client *client = NULL;
    struct once once = {.err = err};
    int r = sd_event_new(&once.event);

    if (r >= 0)
        r = arbiter_client_new(once.event, address, host, request->vm, timeout_ns, on_answer_once,
                               &once, &client);
    if (r >= 0) {
        arbiter_client_ask(client, 1, request);
        r = sd_event_loop(once.event);
    }
    if (r < 0)
        (void)err_sys(err, r, "arbiter %s", address);
    else if (once.reply.status == 0)
        r = -ECOMM; /* the text says why */
    else
        *ret_reply = once.reply;
    arbiter_client_close(client);
    sd_event_unref(once.event);
    return r;
}
