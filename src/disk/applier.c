/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/fault.h"
#include "disk/applier_internal.h"
#include "io/lock.h"

void applier_notify(struct applier *a)
{
    uint64_t one = 1;

    (void)!write(a->notify_fd, &one, sizeof(one)); /* a full eventfd is readable as well */
}

int applier_fail(struct applier *a, int rc, const struct err *err)
{
    pthread_mutex_lock(&a->lock);
    if (a->report.error == 0) {
        a->report.error = rc;
        (void)snprintf(a->report.text, sizeof(a->report.text), "%.255s", err->text);
        applier_notify(a);
    }
    pthread_cond_broadcast(&a->wake);
    pthread_cond_broadcast(&a->done);
    pthread_mutex_unlock(&a->lock);
    return rc;
}

void applier_durable(struct applier *a, uint64_t epoch)
{
    if (epoch <= a->report.durable_epoch)
        return;
    a->report.durable_epoch = epoch;
    applier_notify(a);
}

int applier_check_log(struct applier *a, int rc)
{
    struct err err;

    return rc < 0 ? applier_fail(a, err_sys(&err, rc, "%s", redo_path(a->redo)), &err) : 0;
}

struct staged *applier_remove_first(struct applier *a)
{
    struct staged *s = a->first;

    a->first = s->next;
    if (!a->first)
        a->last = &a->first;
    a->queued_bytes -= s->log.n_bytes;
    return s;
}

void staged_free(struct staged *s)
{
    disk_log_clear(&s->log);
    free(s);
}

/* The receiver's thread. */

/* Under the lock. */
static void note_length(struct applier *a)
{
    if (a->resetting)
        return; /* us-sync is at it */
    a->force_reset = redo_end(a->redo) > REDO_LONG_BYTES;
    if (a->force_reset)
        pthread_cond_broadcast(&a->wake);
}

/* True while an epoch of that size has to wait. Ends without anybody but our threads. Under the
 * lock. */
static bool must_wait(const struct applier *a, uint64_t n_bytes)
{
    if (a->report.error)
        return false;
    if (a->resetting)
        return true;
    if (front_is_committed(a))
        return a->force_reset || a->queued_bytes + n_bytes > a->limit_bytes;
    return a->force_reset && a->reclaim_bytes;
}

/* The receiver checks this too; but what is out of order here would spoil the copy silently. Under
 * the lock. */
static int check_order(const struct applier *a, uint64_t epoch, uint64_t term, struct err *err)
{
    if (epoch <= a->staged_epoch)
        return err_set(err, -EPROTO, "epoch %" PRIu64 " comes after epoch %" PRIu64, epoch,
                       a->staged_epoch);
    if (!term && a->has_term)
        return err_set(err, -EPROTO, "epoch %" PRIu64 " seeds a copy that is consistent", epoch);
    return 0;
}

/* Waits until the epoch may come; from 0 on the log's end is the caller's. *ret_sync: it has to be
 * synced before it is acknowledged. */
static int begin_staging(struct applier *a, const struct staged *s, const struct disk_log *log,
                         bool *ret_sync)
{
    struct err err;
    int rc, error;

    pthread_mutex_lock(&a->lock);
    for (note_length(a); must_wait(a, log->n_bytes); note_length(a))
        pthread_cond_wait(&a->done, &a->lock);
    error = a->report.error;
    rc = error ? error : check_order(a, s->epoch, s->term, &err);
    a->appending = rc == 0;
    *ret_sync = log->flushed && a->consistent;
    pthread_mutex_unlock(&a->lock);
    return rc && !error ? applier_fail(a, rc, &err) : rc;
}

static int append(struct applier *a, struct staged *s, const struct disk_log *log)
{
    int rc = 0;

    s->place = redo_end(a->redo);
    if (s->term && log->n_records)
        rc = applier_check_log(a, redo_append(a->redo, s->epoch, s->term, log));
    s->end = redo_end(a->redo);
    return rc;
}

/* Takes the log. */
static void end_staging(struct applier *a, struct staged *s, struct disk_log *log, bool synced)
{
    bool nothing_new;

    pthread_mutex_lock(&a->lock);
    nothing_new = log->n_records == 0 && a->report.durable_epoch >= a->staged_epoch &&
                  (a->consistent || !s->term);
    disk_log_move(&s->log, log);
    *a->last = s;
    a->last = &s->next;
    a->queued_bytes += s->log.n_bytes;
    a->staged_epoch = s->epoch;
    a->has_term |= s->term != 0;
    a->appending = false;
    if (synced || nothing_new)
        applier_durable(a, s->epoch);
    pthread_mutex_unlock(&a->lock);
}

