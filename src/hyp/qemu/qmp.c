/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/qmp.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "hyp/qemu/deadline.h"
#include "io/clock.h"

enum {
    READ_BYTES = 16384,
    READS_PER_WAKE = 8, /* so that a chatty QEMU cannot starve the loop */
    COMMAND_MAX = 1024,
    EVENT_AGE_MAX_S = 60,
};

struct pending {
    uint64_t id;
    qmp_reply_fn *fn;
    void *user;
};

/* The reply that qmp_call() waits for. */
struct sync_reply {
    bool done;
    json_t *value; /* owned */
    char error[256];
};

struct qmp {
    int fd;
    const struct qmp_callbacks *callbacks;
    void *user;
    sd_event_source *source;

    char *in; /* bytes of the line that is not complete yet */
    size_t n_in;
    size_t in_cap;
    size_t n_scanned; /* of them known to hold no newline */

    struct pending pending[QMP_PENDING_MAX]; /* oldest first */
    size_t n_pending;
    uint64_t last_id;
    const char *prepared; /* the command typed ahead, with id last_id + 1; NULL = none */
    struct sync_reply sync;

    bool greeted;
    bool greeting; /* replies to whoever was here before may still come */
    bool oob;      /* QEMU offers to read ahead */
    bool broken;
    char why_broken[256];
};

int qmp_new(int fd, const struct qmp_callbacks *callbacks, void *user, struct qmp **ret_qmp)
{
    struct qmp *qmp = calloc(1, sizeof(*qmp));

    if (!qmp)
        return -ENOMEM;
    qmp->in_cap = READ_BYTES;
    qmp->in = malloc(qmp->in_cap);
    if (!qmp->in) {
        free(qmp);
        return -ENOMEM;
    }
    qmp->fd = fd;
    qmp->callbacks = callbacks;
    qmp->user = user;
    *ret_qmp = qmp;
    return 0;
}

void qmp_free(struct qmp *qmp)
{
    if (!qmp)
        return;
    sd_event_source_disable_unref(qmp->source);
    close(qmp->fd);
    json_decref(qmp->sync.value);
    free(qmp->in);
    free(qmp);
}

static void set_broken(struct qmp *qmp, int code, const char *why)
{
    if (qmp->broken)
        return;
    qmp->broken = true;
    (void)snprintf(qmp->why_broken, sizeof(qmp->why_broken), "%s", why);
    if (qmp->source)
        (void)sd_event_source_set_enabled(qmp->source, SD_EVENT_OFF); /* turning off cannot fail */
    qmp->callbacks->on_broken(qmp->user, code, qmp->why_broken);
}

static bool is_reply_to(const json_t *id, uint64_t expected)
{
    return json_is_integer(id) && (uint64_t)json_integer_value(id) == expected;
}

/* Delivers a reply to the command that it answers. */
static void handle_reply(struct qmp *qmp, const json_t *root, const json_t *ret)
{
    const json_t *id = json_object_get(root, "id");
    const char *text = json_string_value(json_object_get(json_object_get(root, "error"), "desc"));
    struct pending answered;

    if (qmp->greeting && !is_reply_to(id, qmp->last_id))
        return;
    if (qmp->n_pending == 0) {
        set_broken(qmp, -EPROTO, "a reply to no command");
        return;
    }
    if (!is_reply_to(id, qmp->pending[0].id)) {
        set_broken(qmp, -EPROTO, "a reply with a wrong id");
        return;
    }
    answered = qmp->pending[0];
    fault_point("qmp.reply");
    qmp->n_pending--;
    memmove(qmp->pending, qmp->pending + 1, qmp->n_pending * sizeof(qmp->pending[0]));
    if (ret)
        answered.fn(answered.user, ret, NULL);
    else
        answered.fn(answered.user, NULL, text ? text : "no reason given");
}

/* The time of an event, which QEMU gives by the clock of the wall. */
static uint64_t event_time(const json_t *root)
{
    const json_t *stamp = json_object_get(root, "timestamp");
    const json_t *seconds = json_object_get(stamp, "seconds");
    const json_t *micros = json_object_get(stamp, "microseconds");
    uint64_t now = clock_now_ns();
    struct timespec wall;
    int64_t age_us;

    if (!json_is_integer(seconds) || !json_is_integer(micros))
        return now;
    clock_gettime(CLOCK_REALTIME, &wall);
    if (json_integer_value(seconds) < wall.tv_sec - EVENT_AGE_MAX_S ||
        json_integer_value(seconds) > wall.tv_sec || json_integer_value(micros) < 0 ||
        json_integer_value(micros) >= 1000000) /* a clock that was set, or nonsense */
        return now;
    age_us = (wall.tv_sec - json_integer_value(seconds)) * 1000000 + wall.tv_nsec / 1000 -
             json_integer_value(micros);
    return age_us > 0 && (uint64_t)age_us * 1000 < now ? now - (uint64_t)age_us * 1000 : now;
}

