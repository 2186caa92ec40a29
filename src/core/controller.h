/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_CONTROLLER_H
#define US_CORE_CONTROLLER_H

#include <stdbool.h>
#include <stdint.h>

/* The interval controller: says when an epoch should be cut.
 *
 *  - frames wait at the gate and nothing is in flight: at once, so that their delay is that of one
 *    checkpoint (but never sooner than interval_min after the last cut);
 *  - much is dirty, or was written to the disks: so that neither the pause nor the memory for it
 *    grows without bound;
 *  - otherwise after interval_max: an idle VM costs next to nothing.
 *
 * When the guest dirties faster than the link carries, cuts first wait for earlier epochs (the
 * interval stretches); once twice the limit is dirty the epoch is cut all the same, and the VM
 * stays paused until the staging memory has room for it: the guest is throttled to the speed of the
 * link. */
struct controller {
    uint64_t interval_min_ns;
    uint64_t interval_max_ns;
    uint64_t dirty_limit_pages; /* cut when that much is dirty */
    unsigned max_in_flight;     /* epochs cut and not yet acknowledged */

    uint64_t last_cut_ns;   /* when the last epoch was complete */
    uint64_t probe_cost_ns; /* what the last look at the dirty pages cost */
    uint64_t last_probe_ns;
};

/* What the controller looks at. */
struct controller_input {
    bool frames_wait;     /* frames of the open epoch are held at the gate */
    unsigned in_flight;   /* epochs cut and not yet acknowledged */
    uint64_t dirty_pages; /* at the last look, a lower bound */
    bool disks_press;     /* the disks' journal fills up */
};

/* True when an epoch should be cut now. */
bool controller_due(const struct controller *c, const struct controller_input *in, uint64_t now_ns);

/* When to ask controller_due() again if no frame and no acknowledgement comes before. */
uint64_t controller_deadline(const struct controller *c, const struct controller_input *in,
                             uint64_t now_ns);

/* When to look at the number of dirty pages again: often, but at no more than 1 % of a core. */
uint64_t controller_probe_at(const struct controller *c);

/* An epoch was cut (its VM runs again) at that time. */
void controller_cut(struct controller *c, uint64_t now_ns);

/* The dirty pages were counted; it took cost_ns. */
void controller_probed(struct controller *c, uint64_t now_ns, uint64_t cost_ns);

#endif
