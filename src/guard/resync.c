/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/log.h"

/* Brings a standby's disks in step while the VM runs, one after the other (docs/disks.md, "Seeding
 * and resynchronisation"):
 *
 *   what the standby has        first        then
 *   all holes                   copy all     compare all
 *   the same full copy, known   copy what either side may have changed, compare that
 *   anything else               compare all
 *
 * What a comparison finds is copied and compared again. The journal runs from the beginning, so the
 * records of the guest's writes, the copies and the digests are one order, and comparing is exact.
 *
 * The copier works in a thread of its own; this file cuts the journal into seeding epochs and
 * decides what comes next, from the loop. */

enum {
    CUT_BYTES = 1 << 20,     /* of records: worth an epoch while seeding */
    ROUNDS_MAX = 5,          /* of copying differences; equal copies need none */
    TALKING_BYTES = 8 << 20, /* of records: worth an epoch while the guest has something to say */
};

static const uint8_t no_sync[DISK_SYNC_ID_BYTES];

/* ---- one disk after the other ---- */

static void fail(struct guard *g, const char *why)
{
    struct resync *s = &g->resync;

    (void)snprintf(s->error, sizeof(s->error), "%s: %s", g->body->spec.disks[s->disk].path, why);
    log_warning("resync: %s", s->error);
    link_broken(g, s->error);
}

static bool order(struct guard *g, enum copier_job job, bool skip_holes)
{
    struct resync *s = &g->resync;
    struct copier_order what = {
        .job = job,
        .ranges = s->work.v,
        .n_ranges = s->work.n,
        .skip_holes = skip_holes,
        .sync = job == COPIER_DIGEST,
        .mark = ++s->next_mark,
        .rate_bytes = g->body->spec.protect.copy_rate_bytes,
    };
    int r;

    s->phase = job == COPIER_COPY ? RESYNC_COPYING : RESYNC_COMPARING;
    s->mark = what.mark;
    s->answered = false;
    s->differing.n = 0;
    r = copier_start(s->copier, &what);
    if (r < 0)
        fail(g, strerror(-r));
    return r >= 0;
}

/* Where our copy and the standby's may differ, when both go back to the same full copy. */
static int collect_known(struct guard *g)
{
    struct resync *s = &g->resync;
    const struct disk_map *map = g->body->disks->maps[s->disk];
    const struct range_list *told = &s->told[s->disk];
    uint64_t at = 0, n;
    uint32_t i;
    int r = 0;

    while (r >= 0 && disk_map_next(map, at, &at, &n)) {
        r = range_list_add(&s->work, s->disk, at, n);
        at += n;
    }
    for (i = 0; r >= 0 && i < told->n; i++)
        r = range_list_add(&s->work, s->disk, told->v[i].offset, told->v[i].n_bytes);
    range_list_join(&s->work, 0);
    return r;
}

/* Decides how the present disk is brought in step, and begins. False: nothing needs to be done. */
static bool begin_disk(struct guard *g)
{
    struct resync *s = &g->resync;
    const struct wire_disk_copy *theirs = &g->link.ready.disk[s->disk];
    const struct disk_map *map = g->body->disks->maps[s->disk];
    uint64_t size = g->body->disks->sizes[s->disk];
    const char *path = g->body->spec.disks[s->disk].path;
    bool known = theirs->state == WIRE_COPY_KNOWN && disk_map_trusted(map) &&
                 memcmp(theirs->sync, no_sync, sizeof(no_sync)) != 0 &&
                 memcmp(theirs->sync, disk_map_sync(map), sizeof(no_sync)) == 0;

    s->work.n = 0;
    s->rounds = 0;
    fault_point("guard.resync-disk");
    if ((known ? collect_known(g) : range_list_add(&s->work, s->disk, 0, size)) < 0) {
        fail(g, "out of memory");
        return true;
    }
    log_info("%s: %s, %llu KiB", path,
             known                              ? "copying what may differ"
             : theirs->state == WIRE_COPY_EMPTY ? "copying all"
                                                : "comparing all",
             (unsigned long long)(range_list_bytes(&s->work) >> 10));
    if (!s->work.n)
        return false;
    (void)order(g, known || theirs->state == WIRE_COPY_EMPTY ? COPIER_COPY : COPIER_DIGEST,
                !known && theirs->state == WIRE_COPY_EMPTY);
    return true;
}

