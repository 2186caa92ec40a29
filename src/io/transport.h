/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_TRANSPORT_H
#define US_IO_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/err.h"

/* A byte stream to a peer: TLS (io/tls.h); tests have others. A transport belongs to one thread at a
 * time, but for shutdown(), which any thread may call to make a blocked read or write of another
 * return. */

struct transport;

struct transport_ops {
    const char *name; /* "tls" */
    /* As readv(2)/writev(2), without SIGPIPE: bytes moved, 0 = end of stream (read), -EAGAIN on a
     * non-blocking transport that is not ready, or another negative errno. May be short. */
    ssize_t (*readv)(struct transport *t, const struct iovec *iov, int n_iov);
    ssize_t (*writev)(struct transport *t, const struct iovec *iov, int n_iov);
    int (*fd)(const struct transport *t); /* for polling; borrowed */
    /* Bytes to read are here already: the descriptor will not become readable for them. NULL =
     * never. */
    bool (*pending)(const struct transport *t);
    /* The transport itself has something to write: poll for that too, and call readv or writev
     * then. What it takes with writev() may wait here. When writev returned -EAGAIN and this is
     * false, it waits for something to read. NULL = never, and writev waits to write. */
    bool (*wants_write)(const struct transport *t);
    void (*shutdown)(struct transport *t);
    void (*close)(struct transport *t); /* frees it; NULL is allowed */
};

struct transport {
    const struct transport_ops *ops;
};

/* Sets up a TCP socket for a transport: TCP_NODELAY, keep-alive off (heartbeats do that), broken
 * when the peer has taken nothing for 3 s. From Linux 6.15 on, what got lost is sent again after a
 * round trip and 20 ms, instead of 200. */
void transport_tune(int fd);

/* The shortest round trip that TCP has seen on this socket lately, in ns; 0 = not known. */
uint64_t transport_round_trip_ns(int fd);

/* Starts to connect to "ADDRESS:PORT" or "[ADDRESS]:PORT" (numeric, no look-ups), non-blocking.
 * On success *ret_fd is a socket that becomes writable when connected or failed (SO_ERROR). */
int transport_tcp_connect(const char *address, int *ret_fd, struct err *err) US_MUST_CHECK;

/* Listens on "ADDRESS:PORT", non-blocking, SO_REUSEADDR. */
int transport_tcp_listen(const char *address, int *ret_fd, struct err *err) US_MUST_CHECK;

/* Moves all the bytes on a blocking transport. 0, -ECONNRESET at the stream's end, or -errno. */
int transport_read_all(struct transport *t, void *buf, size_t n) US_MUST_CHECK;
int transport_write_all(struct transport *t, const struct iovec *iov, int n_iov) US_MUST_CHECK;

/* What a negative errno of a transport means, for people. A static text. */
const char *transport_why(int error);

/* Puts the transport's descriptor into blocking or non-blocking mode. */
int transport_set_blocking(struct transport *t, bool blocking) US_MUST_CHECK;

#endif
