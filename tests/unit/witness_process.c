/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "io/arbiter_client.h"
#include "io/clock.h"
#include "witness/server.h"
#include "witness_talk.h"

/* The witness as its users meet it: a process behind a socket, which is stopped, started and sent
 * nonsense. */

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

static void test_swap_and_conflict(void **state)
{
    struct witness_run *w = *state;
    struct arb_record first = witness_run_successor(&none), second = witness_run_successor(&first);
    struct wire_arb_reply reply;

    witness_run_start(w);
    assert_true(arb_record_equal(&(struct arb_record){0}, &none));
    reply = witness_run_ask(w, "web", &none, &first);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(&reply.current, &first));
    reply = witness_run_ask(w, "web", &none, &first);
    assert_int_equal(reply.status, WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&reply.current, &first));
    reply = witness_run_ask(w, "web", &first, &second);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    witness_run_signal(w, SIGTERM);
    assert_int_equal(witness_run_wait(w), 0); /* ends with exit status 0 */
    witness_run_start(w);
    reply.current = witness_run_get(w, "web");
    assert_true(arb_record_equal(&reply.current, &second));
}

static void test_refuses_to_start(void **state)
{
    struct witness_run *w = *state, second;
    char text[1024], path[128];
    FILE *f;

    witness_run_start(w);
    second = *w;
    strcpy(second.config.address, "127.0.0.1:0");
    assert_int_equal(witness_run_refused(&second, text, sizeof(text)), 1);
    assert_non_null(strstr(text, "another witness uses it"));
    second = *w; /* its address is taken; another directory would not help */
    strcpy(second.dir, "/nonexistent/us-witness");
    assert_int_equal(witness_run_refused(&second, text, sizeof(text)), 1);
    assert_non_null(strstr(text, "/nonexistent/us-witness"));
    witness_run_signal(w, SIGTERM);
    (void)witness_run_wait(w);

    (void)snprintf(path, sizeof(path), "%s/registers/default", w->dir);
    assert_int_equal(mkdir(path, 0700), 0);
    strcat(path, "/web");
    f = fopen(path, "w");
    assert_non_null(f);
    fputs("no record", f);
    fclose(f);
    assert_int_equal(witness_run_refused(w, text, sizeof(text)), 1);
    assert_non_null(strstr(text, "web: damaged"));
}

static void test_nonsense_costs_only_its_sender(void **state)
{
    struct witness_run *w = *state;
    struct transport *good, *bad;
    uint8_t noise[1024];

    witness_run_start(w);
    good = talk_start(w, "hosta");
    for (int i = 0; i < 20; i++) {
        memset(noise, i, sizeof(noise));
        bad = talk_connect(w, NULL);
        (void)talk_send(bad, noise, sizeof(noise)); /* may be cut off on the way */
        (void)talk_ended(bad);
        bad = talk_connect(w, witness_run_tls(w, "hosta"));
        (void)talk_send(bad, noise, sizeof(noise));
        (void)talk_ended(bad);
        bad = talk_start(w, "hosta");
        (void)talk_send(bad, noise, sizeof(noise));
        (void)talk_ended(bad);
        talk_ask(good, (uint64_t)i);
    }
    talk_end(good);
}

/* What only a witness says is no question. */
static void test_answers_are_no_questions(void **state)
{
    struct witness_run *w = *state;
    struct wire_msg msg = {.type = WIRE_ARB_REPLY, .u.arb_reply.status = WIRE_ARB_DONE};
    struct transport *t;

    witness_run_start(w);
    t = talk_start(w, "hosta");
    talk_send_msg(t, &msg);
    (void)talk_ended(t);
}

static void test_pieces_and_pipelining(void **state)
{
    enum { N = 50 };
    struct witness_run *w = *state;
    struct wire_msg msg = talk_get(7);
    struct transport *t;
    uint8_t raw[1024];
    int64_t n;

    witness_run_start(w);
    t = talk_start(w, "hosta");
    n = wire_msg_encode(&msg, raw, sizeof(raw));
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(talk_send(t, raw + i, 1), 0);
    talk_read_msg(t, &msg);
    assert_int_equal(msg.epoch, 7);
    for (uint64_t id = 0; id < N; id++) {
        msg = talk_get(id);
        talk_send_msg(t, &msg);
    }
    for (uint64_t id = 0; id < N; id++) {
        talk_read_msg(t, &msg);
        assert_int_equal(msg.epoch, id);
    }
    talk_end(t);
}

static void test_refused_hellos(void **state)
{
    struct witness_run *w = *state;
    struct wire_hello hello = talk_hello("hosta"), answer;
    struct transport *t;

    witness_run_start(w);
    hello.version_min = hello.version_max = WIRE_VERSION_MAX + 1;
    t = talk_connect(w, witness_run_tls(w, "hosta"));
    answer = talk_greet(t, &hello);
    assert_int_equal(answer.status, WIRE_REFUSED_VERSION);
    assert_int_equal(answer.version_max, WIRE_VERSION_MAX);
    (void)talk_ended(t);

    hello = talk_hello("hosta");
    hello.channel = WIRE_CHANNEL_CONTROL; /* somebody took the witness for a host */
    hello.session[0] = 1;
    strcpy(hello.vm, "web");
    t = talk_connect(w, witness_run_tls(w, "hosta"));
    answer = talk_greet(t, &hello);
    assert_int_equal(answer.status, WIRE_REFUSED_INTERNAL);
    assert_string_equal(answer.text, "this is a witness, not a host");
    (void)talk_ended(t);
}

/* More connections than a host may have: its own that was silent longest goes, nobody else's. */
static void test_many_connections(void **state)
{
    enum { TAKEN = SERVER_HOST_CLIENTS_MAX, EXTRA = 10 };
    static struct transport *taken[TAKEN], *extra[EXTRA];
    struct witness_run *w = *state;
    struct transport *other;

    witness_run_start(w);
    other = talk_start(w, "hostb");
    for (int i = 0; i < TAKEN; i++)
        taken[i] = talk_start(w, "hosta");
    for (int i = 0; i < TAKEN; i++) /* makes taken[0] the one that is silent longest, then [1]... */
        talk_ask(taken[i], 1);
    for (int i = 0; i < EXTRA; i++) {
        extra[i] = talk_start(w, "hosta");
        (void)talk_ended(taken[i]);
    }
    for (int i = EXTRA; i < TAKEN; i++) {
        talk_ask(taken[i], 2);
        talk_end(taken[i]);
    }
    for (int i = 0; i < EXTRA; i++) {
        talk_ask(extra[i], 3);
        talk_end(extra[i]);
    }
    talk_ask(other, 4);
    talk_end(other);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_swap_and_conflict, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refuses_to_start, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nonsense_costs_only_its_sender, setup, teardown),
        cmocka_unit_test_setup_teardown(test_answers_are_no_questions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pieces_and_pipelining, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused_hellos, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_connections, setup, teardown),
    };

    program = argc > 1 ? argv[1] : "understudy-witness";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
