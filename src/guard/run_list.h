/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_RUN_LIST_H
#define US_GUARD_RUN_LIST_H

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "hyp/hyp.h"

/* A growing list of page runs, reused from epoch to epoch. Zero-initialise. */
struct run_list {
    struct page_run *runs;
    size_t n, capacity;
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
            FAULTY_ALLOC("guard.run-list", realloc(list->runs, capacity * sizeof(*grown)));

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

static inline void run_list_free(struct run_list *list)
{
    free(list->runs);
    memset(list, 0, sizeof(*list));
}

#endif
