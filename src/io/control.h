/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_CONTROL_H
#define US_IO_CONTROL_H

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"

/* The control protocol (docs/control.md): newline-delimited JSON over UNIX stream sockets, between
 * the command line, understudyd and the processes of the VMs.
 *
 * A request is one line, an object with "command". Its answer is one line with "ok": true, or false
 * and "error"; lines with "progress" may come before it. A connection carries one request at a
 * time; the next line is read once the answer is out. One file descriptor may travel with a
 * request. Only root, the user that the server runs as, and members of a group that it allows are
 * served. */

enum {
    CONTROL_LINE_MAX = 1024 * 1024, /* bytes of one line; a longer one ends the connection */
    CONTROL_CLIENTS_MAX = 64,       /* connections to one server at a time; more are closed */
};

/* --- Server. Everything runs in the thread of its sd_event loop and never blocks. --- */

struct control_server;
struct control_request;

/* A request has come. The handler owns `req` and answers it, now or later, by exactly one of
 * control_reply() and control_fail(). */
typedef void control_handler_fn(void *user, struct control_request *req);

/* The client of an open request has gone. The request must still be answered; the answer goes
 * nowhere. Not called from inside a function of this module. */
typedef void control_gone_fn(void *user);

/* Serves the socket `path`, mode 0600; a dead socket there is replaced. -EADDRINUSE when another
 * process serves it. `event` is borrowed for the life of the server, as is `user`. */
int control_server_new(sd_event *event, const char *path, control_handler_fn *handler, void *user,
                       struct control_server **ret_server, struct err *err) US_MUST_CHECK;

/* Serves members of this group too, and makes the socket theirs, mode 0660; they must be able to
 * reach it. */
int control_server_allow(struct control_server *s, gid_t group, struct err *err) US_MUST_CHECK;

/* Closes every connection and removes the socket. Requests that are still open stay valid, with a
 * client that is gone, and must be answered. NULL is allowed. */
void control_server_close(struct control_server *s);

const char *control_command(const struct control_request *req); /* borrowed */
json_t *control_body(const struct control_request *req);        /* the whole object; borrowed */

/* The string under `key`, or NULL when it is not there or not a string. Borrowed. */
const char *control_string(const struct control_request *req, const char *key);

/* The file descriptor that came with the request, CLOEXEC, now the caller's; -1 if there is none.
 */
int control_take_fd(struct control_request *req);

/* Asks to be told when the client goes. fn NULL: no longer. */
void control_on_gone(struct control_request *req, control_gone_fn *fn, void *user);

/* Sends {"progress": ...}. `progress` is taken. Dropped when the client does not keep up. */
void control_progress(struct control_request *req, json_t *progress);

/* Answers with the members of `answer` (taken; NULL = none) and "ok": true, unless `answer` has an
 * "ok" of its own, as a relayed answer does. Frees the request. */
void control_reply(struct control_request *req, json_t *answer);

/* Answers {"ok": false, "error": TEXT}. Frees the request. */
void control_fail(struct control_request *req, const char *fmt, ...) US_PRINTF(2, 3);

/* --- Client for daemons: one request on a connection of its own, without blocking. --- */

struct control_call;

struct control_callbacks {
    void (*on_progress)(void *user, const json_t *progress); /* may be NULL */
    /* Exactly once, then the call is freed. `answer` is what the server said ("ok" true or false),
     * or NULL when there is none: then `why` says what happened. Both are borrowed. */
    void (*on_answer)(void *user, const json_t *answer, const char *why);
};

/* Sends `request` (borrowed) with `fd` (borrowed; -1 = none), which has left when this returns.
 * timeout_ns bounds the time until the answer. `callbacks` and `user` are borrowed until the
 * answer. -errno with the reason when nobody serves `path`; then no callback is made. */
int control_call_new(sd_event *event, const char *path, const json_t *request, int fd,
                     uint64_t timeout_ns, const struct control_callbacks *callbacks, void *user,
                     struct control_call **ret_call, struct err *err) US_MUST_CHECK;

/* Gives a call up; no callback is made. NULL is allowed. */
void control_call_cancel(struct control_call *call);

/* --- Client for tools: blocks. --- */

/* Sends `request` (borrowed) and waits for the answer; timeout_ms bounds the silence between two
 * lines. on_progress may be NULL. The caller owns *ret_answer. -EREMOTEIO with the server's text
 * when the answer is not ok; -ENOENT or -ECONNREFUSED when nobody serves `path`; -ETIMEDOUT;
 * another -errno. */
int control_ask(const char *path, const json_t *request, unsigned timeout_ms,
                void (*on_progress)(void *user, const json_t *progress), void *user,
                json_t **ret_answer, struct err *err) US_MUST_CHECK;

#endif
