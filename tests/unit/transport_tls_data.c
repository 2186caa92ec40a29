/* SPDX-License-Identifier: Apache-2.0 */
#include <linux/tcp.h>
#include <pthread.h>
#include <stdatomic.h>

#include "plain_transport.h"
#include "tls_rig.h"

/* What happens between two transports that have met, and what happens when somebody between them
 * changes bytes. */

static void blocking_pair(struct transport *t[2])
{
    tls_pair(&tls_hosts[0], &tls_hosts[1], TLS_ROOM, t);
    for (int i = 0; i < 2; i++)
        assert_int_equal(transport_set_blocking(t[i], true), 0);
}

/* The byte at a place of a stream. */
static uint8_t stream_byte(uint64_t at)
{
    return (uint8_t)(at * 167 + (at >> 9));
}

/* Somebody between both ends, who hands on whole records, and changes one bit of one of them. */
enum { CROSS_RECORDS = 6, CROSS_ROOM = 64 * 1024 };

static const size_t cross_bytes[CROSS_RECORDS] = {1, 100, 16384, 16384, 5000, 1};

struct way {
    int from, to;
    uint8_t held[CROSS_ROOM];
    size_t n_held;
    unsigned n_records; /* passed on */
};

struct flip {
    int way; /* -1: none */
    unsigned record;
    unsigned at; /* 1000th parts of the record's body; 1000: its last byte; 1001, ...: its header */
};

/* Hands on all that is whole. */
static void cross(struct way *way, int number, const struct flip *flip)
{
    ssize_t n = recv(way->from, way->held + way->n_held, CROSS_ROOM - way->n_held, MSG_DONTWAIT);

    if (n > 0)
        way->n_held += (size_t)n;
    for (;;) {
        size_t body = way->n_held < 5 ? 0 : (size_t)way->held[3] << 8 | way->held[4];

        if (way->n_held < 5 || way->n_held < 5 + body)
            return;
        if (number == flip->way && way->n_records == flip->record) {
            size_t at = flip->at > 1000 ? flip->at - 1001 : 5 + (body - 1) * flip->at / 1000;

            way->held[at] ^= 0x10;
        }
        assert_int_equal(send(way->to, way->held, 5 + body, MSG_NOSIGNAL), 5 + body);
        way->n_records++;
        way->n_held -= 5 + body;
        memmove(way->held, way->held + 5 + body, way->n_held);
    }
}

/* One end: sends its records, reads what comes, remembers how it ended. */
struct end {
    struct transport *t;
    unsigned n_written; /* records */
    uint64_t n_read;
    int error;
};

static void end_work(struct end *end)
{
    uint8_t buf[16384];

    while (!end->error) {
        struct iovec iov = {.iov_base = buf, .iov_len = sizeof(buf)};
        ssize_t n = end->t->ops->readv(end->t, &iov, 1);

        if (n == -EAGAIN)
            break;
        if (n <= 0)
            end->error = n ? (int)n : -ECONNRESET;
        for (ssize_t i = 0; i < n; i++)
            assert_int_equal(buf[i], stream_byte(end->n_read++)); /* nothing but what was sent */
    }
    while (!end->error && end->n_written < CROSS_RECORDS) {
        struct iovec iov = {.iov_base = buf, .iov_len = cross_bytes[end->n_written]};
        uint64_t at = 0;
        ssize_t n;

        for (unsigned i = 0; i < end->n_written; i++)
            at += cross_bytes[i];
        for (size_t i = 0; i < iov.iov_len; i++)
            buf[i] = stream_byte(at + i);
        n = end->t->ops->writev(end->t, &iov, 1);
        if (n == -EAGAIN)
            break;
        if (n < 0)
            end->error = (int)n;
        else
            assert_int_equal(n, iov.iov_len);
        end->n_written++;
    }
}

struct crossed {
    struct end end[2];
    unsigned n_records[2]; /* that the way from client, from server had */
};

/* Client and server exchange everything; at the end, or after an error, the connection ends. */
static struct crossed run_cross(const struct flip *flip)
{
    static struct way way[2];
    struct crossed all = {0};
    int client[2], server[2];

