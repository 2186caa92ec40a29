/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_IMAGE_H
#define US_DISK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* One copy of a disk at a host: a raw file or a block device. All functions block, and may be
 * called from any thread; concurrent overlapping calls are the caller's affair. I/O goes through
 * the page cache. Ranges lie inside the disk: the caller has checked that. */

struct image {
    int fd;
    uint64_t size_bytes;
    bool is_block;
    bool read_only; /* opened read-only: write and zero return -EROFS */
    bool can_punch;
    char path[256];
};

struct image_open {
    const char *path;    /* borrowed */
    uint64_t size_bytes; /* that it must have; 0 = whatever it has. A multiple of 512 */
    bool create;         /* a file that is missing is made, sparse (size_bytes is not 0) */
    bool read_only;
};

/* Opens and locks an image: for one process at a time, or for several that only read; -EBUSY says
 * that another one has it. *ret_created: it was made now, and is all holes. -EINVAL: its size or
 * kind is wrong. Errors name the path and what is the matter. */
int image_open(const struct image_open *how, struct image *ret_image, bool *ret_created,
               struct err *err) US_MUST_CHECK;
void image_close(struct image *image);

/* All of n bytes, or -errno. */
int image_read(const struct image *image, void *buf, uint64_t n, uint64_t offset) US_MUST_CHECK;
int image_write(const struct image *image, const void *buf, uint64_t n,
                uint64_t offset) US_MUST_CHECK;

/* All of n bytes if they are in the page cache; does not block. -EAGAIN: use image_read(). */
int image_read_cached(const struct image *image, void *buf, uint64_t n,
                      uint64_t offset) US_MUST_CHECK;

/* Makes the range read as zeros; punch: gives its space back if possible. Without help from the
 * file system it writes zeros. 0 or -errno. */
int image_zero(const struct image *image, uint64_t offset, uint64_t n, bool punch) US_MUST_CHECK;

/* True when image_zero(punch) can give space back (else a discard is better ignored). */
bool image_can_punch(const struct image *image);

/* Everything written before is on stable storage when it returns 0 (fdatasync). After an error that
 * is not certain any more, whatever later calls return. */
int image_sync(const struct image *image) US_MUST_CHECK;

/* The next stretch at or after `from` that may hold data: *ret_start, *ret_end. A block device is
 * all data. Returns 1; 0 when only holes follow; -errno. */
int image_next_data(const struct image *image, uint64_t from, uint64_t *ret_start,
                    uint64_t *ret_end) US_MUST_CHECK;

#endif
