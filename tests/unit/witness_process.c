/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/arbiter_client.h"
#include "io/clock.h"
#include "io/transport.h"
#include "unit.h"
#include "wire/msg.h"
#include "witness_run.h"

/* The witness as its users meet it: a process behind a socket, which is killed, stopped, starved of
 * disk and sent nonsense. */

static const struct arb_record none;
static const char *program;

static int setup(void **state)
{
    static struct witness_run w;

    witness_run_init(&w, program);
    *state = &w;
    return 0;
}

static int teardown(void **state)
{
    witness_run_done(*state);
    return 0;
}

static struct wire_arb_request request_of(uint8_t op, const struct arb_record *expected,
                                          const struct arb_record *wanted)
{
    return (struct wire_arb_request){
        .op = op, .vm = "web", .expected = *expected, .wanted = *wanted};
}

/* One request, one connection. */
static struct wire_arb_reply ask(const struct witness_run *w, uint8_t op,
                                 const struct arb_record *expected, const struct arb_record *wanted)
{
    struct wire_arb_request request = request_of(op, expected, wanted);
    struct arbiter_config config = witness_config(w->address);
    struct wire_arb_reply reply;
    struct err err = {""};

    if (arbiter_ask_once(&config, NULL, "hosta", &request, 20 * NS_PER_S, &reply, &err) < 0)
        fail_msg("%s", err.text);
    return reply;
}

static struct arb_record get(const struct witness_run *w)
{
    struct wire_arb_reply reply = ask(w, WIRE_ARB_GET, &none, &none);

    assert_int_equal(reply.status, WIRE_ARB_DONE);
    return reply.current;
}

/* The record that follows another one in these tests: owners take turns. */
static struct arb_record successor(const struct arb_record *record)
{
    struct arb_record next = {.term = record->term + 1, .mode = ARB_SOLO};

    strcpy(next.owner, record->term % 2 ? "hostb" : "hosta");
    return next;
}

static void test_swap_and_conflict(void **state)
{
    struct witness_run *w = *state;
    struct arb_record first = successor(&none), second = successor(&first);
    struct wire_arb_reply reply;

    witness_run_start(w);
    assert_true(arb_record_equal(&(struct arb_record){0}, &none));
    reply = ask(w, WIRE_ARB_CAS, &none, &first);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(&reply.current, &first));
    reply = ask(w, WIRE_ARB_CAS, &none, &first);
    assert_int_equal(reply.status, WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&reply.current, &first));
    reply = ask(w, WIRE_ARB_CAS, &first, &second);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    witness_run_signal(w, SIGTERM);
    assert_int_equal(witness_run_wait(w), 0); /* ends with exit status 0 */
    witness_run_start(w);
    reply.current = get(w);
    assert_true(arb_record_equal(&reply.current, &second));
}

/* A storm of swaps, each on top of the one before. */
struct storm {
    sd_event *event;
    struct arbiter_client *client;
    struct arb_record known; /* the last one that the witness confirmed */
    struct arb_record asked;
    unsigned n_swaps;
    bool over; /* the witness is gone */
};

static void storm_ask(struct storm *s)
{
    struct wire_arb_request request;

    s->asked = successor(&s->known);
    request = request_of(WIRE_ARB_CAS, &s->known, &s->asked);
    arbiter_client_ask(s->client, s->n_swaps, &request);
}

static void storm_answer(void *user, uint64_t id, uint8_t status, const struct arb_record *current,
                         const char *why)
{
    struct storm *s = user;

    assert_int_equal(id, s->n_swaps);
    if (status == 0) {
        s->over = true;
        return;
    }
    assert_int_equal(status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(current, &s->asked));
    s->known = *current;
    s->n_swaps++;
    storm_ask(s);
}

static int storm_kill(sd_event_source *source, uint64_t usec, void *user)
{
    witness_run_signal(user, SIGKILL);
    return 0;
}

