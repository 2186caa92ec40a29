/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_GUEST_LINE_CLIENT_H
#define TESTS_GUEST_LINE_CLIENT_H

#include <stddef.h>
#include <stdint.h>

/* The other side of line_server.h, for programs on the host. Everything here is bounded in time. */

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t line_now_ns(void);

/*
 * Connects to an IPv4 address. While nobody answers or listens there, tries again for wait_ms
 * (0: one attempt of at most timeout_ms). The socket is non-blocking, without Nagle delay, and
 * gives up on unacknowledged data after timeout_ms. Returns 0 and the socket, which the caller
 * closes, or a negative errno (-EINVAL: not an address).
 */
int line_connect(const char *host, uint16_t port, int timeout_ms, int wait_ms, int *ret_fd)
    __attribute__((warn_unused_result));

/*
 * Sends line (without newline) and waits at most timeout_ms for the answering line, which it
 * stores without its newline; it must fit into size bytes. Nothing else may be under way on the
 * socket. Returns 0 or a negative errno.
 */
int line_exchange(int fd, const char *line, char *answer, size_t size, int timeout_ms)
    __attribute__((warn_unused_result));

#endif
