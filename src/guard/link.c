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
 * link_broken(), once; the state machine decides what follows.
 *
 * When keys have changed, the link of a protected VM is replaced without a gap: a new control
 * channel is made beside the old one, asks to resume the session, and takes over when its hello is
 * answered (the standby drops the old one by that). Until then a failure of either is no failure
 * of the link. */

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

/* What was being connected will not be. */
static void connect_failed(struct guard *g, const char *why)
{
    struct link *l = &g->link;
    bool kept = l->relinking && !l->old_gone && !l->distrusted;

    l->relinking = false;
    if (!kept) {
        link_broken(g, why);
        return;
    }
    log_warning("the link to %s stays as it was, with the old key: %s", g->core.peer, why);
    l->deadline = sd_event_source_disable_unref(l->deadline);
    dial_close(take_ptr(l->dial));
    channel_close(take_ptr(l->next));
}

/* ---- making connections ---- */

static const struct channel_callbacks control_callbacks, next_callbacks, data_callbacks;

static void on_dialed(void *user, struct transport *t, const char *why);

/* Dials for the channel of that kind. One at a time. */
static int dial(struct guard *g, enum wire_channel kind, struct err *err)
{
    const struct host_peer *peer = host_config_peer(g->config, g->core.peer);
    struct dial_params params = {
        .event = g->event, .priority = PRIORITY_LINK, .tls = g->tls, .config = g->config};
    struct wire_hello hello;

    if (!peer)
        return err_set(err, -ENOENT, "%s is not among the peers of this host", g->core.peer);
    fill_hello(g, kind, &hello);
    g->link.dialed = kind;
    return dial_new(&params, peer, &hello, on_dialed, g, &g->link.dial, err);
}

/* In the room: says hello there. */
static int open_channel(struct guard *g, struct transport *t,
                        const struct channel_callbacks *callbacks, struct channel **ret_channel)
{
    enum wire_channel kind = g->link.dialed;
    struct wire_hello hello;
    int r = channel_new(g->event, t, kind, PRIORITY_LINK, callbacks, g, ret_channel);

    if (r < 0)
        return r;
    fill_hello(g, kind, &hello);
    channel_send_hello(*ret_channel, &hello);
    return 0;
}

static void on_dialed(void *user, struct transport *t, const char *why)
{
    struct guard *g = user;
    struct link *l = &g->link;
    int r;

    dial_close(take_ptr(l->dial));
    if (!t) {
        connect_failed(g, why);
        return;
    }
    if (l->dialed == WIRE_CHANNEL_DATA)
        r = open_channel(g, t, &data_callbacks, &l->data);
    else if (l->relinking)
        r = open_channel(g, t, &next_callbacks, &l->next);
    else
        r = open_channel(g, t, &control_callbacks, &l->control);
    if (r < 0)
        connect_failed(g, strerror(-r));
}

/* Did the standby accept the channel? */
static bool accepted(struct guard *g, enum wire_channel kind, const struct channel *c,
                     const struct wire_hello *answer)
{
    struct wire_hello sent;
    struct err err;

    fill_hello(g, kind, &sent);
    if (wire_hello_check_answer(&sent, answer, &err) < 0)
        connect_failed(g, err.text);
    else if (!dial_peer_is(g->config, c, g->core.peer))
        connect_failed(g, "the key is another peer's");
    else
        return true;
    return false;
}

static void on_broken(void *user, const char *why)
{
    link_broken(user, why);
}

/* ---- heartbeats ---- */

/* due_us: when it should have been. */
static void beat(struct guard *g, uint64_t due_us)
{
    sd_event_source *source = g->link.heartbeat;
    uint64_t late_ms = (clock_now_ns() / 1000 - due_us) / 1000;
    struct primary_event stood = {.type = PEV_STOOD_STILL};
    struct wire_msg msg = {.type = WIRE_HEARTBEAT, .epoch = g->core.next_epoch - 1};

    if (late_ms > g->config->timeouts.heartbeat_ms) {
        log_warning("a heartbeat is %llu ms late: this host is overloaded",
                    (unsigned long long)late_ms);
        stood.u.stood_ns = late_ms * NS_PER_MS;
        guard_event(g, &stood);
    }
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
}

static int on_heartbeat(sd_event_source *source, uint64_t usec, void *user)
{
    beat(user, usec);
    return 0;
}

