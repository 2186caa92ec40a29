/* SPDX-License-Identifier: Apache-2.0 */
#include "core/controller.h"

#include <string.h>

#include "core/vm_spec.h"

#define MS UINT64_C(1000000)
#define S  UINT64_C(1000000000)

#define QUEUE_NS     (100 * MS) /* what an epoch may take to be carried; what may queue up */
#define OVERDUE_NS   (10 * MS)  /* noise of an acknowledgement, on any link */
#define EXCESS_NS    (5 * MS)   /* less than that tells nothing of how much the link carries */
#define BURST_NS     S          /* what the bucket holds, at the target */
#define TRIP_NS      (10 * S)   /* the shortest round trip is that of the last 10 to 20 s */
#define WINDOW_NS    (5 * S)
#define RATE_MAX     (UINT64_C(1) << 32)
#define EPOCH_FLOOR  UINT64_C(512)       /* pages; less does not pay a cut */
#define SAMPLE_BYTES (UINT64_C(1) << 20) /* what a slow link is told from a slow moment by */

enum {
    PROBE_MIN_MS = 2,
    PROBE_MAX_MS = 20,
    PROBE_COST_FACTOR = 100,
    HOT_PERMILLE = 300,
    HOT_WINDOWS = 2,
};

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- the slow-down ---- */

static int64_t burst(const struct controller *c)
{
    return (int64_t)(BURST_NS / 1000 * c->params.slowdown_permille);
}

static int64_t credit(const struct controller *c, uint64_t now)
{
    uint64_t gained = min_u64(now - c->credit_at_ns, 100 * S) / 1000 * c->params.slowdown_permille;
    int64_t sum = c->credit_ns + (int64_t)gained;

    return sum < burst(c) ? sum : burst(c);
}

/* When the bucket is out of debt. */
static uint64_t affordable_at(const struct controller *c)
{
    if (c->credit_ns >= 0)
        return c->credit_at_ns;
    return c->credit_at_ns + (uint64_t)-c->credit_ns * 1000 / c->params.slowdown_permille;
}

static void spend(struct controller *c, uint64_t cost_ns, uint64_t now)
{
    /* Cuts that are made in any case, each interval_max, pile up no debt beyond that. */
    int64_t least = -(int64_t)(c->params.interval_max_ns / 1000 * c->params.slowdown_permille);
    int64_t left = credit(c, now) - (int64_t)min_u64(cost_ns, 100 * S);

    c->credit_ns = left > least ? left : least;
    c->credit_at_ns = now;
    c->cost_ns = (3 * c->cost_ns + cost_ns) / 4;
    c->window.cost_ns += cost_ns;
}

static uint64_t interval_goal(const struct controller *c)
{
    uint64_t d = c->params.slowdown_permille;
    uint64_t goal = c->params.fixed ? UINT64_MAX : c->cost_ns * (1000 - d) / d;

    return min_u64(max_u64(goal, c->params.interval_min_ns), c->params.interval_max_ns);
}

/* ---- the way to the standby ---- */

static uint64_t round_trip(const struct controller *c)
{
    return c->trip_before_ns ? min_u64(c->trip_ns, c->trip_before_ns) : c->trip_ns;
}

static uint64_t carried_in(const struct controller *c, uint64_t ns)
{
    return c->bytes_per_s / 1000 * (ns / 1000) / 1000;
}

static uint64_t epoch_pages(const struct controller *c)
{
    uint64_t pages = c->params.epoch_pages_max;

    if (c->bytes_per_s)
        pages = max_u64(carried_in(c, QUEUE_NS) / VM_PAGE_BYTES, EPOCH_FLOOR);
    return min_u64(pages, c->params.epoch_pages_max);
}

static uint64_t in_flight_bytes(const struct controller *c)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < c->n_in_flight; i++)
        bytes += c->flight[i].bytes;
    return bytes;
}

/* No more bytes should be on their way. */
static bool way_full(const struct controller *c)
{
    uint64_t limit = c->params.in_flight_bytes_max;

    if (c->bytes_per_s)
        limit = min_u64(limit, max_u64(carried_in(c, round_trip(c) + QUEUE_NS),
                                       2 * EPOCH_FLOOR * VM_PAGE_BYTES));
    return c->n_in_flight && in_flight_bytes(c) >= limit;
}

