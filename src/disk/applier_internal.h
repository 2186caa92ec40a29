/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_APPLIER_INTERNAL_H
#define US_DISK_APPLIER_INTERNAL_H

#include <pthread.h>

#include "disk/applier.h"
#include "disk/compare.h"

/* Theory of operation. Staged epochs stand in a queue, oldest first. The thread us-apply takes the
 * front one when it is committed, carries it out, outside the lock, and only then removes it: so a
 * committed front means that there is work. What it touches meanwhile (the epoch's records, the
 * images) nobody else does, except that us-sync syncs the images.
 *
 * Write-ahead order: an epoch with a term reaches the images only after the log that holds it was
 * synced. One sync serves all epochs that are staged by then. durable_epoch never passes an epoch
 * whose records are neither in the synced log nor on the synced images.
 *
 * The log is cut down by us-sync: it notes how far us-apply has come, syncs the images, and has the
 * log start there; or resets it when nothing is behind. Appending, applying and committing go on
 * meanwhile; only a reset, which is short, makes staging wait. A log that never runs empty is reset
 * by force once it is very long (offsets in a file are bounded).
 *
 * An error of the images or the log is final: both threads stop working, and whoever waits goes on.
 *
 * Locks: image_lock, then lock. */

/* A staged epoch. */
struct staged {
    struct staged *next;
    uint64_t epoch, term;
    uint64_t place, end; /* in the redo log; the same: it is not there */
    struct disk_log log;
};

struct applier {
    const struct image *images;
    uint32_t n_images;
    struct redo *redo;
    uint64_t limit_bytes;
    int notify_fd;
    struct applier_callbacks callbacks;
    pthread_t apply_thread, sync_thread;
    pthread_mutex_t image_lock; /* no two syncs at once: only one of them would see an error */

    pthread_mutex_t lock; /* of all that follows */
    pthread_cond_t wake;  /* for the threads: there may be something to do */
    pthread_cond_t done;  /* for stage and drain: a thread has done something */
    struct staged *first, **last;
    uint64_t queued_bytes; /* of records in the queue */
    uint64_t staged_epoch, committed_epoch;
    bool appending;   /* stage or drain uses the log's end: no reset */
    bool resetting;   /* us-sync resets the log: no appending */
    bool force_reset; /* the log is very long */
    bool has_term;    /* an epoch with a term was staged */
    bool consistent;  /* ... and on_consistent was called for it */
    bool stop;
    bool finish_ordered, finished;
    uint64_t reclaim_bytes, reclaim_end; /* of the log, applied: how much, and up to where */
    uint64_t idle_since_ns;
    struct applier_report report;
    struct applier_mark marks[APPLIER_MARKS_MAX]; /* ring */
    unsigned first_mark, n_marks;

    struct compare compare; /* us-apply only */
};

/* True when us-apply has something to do. Under the lock. */
static inline bool front_is_committed(const struct applier *a)
{
    return a->first && a->first->epoch <= a->committed_epoch && a->report.error == 0;
}

/* Under the lock; the epoch is the caller's then. */
struct staged *applier_remove_first(struct applier *a);
void staged_free(struct staged *s);

/* The copy ends here; the first reason stands. Takes the lock. Returns rc. */
int applier_fail(struct applier *a, int rc, const struct err *err);

/* As applier_fail() when rc is an error of the redo log. */
int applier_check_log(struct applier *a, int rc);

/* The report has changed. */
void applier_notify(struct applier *a);

/* Under the lock. */
void applier_durable(struct applier *a, uint64_t epoch);

/* Starts both threads. 0 or -errno: none runs. */
int applier_start(struct applier *a) US_MUST_CHECK;
/* Ends both threads. */
void applier_stop(struct applier *a);

#endif
