/* SPDX-License-Identifier: Apache-2.0 */
#include "io/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"

static int write_all(int fd, const uint8_t *bytes, size_t n)
{
    while (n > 0) {
        ssize_t r = FAULTY("file.write", write(fd, bytes, n));

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return -errno;
        bytes += r;
        n -= (size_t)r;
    }
    return 0;
}

int durable_sync_name(const char *path)
{
    char folder[PATH_MAX];
    CLEANUP_FD int fd = -1;

    if ((size_t)snprintf(folder, sizeof(folder), "%s", path) >= sizeof(folder))
        return -ENAMETOOLONG;
    fd = open(dirname(folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || FAULTY("file.sync-name", fsync(fd)) < 0 ? -errno : 0;
}

int durable_replace(const char *path, const void *bytes, size_t n, struct err *err)
{
    char new_path[PATH_MAX];
    CLEANUP_FD int fd = -1;
    int r;

    if ((size_t)snprintf(new_path, sizeof(new_path), "%s.new", path) >= sizeof(new_path))
        return err_sys(err, -ENAMETOOLONG, "%s", path);
    fd = FAULTY("file.open", open(new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (fd < 0)
        return err_sys(err, -errno, "%s", new_path);
    r = write_all(fd, bytes, n);
    if (r == 0 &&
        (FAULTY("file.sync", fsync(fd)) < 0 || FAULTY("file.rename", rename(new_path, path)) < 0))
        r = -errno;
    if (r < 0)
        (void)unlink(new_path); /* if it stays, the next one takes its place */
    else
        r = durable_sync_name(path);
    return r < 0 ? err_sys(err, r, "%s", path) : 0;
}
