/* SPDX-License-Identifier: Apache-2.0 */
#include "io/unix_socket.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/cleanup.h"

int unix_listen(const char *path, int backlog, int *ret_sock, struct err *err)
{
    CLEANUP_FD int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (sock < 0)
        return err_sys(err, -errno, "socket");
    if (strlen(path) >= sizeof(addr.sun_path))
        return err_set(err, -ENAMETOOLONG, "%s: too long for the path of a socket", path);
    memcpy(addr.sun_path, path, strlen(path));
    if (unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, -errno, "%s", path);
    if (bind(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
        return err_sys(err, -errno, "%s", path);
    /* Nobody can connect before listen(), so the mode is right from the first moment. */
    if (chmod(path, 0600) < 0 || listen(sock, backlog) < 0)
        return err_sys(err, -errno, "%s", path);
    *ret_sock = take_fd(&sock);
    return 0;
}
