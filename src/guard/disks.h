/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_DISKS_H
#define US_GUARD_DISKS_H

#include "core/copy.h"
#include "disk/journal.h"
#include "disk/map.h"
#include "disk/redo.h"
#include "disk/server.h"
#include "io/background.h"
#include "io/config.h"

/* A VM's disks at a host, whatever the host's role: images, dirty maps, the journal, the NBD
 * server, the standby's redo log and the activation record. Part of the body. A VM without disks
 * has none of this (NULL); functions that take NULL say so. */
struct disks {
    uint32_t n;
    struct image images[VM_DISKS_MAX];
    bool created[VM_DISKS_MAX]; /* the file was missing: all holes */
    struct disk_map *maps[VM_DISKS_MAX];
    uint64_t sizes[VM_DISKS_MAX]; /* bytes */
    struct journal *journal;
    struct disk_server *server;
    struct redo *redo;                       /* recovered; a standby's applier takes it */
    int notify_fd;                           /* eventfd: journal, copier or applier have news */
    struct background *background;           /* syncs that the loop must not wait for */
    char dir[VM_PATH_MAX + VM_NAME_MAX + 8]; /* STATE_DIR/disks/NAME */
    char sockets[VM_DISKS_MAX][108];
    const char *socket_list[VM_DISKS_MAX]; /* for the hypervisor */
    int listeners[VM_DISKS_MAX];           /* likewise; the server's */
    struct copy_record record;             /* as in the file */
    /* Flushes since the hypervisor was last asked for its guest's. */
    uint64_t guest_seen[VM_DISKS_MAX]; /* what it said then */
    int64_t synced[VM_DISKS_MAX]; /* carried out with a sync since then, up to the last resume */
    bool in_doubt;                /* some of those may have been the hypervisor's own */
    enum disk_phase phase;
};

/* What disks are opened for. */
enum disks_use {
    DISKS_START = 1, /* a VM that is to start: served in DISK_WAITING */
    DISKS_STANDBY,   /* likewise; read-only disks are opened for writing, since they are filled */
    DISKS_GO_ON, /* a VM that runs already, whose guard died: synced, so that none of the flushes
                  * that it answered is owed, and served in DISK_OPEN from the start */
};

/* Opens everything in own_dir (sockets) and the state directory; recovers the redo log; serves.
 * *ret_disks is NULL when the VM has none. Blocks on the disks. */
int disks_open(const struct host_config *config, const struct vm_spec *spec, const char *own_dir,
               enum disks_use use, sd_event *event, struct disks **ret_disks,
               struct err *err) US_MUST_CHECK;

/* After the hypervisor's end. NULL is allowed. */
void disks_close(struct disks *d);

/* Replaces the activation record, durably. Blocks on the disk. */
int disks_record(struct disks *d, const struct copy_record *record, struct err *err) US_MUST_CHECK;

/* Likewise, in the background and in order; a failure is logged. */
void disks_record_soon(struct disks *d, const struct copy_record *record);

/* The VM is about to start here: its writes are let through. Since nobody knows what was done to
 * the images while it did not run, the maps are not trusted any more. */
void disks_start(struct disks *d);

/* Where the VM is in a checkpoint. NULL is allowed. */
void disks_phase(struct disks *d, enum disk_phase phase);

/* The VM was told to stop and has not yet: flushes that were kept waiting for it are carried out,
 * in case it waits for them. NULL is allowed. */
void disks_let_flushes_go(struct disks *d);

/* True when a flush was answered without a sync since the VM runs. NULL is allowed. */
bool disks_deferred(const struct disks *d);

/* The VM stands still, a flush was deferred, and the hypervisor has told how many its guest has had
 * completed since launch (NULL: it could not): must the disks be synced before the VM goes on? */
bool disks_owe_sync(struct disks *d, const uint64_t *guest);

/* Makes good the flushes that were deferred: syncs all images, and marks the open epoch, with which
 * the guest can tell of them, as flushed. Blocks on the disks; any thread. */
int disks_sync(const struct disks *d) US_MUST_CHECK;

#endif
