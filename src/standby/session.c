/* SPDX-License-Identifier: Apache-2.0 */
#include "standby/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/dial.h"
#include "io/log.h"

/* The standby's side of a session (docs/protocol.md, "Session"). understudyd accepts the
 * connections and hands them over unread. The first one is the control channel that made this
 * process; later ones are its data channel, or both again after the link broke. */

enum { PRIORITY_LINK = -10, LATE_BYTES = 1 << 20, HELLO_MS = 5000 };

static void answer_hello(struct standby_shell *s, struct channel *c,
                         const struct wire_hello *theirs, enum wire_status status, const char *text)
{
    struct wire_hello answer;

    wire_hello_answer(theirs, s->config->name, (uint8_t)status, text, &answer);
    channel_send_hello(c, &answer);
}

static void send_ready(struct standby_shell *s, bool resumed)
{
    struct wire_msg msg = {.type = WIRE_READY, .epoch = s->core.epoch};

    msg.u.ready.term = s->core.right;
    if (!resumed)
        standby_disks_describe(s, &msg.u.ready);
    fault_point("standby.ready");
    channel_send(s->control, &msg);
}

void session_send_ack(struct standby_shell *s, uint64_t epoch, uint64_t term)
{
    struct wire_msg msg = {.type = WIRE_ACK, .epoch = epoch, .u.ack.term = term};
    uint64_t durable = standby_disks_durable(s);

    msg.u.ack.durable = durable < epoch ? durable : epoch;
    fault_point("standby.staged");
    if (s->control)
        channel_send(s->control, &msg);
    fault_point("standby.acked");
}

