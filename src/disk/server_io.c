/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "disk/server_internal.h"

/* What becomes of a request in the present mode and phase. */
enum verdict { CARRY_OUT, HOLD, REFUSE, DEFER };

static enum verdict judge_flush(struct disk_server *s, struct server_disk *disk)
{
    switch (s->phase) {
    case DISK_STOPPING:
        return HOLD;
    case DISK_STOPPED:
        disk->flushes.deferred++;
        return DEFER;
    default:
        return CARRY_OUT;
    }
}

/* In one go with counting a deferred flush, so that it belongs to the phase that it is counted in.
 */
static enum verdict judge(struct disk_server *s, struct server_disk *disk, enum nbd_command command)
{
    enum verdict verdict = CARRY_OUT;

    if (command == NBD_READ)
        return CARRY_OUT;
    pthread_mutex_lock(&s->lock);
    if (s->mode == DISK_HELD)
        verdict = HOLD;
    else if (command == NBD_FLUSH)
        verdict = judge_flush(s, disk);
    else if (s->mode == DISK_WAITING)
        verdict = REFUSE;
    pthread_mutex_unlock(&s->lock);
    return verdict;
}

/* A change is complete, as far as the page cache goes. */
static void count_change(struct server_disk *disk)
{
    pthread_mutex_lock(&disk->server->lock);
    disk->n_changes++;
    pthread_mutex_unlock(&disk->server->lock);
}

/* Errors of a disk come in swarms; one line is as good as all. */
static void log_failure(const struct server_disk *disk, const char *what, int r)
{
    struct disk_server *s = disk->server;
    unsigned long long suppressed;
    bool pass;

    if (r == 0)
        return;
    pthread_mutex_lock(&s->lock);
    pass = log_limit_pass(&s->failures, &suppressed);
    pthread_mutex_unlock(&s->lock);
    if (pass)
        log_error("%s: %s: %s", disk->image->path, what, strerror(-r));
}

/* Data NULL: zeroes. The record describes the change; a change that failed has none, and the guest
 * knows that the range's contents are undefined. */
static int change(struct server_disk *disk, const struct disk_record *rec, const uint8_t *data)
{
    int r;

    range_take(&disk->ranges, rec->offset, rec->n_bytes);
    if (disk->map)
        disk_map_mark(disk->map, rec->offset, rec->n_bytes);
    fault_point("disk.marked");
    if (data)
        r = image_write(disk->image, data, rec->n_bytes, rec->offset);
    else
        r = image_zero(disk->image, rec->offset, rec->n_bytes, rec->flags & DISK_PUNCH);
    fault_point("disk.changed");
    if (r == 0)
        (void)journal_add(disk->server->journal, rec, data); /* tells by itself that it failed */
    range_drop(&disk->ranges, rec->offset, rec->n_bytes);
    return r;
}

static int carry_out_write(struct server_disk *disk, const struct request *q)
{
    int r = 0;

    for (uint64_t at = 0; r == 0 && at < q->nbd.n_bytes; at += DISK_DATA_MAX) {
        uint64_t left = q->nbd.n_bytes - at, n = left < DISK_DATA_MAX ? left : DISK_DATA_MAX;
        struct disk_record rec = {
            .disk = disk->number,
            .kind = DISK_WRITE,
            .n_data = (uint32_t)n,
            .offset = q->nbd.offset + at,
            .n_bytes = n,
        };

        r = change(disk, &rec, q->data + at);
    }
    log_failure(disk, "write", r);
    count_change(disk);
    return r;
}

static int carry_out_zero(struct server_disk *disk, const struct request *q)
{
    bool punch = q->nbd.command == NBD_TRIM || !q->nbd.no_hole;
    struct disk_record rec = {
        .disk = disk->number,
        .kind = DISK_ZERO,
        .flags = punch ? DISK_PUNCH : 0,
        .offset = q->nbd.offset,
        .n_bytes = q->nbd.n_bytes,
    };
    int r = change(disk, &rec, NULL);

    log_failure(disk, "zero", r);
    count_change(disk);
    return r;
}

/* Has all changes that were complete when it was called on stable storage. As with QEMU's own
 * files, a sync that failed fails for good: the kernel has forgotten what it could not write. */
