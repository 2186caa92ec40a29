/* SPDX-License-Identifier: Apache-2.0 */
#include "io/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/fault.h"

/* Linux 6.15; not yet in every header. */
#ifndef TCP_RTO_MIN_US
#define TCP_RTO_MIN_US    45
#define TCP_DELACK_MAX_US 46
#endif

void transport_tune(int fd)
{
    int one = 1, zero = 0, stuck_ms = 3000, retry_us = 20000, answer_us = 5000;

    /* A UNIX socket does not know these, nor an older kernel the last two: no harm. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &stuck_ms, sizeof(stuck_ms));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof(zero));
    /* By default a second loss in a row, or one with nothing sent after it, costs 200 ms: longer
     * than a standby waits. Acknowledgements have to come sooner than that, too, or each costs a
     * retransmission. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_RTO_MIN_US, &retry_us, sizeof(retry_us));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_DELACK_MAX_US, &answer_us, sizeof(answer_us));
}

uint64_t transport_round_trip_ns(int fd)
{
    struct tcp_info info;
    socklen_t n = sizeof(info);

    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) < 0 ||
        n < offsetof(struct tcp_info, tcpi_min_rtt) + sizeof(info.tcpi_min_rtt) ||
        info.tcpi_min_rtt == UINT32_MAX)
        return 0;
    return info.tcpi_min_rtt * UINT64_C(1000);
}

/* Splits "HOST:PORT" or "[HOST]:PORT" and resolves it without any look-up. The caller frees
 * *ret_list with freeaddrinfo(). */
static int parse_address(const char *address, bool passive, struct addrinfo **ret_list,
                         struct err *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags =
                                 AI_NUMERICHOST | AI_NUMERICSERV | (passive ? AI_PASSIVE : 0)};
    char host[128];
    const char *from = address, *colon = strrchr(address, ':'), *to = colon;
    int rc;

    if (colon && address[0] == '[' && colon > address && colon[-1] == ']') {
        from++;
        to--;
    } else if (colon && memchr(address, ':', (size_t)(colon - address))) {
        return err_set(err, -EINVAL, "%s: write an IPv6 address as [ADDRESS]:PORT", address);
    }
    if (!colon || !colon[1] || to <= from || (size_t)(to - from) >= sizeof(host))
        return err_set(err, -EINVAL, "%s: expected ADDRESS:PORT", address);
    memcpy(host, from, (size_t)(to - from));
    host[to - from] = '\0';
    rc = getaddrinfo(host, colon + 1, &hints, ret_list);
    if (rc == EAI_MEMORY)
        return err_sys(err, -ENOMEM, "%s", address);
    if (rc)
        return err_set(err, -EINVAL, "%s: expected a numeric ADDRESS:PORT", address);
    return 0;
}

static void cleanup_addrinfo(struct addrinfo **list)
{
    if (*list)
        freeaddrinfo(*list);
}

int transport_tcp_connect(const char *address, int *ret_fd, struct err *err)
{
    CLEANUP(cleanup_addrinfo) struct addrinfo *list = NULL;
    CLEANUP_FD int fd = -1;
    int rc = parse_address(address, false, &list, err);

    if (rc)
        return rc;
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(err, -errno, "connect to %s", address);
    if (FAULTY("tcp.connect", connect(fd, list->ai_addr, list->ai_addrlen)) && errno != EINPROGRESS)
        return err_sys(err, -errno, "connect to %s", address);
    *ret_fd = take_fd(&fd);
    return 0;
}

int transport_tcp_listen(const char *address, int *ret_fd, struct err *err)
{
    CLEANUP(cleanup_addrinfo) struct addrinfo *list = NULL;
    CLEANUP_FD int fd = -1;
    int one = 1, rc = parse_address(address, true, &list, err);

    if (rc)
        return rc;
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
        bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, SOMAXCONN))
        return err_sys(err, -errno, "listen on %s", address);
    *ret_fd = take_fd(&fd);
    return 0;
}

int transport_read_all(struct transport *t, void *buf, size_t n)
{
    uint8_t *to = buf;

    while (n) {
        struct iovec iov = {.iov_base = to, .iov_len = n};
        ssize_t got = t->ops->readv(t, &iov, 1);

        if (got <= 0)
            return got ? (int)got : -ECONNRESET;
        to += got;
        n -= (size_t)got;
    }
    return 0;
}

int transport_write_all(struct transport *t, const struct iovec *iov, int n_iov)
{
    struct iovec part[16]; /* a copy: a short write moves its start */
    int n = 0;

    while (n_iov || n) {
        ssize_t done;
        int i;

        for (; n_iov && n < (int)(sizeof(part) / sizeof(part[0])); n_iov--)
            part[n++] = *iov++;
        done = t->ops->writev(t, part, n);
        if (done < 0)
            return (int)done;
        for (i = 0; i < n && (size_t)done >= part[i].iov_len; i++)
            done -= (ssize_t)part[i].iov_len;
        n -= i;
        memmove(part, part + i, (size_t)n * sizeof(part[0]));
        if (n) {
            part[0].iov_base = (uint8_t *)part[0].iov_base + done;
            part[0].iov_len -= (size_t)done;
        }
    }
    return 0;
}

const char *transport_why(int error)
{
    switch (error) {
    case -EACCES:
        return "one side does not know the other's key";
    case -EPROTO:
        return "no TLS as both sides need it, or damaged";
    case -ECONNRESET:
        return "the peer closed the connection";
    }
    return strerrordesc_np(-error);
}

int transport_set_blocking(struct transport *t, bool blocking)
{
    int fd = t->ops->fd(t), flags = fcntl(fd, F_GETFL);

    if (flags < 0)
        return -errno;
    flags = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
    return fcntl(fd, F_SETFL, flags) ? -errno : 0;
}
