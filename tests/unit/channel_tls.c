/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "io/channel.h"
#include "tls_rig.h"

/* Channels on TLS: a pair of them in one loop, or one and a hand that feeds it. */

enum { FRAME_BYTES = 60000 };

struct end {
    struct channel *channel;
    unsigned n_hellos;
    uint64_t n_messages; /* their epochs count up from 1 */
    bool broken;
    char why[256];
    bool answers; /* a hello with one */
    bool takes;   /* the transport, at the hello */
    struct transport *taken;
};

static const struct wire_hello hello = {.version_min = 1,
                                        .version_max = 2,
                                        .channel = WIRE_CHANNEL_CONTROL,
                                        .session = {1},
                                        .vm = "web",
                                        .from = "a"};

static void on_hello(void *user, const struct wire_hello *theirs)
{
    struct end *end = user;

    assert_string_equal(theirs->vm, "web");
    end->n_hellos++;
    if (end->answers)
        channel_send_hello(end->channel, &hello);
    if (end->takes)
        end->taken = channel_take_transport(take_ptr(end->channel));
}

static void on_message(void *user, const struct wire_msg *msg)
{
    struct end *end = user;

    assert_int_equal(msg->epoch, ++end->n_messages);
    if (msg->type == WIRE_FRAMES)
        for (size_t i = 0; i < FRAME_BYTES; i += 997)
            assert_int_equal(msg->u.frames.bytes[i], (uint8_t)(msg->epoch + i));
}

static void on_broken(void *user, const char *why)
{
    struct end *end = user;

    end->broken = true;
    (void)snprintf(end->why, sizeof(end->why), "%s", why);
}

static const struct channel_callbacks callbacks = {on_hello, on_message, on_broken};

static void send_heartbeat(struct end *end, uint64_t epoch)
{
    struct wire_msg msg = {.type = WIRE_HEARTBEAT, .epoch = epoch, .u.heartbeat.seq = epoch};

    channel_send(end->channel, &msg);
}

static void send_frame(struct end *end, uint64_t epoch)
{
    static uint8_t bytes[FRAME_BYTES];
    struct wire_msg msg = {.type = WIRE_FRAMES,
                           .epoch = epoch,
                           .u.frames = {.n_bytes = sizeof(bytes), .bytes = bytes}};

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(epoch + i);
    channel_send(end->channel, &msg);
}

static sd_event *new_loop(void)
{
    sd_event *event;

    assert_true(sd_event_new(&event) >= 0);
    return event;
}

static void open_end(sd_event *event, struct end *end, struct transport *t)
{
    *end = (struct end){0};
    assert_int_equal(channel_new(event, t, WIRE_CHANNEL_CONTROL, SD_EVENT_PRIORITY_NORMAL,
                                 &callbacks, end, &end->channel),
                     0);
}

/* Runs the loop until the condition holds. */
#define LOOP_UNTIL(event, condition)                                                               \
    while (!(condition))                                                                           \
    assert_true(sd_event_run(event, TLS_WAIT_MS *UINT64_C(1000)) > 0)

static void open_pair(sd_event *event, struct end end[2])
{
    int fd[2];

    tcp_pair(fd);
    open_end(event, &end[0], tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]));
    open_end(event, &end[1], tls_side(&tls_hosts[1], fd[1], TLS_SERVER, TLS_ROOM, &tls_hosts[0]));
}

static void close_pair(struct end end[2])
{
    channel_close(end[0].channel);
    channel_close(end[1].channel);
}

/* Neither end has anything to say, and the keys are exchanged nevertheless. */
static void handshake_without_messages(void **state)
{
    sd_event *event = new_loop();
    struct end end[2];
    int fd[2];
    struct transport *t[2];

    tcp_pair(fd);
    t[0] = tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]);
    t[1] = tls_side(&tls_hosts[1], fd[1], TLS_SERVER, TLS_ROOM, &tls_hosts[0]);
    open_end(event, &end[0], t[0]);
    open_end(event, &end[1], t[1]);
    LOOP_UNTIL(event, tls_peer_key(t[0]) && tls_peer_key(t[1]));
    /* And then the loop sleeps: nobody polls for what is there all the time. */
    while (sd_event_run(event, 0) > 0)
        ;
    assert_int_equal(sd_event_run(event, 20000), 0);
    close_pair(end);
    sd_event_unref(event);
}

