/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>

#include "base/cleanup.h"
#include "io/control.h"
#include "io/control_line.h"

/* The blocking client of the control protocol, for tools. */

struct ask {
    int sock;
    struct control_buf in, out;
};

/* Takes the lines that are there. 1: *ret_answer is set; 0: not yet; -EPROTO. */
static int ask_lines(struct ask *ask, void (*on_progress)(void *user, const json_t *progress),
                     void *user, json_t **ret_answer, struct err *err)
{
    ssize_t n;

    while ((n = control_buf_line(&ask->in)) >= 0) {
        bool is_answer;
        json_t *json;
        int r = control_parse_answer(ask->in.bytes, (size_t)n, &json, &is_answer, err);

        if (r < 0)
            return r;
        control_buf_drop(&ask->in, (size_t)n + 1);
        if (is_answer) {
            *ret_answer = json;
            return 1;
        }
        if (on_progress)
            on_progress(user, json_object_get(json, "progress"));
        json_decref(json);
    }
    return 0;
}

/* Waits for the socket once, then moves what can be moved. 1: something came; 0: not yet. */
static int ask_turn(struct ask *ask, unsigned timeout_ms, struct err *err)
{
    struct pollfd p = {.fd = ask->sock, .events = (short)(POLLIN | (ask->out.n ? POLLOUT : 0))};
    int no_fd = -1;
    ssize_t n;
    int r = poll(&p, 1, (int)timeout_ms);

    if (r == 0)
        return err_set(err, -ETIMEDOUT, "no answer within %u s", timeout_ms / 1000);
    if (r < 0)
        return errno == EINTR ? 0 : err_sys(err, -errno, "poll");
    r = control_buf_flush(&ask->out, ask->sock, &no_fd);
    n = control_buf_read(&ask->in, ask->sock, NULL);
    if (n > 0)
        return 1;
    if (n == -EAGAIN)
        return r < 0 ? err_sys(err, r, "connection lost") : 0;
    return err_set(err, -ECONNRESET, "the connection was closed without an answer");
}

static int ask_run(struct ask *ask, unsigned timeout_ms,
                   void (*on_progress)(void *user, const json_t *progress), void *user,
                   json_t **ret_answer, struct err *err)
{
    int r = 0;

    while (r == 0) {
        r = ask_turn(ask, timeout_ms, err);
        if (r > 0)
            r = ask_lines(ask, on_progress, user, ret_answer, err);
    }
    return r < 0 ? r : 0;
}

int control_ask(const char *path, const json_t *request, unsigned timeout_ms,
                void (*on_progress)(void *user, const json_t *progress), void *user,
                json_t **ret_answer, struct err *err)
{
    struct ask ask = {0};
    json_t *answer = NULL;
    const char *why;
    int r = control_connect(path, &ask.sock, err);

    if (r < 0)
        return r;
    r = control_buf_add_json(&ask.out, request);
    if (r < 0)
        err_sys(err, r, "request");
    else
        r = ask_run(&ask, timeout_ms, on_progress, user, &answer, err);
    close(ask.sock);
    control_buf_done(&ask.in);
    control_buf_done(&ask.out);
    if (r < 0)
        return r;
    if (!json_is_true(json_object_get(answer, "ok"))) {
        why = json_string_value(json_object_get(answer, "error"));
        err_set(err, 0, "%s", why ? why : "failed without a reason");
        json_decref(answer);
        return -EREMOTEIO;
    }
    *ret_answer = answer;
    return 0;
}
