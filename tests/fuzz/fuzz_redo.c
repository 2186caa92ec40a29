/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "disk/redo.h"

/* A redo log that a standby finds when it starts. The input is the file without its gaps: a byte of
 * options, the first 104 bytes of either header slot, then for each epoch a length (2 bytes) and
 * its bytes. With REPAIR all checksums are made right, so that what is behind them is tried too.
 *
 * Whatever is refused leaves the disks alone and says why; whatever is accepted leaves an empty
 * log. */

enum {
    REPAIR = 1,
    BLOCK = 4096,
    SLOT_BYTES = 104,
    EPOCH_BYTES = 80, /* its header */
    DISK_BYTES = 256 * 1024,
    EPOCHS_MAX = 16,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(int ok)
{
    if (!ok)
        abort();
}

static struct image new_file(uint64_t size_bytes)
{
    struct image file = {.fd = memfd_create("fuzz", MFD_CLOEXEC), .size_bytes = size_bytes};

    require(file.fd >= 0 && ftruncate(file.fd, (off_t)size_bytes) == 0);
    (void)snprintf(file.path, sizeof(file.path), "/proc/self/fd/%d", file.fd);
    return file;
}

static void put_le64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static void put_slot(const struct image *log, unsigned slot, const uint8_t *data, uint8_t options)
{
    uint8_t block[BLOCK] = {0};

    memcpy(block, data, SLOT_BYTES);
    if (options & REPAIR)
        put_le64(block + BLOCK - 8, XXH3_64bits(block, BLOCK - 8));
    require(image_write(log, block, BLOCK, slot * BLOCK) == 0);
}

static void put_epoch(const struct image *log, uint64_t place, const uint8_t *data, size_t n,
                      uint8_t options)
{
    uint8_t bytes[UINT16_MAX];
    XXH128_canonical_t digest;

    memcpy(bytes, data, n);
    if ((options & REPAIR) && n >= EPOCH_BYTES) {
        put_le64(bytes + 32, n - EPOCH_BYTES);
        XXH128_canonicalFromHash(&digest, XXH3_128bits(bytes + EPOCH_BYTES, n - EPOCH_BYTES));
        memcpy(bytes + 56, &digest, sizeof(digest));
        put_le64(bytes + 72, XXH3_64bits(bytes, 72));
    }
    require(image_write(log, bytes, n, place) == 0);
}

static void put_log(const struct image *log, const uint8_t *data, size_t n)
{
    uint64_t place = 2 * BLOCK;
    uint8_t options = data[0];
    size_t at = 1 + 2 * SLOT_BYTES;

    for (unsigned i = 0; i < 2; i++)
        put_slot(log, i, data + 1 + i * SLOT_BYTES, options);
    for (int i = 0; i < EPOCHS_MAX && n - at >= 2; i++) {
        size_t n_epoch = data[at] | (size_t)data[at + 1] << 8;

        at += 2;
        if (n_epoch > n - at)
            n_epoch = n - at;
        if (n_epoch)
            put_epoch(log, place, data + at, n_epoch, options);
        at += n_epoch;
        place += (n_epoch + BLOCK - 1) / BLOCK * BLOCK;
    }
}

static XXH64_hash_t disks_hash(const struct image *disks)
{
    static uint8_t bytes[2 * DISK_BYTES];

    for (unsigned i = 0; i < 2; i++)
        require(image_read(&disks[i], bytes + i * DISK_BYTES, DISK_BYTES, 0) == 0);
    return XXH3_64bits(bytes, sizeof(bytes));
}

static int recover(const struct image *log, const struct image *disks, uint64_t *ret_epoch)
{
    struct redo *redo;
    struct err err = {""};
    uint64_t term;
    int r = redo_open(log->path, "web", &redo, &err);

    if (r == 0) {
        r = redo_recover(redo, disks, 2, ret_epoch, &term, &err);
        redo_close(redo);
    }
    require(r == 0 || (r == -EBADMSG && strncmp(err.text, log->path, strlen(log->path)) == 0));
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct image log, disks[2];
    XXH64_hash_t before, after;
    uint64_t epoch;

    if (n < 1 + 2 * SLOT_BYTES)
        return 0;
    log = new_file(0);
    for (unsigned i = 0; i < 2; i++)
        disks[i] = new_file(DISK_BYTES);
    put_log(&log, data, n);
    before = disks_hash(disks);
    if (recover(&log, disks, &epoch) < 0) {
        require(disks_hash(disks) == before);
    } else {
        after = disks_hash(disks);
        require(epoch || after == before);
        require(recover(&log, disks, &epoch) < 0 || epoch == 0); /* < 0: an epoch of the future */
        require(disks_hash(disks) == after);
    }
    image_close(&log);
    for (unsigned i = 0; i < 2; i++)
        image_close(&disks[i]);
    return 0;
}
