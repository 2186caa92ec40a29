/* SPDX-License-Identifier: Apache-2.0 */
#include "io/control_line.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/control.h"

enum { FDS_MAX = 4 }; /* descriptors looked at per read; the kernel closes what does not fit */

void control_buf_done(struct control_buf *buf)
{
    free(buf->bytes);
    *buf = (struct control_buf){0};
}

static int reserve(struct control_buf *buf, size_t n)
{
    size_t room = buf->room ? buf->room : 4096;
    char *bytes;

    while (room < buf->n + n)
        room *= 2;
    if (room == buf->room)
        return 0;
    bytes = realloc(buf->bytes, room);
    if (!bytes)
        return -ENOMEM;
    buf->bytes = bytes;
    buf->room = room;
    return 0;
}

static void take_fds(struct msghdr *msg, int *ret_fd)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        size_t n;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
            if (ret_fd && *ret_fd < 0)
                *ret_fd = fd;
            else
                close(fd);
        }
    }
}

ssize_t control_buf_read(struct control_buf *buf, int sock, int *ret_fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct msghdr msg = {.msg_control = &control, .msg_controllen = sizeof(control)};
    struct iovec iov;
    ssize_t n;

    if (buf->n >= CONTROL_LINE_MAX)
        return -EMSGSIZE;
    if (reserve(buf, 4096) < 0)
        return -ENOMEM;
    iov = (struct iovec){.iov_base = buf->bytes + buf->n, .iov_len = buf->room - buf->n};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    do {
        n = FAULTY("control.read", recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    take_fds(&msg, ret_fd);
    buf->n += (size_t)n;
    return n;
}

ssize_t control_buf_line(const struct control_buf *buf)
{
    const char *end = buf->n ? memchr(buf->bytes, '\n', buf->n) : NULL;

    return end ? end - buf->bytes : -1;
}

void control_buf_drop(struct control_buf *buf, size_t n)
{
    buf->n -= n;
    memmove(buf->bytes, buf->bytes + n, buf->n);
}

int control_buf_add(struct control_buf *buf, const char *bytes, size_t n)
{
    if (reserve(buf, n) < 0)
        return -ENOMEM;
    memcpy(buf->bytes + buf->n, bytes, n);
    buf->n += n;
    return 0;
}

int control_buf_add_json(struct control_buf *buf, const json_t *json)
{
    CLEANUP_FREE char *text = json_dumps(json, JSON_COMPACT);
    size_t n;

    if (!text)
        return -ENOMEM;
    n = strlen(text);
    if (buf->n + n + 1 > CONTROL_LINE_MAX)
        return -ENOBUFS;
    text[n] = '\n'; /* in place of the NUL */
    return control_buf_add(buf, text, n + 1);
}

static ssize_t send_some(struct control_buf *buf, int sock, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = buf->bytes, .iov_len = buf->n};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        struct cmsghdr *c;

        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(fd));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    return FAULTY("control.write", sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL));
}

int control_buf_flush(struct control_buf *buf, int sock, int *fd)
{
    while (buf->n > 0) {
        ssize_t n = send_some(buf, sock, *fd);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? 0 : -errno;
        *fd = -1;
        control_buf_drop(buf, (size_t)n);
    }
    return 0;
}

static int parse_object(const char *line, size_t n, json_t **ret_json, struct err *err)
{
    json_error_t why;
    json_t *json = json_loadb(line, n, JSON_REJECT_DUPLICATES, &why);

    if (!json)
        return err_set(err, -EPROTO, "not a line of JSON: %s", why.text);
    if (!json_is_object(json)) {
        json_decref(json);
        return err_set(err, -EPROTO, "not a JSON object");
    }
    *ret_json = json;
    return 0;
}

int control_parse_request(const char *line, size_t n, json_t **ret_body, struct err *err)
{
    json_t *body;
    int r = parse_object(line, n, &body, err);

    if (r < 0)
        return r;
    if (!json_is_string(json_object_get(body, "command"))) {
        json_decref(body);
        return err_set(err, -EPROTO, "no \"command\" in the request");
    }
    *ret_body = body;
    return 0;
}

int control_parse_answer(const char *line, size_t n, json_t **ret_json, bool *ret_is_answer,
                         struct err *err)
{
    json_t *json;
    int r = parse_object(line, n, &json, err);

    if (r < 0)
        return r;
    *ret_is_answer = json_is_boolean(json_object_get(json, "ok"));
    if (!*ret_is_answer && !json_is_object(json_object_get(json, "progress"))) {
        json_decref(json);
        return err_set(err, -EPROTO, "neither an answer nor progress");
    }
    *ret_json = json;
    return 0;
}

int control_connect(const char *path, int *ret_sock, struct err *err)
{
    CLEANUP_FD int sock = -1;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(addr.sun_path))
        return err_set(err, -ENAMETOOLONG, "%s: too long for the path of a socket", path);
    memcpy(addr.sun_path, path, strlen(path));
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (sock < 0)
        return err_sys(err, -errno, "socket");
    /* On a UNIX socket this succeeds or fails at once; EAGAIN means that its queue is full. */
    if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
        return err_sys(err, -errno, "%s", path);
    *ret_sock = take_fd(&sock);
    return 0;
}
