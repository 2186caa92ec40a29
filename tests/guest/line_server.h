/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_GUEST_LINE_SERVER_H
#define TESTS_GUEST_LINE_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A TCP server of short text lines: each line that a client sends is answered by one line, in
 * order. One thread, one poll loop, any number of clients up to LINE_CONNS. Clients may send
 * ahead; one that does not read its answers is not read from until it does.
 */

enum {
    LINE_CONNS = 64,
    LINE_BYTES = 128,      /* longest line or answer, with its newline */
    LINE_OUT_BYTES = 4096, /* answers waiting for one client to take them */
};

/*
 * Answers one line. line: without its newline, NUL-terminated, no NUL inside. answer: to be filled
 * with a NUL-terminated text without a newline, at most size bytes with the NUL.
 */
typedef void line_answer_fn(void *ctx, const char *line, char *answer, size_t size);

struct line_conn {
    int fd;        /* -1: free */
    bool skipping; /* inside a line that is too long: drop bytes until it ends */
    size_t in_bytes;
    size_t out_bytes;
    char in[LINE_BYTES];
    char out[LINE_OUT_BYTES];
};

struct line_server {
    int listen_fd;
    line_answer_fn *answer;
    void *ctx; /* borrowed; handed to answer */
    struct line_conn conns[LINE_CONNS];
};

/*
 * Listens on every address at TCP port `port`. There is no close: these servers live as long as
 * their process. Returns 0 or a negative errno.
 */
int line_server_open(struct line_server *s, uint16_t port, line_answer_fn *answer, void *ctx)
    __attribute__((warn_unused_result));

/*
 * Waits at most timeout_ms (-1: for ever) for something to do, and does it. Returns 0, also if
 * nothing came, or a negative errno when polling itself fails; a client's errors only end that
 * client's connection.
 */
int line_server_poll(struct line_server *s, int timeout_ms) __attribute__((warn_unused_result));

#endif
