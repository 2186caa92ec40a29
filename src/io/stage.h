/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_STAGE_H
#define US_IO_STAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Staging memory: a fixed pool of chunks that hold copies of guest pages, at the primary between
 * the pause and the wire, at the standby between the wire and the RAM image. All memory is reserved
 * at creation (touched on first use), so its bound is known and the data path allocates nothing.
 * Any thread may call get and put. */

enum { STAGE_CHUNK_PAGES = 256, STAGE_PAGE_BYTES = 4096 };

struct stage_chunk {
    struct stage_chunk *next;           /* for lists of whoever holds the chunk */
    uint32_t n_pages;                   /* filled so far */
    uint64_t number[STAGE_CHUNK_PAGES]; /* guest page numbers */
    uint8_t *bytes;                     /* STAGE_CHUNK_PAGES pages */
    const uint8_t *ram;                 /* where the pages are still to be copied from; or NULL */
};

struct stage_pool;

/* A pool of `bytes` (> 0) of page memory, rounded up to whole chunks. NULL: out of memory. */
struct stage_pool *stage_pool_new(uint64_t bytes);

/* An empty chunk, or NULL when all are out. The caller gives it back with put. Does not block. */
struct stage_chunk *stage_pool_get(struct stage_pool *pool);

/* Gives a list of chunks (linked by next, NULL allowed) back. Returns true when somebody has asked
 * in vain since chunks were given back last, and may be waiting. */
bool stage_pool_put(struct stage_pool *pool, struct stage_chunk *list);

/* Chunks free now, and in all. */
size_t stage_pool_free_chunks(struct stage_pool *pool);
size_t stage_pool_total_chunks(const struct stage_pool *pool);

/* Frees the pool; every chunk must be back. NULL is allowed. */
void stage_pool_close(struct stage_pool *pool);

#endif