static void handle_event(struct qmp *qmp, const json_t *root, const json_t *event)
{
    const json_t *data = json_object_get(root, "data");

    if (!json_is_string(event) || (data && !json_is_object(data))) {
        set_broken(qmp, -EPROTO, "a malformed event");
        return;
    }
    fault_point("qmp.event");
    qmp->callbacks->on_event(qmp->user, json_string_value(event), data, event_time(root));
}

static void handle_greeting(struct qmp *qmp, const json_t *greeting)
{
    const json_t *capabilities = json_object_get(greeting, "capabilities"), *name;
    size_t i;

    json_array_foreach(capabilities, i, name)
    {
        if (json_is_string(name) && strcmp(json_string_value(name), "oob") == 0)
            qmp->oob = true;
    }
    qmp->greeted = true;
}

static void handle_line(struct qmp *qmp, const char *line, size_t n)
{
    json_auto_t *root = json_loadb(line, n, 0, NULL);
    const json_t *event = json_object_get(root, "event");
    const json_t *ret = json_object_get(root, "return");

    if (!json_is_object(root))
        set_broken(qmp, -EPROTO, "a line that is no JSON object");
    else if (event)
        handle_event(qmp, root, event);
    else if (json_object_get(root, "QMP"))
        handle_greeting(qmp, json_object_get(root, "QMP"));
    else if (ret || json_object_get(root, "error"))
        handle_reply(qmp, root, ret);
    else
        set_broken(qmp, -EPROTO, "an unknown kind of message");
}

/* Delivers every complete line of the buffer. */
static void handle_lines(struct qmp *qmp)
{
    size_t start = 0;

    while (!qmp->broken) {
        char *newline = memchr(qmp->in + qmp->n_scanned, '\n', qmp->n_in - qmp->n_scanned);
        size_t end;

        if (!newline)
            break;
        end = (size_t)(newline - qmp->in);
        if (end > start && !(end == start + 1 && qmp->in[start] == '\r'))
            handle_line(qmp, qmp->in + start, end - start);
        start = qmp->n_scanned = end + 1;
    }
    qmp->n_in -= start;
    memmove(qmp->in, qmp->in + start, qmp->n_in);
    qmp->n_scanned = qmp->n_in;
}

void qmp_feed(struct qmp *qmp, const char *bytes, size_t n_bytes)
{
    while (n_bytes > 0 && !qmp->broken) {
        size_t n = qmp->in_cap - qmp->n_in;

        if (n == 0) {
            char *grown = NULL;

            if (qmp->in_cap < QMP_LINE_MAX)
                grown = realloc(qmp->in, qmp->in_cap * 2);
            if (!grown) {
                set_broken(qmp, -EPROTO, "an overlong line");
                return;
            }
            qmp->in = grown;
            qmp->in_cap *= 2;
            continue;
        }
        n = n < n_bytes ? n : n_bytes;
        memcpy(qmp->in + qmp->n_in, bytes, n);
        qmp->n_in += n;
        bytes += n;
        n_bytes -= n;
        handle_lines(qmp);
    }
}

/* Reads once. Returns false when there is nothing more to read now. */
static bool read_some(struct qmp *qmp)
{
    char bytes[READ_BYTES];
    ssize_t n = FAULTY("qmp.read", recv(qmp->fd, bytes, sizeof(bytes), MSG_DONTWAIT));

    if (n > 0)
        qmp_feed(qmp, bytes, (size_t)n);
    else if (n == 0)
        set_broken(qmp, -ECONNRESET, "QEMU closed the control connection");
    else if (errno == ECONNRESET)
        set_broken(qmp, -ECONNRESET, "QEMU dropped the control connection");
    else if (errno != EAGAIN && errno != EINTR)
        set_broken(qmp, -errno, strerror(errno));
    return n == (ssize_t)sizeof(bytes) && !qmp->broken;
}

void qmp_drain(struct qmp *qmp)
{
    for (int i = 0; i < READS_PER_WAKE && !qmp->broken; i++) {
        if (!read_some(qmp))
            break;
    }
}

static int on_readable(sd_event_source *source, int fd, uint32_t events, void *user)
{
    qmp_drain(user);
    return 0;
}

int qmp_attach(struct qmp *qmp, sd_event *event)
{
    return sd_event_add_io(event, &qmp->source, qmp->fd, EPOLLIN, on_readable, qmp);
}

int qmp_set_priority(struct qmp *qmp, int64_t priority)
{
    return sd_event_source_set_priority(qmp->source, priority);
}

static ssize_t send_with_fd(int sock, const char *line, size_t n, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {(void *)(uintptr_t)line, n};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        struct cmsghdr *cmsg;

        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof(control.bytes);
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
    }
    return FAULTY("qmp.write", sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT));
}

/* Sends text that is part of a command. */
static int send_text(struct qmp *qmp, const char *text, size_t n, int fd)
{
    ssize_t sent = send_with_fd(qmp->fd, text, n, fd);

    if (sent < 0)
        return errno == EPIPE || errno == ECONNRESET ? -ENOTCONN : -errno;
    if ((size_t)sent < n) { /* half a command: the stream cannot be used any more */
        qmp->broken = true;
        return -ENOTCONN;
    }
    return 0;
}

