/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_REDO_H
#define US_DISK_REDO_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/image.h"
#include "disk/log.h"

/* The redo log of a standby: a file with the epochs that are whole here and perhaps not yet on the images, so
 * that a crash at any instruction leaves, after redo_recover(), images that stand exactly at the end of
 * an epoch. (Here: the exact bytes of the file, and what each crash leaves.) Not thread-safe, but append and
 * sync may be called from another thread than reset as long as they do not overlap. */

struct redo;

/* Opens or makes the log. A damaged header of an existing file is an error that says what to do. */
int redo_open(const char *path, const char *vm, struct redo **ret_redo, struct err *err) US_MUST_CHECK;
void redo_close(struct redo *redo);

/* Applies every whole epoch of the log, in order, to the images; syncs them; starts the log anew. The
 * log's end is where the first record is torn, belongs to an earlier log, or fails its checksum.
 * Records are checked against the images' sizes before anything is applied. *ret_epoch, *ret_term: of the last one applied; 0 when the log was empty. */
int redo_recover(struct redo *redo, const struct image *images, uint32_t n_images,
                 uint64_t *ret_epoch, uint64_t *ret_term, struct err *err) US_MUST_CHECK;

/* Appends an epoch. In the page cache when it returns 0. An error (-ENOSPC ...) leaves the log as it was, or
 * with a torn tail that recovery ignores; the caller gives the copy up. */
int redo_append(struct redo *redo, uint64_t epoch, uint64_t term, const struct disk_log *log) US_MUST_CHECK;
/* On stable storage: everything appended so far. */
int redo_sync(struct redo *redo) US_MUST_CHECK;
/* Starts anew: everything appended is on the images, and they are synced. On stable storage when it returns. */
int redo_reset(struct redo *redo) US_MUST_CHECK;
uint64_t redo_bytes(const struct redo *redo);

#endif
