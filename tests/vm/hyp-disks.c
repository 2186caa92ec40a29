/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp-disks.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"

static int make_image(const char *path, uint64_t size_bytes, const void *first, uint64_t n_first)
{
    CLEANUP_FD int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
        return -errno;
    return pwrite(fd, first, n_first, 0) == (ssize_t)n_first ? 0 : -EIO;
}

int hyp_disk_start(struct hyp_disk *disk, const char *dir, unsigned number, uint64_t size_bytes,
                   const void *first, uint64_t n_first)
{
    char command[1024];
    FILE *file;
    int r;

    *disk = (struct hyp_disk){0};
    (void)snprintf(disk->path, sizeof(disk->path), "%.80s/disk%u.img", dir, number);
    (void)snprintf(disk->socket, sizeof(disk->socket), "%.70s/disk%u.sock", dir, number);
    (void)snprintf(disk->pid_path, sizeof(disk->pid_path), "%.80s/disk%u.pid", dir, number);
    r = make_image(disk->path, size_bytes, first, n_first);
    if (r < 0)
        return r;
    /* It returns once the server it leaves behind listens. */
    (void)snprintf(command, sizeof(command),
                   "qemu-nbd --fork --persistent --shared=2 --cache=writeback --discard=unmap"
                   " --format=raw --pid-file='%s' --socket='%s' '%s'",
                   disk->pid_path, disk->socket, disk->path);
    if (system(command) != 0)
        return -EIO;
    file = fopen(disk->pid_path, "re");
    if (!file)
        return -errno;
    r = fscanf(file, "%d", &disk->pid) == 1 ? 0 : -EIO;
    (void)fclose(file); /* only read */
    return r;
}

void hyp_disk_stall(const struct hyp_disk *disk, bool stall)
{
    (void)kill(disk->pid, stall ? SIGSTOP : SIGCONT);
}

void hyp_disk_stop(struct hyp_disk *disk)
{
    if (disk->pid > 0) {
        (void)kill(disk->pid, SIGKILL);
        disk->pid = 0;
    }
}