/* kill -9 at a random moment: afterwards the register holds the last record that was confirmed, or
 * the one that was asked for when the witness died. */
static void test_kill_during_storm(void **state)
{
    enum { ROUNDS = 40, KILL_US = 30000 };
    struct witness_run *w = *state;
    struct storm s = {0};
    unsigned seed = (unsigned)clock_now_ns(), in_doubt = 0;

    print_message("# seed %u\n", seed);
    srandom(seed);
    for (int round = 0; round < ROUNDS; round++) {
        struct arbiter_config config;
        struct arb_record now;

        witness_run_start(w);
        config = witness_config(w->address);
        now = get(w);
        if (!arb_record_equal(&now, &s.known)) {
            assert_true(arb_record_equal(&now, &s.asked));
            in_doubt++;
        }
        s.known = now;
        s.over = false;
        assert_return_code(sd_event_new(&s.event), 0);
        assert_int_equal(arbiter_client_new(s.event, &config, NULL, "hosta", "web", 20 * NS_PER_S,
                                            storm_answer, &s, &s.client),
                         0);
        assert_return_code(sd_event_add_time_relative(s.event, NULL, CLOCK_MONOTONIC,
                                                      (uint64_t)random() % KILL_US, 1, storm_kill,
                                                      w),
                           0);
        storm_ask(&s);
        while (!s.over)
            assert_return_code(sd_event_run(s.event, UINT64_MAX), 0);
        arbiter_client_close(s.client);
        sd_event_unref(s.event);
        assert_true(WIFSIGNALED(witness_run_wait(w)));
    }
    print_message("# %u swaps, %u in flight carried out\n", s.n_swaps, in_doubt);
    assert_true(s.n_swaps > ROUNDS);
}

static void test_full_disk(void **state)
{
    struct witness_run *w = *state;
    struct arb_record first = successor(&none), second = successor(&first), now;
    struct wire_arb_reply reply;
    static uint8_t filler[1 << 20];
    char path[128];
    int fd;

    /* A small disk that only this process and its children see. */
    assert_int_equal(unshare(CLONE_NEWNS), 0);
    assert_int_equal(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
    assert_int_equal(mount("none", w->dir, "tmpfs", 0, "size=64k"), 0);
    witness_run_start(w);
    assert_int_equal(ask(w, WIRE_ARB_CAS, &none, &first).status, WIRE_ARB_DONE);
    (void)snprintf(path, sizeof(path), "%s/filler.tmp", w->dir);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && write(fd, filler, sizeof(filler)) < (ssize_t)sizeof(filler));
    for (int i = 0; i < 3; i++) {
        reply = ask(w, WIRE_ARB_CAS, &first, &second);
        assert_int_equal(reply.status, WIRE_ARB_ERROR);
        assert_true(arb_record_equal(&reply.current, &first));
        now = get(w);
        assert_true(arb_record_equal(&now, &first));
    }
    witness_run_signal(w, SIGKILL); /* not on the disk either */
    (void)witness_run_wait(w);
    witness_run_start(w);
    now = get(w);
    assert_true(arb_record_equal(&now, &first));
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(ask(w, WIRE_ARB_CAS, &first, &second).status, WIRE_ARB_DONE);
    close(fd);
    witness_run_signal(w, SIGKILL);
    (void)witness_run_wait(w);
    assert_int_equal(umount(w->dir), 0);
}

