/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_RUN_LIST_H
#define US_HYP_RUN_LIST_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

/* A run of guest pages. */
struct page_run {
    uint64_t first; /* page number */
    uint64_t count; /* pages, at least 1 */
};

/* A growing list of page runs, reused from epoch to epoch. Zero-initialise. */
struct run_list {
    struct page_run *runs;
    size_t n, capacity;
};

/* A position in a list. Zero: its beginning. */
struct run_cursor {
    size_t run;
    uint64_t page; /* in the run */
};

/* Appends; merges with the last run where they touch. 0 or -ENOMEM. */
static inline int run_list_add(struct run_list *list, struct page_run run)
{
    struct page_run *last = list->n ? &list->runs[list->n - 1] : NULL;

    if (last && last->first + last->count == run.first) {
        last->count += run.count;
        return 0;
    }
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        struct page_run *grown =
            FAULTY_ALLOC("hyp.run-list", realloc(list->runs, capacity * sizeof(*grown)));

        if (!grown)
            return -ENOMEM;
        list->runs = grown;
        list->capacity = capacity;
    }
    list->runs[list->n++] = run;
    return 0;
}

/* Appends all of `from`. 0 or -ENOMEM. */
static inline int run_list_append(struct run_list *list, const struct run_list *from)
{
    size_t i;

    for (i = 0; i < from->n; i++) {
        if (run_list_add(list, from->runs[i]) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* The next piece of the list, at most `room` (> 0) pages. False at its end, for now: a list that
 * grows, also by its last run, goes on from there. */
static inline bool run_list_next(const struct run_list *list, struct run_cursor *at, uint64_t room,
                                 struct page_run *ret_run)
{
    const struct page_run *run;

    if (at->run + 1 < list->n && at->page == list->runs[at->run].count)
        *at = (struct run_cursor){.run = at->run + 1};
    if (at->run == list->n || at->page == list->runs[at->run].count)
        return false;
    run = &list->runs[at->run];
    ret_run->first = run->first + at->page;
    ret_run->count = run->count - at->page < room ? run->count - at->page : room;
    at->page += ret_run->count;
    return true;
}

static inline void run_list_free(struct run_list *list)
{
    free(list->runs);
    memset(list, 0, sizeof(*list));
}

#endif