/* The oldest epoch is overdue: there is a queue. */
static bool way_slow(const struct controller *c, uint64_t at)
{
    uint64_t trip = round_trip(c);

    return c->n_in_flight && at > c->flight[0].at_ns + trip + max_u64(trip / 2, OVERDUE_NS);
}

/* An epoch that was alone, and small, tells what the round trip is without a queue. */
static void learn_trip(struct controller *c, const struct controller_flight *f, uint64_t now)
{
    uint64_t trip = now - f->at_ns;

    if (f->queued_bytes != f->bytes || f->bytes > SAMPLE_BYTES)
        return;
    if (!c->trip_ns || now - c->trip_begun_ns > TRIP_NS) {
        c->trip_before_ns = c->trip_ns;
        c->trip_ns = trip;
        c->trip_begun_ns = now;
    }
    c->trip_ns = min_u64(c->trip_ns, trip);
}

/* A sample may take three quarters off the estimate, whatever it says; up it goes slowly, but for
 * an epoch that had not to wait. */
static void learn_rate(struct controller *c, const struct controller_flight *f, uint64_t now)
{
    uint64_t trip = now - f->at_ns, base = round_trip(c);
    uint64_t excess = trip > base ? trip - base : 0;
    bool waited = excess >= EXCESS_NS;
    uint64_t rate = f->queued_bytes * 1000 / (max_u64(excess, EXCESS_NS) / MS);

    rate = min_u64(rate, RATE_MAX);
    if (!c->bytes_per_s) {
        if (waited && f->queued_bytes >= SAMPLE_BYTES)
            c->bytes_per_s = rate;
    } else if (rate > c->bytes_per_s) {
        c->bytes_per_s = waited ? c->bytes_per_s + (rate - c->bytes_per_s) / 4 : rate;
    } else if (waited && f->queued_bytes >= SAMPLE_BYTES) {
        c->bytes_per_s = max_u64(rate, c->bytes_per_s / 4);
    }
}

/* ---- windows ---- */

static void close_window(struct controller *c, uint64_t at)
{
    bool hot = c->window.held_ns >= WINDOW_NS / 1000 * HOT_PERMILLE;

    c->hot_windows = hot ? c->hot_windows + 1 : 0;
    c->window_before = c->window;
    c->window = (struct controller_window){.begun_ns = at};
}

static void look(struct controller *c, uint64_t now)
{
    if (now - c->looked_ns > 4 * WINDOW_NS) { /* nothing was going on, or we stood still */
        close_window(c, now - WINDOW_NS);
        close_window(c, now);
        c->looked_ns = now;
    }
    while (c->looked_ns < now) {
        uint64_t end = c->window.begun_ns + WINDOW_NS, to = min_u64(now, end);

        if (c->held)
            c->window.held_ns += to - c->looked_ns;
        c->looked_ns = to;
        if (to == end)
            close_window(c, end);
    }
}

/* ---- what it is asked ---- */

void controller_init(struct controller *c, const struct controller_params *params, uint64_t now)
{
    *c = (struct controller){
        .params = *params,
        .last_cut_ns = now,
        .last_probe_ns = now,
        .credit_at_ns = now,
        .looked_ns = now,
        .window.begun_ns = now,
        .window_before.begun_ns = now,
    };
    c->credit_ns = burst(c);
}

void controller_link(struct controller *c, uint64_t round_trip_ns, uint64_t now)
{
    c->trip_ns = round_trip_ns;
    c->trip_before_ns = 0;
    c->trip_begun_ns = now;
    c->bytes_per_s = 0;
    c->n_in_flight = 0;
    c->hot_windows = 0;
}

uint64_t controller_deadline(const struct controller *c, const struct controller_input *in,
                             uint64_t now)
{
    uint64_t earliest = c->last_cut_ns + c->params.interval_min_ns;
    uint64_t latest = c->last_cut_ns + c->params.interval_max_ns;
    uint64_t limit = epoch_pages(c), wanted;
    bool much = in->dirty_pages >= limit;

    if (c->params.fixed)
        return c->n_in_flight ? UINT64_MAX : latest;
    if (c->n_in_flight == CONTROLLER_IN_FLIGHT_MAX)
        return UINT64_MAX;
    if (in->dirty_pages >= 2 * limit || (in->dirty_pages >= limit / 2 && way_full(c)))
        return max_u64(earliest, now); /* in the second case, to be held */
    if (way_full(c))
        return UINT64_MAX;
    if (!in->frames_wait && !in->disks_press && !much)
        return latest;
    wanted = max_u64(max_u64(earliest, affordable_at(c)), now); /* debts end by `latest` */
    return way_slow(c, wanted) && !much ? latest : wanted;
}