static void test_refuses_to_start(void **state)
{
    struct witness_run *w = *state, second;
    char text[1024], path[128];
    FILE *f;

    witness_run_start(w);
    second = *w;
    strcpy(second.address, "127.0.0.1:0");
    assert_int_equal(witness_run_refused(&second, text, sizeof(text)), 1);
    assert_non_null(strstr(text, "another witness uses it"));
    second = *w; /* its address is taken; another directory would not help */
    strcpy(second.dir, "/nonexistent/us-witness");
    assert_int_equal(witness_run_refused(&second, text, sizeof(text)), 1);
    assert_non_null(strstr(text, "/nonexistent/us-witness"));
    witness_run_signal(w, SIGTERM);
    (void)witness_run_wait(w);

    (void)snprintf(path, sizeof(path), "%s/web", w->dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs("no record", f);
    fclose(f);
    assert_int_equal(witness_run_refused(w, text, sizeof(text)), 1);
    assert_non_null(strstr(text, "web: damaged"));
}

/* A connection of the test's own, to misbehave on. Blocking, with a bound. */
static int connect_raw(const struct witness_run *w)
{
    struct timeval bound = {.tv_sec = 20};
    struct pollfd p = {.events = POLLOUT};
    int fd;

    assert_int_equal(transport_tcp_connect(w->address, &fd, NULL), 0);
    p.fd = fd;
    assert_int_equal(poll(&p, 1, 20000), 1);
    assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound)), 0);
    return fd;
}

static struct wire_hello greeting(void)
{
    return (struct wire_hello){.version_min = WIRE_VERSION_MIN,
                               .version_max = WIRE_VERSION_MAX,
                               .channel = WIRE_CHANNEL_ARBITER,
                               .from = "hosta"};
}

static void send_hello(int fd, const struct wire_hello *hello)
{
    uint8_t raw[WIRE_HELLO_BYTES];

    wire_hello_encode(hello, raw);
    assert_int_equal(send(fd, raw, sizeof(raw), MSG_NOSIGNAL), sizeof(raw));
}

static struct wire_hello read_hello(int fd)
{
    uint8_t raw[WIRE_HELLO_BYTES];
    struct wire_hello hello;

    assert_int_equal(recv(fd, raw, sizeof(raw), MSG_WAITALL), sizeof(raw));
    assert_int_equal(wire_hello_decode(raw, &hello, NULL), 0);
    return hello;
}

static int connect_greeted(const struct witness_run *w)
{
    struct wire_hello hello = greeting(), answer;
    int fd = connect_raw(w);

    send_hello(fd, &hello);
    answer = read_hello(fd);
    assert_int_equal(wire_hello_check_answer(&hello, &answer, NULL), 0);
    return fd;
}

static void send_get(int fd, uint64_t id)
{
    struct wire_msg msg = {.type = WIRE_ARB_REQUEST, .epoch = id};
    uint8_t raw[1024];
    int64_t n;

    msg.u.arb_request = request_of(WIRE_ARB_GET, &none, &none);
    n = wire_msg_encode(&msg, raw, sizeof(raw));
    assert_int_equal(send(fd, raw, (size_t)n, MSG_NOSIGNAL), n);
}

static uint64_t read_reply_id(int fd)
{
    uint8_t raw[WIRE_HEADER_BYTES + 152];
    struct wire_header header;

    assert_int_equal(recv(fd, raw, sizeof(raw), MSG_WAITALL), sizeof(raw));
    assert_int_equal(wire_header_decode(raw, WIRE_CHANNEL_ARBITER, &header, NULL), 0);
    assert_int_equal(header.type, WIRE_ARB_REPLY);
    return header.epoch;
}

static void assert_closed(int fd)
{
    uint8_t byte;
    ssize_t n = recv(fd, &byte, 1, 0);

    assert_true(n == 0 || (n < 0 && errno == ECONNRESET));
    close(fd);
}

static void test_nonsense_costs_only_its_sender(void **state)
{
    struct witness_run *w = *state;
    uint8_t noise[1024];
    int good, bad;

    witness_run_start(w);
    good = connect_greeted(w);
    for (int i = 0; i < 20; i++) {
        memset(noise, i, sizeof(noise));
        bad = connect_raw(w);
        (void)send(bad, noise, sizeof(noise), MSG_NOSIGNAL); /* may be cut off on the way */
        assert_closed(bad);
        bad = connect_greeted(w);
        (void)send(bad, noise, sizeof(noise), MSG_NOSIGNAL);
        assert_closed(bad);
        send_get(good, (uint64_t)i);
        assert_int_equal(read_reply_id(good), i);
    }
    close(good);
}

