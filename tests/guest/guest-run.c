/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Has a test guest's runner carry out a shell command, and prints what it prints, as it comes:
 *   guest-run ADDRESS COMMAND [SECONDS]
 * Waits at most SECONDS (default 60) for the runner to listen and for the command to end.
 * Exit status: the command's; 125 when the connection fails, 2 usage.
 */
#include "line_client.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RUNNER_PORT = 7004, FAILED = 125 };

/* Copies lines to stdout up to "exit N". Returns N or a negative errno. */
static int copy_lines(int fd, uint64_t deadline_ns)
{
    char line[65536];
    size_t n = 0;

    for (;;) {
        uint64_t now = line_now_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        char *end;
        int status;

        if (now >= deadline_ns || n == sizeof(line) - 1)
            return now >= deadline_ns ? -ETIMEDOUT : -EMSGSIZE;
        if (poll(&p, 1, (int)((deadline_ns - now) / 1000000) + 1) <= 0)
            continue;

        ssize_t got = recv(fd, line + n, sizeof(line) - 1 - n, 0);

        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return got ? -errno : -ECONNRESET;
        if (got < 0)
            continue;
        n += (size_t)got;
        line[n] = '\0';
        while ((end = strchr(line, '\n'))) {
            *end++ = '\0';
            if (sscanf(line, "exit %d", &status) == 1)
                return status;
            puts(line);
            n -= (size_t)(end - line);
            memmove(line, end, n + 1);
        }
    }
}

int main(int argc, char **argv)
{
    int seconds = argc == 4 ? atoi(argv[3]) : 60;
    int fd;

    if (argc < 3 || argc > 4 || seconds < 1 || seconds > 3600) {
        fprintf(stderr, "usage: guest-run ADDRESS COMMAND [SECONDS]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);

    uint64_t deadline_ns = line_now_ns() + (uint64_t)seconds * 1000000000;
    int status = line_connect(argv[1], RUNNER_PORT, seconds * 1000, seconds * 1000, &fd);

    if (status == 0) {
        bool sent = dprintf(fd, "%s\n", argv[2]) > 0;

        status = sent ? copy_lines(fd, deadline_ns) : -EIO;
        close(fd);
    }
    if (status < 0) {
        fprintf(stderr, "guest-run: %s: %s\n", argv[1], strerror(-status));
        return FAILED;
    }
    return status;
}
