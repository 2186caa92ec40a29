/* SPDX-License-Identifier: Apache-2.0 */
#include "plain_transport.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

struct transport_tcp {
    struct transport base;
    int fd;
};

static struct transport_tcp *tcp_of(struct transport *t)
{
    return (struct transport_tcp *)t;
}

static ssize_t tcp_readv(struct transport *t, const struct iovec *iov, int n_iov)
{
    ssize_t n;

    do {
        n = readv(tcp_of(t)->fd, iov, n_iov);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static ssize_t tcp_writev(struct transport *t, const struct iovec *iov, int n_iov)
{
    struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, /* sendmsg only reads it */
                         .msg_iovlen = (size_t)n_iov};
    ssize_t n;

    do {
        n = sendmsg(tcp_of(t)->fd, &msg, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static int tcp_fd(const struct transport *t)
{
    return ((const struct transport_tcp *)t)->fd;
}

static void tcp_shutdown(struct transport *t)
{
    (void)shutdown(tcp_of(t)->fd, SHUT_RDWR); /* fails only when nothing is connected any more */
}

static void tcp_close(struct transport *t)
{
    if (!t)
        return;
    close(tcp_of(t)->fd);
    free(t);
}

static const struct transport_ops tcp_ops = {
    .name = "tcp",
    .readv = tcp_readv,
    .writev = tcp_writev,
    .fd = tcp_fd,
    .shutdown = tcp_shutdown,
    .close = tcp_close,
};

struct transport *transport_tcp_new(int fd)
{
    struct transport_tcp *t = calloc(1, sizeof(*t));

    if (!t) {
        close(fd);
        return NULL;
    }
    t->base.ops = &tcp_ops;
    t->fd = fd;
    transport_tune(fd);
    return &t->base;
}
