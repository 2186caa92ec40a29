/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/control.h"
#include "io/control_line.h"
#include "io/unix_socket.h"

/* The server side of the control protocol.
 *
 * A connection is either reading (no request open), or has a request open and then reads nothing,
 * so that a client which sends ahead waits in its own socket buffer. Meanwhile it only listens for
 * EPOLLHUP: the client has closed. A client that has merely shut down its sending side (as `socat`
 * does at the end of its input) still gets its answers.
 *
 * A connection that broke is marked dead and freed by the outermost function of this file that
 * works on it: answers may be given from inside the handler, which is called from inside the
 * reading. */

struct control_server {
    sd_event *event; /* borrowed */
    sd_event_source *accepts;
    int sock;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    control_handler_fn *handler;
    void *user;
    gid_t group; /* its members are served; (gid_t)-1: none */
    unsigned n_clients;
    struct client *clients;
};

struct client {
    struct client *prev, *next;
    struct control_server *server;
    sd_event_source *io;
    int sock;
    int passed_fd; /* came with the request that is being read, or -1 */
    struct control_buf in, out;
    struct control_request *open; /* the request that waits for its answer, or NULL */
    bool input_ended;
    bool dead;
    unsigned busy; /* functions of this file at work on it */
};

struct control_request {
    struct client *client; /* NULL: gone */
    json_t *body;
    int fd;
    control_gone_fn *on_gone;
    void *gone_user;
};

static void client_free(struct client *c)
{
    struct control_server *s = c->server;

    if (c->prev)
        c->prev->next = c->next;
    else
        s->clients = c->next;
    if (c->next)
        c->next->prev = c->prev;
    s->n_clients--;
    sd_event_source_disable_unref(c->io);
    close(c->sock);
    if (c->passed_fd >= 0)
        close(c->passed_fd);
    control_buf_done(&c->in);
    control_buf_done(&c->out);
    free(c);
}

/* Separates an open request from a client that goes away. */
static void client_detach(struct client *c)
{
    struct control_request *req = c->open;

    c->open = NULL;
    if (!req)
        return;
    req->client = NULL;
    if (req->on_gone)
        req->on_gone(req->gone_user);
}

static void client_enter(struct client *c)
{
    c->busy++;
}

static void client_leave(struct client *c)
{
    uint32_t events = c->out.n ? EPOLLOUT : 0;

    if (--c->busy > 0)
        return;
    if (c->input_ended && !c->open && !c->out.n)
        c->dead = true;
    if (!c->dead) {
        if (!c->open && !c->input_ended)
            events |= EPOLLIN;
        if (sd_event_source_set_io_events(c->io, events) >= 0)
            return;
    }
    client_detach(c);
    client_free(c);
}

static void client_send(struct client *c, const json_t *json)
{
    int no_fd = -1;

    if (c->dead)
        return;
    if (!json || control_buf_add_json(&c->out, json) < 0 ||
        control_buf_flush(&c->out, c->sock, &no_fd) < 0)
        c->dead = true;
}

static void client_refuse(struct client *c, const char *why)
{
    json_t *json = json_pack("{s:b, s:s}", "ok", 0, "error", why);

    client_send(c, json);
    json_decref(json);
}

static void client_request(struct client *c, const char *line, size_t n)
{
    struct control_request *req;
    struct err err;
    json_t *body;
    CLEANUP_FD int passed_fd = take_fd(&c->passed_fd);

    if (control_parse_request(line, n, &body, &err) < 0) {
        client_refuse(c, err.text);
        return;
    }
    req = FAULTY_ALLOC("control.request-room", malloc(sizeof(*req)));
    if (!req) {
        json_decref(body);
        c->dead = true;
        return;
    }
    *req = (struct control_request){.client = c, .body = body, .fd = take_fd(&passed_fd)};
    c->open = req;
    c->server->handler(c->server->user, req);
}

/* Works on the lines that are there, until a request stays open. */
static void client_lines(struct client *c)
{
    ssize_t n;

    while (!c->dead && !c->open && (n = control_buf_line(&c->in)) >= 0) {
        CLEANUP_FREE char *line = strndup(c->in.bytes, (size_t)n);

        control_buf_drop(&c->in, (size_t)n + 1);
        if (!line)
            c->dead = true;
        else if (strlen(line) != (size_t)n)
            client_refuse(c, "a NUL byte in the request");
        else if (n > 0)
            client_request(c, line, (size_t)n);
    }
}

static void client_read(struct client *c)
{
    ssize_t n = control_buf_read(&c->in, c->sock, &c->passed_fd);

    if (n == -EMSGSIZE)
        client_refuse(c, "the line is too long");
    if (n == 0)
        c->input_ended = true;
    else if (n < 0 && n != -EAGAIN)
        c->dead = true;
    else
        client_lines(c);
}

static int on_client_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct client *c = user;
    int no_fd = -1;

    client_enter(c);
    if ((events & EPOLLOUT) && control_buf_flush(&c->out, c->sock, &no_fd) < 0)
        c->dead = true;
    if ((events & EPOLLIN) && !c->dead)
        client_read(c);
    else if (events & (EPOLLHUP | EPOLLERR))
        c->dead = true;
    client_leave(c);
    return 0;
}

/* True when the client was in the group when it connected, by its own or another one of its
 * groups. */
