/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/page_cache.h"

#include <stdlib.h>
#include <string.h>

/* Copies are in a ring by their use, and in chains by their number; their places in `copies` never
 * change. `like` has the place of one copy for each of so many hashes: what it says may be out of
 * date, so whoever looks compares. */

#define NONE UINT32_MAX

struct page_cache {
    uint32_t max, n; /* copies that fit, that there are */
    uint32_t newest; /* of the ring; NONE when empty */
    uint32_t mask;   /* of both tables: a power of two less one */
    struct page_copy *copies;
    uint8_t *bytes;
    uint32_t *chains; /* first copy of each */
    uint32_t *like;
};

static uint32_t *chain_of(struct page_cache *cache, uint64_t number)
{
    return &cache->chains[(uint32_t)(number * UINT64_C(0x9e3779b97f4a7c15) >> 32) & cache->mask];
}

static uint32_t *like_of(struct page_cache *cache, const struct page_hash *hash)
{
    uint32_t low;

    memcpy(&low, hash->bytes, sizeof(low));
    return &cache->like[low & cache->mask];
}

void page_cache_clear(struct page_cache *cache)
{
    if (cache->n == 0)
        return;
    cache->n = 0;
    cache->newest = NONE;
    for (uint32_t i = 0; i <= cache->mask; i++)
        cache->chains[i] = cache->like[i] = NONE;
}

struct page_cache *page_cache_new(uint64_t n_bytes)
{
    uint64_t max = n_bytes / WIRE_PAGE_BYTES, entries = 1;
    struct page_cache *cache = calloc(1, sizeof(*cache));

    if (!cache || max >= NONE) {
        free(cache);
        return NULL;
    }
    while (entries < max)
        entries *= 2;
    cache->max = (uint32_t)max;
    cache->mask = (uint32_t)(entries - 1);
    cache->copies = malloc(max * sizeof(*cache->copies) + 1);
    cache->bytes = malloc(max * WIRE_PAGE_BYTES + 1);
    cache->chains = malloc(entries * sizeof(*cache->chains));
    cache->like = malloc(entries * sizeof(*cache->like));
    if (!cache->copies || !cache->bytes || !cache->chains || !cache->like) {
        page_cache_free(cache);
        return NULL;
    }
    cache->n = 1; /* so that there is something to clear */
    page_cache_clear(cache);
    return cache;
}

void page_cache_free(struct page_cache *cache)
{
    if (!cache)
        return;
    free(cache->copies);
    free(cache->bytes);
    free(cache->chains);
    free(cache->like);
    free(cache);
}

static void ring_out(struct page_cache *cache, uint32_t at)
{
    struct page_copy *copy = &cache->copies[at];

    cache->copies[copy->newer].older = copy->older;
    cache->copies[copy->older].newer = copy->newer;
    if (cache->newest == at)
        cache->newest = copy->older == at ? NONE : copy->older;
}

static void ring_in(struct page_cache *cache, uint32_t at)
{
    struct page_copy *copy = &cache->copies[at];
    uint32_t oldest;

    copy->newer = copy->older = at;
    if (cache->newest != NONE) {
        oldest = cache->copies[cache->newest].newer;
        copy->older = cache->newest;
        copy->newer = oldest;
        cache->copies[oldest].older = at;
        cache->copies[cache->newest].newer = at;
    }
    cache->newest = at;
}

struct page_copy *page_cache_find(struct page_cache *cache, uint64_t number)
{
    uint32_t at = *chain_of(cache, number);

    while (at != NONE && cache->copies[at].number != number)
        at = cache->copies[at].next;
    if (at == NONE)
        return NULL;
    if (at != cache->newest) {
        ring_out(cache, at);
        ring_in(cache, at);
    }
    return &cache->copies[at];
}

/* Takes the copy that was not used for the longest time away from its page. */
static uint32_t evict(struct page_cache *cache)
{
    uint32_t at = cache->copies[cache->newest].newer; /* the ring's other end */
    uint32_t *link = chain_of(cache, cache->copies[at].number);

    while (*link != at)
        link = &cache->copies[*link].next;
    *link = cache->copies[at].next;
    ring_out(cache, at);
    return at;
}

struct page_copy *page_cache_add(struct page_cache *cache, uint64_t number)
{
    uint32_t *chain = chain_of(cache, number), at;
    struct page_copy *copy;

    if (cache->max == 0)
        return NULL;
    at = cache->n < cache->max ? cache->n++ : evict(cache);
    copy = &cache->copies[at];
    copy->number = number;
    copy->bytes = cache->bytes + (size_t)at * WIRE_PAGE_BYTES;
    copy->next = *chain;
    *chain = at;
    ring_in(cache, at);
    return copy;
}

struct page_copy *page_cache_like(struct page_cache *cache, const struct page_hash *hash)
{
    uint32_t at = *like_of(cache, hash);

    return at != NONE && memcmp(&cache->copies[at].hash, hash, sizeof(*hash)) == 0
               ? &cache->copies[at]
               : NULL;
}

void page_cache_note(struct page_cache *cache, const struct page_copy *copy)
{
    *like_of(cache, &copy->hash) = (uint32_t)(copy - cache->copies);
}
