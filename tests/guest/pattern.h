/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_GUEST_PATTERN_H
#define TESTS_GUEST_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Contents that can be judged without having been kept: an arithmetic series of words whose start
 * and step come from two numbers, say a place and a generation. */

static inline uint64_t pattern_start(uint64_t a, uint64_t b)
{
    uint64_t x = (a + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ b * UINT64_C(0xbf58476d1ce4e5b9);

    return x ^ x >> 29;
}

static inline void pattern_write(uint64_t *words, size_t n, uint64_t a, uint64_t b)
{
    uint64_t word = pattern_start(a, b);
    uint64_t step = word << 17 | 1;

    for (size_t i = 0; i < n; i++, word += step)
        words[i] = word;
}

static inline bool pattern_is(const uint64_t *words, size_t n, uint64_t a, uint64_t b)
{
    uint64_t word = pattern_start(a, b);
    uint64_t step = word << 17 | 1;
    uint64_t wrong = 0;

    for (size_t i = 0; i < n; i++, word += step)
        wrong |= words[i] ^ word;
    return wrong == 0;
}

#endif
