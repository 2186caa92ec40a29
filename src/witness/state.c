/* SPDX-License-Identifier: Apache-2.0 */
#include "witness/state.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

int state_enter(const char *dir, bool make, struct err *err)
{
    struct stat st;

    if (make && mkdir(dir, 0700) < 0 && errno != EEXIST)
        return err_sys(err, -errno, "%s", dir);
    if (chdir(dir) < 0 || stat(".", &st) < 0)
        return err_sys(err, -errno, "%s", dir);
    if (geteuid() != 0 || st.st_uid == 0)
        return 0;
    if (setgroups(0, NULL) < 0 || setgid(st.st_gid) < 0 || setuid(st.st_uid) < 0)
        return err_sys(err, -errno, "%s: cannot become its owner", dir);
    return 0;
}

int state_lock(int *ret_fd, struct err *err)
{
    CLEANUP_FD int fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r;

    if (fd < 0)
        return err_sys(err, -errno, "open the state directory");
    do
        r = flock(fd, LOCK_EX);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return err_sys(err, -errno, "lock the state directory");
    *ret_fd = take_fd(&fd);
    return 0;
}
