/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_PAGE_H
#define US_WIRE_PAGE_H

#include <stdint.h>

#include "wire/msg.h"

/* How pages, disk pieces and device state are encoded, and the digest over all of them.
 *
 * Page encoders turn a page's 4,096 bytes into fewer. An encoder may keep state of its own (a delta
 * encoder keeps the last committed pages); it is used by one thread at a time. */

struct page_encoder;

struct page_encoder_ops {
    const char *name;
    /* Encodes one page into out (room for WIRE_PAGE_BYTES); fills in encoding and n_bytes of
     * *ret_page and points its bytes at `out` or at `page`. Never fails: raw is always possible. */
    void (*encode)(struct page_encoder *enc, uint64_t number, const uint8_t *page, uint8_t *out,
                   struct wire_page *ret_page);
    void (*free)(struct page_encoder *enc);
};

struct page_encoder {
    const struct page_encoder_ops *ops;
};

/* The default: zero pages by detection, LZ4 where it saves at least an eighth, raw otherwise; tries
 * LZ4 less often while it does not pay. NULL when out of memory. The caller frees it with
 * enc->ops->free(enc). */
struct page_encoder *page_encoder_lz4_new(void);

/* Decodes one page into out. 0, or -EPROTO for an encoding or length that is not valid, or bytes
 * that do not decode to exactly one page; then out holds anything. */
int page_decode(const struct wire_page *page, uint8_t out[static WIRE_PAGE_BYTES],
                struct err *err) US_MUST_CHECK;

/* Encodes the data of a disk piece (n bytes: wire_disk_piece_data()) into out (room for n bytes):
 * of a write LZ4 where it saves at least an eighth, raw otherwise. Fills in encoding and n_bytes of
 * *piece and points its bytes at `out` or at `raw`; the other fields are the caller's, before. */
void disk_piece_encode(const uint8_t *raw, uint32_t n, uint8_t *out, struct wire_disk_piece *piece);

/* Decodes a piece's data into out (room for wire_disk_piece_data() bytes). 0, or -EPROTO as
 * page_decode(). */
int disk_piece_decode(const struct wire_disk_piece *piece, uint8_t *out,
                      struct err *err) US_MUST_CHECK;

/* Encodes a piece of the device state (n_raw: 1..WIRE_STATE_PER_MSG bytes) into out (room for n_raw
 * bytes): LZ4 where it saves at least an eighth, raw otherwise. Fills in n_raw, encoding and
 * n_bytes of *piece and points its bytes at `out` or at `bytes`; format, total and offset are the
 * caller's. */
void state_piece_encode(const uint8_t *bytes, uint32_t n_raw, uint8_t *out,
                        struct wire_state *piece);

/* Decodes a piece into out (room for piece->n_raw bytes). 0, or -EPROTO as page_decode(). */
int state_piece_decode(const struct wire_state *piece, uint8_t *out, struct err *err) US_MUST_CHECK;

/* Running digest of an epoch (docs/protocol.md, "Digest"). */
struct epoch_digest;

struct epoch_digest *epoch_digest_new(void); /* NULL when out of memory */
void epoch_digest_reset(struct epoch_digest *d);
void epoch_digest_page(struct epoch_digest *d, uint64_t number,
                       const uint8_t page[static WIRE_PAGE_BYTES]);
/* decoded: the piece's data, n_decoded bytes; NULL when 0. */
void epoch_digest_disk(struct epoch_digest *d, const struct wire_disk_piece *piece,
                       const uint8_t *decoded, uint64_t n_decoded);
void epoch_digest_state(struct epoch_digest *d, const uint8_t *bytes, uint64_t n_bytes);
void epoch_digest_get(const struct epoch_digest *d, uint8_t out[static WIRE_DIGEST_BYTES]);
void epoch_digest_free(struct epoch_digest *d);

#endif
