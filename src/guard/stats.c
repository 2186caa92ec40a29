/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/stats.h"

#include <stdlib.h>
#include <string.h>

void stats_epoch(struct stats *s, const struct epoch_trace *trace)
{
    s->last[s->n++ % STATS_WINDOW] = *trace;
}

unsigned stats_count(const struct stats *s)
{
    return s->n < STATS_WINDOW ? (unsigned)s->n : STATS_WINDOW;
}

const struct epoch_trace *stats_at(const struct stats *s, unsigned i)
{
    return &s->last[(s->n - stats_count(s) + i) % STATS_WINDOW];
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

uint64_t percentile_of(uint64_t *values, size_t n, unsigned percentile)
{
    qsort(values, n, sizeof(values[0]), compare);
    return n ? values[(n - 1) * percentile / 100] : 0;
}

uint64_t stats_percentile(const struct stats *s, size_t offset, unsigned percentile)
{
    uint64_t values[STATS_WINDOW];
    unsigned n = stats_count(s);

    for (unsigned i = 0; i < n; i++)
        memcpy(&values[i], (const char *)stats_at(s, i) + offset, sizeof(values[i]));
    return percentile_of(values, n, percentile);
}

uint64_t stats_interval(const struct stats *s)
{
    unsigned n = stats_count(s);

    return n < 2 ? 0 : (stats_at(s, n - 1)->at_ns - stats_at(s, 0)->at_ns) / (n - 1);
}