static void test_pieces_and_pipelining(void **state)
{
    enum { N = 50 };
    struct witness_run *w = *state;
    struct wire_hello hello = greeting();
    struct wire_msg msg = {.type = WIRE_ARB_REQUEST, .epoch = 7};
    uint8_t raw[1024];
    int64_t n;
    int fd;

    witness_run_start(w);
    fd = connect_raw(w);
    wire_hello_encode(&hello, raw);
    for (size_t i = 0; i < WIRE_HELLO_BYTES; i++)
        assert_int_equal(send(fd, raw + i, 1, MSG_NOSIGNAL), 1);
    (void)read_hello(fd);
    msg.u.arb_request = request_of(WIRE_ARB_GET, &none, &none);
    n = wire_msg_encode(&msg, raw, sizeof(raw));
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(send(fd, raw + i, 1, MSG_NOSIGNAL), 1);
    assert_int_equal(read_reply_id(fd), 7);
    for (uint64_t id = 0; id < N; id++)
        send_get(fd, id);
    for (uint64_t id = 0; id < N; id++)
        assert_int_equal(read_reply_id(fd), id);
    close(fd);
}

static void test_refused_hellos(void **state)
{
    struct witness_run *w = *state;
    struct wire_hello hello = greeting(), answer;
    int fd;

    witness_run_start(w);
    hello.version_min = hello.version_max = WIRE_VERSION_MAX + 1;
    fd = connect_raw(w);
    send_hello(fd, &hello);
    answer = read_hello(fd);
    assert_int_equal(answer.status, WIRE_REFUSED_VERSION);
    assert_int_equal(answer.version_max, WIRE_VERSION_MAX);
    assert_closed(fd);

    hello = greeting();
    hello.channel = WIRE_CHANNEL_CONTROL; /* somebody took the witness for a host */
    hello.session[0] = 1;
    strcpy(hello.vm, "web");
    fd = connect_raw(w);
    send_hello(fd, &hello);
    answer = read_hello(fd);
    assert_int_equal(answer.status, WIRE_REFUSED_INTERNAL);
    assert_string_equal(answer.text, "this is a witness, not a host");
    assert_closed(fd);
}

/* More connections than it takes: strangers go first, then the one that was silent longest. */
static void test_many_connections(void **state)
{
    enum { TAKEN = 64, EXTRA = 10 };
    struct witness_run *w = *state;
    int fds[TAKEN], stranger, extra[EXTRA];

    witness_run_start(w);
    for (int i = 0; i < TAKEN - 1; i++)
        fds[i] = connect_greeted(w);
    stranger = connect_raw(w);
    fds[TAKEN - 1] = connect_greeted(w);
    assert_closed(stranger);
    for (int i = 0; i < TAKEN; i++) { /* makes fds[0] the one that is silent longest, then [1]... */
        send_get(fds[i], 1);
        assert_int_equal(read_reply_id(fds[i]), 1);
    }
    for (int i = 0; i < EXTRA; i++) {
        extra[i] = connect_greeted(w);
        assert_closed(fds[i]);
    }
    for (int i = EXTRA; i < TAKEN; i++) {
        send_get(fds[i], 2);
        assert_int_equal(read_reply_id(fds[i]), 2);
        close(fds[i]);
    }
    for (int i = 0; i < EXTRA; i++) {
        send_get(extra[i], 3);
        assert_int_equal(read_reply_id(extra[i]), 3);
        close(extra[i]);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_swap_and_conflict, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kill_during_storm, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refuses_to_start, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nonsense_costs_only_its_sender, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pieces_and_pipelining, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused_hellos, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_connections, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
    };

    program = argc > 1 ? argv[1] : "understudy-witness";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
