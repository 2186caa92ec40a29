/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/copy_set.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

enum {
    PART_PAGES = 64,
    ALONE_PAGES = 1024, /* fewer than these are not worth waking anybody up */
};

int copy_set_init(struct copy_set *set, struct stage_pool *pool, struct parallel *parallel,
                  const uint8_t *ram, uint64_t n_pages)
{
    *set = (struct copy_set){.pool = pool, .parallel = parallel, .ram = ram};
    set->place = FAULTY_ALLOC("guard.copy-set", calloc(n_pages, sizeof(*set->place)));
    /* Each page is in one chunk, and none but the last is partly filled. */
    set->chunks = calloc(n_pages / STAGE_CHUNK_PAGES + 1, sizeof(*set->chunks));
    if (set->place && set->chunks)
        return 0;
    copy_set_free(set);
    return -ENOMEM;
}

/* Finds a place for one more page. False: there is none. */
static bool make_place(struct copy_set *set, uint64_t page)
{
    struct stage_chunk *last = set->n_chunks > set->n_given ? set->chunks[set->n_chunks - 1] : NULL;

    if (!last || last->n_pages == STAGE_CHUNK_PAGES) {
        last = stage_pool_get(set->pool);
        if (!last)
            return false;
        set->chunks[set->n_chunks++] = last;
    }
    set->place[page] = (uint32_t)((set->n_chunks - 1) * STAGE_CHUNK_PAGES + last->n_pages) + 1;
    last->number[last->n_pages++] = page;
    set->n_pages++;
    return true;
}

static void copy_page(const struct copy_set *set, uint64_t page)
{
    size_t place = set->place[page] - 1;

    memcpy(set->chunks[place / STAGE_CHUNK_PAGES]->bytes +
               place % STAGE_CHUNK_PAGES * STAGE_PAGE_BYTES,
           set->ram + page * STAGE_PAGE_BYTES, STAGE_PAGE_BYTES);
}

static void copy_part(void *user, size_t part)
{
    const struct copy_set *set = user;
    size_t end = (part + 1) * PART_PAGES < set->n_batch ? (part + 1) * PART_PAGES : set->n_batch;

    for (size_t i = part * PART_PAGES; i < end; i++)
        copy_page(set, set->batch[i]);
}

static void copy_batch(struct copy_set *set)
{
    parallel_run(set->n_batch < ALONE_PAGES ? NULL : set->parallel,
                 (set->n_batch + PART_PAGES - 1) / PART_PAGES, copy_part, set);
    set->n_batch = 0;
}

/* Replaces a page's copy, unless it is final. */
static void copy_again(struct copy_set *set, uint64_t page)
{
    if ((set->place[page] - 1) / STAGE_CHUNK_PAGES >= set->n_given)
        copy_page(set, page);
}

/* A page that is in the set for the first time. Nobody else may copy to its place meanwhile, so no
 * page is twice in a batch. */
static void copy_first(struct copy_set *set, uint64_t page)
{
    set->batch[set->n_batch++] = page;
    if (set->n_batch == COPY_BATCH_PAGES)
        copy_batch(set);
}

/* Has the next pages of the list copied. As copy_set_copy(). */
static bool copy_list(struct copy_set *set, uint64_t max_pages)
{
    struct run_cursor at = set->next;
    struct page_run page;

    while (run_list_next(&set->list, &at, 1, &page)) {
        if (!max_pages--)
            return false;
        if (set->place[page.first])
            copy_again(set, page.first);
        else if (make_place(set, page.first))
            copy_first(set, page.first);
        else
            return false;
        set->next = at;
    }
    return true;
}

bool copy_set_copy(struct copy_set *set, uint64_t max_pages)
{
    bool done = copy_list(set, max_pages);

    copy_batch(set);
    return done;
}

bool copy_set_full(const struct copy_set *set)
{
    return (set->n_chunks == set->n_given ||
            set->chunks[set->n_chunks - 1]->n_pages == STAGE_CHUNK_PAGES) &&
           stage_pool_free_chunks(set->pool) == 0;
}

void copy_set_refresh(struct copy_set *set)
{
    struct run_cursor at = set->next;
    struct page_run page;

    while (run_list_next(&set->list, &at, 1, &page)) {
        if (set->place[page.first])
            copy_again(set, page.first);
    }
}

struct stage_chunk *copy_set_take(struct copy_set *set)
{
    return set->n_given < set->n_chunks ? set->chunks[set->n_given++] : NULL;
}

uint64_t copy_set_pages(const struct copy_set *set)
{
    return set->n_pages;
}

void copy_set_clear(struct copy_set *set)
{
    struct run_list list = {0};

    copy_set_finish(set, &list);
    list.n = 0;
    set->list = list;
}

void copy_set_finish(struct copy_set *set, struct run_list *list)
{
    struct run_list done = set->list;
    struct stage_chunk *chunk;

    while ((chunk = copy_set_take(set))) {
        chunk->next = NULL;
        stage_pool_put(set->pool, chunk);
    }
    for (size_t i = 0; i < done.n; i++)
        memset(set->place + done.runs[i].first, 0, done.runs[i].count * sizeof(*set->place));
    set->list = *list;
    set->list.n = 0;
    *list = done;
    set->next = (struct run_cursor){0};
    set->n_chunks = set->n_given = 0;
    set->n_pages = 0;
}

void copy_set_free(struct copy_set *set)
{
    if (set->pool)
        copy_set_clear(set);
    run_list_free(&set->list);
    free(set->place);
    free(set->chunks);
    *set = (struct copy_set){0};
}
