/* SPDX-License-Identifier: Apache-2.0 */
#include "io/channel.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/cleanup.h"
#include "io/tls.h"
#include "base/fault.h"

enum {
    IN_MAX = WIRE_HEADER_BYTES + 128 * 1024, /* no control message is longer */
    OUT_MAX = 256 * 1024,
    ARBITER_IN_MAX = 16 * 1024, /* no arbiter's message is longer, and a witness has many */
    ARBITER_OUT_MAX = 32 * 1024,
    MESSAGES_PER_WAKEUP = 16, /* so that one peer cannot keep the loop to itself */
};

struct channel {
    struct transport *transport;
    sd_event_source *source;
    sd_event_source *broken_source; /* defers on_broken to the loop */
    enum wire_channel kind;
    const struct channel_callbacks *callbacks;
    void *user;
    bool hello_seen;
    bool broken;
    bool *freed; /* while dispatching: set when a callback freed the channel */
    char why[256];
    size_t in_have, in_need; /* bytes in `in`, and how many make the next item whole */
    size_t out_from, out_to;
    size_t in_max, out_max;
    uint8_t *in, *out; /* behind this */
};

static int on_broken_dispatch(sd_event_source *source, void *user)
{
    struct channel *c = user;

    c->callbacks->on_broken(c->user, c->why);
    return 0;
}

static void fail(struct channel *c, const char *why)
{
    if (c->broken)
        return;
    c->broken = true;
    (void)snprintf(c->why, sizeof(c->why), "%s", why);
    (void)sd_event_source_set_enabled(c->source, SD_EVENT_OFF);
    /* Without memory for the event source, silence will tell what the callback cannot. */
    if (sd_event_add_defer(sd_event_source_get_event(c->source), &c->broken_source,
                           on_broken_dispatch, c) >= 0)
        (void)sd_event_source_set_priority(c->broken_source, SD_EVENT_PRIORITY_IMPORTANT);
}

/* Has the loop wake us for whatever brings the connection on. Of what the transport has read
 * already, poll does not tell; that the socket can be written wakes us as well. */
static void watch(struct channel *c)
{
    const struct transport_ops *ops = c->transport->ops;
    bool write = ops->wants_write ? ops->wants_write(c->transport) : c->out_from < c->out_to;

    if (ops->pending && ops->pending(c->transport))
        write = true;
    if (!c->broken)
        (void)sd_event_source_set_io_events(c->source, EPOLLIN | (write ? EPOLLOUT : 0));
}

static void flush(struct channel *c)
{
    while (c->out_from < c->out_to && !c->broken) {
        struct iovec iov = {c->out + c->out_from, c->out_to - c->out_from};
        ssize_t n = c->transport->ops->writev(c->transport, &iov, 1);

        if (n == -EAGAIN || n == -ENOTCONN)
            break; /* ENOTCONN: still connecting */
        if (n < 0)
            fail(c, transport_why((int)n));
        else
            c->out_from += (size_t)n;
    }
    if (c->out_from == c->out_to)
        c->out_from = c->out_to = 0;
    watch(c);
}

/* Moves what waits to the front of the buffer. Returns the bytes that are free behind it. */
static size_t out_room(struct channel *c)
{
    if (c->out_from) {
        memmove(c->out, c->out + c->out_from, c->out_to - c->out_from);
        c->out_to -= c->out_from;
        c->out_from = 0;
    }
    return c->out_max - c->out_to;
}

void channel_send_hello(struct channel *c, const struct wire_hello *hello)
{
    if (c->broken)
        return;
    if (out_room(c) < WIRE_HELLO_BYTES) {
        fail(c, "the peer does not read");
        return;
    }
    wire_hello_encode(hello, c->out + c->out_to);
    c->out_to += WIRE_HELLO_BYTES;
    flush(c);
}

void channel_send(struct channel *c, const struct wire_msg *msg)
{
    size_t room;
    int64_t n;

    if (c->broken)
        return;
    room = out_room(c);
    n = wire_msg_encode(msg, c->out + c->out_to, room);
    if (n == -ENOSPC) {
        fail(c, "the peer does not read");
        return;
    }
    assert(n > 0); /* our own message: always encodable */
    c->out_to += (size_t)n;
    flush(c);
}

static void hello_complete(struct channel *c)
{
    struct wire_hello hello;
    struct err err;

    c->hello_seen = true;
    c->in_need = WIRE_HEADER_BYTES;
    if (wire_hello_decode(c->in, &hello, &err) < 0)
        fail(c, err.text);
    else
        c->callbacks->on_hello(c->user, &hello);
}