void link_beat(struct guard *g)
{
    uint64_t due_us;

    if (g->link.heartbeat && sd_event_source_get_time(g->link.heartbeat, &due_us) >= 0 &&
        clock_now_ns() / 1000 >= due_us)
        beat(g, due_us);
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

    if (!accepted(g, WIRE_CHANNEL_DATA, g->link.data, hello))
        return;
    t = channel_take_transport(take_ptr(g->link.data));
    pace_link(g, t->ops->fd(t));
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

    if (!accepted(g, WIRE_CHANNEL_CONTROL, g->link.control, hello))
        return;
    g->link.peer_key = *channel_peer_key(g->link.control);
    if (!g->link.resume)
        send_offer(g);
}

static void on_ready(struct guard *g, const struct wire_msg *msg)
{
    struct err err;

    if (g->link.up || g->link.dial || g->link.data || g->link.heartbeat) {
        link_broken(g, "the standby says that it is ready twice");
        return;
    }
    g->link.ready = msg->u.ready;
    fault_point("guard.standby-ready");
    g->link.ready_epoch = msg->epoch;
    if (start_heartbeat(g) < 0)
        link_broken(g, "out of memory");
    else if (dial(g, WIRE_CHANNEL_DATA, &err) < 0)
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
    connect_failed(user, "no answer");
    return 0;
}

static int start_deadline(struct guard *g, unsigned limit_ms)
{
    return sd_event_add_time_relative(g->event, &g->link.deadline, CLOCK_MONOTONIC,
                                      limit_ms * 1000ull, 1, on_deadline, g);
}

/* ---- a new link for an old one ---- */

/* The standby has accepted the new control channel, and dropped the old link by that. */
static void on_next_hello(void *user, const struct wire_hello *hello)
{
    struct guard *g = user;
    struct link *l = &g->link;

    if (!accepted(g, WIRE_CHANNEL_CONTROL, l->next, hello))
        return;
    l->heartbeat = sd_event_source_disable_unref(l->heartbeat);
    channel_close(take_ptr(l->control));
    sender_detach(g->sender);
    l->control = take_ptr(l->next);
    channel_set_callbacks(l->control, &control_callbacks, g);
    l->peer_key = *channel_peer_key(l->control);
    l->up = l->relinking = l->old_gone = false;
    guard_simple_event(g, PEV_RELINK);
    log_info("%s: the link was made anew", g->core.peer);
}

static void on_next_message(void *user, const struct wire_msg *msg)
{
    connect_failed(user, "the standby talks too early");
}

static void on_next_broken(void *user, const char *why)
{
    connect_failed(user, why);
}

static const struct channel_callbacks next_callbacks = {
    .on_hello = on_next_hello,
    .on_message = on_next_message,
    .on_broken = on_next_broken,
};

void link_keys_changed(struct guard *g, bool own)
{
    struct link *l = &g->link;
    struct err err;

    l->distrusted = l->control && !host_config_peer_by_key(g->config, &l->peer_key);
    if (!l->control || l->relinking || (!own && !l->distrusted))
        return;
    if (!l->up || g->core.state != PRIMARY_PROTECTED) {
        link_broken(g, "keys have changed");
        return;
    }
    l->resume = l->relinking = true;
    if (start_deadline(g, CONNECT_RESUME_MS) < 0)
        connect_failed(g, "out of memory");
    else if (dial(g, WIRE_CHANNEL_CONTROL, &err) < 0)
        connect_failed(g, err.text);
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
    r = start_deadline(g, limit_ms);
    if (r < 0)
        (void)err_sys(&err, r, "event loop");
    else
        r = dial(g, WIRE_CHANNEL_CONTROL, &err);
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
    dial_close(take_ptr(l->dial));
    channel_close(take_ptr(l->next));
    channel_close(take_ptr(l->control));
    channel_close(take_ptr(l->data));
    sender_detach(g->sender);
    fault_point("guard.link-dropped");
    l->up = l->failed = l->relinking = l->old_gone = false;
    l->told.at_ns = 0;
}

void link_broken(struct guard *g, const char *why)
{
    if (g->link.relinking) {
        g->link.old_gone = true; /* the new one decides */
        return;
    }
    if (g->link.failed)
        return;
    g->link.failed = true;
    if (g->link.why != why)
        (void)snprintf(g->link.why, sizeof(g->link.why), "%s", why);
}
