/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/pace.h"

#include "guard/internal.h"

enum { TALKING_MS = 1000 }; /* how long a guest that has sent a frame counts as talking */

void pace_setup(struct guard *g)
{
    const struct vm_protect *protect = &g->body->spec.protect;
    uint64_t staging = stage_pool_total_chunks(g->pool) * STAGE_CHUNK_PAGES;

    g->controller = (struct controller){
        .interval_min_ns = protect->interval_min_ns,
        .interval_max_ns = protect->interval_max_ns,
        .dirty_limit_pages = DIRTY_LIMIT_PAGES < staging / 4 ? DIRTY_LIMIT_PAGES : staging / 4,
        .max_in_flight = IN_FLIGHT_NORMAL,
    };
}

static void controller_input(struct guard *g, uint64_t now, struct controller_input *ret_in)
{
    if (output_waits(g->output))
        g->talked_ns = now;
    *ret_in = (struct controller_input){
        .frames_wait = output_waits(g->output) || estimate_frames_wait(g),
        .in_flight = g->capture.n_in_flight,
        .dirty_pages = g->capture.dirty_pages,
        .disks_press = resync_presses(g, now - g->talked_ns < TALKING_MS * NS_PER_MS),
    };
}

static void probe(struct guard *g, uint64_t now)
{
    uint64_t limit = 2 * g->controller.dirty_limit_pages;

    if (g->body->ops->dirty_count(g->body->vm, limit, &g->capture.dirty_pages) < 0)
        g->capture.dirty_pages = 0; /* the cut itself will report what is wrong */
    controller_probed(&g->controller, now, clock_now_ns() - now);
}

uint64_t pace_cut_if_due(struct guard *g, uint64_t now)
{
    struct controller_input in;
    uint64_t at, probe_at;

    if (g->capture.phase != CAPTURE_IDLE || !capture_may_cut(g))
        return CORE_NEVER;
    if (now < g->capture.retry_at_ns)
        return g->capture.retry_at_ns;
    if (now >= controller_probe_at(&g->controller))
        probe(g, now);
    controller_input(g, now, &in);
    if ((g->core.arm_epoch == 0 && !g->estimate.runs) || g->core.state == PRIMARY_HANDING ||
        controller_due(&g->controller, &in, now)) {
        capture_begin(g);
        return g->capture.retry_at_ns > now ? g->capture.retry_at_ns : CORE_NEVER;
    }
    at = controller_deadline(&g->controller, &in, now);
    probe_at = controller_probe_at(&g->controller);
    return at < probe_at ? at : probe_at;
}
