/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_SERVER_H
#define US_DISK_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "disk/image.h"
#include "disk/journal.h"
#include "disk/map.h"

/* The NBD server of one VM: one UNIX socket per disk, one thread for all, and a few helper threads
 * for what may take long. Protocol: disk/nbd.h. Its functions may be called from any thread but its
 * own. */

struct disk_server;

enum { DISK_SERVER_DISKS_MAX = 64, DISK_SERVER_CONNECTIONS_MAX = 16 /* per disk */ };

struct disk_server_disk {
    struct image *image;     /* borrowed */
    struct disk_map *map;    /* borrowed; NULL: no map is kept */
    const char *socket_path; /* made, mode 0600; a leftover is replaced; removed by close. Copied */
    bool read_only;
    int kept_socket; /* listens at socket_path already, which then is not removed either; 0: none.
                      * Borrowed during the call */
};

/* What requests are let through. */
enum disk_mode {
    DISK_WAITING = 1, /* standby: reads; writes are refused (nobody should send any) */
    DISK_HELD,        /* just taken over: writes and flushes wait */
    DISK_OPEN,
};

/* Where the VM is in a checkpoint; decides what a flush means (docs/disks.md, "Flush"). */
enum disk_phase {
    DISK_RUNNING = 0,
    DISK_STOPPING, /* a checkpoint was ordered: flushes are kept waiting */
    DISK_STOPPED,  /* the vCPUs stand still: flushes are answered and counted as deferred */
};

/* Starts serving in that mode, phase DISK_RUNNING. journal is borrowed. 0 or a negative errno; the
 * text names the disk's socket. */
int disk_server_open(const struct disk_server_disk *disks, uint32_t n_disks,
                     struct journal *journal, enum disk_mode mode, struct disk_server **ret_server,
                     struct err *err) US_MUST_CHECK;
/* Ends the threads and the sockets; what is being carried out is waited for. The journal must have
 * room, or be stopped or passed (journal.h). NULL is allowed. */
void disk_server_close(struct disk_server *s);

/* Changes the mode; what was held goes on when the mode is DISK_OPEN. */
void disk_server_mode(struct disk_server *s, enum disk_mode mode);
/* Changes the phase. A flush that the client sends after the return is judged by the new one. Going
 * back to RUNNING carries out, with a sync, flushes that are still kept waiting. Does not wait for
 * the server's threads, which may be waiting for room in the journal. */
void disk_server_phase(struct disk_server *s, enum disk_phase phase);

struct disk_flushes {
    uint64_t synced;   /* flushes carried out with a sync since RUNNING began; no FUA writes */
    uint64_t deferred; /* answered without one */
};
/* Counts of one disk since the last change to RUNNING. A flush is counted before its client knows
 * of its end. */
void disk_server_flushes(struct disk_server *s, uint32_t disk, struct disk_flushes *ret_flushes);

/* Takes the range of a disk (not empty), waiting for requests that change it to end; those that
 * come meanwhile wait. Short: hold it for one read and its record. One range at a time per thread,
 * and at most four threads. */
void disk_server_lock(struct disk_server *s, uint32_t disk, uint64_t offset, uint64_t n_bytes);
void disk_server_unlock(struct disk_server *s, uint32_t disk, uint64_t offset, uint64_t n_bytes);

/* The socket that listens for a disk. Borrowed. */
int disk_server_listener(const struct disk_server *s, uint32_t disk);

const struct image *disk_server_image(const struct disk_server *s, uint32_t disk);

#endif