static void next_disk(struct guard *g)
{
    struct resync *s = &g->resync;

    for (s->disk++; s->disk < g->body->disks->n; s->disk++)
        if (begin_disk(g))
            return;
    s->phase = RESYNC_DONE;
    s->disk = 0;
    fault_point("guard.resync-done");
    log_info("disks in step");
}

/* The standby has compared: what differed is copied again. */
static void compared(struct guard *g)
{
    struct resync *s = &g->resync;
    struct range_list was = s->work;

    fault_point("guard.resync-compared");
    if (!s->differing.n) {
        next_disk(g);
        return;
    }
    if (++s->rounds > ROUNDS_MAX) {
        fail(g, "the standby's copy does not become equal");
        return;
    }
    s->work = s->differing;
    s->differing = was;
    (void)order(g, COPIER_COPY, false);
}

/* Cuts what has gathered in the journal as a seeding epoch, if it is worth it. */
static void cut(struct guard *g, bool copying)
{
    bool waiting;
    uint64_t open = journal_open_bytes(g->body->disks->journal, &waiting);

    if (!open || (copying && !waiting && open < CUT_BYTES) || !seed_may_cut(g))
        return;
    seed_begin_epoch(g);
    fault_point("guard.resync-cut");
    sender_end(g->sender);
}

bool resync_step(struct guard *g)
{
    struct resync *s = &g->resync;
    struct copier_progress progress;

    if (!g->body->disks || s->phase == RESYNC_DONE)
        return true; /* memory's seeding epochs carry the journal from now on */
    copier_progress_get(s->copier, &progress);
    cut(g, progress.busy);
    if (progress.busy)
        return false;
    if (progress.error) {
        fail(g, strerror(-progress.error));
    } else if (s->phase == RESYNC_COPYING) {
        s->copied_bytes[s->disk] += progress.done_bytes;
        (void)order(g, COPIER_DIGEST, false);
    } else if (s->answered) {
        compared(g);
    }
    return s->phase == RESYNC_DONE;
}

void resync_begin(struct guard *g)
{
    struct resync *s = &g->resync;

    if (!g->body->disks)
        return;
    journal_start(g->body->disks->journal);
    s->sync_begun = false;
    s->error[0] = '\0';
    memset(s->copied_bytes, 0, sizeof(s->copied_bytes));
    if (g->link.ready.n_disks != g->body->disks->n) {
        s->disk = 0;
        fail(g, "the standby does not say what it has of the disks");
        return;
    }
    s->disk = UINT32_MAX; /* before the first */
    next_disk(g);
}

/* ---- the journal's epochs ---- */

const struct disk_log *resync_cut(struct guard *g, uint64_t epoch, uint64_t term)
{
    struct disks *d = g->body->disks;
    uint32_t i;

    if (!d)
        return NULL;
    for (i = 0; term && i < d->n; i++) {
        if (g->resync.sync_begun)
            disk_map_cut(d->maps[i], epoch);
        else /* the copy is full with this epoch; the session's id is as good a name as any */
            disk_map_begin_sync(d->maps[i], epoch, g->link.session);
    }
    if (term)
        g->resync.sync_begun = true;
    return journal_cut(d->journal, epoch);
}

void resync_committed(struct guard *g, uint64_t epoch)
{
    if (g->body->disks)
        journal_acked(g->body->disks->journal, epoch);
}

void resync_durable(struct guard *g, uint64_t epoch)
{
    struct disks *d = g->body->disks;
    uint32_t i;

    for (i = 0; d && i < d->n; i++)
        disk_map_durable(d->maps[i], epoch);
}

