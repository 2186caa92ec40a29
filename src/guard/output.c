/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/output.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "io/clock.h"
#include "io/frame_queue.h"
#include "io/log.h"

_Static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT, "event bits are the same");

/* The queue counts as full while fewer than a batch of the largest frames fit. */
enum { ROOM_FOR_FRAME = NETPORT_FRAME_MAX + 32, ANNOUNCE_TIMES = 5, ANNOUNCE_FIRST_MS = 20 };

struct port_watch {
    struct output *output;
    uint8_t nic;
    sd_event_source *guest, *tap;
};

struct output {
    struct body *body;
    const struct gate *gate;
    struct frame_queue *queue;
    uint64_t queue_bytes;
    uint64_t newest_stamp; /* of the frame pushed last */
    uint64_t released, dropped;
    bool full;
    enum output_inbound inbound;
    output_frame_fn *on_inbound;
    void *inbound_user;
    struct port_watch watch[VM_NICS_MAX];
    sd_event_source *announce_timer;
    unsigned announced;
};

/* Ports change what they wait for with every call. */
static void update_watches(struct output *o)
{
    uint32_t i;

    for (i = 0; i < o->body->spec.n_nics; i++) {
        const struct netport *port = o->body->ports[i];
        uint32_t guest = (uint32_t)netport_guest_events(port);
        uint32_t tap = (uint32_t)netport_tap_events(port);

        if (o->full)
            guest &= ~(uint32_t)EPOLLIN;
        if (o->inbound == INBOUND_KEEP)
            tap &= ~(uint32_t)EPOLLIN;
        if (o->inbound != INBOUND_DELIVER)
            guest &= ~(uint32_t)EPOLLOUT;
        (void)sd_event_source_set_io_events(o->watch[i].guest, guest);
        (void)sd_event_source_set_io_events(o->watch[i].tap, tap);
    }
}

static unsigned room(const struct output *o)
{
    uint64_t used = frame_queue_bytes(o->queue) + 32 * frame_queue_frames(o->queue);
    uint64_t spare = used < o->queue_bytes ? o->queue_bytes - used : 0;
    uint64_t frames = spare / ROOM_FOR_FRAME;

    /* One frame less than fits: the ring may leave as much unused at its end. */
    return frames < 2 ? 0 : frames > NETPORT_BATCH ? NETPORT_BATCH : (unsigned)frames - 1;
}

static void on_guest_frame(void *user, const uint8_t *bytes, uint32_t n_bytes)
{
    struct port_watch *w = user;
    struct output *o = w->output;

    if (frame_queue_push(o->queue, o->gate->open_epoch, w->nic, bytes, n_bytes) < 0)
        o->dropped++;
    else
        o->newest_stamp = o->gate->open_epoch;
}

/* Returns true when there may be more. */
static bool take_batch(struct output *o, uint32_t i)
{
    unsigned max = room(o);
    int n = max ? netport_read_guest(o->body->ports[i], max, on_guest_frame, &o->watch[i]) : 0;

    if (n < 0) {
        log_error("nics[%u]: no more frames from the guest: error %d", i, -n);
        (void)sd_event_source_set_enabled(o->watch[i].guest, SD_EVENT_OFF);
    }
    o->full = room(o) == 0;
    return n == (int)max && !o->full;
}

void output_take(struct output *o)
{
    uint32_t i;

    for (i = 0; i < o->body->spec.n_nics; i++) {
        while (take_batch(o, i))
            ;
    }
    update_watches(o);
}

void output_flush(struct output *o)
{
    struct queued_frame frame;

    while (frame_queue_peek(o->queue, &frame) == 0 && gate_may_leave(o->gate, frame.epoch)) {
        if (netport_emit(o->body->ports[frame.nic], frame.bytes, frame.n_bytes) == -EAGAIN)
            break; /* the tap's readiness brings us back: order matters more than the other NICs */
        frame_queue_pop(o->queue);
        o->released++;
    }
    o->full = o->full && room(o) == 0;
    update_watches(o);
}

bool output_waits(const struct output *o)
{
    return o->gate->holding && frame_queue_frames(o->queue) > 0 &&
           o->newest_stamp == o->gate->open_epoch;
}

bool output_full(const struct output *o)
{
    return o->full;
}

void output_drop(struct output *o)
{
    o->announce_timer = sd_event_source_disable_unref(o->announce_timer);
    o->dropped += frame_queue_drop_all(o->queue);
    o->full = false;
    update_watches(o);
}

static void on_diverted(void *user, const uint8_t *bytes, uint32_t n_bytes)
{
    const struct port_watch *w = user;

    w->output->on_inbound(w->output->inbound_user, w->nic, bytes, n_bytes);
}