bool controller_due(const struct controller *c, const struct controller_input *in, uint64_t now)
{
    return controller_deadline(c, in, now) <= now;
}

bool controller_full(const struct controller *c)
{
    return way_full(c) && !c->params.fixed;
}

uint64_t controller_probe_limit(const struct controller *c)
{
    return 2 * epoch_pages(c);
}

uint64_t controller_probe_at(const struct controller *c)
{
    uint64_t gap = PROBE_MAX_MS * MS;

    /* Half of what it takes to reach the limit. */
    if (c->dirty_per_s)
        gap = min_u64(gap, epoch_pages(c) * (S / 2) / c->dirty_per_s);
    gap = max_u64(max_u64(gap, PROBE_MIN_MS * MS), c->probe_cost_ns * PROBE_COST_FACTOR);
    return max_u64(c->last_probe_ns, c->last_cut_ns) + gap;
}

void controller_probed(struct controller *c, uint64_t pages, uint64_t now, uint64_t cost_ns)
{
    c->last_probe_ns = now;
    c->probe_cost_ns = cost_ns;
    c->dirty_per_s = pages * 1000 / max_u64((now - c->last_cut_ns) / MS, 1);
}

/* ---- what it is told ---- */

void controller_cut(struct controller *c, const struct controller_epoch *epoch, uint64_t now)
{
    look(c, now);
    spend(c, epoch->pause_ns / 1000 * epoch->busy_permille, now);
    c->dirty_per_s = epoch->bytes / VM_PAGE_BYTES * 1000 / max_u64((now - c->last_cut_ns) / MS, 1);
    c->last_cut_ns = now;
    c->held = controller_full(c);
    if (epoch->in_flight)
        controller_sent(c, epoch->epoch, epoch->bytes, now);
}

void controller_sent(struct controller *c, uint64_t epoch, uint64_t bytes, uint64_t now)
{
    struct controller_flight flight = {epoch, now, bytes, in_flight_bytes(c) + bytes};

    if (c->n_in_flight < CONTROLLER_IN_FLIGHT_MAX)
        c->flight[c->n_in_flight++] = flight;
}

void controller_acked(struct controller *c, uint64_t epoch, uint64_t now)
{
    unsigned done = 0;

    while (done < c->n_in_flight && c->flight[done].epoch <= epoch)
        done++;
    if (!done)
        return;
    learn_trip(c, &c->flight[done - 1], now);
    learn_rate(c, &c->flight[done - 1], now);
    c->n_in_flight -= done;
    memmove(c->flight, c->flight + done, c->n_in_flight * sizeof(c->flight[0]));
}

void controller_forget(struct controller *c, uint64_t now)
{
    look(c, now);
    c->n_in_flight = 0;
    c->held = false;
}

bool controller_holds(struct controller *c, uint64_t now)
{
    look(c, now);
    c->held = c->held && way_full(c);
    return c->held;
}

bool controller_outrun(struct controller *c, uint64_t now)
{
    look(c, now);
    return c->hot_windows >= HOT_WINDOWS;
}

void controller_figures_get(const struct controller *c, struct controller_figures *ret_figures)
{
    uint64_t span = max_u64((c->looked_ns - c->window_before.begun_ns) / 1000, 1);
    uint64_t cost = c->window.cost_ns + c->window_before.cost_ns;
    uint64_t held = c->window.held_ns + c->window_before.held_ns;

    *ret_figures = (struct controller_figures){
        .interval_ns = interval_goal(c),
        .slowdown_permille = (uint32_t)(cost / span),
        .held_permille = (uint32_t)(held / span),
        .in_flight = c->n_in_flight,
        .in_flight_bytes = in_flight_bytes(c),
        .round_trip_ns = round_trip(c),
        .bytes_per_s = c->bytes_per_s,
        .epoch_pages = epoch_pages(c),
    };
}