bool resync_presses(struct guard *g, bool talking)
{
    uint64_t open, limit = ((uint64_t)g->config->disk_journal_mib << 20) / 2;
    bool waiting = false;

    if (!g->body->disks)
        return false;
    open = journal_open_bytes(g->body->disks->journal, &waiting);
    return waiting || open > (talking ? TALKING_BYTES : limit);
}

static void verify_failed(struct guard *g, const char *why)
{
    struct verify *v = &g->resync.verify;
    const struct disks *d = g->body->disks;

    if (!v->running)
        return;
    journal_pass(d->journal, true); /* or a copier that waits for room would not end */
    copier_stop(g->resync.copier);
    journal_pass(d->journal, d->phase != DISK_RUNNING);
    v->running = false;
    v->finished_at = (int64_t)time(NULL);
    (void)snprintf(v->error, sizeof(v->error), "%s", why);
}

void resync_rebase(struct guard *g)
{
    if (!g->body->disks)
        return;
    journal_rebase(g->body->disks->journal); /* digests are dropped by that */
    verify_failed(g, "the link to the standby broke");
}

void resync_end(struct guard *g)
{
    struct disks *d = g->body->disks;
    uint32_t i;

    if (!d)
        return;
    journal_stop(d->journal);
    fault_point("guard.resync-end");
    copier_stop(g->resync.copier);
    verify_failed(g, "the standby was lost");
    for (i = 0; i < d->n; i++)
        disk_map_abort_sync(d->maps[i]);
    g->resync.phase = RESYNC_OFF;
}

/* ---- what the standby tells ---- */

/* Adds them to a list of no more than `max` ranges. NULL, or what is wrong with them. */
static const char *take_ranges(struct range_list *to, uint32_t max, uint64_t size_bytes,
                               const struct wire_disk_ranges *told)
{
    uint32_t i;

    if (to->n + told->n > max)
        return "the standby speaks of too many ranges";
    for (i = 0; i < told->n; i++) {
        const struct wire_range *r = &told->range[i];

        if (r->offset + r->n_bytes > size_bytes)
            return "the standby speaks of more than the disk has";
        if (range_list_add(to, told->disk, r->offset, r->n_bytes) < 0)
            return "out of memory";
    }
    return NULL;
}

static void verify_ranges(struct guard *g, const struct wire_disk_ranges *told)
{
    struct verify *v = &g->resync.verify;
    const char *wrong = take_ranges(&v->differing, VM_DISKS_MAX * RANGES_TOLD_MAX,
                                    g->body->disks->sizes[told->disk], told);

    if (wrong) {
        verify_failed(g, wrong);
    } else if (told->last) {
        v->running = false;
        v->finished_at = (int64_t)time(NULL);
        log_info("verify: %u differing ranges", v->differing.n);
    }
}

void resync_ranges(struct guard *g, const struct wire_disk_ranges *told)
{
    struct resync *s = &g->resync;
    struct range_list *to = &s->differing;
    const char *wrong;

    if (!g->body->disks || told->disk >= g->body->disks->n) {
        link_broken(g, "the standby speaks of a disk that the VM does not have");
        return;
    }
    if (told->kind == WIRE_RANGES_DIFFER && s->verify.running && told->mark == s->verify.mark) {
        verify_ranges(g, told);
        return;
    }
    if (told->kind == WIRE_RANGES_DIRTY)
        to = &s->told[told->disk];
    else if (s->phase != RESYNC_COMPARING || told->mark != s->mark ||
             (told->n && told->disk != s->disk))
        return; /* of a copying job, or too late */
    wrong = take_ranges(to, RANGES_TOLD_MAX, g->body->disks->sizes[told->disk], told);
    if (wrong) {
        link_broken(g, wrong);
    } else if (told->last) {
        s->answered = true;
        seed_continue(g);
    }
}

