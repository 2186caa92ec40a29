/* SPDX-License-Identifier: Apache-2.0 */
#include "core/controller.h"

enum { PROBE_MIN_MS = 20, PROBE_COST_FACTOR = 100 };

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static bool pipeline_full(const struct controller *c, const struct controller_input *in)
{
    return in->in_flight >= c->max_in_flight && in->dirty_pages < 2 * c->dirty_limit_pages;
}

static bool presses(const struct controller *c, const struct controller_input *in)
{
    return (in->frames_wait && in->in_flight == 0) || in->disks_press ||
           in->dirty_pages >= c->dirty_limit_pages;
}

bool controller_due(const struct controller *c, const struct controller_input *in, uint64_t now)
{
    if (now < c->last_cut_ns + c->interval_min_ns || pipeline_full(c, in))
        return false;
    return presses(c, in) || now >= c->last_cut_ns + c->interval_max_ns;
}

uint64_t controller_deadline(const struct controller *c, const struct controller_input *in,
                             uint64_t now)
{
    uint64_t earliest = c->last_cut_ns + c->interval_min_ns;

    if (pipeline_full(c, in))
        return UINT64_MAX; /* an acknowledgement or the next look will come */
    if (presses(c, in))
        return max_u64(earliest, now);
    return c->last_cut_ns + c->interval_max_ns;
}

uint64_t controller_probe_at(const struct controller *c)
{
    uint64_t pause =
        max_u64(PROBE_MIN_MS * UINT64_C(1000000), c->probe_cost_ns * PROBE_COST_FACTOR);

    return max_u64(c->last_probe_ns, c->last_cut_ns) + pause;
}

void controller_cut(struct controller *c, uint64_t now)
{
    c->last_cut_ns = now;
}

void controller_probed(struct controller *c, uint64_t now, uint64_t cost_ns)
{
    c->last_probe_ns = now;
    c->probe_cost_ns = cost_ns;
}
