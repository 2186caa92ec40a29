/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "io/arbiter_client.h"
#include "io/clock.h"
#include "witness/server.h"
#include "witness_talk.h"

/* Whom a witness lets in, and what strangers can do to it: nothing. */

#define PATIENCE_NS (20 * NS_PER_S)

static const struct arb_record none;
static const struct arb_record solo_a = {1, ARB_SOLO, "hosta", ""};
static const struct arb_record stopped = {2, ARB_SOLO, "", ""};
static const char *program;

static int setup(void **state)
{
    static struct witness_run w;

    witness_run_init(&w, program);
    (void)witness_run_host(&w, "hosta");
    (void)witness_run_host(&w, "hostb");
    *state = &w;
    return 0;
}

static int teardown(void **state)
{
    witness_run_done(*state);
    return 0;
}

/* Asks as a host would; returns what arbiter_ask_once() does. */
static int ask(const struct witness_run *w, struct tls_context *tls, const char *from,
               const struct arb_record *expected, const struct arb_record *wanted,
               struct wire_arb_reply *ret_reply, struct err *err)
{
    struct wire_arb_request request = {.op = wanted->term ? WIRE_ARB_CAS : WIRE_ARB_GET,
                                       .vm = "web",
                                       .expected = *expected,
                                       .wanted = *wanted};

    return arbiter_ask_once(&w->config, tls, from, &request, PATIENCE_NS, ret_reply, err);
}

static void assert_refused(const struct witness_run *w, struct tls_context *tls, const char *from,
                           const char *why)
{
    struct wire_arb_reply reply;
    struct err err = {""};

    assert_int_equal(ask(w, tls, from, &none, &none, &reply, &err), -ECOMM);
    if (!strstr(err.text, why))
        fail_msg("%s", err.text);
}

static void assert_admitted(const struct witness_run *w, struct tls_context *tls, const char *from)
{
    struct wire_arb_reply reply;
    struct err err = {""};

    if (ask(w, tls, from, &none, &none, &reply, &err) < 0)
        fail_msg("%s", err.text);
}

static void test_unknown_key(void **state)
{
    struct witness_run *w = *state;
    struct identity *identity = witness_run_identity(w);
    struct tls_context *tls;

    assert_int_equal(tls_context_new(identity, &tls, NULL), 0);
    witness_run_start(w);
    assert_refused(w, tls, "hosta", "does not know the other's key");
    assert_admitted(w, witness_run_tls(w, "hosta"), "hosta");
    tls_context_free(tls);
    identity_free(identity);
}

/* A host does not ask a witness that has another key. */
static void test_false_witness(void **state)
{
    struct witness_run *w = *state;
    struct public_key right = w->config.key;

    witness_run_start(w);
    w->config.key.bytes[0] ^= 1;
    assert_refused(w, witness_run_tls(w, "hosta"), "hosta", "does not know the other's key");
    w->config.key = right;
    assert_admitted(w, witness_run_tls(w, "hosta"), "hosta");
}

static void test_anothers_name(void **state)
{
    struct witness_run *w = *state;

    witness_run_start(w);
    assert_refused(w, witness_run_tls(w, "hosta"), "hostb", "not allowed under that name");
}

static void test_plain_text(void **state)
{
    struct witness_run *w = *state;
    struct wire_hello hello = talk_hello("hosta");
    uint8_t raw[WIRE_HELLO_BYTES];
    struct transport *t;

    witness_run_start(w);
    t = talk_connect(w, NULL);
    wire_hello_encode(&hello, raw);
    assert_int_equal(talk_send(t, raw, sizeof(raw)), 0);
    (void)talk_ended(t);
}

/* A conversation of another kind cannot be passed off as one with the arbiter. */
static void test_other_purpose(void **state)
{
    struct witness_run *w = *state;
    const struct tls_params params = {
        .role = TLS_CLIENT, .purpose = TLS_ROOM, .trusted = talk_trusts, .user = w};
    struct transport *t;

    witness_run_start(w);
    t = transport_tls_new(witness_run_tls(w, "hosta"), talk_socket(w), &params);
    assert_non_null(t);
    (void)talk_send(t, "hello", 5); /* may fail already */
    assert_true(talk_ended(t) < 0);
}

