/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/stats.h"

#include <stdlib.h>
#include <string.h>

void stats_epoch(struct stats *s, uint64_t now_ns, uint64_t pause_ns, uint64_t dirty_pages)
{
    s->pause_ns[s->n % STATS_WINDOW] = pause_ns;
    s->cut_at_ns[s->n % STATS_WINDOW] = now_ns;
    s->dirty_pages = dirty_pages;
    s->n++;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

uint64_t stats_pause(const struct stats *s, unsigned percentile)
{
    uint64_t sorted[STATS_WINDOW];
    size_t n = s->n < STATS_WINDOW ? s->n : STATS_WINDOW;

    if (!n)
        return 0;
    memcpy(sorted, s->pause_ns, n * sizeof(sorted[0]));
    qsort(sorted, n, sizeof(sorted[0]), compare);
    return sorted[(n - 1) * percentile / 100];
}

uint64_t stats_interval(const struct stats *s)
{
    uint64_t n = s->n < STATS_WINDOW ? s->n : STATS_WINDOW;
    uint64_t newest, oldest;

    if (n < 2)
        return 0;
    newest = s->cut_at_ns[(s->n - 1) % STATS_WINDOW];
    oldest = s->cut_at_ns[(s->n - n) % STATS_WINDOW];
    return (newest - oldest) / (n - 1);
}
