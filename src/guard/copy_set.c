/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/copy_set.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

int copy_set_init(struct copy_set *set, struct stage_pool *pool, const uint8_t *ram,
                  uint64_t n_pages)
{
    *set = (struct copy_set){.pool = pool, .ram = ram};
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

/* Copies a page to its place, unless its copy is final. */
static void copy_page(struct copy_set *set, uint64_t page)
{
    size_t place = set->place[page] - 1;
    size_t chunk = place / STAGE_CHUNK_PAGES;

    if (chunk < set->n_given)
        return;
    memcpy(set->chunks[chunk]->bytes + place % STAGE_CHUNK_PAGES * STAGE_PAGE_BYTES,
           set->ram + page * STAGE_PAGE_BYTES, STAGE_PAGE_BYTES);
}

bool copy_set_copy(struct copy_set *set, uint64_t max_pages)
{
    for (; set->run < set->list.n; set->run++, set->page = 0) {
        const struct page_run *run = &set->list.runs[set->run];

        /* The last run may have grown since. */
        for (; set->page < run->count; set->page++) {
            uint64_t page = run->first + set->page;

            if (!max_pages-- || (!set->place[page] && !make_place(set, page)))
                return false;
            copy_page(set, page);
        }
        if (set->run + 1 == set->list.n)
            return true;
    }
    return true;
}

bool copy_set_full(const struct copy_set *set)
{
    return (set->n_chunks == set->n_given ||
            set->chunks[set->n_chunks - 1]->n_pages == STAGE_CHUNK_PAGES) &&
           stage_pool_free_chunks(set->pool) == 0;
}

void copy_set_refresh(struct copy_set *set)
{
    for (size_t i = set->run; i < set->list.n; i++) {
        const struct page_run *run = &set->list.runs[i];

        for (uint64_t k = i == set->run ? set->page : 0; k < run->count; k++) {
            if (set->place[run->first + k])
                copy_page(set, run->first + k);
        }
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
    set->n_chunks = set->n_given = set->run = 0;
    set->page = set->n_pages = 0;
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