/* Nobody makes another host the owner, over the wire as in the store. */
static void test_swaps_of_others(void **state)
{
    struct witness_run *w = *state;
    struct wire_arb_reply reply;
    struct err err = {""};

    witness_run_start(w);
    assert_int_equal(ask(w, witness_run_tls(w, "hosta"), "hosta", &none, &solo_a, &reply, &err), 0);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_int_equal(ask(w, witness_run_tls(w, "hostb"), "hostb", &solo_a, &stopped, &reply, &err),
                     0);
    assert_int_equal(reply.status, WIRE_ARB_ERROR);
    assert_int_equal(ask(w, witness_run_tls(w, "hosta"), "hosta", &solo_a, &stopped, &reply, &err),
                     0);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
}

static void count(void *user, const char *vm, const struct arb_record *record)
{
    ++*(unsigned *)user;
}

/* hosta of another group: neither sees nor changes what hosta of the first one has. */
static void test_other_group(void **state)
{
    struct witness_run *w = *state;
    struct identity *identity = witness_run_identity(w);
    struct tls_context *tls;
    struct wire_arb_reply reply;
    struct err err = {""};
    unsigned n = 0;

    assert_int_equal(tls_context_new(identity, &tls, NULL), 0);
    witness_run_allow(w, "hosta", "other", identity_public(identity));
    witness_run_start(w);
    assert_int_equal(ask(w, witness_run_tls(w, "hosta"), "hosta", &none, &solo_a, &reply, &err), 0);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_int_equal(ask(w, tls, "hosta", &none, &none, &reply, &err), 0);
    assert_true(arb_record_equal(&reply.current, &none));
    assert_int_equal(ask(w, tls, "hosta", &solo_a, &stopped, &reply, &err), 0);
    assert_int_equal(reply.status, WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&reply.current, &none));
    assert_int_equal(arbiter_list(&w->config, tls, "hosta", PATIENCE_NS, count, &n, &err), 0);
    assert_int_equal(n, 0);
    assert_int_equal(arbiter_list(&w->config, witness_run_tls(w, "hostb"), "hostb", PATIENCE_NS,
                                  count, &n, &err),
                     0);
    assert_int_equal(n, 1);
    tls_context_free(tls);
    identity_free(identity);
}

static void run_command(struct witness_run *w, const char *command)
{
    char said[256];

    if (witness_run_command(w, command, said, sizeof(said)) != 0)
        fail_msg("%s: %s", command, said);
}

/* A key that is forbidden ends its connections, and only those. */
static void test_forbidden_while_connected(void **state)
{
    struct witness_run *w = *state;
    struct transport *a, *b;

    witness_run_start(w);
    a = talk_start(w, "hosta");
    b = talk_start(w, "hostb");
    talk_ask(a, 1);
    run_command(w, "forbid hosta");
    (void)talk_ended(a);
    talk_ask(b, 2);
    talk_end(b);
    assert_refused(w, witness_run_tls(w, "hosta"), "hosta", "does not know the other's key");
}

/* A host changes its key: two at a time, and no connection ends until the old one is forbidden. */
static void test_change_of_a_key(void **state)
{
    struct witness_run *w = *state;
    const struct witness_host *hosta = witness_run_host(w, "hosta");
    struct identity *next = witness_run_identity(w);
    char text[PUBLIC_KEY_TEXT], command[128];
    struct transport *by_old, *by_new;
    struct tls_context *tls;
    struct wire_hello hello = talk_hello("hosta");

    assert_int_equal(tls_context_new(next, &tls, NULL), 0);
    witness_run_start(w);
    by_old = talk_start(w, "hosta");
    witness_run_allow(w, "hosta", "default", identity_public(next));
    (void)witness_run_host(w, "hostc"); /* waits until the witness has seen changes */
    by_new = talk_connect(w, tls);
    assert_int_equal(talk_greet(by_new, &hello).status, WIRE_OK);
    talk_ask(by_old, 1);
    public_key_format(identity_public(hosta->identity), text);
    (void)snprintf(command, sizeof(command), "forbid hosta %s", text);
    run_command(w, command);
    (void)talk_ended(by_old);
    talk_ask(by_new, 2);
    talk_end(by_new);
    tls_context_free(tls);
    identity_free(next);
}

