/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_PAGE_CACHE_H
#define US_WIRE_PAGE_CACHE_H

#include <stdint.h>

#include "wire/page.h"

/* Copies of pages by their numbers, the most recently used ones: at the primary, what the standby
 * has. Memory: that of the copies, plus 80 bytes for each; all of it is reserved at creation, and
 * taken from the system as it is first used. One thread at a time. */

struct page_cache;

struct page_copy {
    uint64_t number;
    uint64_t epoch; /* the one that it was sent in; these two are the user's */
    uint64_t place; /* in that epoch: as many pages came before it */
    struct page_hash hash;
    uint8_t *bytes;              /* WIRE_PAGE_BYTES */
    uint32_t newer, older, next; /* the cache's own */
};

/* n_bytes: of copies, rounded down to pages; a cache of none is allowed. NULL: out of memory. */
struct page_cache *page_cache_new(uint64_t n_bytes);
void page_cache_free(struct page_cache *cache); /* NULL is allowed */

/* Forgets all copies. */
void page_cache_clear(struct page_cache *cache);

/* The copy of a page, which becomes the most recently used one; NULL: there is none. Valid until
 * page_cache_add(). */
struct page_copy *page_cache_find(struct page_cache *cache, uint64_t number);

/* Makes room for the copy of a page that has none, if need be by forgetting the copy that was not
 * used for the longest time. What is in it, but for the number, is the caller's to set. NULL: the
 * cache is one of none. */
struct page_copy *page_cache_add(struct page_cache *cache, uint64_t number);

/* A copy with that hash, if it is the one noted last under it or a similar one; else NULL. note: a
 * copy's hash has been set. */
struct page_copy *page_cache_like(struct page_cache *cache, const struct page_hash *hash);
void page_cache_note(struct page_cache *cache, const struct page_copy *copy);

#endif
