/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_RANDOM_H
#define US_TESTS_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* A small generator of our own (xorshift), so that a failure repeats everywhere. */
static inline uint64_t test_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static inline void test_fill(uint64_t *seed, uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)test_random(seed);
}

#endif
