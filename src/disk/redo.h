/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_REDO_H
#define US_DISK_REDO_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/image.h"
#include "disk/log.h"

/* The redo log of a standby: a file with the epochs that are whole here and perhaps not yet on the
 * images, so that a crash at any instruction leaves, after redo_recover(), images that stand
 * exactly at the end of an epoch. The file, all integers little-endian:
 *
 *     at    bytes
 *     0     4096   header slot 0
 *     4096  4096   header slot 1
 *     8192  ...    epochs, each at a multiple of 4096
 *
 * A header slot. The log's header is the valid slot with the higher sequence number:
 *
 *     0     8      "undrsrdo"
 *     8     4      version, 1
 *     12    4      0
 *     16    8      sequence: one more than in the header before; its parity is the slot's number
 *     24    8      generation of the log's epochs
 *     32    8      start: where the log's first epoch is, a multiple of 4096
 *     40    64     the VM's name, NUL-padded
 *     104   3984   0
 *     4088  8      XXH3-64 of the bytes before
 *
 * An epoch:
 *
 *     0     8      "undrsepo"
 *     8     8      generation
 *     16    8      number of the epoch, higher than the one before
 *     24    8      pair term
 *     32    8      bytes of the body
 *     40    8      records in the body
 *     48    1      1: it contains a guest's flush
 *     49    7      0
 *     56    16     XXH3-128 of the body, canonical (big-endian)
 *     72    8      XXH3-64 of the bytes before
 *     80    ...    the body: packed records (disk/log.h)
 *
 * The log's end is where no whole epoch is: it is torn, or its generation is an older one. Epochs
 * begin at multiples of 4096 so that a block which is on stable storage is never written again.
 *
 * redo_append() writes behind the log's end. redo_reset() writes a header of the next generation,
 * which makes the log empty; redo_trim() one that starts later. Each goes to the slot that does not
 * count, and nothing that the header in force names is overwritten or given back. A crash leaves:
 *
 *     during        the file has                      recovery
 *     making it     PATH.new, perhaps                 it is made again
 *     append        a torn epoch behind the others    ignores it
 *     reset, trim   the slot torn: the older header   replays what the images have already; the
 *                                                     result does not depend on how often
 *     behind these  old epochs that no header names   ignores them; their space is used again
 *     recovery      what it had, or an empty log      replays, or has nothing to do
 *     a drop        the first ones gone, others not   ends in front of the first that is gone
 *
 * What a process left that died may be in the page cache only; recovery syncs the log before it
 * touches the images, so that a failure of power during recovery is one more crash of this table.
 *
 * A header is written only when the log is not empty. Hence a file with one damaged slot, whose
 * other slot names an empty log, was not left by a crash but was damaged later, and so was one with
 * an epoch newer than the header: both are refused. Damage in the middle of the epochs cannot be
 * told from a torn end.
 *
 * Threads: one may append or drop while another syncs or trims; none of that goes with a reset. */

struct redo;

/* A log that ends behind this is best reset soon: offsets in a file are bounded. */
#define REDO_LONG_BYTES (UINT64_C(16) << 30)

/* Opens and locks the log, or makes it. Blocks. A damaged header, another VM's log, a log in use
 * (-EBUSY) are errors that name the path. redo_recover() comes next, before anything else. */
int redo_open(const char *path, const char *vm, struct redo **ret_redo,
              struct err *err) US_MUST_CHECK;

/* Frees; what was appended stays in the file. NULL is allowed. */
void redo_close(struct redo *redo);

/* Borrowed, for texts. */
const char *redo_path(const struct redo *redo);

/* Applies every whole epoch of the log, in order, to the images, syncs them and starts the log
 * anew. All epochs are checked, their records against the images' sizes, before anything is
 * applied: on -EBADMSG (the log is damaged, or of other disks) the images are as they were.
 * *ret_epoch, *ret_term: of the last one applied; 0 when the log was empty. Blocks; takes the
 * memory of one epoch's records. */
int redo_recover(struct redo *redo, const struct image *images, uint32_t n_images,
                 uint64_t *ret_epoch, uint64_t *ret_term, struct err *err) US_MUST_CHECK;

/* Carries a record out on its image; a DIGEST or MARK changes nothing. It has passed
 * disk_record_check(). */
int redo_apply(const struct image *images, const struct disk_record *rec,
               const uint8_t *data) US_MUST_CHECK;

/* Appends an epoch. In the page cache when it returns 0. On an error (-ENOSPC ...) the log ends
 * where it did; the caller gives the copy up. */
int redo_append(struct redo *redo, uint64_t epoch, uint64_t term,
                const struct disk_log *log) US_MUST_CHECK;

/* Where the next epoch will be in the file: the place, for drop and trim, of what is appended next,
 * and the end of what was appended last. Grows until the log is reset. */
uint64_t redo_end(const struct redo *redo);

/* Everything appended so far is on stable storage when it returns 0. After an error every later
 * sync fails as well: the kernel reports a lost write only once. */
int redo_sync(struct redo *redo) US_MUST_CHECK;

/* Takes the epoch at that place back out of the log; those behind it must be dropped too, next. In
 * the page cache when it returns 0, on stable storage with the next sync or reset. */
int redo_drop(struct redo *redo, uint64_t place) US_MUST_CHECK;

/* Everything in front of that place is on the images, and they are synced: the log starts there
 * now. On stable storage when it returns 0; the space in front is given back. */
int redo_trim(struct redo *redo, uint64_t place) US_MUST_CHECK;

/* As redo_trim() for everything appended: the log is empty. A file that has grown is cut down. */
int redo_reset(struct redo *redo) US_MUST_CHECK;

#endif
