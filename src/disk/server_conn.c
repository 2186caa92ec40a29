/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/fault.h"
#include "disk/server_internal.h"

/* A connection reads into `into` until n_wanted bytes are there, then does what its state says. It
 * stops reading while it has as many requests, or as many of their bytes, as it may have; so a
 * client's memory here is bounded by twice BYTES_MAX. It is freed by connections_update() only, so
 * that whoever works on it may mark it as ended. */

enum {
    REQUESTS_MAX = 64,
    BYTES_MAX = NBD_DATA_MAX,
    STEPS_AT_ONCE = 256, /* of one connection, before others get their turn */
    REPLIES_AT_ONCE = 32,
};

enum connection_state {
    READS_FLAGS,
    READS_OPTION,
    READS_OPTION_DATA,
    READS_REQUEST,
    READS_PAYLOAD,
};

struct connection {
    struct watch watch;
    struct connection *next;
    struct server_disk *disk;
    enum connection_state state;
    bool no_zeroes; /* negotiated */
    bool leaving;   /* reads nothing any more; ends with its last reply */
    bool ended;
    uint32_t events; /* that its socket is watched for */

    uint8_t *into; /* `in`, or the data of `reading` */
    size_t n_wanted, n_got;
    size_t n_ahead; /* bytes of the next request's header, which came with a payload, in `in` */
    uint8_t in[NBD_OPTION_DATA_MAX];
    struct nbd_option option;
    struct request *reading; /* READS_PAYLOAD */

    unsigned n_requests; /* read, and not yet replied to */
    uint64_t n_bytes;    /* of their data */
    struct request_list held, replies;
};

static void connection_ready(struct watch *w, uint32_t events);

struct server_disk *connection_disk(const struct connection *c)
{
    return c->disk;
}

static void expect(struct connection *c, enum connection_state state, uint8_t *into, size_t n)
{
    c->state = state;
    c->into = into;
    c->n_wanted = n;
    c->n_got = 0;
}

static void expect_request(struct connection *c)
{
    expect(c, READS_REQUEST, c->in, NBD_REQUEST_BYTES);
    c->n_got = c->n_ahead;
    c->n_ahead = 0;
}

static void break_connection(struct connection *c, const char *why)
{
    if (!c->ended)
        log_limited(&c->disk->server->breaks, LOG_WARNING, "%s: client disconnected: %s",
                    c->disk->image->path, why);
    c->ended = true;
}

/* What is said while negotiating is little; a client that does not take it is none. */
static void say(struct connection *c, const uint8_t *bytes, size_t n)
{
    if (send(c->watch.fd, bytes, n, MSG_NOSIGNAL) != (ssize_t)n)
        break_connection(c, "it does not listen");
}

void connection_new(struct server_disk *disk, int sock)
{
    struct disk_server *s = disk->server;
    struct connection *c = NULL;
    uint8_t greeting[NBD_GREETING_BYTES];

    if (disk->n_connections < DISK_SERVER_CONNECTIONS_MAX)
        c = calloc(1, sizeof(*c));
    if (!c) {
        close(sock);
        return;
    }
    c->watch = (struct watch){connection_ready, sock};
    c->disk = disk;
    c->next = s->connections;
    s->connections = c;
    disk->n_connections++;
    c->events = EPOLLIN;
    if (server_watch(s, &c->watch, c->events) < 0)
        c->ended = true;
    nbd_greeting_encode(greeting);
    say(c, greeting, sizeof(greeting));
    expect(c, READS_FLAGS, c->in, NBD_FLAGS_BYTES);
}

static void connection_free(struct connection *c)
{
    struct request *q;

    jobs_cancel(c->disk->server, c);
    while ((q = request_list_take(&c->held)) || (q = request_list_take(&c->replies)))
        free(q);
    free(c->reading);
    close(c->watch.fd);
    c->disk->n_connections--;
    free(c);
}

