/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_ENDIAN_H
#define US_WIRE_ENDIAN_H

#include <stdint.h>

/* Little-endian integers as they lie on the wire and on disk. They are structs, so that a missed
 * conversion does not compile, and of bytes, so that a form made of them has no padding and may lie
 * at any address. Compilers turn the shifts into single loads and stores. */

struct le16 {
    uint8_t b[2];
};

struct le32 {
    uint8_t b[4];
};

struct le64 {
    uint8_t b[8];
};

static inline uint16_t le16_get(struct le16 v)
{
    return (uint16_t)(v.b[0] | v.b[1] << 8);
}

static inline uint32_t le32_get(struct le32 v)
{
    return (uint32_t)v.b[0] | (uint32_t)v.b[1] << 8 | (uint32_t)v.b[2] << 16 |
           (uint32_t)v.b[3] << 24;
}

static inline uint64_t le64_get(struct le64 v)
{
    return (uint64_t)v.b[0] | (uint64_t)v.b[1] << 8 | (uint64_t)v.b[2] << 16 |
           (uint64_t)v.b[3] << 24 | (uint64_t)v.b[4] << 32 | (uint64_t)v.b[5] << 40 |
           (uint64_t)v.b[6] << 48 | (uint64_t)v.b[7] << 56;
}

static inline struct le16 le16_of(uint16_t n)
{
    return (struct le16){{(uint8_t)n, (uint8_t)(n >> 8)}};
}

static inline struct le32 le32_of(uint32_t n)
{
    return (struct le32){{(uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24)}};
}

static inline struct le64 le64_of(uint64_t n)
{
    return (struct le64){{(uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24),
                          (uint8_t)(n >> 32), (uint8_t)(n >> 40), (uint8_t)(n >> 48),
                          (uint8_t)(n >> 56)}};
}

#endif
