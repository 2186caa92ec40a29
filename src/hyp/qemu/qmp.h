/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_QMP_H
#define US_HYP_QEMU_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/err.h"

/* A client of QMP, QEMU's control protocol: one JSON object a line over a UNIX stream socket.
 * Source: QEMU's docs/interop/qmp-spec.
 *
 * Commands may be sent without waiting for the replies before them; QEMU answers in order, and
 * each reply must carry the id of the oldest command without one. Events come in between. What
 * QEMU sends is not trusted: lines are bounded, every field's type is checked, and the first
 * violation ends the conversation (on_broken), after which nothing is sent or delivered. */

struct qmp;

enum {
    QMP_LINE_MAX = 1 << 20, /* bytes of one line from QEMU */
    QMP_PENDING_MAX = 16,   /* commands without a reply */
};

/* One reply: `ret` is what the command returned, NULL when it failed for the reason `error`. Both
 * are borrowed. Must not free the client. */
typedef void qmp_reply_fn(void *user, const json_t *ret, const char *error);

struct qmp_callbacks {
    /* An event; `data` is an object or NULL; both borrowed. at_ns: when it happened
     * (CLOCK_MONOTONIC), as far as QEMU tells. Must not free the client. */
    void (*on_event)(void *user, const char *name, const json_t *data, uint64_t at_ns);
    /* The conversation is over: -ECONNRESET when QEMU closed it, -EPROTO when it broke the
     * protocol, or another -errno of the socket. Must not free the client. */
    void (*on_broken)(void *user, int code, const char *why);
};

/* Makes a client on a connected socket, which is taken on success. The callbacks are borrowed for
 * its life. */
int qmp_new(int fd, const struct qmp_callbacks *callbacks, void *user,
            struct qmp **ret_qmp) US_MUST_CHECK;

/* Closes and frees; replies that are due are not delivered. NULL is allowed. */
void qmp_free(struct qmp *qmp);

/* Sends a command; fn(user, ...) gets its reply. `arguments` is a JSON object as text, "" = none.
 * `fd`, when not -1, goes along as ancillary data (for getfd) and stays the caller's. Does not
 * block: -EAGAIN when QEMU does not read, -EBUSY when too many replies are due, -ENOTCONN when
 * broken. */
int qmp_send(struct qmp *qmp, const char *command, const char *arguments, int fd, qmp_reply_fn *fn,
             void *user) US_MUST_CHECK;

/* Types a command ahead, all but its last byte; qmp_send() of that command then sends the one byte.
 * QEMU reads its control socket byte by byte, at several system calls each, so this takes most of
 * the delay off an order that will be urgent. Sending another command first costs nothing but the
 * advantage: what was typed is voided. A hint: when it fails, qmp_send() will send it all, or say
 * why not. `command` is borrowed until then. */
void qmp_prepare(struct qmp *qmp, const char *command, const char *arguments);

/* Limits for the blocking calls: give up at deadline_ns (CLOCK_MONOTONIC), or when pidfd says that
 * QEMU has ended. */
struct qmp_wait {
    uint64_t deadline_ns;
    int pidfd;
};

/* Waits for QEMU's greeting. Blocks. */
int qmp_wait_greeting(struct qmp *qmp, const struct qmp_wait *wait, struct err *err) US_MUST_CHECK;

/* Sends a command and waits for its reply, delivering events meanwhile. Blocks; only before
 * qmp_attach(). *ret_value (may be NULL) gets a reference to what the command returned. */
int qmp_call(struct qmp *qmp, const char *command, const char *arguments, int fd,
             const struct qmp_wait *wait, json_t **ret_value, struct err *err) US_MUST_CHECK;

/* Waits for QEMU's greeting and says that the client is ready for commands: the first thing to do.
 * Replies to a client before this one are dropped. From then on QEMU reads ahead while it carries
 * a command out (its capability "oob"). Blocks, as qmp_call(). */
int qmp_greet(struct qmp *qmp, const struct qmp_wait *wait, struct err *err) US_MUST_CHECK;

/* From now on the loop delivers replies and events. */
int qmp_attach(struct qmp *qmp, sd_event *event) US_MUST_CHECK;

/* As sd_event_source_set_priority(): normally 0. */
int qmp_set_priority(struct qmp *qmp, int64_t priority) US_MUST_CHECK;

/* Reads and delivers what has arrived already. Does not block. */
void qmp_drain(struct qmp *qmp);

/* Handles bytes as if they had arrived on the socket. */
void qmp_feed(struct qmp *qmp, const char *bytes, size_t n_bytes);

#endif
