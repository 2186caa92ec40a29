/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/image.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/durable.h"

enum { ZEROS_BYTES = 256 * 1024 };

/* What an interrupted creation left, an empty file, is made as a missing one is. */
static int create_file(const struct image_open *how, int fd, struct err *err)
{
    int r;

    if (FAULTY("disk.image-make", ftruncate(fd, (off_t)how->size_bytes)) < 0)
        return err_sys(err, -errno, "%s: cannot be made %llu bytes long", how->path,
                       (unsigned long long)how->size_bytes);
    r = fsync(fd) < 0 ? -errno : durable_sync_name(how->path);
    return r < 0 ? err_sys(err, r, "%s", how->path) : 0;
}

/* A lock of the whole file conflicts with those that QEMU and its tools take of single bytes, so
 * that they too keep away from an image in use, and we from theirs. */
static int lock_image(const struct image *image, struct err *err)
{
    struct flock lock = {.l_type = image->read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(image->fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return err_set(err, -EBUSY, "%s: another process uses it", image->path);
    return err_sys(err, -errno, "%s: cannot be locked", image->path);
}

static int find_size(struct image *image, mode_t mode, off_t file_bytes, struct err *err)
{
    if (S_ISREG(mode)) {
        image->size_bytes = (uint64_t)file_bytes;
        return 0;
    }
    if (!S_ISBLK(mode))
        return err_set(err, -EINVAL, "%s: neither a file nor a block device", image->path);
    image->is_block = true;
    if (ioctl(image->fd, BLKGETSIZE64, &image->size_bytes) < 0)
        return err_sys(err, -errno, "%s: its size cannot be read", image->path);
    return 0;
}

static int check_size(const struct image *image, uint64_t wanted, struct err *err)
{
    if (wanted && image->size_bytes != wanted)
        return err_set(err, -EINVAL, "%s: has %llu bytes and should have %llu", image->path,
                       (unsigned long long)image->size_bytes, (unsigned long long)wanted);
    if (image->size_bytes == 0 || image->size_bytes % 512)
        return err_set(err, -EINVAL, "%s: has %llu bytes, which is no multiple of 512%s",
                       image->path, (unsigned long long)image->size_bytes,
                       image->size_bytes ? "" : " that a disk can have");
    return 0;
}

/* A block device gives space back when it can zero by itself; of a partition, when its disk can. */
static bool block_can_punch(dev_t device)
{
    for (int i = 0; i < 2; i++) {
        char path[96];
        unsigned long long max = 0;
        FILE *file;
        int n;

        (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/write_zeroes_max_bytes",
                       major(device), minor(device), i ? "../" : "");
        file = fopen(path, "re");
        if (!file)
            continue;
        n = fscanf(file, "%llu", &max);
        (void)fclose(file); /* was only read */
        return n == 1 && max > 0;
    }
    return false;
}

/* Behind the end of a file there is nothing to punch, so asking for it there only tells whether the
 * file system can. */
static bool file_can_punch(const struct image *image)
{
    return fallocate(image->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)image->size_bytes, 4096) == 0;
}

static int open_path(const struct image_open *how, bool *ret_created)
{
    /* O_EXCL refuses a block device that is mounted or part of another. */
    int flags = O_CLOEXEC | (how->read_only ? O_RDONLY : O_RDWR);
    struct stat st;
    int fd;

    *ret_created = false;
    if (stat(how->path, &st) == 0 && S_ISBLK(st.st_mode) && !how->read_only)
        flags |= O_EXCL;
    fd = FAULTY("disk.image-open", open(how->path, flags));
    if (fd < 0 && errno == ENOENT && how->create) {
        fd = open(how->path, flags | O_CREAT | O_EXCL, 0600);
        *ret_created = fd >= 0;
    }
    return fd < 0 ? -errno : fd;
}

static int open_error(const char *path, int r, struct err *err)
{
    if (r == -EBUSY)
        return err_set(err, r, "%s: mounted, or another process uses it", path);
    return err_sys(err, r, "%s", path);
}

int image_open(const struct image_open *how, struct image *ret_image, bool *ret_created,
               struct err *err)
{
    struct image image = {.read_only = how->read_only};
    CLEANUP_FD int fd = -1;
    struct stat st;
    bool created;
    int r;

    if (strlen(how->path) >= sizeof(image.path))
        return err_set(err, -ENAMETOOLONG, "%.64s...: the path is too long", how->path);
    memcpy(image.path, how->path, strlen(how->path) + 1);
    image.fd = fd = open_path(how, &created);
    if (fd < 0)
        return open_error(how->path, fd, err);
    if (fstat(fd, &st) < 0)
        return err_sys(err, -errno, "%s", how->path);
    r = find_size(&image, st.st_mode, st.st_size, err);
    if (r == 0)
        r = lock_image(&image, err);
    if (r == 0 && how->create && !image.is_block && image.size_bytes == 0) {
        created = true;
        image.size_bytes = how->size_bytes;
        r = create_file(how, fd, err);
    }
    if (r == 0)
        r = check_size(&image, how->size_bytes, err);
    if (r < 0)
        return r;
    image.can_punch = image.is_block ? block_can_punch(st.st_rdev) : file_can_punch(&image);
    image.fd = take_fd(&fd);
    *ret_image = image;
    *ret_created = created;
    return 0;
}

void image_close(struct image *image)
{
    close(image->fd);
    image->fd = -1;
}

int image_read(const struct image *image, void *buf, uint64_t n, uint64_t offset)
{
    uint8_t *at = buf;

    while (n > 0) {
        ssize_t r = FAULTY("disk.image-read", pread(image->fd, at, n, (off_t)offset));

        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return r < 0 ? -errno : -EIO; /* the file is shorter than it was */
        at += r;
        offset += (uint64_t)r;
        n -= (uint64_t)r;
    }
    return 0;
}

int image_read_cached(const struct image *image, void *buf, uint64_t n, uint64_t offset)
{
    struct iovec iov = {buf, n};
    ssize_t r = FAULTY("disk.image-cached", preadv2(image->fd, &iov, 1, (off_t)offset, RWF_NOWAIT));

    return r == (ssize_t)n ? 0 : -EAGAIN; /* image_read() finds out what it is */
}

int image_write(const struct image *image, const void *buf, uint64_t n, uint64_t offset)
{
    const uint8_t *at = buf;

    if (image->read_only)
        return -EROFS;
    while (n > 0) {
        ssize_t r = FAULTY("disk.image-write", pwrite(image->fd, at, n, (off_t)offset));

        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return r < 0 ? -errno : -EIO;
        at += r;
        offset += (uint64_t)r;
        n -= (uint64_t)r;
    }
    return 0;
}

static int write_zeros(const struct image *image, uint64_t offset, uint64_t n)
{
    static const uint8_t zeros[ZEROS_BYTES];

    while (n > 0) {
        uint64_t piece = n < sizeof(zeros) ? n : sizeof(zeros);
        int r = image_write(image, zeros, piece, offset);

        if (r < 0)
            return r;
        offset += piece;
        n -= piece;
    }
    return 0;
}

/* False: it cannot be done that way here, or not with these bounds. */
static bool allocate(const struct image *image, int mode, uint64_t offset, uint64_t n, int *ret_r)
{
    int r;

    do
        r = FAULTY("disk.image-zero",
                   fallocate(image->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)n));
    while (r < 0 && errno == EINTR);
    *ret_r = r < 0 ? -errno : 0;
    return *ret_r != -EOPNOTSUPP && *ret_r != -EINVAL;
}

