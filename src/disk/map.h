/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_MAP_H
#define US_DISK_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* The dirty map of one copy of a disk: which blocks of DISK_BLOCK_BYTES may have changed since the
 * full copy whose id is `sync` (docs/disks.md, "Seeding and resynchronisation"). A file that is
 * mapped, so that it survives the process; a crash of the host leaves it as "not to be trusted".
 *
 * Two halves. `now` takes marks. A cut makes it `before` when that one is empty; disk_map_durable()
 * with that cut's epoch or a later one empties `before`. The file's meaning is the union of both.
 *
 * Whether a standby follows this copy:
 *
 *     alone     at first. Cuts and durable epochs mean nothing: all marks are kept
 *     syncing   from begin_sync. All marks made before are in `before`; cuts mean nothing
 *     followed  from the durable epoch of begin_sync. Cuts and durable epochs drop marks
 *
 * abort_sync leads from everywhere to `alone`. */

struct disk_map;

enum { DISK_SYNC_ID_BYTES = 16 };

/* Opens or makes the map of a disk of that size. A map of another size, damaged, or of an earlier
 * boot without a proper end is made anew: it is then not trusted. Blocks for a sync of the file.
 * 0, or a negative errno with the path. */
int disk_map_open(const char *path, uint64_t size_bytes, struct disk_map **ret_map,
                  struct err *err) US_MUST_CHECK;
/* Writes it out as properly ended and frees it. The image was synced before, or a loss of power
 * could take writes from it that the map no longer knows. NULL is allowed. */
void disk_map_close(struct disk_map *map);
/* Frees it without that: the image could not be synced. It is trusted in this boot only. */
void disk_map_abandon(struct disk_map *map);

/* True when marks are complete since the copy `sync`. */
bool disk_map_trusted(const struct disk_map *map);
const uint8_t *disk_map_sync(const struct disk_map *map); /* DISK_SYNC_ID_BYTES; all zero: none */

/* Any thread: the range is about to change. Lock-free, never fails. What lies beyond the disk's end
 * is ignored. */
void disk_map_mark(struct disk_map *map, uint64_t offset, uint64_t n_bytes);

/* Main thread. An epoch was cut while the VM stood still and all its requests were answered: what
 * was marked so far has its records in this epoch or earlier ones. Must not be called for the cut
 * of a running VM: a request under way has marked already, and its record may come later. */
void disk_map_cut(struct disk_map *map, uint64_t epoch);
/* Main thread. The standby has everything up to that epoch on stable storage. */
void disk_map_durable(struct disk_map *map, uint64_t epoch);

/* Main thread, at a cut as in disk_map_cut(), which need not be called too: with this epoch the
 * standby has a full copy, whose id is `sync` (not all zero). When the epoch is durable there
 * (disk_map_durable), what was marked before the cut is dropped and the id is written down. Until
 * then the old id stands. */
void disk_map_begin_sync(struct disk_map *map, uint64_t epoch, const uint8_t *sync);
/* The session with the standby has ended, whether begin_sync came to its end or not; marks are all
 * kept. */
void disk_map_abort_sync(struct disk_map *map);

/* Standby: this copy is complete under that id and nothing is dirty; trusted. An id of zeros: it is
 * being overwritten with another copy, so the map is worthless. Nothing else is done with the map
 * meanwhile. 0, or a negative errno: the map is as before. */
int disk_map_reset(struct disk_map *map, const uint8_t *sync, struct err *err) US_MUST_CHECK;

/* Main thread. The next run of marked blocks at or after the byte `from`: *ret_offset, *ret_bytes
 * (cut off at the disk's end). False: there is none. */
bool disk_map_next(const struct disk_map *map, uint64_t from, uint64_t *ret_offset,
                   uint64_t *ret_bytes);
uint64_t disk_map_dirty_bytes(const struct disk_map *map);

#endif