void resync_connect(struct guard *g)
{
    uint32_t i;

    for (i = 0; i < VM_DISKS_MAX; i++)
        g->resync.told[i].n = 0;
}

/* ---- what operators ask ---- */

enum { DIFFERING_MAX = 1000 }; /* told */

static json_t *verify_json(const struct guard *g, const struct copier_progress *now)
{
    const struct verify *v = &g->resync.verify;
    json_t *differing = json_array(), *verify;
    uint64_t done = now->done_bytes; /* then: of the disk in work */
    uint32_t i;

    for (i = 0; i < v->differing.n && i < DIFFERING_MAX; i++) {
        const struct disk_range *r = &v->differing.v[i];

        (void)json_array_append_new(differing, json_pack("{s:i, s:I, s:I}", "disk", (int)r->disk,
                                                         "offset", (json_int_t)r->offset, "bytes",
                                                         (json_int_t)r->n_bytes));
    }
    for (i = 0; i + 1 < g->body->disks->n && done >= g->body->disks->sizes[i]; i++)
        done -= g->body->disks->sizes[i];
    verify = json_pack("{s:b, s:i, s:I, s:I, s:o, s:b, s:I}", "running", v->running, "disk", (int)i,
                       "done_bytes", (json_int_t)now->done_bytes, "total_bytes",
                       (json_int_t)now->total_bytes, "differing", differing, "more",
                       v->differing.n > DIFFERING_MAX, "finished_at", (json_int_t)v->finished_at);
    if (v->error[0])
        (void)json_object_set_new(verify, "error", json_string(v->error));
    return verify;
}

static const char *disk_state(const struct guard *g, uint32_t i)
{
    const struct resync *s = &g->resync;

    if (s->phase == RESYNC_OFF)
        return s->error[0] && s->disk == i ? "failed" : "alone";
    if (s->phase == RESYNC_DONE || i < s->disk)
        return "in step";
    if (i > s->disk)
        return "waiting";
    return s->phase == RESYNC_COPYING ? "copying" : "comparing";
}

json_t *resync_status(struct guard *g)
{
    const struct resync *s = &g->resync;
    const struct disks *d = g->body->disks;
    struct copier_progress now;
    json_t *list = json_array(), *status;
    uint32_t i;

    copier_progress_get(s->copier, &now);
    for (i = 0; i < d->n; i++) {
        bool here = s->disk == i && (s->phase == RESYNC_COPYING || s->phase == RESYNC_COMPARING);
        uint64_t copied = s->copied_bytes[i];

        if (here && s->phase == RESYNC_COPYING)
            copied += now.done_bytes;
        (void)json_array_append_new(
            list,
            json_pack("{s:s, s:I, s:s, s:I, s:I, s:I, s:I}", "path", g->body->spec.disks[i].path,
                      "size_bytes", (json_int_t)d->sizes[i], "state", disk_state(g, i),
                      "done_bytes", (json_int_t)(here ? now.done_bytes : 0), "total_bytes",
                      (json_int_t)(here ? now.total_bytes : 0), "copied_bytes", (json_int_t)copied,
                      "dirty_bytes", (json_int_t)disk_map_dirty_bytes(d->maps[i])));
    }
    status = json_pack("{s:o}", "disks", list);
    if (s->verify.mark)
        (void)json_object_set_new(status, "verify", verify_json(g, &now));
    return status;
}

