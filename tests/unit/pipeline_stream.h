/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_PIPELINE_STREAM_H
#define US_TESTS_PIPELINE_STREAM_H

#include <stdlib.h>

#include "pipeline_rig.h"

/* What goes over the data channel, in memory: recorded from the sender or made by hand, and played
 * to the receiver. */

struct stream {
    uint8_t *bytes;
    size_t n, room;
};

static inline void stream_add(struct stream *s, const void *bytes, size_t n)
{
    if (s->n + n > s->room) {
        s->room = (s->n + n) * 2;
        s->bytes = realloc(s->bytes, s->room);
        assert_non_null(s->bytes);
    }
    if (n) /* an empty stream has no memory yet */
        memcpy(s->bytes + s->n, bytes, n);
    s->n += n;
}

/* The sender writes to a socket of ours, from now on. */
static inline int stream_attach(struct rig *rig)
{
    int fd[2];

    rig_socketpair(fd);
    rig_attach_sender(rig, fd[0]);
    return fd[1];
}

/* All that the sender writes, up to the end of an epoch that it was fed; closes the socket. */
static inline struct stream stream_collect(struct rig *rig, int fd, uint64_t epoch)
{
    struct stream s = {0};
    struct sender_report report;
    uint8_t buffer[65536];

    do { /* all that was written before the report is there to be read after it */
        struct pollfd p[2] = {{.fd = fd, .events = POLLIN},
                              {.fd = rig->send_event, .events = POLLIN}};
        uint64_t count;
        ssize_t n;

        assert_true(poll(p, 2, RIG_WAIT_MS) > 0);
        (void)!read(rig->send_event, &count, sizeof(count));
        sender_report_get(rig->sender, &report);
        while ((n = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT)) > 0)
            stream_add(&s, buffer, (size_t)n);
    } while (report.sent_epoch != epoch);
    sender_detach(rig->sender);
    close(fd);
    return s;
}

/* What the sender writes for one epoch. */
static inline struct stream stream_record(struct rig *rig, uint64_t epoch)
{
    int fd = stream_attach(rig);

    assert_int_equal(rig_feed(rig, epoch), 0);
    return stream_collect(rig, fd, epoch);
}

/* Gives the receiver n bytes, then the end of the stream; returns its error, or 0 when it has
 * staged another epoch. `error` of the report must come with a text. */
static inline int stream_play(struct rig *rig, const uint8_t *bytes, size_t n)
{
    struct receiver_report before, after;
    int fd[2];

    receiver_report_get(rig->receiver, &before);
    rig_socketpair(fd);
    rig_attach_receiver(rig, fd[1]);
    for (;;) {
        struct pollfd p[2] = {{.fd = rig->receive_event, .events = POLLIN},
                              {.fd = fd[0], .events = n ? POLLOUT : 0}};
        ssize_t done = n ? send(fd[0], bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
        uint64_t count;

        if (done > 0) {
            bytes += done;
            n -= (size_t)done;
        }
        if (!n)
            (void)shutdown(fd[0], SHUT_WR); /* once more is as good */
        receiver_report_get(rig->receiver, &after);
        if (after.error || after.staged_epoch != before.staged_epoch)
            break; /* it may have seen enough before the end */
        assert_true(poll(p, n ? 2 : 1, RIG_WAIT_MS) > 0);
        (void)!read(rig->receive_event, &count, sizeof(count));
    }
    close(fd[0]);
    receiver_detach(rig->receiver);
    if (after.error)
        assert_int_equal(stage_pool_free_chunks(rig->receive_pool), RIG_RECEIVE_CHUNKS);
    assert_int_equal(after.error != 0, after.text[0] != '\0');
    return after.error;
}

/* A message made by hand. */
static inline void stream_msg(struct stream *s, const struct wire_msg *msg)
{
    static uint8_t out[WIRE_HEADER_BYTES + WIRE_PAYLOAD_MAX];
    int64_t n = wire_msg_encode(msg, out, sizeof(out));

    assert_true(n > 0);
    stream_add(s, out, (size_t)n);
}

/* A message of one page. */
static inline void stream_page(struct stream *s, uint64_t epoch, const struct page_item *page)
{
    static struct page_table table = {.n = 1};
    static uint8_t body[WIRE_BODY_MAX];
    struct wire_msg msg = {.type = WIRE_PAGES, .epoch = epoch};

    table.page[0] = *page;
    msg.u.pages = (struct wire_pages){.n = 1, .encoding = WIRE_ENC_RAW, .bytes = body};
    msg.u.pages.n_body = msg.u.pages.n_bytes = page_table_pack(&table, body);
    stream_msg(s, &msg);
}

#endif
