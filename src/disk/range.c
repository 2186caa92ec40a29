/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/range.h"

#include <assert.h>
#include <stdbool.h>

#include "io/lock.h"

void range_lock_init(struct range_lock *ranges)
{
    lock_init(&ranges->lock);
    pthread_cond_init(&ranges->dropped, NULL);
    ranges->n_held = 0;
}

void range_lock_done(struct range_lock *ranges)
{
    pthread_cond_destroy(&ranges->dropped);
    pthread_mutex_destroy(&ranges->lock);
}

/* A lock without room for one more holder is as busy as an overlap. */
static bool busy(const struct range_lock *ranges, uint64_t offset, uint64_t n_bytes)
{
    for (unsigned i = 0; i < ranges->n_held; i++) {
        const struct range *held = &ranges->held[i];

        if (offset < held->offset + held->n_bytes && held->offset < offset + n_bytes)
            return true;
    }
    return ranges->n_held == RANGE_HOLDERS_MAX;
}

void range_take(struct range_lock *ranges, uint64_t offset, uint64_t n_bytes)
{
    pthread_mutex_lock(&ranges->lock);
    while (busy(ranges, offset, n_bytes))
        pthread_cond_wait(&ranges->dropped, &ranges->lock);
    ranges->held[ranges->n_held++] = (struct range){offset, n_bytes};
    pthread_mutex_unlock(&ranges->lock);
}

void range_drop(struct range_lock *ranges, uint64_t offset, uint64_t n_bytes)
{
    unsigned i = 0;

    pthread_mutex_lock(&ranges->lock);
    while (i < ranges->n_held &&
           (ranges->held[i].offset != offset || ranges->held[i].n_bytes != n_bytes))
        i++;
    assert(i < ranges->n_held);
    ranges->held[i] = ranges->held[--ranges->n_held];
    pthread_cond_broadcast(&ranges->dropped);
    pthread_mutex_unlock(&ranges->lock);
}
