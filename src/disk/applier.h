/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_APPLIER_H
#define US_DISK_APPLIER_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/image.h"
#include "disk/log.h"
#include "disk/redo.h"

/* The standby's disk side: takes whole epochs from the receiver, keeps them in the redo log, and carries
 * them out on the images in a thread of its own once they are ordered.
 *
 * Seeding epochs (term 0) are nobody's recovery point: they bypass the redo log. The first epoch with a
 * term makes the copy consistent: on_consistent is called by the thread after the images were synced and before
 * that epoch is on stable storage in the log, and must write the activation record and reset the maps. */

struct applier;

struct applier_callbacks {
    /* In the applier's thread; may block. A negative errno ends the copy as a disk error does. */
    int (*on_consistent)(void *user, uint64_t epoch, uint64_t term);
    void *user;
};

struct applier_difference { /* a DIGEST that did not match */
    uint8_t disk;
    uint64_t offset, n_bytes;
};

/* A MARK that was reached, with what differed since the mark before. */
struct applier_mark {
    uint64_t number;
    uint32_t n; /* neighbours are joined; at most APPLIER_DIFFERENCES_MAX, then `more` */
    bool more;
    struct applier_difference *differences; /* n; the receiver of the mark frees them */
};

enum { APPLIER_DIFFERENCES_MAX = 65536 };

struct applier_report {
    uint64_t durable_epoch; /* everything up to it survives the loss of power here */
    uint64_t applied_epoch;
    uint64_t applied_bytes;
    int error; /* negative errno: the copy is worthless from now on */
    char text[256];
};

/* images: borrowed. redo: taken on success, already recovered. notify_fd: an eventfd (borrowed), written when the report changes or a
 * mark was reached. limit_bytes: of staged and unapplied records; staging waits above it (never for an epoch alone). */
int applier_new(const struct image *images, uint32_t n_images, struct redo *redo, uint64_t limit_bytes, int notify_fd,
                const struct applier_callbacks *callbacks, struct applier **ret_applier) US_MUST_CHECK;

/* The receiver's thread: an epoch is whole and verified; its records were checked. Appends it to the redo log
 * (term != 0), and syncs that when the epoch is flushed. The log is taken (emptied) on success. An epoch without records counts too.
 * 0, or a negative errno, which is also in the report. */
int applier_stage(struct applier *a, uint64_t epoch, uint64_t term, struct disk_log *log) US_MUST_CHECK;

/* The staged epochs up to this one are committed: carry them out. */
void applier_commit(struct applier *a, uint64_t epoch);

/* Waits until everything that was committed is on the images (in the page cache). What was staged only is dropped. */
void applier_drain(struct applier *a);

/* After a takeover, drained: syncs the images and empties the redo log, in the background; notify_fd tells when
 * applier_finished(). Until then the guest must not write (DISK_HELD). Nothing is staged any more. */
void applier_finish(struct applier *a);
bool applier_finished(struct applier *a);

/* The oldest mark not yet fetched. False: there is none. */
bool applier_mark_get(struct applier *a, struct applier_mark *ret_mark);
void applier_report_get(struct applier *a, struct applier_report *ret_report);

/* Ends the thread; what is committed and not applied stays in the redo log. NULL is allowed. */
void applier_close(struct applier *a);

#endif
