/* SPDX-License-Identifier: Apache-2.0 */
#include "line_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

uint64_t line_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail: the clock always exists */
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Waits for events on fd until deadline_ns. Returns 0 or a negative errno (-ETIMEDOUT). */
static int wait_until(int fd, short events, uint64_t deadline_ns)
{
    struct pollfd p = {.fd = fd, .events = events};

    for (;;) {
        uint64_t now = line_now_ns();
        int ms = now < deadline_ns ? (int)((deadline_ns - now) / 1000000) + 1 : 0;
        int n = poll(&p, 1, ms);

        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0 && ms == 0)
            return -ETIMEDOUT;
    }
}

/* Returns a connected socket or a negative errno. */
static int connect_once(const struct sockaddr_in *to, int timeout_ms, uint64_t deadline_ns)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int one = 1, err = 0;
    unsigned give_up_ms = (unsigned)timeout_ms;
    socklen_t size = sizeof(err);

    if (fd < 0)
        return -errno;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &give_up_ms, sizeof(give_up_ms)) < 0)
        err = -errno;
    if (!err && connect(fd, (const struct sockaddr *)to, sizeof(*to)) < 0) {
        err = -errno;
        if (err == -EINPROGRESS)
            err = wait_until(fd, POLLOUT, deadline_ns);
        if (!err) {
            (void)getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size); /* fd is a socket */
            err = -err;
        }
    }
    if (!err)
        return fd;
    close(fd);
    return err;
}

int line_connect(const char *host, uint16_t port, int timeout_ms, int wait_ms, int *ret_fd)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    uint64_t start = line_now_ns();
    uint64_t wait_until_ns = start + (uint64_t)wait_ms * 1000000;
    /* A lost SYN is repeated by the kernel only after a second: rather try afresh. */
    uint64_t attempt_ns = (uint64_t)(wait_ms ? 250 : timeout_ms) * 1000000;

    if (inet_pton(AF_INET, host, &to.sin_addr) != 1)
        return -EINVAL;
    for (;;) {
        uint64_t end_ns = line_now_ns() + attempt_ns;
        int fd = connect_once(&to, timeout_ms,
                              wait_ms && end_ns > wait_until_ns ? wait_until_ns : end_ns);

        if (fd >= 0) {
            *ret_fd = fd;
            return 0;
        }
        if (line_now_ns() >= wait_until_ns)
            return fd;
        if (fd == -ETIMEDOUT) /* or it was not lost, and every answer takes as long */
            attempt_ns *= 2;
        poll(NULL, 0, 50); /* there is no event for "now somebody listens" */
    }
}

int line_exchange(int fd, const char *line, char *answer, size_t size, int timeout_ms)
{
    uint64_t deadline_ns = line_now_ns() + (uint64_t)timeout_ms * 1000000;
    char request[256];
    int want = snprintf(request, sizeof(request), "%s\n", line);
    size_t got = 0;

    if (want < 0 || (size_t)want >= sizeof(request))
        return -EMSGSIZE;

    ssize_t n = send(fd, request, (size_t)want, MSG_NOSIGNAL);

    if (n != want)
        return n < 0 ? -errno : -EIO; /* so few bytes go whole or not at all */
    while (got < size) {
        int err = wait_until(fd, POLLIN, deadline_ns);

        if (err)
            return err;
        n = recv(fd, answer + got, size - got, 0);
        if (n == 0)
            return -ECONNRESET;
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (n < 0)
            continue;
        got += (size_t)n;
        if (answer[got - 1] == '\n') {
            answer[got - 1] = '\0';
            return 0;
        }
    }
    return -EMSGSIZE;
}
