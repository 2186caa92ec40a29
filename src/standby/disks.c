/* SPDX-License-Identifier: Apache-2.0 */
#include "standby/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/log.h"

/* The standby's copies of the VM's disks: what it says of them, and what becomes of them during a
 * session. */

/* A flood of writes may stage more than the primary's journal holds for as long as a checkpoint is
 * taken. */
#define EPOCH_LIMIT_BYTES   (UINT64_C(2) << 30)
#define APPLIER_LIMIT_BYTES (UINT64_C(64) << 20)

static const uint8_t no_sync[DISK_SYNC_ID_BYTES];

static int reset_maps(struct disks *d, const uint8_t *sync, struct err *err)
{
    uint32_t i;
    int r = 0;

    for (i = 0; r >= 0 && i < d->n; i++)
        r = disk_map_reset(d->maps[i], sync, err);
    return r;
}

static void fill_record(const struct standby_shell *s, enum copy_role role, uint64_t epoch,
                        uint64_t term, struct copy_record *ret_record)
{
    *ret_record = (struct copy_record){.role = role, .epoch = epoch, .term = term};
    (void)snprintf(ret_record->peer, sizeof(ret_record->peer), "%s", s->primary);
}

/* The receiver's thread: the copies are about to change on their way to another full copy. */
static int on_seeding(void *user)
{
    struct standby_shell *s = user;
    struct copy_record record;
    struct err err;
    int r;

    fill_record(s, COPY_SYNCING, 0, 0, &record);
    r = disks_record(s->body->disks, &record, &err);
    if (r >= 0)
        r = reset_maps(s->body->disks, no_sync, &err);
    if (r < 0)
        log_error("disks: %s", err.text);
    return r;
}

/* The applier's thread: with this epoch the copies are full and stand where the memory stands. */
static int on_consistent(void *user, uint64_t epoch, uint64_t term)
{
    struct standby_shell *s = user;
    struct copy_record record;
    struct err err;
    int r;

    fill_record(s, COPY_STANDBY, epoch, term, &record);
    r = reset_maps(s->body->disks, s->session, &err);
    fault_point("standby.maps-reset");
    if (r >= 0)
        r = disks_record(s->body->disks, &record, &err);
    if (r >= 0)
        r = s->on_complete(s->user, &s->body->spec, s->primary, &err);
    fault_point("standby.copy-complete");
    if (r < 0)
        log_error("disks: %s", err.text);
    return r;
}

/* ---- what the primary is told ---- */

/* Tells ranges of one disk, coarsened to what the control channel's buffer has room for, and
 * empties the list. -ENOMEM: they were not told. */
static int tell(struct standby_shell *s, struct range_list *list, enum wire_ranges_kind kind,
                uint32_t disk, uint64_t mark)
{
    CLEANUP_FREE struct wire_msg *msg = calloc(1, sizeof(*msg));
    struct wire_disk_ranges *ranges;
    uint32_t i;

    if (!msg)
        return -ENOMEM;
    ranges = &msg->u.disk_ranges;
    msg->type = WIRE_DISK_RANGES;
    *ranges = (struct wire_disk_ranges){.kind = (uint8_t)kind, .disk = (uint8_t)disk, .mark = mark};
    range_list_coarsen(list, RANGES_TOLD_MAX);
    for (i = 0; i < list->n; i++) {
        ranges->range[ranges->n++] = (struct wire_range){list->v[i].offset, list->v[i].n_bytes};
        if (ranges->n == WIRE_RANGES_PER_MSG || i + 1 == list->n) {
            channel_send(s->control, msg);
            ranges->n = 0;
        }
    }
    list->n = 0;
    return 0;
}

/* Where our copy may differ from the full copy that it goes back to. */
static int tell_dirty(struct standby_shell *s, uint32_t disk)
{
    struct range_list dirty = {.n = 0};
    uint64_t at = 0, n;
    int r = 0;

    while (r >= 0 && disk_map_next(s->body->disks->maps[disk], at, &at, &n)) {
        r = range_list_add(&dirty, disk, at, n);
        at += n;
    }
    if (r >= 0)
        r = tell(s, &dirty, WIRE_RANGES_DIRTY, disk, 0);
    range_list_free(&dirty);
    return r;
}

