/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_COPY_SET_H
#define US_GUARD_COPY_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "hyp/run_list.h"
#include "io/parallel.h"
#include "io/stage.h"

/* The pages of the epoch that is being made: a list of what belongs into it, and copies in staging
 * memory. A page may be listed again and again, as often as it was found dirty; it has one copy,
 * which a later one replaces, so nothing is sent twice and a page that is copied while the guest
 * runs may be written meanwhile: it is found dirty and copied anew.
 *
 * Large amounts are copied by several threads. Not thread-safe; blocks for the copying alone (about
 * 0.3 ms per 1,000 pages and thread). */

enum { COPY_BATCH_PAGES = 2048 };

struct copy_set {
    struct run_list list; /* the caller appends; in any order */

    /* the rest is private to copy_set.c */
    struct stage_pool *pool;     /* borrowed */
    const uint8_t *ram;          /* borrowed */
    struct parallel *parallel;   /* borrowed; NULL: no help */
    uint32_t *place;             /* of each of the VM's pages: 1 + that of its copy; 0 = none */
    struct stage_chunk **chunks; /* of the set; each but the last is full */
    size_t n_chunks;
    size_t n_given;         /* of them: taken from the set, final */
    struct run_cursor next; /* how far the list is copied */
    uint64_t n_pages;       /* that have a place */
    size_t n_batch;         /* pages that have a place and wait to be copied */
    uint64_t batch[COPY_BATCH_PAGES];
};

/* An empty set for a VM of n_pages at `ram`. parallel: who helps to copy; NULL: nobody. Memory: 4
 * bytes per page, touched where pages are dirty. 0 or -ENOMEM. */
int copy_set_init(struct copy_set *set, struct stage_pool *pool, struct parallel *parallel,
                  const uint8_t *ram, uint64_t n_pages) US_MUST_CHECK;

/* Copies on along the list, at most max_pages of it. True: all is copied. False: there is more, and
 * either max_pages are done or (copy_set_full()) staging memory has run out. */
bool copy_set_copy(struct copy_set *set, uint64_t max_pages);

/* True when no page that is not in the set yet could be copied now. */
bool copy_set_full(const struct copy_set *set);

/* What was copied must be as it is in memory now, in full, before the first copy_set_take() of a
 * list that is not copied to its end: replaces the copies of what is still to come on the list. */
void copy_set_refresh(struct copy_set *set);

/* Takes a chunk out of the set, for good: its copies are final. NULL: all are taken. The caller
 * owns it. The pages stay listed and are not copied again. */
struct stage_chunk *copy_set_take(struct copy_set *set);

/* Pages that have a copy, those taken included. */
uint64_t copy_set_pages(const struct copy_set *set);

/* Empties the set: its chunks go back to the pool, the list is forgotten. */
void copy_set_clear(struct copy_set *set);

/* As copy_set_clear(), but the list becomes *list, whose memory the set goes on with. */
void copy_set_finish(struct copy_set *set, struct run_list *list);

void copy_set_free(struct copy_set *set);

#endif