    memset(way, 0, sizeof(way));
    tcp_pair(client);
    tcp_pair(server);
    way[0].from = way[1].to = client[1];
    way[0].to = way[1].from = server[1];
    all.end[0].t = tls_side(&tls_hosts[0], client[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]);
    all.end[1].t = tls_side(&tls_hosts[1], server[0], TLS_SERVER, TLS_ROOM, &tls_hosts[0]);
    for (int i = 0; i < 2; i++)
        assert_int_equal(transport_set_blocking(all.end[i].t, false), 0);
    for (int still = 0; still < 3;) { /* the loopback delivers at once */
        unsigned before = way[0].n_records + way[1].n_records;

        for (int i = 0; i < 2; i++)
            end_work(&all.end[i]);
        for (int i = 0; i < 2; i++)
            cross(&way[i], i, flip);
        still = way[0].n_records + way[1].n_records == before ? still + 1 : 0;
    }
    for (int i = 0; i < 2; i++) {
        all.n_records[i] = way[i].n_records;
        close(i ? client[1] : server[1]);
    }
    for (int i = 0; i < 2; i++) {
        while (!all.end[i].error) {
            struct pollfd p = {.fd = all.end[i].t->ops->fd(all.end[i].t), .events = POLLIN};

            assert_int_equal(poll(&p, 1, TLS_WAIT_MS), 1);
            end_work(&all.end[i]);
        }
        all.end[i].t->ops->close(all.end[i].t);
    }
    return all;
}

static void every_flipped_bit_is_seen(void **state)
{
    static const unsigned places[] = {0, 333, 999, 1000, 1001, 1002, 1004};
    const struct flip none = {.way = -1};
    struct crossed good = run_cross(&none);
    uint64_t all = 0;

    for (unsigned i = 0; i < CROSS_RECORDS; i++)
        all += cross_bytes[i];
    assert_int_equal(good.end[0].n_read, all);
    assert_int_equal(good.end[1].n_read, all);
    for (struct flip flip = {.way = 0}; flip.way < 2; flip.way++)
        for (flip.record = 0; flip.record < good.n_records[flip.way]; flip.record++)
            for (size_t p = 0; p < N_OF(places); p++) {
                unsigned handshake = good.n_records[flip.way] - CROSS_RECORDS;
                struct crossed bad;
                uint64_t whole = 0;

                flip.at = places[p];
                if (flip.record == 0 && flip.at > 1000)
                    continue; /* nobody looks at a part of the first header */
                bad = run_cross(&flip);
                if (flip.record < handshake) {
                    assert_int_equal(bad.end[!flip.way].n_read, 0);
                    assert_true(flip.at == 1004 || bad.end[0].error == -EPROTO ||
                                bad.end[1].error == -EPROTO);
                    continue;
                }
                for (unsigned i = 0; i < flip.record - handshake; i++)
                    whole += cross_bytes[i];
                assert_int_equal(bad.end[!flip.way].n_read, whole);
                if (flip.at != 1004) /* a wrong length: it may wait for more */
                    assert_int_equal(bad.end[!flip.way].error, -EPROTO);
            }
}

/* A thread that writes a stream in pieces of many sizes. */
struct stream {
    struct transport *t;
    uint64_t n_bytes;
    int error;
};

static void *write_stream(void *arg)
{
    enum { BLOCK = 1 << 20, PERIOD = 1 << 17 }; /* stream_byte() repeats after PERIOD */
    struct stream *s = arg;
    uint8_t *block = malloc(BLOCK + PERIOD);
    uint64_t at = 0, seed = 7;

    for (size_t i = 0; i < BLOCK + PERIOD; i++)
        block[i] = stream_byte(i);
    while (at < s->n_bytes && !s->error) {
        struct iovec iov[40];
        int n = 0;
        uint64_t room;

        seed = seed * 6364136223846793005 + 1442695040888963407;
        room = (seed >> 40) % (BLOCK + 1);
        if (room > s->n_bytes - at)
            room = s->n_bytes - at;
        for (size_t from = at % PERIOD; room && n < (int)N_OF(iov);) {
            uint64_t size = seed >> 33 & 1 ? room : (seed >> (n % 20 + 8)) % 700;

            size = size < room ? size : room;
            iov[n++] = (struct iovec){.iov_base = block + from, .iov_len = size};
            from += size;
            at += size;
            room -= size;
        }
        s->error = transport_write_all(s->t, iov, n);
    }
    free(block);
    return NULL;
}

static void *read_stream(void *arg)
{
    struct stream *s = arg;
    uint8_t *block = malloc(300000);
    uint64_t at = 0, seed = 99;

    while (at < s->n_bytes && !s->error) {
        uint64_t n;

        seed = seed * 6364136223846793005 + 1442695040888963407;
        n = (seed >> 40) % (seed >> 62 ? 300000 : 50) + 1;
        if (n > s->n_bytes - at)
            n = s->n_bytes - at;
        s->error = transport_read_all(s->t, block, n);
        for (uint64_t i = 0; i < n && !s->error; i++, at++)
            if (block[i] != stream_byte(at))
                s->error = -EBADMSG;
    }
    free(block);
    return NULL;
}

