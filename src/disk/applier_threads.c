/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/fault.h"
#include "disk/applier_internal.h"
#include "io/clock.h"
#include "io/thread.h"

#define RECLAIM_BYTES   (UINT64_C(64) << 20) /* of the log: bounds its space, and recovery's time */
#define RECLAIM_IDLE_NS NS_PER_S /* without work before a log that is smaller is emptied */

/* What was written to the images before is on stable storage when it returns 0. */
static int sync_images(struct applier *a)
{
    struct err err;
    int rc;

    pthread_mutex_lock(&a->image_lock);
    pthread_mutex_lock(&a->lock);
    rc = a->report.error; /* perhaps one that a sync would have told again */
    pthread_mutex_unlock(&a->lock);
    for (uint32_t i = 0; i < a->n_images && rc == 0; i++) {
        rc = image_sync(&a->images[i]);
        if (rc < 0)
            (void)applier_fail(a, err_sys(&err, rc, "%s", a->images[i].path), &err);
    }
    if (rc == 0)
        fault_point("applier.images-synced");
    pthread_mutex_unlock(&a->image_lock);
    return rc;
}

/* us-apply. */

static int reach_mark(struct applier *a, const struct disk_record *rec, struct err *err)
{
    int rc = rec->flags & DISK_SYNC ? sync_images(a) : 0;

    fault_point("applier.mark");
    if (rc < 0)
        return rc; /* has failed already */
    pthread_mutex_lock(&a->lock);
    if (a->n_marks == APPLIER_MARKS_MAX) {
        rc = err_set(err, -EPROTO, "the primary sent too many marks");
    } else {
        unsigned at = (a->first_mark + a->n_marks++) % APPLIER_MARKS_MAX;

        a->marks[at] = compare_take(&a->compare);
        a->marks[at].number = rec->offset;
        applier_notify(a);
    }
    pthread_mutex_unlock(&a->lock);
    return rc;
}

static int apply_record(struct applier *a, const struct disk_record *rec, const uint8_t *data,
                        struct err *err)
{
    int rc;

    if (rec->kind == DISK_MARK)
        return reach_mark(a, rec, err);
    if (rec->kind == DISK_DIGEST) {
        rc = compare_digest(&a->compare, a->images, rec, data);
    } else {
        compare_written(&a->compare, rec->disk);
        rc = redo_apply(a->images, rec, data);
    }
    return rc < 0 ? err_sys(err, rc, "%s", a->images[rec->disk].path) : 0;
}

static int apply_epoch(struct applier *a, const struct staged *s)
{
    struct disk_cursor cursor = {0};
    struct disk_record rec;
    const uint8_t *data;
    struct err err = {""};

    while (disk_log_next(&s->log, &cursor, &rec, &data)) {
        int rc = apply_record(a, &rec, data, &err);

        if (rc < 0)
            return applier_fail(a, rc, &err);
    }
    fault_point("applier.applied");
    return 0;
}

/* Everything before this epoch is on the images. */
static int become_consistent(struct applier *a, const struct staged *s)
{
    struct err err;
    int rc = sync_images(a);

    if (rc == 0) {
        fault_point("applier.consistent");
        rc = a->callbacks.on_consistent(a->callbacks.user, s->epoch, s->term);
        if (rc < 0)
            (void)applier_fail(a, err_sys(&err, rc, "the record of the copy could not be written"),
                               &err);
    }
    return rc;
}

/* Carries the front epoch out. Comes and goes with the lock. */
static void work_apply(struct applier *a)
{
    struct staged *s = a->first;
    bool first_term = s->term && !a->consistent;
    bool must_sync = s->term && a->report.durable_epoch < s->epoch;
    uint64_t in_log = a->staged_epoch;
    int rc = 0;

    pthread_mutex_unlock(&a->lock);
    if (first_term)
        rc = become_consistent(a, s);
    if (rc == 0 && must_sync)
        rc = applier_check_log(a, redo_sync(a->redo));
    pthread_mutex_lock(&a->lock);
    if (rc < 0)
        return;
    a->consistent |= first_term;
    if (must_sync)
        applier_durable(a, in_log);

    pthread_mutex_unlock(&a->lock);
    rc = apply_epoch(a, s);
    pthread_mutex_lock(&a->lock);
    if (rc < 0)
        return;
    (void)applier_remove_first(a);
    if (s->log.n_records == 0 && a->report.durable_epoch >= a->report.applied_epoch)
        applier_durable(a, s->epoch);
    a->report.applied_epoch = s->epoch;
    a->report.applied_bytes += s->log.n_bytes;
    if (s->end != s->place) {
        a->reclaim_bytes += s->end - s->place;
        a->reclaim_end = s->end;
    }
    a->idle_since_ns = clock_now_ns();
    applier_notify(a);
    pthread_cond_broadcast(&a->done);
    pthread_cond_broadcast(&a->wake);
    pthread_mutex_unlock(&a->lock);
    staged_free(s);
    pthread_mutex_lock(&a->lock);
}