int image_zero(const struct image *image, uint64_t offset, uint64_t n, bool punch)
{
    int r;

    if (image->read_only)
        return -EROFS;
    if (n == 0)
        return 0;
    if ((punch && allocate(image, FALLOC_FL_PUNCH_HOLE, offset, n, &r)) ||
        allocate(image, FALLOC_FL_ZERO_RANGE, offset, n, &r))
        return r;
    return write_zeros(image, offset, n);
}

bool image_can_punch(const struct image *image)
{
    return image->can_punch;
}

int image_sync(const struct image *image)
{
    return FAULTY("disk.image-sync", fdatasync(image->fd)) < 0 ? -errno : 0;
}

int image_next_data(const struct image *image, uint64_t from, uint64_t *ret_start,
                    uint64_t *ret_end)
{
    off_t start, end;

    if (from >= image->size_bytes)
        return 0;
    if (image->is_block) {
        *ret_start = from;
        *ret_end = image->size_bytes;
        return 1;
    }
    start = lseek(image->fd, (off_t)from, SEEK_DATA);
    if (start < 0)
        return errno == ENXIO ? 0 : -errno;
    end = lseek(image->fd, start, SEEK_HOLE);
    if (end < 0)
        return -errno;
    if ((uint64_t)start >= image->size_bytes)
        return 0;
    *ret_start = (uint64_t)start;
    *ret_end = (uint64_t)end < image->size_bytes ? (uint64_t)end : image->size_bytes;
    return 1;
}