static void blocking_threads(void **state)
{
    for (int from = 0; from < 2; from++) {
        struct transport *t[2];
        struct stream out = {.n_bytes = 64 << 20}, in = {.n_bytes = 64 << 20};
        pthread_t writer, reader;

        blocking_pair(t);
        out.t = t[from];
        in.t = t[!from];
        assert_int_equal(pthread_create(&reader, NULL, read_stream, &in), 0);
        assert_int_equal(pthread_create(&writer, NULL, write_stream, &out), 0);
        assert_int_equal(pthread_join(writer, NULL), 0);
        assert_int_equal(pthread_join(reader, NULL), 0);
        assert_int_equal(out.error, 0);
        assert_int_equal(in.error, 0);
        tls_pair_close(t);
    }
}

/* A blocking handshake in two threads: the first read and the first write do it. */
static void blocking_handshake(void **state)
{
    struct stream out = {.n_bytes = 100000}, in = {.n_bytes = 100000};
    pthread_t writer;
    int fd[2];

    tcp_pair(fd);
    out.t = tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]);
    in.t = tls_side(&tls_hosts[1], fd[1], TLS_SERVER, TLS_ROOM, &tls_hosts[0]);
    assert_int_equal(pthread_create(&writer, NULL, write_stream, &out), 0);
    (void)read_stream(&in);
    assert_int_equal(pthread_join(writer, NULL), 0);
    assert_int_equal(in.error, 0);
    assert_int_equal(out.error, 0);
    out.t->ops->close(out.t);
    in.t->ops->close(in.t);
}

static uint64_t bytes_received(const struct transport *t)
{
    struct tcp_info info;
    socklen_t n = sizeof(info);

    assert_int_equal(getsockopt(t->ops->fd(t), IPPROTO_TCP, TCP_INFO, &info, &n), 0);
    return info.tcpi_bytes_received;
}

/* So many small records that the key changes twice on the way: that is seen in their lengths. */
static void keys_are_renewed(void **state)
{
    enum {
        RECORDS = (1 << 18) * 2 + 100,
        RECORD_BYTES = 5 + 1 + 1 + 16,
        UPDATE_BYTES = 5 + 5 + 17
    };
    struct transport *t[2];
    uint64_t before;
    char byte;
    unsigned got = 0;

    tls_pair(&tls_hosts[0], &tls_hosts[1], TLS_ROOM, t);
    before = bytes_received(t[1]);
    for (unsigned sent = 0; sent < RECORDS || got < RECORDS;) {
        struct iovec iov = {.iov_base = &byte, .iov_len = 1};
        ssize_t n;

        while (sent < RECORDS && sent < got + 500 && /* what stands for 3 s breaks */
               (byte = (char)sent, t[0]->ops->writev(t[0], &iov, 1) == 1))
            sent++;
        (void)t[0]->ops->writev(t[0], &iov, 0); /* what waits in the transport */
        while ((n = t[1]->ops->readv(t[1], &iov, 1)) == 1)
            assert_int_equal(byte, (char)got++);
        assert_int_equal(n, -EAGAIN);
    }
    assert_int_equal(bytes_received(t[1]) - before,
                     (uint64_t)RECORDS * RECORD_BYTES + 2 * UPDATE_BYTES);
    tls_pair_close(t);
}

static void end_of_stream(void **state)
{
    struct stream out = {.n_bytes = 70000}, in = {.n_bytes = 70000};
    struct transport *t[2];
    struct iovec iov = {.iov_base = (char[2]){0}, .iov_len = 2};

    blocking_pair(t);
    out.t = t[0];
    in.t = t[1];
    (void)write_stream(&out);
    t[0]->ops->close(t[0]); /* what was written still arrives */
    (void)read_stream(&in);
    assert_int_equal(in.error, 0);
    assert_int_equal(t[1]->ops->readv(t[1], &iov, 1), 0);
    assert_int_equal(t[1]->ops->readv(t[1], &iov, 1), 0);
    assert_int_equal(t[1]->ops->writev(t[1], &iov, 1), -ECONNRESET);
    t[1]->ops->close(t[1]);
}

