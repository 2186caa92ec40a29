/* SPDX-License-Identifier: Apache-2.0 */
#include "io/stage.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "io/lock.h"

/* Chunks that were never used are not on the list, so that making a pool touches none of them; the
 * list is last-in-first-out, so that a small load keeps using the same, cached memory. */
struct stage_pool {
    pthread_mutex_t lock;
    struct stage_chunk *chunks; /* n_chunks of them */
    struct stage_chunk *free;   /* under lock */
    size_t n_fresh;             /* under lock; chunks[n_chunks - n_fresh ...] were never used */
    size_t n_free;              /* under lock; fresh ones included */
    bool wanted;                /* under lock; there was none for somebody */
    size_t n_chunks;
    uint8_t *bytes;
    size_t n_bytes;
};

static const size_t chunk_bytes = (size_t)STAGE_CHUNK_PAGES * STAGE_PAGE_BYTES;

struct stage_pool *stage_pool_new(uint64_t bytes)
{
    CLEANUP_FREE struct stage_pool *pool = calloc(1, sizeof(*pool));

    if (!pool || bytes > SIZE_MAX - chunk_bytes)
        return NULL;
    pool->n_chunks = (bytes + chunk_bytes - 1) / chunk_bytes;
    pool->n_bytes = pool->n_chunks * chunk_bytes;
    pool->n_free = pool->n_fresh = pool->n_chunks;
    pool->bytes = mmap(NULL, pool->n_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pool->bytes == MAP_FAILED)
        return NULL;
    (void)madvise(pool->bytes, pool->n_bytes, MADV_HUGEPAGE); /* copies 2 % faster where it works */
    pool->chunks = calloc(pool->n_chunks, sizeof(*pool->chunks));
    if (!pool->chunks) {
        (void)munmap(pool->bytes, pool->n_bytes); /* cannot fail: the range is ours */
        return NULL;
    }
    lock_init(&pool->lock);
    return take_ptr(pool);
}

struct stage_chunk *stage_pool_get(struct stage_pool *pool)
{
    struct stage_chunk *chunk;

    pthread_mutex_lock(&pool->lock);
    chunk = pool->free;
    if (chunk) {
        pool->free = chunk->next;
    } else if (pool->n_fresh) {
        size_t i = pool->n_chunks - pool->n_fresh--;

        chunk = &pool->chunks[i];
        chunk->bytes = pool->bytes + i * chunk_bytes;
    }
    if (chunk)
        pool->n_free--;
    else
        pool->wanted = true;
    pthread_mutex_unlock(&pool->lock);
    if (chunk) {
        chunk->next = NULL;
        chunk->n_pages = 0;
        chunk->ram = NULL;
    }
    return chunk;
}

bool stage_pool_put(struct stage_pool *pool, struct stage_chunk *list)
{
    bool wanted;

    pthread_mutex_lock(&pool->lock);
    wanted = list && pool->wanted;
    pool->wanted = pool->wanted && !wanted;
    while (list) {
        struct stage_chunk *next = list->next;

        list->next = pool->free;
        pool->free = list;
        pool->n_free++;
        list = next;
    }
    pthread_mutex_unlock(&pool->lock);
    return wanted;
}

size_t stage_pool_free_chunks(struct stage_pool *pool)
{
    size_t n;

    pthread_mutex_lock(&pool->lock);
    n = pool->n_free;
    pthread_mutex_unlock(&pool->lock);
    return n;
}

size_t stage_pool_total_chunks(const struct stage_pool *pool)
{
    return pool->n_chunks;
}

void stage_pool_close(struct stage_pool *pool)
{
    if (!pool)
        return;
    assert(pool->n_free == pool->n_chunks);
    (void)munmap(pool->bytes, pool->n_bytes); /* cannot fail: the range is ours */
    pthread_mutex_destroy(&pool->lock);
    free(pool->chunks);
    free(pool);
}
