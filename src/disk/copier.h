/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_COPIER_H
#define US_DISK_COPIER_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/journal.h"
#include "disk/range_list.h"
#include "disk/server.h"

/* The copier: a thread that puts contents or digests of ranges of the disks into the journal while
 * the guest goes on writing. It holds a range's lock (disk/range.h) from reading it to appending
 * its record, so that the record stands at the right place among the guest's writes. One main
 * thread calls the functions. */

struct copier;

enum copier_job { COPIER_COPY = 1, COPIER_DIGEST = 2 };

struct copier_progress {
    bool busy;
    int error;           /* negative errno: the job ended there without its MARK. 0 = fine */
    uint64_t done_bytes; /* of the present or last job, holes included */
    uint64_t total_bytes;
};

/* server (borrowed): whose images and range locks are used. notify_fd: eventfd (borrowed), written
 * when a job ends. 0 or a negative errno. */
int copier_new(struct disk_server *server, struct journal *journal, int notify_fd,
               struct copier **ret_copier) US_MUST_CHECK;
/* Stops the job as copier_stop() does, ends the thread. NULL is allowed. */
void copier_free(struct copier *c);

struct copier_order {
    enum copier_job job;
    const struct disk_range *ranges;   /* of disks that the server has; borrowed for the call */
    uint32_t n_ranges;                 /* may be 0: then only the MARK comes */
    bool skip_holes; /* COPY: the other copy was all holes when the journal started */
    bool sync;       /* the MARK has DISK_SYNC */
    uint64_t mark;
    uint64_t rate_bytes; /* of data read, per second; 0 = as fast as it goes */
};

/* Starts a job: COPY puts WRITE records, and ZERO with DISK_PUNCH for blocks that are all zero
 * (nothing for those with skip_holes); DIGEST puts a DIGEST for each DISK_DIGEST_UNIT, ranges
 * widened to whole units. Holes are not read. A MARK ends it. -EBUSY: one is running; -EINVAL: a
 * range that is not within its disk, nothing was started; -ENOMEM. */
int copier_start(struct copier *c, const struct copier_order *order) US_MUST_CHECK;
/* Ends the job early, without its MARK unless that has come already; returns when the thread has
 * let go of it. The journal must not be full, or be stopped or passing. */
void copier_stop(struct copier *c);
void copier_progress_get(struct copier *c, struct copier_progress *ret_progress);

#endif