int applier_stage(struct applier *a, uint64_t epoch, uint64_t term, struct disk_log *log)
{
    struct staged *s = FAULTY_ALLOC("applier.stage-room", calloc(1, sizeof(*s)));
    struct err err;
    bool must_sync;
    int rc;

    if (!s)
        return applier_fail(a, err_sys(&err, -ENOMEM, "epoch %" PRIu64, epoch), &err);
    s->epoch = epoch;
    s->term = term;
    rc = begin_staging(a, s, log, &must_sync);
    if (rc == 0)
        rc = append(a, s, log);
    if (rc == 0 && must_sync)
        rc = applier_check_log(a, redo_sync(a->redo));
    if (rc < 0) {
        free(s); /* the log's end is nobody's any more: the error is final */
        return rc;
    }
    fault_point("applier.staged");
    end_staging(a, s, log, must_sync);
    return 0;
}

/* The main thread. */

void applier_commit(struct applier *a, uint64_t epoch)
{
    pthread_mutex_lock(&a->lock);
    if (epoch > a->staged_epoch)
        epoch = a->staged_epoch;
    if (epoch > a->committed_epoch)
        a->committed_epoch = epoch;
    pthread_cond_broadcast(&a->wake);
    pthread_mutex_unlock(&a->lock);
}

/* Takes epochs that are not committed out of the redo log, oldest first, and frees them. For good:
 * a loss of power must not bring them back once the VM has gone on without them. */
static void drop(struct applier *a, struct staged *s)
{
    bool dropped = false;
    int rc = 0;

    while (s) {
        struct staged *next = s->next;

        if (rc == 0 && s->end != s->place) {
            rc = applier_check_log(a, redo_drop(a->redo, s->place));
            dropped = true;
        }
        staged_free(s);
        s = next;
    }
    if (rc == 0 && dropped)
        (void)applier_check_log(a, redo_sync(a->redo));
}

void applier_drain(struct applier *a)
{
    struct staged *dropped;

    pthread_mutex_lock(&a->lock);
    while (front_is_committed(a))
        pthread_cond_wait(&a->done, &a->lock);
    if (a->report.error || !a->first) {
        pthread_mutex_unlock(&a->lock);
        return;
    }
    dropped = a->first;
    a->first = NULL;
    a->last = &a->first;
    a->queued_bytes = 0;
    a->staged_epoch = a->report.applied_epoch;
    if (a->report.durable_epoch > a->staged_epoch)
        a->report.durable_epoch = a->staged_epoch;
    a->appending = true;
    pthread_mutex_unlock(&a->lock);

    fault_point("applier.drop");
    drop(a, dropped);

    pthread_mutex_lock(&a->lock);
    a->appending = false;
    pthread_cond_broadcast(&a->wake);
    pthread_mutex_unlock(&a->lock);
}

void applier_finish(struct applier *a)
{
    pthread_mutex_lock(&a->lock);
    a->finish_ordered = true;
    pthread_cond_broadcast(&a->wake);
    pthread_mutex_unlock(&a->lock);
}

bool applier_finished(struct applier *a)
{
    bool finished;

    pthread_mutex_lock(&a->lock);
    finished = a->finished;
    pthread_mutex_unlock(&a->lock);
    return finished;
}

bool applier_mark_get(struct applier *a, struct applier_mark *ret_mark)
{
    bool found;

    pthread_mutex_lock(&a->lock);
    found = a->n_marks > 0;
    if (found) {
        *ret_mark = a->marks[a->first_mark];
        a->first_mark = (a->first_mark + 1) % APPLIER_MARKS_MAX;
        a->n_marks--;
    }
    pthread_mutex_unlock(&a->lock);
    return found;
}

void applier_report_get(struct applier *a, struct applier_report *ret_report)
{
    pthread_mutex_lock(&a->lock);
    *ret_report = a->report;
    pthread_mutex_unlock(&a->lock);
}

/* All but the log. */
static void applier_free(struct applier *a)
{
    struct applier_mark mark;

    while (a->first)
        staged_free(applier_remove_first(a));
    while (applier_mark_get(a, &mark))
        range_list_free(&mark.differing);
    pthread_mutex_destroy(&a->image_lock);
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->wake);
    pthread_cond_destroy(&a->done);
    compare_done(&a->compare);
    free(a);
}

int applier_new(const struct image *images, uint32_t n_images, struct redo *redo,
                uint64_t limit_bytes, int notify_fd, const struct applier_callbacks *callbacks,
                struct applier **ret_applier)
{
    struct applier *a = calloc(1, sizeof(*a));
    int rc;

    if (!a)
        return -ENOMEM;
    lock_init(&a->lock);
    lock_init(&a->image_lock);
    cond_init_timed(&a->wake);
    pthread_cond_init(&a->done, NULL);
    a->images = images;
    a->n_images = n_images;
    a->redo = redo;
    a->limit_bytes = limit_bytes;
    a->notify_fd = notify_fd;
    a->callbacks = *callbacks;
    a->last = &a->first;
    rc = applier_start(a);
    if (rc < 0) {
        applier_free(a);
        return rc;
    }
    *ret_applier = a;
    return 0;
}

void applier_close(struct applier *a)
{
    if (!a)
        return;
    applier_stop(a);
    redo_close(a->redo);
    applier_free(a);
}