/* Also one that still connects. */
static void handshake_on_a_connecting_socket(void **state)
{
    sd_event *event = new_loop();
    struct sockaddr_in where;
    socklen_t n = sizeof(where);
    struct end end[2];
    char address[64];
    int listening, fd;

    assert_int_equal(transport_tcp_listen("127.0.0.1:0", &listening, NULL), 0);
    assert_int_equal(getsockname(listening, (struct sockaddr *)&where, &n), 0);
    (void)snprintf(address, sizeof(address), "127.0.0.1:%u", ntohs(where.sin_port));
    assert_int_equal(transport_tcp_connect(address, &fd, NULL), 0);
    open_end(event, &end[0], tls_side(&tls_hosts[0], fd, TLS_CLIENT, TLS_ROOM, &tls_hosts[1]));
    channel_send_hello(end[0].channel, &hello);
    fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
    while (fd < 0) {
        struct pollfd p = {.fd = listening, .events = POLLIN};

        assert_int_equal(poll(&p, 1, TLS_WAIT_MS), 1);
        fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
    }
    open_end(event, &end[1], tls_side(&tls_hosts[1], fd, TLS_SERVER, TLS_ROOM, &tls_hosts[0]));
    LOOP_UNTIL(event, end[1].n_hellos);
    close_pair(end);
    /* Nobody is there any more. */
    close(listening);
    assert_int_equal(transport_tcp_connect(address, &fd, NULL), 0);
    open_end(event, &end[0], tls_side(&tls_hosts[0], fd, TLS_CLIENT, TLS_ROOM, &tls_hosts[1]));
    LOOP_UNTIL(event, end[0].broken);
    assert_string_equal(end[0].why, "Connection refused");
    channel_close(end[0].channel);
    sd_event_unref(event);
}

/* What was said before the handshake began waits for its end, then goes out. */
static void much_both_ways(void **state)
{
    enum { FRAMES = 200 };
    sd_event *event = new_loop();
    struct end end[2];
    uint64_t sent[2] = {0, 0};

    open_pair(event, end);
    channel_send_hello(end[0].channel, &hello);
    channel_send_hello(end[1].channel, &hello);
    while (end[0].n_messages < FRAMES || end[1].n_messages < FRAMES) {
        for (int i = 0; i < 2;
             i++) /* three wait in the channel, the rest in transport and socket */
            while (sent[i] < FRAMES && sent[i] < end[!i].n_messages + 3)
                send_frame(&end[i], ++sent[i]);
        assert_false(end[0].broken || end[1].broken);
        assert_true(sd_event_run(event, TLS_WAIT_MS * UINT64_C(1000)) > 0);
    }
    close_pair(end);
    sd_event_unref(event);
}

/* A peer that does not read: what is sent fills the sockets, the transport and the channel, and
 * breaks it; until then all of it would still arrive. */