/* More than is wanted is taken only behind a payload: the next request often follows at once.
 * True: there is more to do. */
static bool fill(struct connection *c)
{
    struct iovec iov[] = {
        {c->into + c->n_got, c->n_wanted - c->n_got},
        {c->in, NBD_REQUEST_BYTES},
    };
    ssize_t n;

    if (c->n_got == c->n_wanted)
        return true;
    n = readv(c->watch.fd, iov, c->state == READS_PAYLOAD ? 2 : 1);
    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR))
            c->ended = true; /* the client has gone */
        return false;
    }
    c->n_got += (size_t)n;
    if (c->n_got < c->n_wanted)
        return false;
    c->n_ahead = c->n_got - c->n_wanted;
    c->n_got = c->n_wanted;
    return true;
}

static void option_read(struct connection *c)
{
    uint8_t answer[NBD_ANSWER_MAX];
    enum nbd_next next;
    size_t n;

    next = nbd_option_answer(&c->disk->export, c->no_zeroes, &c->option, c->in, answer, &n);
    if (n > 0)
        say(c, answer, n);
    if (next == NBD_NEXT_CLOSE)
        c->ended = true;
    else if (next == NBD_NEXT_REQUEST)
        expect_request(c);
    else
        expect(c, READS_OPTION, c->in, NBD_OPTION_BYTES);
}

static void request_read(struct connection *c, struct request *q)
{
    expect_request(c);
    request_begin(q);
}

static void request_header_read(struct connection *c, const struct nbd_request *nbd)
{
    uint64_t n_data = nbd->n_payload;
    struct request *q;

    if (nbd->command == NBD_DISC) {
        c->leaving = true;
        return;
    }
    if (nbd->command == NBD_READ && nbd->refusal == 0)
        n_data = nbd->n_bytes;
    q = malloc(sizeof(*q) + n_data);
    if (!q) {
        break_connection(c, "out of memory");
        return;
    }
    *q = (struct request){.connection = c, .nbd = *nbd};
    c->n_requests++;
    c->n_bytes += n_data;
    if (nbd->n_payload) {
        c->reading = q;
        expect(c, READS_PAYLOAD, q->data, nbd->n_payload);
    } else {
        request_read(c, q);
    }
}

/* What was wanted is there. -EPROTO: it breaks the protocol. */
static int step(struct connection *c, struct err *err)
{
    struct nbd_request nbd;
    struct request *q;
    int r = 0;

    switch (c->state) {
    case READS_FLAGS:
        r = nbd_flags_decode(c->in, &c->no_zeroes, err);
        expect(c, READS_OPTION, c->in, NBD_OPTION_BYTES);
        break;
    case READS_OPTION:
        r = nbd_option_decode(c->in, &c->option, err);
        if (r == 0)
            expect(c, READS_OPTION_DATA, c->in, c->option.n_data);
        break;
    case READS_OPTION_DATA:
        option_read(c);
        break;
    case READS_REQUEST:
        r = nbd_request_decode(c->in, &c->disk->export, &nbd, err);
        if (r == 0)
            request_header_read(c, &nbd);
        break;
    case READS_PAYLOAD:
        q = c->reading;
        c->reading = NULL;
        request_read(c, q);
        break;
    }
    return r;
}

static bool may_read(const struct connection *c)
{
    if (c->ended || c->leaving)
        return false;
    return c->reading || (c->n_requests < REQUESTS_MAX && c->n_bytes < BYTES_MAX);
}

static void read_on(struct connection *c)
{
    struct err err;

    for (unsigned i = 0; i < STEPS_AT_ONCE && may_read(c) && fill(c); i++) {
        if (step(c, &err) < 0)
            break_connection(c, err.text);
    }
}

static void connection_ready(struct watch *w, uint32_t events)
{
    struct connection *c = (struct connection *)w;

    if (may_read(c))
        read_on(c);
    else if (events & (EPOLLHUP | EPOLLERR))
        c->ended = true;
}