static int carry_out_sync(struct server_disk *disk)
{
    struct disk_server *s = disk->server;
    uint64_t n_changes;
    bool synced;
    int r;

    pthread_mutex_lock(&s->lock);
    n_changes = disk->n_changes;
    synced = disk->n_synced >= n_changes;
    r = disk->sync_error;
    pthread_mutex_unlock(&s->lock);
    if (r < 0)
        return r;
    if (!synced)
        r = fault_error("disk.sync") ?: image_sync(disk->image);
    log_failure(disk, "sync", r);
    pthread_mutex_lock(&s->lock);
    if (r < 0)
        disk->sync_error = r;
    else if (disk->n_synced < n_changes)
        disk->n_synced = n_changes;
    pthread_mutex_unlock(&s->lock);
    if (r == 0)
        journal_flushed(s->journal);
    return r;
}

static int carry_out_flush(struct server_disk *disk)
{
    int r = carry_out_sync(disk);

    if (r == 0) {
        pthread_mutex_lock(&disk->server->lock);
        disk->flushes.synced++;
        pthread_mutex_unlock(&disk->server->lock);
    }
    return r;
}

/* In a helper's thread. */
static int carry_out_job(struct request *q)
{
    struct server_disk *disk = connection_disk(q->connection);
    int r;

    switch (q->nbd.command) {
    case NBD_READ:
        r = fault_error("disk.read")
                ?: image_read(disk->image, q->data, q->nbd.n_bytes, q->nbd.offset);
        log_failure(disk, "read", r);
        return r;
    case NBD_FLUSH:
        return carry_out_flush(disk);
    case NBD_TRIM:
    case NBD_WRITE_ZEROES:
        r = carry_out_zero(disk, q);
        return r == 0 && q->nbd.fua ? carry_out_sync(disk) : r;
    default: /* a write, already carried out: only FUA is left to do */
        return carry_out_sync(disk);
    }
}

static void job_add(struct disk_server *s, struct request *q)
{
    pthread_mutex_lock(&s->lock);
    request_list_add(&s->jobs, q);
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

static void begin_change(struct server_disk *disk, struct request *q)
{
    int r;

    if (q->nbd.command == NBD_TRIM && !image_can_punch(disk->image)) {
        connection_reply(q, 0);
    } else if (q->nbd.command == NBD_WRITE) {
        r = carry_out_write(disk, q);
        if (r == 0 && q->nbd.fua)
            job_add(disk->server, q);
        else
            connection_reply(q, r);
    } else {
        job_add(disk->server, q);
    }
}

void request_begin(struct request *q)
{
    struct server_disk *disk = connection_disk(q->connection);
    enum verdict verdict;

    if (q->nbd.refusal < 0) {
        connection_reply(q, q->nbd.refusal);
        return;
    }
    verdict = judge(disk->server, disk, q->nbd.command);
    if (verdict == HOLD)
        connection_hold(q);
    else if (verdict != CARRY_OUT)
        connection_reply(q, verdict == REFUSE ? -EPERM : 0);
    else if (q->nbd.command == NBD_FLUSH)
        job_add(disk->server, q);
    else if (q->nbd.command != NBD_READ)
        begin_change(disk, q);
    else if (image_read_cached(disk->image, q->data, q->nbd.n_bytes, q->nbd.offset) == 0)
        connection_reply(q, 0);
    else
        job_add(disk->server, q);
}

static void drop_requests_of(struct request_list *list, const struct connection *c)
{
    struct request_list others = {0};
    struct request *q;

    while ((q = request_list_take(list))) {
        if (q->connection == c)
            free(q);
        else
            request_list_add(&others, q);
    }
    *list = others;
}

static bool has_helper(const struct disk_server *s, const struct connection *c)
{
    for (unsigned i = 0; i < s->n_helpers; i++) {
        if (s->helpers[i].busy_for == c)
            return true;
    }
    return false;
}

void jobs_cancel(struct disk_server *s, const struct connection *c)
{
    pthread_mutex_lock(&s->lock);
    drop_requests_of(&s->jobs, c);
    while (has_helper(s, c))
        pthread_cond_wait(&s->idle, &s->lock);
    drop_requests_of(&s->done, c);
    pthread_mutex_unlock(&s->lock);
}

void *helper_thread(void *user)
{
    struct helper *helper = user;
    struct disk_server *s = helper->server;

    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        struct request *q = request_list_take(&s->jobs);

        if (!q) {
            pthread_cond_wait(&s->work, &s->lock);
            continue;
        }
        helper->busy_for = q->connection;
        pthread_mutex_unlock(&s->lock);
        q->error = carry_out_job(q);
        pthread_mutex_lock(&s->lock);
        helper->busy_for = NULL;
        request_list_add(&s->done, q);
        pthread_cond_signal(&s->idle);
        server_wake(s);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