static void a_full_socket(void **state)
{
    enum { FRAMES = 80 };
    sd_event *event = new_loop();
    struct end end[2];
    struct transport *t;
    int fd[2], small = 65536;

    tcp_pair(fd);
    assert_int_equal(setsockopt(fd[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    assert_int_equal(setsockopt(fd[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
    t = tls_side(&tls_hosts[1], fd[1], TLS_SERVER, TLS_ROOM, &tls_hosts[0]);
    open_end(event, &end[0], tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]));
    open_end(event, &end[1], t);
    LOOP_UNTIL(event, tls_peer_key(t));
    channel_send_hello(end[0].channel, &hello);
    for (uint64_t i = 1; i <= 5; i++)
        send_frame(&end[0], i);
    LOOP_UNTIL(event, end[1].n_messages == 5);
    for (uint64_t i = 6; i <= FRAMES; i++)
        send_frame(&end[0], i);
    LOOP_UNTIL(event, end[0].broken);
    assert_string_equal(end[0].why, "the peer does not read");
    close_pair(end);
    sd_event_unref(event);
}

/* More messages in one record than the channel takes at a time: no byte more comes to the socket,
 * and they are all seen. */
static void many_messages_in_a_record(void **state)
{
    enum { MESSAGES = 250 };
    static uint8_t bytes[WIRE_HELLO_BYTES + MESSAGES * 64];
    sd_event *event = new_loop();
    struct iovec iov = {.iov_base = bytes};
    struct end end = {0};
    struct transport *t[2];

    tls_pair(&tls_hosts[0], &tls_hosts[1], TLS_ROOM, t);
    wire_hello_encode(&hello, bytes);
    iov.iov_len = WIRE_HELLO_BYTES;
    for (uint64_t i = 1; i <= MESSAGES; i++) {
        struct wire_msg msg = {.type = WIRE_HEARTBEAT, .epoch = i, .u.heartbeat.seq = i};
        int64_t n = wire_msg_encode(&msg, bytes + iov.iov_len, sizeof(bytes) - iov.iov_len);

        assert_true(n > 0);
        iov.iov_len += (size_t)n;
    }
    assert_true(iov.iov_len < 16384);
    assert_int_equal(t[0]->ops->writev(t[0], &iov, 1), iov.iov_len);
    open_end(event, &end, t[1]);
    LOOP_UNTIL(event, end.n_messages == MESSAGES);
    assert_int_equal(end.n_hellos, 1);
    assert_int_equal(sd_event_run(event, 20000), 0); /* and it sleeps again */
    channel_close(end.channel);
    t[0]->ops->close(t[0]);
    sd_event_unref(event);
}

/* A link that carries one byte at a time, each way. */
struct slow {
    int fd[2];
};

static int carry(sd_event_source *source, void *user)
{
    struct slow *slow = user;

    for (int i = 0; i < 2; i++) {
        char byte;

        if (recv(slow->fd[i], &byte, 1, MSG_DONTWAIT) == 1)
            assert_int_equal(send(slow->fd[!i], &byte, 1, MSG_NOSIGNAL), 1);
    }
    return 0;
}

static void one_byte_at_a_time(void **state)
{
    sd_event *event = new_loop();
    sd_event_source *source;
    struct end end[2];
    struct slow slow;
    int a[2], b[2];

    tcp_pair(a);
    tcp_pair(b);
    slow = (struct slow){.fd = {a[1], b[1]}};
    assert_true(sd_event_add_defer(event, &source, carry, &slow) >= 0);
    assert_true(sd_event_source_set_enabled(source, SD_EVENT_ON) >= 0);
    assert_true(sd_event_source_set_priority(source, SD_EVENT_PRIORITY_IDLE) >= 0);
    open_end(event, &end[0], tls_side(&tls_hosts[0], a[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]));
    open_end(event, &end[1], tls_side(&tls_hosts[1], b[0], TLS_SERVER, TLS_ROOM, &tls_hosts[0]));
    channel_send_hello(end[0].channel, &hello);
    end[1].answers = true;
    LOOP_UNTIL(event, end[0].n_hellos && end[1].n_hellos);
    for (uint64_t i = 1; i <= 10; i++) {
        send_heartbeat(&end[0], i);
        send_heartbeat(&end[1], i);
    }
    LOOP_UNTIL(event, end[0].n_messages == 10 && end[1].n_messages == 10);
    sd_event_source_disable_unref(source);
    close_pair(end);
    close(a[1]);
    close(b[1]);
    sd_event_unref(event);
}

static void refusals_are_told(void **state)
{
    sd_event *event = new_loop();
    struct end end[2];
    int fd[2];

    tcp_pair(fd);
    open_end(event, &end[0], tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]));
    open_end(event, &end[1], tls_side(&tls_hosts[1], fd[1], TLS_SERVER, TLS_ROOM, &tls_hosts[1]));
    LOOP_UNTIL(event, end[0].broken && end[1].broken);
    assert_non_null(strstr(end[0].why, "key"));
    assert_non_null(strstr(end[1].why, "key"));
    close_pair(end);
    tcp_pair(fd);
    open_end(event, &end[1], tls_side(&tls_hosts[1], fd[1], TLS_SERVER, TLS_ROOM, &tls_hosts[0]));
    assert_int_equal(send(fd[0], "GET / HTTP/1.1\r\n\r\n", 18, 0), 18);
    LOOP_UNTIL(event, end[1].broken);
    assert_non_null(strstr(end[1].why, "TLS"));
    channel_close(end[1].channel);
    close(fd[0]);
    sd_event_unref(event);
}

/* The transport is taken out after the hellos; bytes that came with them are not lost. */
static void transport_taken_after_hellos(void **state)
{
    sd_event *event = new_loop();
    uint8_t bytes[WIRE_HELLO_BYTES + 1000], in[1000];
    struct iovec iov = {.iov_base = bytes, .iov_len = sizeof(bytes)};
    struct end end = {0};
    struct transport *t[2];

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)i;
    wire_hello_encode(&hello, bytes);
    tls_pair(&tls_hosts[0], &tls_hosts[1], TLS_ROOM, t);
    assert_int_equal(t[0]->ops->writev(t[0], &iov, 1), sizeof(bytes));
    open_end(event, &end, t[1]);
    end.takes = true;
    LOOP_UNTIL(event, end.taken);
    assert_int_equal(transport_set_blocking(end.taken, true), 0);
    assert_int_equal(transport_read_all(end.taken, in, sizeof(in)), 0);
    assert_memory_equal(in, bytes + WIRE_HELLO_BYTES, sizeof(in));
    /* So it is when another channel gets it. */
    wire_hello_encode(&hello, bytes + 1);
    iov.iov_len = 1 + WIRE_HELLO_BYTES;
    assert_int_equal(t[0]->ops->writev(t[0], &iov, 1), iov.iov_len);
    assert_int_equal(transport_read_all(end.taken, in, 1), 0);
    open_end(event, &end, end.taken);
    LOOP_UNTIL(event, end.n_hellos);
    channel_close(end.channel);
    t[0]->ops->close(t[0]);
    sd_event_unref(event);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handshake_without_messages),
        cmocka_unit_test(handshake_on_a_connecting_socket),
        cmocka_unit_test(much_both_ways),
        cmocka_unit_test(a_full_socket),
        cmocka_unit_test(many_messages_in_a_record),
        cmocka_unit_test(one_byte_at_a_time),
        cmocka_unit_test(refusals_are_told),
        cmocka_unit_test(transport_taken_after_hellos),
    };

    return cmocka_run_group_tests(tests, tls_setup, tls_teardown);
}