static bool client_in_group(int sock, gid_t own, gid_t group)
{
    CLEANUP_FREE gid_t *groups = NULL;
    socklen_t n = 0;

    if (own == group)
        return true;
    /* Without room it says how much is needed; success means that there are none. */
    if (getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, NULL, &n) == 0 || errno != ERANGE)
        return false;
    groups = malloc(n);
    if (!groups || getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, groups, &n) < 0)
        return false;
    for (size_t i = 0; i < n / sizeof(*groups); i++) {
        if (groups[i] == group)
            return true;
    }
    return false;
}

static bool client_allowed(const struct control_server *s, int sock)
{
    struct ucred cred;
    socklen_t n = sizeof(cred);

    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
        return false;
    if (cred.uid == 0 || cred.uid == geteuid())
        return true;
    return s->group != (gid_t)-1 && client_in_group(sock, cred.gid, s->group);
}

static int on_accept(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct control_server *s = user;
    CLEANUP_FD int sock =
        FAULTY("control.accept", accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
    struct client *c;

    if (sock < 0 || s->n_clients == CONTROL_CLIENTS_MAX || !client_allowed(s, sock))
        return 0;
    c = malloc(sizeof(*c));
    if (!c)
        return 0;
    *c = (struct client){.server = s, .sock = sock, .passed_fd = -1, .next = s->clients};
    if (sd_event_add_io(s->event, &c->io, sock, EPOLLIN, on_client_io, c) < 0) {
        free(c);
        return 0;
    }
    (void)take_fd(&sock);
    if (s->clients)
        s->clients->prev = c;
    s->clients = c;
    s->n_clients++;
    return 0;
}

int control_server_new(sd_event *event, const char *path, control_handler_fn *handler, void *user,
                       struct control_server **ret_server, struct err *err)
{
    CLEANUP_FREE struct control_server *s = calloc(1, sizeof(*s));
    CLEANUP_FD int sock = -1, probe = -1;
    int r;

    if (!s)
        return err_set(err, -ENOMEM, "%s: out of memory", path);
    /* A socket that nobody serves any more is replaced. */
    if (control_connect(path, &probe, NULL) == 0)
        return err_set(err, -EADDRINUSE, "%s: another process serves it", path);
    r = unix_listen(path, CONTROL_CLIENTS_MAX, &sock, err);
    if (r < 0)
        return r;
    memcpy(s->path, path, strlen(path)); /* fits, or it would not listen */
    s->event = event;
    s->handler = handler;
    s->user = user;
    s->group = (gid_t)-1;
    r = sd_event_add_io(event, &s->accepts, sock, EPOLLIN, on_accept, s);
    if (r < 0)
        return err_sys(err, r, "%s", path);
    s->sock = take_fd(&sock);
    *ret_server = take_ptr(s);
    return 0;
}

int control_server_allow(struct control_server *s, gid_t group, struct err *err)
{
    if (chown(s->path, (uid_t)-1, group) < 0 || chmod(s->path, 0660) < 0)
        return err_sys(err, -errno, "%s", s->path);
    s->group = group;
    return 0;
}

void control_server_close(struct control_server *s)
{
    if (!s)
        return;
    sd_event_source_disable_unref(s->accepts);
    close(s->sock);
    (void)unlink(s->path); /* already gone is as good */
    for (struct client *c = s->clients, *next; c; c = next) {
        next = c->next;
        if (c->open)
            c->open->client = NULL;
        client_free(c);
    }
    free(s);
}

const char *control_command(const struct control_request *req)
{
    return control_string(req, "command");
}

json_t *control_body(const struct control_request *req)
{
    return req->body;
}

const char *control_string(const struct control_request *req, const char *key)
{
    return json_string_value(json_object_get(req->body, key));
}

int control_take_fd(struct control_request *req)
{
    return take_fd(&req->fd);
}

void control_on_gone(struct control_request *req, control_gone_fn *fn, void *user)
{
    req->on_gone = fn;
    req->gone_user = user;
}

void control_progress(struct control_request *req, json_t *progress)
{
    json_t *json = json_pack("{s:o}", "progress", progress);
    struct client *c = req->client;
    int no_fd = -1;

    /* Only while nothing waits: progress is worth nothing once it is late. A connection that breaks
     * here reports itself to the loop. */
    if (c && !c->out.n && control_buf_add_json(&c->out, json) == 0 &&
        control_buf_flush(&c->out, c->sock, &no_fd) == 0)
        (void)sd_event_source_set_io_events(c->io, c->out.n ? EPOLLOUT : 0);
    json_decref(json);
}

void control_reply(struct control_request *req, json_t *answer)
{
    struct client *c = req->client;
    json_t *json = answer ? answer : json_object();

    if (!json_object_get(json, "ok"))
        (void)json_object_set_new(json, "ok", json_true()); /* fails for a NULL json only */
    if (c) {
        client_enter(c);
        c->open = NULL;
        client_send(c, json);
        if (c->busy == 1) /* else the loop that called the handler goes on */
            client_lines(c);
        client_leave(c);
    }
    json_decref(json);
    json_decref(req->body);
    if (req->fd >= 0)
        close(req->fd);
    free(req);
}

void control_fail(struct control_request *req, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    control_reply(req, json_pack("{s:b, s:s}", "ok", 0, "error", text));
}
