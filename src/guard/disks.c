/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/disks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/cleanup.h"
#include "disk/record_file.h"
#include "io/log.h"
#include "io/vm_process.h"

static int make_dirs(struct disks *d, const struct host_config *config, const char *vm,
                     struct err *err)
{
    char parent[VM_PATH_MAX + 8];

    (void)snprintf(parent, sizeof(parent), "%s/disks", config->state_dir);
    (void)snprintf(d->dir, sizeof(d->dir), "%s/%s", parent, vm);
    if (mkdir(parent, 0700) < 0 && errno != EEXIST)
        return err_sys(err, -errno, "%s", parent);
    if (mkdir(d->dir, 0700) < 0 && errno != EEXIST)
        return err_sys(err, -errno, "%s", d->dir);
    return 0;
}

static int open_disk(struct disks *d, uint32_t i, const struct vm_disk *spec, enum disks_use use,
                     struct err *err)
{
    bool standby = use == DISKS_STANDBY;
    struct image_open how = {
        .path = spec->path,
        .size_bytes = spec->size_bytes,
        /* An image that the VM has used, and that is missing now, is not replaced by an empty one.
         */
        .create = standby || (use == DISKS_START && d->record.role == COPY_NONE),
        .read_only = spec->read_only && !standby,
    };
    char path[sizeof(d->dir) + 16];
    int r;

    r = image_open(&how, &d->images[i], &d->created[i], err);
    if (r == -ENOENT && !how.create)
        return err_set(err, r,
                       "%s is missing (a disk that is new to this VM has to be made: "
                       "truncate -s %llu %s)",
                       spec->path, (unsigned long long)spec->size_bytes, spec->path);
    if (r < 0)
        return r;
    d->n = i + 1; /* to be closed */
    d->sizes[i] = d->images[i].size_bytes;
    (void)snprintf(path, sizeof(path), "%s/%u.map", d->dir, i);
    /* What is known of an image that was here is not true of one that was made in its place. */
    if (d->created[i] && unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, -errno, "%s", path);
    return disk_map_open(path, d->sizes[i], &d->maps[i], err);
}

static void record_path(const struct disks *d, char *path, size_t n)
{
    (void)snprintf(path, n, "%s/copy", d->dir);
}

/* What an earlier standby of this host had acknowledged and not yet carried out. */
static int recover(struct disks *d, const char *vm, struct err *err)
{
    char path[sizeof(d->dir) + 8];
    uint64_t epoch, term;
    int r;

    (void)snprintf(path, sizeof(path), "%s/redo", d->dir);
    r = redo_open(path, vm, &d->redo, err);
    if (r >= 0)
        r = redo_recover(d->redo, d->images, d->n, &epoch, &term, err);
    if (r >= 0 && epoch)
        log_info("the disks were brought up to epoch %llu of term %llu from the redo log",
                 (unsigned long long)epoch, (unsigned long long)term);
    return r;
}

/* The sockets that the hypervisor has kept listening since its guard died: it has connected to them
 * again, or will at once. A new socket it would find only when it tries again, after seconds. */
static void take_kept(const struct disks *d, const struct host_config *config, const char *vm,
                      struct disk_server_disk *served)
{
    CLEANUP_FD int pidfd = -1;
    pid_t pid;

    if (vm_process_find(config, vm, &pid, &pidfd) < 0)
        return;
    for (uint32_t i = 0; i < d->n; i++) {
        if (vm_process_kept(pidfd, i, d->sockets[i], &served[i].kept_socket) < 0)
            log_warning("disk %u: its socket was not kept", i);
    }
}

static int serve(struct disks *d, const struct host_config *config, const struct vm_spec *spec,
                 const char *own_dir, enum disk_mode mode, struct err *err)
{
    struct disk_server_disk served[VM_DISKS_MAX];
    uint32_t i;
    int r;

    for (i = 0; i < d->n; i++) {
        int n = snprintf(d->sockets[i], sizeof(d->sockets[i]), "%s/disk%u", own_dir, i);

        if (n < 0 || (size_t)n >= sizeof(d->sockets[i]))
            return err_set(err, -ENAMETOOLONG,
                           "%s: too long for a socket's path, use a shorter run_dir", own_dir);
        d->socket_list[i] = d->sockets[i];
        served[i] = (struct disk_server_disk){
            .image = &d->images[i],
            .map = d->maps[i],
            .socket_path = d->sockets[i],
            .read_only = spec->disks[i].read_only,
        };
    }
    if (mode == DISK_OPEN)
        take_kept(d, config, spec->name, served);
    r = disk_server_open(served, d->n, d->journal, mode, &d->server, err);
    for (i = 0; i < d->n; i++) {
        if (served[i].kept_socket)
            close(served[i].kept_socket);
        if (r == 0)
            d->listeners[i] = disk_server_listener(d->server, i);
    }
    return r;
}

static int open_all(struct disks *d, const struct host_config *config, const struct vm_spec *spec,
                    const char *own_dir, enum disks_use use, sd_event *event, struct err *err)
{
    char path[sizeof(d->dir) + 8];
    uint32_t i;
    int r;

    r = make_dirs(d, config, spec->name, err);
    record_path(d, path, sizeof(path));
    if (r >= 0)
        r = copy_record_load(path, &d->record, err);
    for (i = 0; r >= 0 && i < spec->n_disks; i++) {
        r = open_disk(d, i, &spec->disks[i], use, err);
        if (r < 0)
            err_prefix(err, "disks[%u]", i);
    }
    if (r >= 0)
        r = recover(d, spec->name, err);
    if (r < 0)
        return r;
    d->notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r = d->notify_fd < 0 ? -errno : background_new(event, &d->background);
    if (r >= 0)
        r = journal_new((uint64_t)config->disk_journal_mib << 20, d->notify_fd, &d->journal);
    if (r >= 0 && use == DISKS_GO_ON)
        r = disks_sync(d);
    if (r < 0)
        return err_sys(err, r, "disks");
    return serve(d, config, spec, own_dir, use == DISKS_GO_ON ? DISK_OPEN : DISK_WAITING, err);
}

