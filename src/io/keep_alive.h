/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_KEEP_ALIVE_H
#define US_IO_KEEP_ALIVE_H

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* For a kept connection without heartbeats, as to an arbiter: the kernel finds out when the other
 * side is gone. It asks after idle_s without a sign of life, then every interval_s; the third
 * question without an answer is the end. Best effort. */
static inline void keep_alive(int fd, int idle_s, int interval_s)
{
    const int on = 1, probes = 3;

    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

/* As keep_alive(), at the asking end: within seconds, so that the next request meets a fresh
 * connection instead of a time-out. */
static inline void keep_alive_asker(int fd)
{
    keep_alive(fd, 5, 1);
}

#endif
