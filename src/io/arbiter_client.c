/* SPDX-License-Identifier: Apache-2.0 */
#include "io/arbiter_client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "io/arbiter_backend.h"

/* What holds for every arbiter: at most one open request, bounded in time, whose answer must make
 * sense. Every way of losing a request ends in give_up(), which is only ever called from the loop.
 *
 * Requests have numbers of our own, which never repeat: a late reply to a request that was given up
 * cannot be taken for the answer to another. */

struct arbiter_client {
    char vm[WIRE_NAME_BYTES];
    uint64_t timeout_us;
    arbiter_answer_fn *on_answer;
    void *user;

    struct arbiter_backend *backend;
    sd_event_source *timer;   /* bounds the open request, or else connecting */
    sd_event_source *trouble; /* carries a failure inside ask() into the loop */
    char trouble_text[256];

    bool asking;
    uint64_t id;       /* the user's */
    uint64_t sequence; /* ours */
    struct wire_arb_request request;
};

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
    char text[640];

    (void)snprintf(text, sizeof(text), "arbiter %s: %s", c->backend->where, why); /* dies with it */
    c->backend->ops->drop(c->backend);
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

void arbiter_client_connected(struct arbiter_client *c)
{
    if (!c->asking)
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

void arbiter_client_replied(struct arbiter_client *c, uint64_t sequence,
                            const struct wire_arb_reply *reply, const char *why)
{
    struct wire_arb_reply copy = *reply; /* the user may close the backend inside */
    char text[640];

    if (!c->asking || sequence != c->sequence)
        return; /* to a request that was given up */
    if (!reply_plausible(&c->request, reply)) {
        give_up(c, "it said something that makes no sense");
        return;
    }
    (void)snprintf(text, sizeof(text), "%s%s%s%s", why[0] ? "arbiter " : "",
                   why[0] ? c->backend->where : "", why[0] ? ": " : "", why);
    fault_point("arbiter.reply");
    answer(c, copy.status, &copy.current, text);
}

void arbiter_client_lost(struct arbiter_client *c, const char *why)
{
    give_up(c, why);
}

static const struct arbiter_backend_ops *ops_of(const struct arbiter_config *config)
{
    return config->kind == ARBITER_ETCD ? &arbiter_etcd_ops : &arbiter_witness_ops;
}

int arbiter_client_new(sd_event *event, const struct arbiter_config *config,
                       struct tls_context *tls, const char *host, const char *vm,
                       uint64_t timeout_ns, arbiter_answer_fn *on_answer, void *user,
                       struct arbiter_client **ret_client)
{
    struct arbiter_client *c;
    int r;

    if (!wire_name_valid(host) || !wire_name_valid(vm))
        return -EINVAL;
    c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    strcpy(c->vm, vm);
    c->timeout_us = timeout_ns / 1000;
    c->on_answer = on_answer;
    c->user = user;
    r = ops_of(config)->open(event, config, tls, host, timeout_ns, &c->backend);
    if (r >= 0) {
        c->backend->client = c;
        r = sd_event_add_time_relative(event, &c->timer, CLOCK_MONOTONIC, 0, 1000, on_timeout, c);
    }
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
    fault_point("arbiter.request");
    if (arb_request_check(&c->request, &err) < 0 ||
        c->backend->ops->ask(c->backend, c->sequence, &c->request, &err) < 0)
        give_up_later(c, err.text);
}

void arbiter_client_warm(struct arbiter_client *c)
{
    if (c->backend->ops->warm(c->backend, NULL) > 0)
        start_timer(c); /* of a failure the first request will tell */
}

void arbiter_client_close(struct arbiter_client *c)
{
    if (!c)
        return;
    if (c->backend)
        c->backend->ops->close(c->backend);
    sd_event_source_disable_unref(c->timer);
    sd_event_source_disable_unref(c->trouble);
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
    (void)err_set(once->err, 0, "%s", why);
    (void)sd_event_exit(once->event, 0); /* cannot fail inside the loop */
}

int arbiter_ask_once(const struct arbiter_config *config, struct tls_context *tls, const char *host,
                     const struct wire_arb_request *request, uint64_t timeout_ns,
                     struct wire_arb_reply *ret_reply, struct err *err)
{
    struct arbiter_client *client = NULL;
    struct once once = {.err = err};
    int r = sd_event_new(&once.event);

    if (r >= 0)
        r = arbiter_client_new(once.event, config, tls, host, request->vm, timeout_ns,
                               on_answer_once, &once, &client);
    if (r >= 0) {
        arbiter_client_ask(client, 1, request);
        r = sd_event_loop(once.event);
    }
    if (r < 0)
        (void)err_sys(err, r, "arbiter");
    else if (once.reply.status == 0)
        r = -ECOMM; /* the text says why */
    else
        *ret_reply = once.reply;
    arbiter_client_close(client);
    sd_event_unref(once.event);
    return r;
}

int arbiter_list(const struct arbiter_config *config, struct tls_context *tls, const char *host,
                 uint64_t timeout_ns, arbiter_each_fn *each, void *user, struct err *err)
{
    return ops_of(config)->list(config, tls, host, timeout_ns, each, user, err);
}