int disks_open(const struct host_config *config, const struct vm_spec *spec, const char *own_dir,
               enum disks_use use, sd_event *event, struct disks **ret_disks, struct err *err)
{
    struct disks *d;
    int r;

    *ret_disks = NULL;
    if (!spec->n_disks)
        return 0;
    d = calloc(1, sizeof(*d));
    if (!d)
        return err_sys(err, -ENOMEM, "disks");
    d->notify_fd = -1;
    r = open_all(d, config, spec, own_dir, use, event, err);
    if (r < 0)
        disks_close(d);
    else
        *ret_disks = d;
    return r;
}

void disks_close(struct disks *d)
{
    uint32_t i;

    if (!d)
        return;
    if (d->journal)
        journal_stop(d->journal); /* nobody waits for room any more */
    disk_server_close(d->server);
    background_free(d->background);
    journal_free(d->journal);
    redo_close(d->redo);
    for (i = 0; i < d->n; i++) {
        if (image_sync(&d->images[i]) == 0) {
            disk_map_close(d->maps[i]);
        } else {
            log_error("%s: cannot be synced", d->images[i].path);
            disk_map_abandon(d->maps[i]);
        }
        image_close(&d->images[i]);
    }
    if (d->notify_fd >= 0)
        close(d->notify_fd);
    free(d);
}

void disks_start(struct disks *d)
{
    static const uint8_t none[DISK_SYNC_ID_BYTES];
    struct err err;
    uint32_t i;

    for (i = 0; i < d->n; i++)
        if (disk_map_reset(d->maps[i], none, &err) < 0)
            log_error("%s", err.text);
    disk_server_mode(d->server, DISK_OPEN);
}

/* ---- activation record ---- */

int disks_record(struct disks *d, const struct copy_record *record, struct err *err)
{
    char path[sizeof(d->dir) + 8];
    int r;

    background_drain(d->background); /* the order is what counts */
    record_path(d, path, sizeof(path));
    fault_point("disk.record");
    r = copy_record_store(path, record, err);
    fault_point("disk.recorded");
    if (r >= 0)
        d->record = *record;
    return r;
}

struct record_task {
    struct disks *disks;
    struct copy_record record;
};

static int store_record(void *user)
{
    struct record_task *task = user;
    char path[sizeof(task->disks->dir) + 8];
    struct err err;
    int r;

    record_path(task->disks, path, sizeof(path));
    r = copy_record_store(path, &task->record, &err);
    if (r < 0)
        log_error("the activation record is not up to date: %s", err.text);
    free(task);
    return r;
}

void disks_record_soon(struct disks *d, const struct copy_record *record)
{
    struct record_task *task = FAULTY_ALLOC("disk.record-task", malloc(sizeof(*task)));

    d->record = *record;
    if (task)
        *task = (struct record_task){d, *record};
    if (!task || background_run(d->background, store_record, NULL, task) < 0) {
        log_error("the activation record is not up to date: out of memory");
        free(task);
    }
}

/* ---- flushes ---- */

static void server_phase(struct disks *d, enum disk_phase phase)
{
    struct disk_flushes flushes;
    uint32_t i;

    for (i = 0; phase == DISK_RUNNING && d->phase != phase && i < d->n; i++) {
        disk_server_flushes(d->server, i, &flushes); /* the server counts anew from now on */
        d->synced[i] += (int64_t)flushes.synced;
    }
    /* The hypervisor's own flush, if it was kept waiting, will be counted like the guest's. */
    d->in_doubt |= phase == DISK_RUNNING && d->phase == DISK_STOPPING;
    d->phase = phase;
    disk_server_phase(d->server, phase);
}

void disks_let_flushes_go(struct disks *d)
{
    if (d)
        server_phase(d, DISK_RUNNING);
}

void disks_phase(struct disks *d, enum disk_phase phase)
{
    if (!d)
        return;
    /* While the hypervisor drains, requests must get through even when the journal is full. */
    journal_pass(d->journal, phase != DISK_RUNNING);
    server_phase(d, phase);
}

bool disks_deferred(const struct disks *d)
{
    struct disk_flushes flushes;
    uint32_t i;

    for (i = 0; d && i < d->n; i++) {
        disk_server_flushes(d->server, i, &flushes);
        if (flushes.deferred)
            return true;
    }
    return false;
}

bool disks_owe_sync(struct disks *d, const uint64_t *guest)
{
    struct disk_flushes flushes;
    bool owe = !guest;
    uint32_t i;

    for (i = 0; guest && i < d->n; i++) {
        int64_t completed = (int64_t)(guest[i] - d->guest_seen[i]);

        disk_server_flushes(d->server, i, &flushes);
        /* More than were synced for: the one that was not may be the guest's. */
        if (flushes.deferred && (d->in_doubt || completed > d->synced[i] + (int64_t)flushes.synced))
            owe = true;
        d->guest_seen[i] = guest[i];
        d->synced[i] = -(int64_t)flushes.synced; /* which will be added on resuming */
    }
    if (guest)
        d->in_doubt = false;
    return owe;
}

int disks_sync(const struct disks *d)
{
    uint32_t i;
    int r = 0;

    for (i = 0; r >= 0 && i < d->n; i++)
        r = image_sync(&d->images[i]);
    if (r >= 0)
        journal_flushed(d->journal);
    return r;
}
