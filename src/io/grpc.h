/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_GRPC_H
#define US_IO_GRPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/err.h"

/* Unary calls of gRPC: one message there, one message back, over HTTP/2 and TLS 1.2 or later, with
 * a certificate on both sides. One call at a time, in an event loop; the connection is kept.
 * libcurl does HTTP and TLS; what gRPC adds are five bytes before each message and two trailers
 * (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). No message is sent twice. */

enum {
    GRPC_REQUEST_MAX = 4096,
    GRPC_ANSWER_MAX = 65536,
};

/* Status codes that somebody here looks at; others are a failure whose name is in the text. */
enum grpc_status {
    GRPC_OK = 0,
    GRPC_PERMISSION_DENIED = 7,
    GRPC_RESOURCE_EXHAUSTED = 8,
    GRPC_UNAUTHENTICATED = 16,
};

struct grpc_result {
    int status;             /* the server's, 0 to 16; -errno: there was no answer */
    bool sent;              /* without an answer: the request may have reached the server */
    const uint8_t *message; /* GRPC_OK: what it answered; borrowed */
    size_t n_message;
    const char *text; /* what went wrong, else "" */
};

struct grpc_client;

/* Called from the loop, once for each call that is not cancelled. The last thing that the client
 * does: it may be freed inside. */
typedef void grpc_done_fn(void *user, const struct grpc_result *result);

/* Paths of PEM files: borrowed. They are read anew for each connection. */
struct grpc_files {
    const char *ca, *cert, *key;
};

/* connect_ms bounds making a connection, with TLS. 0, -ENOMEM. */
int grpc_client_new(sd_event *event, const struct grpc_files *files, uint64_t connect_ms,
                    grpc_done_fn *on_done, void *user,
                    struct grpc_client **ret_client) US_MUST_CHECK;
void grpc_client_free(struct grpc_client *c); /* ends call and connection; NULL is allowed */

/* Starts a call; one that is under way is cancelled. url: "https://HOST:PORT"; method:
 * "/package.Service/Method"; the message is copied. No time-out of its own. 0, -E2BIG, -ENOMEM. */
int grpc_call(struct grpc_client *c, const char *url, const char *method, const void *message,
              size_t n_message) US_MUST_CHECK;
bool grpc_busy(const struct grpc_client *c); /* a call is under way */

#endif
