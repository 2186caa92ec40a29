/* SPDX-License-Identifier: Apache-2.0 */
#include "standby/pages.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Marks, in a staged chunk, a page that is all zero; its bytes there are not set. */
#define STAGED_ZERO (UINT64_C(1) << 63)

static_assert(WIRE_PAGE_NUMBERS <= STAGED_ZERO, "the mark is no part of a page number");
static_assert((int)STAGE_PAGE_BYTES == (int)WIRE_PAGE_BYTES, "pages are pages");

static const uint8_t zero_page[WIRE_PAGE_BYTES];

int ram_image_init(struct ram_image *image, struct stage_pool *pool, uint8_t *bytes,
                   uint64_t n_pages)
{
    image->pool = pool;
    image->bytes = bytes;
    image->n_pages = n_pages;
    image->touched = calloc(n_pages / 8 + 1, 1);
    image->staged_at = calloc(stage_pool_total_chunks(pool), sizeof(*image->staged_at));
    image->body = malloc(PAGE_BODY_BYTES);
    if (image->touched && image->staged_at && image->body)
        return 0;
    ram_image_done(image);
    return -ENOMEM;
}

void ram_image_done(struct ram_image *image)
{
    free(image->touched);
    free(image->staged_at);
    free(image->body);
    image->touched = image->body = NULL;
    image->staged_at = NULL;
}

/* The chunk that takes the next page, or NULL when the pool is empty. */
static struct stage_chunk *stage_room(struct ram_image *image, struct staged_pages *staged)
{
    struct stage_chunk *chunk = staged->newest;

    if (chunk && chunk->n_pages < STAGE_CHUNK_PAGES)
        return chunk;
    chunk = stage_pool_get(image->pool);
    if (!chunk)
        return NULL;
    if (staged->newest)
        staged->newest->next = chunk;
    else
        staged->chunks = chunk;
    staged->newest = chunk;
    return chunk;
}

/* The staged bytes of a page that came so many pages before the next; NULL: there are none. */
static const uint8_t *staged_before(const struct ram_image *image,
                                    const struct staged_pages *staged, uint64_t distance)
{
    const struct stage_chunk *chunk;
    uint64_t place = staged->n - distance;

    if (distance > staged->n)
        return NULL;
    chunk = image->staged_at[place / STAGE_CHUNK_PAGES];
    if (chunk->number[place % STAGE_CHUNK_PAGES] & STAGED_ZERO)
        return NULL;
    return chunk->bytes + place % STAGE_CHUNK_PAGES * STAGE_PAGE_BYTES;
}

/* Decodes a page that is not zero into out. */
static int decode_page(struct ram_image *image, const struct staged_pages *staged,
                       const struct page_item *page, uint8_t *out, struct err *err)
{
    const uint8_t *from = image->bytes + page->number * WIRE_PAGE_BYTES;

    if (page->kind == WIRE_PAGE_WHOLE)
        from = page->bytes;
    else if (page->kind == WIRE_PAGE_DUPLICATE)
        from = staged_before(image, staged, page_distance_get(page));
    if (!from)
        return err_set(err, -EPROTO, "page %" PRIu64 " duplicates one that is not there",
                       page->number);
    memcpy(out, from, WIRE_PAGE_BYTES);
    if (page->kind == WIRE_PAGE_CHANGES)
        page_patch(page, out);
    return 0;
}

static int stage_page(struct ram_image *image, const struct page_item *page,
                      struct staged_pages *staged, struct epoch_digest *digest, struct err *err)
{
    bool zero = page->kind == WIRE_PAGE_ZERO;
    struct page_hash hash = page_hash_zero();
    struct stage_chunk *chunk;
    int rc = 0;

    if (page->number >= image->n_pages)
        return err_set(err, -EPROTO, "page %" PRIu64 " of a VM that has %" PRIu64, page->number,
                       image->n_pages);
    chunk = stage_room(image, staged);
    if (!chunk)
        return err_set(err, -E2BIG, "it is larger than the staging memory");
    image->staged_at[staged->n / STAGE_CHUNK_PAGES] = chunk;
    if (!zero) {
        uint8_t *bytes = chunk->bytes + (size_t)chunk->n_pages * STAGE_PAGE_BYTES;

        rc = decode_page(image, staged, page, bytes, err);
        if (rc)
            return rc;
        hash = page_hash(bytes);
    }
    epoch_digest_page(digest, page->number, &hash);
    chunk->number[chunk->n_pages++] = page->number | (zero ? STAGED_ZERO : 0);
    staged->n++;
    return 0;
}

int ram_image_stage(struct ram_image *image, struct packer *packer, const struct wire_pages *pages,
                    struct staged_pages *staged, struct epoch_digest *digest, struct err *err)
{
    int rc = pages_decode(packer, pages, image->body, err);

    if (rc == 0)
        rc = page_table_unpack(image->body, pages->n_body, pages->n, &image->table, err);
    for (uint32_t i = 0; i < pages->n && rc == 0; i++)
        rc = stage_page(image, &image->table.page[i], staged, digest, err);
    return rc;
}

/* True when nobody has ever stored anything in the page, as far as the kernel knows: then it reads
 * as zeros, and looking would only allocate it (a read fault does, in a tmpfs). A page that was
 * swapped out looks the same, hence `touched`. */
static bool is_hole(uint8_t *page)
{
    unsigned char resident;

    return mincore(page, WIRE_PAGE_BYTES, &resident) == 0 && !(resident & 1);
}

static void apply_page(struct ram_image *image, uint64_t number, const uint8_t *bytes)
{
    uint8_t *page = image->bytes + number * WIRE_PAGE_BYTES;
    uint8_t *touched = &image->touched[number / 8], bit = (uint8_t)(1 << number % 8);

    if (bytes) {
        *touched |= bit;
        memcpy(page, bytes, WIRE_PAGE_BYTES);
    } else if (((*touched & bit) || !is_hole(page)) &&
               memcmp(page, zero_page, WIRE_PAGE_BYTES) != 0) {
        memset(page, 0, WIRE_PAGE_BYTES);
    }
}

void ram_image_apply(struct ram_image *image, const struct staged_pages *staged)
{
    for (const struct stage_chunk *chunk = staged->chunks; chunk; chunk = chunk->next)
        for (uint32_t i = 0; i < chunk->n_pages; i++) {
            uint64_t number = chunk->number[i];
            bool zero = number & STAGED_ZERO;

            apply_page(image, number & ~STAGED_ZERO,
                       zero ? NULL : chunk->bytes + (size_t)i * STAGE_PAGE_BYTES);
        }
}

void ram_image_clear(struct ram_image *image, struct staged_pages *staged)
{
    if (staged->chunks)
        stage_pool_put(image->pool, staged->chunks);
    *staged = (struct staged_pages){0};
}
