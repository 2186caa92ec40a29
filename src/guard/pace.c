/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/pace.h"

#include <time.h>

#include "guard/internal.h"
#include "io/log.h"
#include "io/transport.h"

enum {
    TALKING_MS = 1000, /* how long a guest that has sent a frame counts as talking */
    DIRTY_LIMIT_PAGES = 8192,
};

/* CPU time that the hypervisor has used, its guest included; 0 = cannot be told. Read with two
 * system calls, to the nanosecond (the clock of /proc ticks in 10 ms). */
static uint64_t cpu_ns(const struct guard *g)
{
    struct timespec t;
    clockid_t clock;

    if (clock_getcpuclockid(g->body->ops->pid(g->body->vm), &clock) != 0 ||
        clock_gettime(clock, &t) < 0)
        return 0;
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void runs(struct guard *g, uint64_t now)
{
    g->pace.ran_at_ns = now;
    g->pace.ran_cpu_ns = cpu_ns(g);
}

/* How much the guest has used of the time since it went on: one CPU that is always busy is all,
 * since whoever computes there waits for nothing but the pause. */
static uint32_t busy(const struct guard *g, uint64_t now)
{
    const struct pace *p = &g->pace;
    uint64_t used = cpu_ns(g), ran = now - p->ran_at_ns;

    if (!used || !p->ran_cpu_ns || !ran || used - p->ran_cpu_ns >= ran)
        return 1000;
    return (uint32_t)((used - p->ran_cpu_ns) * 1000 / ran);
}

void pace_setup(struct guard *g)
{
    const struct vm_protect *protect = &g->body->spec.protect;
    uint64_t staging = stage_pool_total_chunks(g->pool) * STAGE_CHUNK_PAGES;
    struct controller_params params = {
        .interval_min_ns = protect->interval_min_ns,
        .interval_max_ns = protect->interval_max_ns,
        .slowdown_permille = protect->max_slowdown_permille,
        .epoch_pages_max = DIRTY_LIMIT_PAGES < staging / 4 ? DIRTY_LIMIT_PAGES : staging / 4,
        .in_flight_bytes_max = staging * VM_PAGE_BYTES,
        .fixed = protect->engine == VM_ENGINE_REMUS,
    };

    controller_init(&g->pace.controller, &params, clock_now_ns());
}

void pace_link(struct guard *g, int fd)
{
    controller_link(&g->pace.controller, transport_round_trip_ns(fd), clock_now_ns());
}

static void controller_input(struct guard *g, uint64_t now, struct controller_input *ret_in)
{
    struct pace *p = &g->pace;

    if (output_waits(g->output))
        p->talked_ns = now;
    *ret_in = (struct controller_input){
        .frames_wait = output_waits(g->output) || estimate_frames_wait(g),
        .dirty_pages = g->capture.dirty_pages,
        .disks_press = resync_presses(g, now - p->talked_ns < TALKING_MS * NS_PER_MS),
    };
}

static void probe(struct guard *g, uint64_t now)
{
    struct controller *c = &g->pace.controller;

    if (g->body->ops->dirty_count(g->body->vm, controller_probe_limit(c), &g->capture.dirty_pages) <
        0)
        g->capture.dirty_pages = 0; /* the cut itself will report what is wrong */
    controller_probed(c, g->capture.dirty_pages, now, clock_now_ns() - now);
}

static void begin(struct guard *g, uint64_t now)
{
    bool waiting;

    g->pace.busy_permille = busy(g, now);
    g->pace.disk_bytes = g->body->disks ? journal_open_bytes(g->body->disks->journal, &waiting) : 0;
    capture_begin(g);
}

uint64_t pace_cut_if_due(struct guard *g, uint64_t now)
{
    struct controller *c = &g->pace.controller;
    struct controller_input in;
    uint64_t at, probe_at;

    if (g->capture.phase != CAPTURE_IDLE || !capture_may_cut(g))
        return CORE_NEVER;
    if (now < g->capture.retry_at_ns)
        return g->capture.retry_at_ns;
    if (now >= controller_probe_at(c))
        probe(g, now);
    controller_input(g, now, &in);
    if ((g->core.arm_epoch == 0 && !g->estimate.runs) || g->core.state == PRIMARY_HANDING ||
        controller_due(c, &in, now)) {
        begin(g, now);
        return g->capture.retry_at_ns > now ? g->capture.retry_at_ns : CORE_NEVER;
    }
    at = controller_deadline(c, &in, now);
    probe_at = controller_probe_at(c);
    return at < probe_at ? at : probe_at;
}

void pace_cut(struct guard *g, const struct epoch_trace *epoch, bool in_flight)
{
    struct controller_epoch cut = {
        .epoch = epoch->epoch,
        .pause_ns = epoch->pause_ns,
        .busy_permille = g->pace.busy_permille,
        .bytes = epoch->pages * VM_PAGE_BYTES + g->pace.disk_bytes,
        .in_flight = in_flight,
    };

    controller_cut(&g->pace.controller, &cut, epoch->at_ns);
    runs(g, epoch->at_ns);
}

void pace_seed_cut(struct guard *g, uint64_t epoch, uint64_t pages)
{
    controller_sent(&g->pace.controller, epoch, pages * VM_PAGE_BYTES, clock_now_ns());
}

void pace_committed(struct guard *g, uint64_t epoch)
{
    controller_acked(&g->pace.controller, epoch, clock_now_ns());
}

void pace_forget(struct guard *g)
{
    controller_forget(&g->pace.controller, clock_now_ns());
}

/* What is in flight will arrive. */
static bool is_linked(const struct guard *g)
{
    return primary_may_cut(&g->core) || g->estimate.runs;
}

bool pace_will_hold(const struct guard *g)
{
    return controller_full(&g->pace.controller) && is_linked(g);
}

bool pace_holds(struct guard *g)
{
    if (!is_linked(g))
        pace_forget(g);
    g->pace.holds = controller_holds(&g->pace.controller, clock_now_ns());
    return g->pace.holds;
}

static void look_at_outrun(struct guard *g, uint64_t now)
{
    struct pace *p = &g->pace;
    bool was = p->outrun;

    p->outrun = controller_outrun(&p->controller, now);
    if (!p->outrun)
        return;
    if (!was)
        log_warning("the guest writes faster than the link to %s carries: it is held back",
                    g->core.peer);
    if (g->body->spec.protect.outrun == VM_OUTRUN_SOLO && g->core.state == PRIMARY_PROTECTED) {
        log_warning("it goes on unprotected, as its file says");
        guard_simple_event(g, PEV_OUTRUN);
    }
}

void pace_continue(struct guard *g)
{
    uint64_t now = clock_now_ns();

    look_at_outrun(g, now);
    if (g->pace.holds && !pace_holds(g)) {
        runs(g, now);
        capture_release(g);
    }
}
