/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_PACK_H
#define US_WIRE_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/msg.h"

/* Compression: LZ4 and Zstandard, with the memory that they work in. One thread at a time. */

struct packer;

/* NULL when out of memory. About 1.5 MiB once both have been used both ways. */
struct packer *packer_new(void);
void packer_free(struct packer *p); /* NULL is allowed */

/* Encodes n bytes (1..WIRE_PAYLOAD_MAX) as LZ4 or Zstandard into out (room for n bytes). Returns
 * the encoded length, at most n - n / 16; 0 where that is not enough (or memory is short): send
 * them raw. */
uint32_t pack(struct packer *p, enum wire_encoding how, const uint8_t *bytes, uint32_t n,
              uint8_t *out);

/* Decodes raw, LZ4 or Zstandard into out (room for n_out bytes). False when that is not what the
 * bytes are, or does not give exactly n_out bytes; then out holds anything. No more than n_out
 * bytes are ever written, and no memory is taken for what the bytes claim. */
bool unpack(struct packer *p, uint8_t encoding, const uint8_t *bytes, uint32_t n_bytes,
            uint8_t *out, uint32_t n_out) US_MUST_CHECK;

#endif