/* The witness changes its own key: connections stay, new ones meet the new key. */
static void test_change_of_its_own_key(void **state)
{
    struct witness_run *w = *state;
    uint64_t end = clock_now_ns() + PATIENCE_NS;
    struct wire_arb_reply reply;
    struct transport *t;
    struct err err;
    char said[256];

    witness_run_start(w);
    t = talk_start(w, "hosta");
    assert_int_equal(witness_run_command(w, "key new", said, sizeof(said)), 0);
    *strchrnul(said, '\n') = '\0';
    assert_admitted(w, witness_run_tls(w, "hosta"), "hosta"); /* not in use yet */
    run_command(w, "key use");
    assert_int_equal(public_key_parse(said, &w->config.key, NULL), 0);
    while (ask(w, witness_run_tls(w, "hosta"), "hosta", &none, &none, &reply, &err) < 0)
        assert_true(clock_now_ns() < end);
    talk_ask(t, 1);
    talk_end(t);
    assert_int_equal(witness_run_command(w, "key use", said, sizeof(said)), 1); /* used up */
}

/* What a person has made of hosts.json by hand is used when it is right, and only then. */
static void test_damaged_hosts(void **state)
{
    struct witness_run *w = *state;
    char path[128], fresh[160], said[1024];
    struct transport *t;
    FILE *f;

    witness_run_start(w);
    t = talk_start(w, "hosta");
    (void)snprintf(path, sizeof(path), "%s/hosts.json", w->dir);
    (void)snprintf(fresh, sizeof(fresh), "%s.mine", path);
    f = fopen(fresh, "w");
    assert_non_null(f);
    fputs("{\"version\": 1, \"hosts\": [{}]}", f);
    fclose(f);
    assert_int_equal(rename(fresh, path), 0);
    talk_ask(t, 1); /* it sees the file now, or soon */
    assert_admitted(w, witness_run_tls(w, "hosta"), "hosta");
    assert_int_equal(witness_run_command(w, "forbid hosta", said, sizeof(said)), 1);
    assert_non_null(strstr(said, "hosts.json: hosts[0]"));
    talk_ask(t, 2);
    talk_end(t);
    witness_run_signal(w, SIGTERM);
    assert_int_equal(witness_run_wait(w), 0);
    assert_int_equal(witness_run_refused(w, said, sizeof(said)), 1);
    assert_non_null(strstr(said, "hosts.json: hosts[0]"));
}

/* Far more half-open connections than there are places for: whoever is in is served as ever, and
 * whoever comes gets in. */
static void test_flood_of_strangers(void **state)
{
    enum { KEPT = SERVER_STRANGERS_MAX + 100, FLOOD = 3 * KEPT };
    static int fds[KEPT];
    struct witness_run *w = *state;
    struct transport *inside;

    witness_run_start(w);
    inside = talk_start(w, "hosta");
    for (int i = 0; i < FLOOD; i++) {
        if (i >= KEPT)
            close(fds[i % KEPT]);
        fds[i % KEPT] = talk_socket(w);
        if (i % 2) /* some begin, and never go on */
            (void)send(fds[i % KEPT], "\x16\x03\x01", 3, MSG_NOSIGNAL);
        if (i % 50 == 0)
            talk_ask(inside, (uint64_t)i);
        if (i % 100 == 0)
            assert_admitted(w, witness_run_tls(w, "hostb"), "hostb");
    }
    talk_ask(inside, FLOOD);
    talk_end(inside);
    for (int i = 0; i < KEPT; i++)
        close(fds[i]);
}

/* A stranger has 5 s, whatever he says meanwhile. */
static void test_slow_stranger(void **state)
{
    struct witness_run *w = *state;
    uint64_t since = clock_now_ns();
    struct wire_hello hello = talk_hello("hosta");
    struct transport *silent, *slow;
    uint8_t raw[WIRE_HELLO_BYTES];

    witness_run_start(w);
    silent = talk_connect(w, NULL);
    slow = talk_connect(w, witness_run_tls(w, "hosta"));
    wire_hello_encode(&hello, raw);
    assert_int_equal(talk_send(slow, raw, sizeof(raw) - 1), 0); /* all but the last byte */
    (void)talk_ended(silent);
    (void)talk_ended(slow);
    assert_in_range(clock_now_ns() - since, 5 * NS_PER_S, 15 * NS_PER_S);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_unknown_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_false_witness, setup, teardown),
        cmocka_unit_test_setup_teardown(test_anothers_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_plain_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_purpose, setup, teardown),
        cmocka_unit_test_setup_teardown(test_swaps_of_others, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_group, setup, teardown),
        cmocka_unit_test_setup_teardown(test_forbidden_while_connected, setup, teardown),
        cmocka_unit_test_setup_teardown(test_change_of_a_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_change_of_its_own_key, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_hosts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flood_of_strangers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_stranger, setup, teardown),
    };

    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    program = argc > 1 ? argv[1] : "understudy-witness";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
