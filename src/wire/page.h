/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_PAGE_H
#define US_WIRE_PAGE_H

#include <stdint.h>

#include "wire/pack.h"

/* How disk pieces and device state are encoded, and the digest over an epoch. Pages:
 * wire/page_encoder.h and wire/pages.h. */

/* Encodes the data of a disk piece (n bytes: wire_disk_piece_data()) into out (room for n bytes):
 * of a write LZ4 where that is worth it, raw otherwise. Fills in encoding and n_bytes of
 * *piece and points its bytes at `out` or at `raw`; the other fields are the caller's, before. */
void disk_piece_encode(struct packer *p, const uint8_t *raw, uint32_t n, uint8_t *out,
                       struct wire_disk_piece *piece);

/* Decodes a piece's data into out (room for wire_disk_piece_data() bytes). 0, or -EPROTO for an
 * encoding or length that is not valid, or bytes that do not decode to exactly so many; then out
 * holds anything. */
int disk_piece_decode(struct packer *p, const struct wire_disk_piece *piece, uint8_t *out,
                      struct err *err) US_MUST_CHECK;

/* Encodes a piece of the device state (n_raw: 1..WIRE_STATE_PER_MSG bytes) into out (room for n_raw
 * bytes): as asked where that is worth it, else raw. Fills in n_raw, encoding and n_bytes of *piece
 * and points its bytes at `out` or at `bytes`; the rest is the caller's. A delta is made by
 * state_xor(), before. */
void state_piece_encode(struct packer *p, enum wire_encoding how, const uint8_t *bytes,
                        uint32_t n_raw, uint8_t *out, struct wire_state *piece);

/* Decodes a piece into out (room for piece->n_raw bytes). 0, or -EPROTO as disk_piece_decode(). Of
 * a delta that is what state_xor() makes, with the state before, into the piece. */
int state_piece_decode(struct packer *p, const struct wire_state *piece, uint8_t *out,
                       struct err *err) US_MUST_CHECK;

/* out = a XOR b, n bytes; out may be one of them. */
void state_xor(uint8_t *out, const uint8_t *a, const uint8_t *b, size_t n);

/* Decodes the body of a message of pages into out (room for PAGE_BODY_BYTES). 0, or -EPROTO. */
int pages_decode(struct packer *p, const struct wire_pages *pages, uint8_t *out,
                 struct err *err) US_MUST_CHECK;

/* What stands for a page's bytes in the digest, and finds equal pages: XXH3-128, canonical. */
struct page_hash {
    uint8_t bytes[WIRE_DIGEST_BYTES];
};

struct page_hash page_hash(const uint8_t page[static WIRE_PAGE_BYTES]);
struct page_hash page_hash_zero(void); /* of a page of zeros, known beforehand */

/* Running digest of an epoch (docs/protocol.md, "Digest"). */
struct epoch_digest;

struct epoch_digest *epoch_digest_new(void); /* NULL when out of memory */
void epoch_digest_reset(struct epoch_digest *d);
void epoch_digest_page(struct epoch_digest *d, uint64_t number, const struct page_hash *hash);
/* decoded: the piece's data, n_decoded bytes; NULL when 0. */
void epoch_digest_disk(struct epoch_digest *d, const struct wire_disk_piece *piece,
                       const uint8_t *decoded, uint64_t n_decoded);
void epoch_digest_state(struct epoch_digest *d, const uint8_t *bytes, uint64_t n_bytes);
void epoch_digest_get(const struct epoch_digest *d, uint8_t out[static WIRE_DIGEST_BYTES]);
void epoch_digest_free(struct epoch_digest *d);

#endif
