/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STANDBY_PAGES_H
#define US_STANDBY_PAGES_H

#include <stdint.h>

#include "io/stage.h"
#include "wire/page.h"
#include "wire/pages.h"

/* From messages of pages to the RAM image, by way of the staging memory: an epoch's pages are
 * decoded against the image as it is, and staged; nothing of them touches it before they are all
 * applied. One thread at a time. */

/* The pages of an epoch. Empty: all zero. */
struct staged_pages {
    uint64_t n;
    struct stage_chunk *chunks; /* oldest first; all but the newest are full */
    struct stage_chunk *newest;
};

struct ram_image {
    struct stage_pool *pool; /* borrowed, as the image is */
    uint8_t *bytes;
    uint64_t n_pages;
    uint8_t *touched;               /* bit per page: we have written it, so it may hold anything */
    struct stage_chunk **staged_at; /* chunks of the epoch in work by their places */
    uint8_t *body;
    struct page_table table;
};

/* bytes: of n_pages pages. 0 or -ENOMEM; then there is nothing to be done(). */
int ram_image_init(struct ram_image *image, struct stage_pool *pool, uint8_t *bytes,
                   uint64_t n_pages) US_MUST_CHECK;
void ram_image_done(struct ram_image *image);

/* Decodes and stages the pages of a message, and adds them to the digest. 0; -EPROTO; -E2BIG when
 * the pool is empty. Then what is staged is only good to be cleared. */
int ram_image_stage(struct ram_image *image, struct packer *packer, const struct wire_pages *pages,
                    struct staged_pages *staged, struct epoch_digest *digest,
                    struct err *err) US_MUST_CHECK;

/* Copies staged pages into the image. */
void ram_image_apply(struct ram_image *image, const struct staged_pages *staged);

/* Gives the chunks back. */
void ram_image_clear(struct ram_image *image, struct staged_pages *staged);

#endif
