/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_COPIER_H
#define US_DISK_COPIER_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/journal.h"
#include "disk/server.h"

/* The copier: a thread that puts contents or digests of ranges of the disks into the journal while the
 * guest goes on writing. It holds a range's lock (disk/range.h) from reading it to appending its record, so
 * that the record stands at the right place among the guest's writes. */

struct copier;

enum copier_job { COPIER_COPY = 1, COPIER_DIGEST = 2 };

struct copier_range {
    uint8_t disk;
    uint64_t offset, n_bytes;
};

struct copier_progress {
    bool busy;
    int error;           /* negative errno of a read that failed; the job ended there. 0 = fine */
    uint64_t done_bytes; /* of the present or last job, holes included */
    uint64_t total_bytes;
};

/* server: whose images and range locks are used. notify_fd: eventfd (borrowed), written when a job ends. */
int copier_new(struct disk_server *server, struct journal *journal, int notify_fd,
               struct copier **ret_copier) US_MUST_CHECK;
/* Stops the job, ends the thread. NULL is allowed. */
void copier_free(struct copier *c);

/* Starts a job: COPY puts WRITE records, or ZERO (punch) for blocks that are all zero (holes are not read; with
 * skip_holes nothing is sent for them: the other copy is all holes); DIGEST puts a DIGEST for each DISK_DIGEST_UNIT, ranges widened to whole units. A MARK
 * with number `mark` (and DISK_SYNC when sync) ends it. ranges are copied. rate_bytes: per second of data read; 0 = as fast as
 * it goes. -EBUSY: one is running; -ENOMEM. */
struct copier_order {
    enum copier_job job;
    const struct copier_range *ranges;
    uint32_t n_ranges;
    bool skip_holes, sync;
    uint64_t mark;
    uint64_t rate_bytes;
};
int copier_start(struct copier *c, const struct copier_order *order) US_MUST_CHECK;
/* Ends the job early; returns when the thread has let go of it. The journal must not be full, or be stopped. */
void copier_stop(struct copier *c);
void copier_progress_get(struct copier *c, struct copier_progress *ret_progress);

#endif