void resync_request_verify(struct guard *g, struct control_request *req)
{
    struct resync *s = &g->resync;
    struct verify *v = &s->verify;
    const char *vm = g->body->spec.name;
    json_int_t rate = json_integer_value(json_object_get(control_body(req), "rate_bytes"));
    uint32_t i;
    int r = 0;

    if (!g->body->disks) {
        control_fail(req, "%s: has no disks", vm);
        return;
    }
    if (g->core.state != PRIMARY_PROTECTED || v->running) {
        control_fail(req,
                     v->running ? "%s: its disks are being compared already"
                                : "%s: is not protected: there is nothing to compare with",
                     vm);
        return;
    }
    s->work.n = 0;
    for (i = 0; r >= 0 && i < g->body->disks->n; i++)
        r = range_list_add(&s->work, i, 0, g->body->disks->sizes[i]);
    if (r >= 0) {
        struct copier_order order = {
            .job = COPIER_DIGEST,
            .ranges = s->work.v,
            .n_ranges = s->work.n,
            .mark = ++s->next_mark,
            .rate_bytes = rate ? (uint64_t)rate : g->body->spec.protect.copy_rate_bytes,
        };

        r = copier_start(s->copier, &order);
    }
    if (r < 0) {
        control_fail(req, "%s: %s", vm, strerror(-r));
        return;
    }
    range_list_free(&v->differing);
    *v = (struct verify){.running = true, .mark = s->next_mark};
    fault_point("guard.verify");
    control_reply(req, NULL);
}

/* ---- life ---- */

static int nothing(void *user)
{
    return 0;
}

static void open_disks(void *user, int result)
{
    const struct guard *g = user;

    disk_server_mode(g->body->disks->server, DISK_OPEN);
}

/* After a takeover: what the standby had of epochs is on the images, and the redo log empty. The
 * guest's writes are let through once the activation record, which was ordered at the takeover, is
 * written too. */
static void finish_takeover(struct guard *g)
{
    applier_close(take_ptr(g->takeover.applier));
    fault_point("guard.disks-open");
    if (background_run(g->body->disks->background, nothing, open_disks, g) < 0) {
        background_drain(g->body->disks->background);
        open_disks(g, 0);
    }
}

static void look_at_takeover(struct guard *g)
{
    struct applier_report report;

    applier_report_get(g->takeover.applier, &report);
    if (report.error) {
        /* Without an empty redo log the guest's writes could be undone one day: they fail, as they
         * would on a disk of its own that is broken. */
        log_error("the VM's disks cannot be written: %s", report.text);
        (void)snprintf(g->resync.error, sizeof(g->resync.error), "%s", report.text);
        disk_server_mode(g->body->disks->server, DISK_WAITING);
        applier_close(take_ptr(g->takeover.applier));
    } else if (applier_finished(g->takeover.applier)) {
        finish_takeover(g);
    }
}

static int on_disks(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct guard *g = user;
    struct copier_progress progress;
    uint64_t count;

    (void)!read(fd, &count, sizeof(count)); /* only wakes us */
    if (g->takeover.applier)
        look_at_takeover(g);
    if (journal_poisoned(g->body->disks->journal)) {
        g->link.poisoned = true; /* a record is missing: this session must not go on */
        link_broken(g, "out of memory for the disks' journal");
    }
    copier_progress_get(g->resync.copier, &progress);
    if (g->resync.verify.running && progress.error)
        verify_failed(g, strerror(-progress.error));
    seed_continue(g);
    return 0;
}

int resync_setup(struct guard *g, struct err *err)
{
    struct disks *d = g->body->disks;
    int r;

    if (!d)
        return 0;
    r = copier_new(d->server, d->journal, d->notify_fd, &g->resync.copier);
    if (r >= 0)
        r = sd_event_add_io(g->event, &g->resync.source, d->notify_fd, EPOLLIN, on_disks, g);
    return r < 0 ? err_sys(err, r, "disks") : 0;
}

void resync_free(struct guard *g)
{
    struct resync *s = &g->resync;
    uint32_t i;

    if (g->body && g->body->disks)
        journal_stop(g->body->disks->journal); /* the copier may wait for room */
    copier_free(s->copier);
    applier_close(g->takeover.applier);
    sd_event_source_disable_unref(s->source);
    range_list_free(&s->work);
    range_list_free(&s->differing);
    range_list_free(&s->verify.differing);
    for (i = 0; i < VM_DISKS_MAX; i++)
        range_list_free(&s->told[i]);
}