static void message_complete(struct channel *c)
{
    struct wire_header header;
    struct wire_msg msg;
    struct err err;

    if (wire_header_decode(c->in, c->kind, &header, &err) < 0) {
        fail(c, err.text);
        return;
    }
    if (c->in_need == WIRE_HEADER_BYTES && header.length) {
        if (header.length > c->in_max - WIRE_HEADER_BYTES) {
            fail(c, "a control message is too long");
            return;
        }
        c->in_need += header.length;
        c->in_have = WIRE_HEADER_BYTES;
        return;
    }
    c->in_need = WIRE_HEADER_BYTES;
    if (wire_msg_decode(c->in, &header, c->in + WIRE_HEADER_BYTES, &msg, &err) < 0)
        fail(c, err.text);
    else
        c->callbacks->on_message(c->user, &msg);
}

/* Takes the bytes of the next item; calls back when it is whole. False when there are no more. */
static bool read_some(struct channel *c, bool *freed)
{
    struct iovec iov = {c->in + c->in_have, c->in_need - c->in_have};
    ssize_t n = c->transport->ops->readv(c->transport, &iov, 1);
    size_t need = c->in_need;

    if (n == -EAGAIN || n == -ENOTCONN)
        return false;
    if (n <= 0) {
        fail(c, transport_why(n == 0 ? -ECONNRESET : (int)n));
        return false;
    }
    c->in_have += (size_t)n;
    if (c->in_have < need)
        return true;
    if (!c->hello_seen)
        hello_complete(c);
    else
        message_complete(c);
    if (*freed || c->broken)
        return false;
    if (c->in_need <= need)
        c->in_have = 0; /* that item is done */
    return true;
}

/* Reads first: in a handshake that is what brings the writing on. */
static int on_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct channel *c = user;
    bool freed = false;

    c->freed = &freed;
    for (int i = 0; i < 2 * MESSAGES_PER_WAKEUP && !c->broken; i++) {
        if (!read_some(c, &freed))
            break;
    }
    if (!freed) {
        flush(c);
        c->freed = NULL;
    }
    return 0;
}

int channel_new(sd_event *event, struct transport *t, enum wire_channel kind, int64_t priority,
                const struct channel_callbacks *callbacks, void *user, struct channel **ret_channel)
{
    bool small = kind == WIRE_CHANNEL_ARBITER;
    size_t in_max = small ? ARBITER_IN_MAX : IN_MAX, out_max = small ? ARBITER_OUT_MAX : OUT_MAX;
    struct channel *c = FAULTY_ALLOC("tcp.channel-room", malloc(sizeof(*c) + in_max + out_max));
    int r;

    if (!c) {
        t->ops->close(t);
        return -ENOMEM;
    }
    memset(c, 0, sizeof(*c)); /* what is in the buffers does not matter */
    c->transport = t;
    c->kind = kind;
    c->callbacks = callbacks;
    c->user = user;
    c->in_max = in_max;
    c->out_max = out_max;
    c->in = (uint8_t *)(c + 1);
    c->out = c->in + in_max;
    c->in_need = WIRE_HELLO_BYTES;
    r = transport_set_blocking(t, false);
    if (r >= 0)
        r = sd_event_add_io(event, &c->source, t->ops->fd(t), EPOLLIN, on_io, c);
    if (r >= 0)
        r = sd_event_source_set_priority(c->source, priority);
    if (r < 0) {
        channel_close(c);
        return r;
    }
    watch(c);
    *ret_channel = c;
    return 0;
}

void channel_set_callbacks(struct channel *c, const struct channel_callbacks *callbacks, void *user)
{
    c->callbacks = callbacks;
    c->user = user;
}

static void channel_free(struct channel *c)
{
    if (c->freed)
        *c->freed = true;
    sd_event_source_disable_unref(c->source);
    sd_event_source_disable_unref(c->broken_source);
    free(c);
}

const struct public_key *channel_peer_key(const struct channel *c)
{
    return tls_peer_key(c->transport);
}

struct transport *channel_take_transport(struct channel *c)
{
    struct transport *t;

    flush(c);
    t = take_ptr(c->transport);
    channel_free(c);
    return t;
}

void channel_close(struct channel *c)
{
    if (!c)
        return;
    sd_event_source_disable_unref(take_ptr(c->source)); /* before its descriptor is closed */
    c->transport->ops->close(c->transport);
    channel_free(c);
}
