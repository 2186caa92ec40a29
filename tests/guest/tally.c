/* SPDX-License-Identifier: Apache-2.0 */
#include "tally.h"

#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

enum { TALLY_RTTS = 16 << 20 };

double tally_unix_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t); /* cannot fail: the clock always exists */
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void add_rtt(struct tally *t, uint64_t rtt_us)
{
    if (t->n_rtts == t->cap_rtts) {
        size_t cap = t->cap_rtts ? 2 * t->cap_rtts : 1024;
        uint32_t *grown = cap <= TALLY_RTTS ? realloc(t->rtt_us, cap * sizeof(*grown)) : NULL;

        if (!grown)
            return; /* the percentiles are of the operations so far, then */
        t->rtt_us = grown;
        t->cap_rtts = cap;
    }
    t->rtt_us[t->n_rtts++] = rtt_us > UINT32_MAX ? UINT32_MAX : (uint32_t)rtt_us;
}

void tally_op(struct tally *t, uint64_t n, uint64_t rtt_ns)
{
    t->ops++;
    add_rtt(t, rtt_ns / 1000);
    if (t->out)
        fprintf(t->out, "{\"t_ms\": %.3f, \"n\": %" PRIu64 ", \"rtt_ms\": %.3f}\n", tally_unix_ms(),
                n, (double)rtt_ns / 1e6);
}

void tally_gap(struct tally *t, uint64_t gap_ns, double start_unix_ms)
{
    if (gap_ns > t->max_gap_ns) {
        t->max_gap_ns = gap_ns;
        t->max_gap_unix_ms = start_unix_ms;
    }
    if (t->report_gap_ns && gap_ns > t->report_gap_ns)
        printf("ledger: gap ms=%.1f start_unix_ms=%.1f\n", (double)gap_ns / 1e6, start_unix_ms);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static double rtt_percentile_ms(const struct tally *t, size_t percent)
{
    return t->n_rtts ? t->rtt_us[(t->n_rtts - 1) * percent / 100] / 1e3 : 0;
}

void tally_end(struct tally *t)
{
    if (t->n_rtts)
        qsort(t->rtt_us, t->n_rtts, sizeof(*t->rtt_us), by_value);
    printf("ledger: ops=%" PRIu64 " lost=%" PRIu64 " duplicated=%" PRIu64 " corrupted=%" PRIu64
           " max_gap_ms=%.1f rtt_p50_ms=%.3f rtt_p99_ms=%.3f gap_start_unix_ms=%.1f\n",
           t->ops, t->lost, t->duplicated, t->corrupted, (double)t->max_gap_ns / 1e6,
           rtt_percentile_ms(t, 50), rtt_percentile_ms(t, 99), t->max_gap_unix_ms);
    fflush(stdout);
    free(t->rtt_us);
    t->rtt_us = NULL;
    if (t->out && fclose(t->out) != 0)
        perror("ledger-client: output file");
    t->out = NULL;
}
