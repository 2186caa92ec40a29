/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/epoll.h>

#include "base/cleanup.h"
#include "io/control.h"
#include "io/control_line.h"

/* One request to a control server from inside an sd_event loop. */

struct control_call {
    sd_event_source *io, *timer;
    int sock;
    struct control_buf in, out;
    const struct control_callbacks *callbacks;
    void *user;
};

static void call_free(struct control_call *call)
{
    sd_event_source_disable_unref(call->io);
    sd_event_source_disable_unref(call->timer);
    close(call->sock);
    control_buf_done(&call->in);
    control_buf_done(&call->out);
    free(call);
}

static void call_end(struct control_call *call, const json_t *answer, const char *why)
{
    const struct control_callbacks *callbacks = call->callbacks;
    void *user = call->user;

    /* Freed first: the callback may start the next call on the same path, or end its owner. */
    call_free(call);
    callbacks->on_answer(user, answer, why);
}

/* Works on the lines that are there. False: the call has ended. */
static bool call_lines(struct control_call *call)
{
    ssize_t n;

    while ((n = control_buf_line(&call->in)) >= 0) {
        struct err err;
        bool is_answer;
        json_t *json;

        if (control_parse_answer(call->in.bytes, (size_t)n, &json, &is_answer, &err) < 0) {
            call_end(call, NULL, err.text);
            return false;
        }
        control_buf_drop(&call->in, (size_t)n + 1);
        if (is_answer)
            call_end(call, json, "");
        else if (call->callbacks->on_progress)
            call->callbacks->on_progress(call->user, json_object_get(json, "progress"));
        json_decref(json);
        if (is_answer)
            return false;
    }
    return true;
}

static int on_call_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct control_call *call = user;
    int no_fd = -1;
    ssize_t n;

    if ((events & EPOLLOUT) && control_buf_flush(&call->out, call->sock, &no_fd) == 0)
        (void)sd_event_source_set_io_events(source, EPOLLIN | (call->out.n ? EPOLLOUT : 0));
    n = control_buf_read(&call->in, call->sock, NULL);
    if (n == -EAGAIN)
        return 0;
    if (n <= 0)
        call_end(call, NULL,
                 n == 0 ? "closed the connection without an answer" : "does not answer");
    else
        (void)call_lines(call); /* either way this call of ours is over */
    return 0;
}

static int on_call_timeout(sd_event_source *source, uint64_t usec, void *user)
{
    call_end(user, NULL, "does not answer");
    return 0;
}

int control_call_new(sd_event *event, const char *path, const json_t *request, int fd,
                     uint64_t timeout_ns, const struct control_callbacks *callbacks, void *user,
                     struct control_call **ret_call, struct err *err)
{
    struct control_call *call = calloc(1, sizeof(*call));
    int r;

    if (!call)
        return err_set(err, -ENOMEM, "out of memory");
    r = control_connect(path, &call->sock, err);
    if (r < 0) {
        free(call);
        return r;
    }
    call->callbacks = callbacks;
    call->user = user;
    r = control_buf_add_json(&call->out, request);
    if (r == 0)
        r = control_buf_flush(&call->out, call->sock, &fd);
    if (r == 0)
        r = sd_event_add_io(event, &call->io, call->sock,
                            EPOLLIN | (call->out.n ? (uint32_t)EPOLLOUT : 0), on_call_io, call);
    if (r >= 0)
        r = sd_event_add_time_relative(event, &call->timer, CLOCK_MONOTONIC, timeout_ns / 1000,
                                       1000, on_call_timeout, call);
    if (r < 0) {
        call_free(call);
        return err_sys(err, r, "%s", path);
    }
    *ret_call = call;
    return 0;
}

void control_call_cancel(struct control_call *call)
{
    if (call)
        call_free(call);
}
