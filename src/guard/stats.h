/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_STATS_H
#define US_GUARD_STATS_H

#include <stddef.h>
#include <stdint.h>

/* Figures of the last epochs, for status. */

enum { STATS_WINDOW = 256 };

/* How one epoch was made. The pause is from the moment when the vCPUs stood still to the one when
 * they ran again: state + scan + copy + resume, and what lies between them. */
struct epoch_trace {
    uint64_t epoch;
    uint64_t at_ns;       /* the VM ran again; CLOCK_MONOTONIC */
    uint64_t pages;       /* in the epoch */
    uint64_t ahead_pages; /* of them: copied before the checkpoint was ordered */
    uint64_t ahead_ns;    /* ... which took so long; the VM ran */
    uint64_t stop_ns;     /* from the order until the vCPUs stood still */
    uint64_t state_ns;    /* until the device state was complete; copying goes on meanwhile */
    uint64_t scan_ns;     /* the last scan for dirty pages */
    uint64_t copy_ns;     /* the last copying; waiting for staging memory not included */
    uint64_t resume_ns;   /* from the order to the running VM */
    uint64_t pause_ns;
};

struct stats {
    struct epoch_trace last[STATS_WINDOW]; /* a ring */
    uint64_t n;                            /* epochs ever recorded */
    uint64_t started_ns;
    int64_t protected_since; /* UNIX seconds; 0 = not protected */
};

void stats_epoch(struct stats *s, const struct epoch_trace *trace);

/* How many epochs are in the window; the i-th of them, from the oldest on. */
unsigned stats_count(const struct stats *s);
const struct epoch_trace *stats_at(const struct stats *s, unsigned i);

/* Percentile (0..100) of n values, which it sorts; 0 when there are none. */
uint64_t percentile_of(uint64_t *values, size_t n, unsigned percentile);

/* Percentile (0..100) in the window of the field at `offset` in struct epoch_trace; 0 when there is
 * nothing. */
uint64_t stats_percentile(const struct stats *s, size_t offset, unsigned percentile);

/* Mean time between two cuts in the window, in ns; 0 when there are not two. */
uint64_t stats_interval(const struct stats *s);

#endif
