/* SPDX-License-Identifier: Apache-2.0 */
#include "line_server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int line_server_open(struct line_server *s, uint16_t port, line_answer_fn *answer, void *ctx)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1;

    s->answer = answer;
    s->ctx = ctx;
    for (int i = 0; i < LINE_CONNS; i++)
        s->conns[i].fd = -1;

    s->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->listen_fd < 0)
        return -errno;
    if (setsockopt(s->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(s->listen_fd, (struct sockaddr *)&any, sizeof(any)) < 0 ||
        listen(s->listen_fd, LINE_CONNS) < 0) {
        int err = -errno;

        close(s->listen_fd);
        return err;
    }
    return 0;
}

static void conn_close(struct line_conn *c)
{
    close(c->fd);
    c->fd = -1;
}

static void conn_accept(struct line_server *s)
{
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int one = 1, idle_s = 60;

    if (fd < 0)
        return; /* the client has gone again */
    /* Failing to set these costs latency or a slot, not correctness. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));

    for (int i = 0; i < LINE_CONNS; i++) {
        struct line_conn *c = &s->conns[i];

        if (c->fd >= 0)
            continue;
        *c = (struct line_conn){.fd = fd};
        return;
    }
    close(fd);
}

/* The caller has made sure that LINE_BYTES are free in c->out. */
static void conn_put(struct line_conn *c, const char *answer)
{
    int n = snprintf(c->out + c->out_bytes, LINE_BYTES, "%.*s\n", LINE_BYTES - 2, answer);

    c->out_bytes += (size_t)n;
}

/* Answers a whole line; end points at its newline. */
static void conn_line(struct line_server *s, struct line_conn *c, char *end)
{
    char answer[LINE_BYTES - 1] = "ERR line has a NUL byte";
    size_t used = (size_t)(end - c->in) + 1;

    if (c->skipping) {
        c->skipping = false; /* its error was sent when it grew too long */
    } else {
        *end = '\0';
        if (strlen(c->in) == used - 1)
            s->answer(s->ctx, c->in, answer, sizeof(answer));
        conn_put(c, answer);
    }
    c->in_bytes -= used;
    memmove(c->in, c->in + used, c->in_bytes);
}

/* Answers what c->in holds, as long as there is room for the answers. */
static void conn_answer(struct line_server *s, struct line_conn *c)
{
    while (c->in_bytes && sizeof(c->out) - c->out_bytes >= LINE_BYTES) {
        char *end = memchr(c->in, '\n', c->in_bytes);

        if (end) {
            conn_line(s, c, end);
        } else if (c->in_bytes == sizeof(c->in)) {
            if (!c->skipping)
                conn_put(c, "ERR line too long");
            c->skipping = true;
            c->in_bytes = 0;
        } else {
            return;
        }
    }
}

static void conn_read(struct line_conn *c)
{
    ssize_t n = recv(c->fd, c->in + c->in_bytes, sizeof(c->in) - c->in_bytes, 0);

    if (n > 0)
        c->in_bytes += (size_t)n;
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        conn_close(c);
}

static void conn_write(struct line_conn *c)
{
    ssize_t n = send(c->fd, c->out, c->out_bytes, MSG_NOSIGNAL);

    if (n > 0) {
        c->out_bytes -= (size_t)n;
        memmove(c->out, c->out + n, c->out_bytes);
    } else if (errno != EAGAIN && errno != EINTR) {
        conn_close(c);
    }
}

static void conn_serve(struct line_server *s, struct line_conn *c, short revents)
{
    if (revents & (POLLIN | POLLHUP | POLLERR) && c->in_bytes < sizeof(c->in))
        conn_read(c);
    if (c->fd < 0)
        return;
    conn_answer(s, c);
    if (c->out_bytes)
        conn_write(c);
}

int line_server_poll(struct line_server *s, int timeout_ms)
{
    struct pollfd fds[LINE_CONNS + 1];

    for (int i = 0; i < LINE_CONNS; i++) {
        const struct line_conn *c = &s->conns[i];

        /* poll() skips a negative fd. */
        fds[i] = (struct pollfd){.fd = c->fd, .events = c->out_bytes ? POLLOUT : POLLIN};
    }
    fds[LINE_CONNS] = (struct pollfd){.fd = s->listen_fd, .events = POLLIN};

    int n = poll(fds, LINE_CONNS + 1, timeout_ms);

    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; n > 0 && i < LINE_CONNS; i++) {
        if (fds[i].revents)
            conn_serve(s, &s->conns[i], fds[i].revents);
    }
    if (fds[LINE_CONNS].revents)
        conn_accept(s);
    return 0;
}
