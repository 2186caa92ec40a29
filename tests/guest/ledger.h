/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_GUEST_LEDGER_H
#define TESTS_GUEST_LEDGER_H

#include <stdint.h>

/* What ledger and ledger-client must agree on. */
enum { LEDGER_PORT = 7000 };

/* The hash of an empty ledger: FNV-1a's 64-bit offset basis. */
#define LEDGER_EMPTY_HASH UINT64_C(0xcbf29ce484222325)

static inline uint64_t ledger_fnv1a_u64(uint64_t hash, uint64_t value)
{
    for (int byte = 0; byte < 8; byte++) {
        hash ^= (value >> (8 * byte)) & 0xff;
        hash *= UINT64_C(0x100000001b3);
    }
    return hash;
}

/*
 * The running hash after appending n to a ledger whose hash is prev: FNV-1a 64 over the eight
 * bytes of prev, then the eight bytes of n, both least significant byte first.
 */
static inline uint64_t ledger_hash(uint64_t prev, uint64_t n)
{
    return ledger_fnv1a_u64(ledger_fnv1a_u64(LEDGER_EMPTY_HASH, prev), n);
}

#endif
