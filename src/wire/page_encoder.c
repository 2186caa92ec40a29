/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/page_encoder.h"

#include <stdlib.h>
#include <string.h>

#include "wire/buf.h"
#include "wire/page_cache.h"
#include "wire/pages.h"

struct page_encoder {
    struct page_cache *cache;
    uint64_t epoch;
    uint64_t place; /* of the next page in the epoch */
    bool keep;
    struct page_table table;
    uint8_t data[WIRE_PAGES_PER_MSG * WIRE_PAGE_BYTES]; /* changes and distances of the table */
};

struct page_encoder *page_encoder_new(uint64_t cache_bytes)
{
    struct page_encoder *enc = malloc(sizeof(*enc));

    if (!enc)
        return NULL;
    enc->cache = page_cache_new(cache_bytes);
    enc->epoch = enc->place = 0;
    enc->keep = false;
    if (enc->cache)
        return enc;
    free(enc);
    return NULL;
}

void page_encoder_free(struct page_encoder *enc)
{
    if (!enc)
        return;
    page_cache_free(enc->cache);
    free(enc);
}

void page_encoder_forget(struct page_encoder *enc)
{
    page_cache_clear(enc->cache);
}

void page_encoder_begin(struct page_encoder *enc, uint64_t epoch, bool keep)
{
    enc->epoch = epoch;
    enc->place = 0;
    enc->keep = keep;
}

/* How many pages ago these bytes were sent in this epoch; 0: they were not, as far as is known. */
static uint32_t distance_to_same(struct page_encoder *enc, const struct page_hash *hash,
                                 const uint8_t *page)
{
    const struct page_copy *copy = page_cache_like(enc->cache, hash);
    uint64_t distance = copy && copy->epoch == enc->epoch ? enc->place - copy->place : 0;

    return distance > 0 && distance <= UINT32_MAX && memcmp(copy->bytes, page, WIRE_PAGE_BYTES) == 0
               ? (uint32_t)distance
               : 0;
}

static void note_sent(struct page_encoder *enc, struct page_copy *copy,
                      const struct page_hash *hash, const uint8_t *page)
{
    memcpy(copy->bytes, page, WIRE_PAGE_BYTES);
    copy->hash = *hash;
    copy->epoch = enc->epoch;
    copy->place = enc->place;
}

/* Fills in kind, data and *ret_hash. `out` takes the data that is not the page itself. */
static void encode_page(struct page_encoder *enc, const uint8_t *page, uint8_t *out,
                        struct page_item *item, struct page_hash *ret_hash)
{
    struct page_copy *copy = page_cache_find(enc->cache, item->number);
    bool zero = wire_all_zero(page, WIRE_PAGE_BYTES);
    uint32_t n = WIRE_PAGE_BYTES, distance;

    /* What was sent in this very epoch is not yet in the image that changes are against. */
    if (!zero && copy && copy->epoch != enc->epoch)
        n = page_diff(copy->bytes, page, out);
    if (n == 0) {
        item->kind = WIRE_PAGE_UNCHANGED;
        *ret_hash = copy->hash;
        return;
    }
    *ret_hash = zero ? page_hash_zero() : page_hash(page);
    distance = zero ? 0 : distance_to_same(enc, ret_hash, page);
    item->kind = zero                  ? WIRE_PAGE_ZERO
                 : distance            ? WIRE_PAGE_DUPLICATE
                 : n < WIRE_PAGE_BYTES ? WIRE_PAGE_CHANGES
                                       : WIRE_PAGE_WHOLE;
    item->n_bytes = (uint16_t)(zero ? 0 : distance ? PAGE_DISTANCE_BYTES : n);
    item->bytes = item->kind == WIRE_PAGE_WHOLE ? page : out;
    if (distance)
        page_distance_put(out, distance);
    if (!copy && !zero && enc->keep)
        copy = page_cache_add(enc->cache, item->number);
    if (!copy)
        return;
    note_sent(enc, copy, ret_hash, page);
    if (!zero) /* a zero page is nothing to refer to */
        page_cache_note(enc->cache, copy);
}

static void encode_plainly(const uint8_t *page, struct page_item *item, struct page_hash *ret_hash)
{
    bool zero = wire_all_zero(page, WIRE_PAGE_BYTES);

    *ret_hash = zero ? page_hash_zero() : page_hash(page);
    item->kind = zero ? WIRE_PAGE_ZERO : WIRE_PAGE_WHOLE;
    item->n_bytes = zero ? 0 : WIRE_PAGE_BYTES;
    item->bytes = page;
}

uint32_t page_encoder_body(struct page_encoder *enc, const uint64_t *numbers, const uint8_t *pages,
                           uint32_t n, bool delta, struct epoch_digest *digest, uint8_t *body,
                           uint64_t *kinds)
{
    uint8_t *out = enc->data;

    enc->table.n = n;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *page = pages + (size_t)i * WIRE_PAGE_BYTES;
        struct page_item *item = &enc->table.page[i];
        struct page_hash hash;

        *item = (struct page_item){.number = numbers[i]};
        if (delta)
            encode_page(enc, page, out, item, &hash);
        else
            encode_plainly(page, item, &hash);
        if (item->bytes == out)
            out += item->n_bytes;
        epoch_digest_page(digest, item->number, &hash);
        kinds[item->kind]++;
        enc->place++;
    }
    return page_table_pack(&enc->table, body);
}
