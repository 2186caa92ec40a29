/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_STATS_H
#define US_GUARD_STATS_H

#include <stdint.h>

/* Figures of the last epochs, for status. */
enum { STATS_WINDOW = 256 };

struct stats {
    uint64_t pause_ns[STATS_WINDOW];
    uint64_t cut_at_ns[STATS_WINDOW];
    uint64_t n;           /* epochs ever recorded */
    uint64_t dirty_pages; /* of the newest */
    uint64_t started_ns;
    int64_t protected_since; /* UNIX seconds; 0 = not protected */
};

void stats_epoch(struct stats *s, uint64_t now_ns, uint64_t pause_ns, uint64_t dirty_pages);

/* Percentile (0..100) of the pauses in the window, in ns; 0 when there are none. */
uint64_t stats_pause(const struct stats *s, unsigned percentile);

/* Mean time between two cuts in the window, in ns; 0 when there are not two. */
uint64_t stats_interval(const struct stats *s);

#endif
