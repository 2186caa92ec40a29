/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_APPLIER_H
#define US_DISK_APPLIER_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/image.h"
#include "disk/log.h"
#include "disk/range_list.h"
#include "disk/redo.h"

/* The standby's disk side: takes whole epochs from the receiver, keeps them in the redo log, and
 * carries them out on the images, in threads of its own, once they are ordered.
 *
 *   receiver thread   applier_stage(): append to the log; sync it when the epoch is flushed
 *   main thread       applier_commit(), after the epoch was acknowledged
 *   us-apply          sync the log for all that are committed -> images, epoch by epoch
 *   us-sync           sync the images now and then -> cut the log down
 *
 * Seeding epochs (term 0) are nobody's recovery point: they bypass the redo log. The first epoch
 * with a term makes the copy consistent: on_consistent is called once the images hold, on stable
 * storage, all that came before it, and before that epoch counts as durable; it writes the
 * activation record and resets the maps. No seeding epoch comes after that. */

struct applier;

struct applier_callbacks {
    /* In the thread us-apply; may block. A negative errno ends the copy as a disk error does. */
    int (*on_consistent)(void *user, uint64_t epoch, uint64_t term);
    void *user;
};

enum {
    APPLIER_DIFFERENCES_MAX = 65536,
    APPLIER_MARKS_MAX = 16, /* reached and not yet fetched; more are an error */
};

/* A MARK that was reached, with what differed since the mark before. */
struct applier_mark {
    uint64_t number;
    bool more; /* there were more than APPLIER_DIFFERENCES_MAX */
    /* Of DIGESTs that did not match, neighbours joined; whoever fetches the mark frees the list. */
    struct range_list differing;
};

struct applier_report {
    uint64_t durable_epoch; /* everything up to it survives the loss of power here */
    uint64_t applied_epoch;
    uint64_t applied_bytes; /* of packed records */
    int error;              /* negative errno: the copy is worthless from now on */
    char text[256];
};

/* images: borrowed. redo: taken on success, recovered and empty. notify_fd: an eventfd (borrowed),
 * written when the report changes or a mark was reached. limit_bytes: of staged and unapplied
 * records; staging waits above it (never for an epoch alone, and only while there are committed
 * epochs to work on). The log is cut down when so much of it, at most 64 MiB, was applied. */
int applier_new(const struct image *images, uint32_t n_images, struct redo *redo,
                uint64_t limit_bytes, int notify_fd, const struct applier_callbacks *callbacks,
                struct applier **ret_applier) US_MUST_CHECK;

/* The receiver's thread: an epoch is whole and verified, and its records have passed
 * disk_record_check(). Appends them to the redo log (term != 0), and syncs that when the epoch is
 * flushed, but for epochs that are staged before the copy is consistent: those count as durable
 * once the report says so. The log is taken (emptied) on success. An epoch without records counts
 * too. Blocks on the disk. 0, or a negative errno, which is also in the report. */
int applier_stage(struct applier *a, uint64_t epoch, uint64_t term,
                  struct disk_log *log) US_MUST_CHECK;

/* The staged epochs up to this one are committed: carry them out. Does not block. */
void applier_commit(struct applier *a, uint64_t epoch);

/* Waits until everything that was committed is on the images (in the page cache), or has failed.
 * What was staged only is dropped, from the redo log too. Nothing is being staged meanwhile. */
void applier_drain(struct applier *a);

/* After a takeover, drained: syncs the images and empties the redo log, in the background;
 * notify_fd tells when applier_finished(), or the report has an error. Until then the guest must
 * not write (DISK_HELD). Nothing is staged any more. */
void applier_finish(struct applier *a);
bool applier_finished(struct applier *a);

/* The oldest mark not yet fetched. False: there is none. */
bool applier_mark_get(struct applier *a, struct applier_mark *ret_mark);

void applier_report_get(struct applier *a, struct applier_report *ret_report);

/* Ends the threads, frees; what is in the redo log stays there, applied or not. Nothing is being
 * staged meanwhile. Waits for the epoch in work. NULL is allowed. */
void applier_close(struct applier *a);

#endif