static void forward_inbound(struct port_watch *w)
{
    struct netport *port = w->output->body->ports[w->nic];
    int n = 0;

    if (w->output->inbound == INBOUND_DELIVER)
        n = netport_forward_inbound(port);
    else if (w->output->inbound == INBOUND_DIVERT)
        n = netport_divert_inbound(port, on_diverted, w);
    if (n < 0) {
        log_error("nics[%u]: the tap device is gone", w->nic);
        (void)sd_event_source_set_enabled(w->tap, SD_EVENT_OFF);
    }
}

static int on_guest(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct port_watch *w = user;

    /* One batch, so that a guest that sends without end delays neither its frames nor others. */
    if (events & (EPOLLIN | EPOLLERR))
        (void)take_batch(w->output, w->nic);
    if (events & EPOLLOUT)
        forward_inbound(w);
    output_flush(w->output);
    return 0;
}

static int on_tap(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct port_watch *w = user;

    if (events & (EPOLLIN | EPOLLERR))
        forward_inbound(w);
    output_flush(w->output);
    return 0;
}

void output_inbound(struct output *o, enum output_inbound what, output_frame_fn *on_frame,
                    void *user)
{
    o->inbound = what;
    o->on_inbound = on_frame;
    o->inbound_user = user;
    update_watches(o);
}

static int on_announce(sd_event_source *source, uint64_t usec, void *user)
{
    struct output *o = user;
    uint32_t i;

    for (i = 0; i < o->body->spec.n_nics; i++)
        netport_announce(o->body->ports[i]);
    update_watches(o);
    if (++o->announced >= ANNOUNCE_TIMES)
        return 0;
    (void)sd_event_source_set_time_relative(source, (ANNOUNCE_FIRST_MS * 1000ull) << o->announced);
    (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
    return 0;
}

void output_announce(struct output *o)
{
    o->announced = 0;
    o->announce_timer = sd_event_source_disable_unref(o->announce_timer);
    /* Without memory for a timer the guest's own frames tell the network as well. */
    (void)sd_event_add_time_relative(o->body->event, &o->announce_timer, CLOCK_MONOTONIC, 0, 1,
                                     on_announce, o);
}

static int watch_port(struct output *o, uint32_t i)
{
    const struct netport *port = o->body->ports[i];
    struct port_watch *w = &o->watch[i];
    int r;

    w->output = o;
    w->nic = (uint8_t)i;
    r = sd_event_add_io(o->body->event, &w->guest, netport_guest_fd(port), EPOLLIN, on_guest, w);
    if (r < 0)
        return r;
    return sd_event_add_io(o->body->event, &w->tap, netport_tap_fd(port), EPOLLIN, on_tap, w);
}

int output_new(struct body *body, const struct gate *gate, struct output **ret_output,
               struct err *err)
{
    struct output *o = calloc(1, sizeof(*o));
    uint32_t i;
    int r = 0;

    if (!o)
        return err_sys(err, -ENOMEM, "output gate");
    o->body = body;
    o->gate = gate;
    o->queue_bytes = (uint64_t)body->config->gate_mib << 20;
    o->queue = frame_queue_new(o->queue_bytes);
    if (!o->queue)
        r = -ENOMEM;
    for (i = 0; i < body->spec.n_nics && r >= 0; i++)
        r = watch_port(o, i);
    if (r < 0) {
        output_close(o);
        return err_sys(err, r, "output gate");
    }
    update_watches(o);
    *ret_output = o;
    return 0;
}

void output_stats_get(const struct output *o, struct output_stats *ret_stats)
{
    uint32_t i;

    *ret_stats = (struct output_stats){
        .held_frames = frame_queue_frames(o->queue),
        .held_bytes = frame_queue_bytes(o->queue),
        .released_frames = o->released,
        .dropped_frames = o->dropped,
    };
    for (i = 0; i < o->body->spec.n_nics; i++) {
        struct netport_stats s;

        netport_stats_get(o->body->ports[i], &s);
        ret_stats->dropped_frames += s.guest_runt + s.guest_giant + s.emit_failed +
                                     s.inbound_absent + s.inbound_failed + s.inbound_discarded;
    }
}

void output_close(struct output *o)
{
    uint32_t i;

    if (!o)
        return;
    for (i = 0; i < VM_NICS_MAX; i++) {
        sd_event_source_disable_unref(o->watch[i].guest);
        sd_event_source_disable_unref(o->watch[i].tap);
    }
    sd_event_source_disable_unref(o->announce_timer);
    frame_queue_close(o->queue);
    free(o);
}