static int on_heartbeat(sd_event_source *source, uint64_t usec, void *user)
{
    struct standby_shell *s = user;
    struct wire_msg msg = {.type = WIRE_HEARTBEAT, .epoch = s->core.epoch};
    struct standby_event stood = {.type = SEV_STOOD_STILL};
    uint64_t late_ms = (clock_now_ns() / 1000 - usec) / 1000;

    if (late_ms > s->config->timeouts.heartbeat_ms) {
        stood.u.stood_ns = late_ms * NS_PER_MS;
        standby_event(s, &stood);
    }
    msg.u.heartbeat.seq = ++s->heartbeat_seq;
    fault_point("standby.heartbeat");
    msg.u.heartbeat.term = s->core.right;
    if (s->control)
        channel_send(s->control, &msg);
    (void)sd_event_source_set_time_relative(source, s->config->timeouts.heartbeat_ms * 1000ull);
    (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
    return 0;
}

int session_start_heartbeat(struct standby_shell *s)
{
    int r =
        sd_event_add_time_relative(s->event, &s->heartbeat, CLOCK_MONOTONIC, 0, 1, on_heartbeat, s);

    return r < 0 ? r : sd_event_source_set_priority(s->heartbeat, PRIORITY_LINK);
}

void session_drop(struct standby_shell *s, uint16_t bye)
{
    if (s->control && bye) {
        struct wire_msg msg = {.type = WIRE_BYE, .u.bye.reason = bye};

        channel_send(s->control, &msg);
    }
    channel_close(take_ptr(s->control));
    s->control_failed = false;
    if (s->receiver)
        receiver_detach(s->receiver);
}

/* ---- control channel ---- */

static void control_failed(struct standby_shell *s, const char *why)
{
    log_debug("control channel: %s", why);
    s->control_failed = true;
}

void session_refuse(struct standby_shell *s, const char *why)
{
    struct wire_msg msg = {.type = WIRE_REFUSE};

    (void)snprintf(msg.u.refuse.text, sizeof(msg.u.refuse.text), "%s", why);
    if (s->control)
        channel_send(s->control, &msg);
}

static void on_offer(struct standby_shell *s, const struct wire_msg *msg)
{
    struct err err;

    if (s->serving) {
        control_failed(s, "a second offer");
        return;
    }
    if (standby_serve(s, msg->u.offer.json, msg->u.offer.n_json, &err) < 0) {
        log_warning("refusing the offer of %s: %s", s->primary, err.text);
        session_refuse(s, err.text);
        standby_finish(s, err.text);
        return;
    }
    send_ready(s, false);
}

/* What the guest's addresses are, for announcing them after a takeover. */
static void on_addresses(struct standby_shell *s, const struct wire_addresses *all)
{
    struct guest_address of_nic[VM_NICS_MAX][GUEST_ADDRESSES_MAX];
    size_t n[VM_NICS_MAX] = {0};
    uint32_t i;

    if (!s->serving || !s->body) {
        control_failed(s, "addresses of a VM that is not here");
        return;
    }
    for (i = 0; i < all->n; i++) {
        const struct wire_address *a = &all->entry[i];

        if (a->nic >= s->body->spec.n_nics) {
            control_failed(s, "an address of a NIC that the VM does not have");
            return;
        }
        if (n[a->nic] < GUEST_ADDRESSES_MAX) {
            struct guest_address *to = &of_nic[a->nic][n[a->nic]++];

            *to = (struct guest_address){a->family, a->router, a->vlan, {0}, a->age_s};
            memcpy(to->bytes, a->bytes, sizeof(to->bytes));
        }
    }
    for (i = 0; i < s->body->spec.n_nics; i++)
        netport_addresses_set(s->body->ports[i], of_nic[i], n[i]);
}

/* A frame for the guest, which is on its way to this host. */
static void on_late_frame(struct standby_shell *s, const struct wire_frames *frame)
{
    if (!s->body || frame->nic >= s->body->spec.n_nics || frame->n_bytes > NETPORT_FRAME_MAX) {
        control_failed(s, "a frame for a NIC that the VM does not have");
        return;
    }
    if (!s->late)
        s->late = frame_queue_new(LATE_BYTES);
    if (s->late) /* lost when it is full, as on any network */
        (void)!frame_queue_push(s->late, 0, frame->nic, frame->bytes, frame->n_bytes);
}

void session_deliver_late(struct standby_shell *s)
{
    struct queued_frame frame;

    while (s->late && frame_queue_peek(s->late, &frame) == 0) {
        netport_deliver(s->body->ports[frame.nic], frame.bytes, frame.n_bytes);
        frame_queue_pop(s->late);
    }
}

static void on_control_message(void *user, const struct wire_msg *msg)
{
    struct standby_shell *s = user;
    struct standby_event bye = {.type = SEV_PEER_BYE};

    if (msg->type == WIRE_FRAMES) {
        on_late_frame(s, &msg->u.frames);
        return;
    }
    if (s->serving && standby_finished(&s->core))
        return; /* it is decided */
    if (s->serving)
        standby_simple_event(s, SEV_PEER_SEEN);
    switch (msg->type) {
    case WIRE_HEARTBEAT:
        break;
    case WIRE_OFFER:
        on_offer(s, msg);
        break;
    case WIRE_ADDRESSES:
        on_addresses(s, &msg->u.addresses);
        break;
    case WIRE_BYE:
        bye.u.bye = msg->u.bye.reason;
        if (s->serving)
            standby_event(s, &bye);
        else
            standby_finish(s, "the primary changed its mind");
        break;
    default:
        control_failed(s, "the primary sent what only a standby may send");
        break;
    }
}

static void on_control_broken(void *user, const char *why)
{
    control_failed(user, why);
}

static void on_second_hello(void *user, const struct wire_hello *hello)
{
    control_failed(user, "a second hello"); /* the channel delivers one only */
}

static const struct channel_callbacks control_callbacks = {
    .on_hello = on_second_hello,
    .on_message = on_control_message,
    .on_broken = on_control_broken,
};

/* ---- connections whose hello is still to be dealt with ---- */

struct knock {
    struct standby_shell *shell;
    struct channel *channel;
    sd_event_source *deadline;
};

static void knock_free(struct knock *k)
{
    channel_close(k->channel);
    sd_event_source_disable_unref(k->deadline);
    free(k);
}

static bool same_session(const struct standby_shell *s, const struct wire_hello *hello)
{
    return s->serving && !standby_finished(&s->core) && strcmp(hello->from, s->primary) == 0 &&
           memcmp(hello->session, s->session, sizeof(s->session)) == 0;
}

/* The knocking connection becomes the control channel. */
static void become_control(struct standby_shell *s, struct knock *k, const struct wire_hello *hello)
{
    answer_hello(s, k->channel, hello, WIRE_OK, "");
    s->control = take_ptr(k->channel);
    channel_set_callbacks(s->control, &control_callbacks, s);
}

static void accept_first(struct standby_shell *s, struct knock *k, const struct wire_hello *hello)
{
    (void)snprintf(s->primary, sizeof(s->primary), "%s", hello->from);
    memcpy(s->session, hello->session, sizeof(s->session));
    become_control(s, k, hello);
}

static void accept_resume(struct standby_shell *s, struct knock *k, const struct wire_hello *hello)
{
    session_drop(s, 0);          /* what is left of the broken link */
    standby_look_at_receiver(s); /* what it still brought */
    become_control(s, k, hello);
    fault_point("standby.resume");
    standby_simple_event(s, SEV_LINK_RESUMED);
    send_ready(s, true);
}

static void accept_data(struct standby_shell *s, struct knock *k, const struct wire_hello *hello)
{
    struct transport *t;

    answer_hello(s, k->channel, hello, WIRE_OK, "");
    t = channel_take_transport(take_ptr(k->channel));
    fault_point("standby.data");
    receiver_detach(s->receiver);
    if (receiver_attach(s->receiver, t) < 0) {
        t->ops->close(t);
        control_failed(s, "the data channel cannot be used");
    }
}

static void on_knock_hello(void *user, const struct wire_hello *hello)
{
    struct knock *k = user;
    struct standby_shell *s = k->shell;
    bool control = hello->channel == WIRE_CHANNEL_CONTROL;

    if (!dial_peer_is(s->config, k->channel, hello->from)) {
        answer_hello(s, k->channel, hello, WIRE_REFUSED_UNKNOWN_PEER, "that is not your name");
    } else if (!wire_version_choose(hello)) {
        answer_hello(s, k->channel, hello, WIRE_REFUSED_VERSION, "no common protocol version");
    } else if (control && !hello->resume && !s->control && !s->serving && !s->finish) {
        accept_first(s, k, hello);
    } else if (control && hello->resume && same_session(s, hello)) {
        accept_resume(s, k, hello);
    } else if (!control && same_session(s, hello) && s->control) {
        accept_data(s, k, hello);
    } else if (control && !hello->resume) {
        answer_hello(s, k->channel, hello, WIRE_REFUSED_BUSY, "busy with an earlier session");
        if (s->serving)
            standby_simple_event(s, SEV_KNOCK);
    } else {
        answer_hello(s, k->channel, hello, WIRE_REFUSED_SESSION, "that session is not here");
    }
    knock_free(k);
}

static void on_knock_message(void *user, const struct wire_msg *msg)
{
    /* Not reached: the hello ends every knock. */
}

static void on_knock_broken(void *user, const char *why)
{
    struct knock *k = user;

    if (!k->shell->control && !k->shell->serving)
        standby_finish(k->shell, why);
    knock_free(k);
}

static int on_knock_deadline(sd_event_source *source, uint64_t usec, void *user)
{
    on_knock_broken(user, "no hello in time");
    return 0;
}

static const struct channel_callbacks knock_callbacks = {
    .on_hello = on_knock_hello,
    .on_message = on_knock_message,
    .on_broken = on_knock_broken,
};

int session_adopt(struct standby_shell *s, int fd, struct err *err)
{
    struct tls_params room = {
        .role = TLS_SERVER,
        .purpose = TLS_ROOM,
        .trusted = dial_trusts,
        .user = (void *)(uintptr_t)s->config, /* dial_trusts only reads it */
    };
    struct transport *t = transport_tls_new(s->tls, fd, &room);
    struct knock *k = calloc(1, sizeof(*k));
    int r = -ENOMEM;

    if (t && k) {
        k->shell = s;
        r = channel_new(s->event, take_ptr(t), WIRE_CHANNEL_CONTROL, PRIORITY_LINK,
                        &knock_callbacks, k, &k->channel);
    }
    if (r >= 0)
        r = sd_event_add_time_relative(s->event, &k->deadline, CLOCK_MONOTONIC, HELLO_MS * 1000ull,
                                       1000, on_knock_deadline, k);
    if (r < 0) {
        if (t)
            t->ops->close(t);
        if (k)
            knock_free(k);
        return err_sys(err, r, "connection from the primary");
    }
    return 0;
}

void session_keys_changed(struct standby_shell *s)
{
    if (s->control && !dial_peer_is(s->config, s->control, s->primary))
        control_failed(s, "its key was removed");
}
