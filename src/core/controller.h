/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_CONTROLLER_H
#define US_CORE_CONTROLLER_H

#include <stdbool.h>
#include <stdint.h>

/* The controller: says when an epoch should be cut, and when the VM has to be held back. It has
 * two goals, latency and a bound on the slow-down, and two things to protect: the way to the
 * standby, and the memory for what is on it.
 *
 * Latency. Frames that wait at the gate belong to the open epoch, so they want a cut of their own,
 * at once, whatever earlier epochs are still under way: over a link with a round trip of 100 ms
 * many are. But a cut that only joins a queue gains nothing and costs a pause. An epoch that is
 * overdue, by more than the round trip without a queue and half of it again (10 ms at least), says
 * that there is a queue; then the next acknowledgement is waited for, and frames gather meanwhile.
 * So a fast link, or hosts without CPU to spare, get one epoch at a time, a long one as many as it
 * has room for.
 *
 * Slow-down. D = pause / (interval + pause) (HERE, Middleware 2023) must not exceed its target D*.
 * A pause takes something only from a guest that wants to run: what counts is the pause times the
 * share of the interval before it in which the guest kept a CPU busy. This is a token bucket: it
 * gains D* ns a ns, a cut takes what it cost, and no frame causes a cut while it is in debt. Under
 * sustained load this is the rule interval = cost * (1 - D*) / D*, after each cut anew, with no
 * feedback that could oscillate; a guest that was quiet has saved up a second's worth and answers
 * the next requests at once. An idle guest that answers a ping every 10 ms loses nothing by 100
 * pauses a second and gets them; a compiler that prints now and then does not. For clients that
 * wait for their answers (closed loop), it finds the balance by itself: while they all wait, the
 * guest is idle, and a cut is cheap; when enough of them are served for the guest to be busy, it
 * keeps 1 - D* of its time. Pauses are at the latest at interval_max, and at the earliest
 * interval_min after the last one, whatever the bucket says.
 *
 * The way to the standby. What it carries is measured: an epoch that was acknowledged `excess`
 * later than the round trip without a queue had q bytes (its own and earlier ones) to be carried,
 * q / excess. An epoch gets no larger than what is carried in 100 ms, and no more is in flight than
 * in 100 ms and a round trip, so that frames, heartbeats and pauses do not wait for seconds on a
 * slow link. Too low an estimate makes small epochs, whose excess is small, which raises it again.
 *
 * A guest that outruns the link is first cut less often: nothing new is begun while the way is
 * full. When half of what an epoch may hold is dirty, it is cut all the same, and held until the
 * way has room again: throttled to the speed of the link, 50 to 150 ms at a time. A guest that is
 * held for 30 % of the time or more for 10 s has outrun the link; the VM's file says what then
 * (pace.c). */

enum { CONTROLLER_IN_FLIGHT_MAX = 32 }; /* epochs: 5 ms apart over 150 ms */

struct controller_params {
    uint64_t interval_min_ns, interval_max_ns;
    uint32_t slowdown_permille;   /* D* */
    uint64_t epoch_pages_max;     /* dirty pages that are cut at, however fast the link is */
    uint64_t in_flight_bytes_max; /* likewise */
    bool fixed; /* each interval_max, one in flight, whatever waits (Remus, NSDI 2008) */
};

/* What the controller looks at. */
struct controller_input {
    bool frames_wait;     /* frames of the open epoch are held at the gate */
    bool disks_press;     /* the disks' journal fills up */
    uint64_t dirty_pages; /* at the last look, a lower bound */
};

/* An epoch that was cut. */
struct controller_epoch {
    uint64_t epoch;
    uint64_t pause_ns;      /* how long the VM stood still for it */
    uint32_t busy_permille; /* of the interval before, at most 1000 */
    uint64_t bytes;         /* that it has to carry, before encoding */
    bool in_flight;         /* it is on its way; false: the link is gone */
};