static void *apply_thread(void *arg)
{
    struct applier *a = arg;

    pthread_mutex_lock(&a->lock);
    while (!a->stop) {
        if (front_is_committed(a))
            work_apply(a);
        else
            pthread_cond_wait(&a->wake, &a->lock);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

/* us-sync. */

/* Syncs the images and gives the log's space back up to where they are. Comes and goes with the
 * lock. */
static void work_reclaim(struct applier *a)
{
    uint64_t applied = a->report.applied_epoch, end = a->reclaim_end, n_bytes = a->reclaim_bytes;
    bool empty;
    int rc;

    pthread_mutex_unlock(&a->lock);
    rc = sync_images(a);
    pthread_mutex_lock(&a->lock);
    if (rc < 0)
        return;
    fault_point("applier.reclaim");
    applier_durable(a, applied);
    empty = !a->first && !a->appending && end == a->reclaim_end;
    a->resetting = empty;
    pthread_mutex_unlock(&a->lock);
    (void)applier_check_log(a, empty ? redo_reset(a->redo) : redo_trim(a->redo, end));
    pthread_mutex_lock(&a->lock);
    a->resetting = false;
    a->reclaim_bytes -= n_bytes;
    pthread_cond_broadcast(&a->done);
}

static void work_finish(struct applier *a)
{
    int rc;

    pthread_mutex_unlock(&a->lock);
    fault_point("applier.finish");
    rc = sync_images(a);
    if (rc == 0)
        rc = applier_check_log(a, redo_reset(a->redo));
    fault_point("applier.finished");
    pthread_mutex_lock(&a->lock);
    if (rc < 0)
        return;
    a->reclaim_bytes = 0;
    a->finished = true;
    applier_durable(a, a->report.applied_epoch);
    applier_notify(a);
}

/* What us-sync does next; with WORK_LATER, when to look again. */
enum work { WORK_NONE, WORK_LATER, WORK_RECLAIM, WORK_FINISH };

static enum work next_work(const struct applier *a)
{
    uint64_t most = a->limit_bytes < RECLAIM_BYTES ? a->limit_bytes : RECLAIM_BYTES;

    if (a->report.error || a->finished)
        return WORK_NONE;
    if (a->finish_ordered && !a->first)
        return WORK_FINISH;
    if (a->reclaim_bytes > most)
        return WORK_RECLAIM;
    if (a->reclaim_bytes == 0 || front_is_committed(a))
        return WORK_NONE;
    if (a->force_reset)
        return WORK_RECLAIM;
    if (a->first)
        return WORK_NONE;
    return clock_now_ns() - a->idle_since_ns >= RECLAIM_IDLE_NS ? WORK_RECLAIM : WORK_LATER;
}

static void wait_for_idleness(struct applier *a)
{
    uint64_t until = a->idle_since_ns + RECLAIM_IDLE_NS;
    struct timespec ts = {.tv_sec = (time_t)(until / NS_PER_S),
                          .tv_nsec = (long)(until % NS_PER_S)};

    (void)pthread_cond_timedwait(&a->wake, &a->lock, &ts); /* next_work() looks at the clock */
}

static void *sync_thread(void *arg)
{
    struct applier *a = arg;

    pthread_mutex_lock(&a->lock);
    while (!a->stop) {
        switch (next_work(a)) {
        case WORK_RECLAIM:
            work_reclaim(a);
            break;
        case WORK_FINISH:
            work_finish(a);
            break;
        case WORK_LATER:
            wait_for_idleness(a);
            break;
        case WORK_NONE:
            pthread_cond_wait(&a->wake, &a->lock);
            break;
        }
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

static void stop_thread(struct applier *a, pthread_t thread)
{
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_cond_broadcast(&a->wake);
    pthread_mutex_unlock(&a->lock);
    pthread_join(thread, NULL);
}

int applier_start(struct applier *a)
{
    int rc = thread_start(&a->apply_thread, "us-apply", apply_thread, a);

    if (rc < 0)
        return rc;
    rc = thread_start(&a->sync_thread, "us-sync", sync_thread, a);
    if (rc < 0)
        stop_thread(a, a->apply_thread);
    return rc;
}

void applier_stop(struct applier *a)
{
    stop_thread(a, a->apply_thread);
    stop_thread(a, a->sync_thread);
}
