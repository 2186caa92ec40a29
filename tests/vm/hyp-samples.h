/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_SAMPLES_H
#define US_TESTS_HYP_SAMPLES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Durations, and what is printed of them. */

enum { HYP_SAMPLES_MAX = 4096 }; /* those after it do not count */

struct hyp_samples {
    const char *name;
    size_t n;
    uint64_t ns[HYP_SAMPLES_MAX];
};

static inline void hyp_samples_add(struct hyp_samples *s, uint64_t ns)
{
    if (s->n < HYP_SAMPLES_MAX)
        s->ns[s->n++] = ns;
}

static inline int hyp_samples_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static inline void hyp_samples_print(struct hyp_samples *s)
{
    if (s->n == 0)
        return;
    qsort(s->ns, s->n, sizeof(s->ns[0]), hyp_samples_compare);
    printf("# %-8s p50 %8.1f  p99 %8.1f  max %8.1f  us, %zu runs\n", s->name,
           (double)s->ns[s->n / 2] / 1000, (double)s->ns[s->n * 99 / 100] / 1000,
           (double)s->ns[s->n - 1] / 1000, s->n);
}

#endif
