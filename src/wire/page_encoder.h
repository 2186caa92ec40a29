/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_PAGE_ENCODER_H
#define US_WIRE_PAGE_ENCODER_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/page.h"

/* Turns pages into bodies of messages, as small as what is known of the standby permits.
 *
 * Theory of operation. The link is ordered, and the standby applies an epoch before it decodes the
 * next (standby/receiver.c), so that whatever was sent on a connection in earlier epochs is what it
 * has when it decodes this one. The encoder keeps copies of the pages that it sent last, as many as
 * it may. A page of which there is such a copy, from an earlier epoch, is sent as its changes; one
 * whose bytes were sent in this epoch, under whatever number, as a reference to them. Equal hashes
 * are only a hint: bytes are compared before anything is left out, so that no content, however
 * chosen, makes two sides disagree. All mistakes that are left would be found by the epoch's
 * digest.
 *
 * One thread at a time. */

struct page_encoder;

/* cache_bytes: of copies (page_cache_new()). NULL: out of memory. */
struct page_encoder *page_encoder_new(uint64_t cache_bytes);
void page_encoder_free(struct page_encoder *enc); /* NULL is allowed */

/* Nothing is known of what the standby has: there is a new connection. */
void page_encoder_forget(struct page_encoder *enc);

/* An epoch, above the one before, begins. keep: copies are made of pages that have none yet; not
 * worth it while all memory goes by (seeding). */
void page_encoder_begin(struct page_encoder *enc, uint64_t epoch, bool keep);

/* Encodes n (1..WIRE_PAGES_PER_MSG) pages, which lie one after the other, into body (room for n *
 * WIRE_BODY_MAX bytes), adds them to the digest, and to `kinds` how many there are of each
 * (WIRE_PAGE_KINDS entries). delta: false: zero pages and whole ones only; what is known is not
 * kept up then, and must be forgotten before delta is true again. Returns the body's length. */
uint32_t page_encoder_body(struct page_encoder *enc, const uint64_t *numbers, const uint8_t *pages,
                           uint32_t n, bool delta, struct epoch_digest *digest, uint8_t *body,
                           uint64_t *kinds);

#endif