void standby_disks_describe(struct standby_shell *s, struct wire_ready *ready)
{
    struct disks *d = s->body->disks;
    uint64_t start, end;
    uint32_t i;

    for (i = 0; d && i < d->n; i++) {
        struct wire_disk_copy *copy = &ready->disk[i];

        copy->state = WIRE_COPY_UNKNOWN;
        if (image_next_data(&d->images[i], 0, &start, &end) == 0) {
            copy->state = WIRE_COPY_EMPTY;
        } else if (disk_map_trusted(d->maps[i]) &&
                   memcmp(disk_map_sync(d->maps[i]), no_sync, sizeof(no_sync)) != 0 &&
                   tell_dirty(s, i) >= 0) {
            copy->state = WIRE_COPY_KNOWN;
            memcpy(copy->sync, disk_map_sync(d->maps[i]), sizeof(copy->sync));
        }
        ready->n_disks = (uint8_t)(i + 1);
    }
}

/* A mark was reached: what differed before it. Out of memory, it stays without an answer, and the
 * primary makes no use of this copy. */
static void answer_mark(struct standby_shell *s, const struct applier_mark *mark)
{
    const struct range_list *differing = &mark->differing;
    struct wire_msg end = {.type = WIRE_DISK_RANGES};
    struct range_list told = {.n = 0};
    uint32_t i;
    int r = 0;

    if (!s->control)
        return;
    for (i = 0; r >= 0 && i < differing->n; i++) {
        const struct disk_range *d = &differing->v[i];
        uint64_t n = d->n_bytes;

        if (mark->more && i + 1 == differing->n) /* too many to tell: all that follows */
            n = s->body->disks->sizes[d->disk] - d->offset;
        r = range_list_add(&told, d->disk, d->offset, n);
        if (r >= 0 && (i + 1 == differing->n || differing->v[i + 1].disk != d->disk))
            r = tell(s, &told, WIRE_RANGES_DIFFER, d->disk, mark->number);
    }
    range_list_free(&told);
    end.u.disk_ranges = (struct wire_disk_ranges){
        .kind = WIRE_RANGES_DIFFER,
        .mark = mark->number,
        .last = true,
    };
    if (r >= 0)
        channel_send(s->control, &end);
}

/* ---- life ---- */

static void disks_failed(struct standby_shell *s, const char *why)
{
    if (s->finish)
        return;
    session_refuse(s, why);
    session_drop(s, WIRE_BYE_DISCARDED);
    standby_finish(s, why);
}

static int on_disks(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct standby_shell *s = user;
    struct applier_report report;
    struct applier_mark mark;
    uint64_t count;

    (void)!read(fd, &count, sizeof(count)); /* only wakes us */
    while (s->applier && applier_mark_get(s->applier, &mark)) {
        answer_mark(s, &mark);
        range_list_free(&mark.differing);
    }
    if (!s->applier)
        return 0;
    applier_report_get(s->applier, &report);
    if (report.error)
        disks_failed(s, report.text);
    return 0;
}

uint64_t standby_disks_durable(const struct standby_shell *s)
{
    struct applier_report report;

    if (!s->applier)
        return 0;
    applier_report_get(s->applier, &report);
    return report.durable_epoch;
}

int standby_disks_open(struct standby_shell *s, struct receiver_disks *ret_disks, struct err *err)
{
    const struct applier_callbacks callbacks = {.on_consistent = on_consistent, .user = s};
    struct disks *d = s->body->disks;
    int r;

    *ret_disks = (struct receiver_disks){.n_disks = 0};
    if (!d)
        return 0;
    r = applier_new(d->images, d->n, d->redo, APPLIER_LIMIT_BYTES, d->notify_fd, &callbacks,
                    &s->applier);
    if (r < 0)
        return err_sys(err, r, "disks");
    d->redo = NULL; /* the applier's */
    *ret_disks = (struct receiver_disks){
        .applier = s->applier,
        .sizes = d->sizes,
        .n_disks = d->n,
        .limit_bytes = EPOCH_LIMIT_BYTES,
        .on_seeding = on_seeding,
        .user = s,
    };
    r = sd_event_add_io(s->event, &s->disks_source, d->notify_fd, EPOLLIN, on_disks, s);
    return r < 0 ? err_sys(err, r, "event loop") : 0;
}
