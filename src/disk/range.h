/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_RANGE_H
#define US_DISK_RANGE_H

#include <pthread.h>
#include <stdint.h>

/* A lock of byte ranges of one disk: whoever changes a range, or reads it for the journal, holds it
 * until the record is in the journal, so that the journal's order is the image's. */

enum { RANGE_HOLDERS_MAX = 16 };

struct range_lock {
    pthread_mutex_t lock;
    pthread_cond_t dropped;
    struct range {
        uint64_t offset, n_bytes;
    } held[RANGE_HOLDERS_MAX];
    unsigned n_held;
};

void range_lock_init(struct range_lock *ranges);
/* Nobody holds a range or waits for one. */
void range_lock_done(struct range_lock *ranges);

/* Takes a range (not empty), waiting until nobody holds one that overlaps it. A thread holds one
 * range at a time. */
void range_take(struct range_lock *ranges, uint64_t offset, uint64_t n_bytes);
/* Gives back exactly what was taken. */
void range_drop(struct range_lock *ranges, uint64_t offset, uint64_t n_bytes);

#endif