/* What waits in the transport when it is closed goes on its way if the socket has room again. */
static void closing_sends_what_waits(void **state)
{
    enum { PIECE = 10000 };
    static uint8_t bytes[PIECE];
    struct transport *t[2];
    uint64_t sent = 0, got = 0;

    tls_pair(&tls_hosts[0], &tls_hosts[1], TLS_ROOM, t);
    for (ssize_t n = PIECE; n > 0; sent += (uint64_t)n) {
        struct iovec iov = {.iov_base = bytes, .iov_len = PIECE};

        for (size_t i = 0; i < PIECE; i++)
            bytes[i] = stream_byte(sent + i);
        n = t[0]->ops->writev(t[0], &iov, 1);
        if (n < 0) {
            assert_int_equal(n, -EAGAIN);
            break;
        }
    }
    assert_true(t[0]->ops->wants_write(t[0]));
    for (ssize_t n = PIECE; n > 0; got += (uint64_t)n) {
        struct iovec iov = {.iov_base = bytes, .iov_len = PIECE};

        n = t[1]->ops->readv(t[1], &iov, 1);
        if (n < 0)
            break;
        for (ssize_t i = 0; i < n; i++)
            assert_int_equal(bytes[i], stream_byte(got + (uint64_t)i));
    }
    assert_true(got < sent);
    t[0]->ops->close(t[0]);
    assert_int_equal(transport_set_blocking(t[1], true), 0);
    for (; got < sent; got++) {
        assert_int_equal(transport_read_all(t[1], bytes, 1), 0);
        assert_int_equal(bytes[0], stream_byte(got));
    }
    assert_int_equal(transport_read_all(t[1], bytes, 1), -ECONNRESET);
    t[1]->ops->close(t[1]);
}

/* A blocking read returns what is there, in pieces of any shape, and waits for no more. */
static void reads_are_short(void **state)
{
    struct transport *t[2];
    char in[12] = "";
    struct iovec out = {.iov_base = (char[]){"abcdef"}, .iov_len = 6};
    struct iovec iov[] = {{in, 0}, {in, 2}, {in + 2, 0}, {in + 2, 4}, {in + 6, 4}};

    blocking_pair(t);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(transport_write_all(t[i], &out, 1), 0);
        assert_int_equal(t[!i]->ops->readv(t[!i], iov, (int)N_OF(iov)), 6);
        assert_memory_equal(in, "abcdef", 6);
        assert_int_equal(transport_write_all(t[i], &out, 1), 0);
        assert_int_equal(t[!i]->ops->readv(t[!i], iov, 2), 2);
        assert_true(t[!i]->ops->pending(t[!i]));
        assert_int_equal(tls_detach(t[!i]), -EBUSY);
        assert_int_equal(transport_read_all(t[!i], in, 4), 0);
        assert_memory_equal(in, "cdef", 4);
    }
    tls_pair_close(t);
}

static void shutdown_ends_a_blocked_thread(void **state)
{
    for (int kind = 0; kind < 3; kind++) { /* a read, a write, a handshake */
        struct stream s = {.n_bytes = 1 << 30};
        struct transport *t[2];
        pthread_t thread;
        int fd[2];

        if (kind < 2) {
            blocking_pair(t);
        } else {
            tcp_pair(fd);
            for (int i = 0; i < 2; i++)
                t[i] = tls_side(&tls_hosts[i], fd[i], i ? TLS_SERVER : TLS_CLIENT, TLS_ROOM,
                                &tls_hosts[!i]);
        }
        s.t = t[0];
        assert_int_equal(pthread_create(&thread, NULL, kind == 1 ? write_stream : read_stream, &s),
                         0);
        if (kind) { /* something came from the thread */
            struct pollfd p = {.fd = t[1]->ops->fd(t[1]), .events = POLLIN};

            assert_int_equal(poll(&p, 1, TLS_WAIT_MS), 1);
        }
        t[0]->ops->shutdown(t[0]); /* before or in the call: both must end it */
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_true(s.error == -ECONNRESET || s.error == -EPIPE);
        tls_pair_close(t);
    }
}

/* Both leave the first layer and make a second one on the same sockets, in the same roles or the
 * other way round, with the other context's keys too. */
static void second_layer(void **state)
{
    for (int run = 0; run < 300; run++) {
        struct transport *t[2], *again[2];
        int fd[2], ret[2];

        tls_pair(&tls_hosts[0], &tls_hosts[1], TLS_DOOR, t);
        tls_exchange(t);
        for (int i = 0; i < 2; i++) {
            fd[i] = tls_detach(t[i]);
            assert_true(fd[i] >= 0);
            /* The first layer is closed in the moment when the second has begun. */
            again[i] = tls_side(&tls_hosts[i], fd[i], (run + i) % 2 ? TLS_SERVER : TLS_CLIENT,
                                TLS_ROOM, &tls_hosts[!i]);
            assert_int_equal(transport_set_blocking(again[i], false), 0);
            if (run % 3 == 0)
                (void)tls_step(again[i]);
        }
        assert_true(tls_handshake(again, ret));
        tls_exchange(again);
        tls_pair_close(again);
    }
}

