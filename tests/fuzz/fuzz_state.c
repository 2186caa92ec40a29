/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "disk/map.h"
#include "disk/record_file.h"

/* Small files of a host's state that it reads when it starts. The first byte chooses: an activation
 * record, or a disk's dirty map whose header's checksum is put right. */

enum {
    HEADER_BYTES = 88, /* of a map */
    DISK_BYTES = 1 << 20,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(int ok)
{
    if (!ok)
        abort();
}

static int new_file(const uint8_t *data, size_t n, char path[static 32])
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    require(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    (void)snprintf(path, 32, "/proc/self/fd/%d", fd);
    return fd;
}

static void fuzz_record(const uint8_t *data, size_t n)
{
    struct copy_record record;
    struct err err = {""};
    char path[32];
    int fd = new_file(data, n, path);

    if (copy_record_load(path, &record, &err) < 0) {
        require(err.text[0] != '\0');
    } else {
        require(record.term <= INT64_MAX && record.epoch <= INT64_MAX);
        require((record.role == COPY_STANDBY || record.role == COPY_SYNCING) ==
                wire_name_valid(record.peer));
    }
    close(fd);
}

/* A map that is not as it should be is made anew, and not trusted; any other is used within its
 * disk. */
static void fuzz_map(const uint8_t *data, size_t n)
{
    uint64_t offset, n_bytes, from = 0, dirty = 0, sum;
    uint8_t file[8192] = {0};
    struct disk_map *map;
    struct err err;
    char path[32];
    int fd;

    memcpy(file, data, n < sizeof(file) ? n : sizeof(file));
    sum = XXH3_64bits(file, HEADER_BYTES - 8);
    for (int i = 0; i < 8; i++)
        file[HEADER_BYTES - 8 + i] = (uint8_t)(sum >> 8 * i);
    fd = new_file(file, n < sizeof(file) ? n : sizeof(file), path);
    require(disk_map_open(path, DISK_BYTES, &map, &err) == 0);
    while (disk_map_next(map, from, &offset, &n_bytes)) {
        require(offset >= from && n_bytes > 0 && offset < DISK_BYTES &&
                n_bytes <= DISK_BYTES - offset);
        from = offset + n_bytes;
        dirty += n_bytes;
    }
    require(dirty == disk_map_dirty_bytes(map));
    disk_map_mark(map, UINT64_MAX - 10, UINT64_MAX);
    disk_map_close(map);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0)
        return 0;
    if (data[0] & 1)
        fuzz_map(data + 1, n - 1);
    else
        fuzz_record(data + 1, n - 1);
    return 0;
}