void connection_reply(struct request *q, int error)
{
    nbd_reply_encode(q->nbd.cookie, error, q->reply);
    q->error = error;
    request_list_add(&q->connection->replies, q);
}

void connection_hold(struct request *q)
{
    request_list_add(&q->connection->held, q);
}

static size_t reply_data_bytes(const struct request *q)
{
    return q->nbd.command == NBD_READ && q->error == 0 ? q->nbd.n_bytes : 0;
}

/* What is left of a reply. Returns how many iov it takes. */
static unsigned reply_iov(struct request *q, struct iovec iov[static 2])
{
    size_t n_data = reply_data_bytes(q), data_sent = 0;
    unsigned n = 0;

    if (q->n_sent < NBD_REPLY_BYTES)
        iov[n++] = (struct iovec){q->reply + q->n_sent, NBD_REPLY_BYTES - q->n_sent};
    else
        data_sent = q->n_sent - NBD_REPLY_BYTES;
    if (n_data > 0)
        iov[n++] = (struct iovec){q->data + data_sent, n_data - data_sent};
    return n;
}

static void reply_sent(struct connection *c, struct request *q)
{
    c->n_requests--;
    c->n_bytes -=
        q->nbd.command == NBD_READ ? (q->nbd.refusal ? 0 : q->nbd.n_bytes) : q->nbd.n_payload;
    free(q);
}

/* The first n bytes of the replies have gone out. */
static void replies_advance(struct connection *c, size_t n)
{
    struct request *q;

    while ((q = c->replies.first)) {
        size_t left = NBD_REPLY_BYTES + reply_data_bytes(q) - q->n_sent;

        if (n < left) {
            q->n_sent += n;
            return;
        }
        n -= left;
        reply_sent(c, request_list_take(&c->replies));
    }
}

static void send_replies(struct connection *c)
{
    while (c->replies.first && !c->ended) {
        struct iovec iov[2 * REPLIES_AT_ONCE];
        struct msghdr msg = {.msg_iov = iov};
        ssize_t n;

        for (struct request *q = c->replies.first; q && msg.msg_iovlen < 2 * REPLIES_AT_ONCE - 1;
             q = q->next)
            msg.msg_iovlen += reply_iov(q, iov + msg.msg_iovlen);
        n = FAULTY("disk.reply", sendmsg(c->watch.fd, &msg, MSG_NOSIGNAL));
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0 && errno != EINTR)
            c->ended = true; /* the client has gone */
        else if (n > 0)
            replies_advance(c, (size_t)n);
    }
}

static void update(struct connection *c)
{
    struct disk_server *s = c->disk->server;
    uint32_t events = 0;

    send_replies(c);
    if (may_read(c) && c->n_got == c->n_wanted) {
        /* What stopped for want of room has been read already: the socket will not tell. */
        read_on(c);
        server_wake(s);
    }
    if (c->leaving && c->n_requests == 0)
        c->ended = true;
    if (may_read(c))
        events |= EPOLLIN;
    if (c->replies.first)
        events |= EPOLLOUT;
    if (events != c->events && server_rewatch(s, &c->watch, events) < 0)
        c->ended = true;
    c->events = events;
}

void connections_update(struct disk_server *s)
{
    struct connection **at = &s->connections, *c;

    while ((c = *at)) {
        if (!c->ended)
            update(c);
        if (c->ended) {
            *at = c->next;
            connection_free(c);
        } else {
            at = &c->next;
        }
    }
}

void connections_close(struct disk_server *s)
{
    for (struct connection *c = s->connections; c; c = c->next)
        c->ended = true;
    connections_update(s);
}

void connections_retry(struct disk_server *s)
{
    for (struct connection *c = s->connections; c; c = c->next) {
        struct request_list held = c->held;
        struct request *q;

        c->held = (struct request_list){0};
        while ((q = request_list_take(&held)))
            request_begin(q);
    }
}
