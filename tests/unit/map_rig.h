/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_MAP_RIG_H
#define US_TESTS_MAP_RIG_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk/log.h"
#include "disk/map.h"
#include "unit.h"

/* The file of a dirty map in a folder of its own. */

/* A page of a half covers 128 MiB; the last block is cut off. */
enum { BLOCKS = 3 * 32768 + 100, BLOCK = DISK_BLOCK_BYTES };
static const uint64_t disk_bytes = (uint64_t)BLOCKS * BLOCK - 512;

static const uint8_t id_a[DISK_SYNC_ID_BYTES] = "copy A", id_b[DISK_SYNC_ID_BYTES] = "copy B";
static const uint8_t none[DISK_SYNC_ID_BYTES];

struct rig {
    char folder[64], path[128];
};

static inline int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));

    (void)snprintf(rig->folder, sizeof(rig->folder), "/tmp/disk-map-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    (void)snprintf(rig->path, sizeof(rig->path), "%s/map", rig->folder);
    *state = rig;
    return 0;
}

static inline int teardown(void **state)
{
    struct rig *rig = *state;

    (void)unlink(rig->path);
    (void)rmdir(rig->folder);
    free(rig);
    return 0;
}

static inline struct disk_map *open_sized(const struct rig *rig, uint64_t size_bytes)
{
    struct disk_map *map;
    struct err err = {{0}};

    if (disk_map_open(rig->path, size_bytes, &map, &err))
        fail_msg("%s", err.text);
    return map;
}

static inline struct disk_map *open_map(const struct rig *rig)
{
    return open_sized(rig, disk_bytes);
}

/* Its copy is the id's, and exactly the range is marked (nothing when n_bytes is 0). */
static inline void expect(const struct disk_map *map, const uint8_t *id, uint64_t offset,
                          uint64_t n_bytes)
{
    uint64_t got_offset, got_bytes;

    assert_int_equal(disk_map_trusted(map), id != none);
    assert_memory_equal(disk_map_sync(map), id, DISK_SYNC_ID_BYTES);
    assert_int_equal(disk_map_dirty_bytes(map), n_bytes);
    assert_int_equal(disk_map_next(map, 0, &got_offset, &got_bytes), n_bytes != 0);
    if (n_bytes) {
        assert_int_equal(got_offset, offset);
        assert_int_equal(got_bytes, n_bytes);
    }
}

/* The map as a standby's that was just completed, and then marked. */
static inline struct disk_map *map_with_mark(const struct rig *rig, uint64_t offset,
                                             uint64_t n_bytes)
{
    struct disk_map *map = open_map(rig);

    assert_int_equal(disk_map_reset(map, id_a, NULL), 0);
    disk_map_mark(map, offset, n_bytes);
    return map;
}

/* As map.c has it. */
enum { AT_CLEAN = 12, AT_BOOT = 40, AT_CHECKSUM = 80, HEADER_BYTES = 88 };

static inline void read_header(const struct rig *rig, uint8_t *ret_header)
{
    int fd = open(rig->path, O_RDONLY | O_CLOEXEC);

    assert_int_equal(pread(fd, ret_header, HEADER_BYTES, 0), HEADER_BYTES);
    close(fd);
}

static inline void write_header(const struct rig *rig, const uint8_t *header)
{
    int fd = open(rig->path, O_WRONLY | O_CLOEXEC);

    assert_int_equal(pwrite(fd, header, HEADER_BYTES, 0), HEADER_BYTES);
    close(fd);
}

#endif
