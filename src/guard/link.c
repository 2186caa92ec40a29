/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/log.h"
#include "io/vm_json.h"

/* The guard's side of a session with a standby (docs/protocol.md, "Session"):
 *
 *   connect control -> hello -> offer -> ready -> connect data -> hello -> up
 *
 * resume is the same without the offer. Whatever goes wrong on the way, or later, ends in
 * link_broken(), once; the state machine decides what follows. */

enum { CONNECT_NEW_MS = 15000, CONNECT_RESUME_MS = 1000 };

static void fill_hello(const struct guard *g, enum wire_channel channel,
                       struct wire_hello *ret_hello)
{
    memset(ret_hello, 0, sizeof(*ret_hello));
    ret_hello->version_min = WIRE_VERSION_MIN;
    ret_hello->version_max = WIRE_VERSION_MAX;
    ret_hello->channel = (uint8_t)channel;
    ret_hello->resume = g->link.resume && channel == WIRE_CHANNEL_CONTROL;
    memcpy(ret_hello->session, g->link.session, sizeof(ret_hello->session));
    (void)snprintf(ret_hello->vm, sizeof(ret_hello->vm), "%s", g->body->spec.name);
    (void)snprintf(ret_hello->from, sizeof(ret_hello->from), "%s", g->config->name);
}

static int open_channel(struct guard *g, enum wire_channel kind,
                        const struct channel_callbacks *callbacks, struct channel **ret_channel,
                        struct err *err)
{
    const struct host_peer *peer = host_config_peer(g->config, g->core.peer);
    struct transport *t;
    struct wire_hello hello;
    int fd, r;

    if (!peer)
        return err_set(err, -ENOENT, "%s is not among the peers of this host", g->core.peer);
    r = transport_tcp_connect(peer->address, &fd, err);
    if (r < 0)
        return r;
    t = transport_tcp_new(fd);
    if (!t)
        return err_sys(err, -ENOMEM, "%s", peer->name);
    r = channel_new(g->event, t, kind, PRIORITY_LINK, callbacks, g, ret_channel);
    if (r < 0)
        return err_sys(err, r, "%s", peer->name);
    fill_hello(g, kind, &hello);
    channel_send_hello(*ret_channel, &hello);
    return 0;
}

/* Did the standby accept the channel? */
static bool accepted(struct guard *g, enum wire_channel channel, const struct wire_hello *answer)
{
    struct wire_hello sent;
    struct err err;

    fill_hello(g, channel, &sent);
    if (wire_hello_check_answer(&sent, answer, &err) < 0) {
        link_broken(g, err.text);
        return false;
    }
    return true;
}

static void on_broken(void *user, const char *why)
{
    link_broken(user, why);
}

/* ---- heartbeats ---- */