/* For people. */
struct controller_figures {
    uint64_t interval_ns;       /* what the slow-down bound asks for now, within min and max */
    uint32_t slowdown_permille; /* D over the last 5 to 10 s */
    uint32_t held_permille;     /* of that time */
    unsigned in_flight;         /* epochs */
    uint64_t in_flight_bytes;
    uint64_t round_trip_ns; /* without a queue */
    uint64_t bytes_per_s;   /* that the way carries, before encoding; 0 = not known yet */
    uint64_t epoch_pages;   /* dirty pages that are cut at now */
};

/* Private from here on. */

struct controller_flight {
    uint64_t epoch, at_ns, bytes;
    uint64_t queued_bytes; /* with those before it that were in flight when it was cut */
};

struct controller_window {
    uint64_t begun_ns, cost_ns, held_ns;
};

struct controller {
    struct controller_params params;

    uint64_t last_cut_ns;   /* when the last epoch was complete */
    uint64_t probe_cost_ns; /* what the last look at the dirty pages cost */
    uint64_t last_probe_ns;
    uint64_t dirty_per_s; /* pages, between the last cut and the last look */

    int64_t credit_ns; /* of pauses, at credit_at_ns */
    uint64_t credit_at_ns;
    uint64_t cost_ns; /* of a cut, smoothed */

    struct controller_flight flight[CONTROLLER_IN_FLIGHT_MAX]; /* oldest first */
    unsigned n_in_flight;
    uint64_t bytes_per_s;
    uint64_t trip_ns, trip_before_ns; /* shortest in this period and in the one before; 0 = none */
    uint64_t trip_begun_ns;

    bool held;          /* the VM is held back now */
    uint64_t looked_ns; /* up to when `window` is */
    struct controller_window window, window_before;
    unsigned hot_windows; /* in a row, in which it was held for long */
};

void controller_init(struct controller *c, const struct controller_params *params, uint64_t now_ns);

/* A link was made, and its round trip measured (0: is not known). What was learnt of another one is
 * forgotten, also that it was outrun. */
void controller_link(struct controller *c, uint64_t round_trip_ns, uint64_t now_ns);

/* True when an epoch should be cut now. */
bool controller_due(const struct controller *c, const struct controller_input *in, uint64_t now_ns);

/* When to ask controller_due() again if no frame and no acknowledgement comes before; UINT64_MAX:
 * not before. */
uint64_t controller_deadline(const struct controller *c, const struct controller_input *in,
                             uint64_t now_ns);

/* When to look at the number of dirty pages again: often, but at no more than 1 % of a core. */
uint64_t controller_probe_at(const struct controller *c);

/* The dirty pages were counted, which took cost_ns. */
void controller_probed(struct controller *c, uint64_t pages, uint64_t now_ns, uint64_t cost_ns);

/* More than that need not be counted. */
uint64_t controller_probe_limit(const struct controller *c);

/* No more should be on its way now. */
bool controller_full(const struct controller *c);

/* An epoch was cut and is complete; the VM runs again, or is to be held. */
void controller_cut(struct controller *c, const struct controller_epoch *epoch, uint64_t now_ns);

/* An epoch of `bytes` is complete that cost the VM nothing: of seeding. */
void controller_sent(struct controller *c, uint64_t epoch, uint64_t bytes, uint64_t now_ns);

/* The epochs up to this one are acknowledged. */
void controller_acked(struct controller *c, uint64_t epoch, uint64_t now_ns);

/* Nothing is in flight any more: the link is gone. */
void controller_forget(struct controller *c, uint64_t now_ns);

/* Must the VM, which stands still for a cut that is complete, be held back? Once it was so, ask
 * again after each acknowledgement. */
bool controller_holds(struct controller *c, uint64_t now_ns);

/* The guest has outrun the link for long. */
bool controller_outrun(struct controller *c, uint64_t now_ns);

void controller_figures_get(const struct controller *c, struct controller_figures *ret_figures);

#endif
