/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_MAP_H
#define US_DISK_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* The dirty map of one copy of a disk: which blocks of DISK_BLOCK_BYTES may have changed since the
 * full copy whose id is `sync` (docs/disks.md, "Seeding and resynchronisation"). A file that is mapped, so that
 * it survives the process; it survives the host's crash only as "not to be trusted".
 *
 * Two halves. `now` takes marks. A cut makes it `before` when that one is empty; map_durable() with
 * that cut's epoch or a later one empties `before`. The file's meaning is the union of both. */

struct disk_map;

enum { DISK_SYNC_ID_BYTES = 16 };

/* Opens or makes the map of a disk of that size. A map of another size, damaged, or of an earlier
 * boot without a proper end is made anew: it is then not trusted. Blocks briefly. */
int disk_map_open(const char *path, uint64_t size_bytes, struct disk_map **ret_map,
                  struct err *err) US_MUST_CHECK;
/* Writes it out as properly ended and frees it. NULL is allowed. */
void disk_map_close(struct disk_map *map);

/* True when marks are complete since the copy `sync`. */
bool disk_map_trusted(const struct disk_map *map);
const uint8_t *disk_map_sync(const struct disk_map *map); /* DISK_SYNC_ID_BYTES; all zero: none */

/* Any thread: the range is about to change. Lock-free, never fails. */
void disk_map_mark(struct disk_map *map, uint64_t offset, uint64_t n_bytes);

/* Main thread. An epoch was cut; marks made so far belong to it or earlier ones. */
void disk_map_cut(struct disk_map *map, uint64_t epoch);
/* The standby has everything up to that epoch on stable storage. */
void disk_map_durable(struct disk_map *map, uint64_t epoch);

/* Main thread. At the cut of `epoch` the standby has, with it, a full copy: its id is `sync`. When the epoch
 * is durable there (map_durable), what was marked before the cut is dropped and the id and trust are
 * written down. Until then the old id stands. */
void disk_map_begin_sync(struct disk_map *map, uint64_t epoch, const uint8_t *sync);
/* Drops the intention of begin_sync (the session ended first); marks are all kept. */
void disk_map_abort_sync(struct disk_map *map);

/* Standby: this copy is complete under that id and nothing is dirty; trusted. */
int disk_map_reset(struct disk_map *map, const uint8_t *sync, struct err *err) US_MUST_CHECK;

/* The next run of marked blocks at or after the byte `from`: *ret_offset, *ret_bytes (cut off at the disk's
 * end). False: there is none. */
bool disk_map_next(const struct disk_map *map, uint64_t from, uint64_t *ret_offset,
                   uint64_t *ret_bytes);
uint64_t disk_map_dirty_bytes(const struct disk_map *map);

#endif