static void ignore_reply(void *user, const json_t *ret, const char *error)
{
    (void)user;
}

/* Completes what was typed ahead: as the command it is, or so that QEMU refuses it. */
static int complete(struct qmp *qmp, const char *text, qmp_reply_fn *fn, void *user)
{
    int r = send_text(qmp, text, strlen(text), -1);

    if (r < 0)
        return r;
    qmp->prepared = NULL;
    qmp->pending[qmp->n_pending++] = (struct pending){++qmp->last_id, fn, user};
    return 0;
}

/* Sends a command without its closing brace. */
static int type_command(struct qmp *qmp, const char *command, const char *arguments, int fd)
{
    char line[COMMAND_MAX];
    int n;

    if (qmp->broken)
        return -ENOTCONN;
    if (qmp->n_pending + 2 > QMP_PENDING_MAX) /* one may be taken by what is voided */
        return -EBUSY;
    if (qmp->prepared) {
        int r = complete(qmp, ",\"void\":0}", ignore_reply, NULL);

        if (r < 0)
            return r;
    }
    n = snprintf(line, sizeof(line), "{\"id\":%" PRIu64 ",\"execute\":\"%s\"%s%s", qmp->last_id + 1,
                 command, *arguments ? ",\"arguments\":" : "", arguments);
    if (n >= (int)sizeof(line))
        return -EMSGSIZE;
    return send_text(qmp, line, (size_t)n, fd);
}

void qmp_prepare(struct qmp *qmp, const char *command, const char *arguments)
{
    if (type_command(qmp, command, arguments, -1) == 0)
        qmp->prepared = command;
}

int qmp_send(struct qmp *qmp, const char *command, const char *arguments, int fd, qmp_reply_fn *fn,
             void *user)
{
    if (qmp->broken)
        return -ENOTCONN;
    if (!qmp->prepared || fd >= 0 || strcmp(qmp->prepared, command) != 0) {
        int r = type_command(qmp, command, arguments, fd);

        if (r < 0)
            return r;
    }
    return complete(qmp, "}", fn, user);
}

/* Reads until *done, the end of the conversation, or a limit. */
static int pump(struct qmp *qmp, const bool *done, const struct qmp_wait *wait, struct err *err)
{
    while (!*done) {
        struct pollfd fds[] = {{.fd = qmp->fd, .events = POLLIN},
                               {.fd = wait->pidfd, .events = POLLIN}};
        int r;

        if (qmp->broken)
            return err_set(err, -ENOTCONN, "QMP: %s", qmp->why_broken);
        r = poll(fds, 2, ms_until(wait->deadline_ns));
        if (r < 0 && errno != EINTR)
            return err_sys(err, -errno, "poll");
        if (r == 0)
            return err_set(err, -ETIMEDOUT, "QEMU does not answer");
        if (r > 0 && fds[0].revents)
            (void)read_some(qmp); /* the loop asks for more by itself */
        else if (r > 0 && fds[1].revents)
            return err_set(err, -ESRCH, "QEMU has ended");
    }
    return 0;
}

int qmp_wait_greeting(struct qmp *qmp, const struct qmp_wait *wait, struct err *err)
{
    return pump(qmp, &qmp->greeted, wait, err);
}

static void on_sync_reply(void *user, const json_t *ret, const char *error)
{
    struct sync_reply *sync = user;

    sync->done = true;
    if (error)
        (void)snprintf(sync->error, sizeof(sync->error), "%s", error);
    else
        sync->value = json_deep_copy(ret);
}

int qmp_call(struct qmp *qmp, const char *command, const char *arguments, int fd,
             const struct qmp_wait *wait, json_t **ret_value, struct err *err)
{
    json_auto_t *value = NULL;
    int r;

    qmp->sync = (struct sync_reply){0};
    r = qmp_send(qmp, command, arguments, fd, on_sync_reply, &qmp->sync);
    if (r < 0)
        return err_sys(err, r, "QMP %s", command);
    r = pump(qmp, &qmp->sync.done, wait, err);
    value = take_ptr(qmp->sync.value);
    if (r == 0 && qmp->sync.error[0])
        r = err_set(err, -EIO, "%s", qmp->sync.error);
    if (r == 0 && !value)
        r = err_set(err, -ENOMEM, "out of memory");
    if (r < 0)
        err_prefix(err, "QMP %s", command);
    else if (ret_value)
        *ret_value = take_ptr(value);
    return r;
}

int qmp_greet(struct qmp *qmp, const struct qmp_wait *wait, struct err *err)
{
    int r;

    qmp->greeting = true;
    qmp->last_id = clock_now_ns(); /* a number that nobody before us has used */
    r = qmp_wait_greeting(qmp, wait, err);
    if (r == 0)
        r = qmp_call(qmp, "qmp_capabilities", qmp->oob ? "{\"enable\":[\"oob\"]}" : "", -1, wait,
                     NULL, err);
    qmp->greeting = false;
    qmp->last_id = 0; /* short again: QEMU reads byte by byte */
    return r;
}
