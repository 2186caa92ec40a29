/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_CONTROL_LINE_H
#define US_IO_CONTROL_LINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/* What server and clients of the control protocol share: lines in, lines out, and their sockets. */

/* Bytes on their way in or out. Zero-initialise; free with control_buf_done(). */
struct control_buf {
    char *bytes;
    size_t n, room;
};

void control_buf_done(struct control_buf *buf);

/* Reads once from a socket that does not block. Returns the bytes read; 0 at the end of the stream;
 * -EAGAIN when nothing is there; -EMSGSIZE when a line is too long; or -errno. A descriptor that
 * came along goes to *ret_fd (CLOEXEC) if that is not NULL and -1; every other one is closed. */
ssize_t control_buf_read(struct control_buf *buf, int sock, int *ret_fd);

/* The length of the first whole line, without its newline; -1 when there is none yet. The line
 * starts at buf->bytes. */
ssize_t control_buf_line(const struct control_buf *buf);

/* Drops the first n bytes. */
void control_buf_drop(struct control_buf *buf, size_t n);

/* Appends bytes. -ENOMEM. */
int control_buf_add(struct control_buf *buf, const char *bytes, size_t n) US_MUST_CHECK;

/* Appends one line. -ENOMEM, or -ENOBUFS when more than CONTROL_LINE_MAX bytes would wait. */
int control_buf_add_json(struct control_buf *buf, const json_t *json) US_MUST_CHECK;

/* Writes what the socket takes without blocking; *fd (-1 = none) goes along with the first byte and
 * becomes -1. 0 also when something is left in buf; -errno when the connection broke. */
int control_buf_flush(struct control_buf *buf, int sock, int *fd) US_MUST_CHECK;

/* Decodes a request line: an object with a string "command". The caller owns *ret_body. 0 or
 * -EPROTO with a reason to send back. */
int control_parse_request(const char *line, size_t n, json_t **ret_body,
                          struct err *err) US_MUST_CHECK;

/* Decodes a line from a server: an object with a boolean "ok" (*ret_is_answer: true), or with an
 * object "progress" (false). The caller owns *ret_json. 0 or -EPROTO. */
int control_parse_answer(const char *line, size_t n, json_t **ret_json, bool *ret_is_answer,
                         struct err *err) US_MUST_CHECK;

/* Connects to a UNIX stream socket; *ret_sock is non-blocking and CLOEXEC. */
int control_connect(const char *path, int *ret_sock, struct err *err) US_MUST_CHECK;

#endif
