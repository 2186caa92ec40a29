/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_ENCODING_H
#define US_GUARD_ENCODING_H

#include <stdbool.h>
#include <stdint.h>

#include "guard/effort.h"
#include "io/stage.h"
#include "wire/page_encoder.h"
#include "wire/pages.h"

/* What the sender's thread encodes pages and device state with, as hard as it pays (effort.h). The
 * memory: the cache of pages (page_cache.h), two buffers of a message, some 2 MiB for compression
 * and tables, and one device state. */

/* Device state as the standby has it: what the next one is told against. */
struct sent_state {
    char format[WIRE_FORMAT_BYTES];
    uint8_t *bytes;
    uint64_t n, room; /* bytes used, 0 = there is none; and allocated */
};

struct encoding {
    bool raw; /* nothing is to be encoded at all */
    struct effort effort;
    struct page_encoder *pages;
    struct packer *packer;
    struct epoch_digest *digest; /* of the epoch in work */
    uint8_t *body, *scratch;     /* PAGE_BODY_BYTES each; scratch is free between two calls */
    struct sent_state sent;      /* of the epoch before, if it had any */
};

/* cache_bytes: of copies of pages. 0 or -ENOMEM; then there is nothing to be done(). */
int encoding_init(struct encoding *e, uint64_t cache_bytes, bool raw) US_MUST_CHECK;
void encoding_done(struct encoding *e);

/* There is a new connection: nothing is known of what the standby has. */
void encoding_forget(struct encoding *e);

/* An epoch begins; seeding: most of its pages will not come again soon. */
void encoding_begin(struct encoding *e, uint64_t epoch, bool seeding);

/* Encodes the chunk's pages (at least one) into *ret_pages, whose bytes are valid until the next
 * call; adds to `kinds` how many there are of each (WIRE_PAGE_KINDS entries). */
void encoding_pages(struct encoding *e, const struct stage_chunk *chunk,
                    struct wire_pages *ret_pages, uint64_t *kinds);

/* Encodes the piece of a state (n bytes, of that format) that begins at `at`; likewise. The whole
 * state is in the digest already. */
void encoding_state(struct encoding *e, const char *format, const uint8_t *state, uint64_t n,
                    uint64_t at, struct wire_state *ret_piece);

/* The epoch was sent. Takes its state (n = 0: it had none) and gives, in the same struct, the
 * memory of the one before. */
void encoding_sent(struct encoding *e, struct sent_state *state);

#endif