static int on_heartbeat(sd_event_source *source, uint64_t usec, void *user)
{
    struct guard *g = user;
    uint64_t late_ms = (clock_now_ns() / 1000 - usec) / 1000;
    struct wire_msg msg = {.type = WIRE_HEARTBEAT, .epoch = g->core.next_epoch - 1};

    if (late_ms > g->config->timeouts.heartbeat_ms)
        log_warning("a heartbeat is %llu ms late: this host is overloaded",
                    (unsigned long long)late_ms);
    msg.u.heartbeat.seq = ++g->link.heartbeat_seq;
    fault_point("guard.heartbeat");
    msg.u.heartbeat.term = g->core.record.term;
    msg.u.heartbeat.paired = g->core.state == PRIMARY_PROTECTED;
    if (g->link.control)
        channel_send(g->link.control, &msg);
    if (g->link.up)
        addresses_tell(g);
    (void)sd_event_source_set_time_relative(source, g->config->timeouts.heartbeat_ms * 1000ull);
    (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
    return 0;
}

static int start_heartbeat(struct guard *g)
{
    int r = sd_event_add_time_relative(g->event, &g->link.heartbeat, CLOCK_MONOTONIC, 0, 1,
                                       on_heartbeat, g);

    return r < 0 ? r : sd_event_source_set_priority(g->link.heartbeat, PRIORITY_LINK);
}

/* ---- data channel ---- */

static void on_data_hello(void *user, const struct wire_hello *hello)
{
    struct guard *g = user;
    struct primary_event ev = {.type = PEV_LINK_READY};
    struct transport *t;

    if (!accepted(g, WIRE_CHANNEL_DATA, hello))
        return;
    t = channel_take_transport(take_ptr(g->link.data));
    if (sender_attach(g->sender, t) < 0) {
        t->ops->close(t);
        link_broken(g, "the data channel cannot be used");
        return;
    }
    g->link.deadline = sd_event_source_disable_unref(g->link.deadline);
    g->link.up = true;
    g->link.why[0] = '\0';
    fault_point("guard.link-up");
    ev.u.ready.resumed = g->link.resume;
    ev.u.ready.epoch = g->link.ready_epoch;
    ev.u.ready.term = g->link.ready.term;
    guard_event(g, &ev);
}

static void on_data_message(void *user, const struct wire_msg *msg)
{
    link_broken(user, "the standby talks on the data channel");
}

static const struct channel_callbacks data_callbacks = {
    .on_hello = on_data_hello,
    .on_message = on_data_message,
    .on_broken = on_broken,
};

/* ---- control channel ---- */

static void send_offer(struct guard *g)
{
    struct wire_msg msg = {.type = WIRE_OFFER};
    CLEANUP_FREE char *json = NULL;

    if (vm_json_encode(&g->body->spec, &json) < 0) {
        link_broken(g, "out of memory");
        return;
    }
    fault_point("guard.offer");
    msg.u.offer.json = json;
    msg.u.offer.n_json = (uint32_t)strlen(json);
    channel_send(g->link.control, &msg);
}

static void on_control_hello(void *user, const struct wire_hello *hello)
{
    struct guard *g = user;

    if (accepted(g, WIRE_CHANNEL_CONTROL, hello) && !g->link.resume)
        send_offer(g);
}

static void on_ready(struct guard *g, const struct wire_msg *msg)
{
    struct err err;

    if (g->link.up || g->link.data || g->link.heartbeat) {
        link_broken(g, "the standby says that it is ready twice");
        return;
    }
    g->link.ready = msg->u.ready;
    fault_point("guard.standby-ready");
    g->link.ready_epoch = msg->epoch;
    if (start_heartbeat(g) < 0)
        link_broken(g, "out of memory");
    else if (open_channel(g, WIRE_CHANNEL_DATA, &data_callbacks, &g->link.data, &err) < 0)
        link_broken(g, err.text);
}

static void on_ack(struct guard *g, const struct wire_msg *msg)
{
    struct primary_event ev = {.type = PEV_ACK};
    struct sender_report sent;

    sender_report_get(g->sender, &sent);
    if (msg->epoch > sent.encoded_epoch) {
        link_broken(g, "the standby acknowledges what it was not sent");
        return;
    }
    fault_point("guard.ack");
    resync_durable(g, msg->u.ack.durable);
    ev.u.ack.epoch = msg->epoch;
    ev.u.ack.term = msg->u.ack.term;
    guard_event(g, &ev);
}

static void on_control_message(void *user, const struct wire_msg *msg)
{
    struct guard *g = user;
    struct primary_event ev = {.type = PEV_PEER_SEEN};

    guard_event(g, &ev);
    switch (msg->type) {
    case WIRE_HEARTBEAT:
        break;
    case WIRE_READY:
        on_ready(g, msg);
        break;
    case WIRE_REFUSE:
        log_warning("%s refuses: %s", g->core.peer, msg->u.refuse.text);
        if (g->link.up) /* its bye follows */
            (void)snprintf(g->link.why, sizeof(g->link.why), "%s", msg->u.refuse.text);
        else
            link_broken(g, msg->u.refuse.text);
        break;
    case WIRE_ACK:
        on_ack(g, msg);
        break;
    case WIRE_DISK_RANGES:
        resync_ranges(g, &msg->u.disk_ranges);
        break;
    case WIRE_BYE:
        ev.type = PEV_PEER_BYE;
        ev.u.bye = msg->u.bye.reason;
        guard_event(g, &ev);
        break;
    default:
        link_broken(g, "the standby sent what only a primary may send");
        break;
    }
}

static const struct channel_callbacks control_callbacks = {
    .on_hello = on_control_hello,
    .on_message = on_control_message,
    .on_broken = on_broken,
};

static int on_deadline(sd_event_source *source, uint64_t usec, void *user)
{
    struct guard *g = user;

    link_broken(g, "no answer");
    return 0;
}

void link_connect(struct guard *g, bool resume)
{
    struct link *l = &g->link;
    unsigned limit_ms = resume ? CONNECT_RESUME_MS : CONNECT_NEW_MS;
    struct err err;
    int r;

    l->resume = resume;
    fault_point("guard.connect");
    if (resume && l->poisoned) {
        link_broken(g, "the session cannot be resumed");
        return;
    }
    if (!resume) {
        l->poisoned = false;
        resync_connect(g);
        if (getrandom(l->session, sizeof(l->session), 0) != (ssize_t)sizeof(l->session)) {
            link_broken(g, "no random numbers");
            return;
        }
    }
    r = sd_event_add_time_relative(g->event, &l->deadline, CLOCK_MONOTONIC, limit_ms * 1000ull, 1,
                                   on_deadline, g);
    if (r < 0)
        (void)err_sys(&err, r, "event loop");
    else
        r = open_channel(g, WIRE_CHANNEL_CONTROL, &control_callbacks, &l->control, &err);
    if (r < 0)
        link_broken(g, err.text);
}

void link_say_bye(struct guard *g, uint16_t bye)
{
    struct wire_msg msg = {.type = WIRE_BYE, .u.bye.reason = bye};

    if (g->link.control)
        channel_send(g->link.control, &msg);
}

void link_drop(struct guard *g, uint16_t bye)
{
    struct link *l = &g->link;

    if (bye)
        link_say_bye(g, bye);
    l->deadline = sd_event_source_disable_unref(l->deadline);
    l->heartbeat = sd_event_source_disable_unref(l->heartbeat);
    channel_close(take_ptr(l->control));
    channel_close(take_ptr(l->data));
    sender_detach(g->sender);
    fault_point("guard.link-dropped");
    l->up = l->failed = false;
    l->told.at_ns = 0;
}

void link_broken(struct guard *g, const char *why)
{
    if (g->link.failed)
        return;
    g->link.failed = true;
    if (g->link.why != why)
        (void)snprintf(g->link.why, sizeof(g->link.why), "%s", why);
}