static void no_second_layer_with_bytes_under_way(void **state)
{
    static uint8_t bytes[40000];
    struct iovec out = {.iov_base = bytes, .iov_len = sizeof(bytes)};
    struct transport *t[2];
    int fd[2];

    tcp_pair(fd);
    t[0] = transport_tcp_new(fd[0]);
    assert_int_equal(tls_detach(t[0]), -EINVAL);
    assert_null(tls_peer_key(t[0]));
    t[0]->ops->close(t[0]);
    close(fd[1]);
    blocking_pair(t);
    assert_int_equal(transport_write_all(t[0], &out, 1), 0);
    assert_int_equal(transport_read_all(t[1], bytes, 10000), 0);
    assert_true(t[1]->ops->pending(t[1])); /* a part of the first record */
    assert_int_equal(tls_detach(t[1]), -EBUSY);
    assert_int_equal(transport_read_all(t[1], bytes, 6384), 0);
    assert_false(t[1]->ops->pending(t[1])); /* all that is left is in the socket */
    assert_int_equal(transport_read_all(t[1], bytes, sizeof(bytes) - 16384), 0);
    fd[1] = t[1]->ops->fd(t[1]);
    assert_int_equal(tls_detach(t[1]), fd[1]);
    t[0]->ops->close(t[0]);
    close(fd[1]);
}

/* New connections use the new key, old ones go on; any thread may make some meanwhile. */
struct changing {
    struct identity *identity[2];
    struct tls_context *context;
    atomic_bool done;
};

static void *change(void *arg)
{
    struct changing *c = arg;

    for (int i = 0; !atomic_load(&c->done); i++)
        assert_int_equal(tls_context_change(c->context, c->identity[i % 2], NULL), 0);
    return NULL;
}

static bool is_either(void *user, const struct public_key *theirs)
{
    const struct changing *c = user;

    return public_key_equal(theirs, identity_public(c->identity[0])) ||
           public_key_equal(theirs, identity_public(c->identity[1]));
}

static void keys_change_meanwhile(void **state)
{
    struct changing c = {.identity = {tls_identity(), tls_identity()}};
    struct tls_host changing = {.identity = c.identity[0]};
    struct transport *old[2];
    bool seen[2] = {false, false};
    pthread_t thread;

    assert_int_equal(tls_context_new(c.identity[0], &c.context, NULL), 0);
    changing.tls = c.context;
    tls_pair(&changing, &tls_hosts[1], TLS_ROOM, old);
    assert_int_equal(pthread_create(&thread, NULL, change, &c), 0);
    for (int i = 0; i < 2000 && (i < 100 || !seen[0] || !seen[1]); i++) {
        struct tls_params params = {
            .role = TLS_SERVER, .purpose = TLS_ROOM, .trusted = is_either, .user = &c};
        struct transport *t[2];
        int fd[2], ret[2];

        tcp_pair(fd);
        t[0] = tls_side(&changing, fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]);
        t[1] = transport_tls_new(tls_hosts[1].tls, fd[1], &params);
        assert_true(tls_handshake(t, ret));
        seen[public_key_equal(tls_peer_key(t[1]), identity_public(c.identity[1]))] = true;
        tls_exchange(old);
        tls_pair_close(t);
    }
    atomic_store(&c.done, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(seen[0] && seen[1]);
    tls_context_free(c.context); /* transports outlive it */
    tls_exchange(old);
    tls_pair_close(old);
    identity_free(c.identity[0]);
    identity_free(c.identity[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_flipped_bit_is_seen),
        cmocka_unit_test(blocking_threads),
        cmocka_unit_test(blocking_handshake),
        cmocka_unit_test(keys_are_renewed),
        cmocka_unit_test(end_of_stream),
        cmocka_unit_test(closing_sends_what_waits),
        cmocka_unit_test(reads_are_short),
        cmocka_unit_test(shutdown_ends_a_blocked_thread),
        cmocka_unit_test(second_layer),
        cmocka_unit_test(no_second_layer_with_bytes_under_way),
        cmocka_unit_test(keys_change_meanwhile),
    };

    return cmocka_run_group_tests(tests, tls_setup, tls_teardown);
}
