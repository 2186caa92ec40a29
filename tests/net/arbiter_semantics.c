/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/unit.h"
#include "../unit/witness_run.h"
#include "arbiter_args.h"
#include "io/arbiter_client.h"
#include "io/clock.h"

/* What every arbiter has to do: the same tests for the cluster of etcd that the argument tells
 * (arbiter_args.h), whose registers are empty, or for the witness whose program it is. */

#define PATIENCE_NS (20 * NS_PER_S)

static struct arbiter_config config;
static struct witness_run witness; /* unless it is etcd */
static sd_event *event;

static const struct arb_record none;
static const struct arb_record solo_a = {1, ARB_SOLO, "hosta", ""};
static const struct arb_record solo_b = {1, ARB_SOLO, "hostb", ""};
static const struct arb_record paired = {2, ARB_PAIRED, "hosta", "hostb"};
static const struct arb_record alone = {3, ARB_SOLO, "hosta", ""};
static const struct arb_record taken = {3, ARB_SOLO, "hostb", ""};
static const struct arb_record stopped = {4, ARB_SOLO, "", ""};

/* What a host shows to the arbiter. */
static struct tls_context *tls_of(const char *host)
{
    return config.kind == ARBITER_WITNESS ? witness_run_tls(&witness, host) : NULL;
}

struct listener {
    const char *host;
    struct arbiter_client *client;
    unsigned n_answers;
    uint64_t id;
    struct wire_arb_reply reply;
    char why[512];
    bool close_inside;
    bool get_inside;
};

static const struct wire_arb_request get = {.op = WIRE_ARB_GET};

static struct wire_arb_request cas(const struct arb_record *expected,
                                   const struct arb_record *wanted)
{
    return (struct wire_arb_request){.op = WIRE_ARB_CAS, .expected = *expected, .wanted = *wanted};
}

static void on_answer(void *user, uint64_t id, uint8_t status, const struct arb_record *current,
                      const char *why)
{
    struct listener *l = user;

    l->n_answers++;
    l->id = id;
    l->reply = (struct wire_arb_reply){.status = status, .current = *current};
    (void)snprintf(l->why, sizeof(l->why), "%s", why);
    if (l->close_inside) {
        arbiter_client_close(l->client);
        l->client = NULL;
    } else if (l->get_inside) {
        l->get_inside = false;
        arbiter_client_ask(l->client, id + 1, &get);
    }
}

static struct listener listener_open(const char *host)
{
    return (struct listener){.host = host};
}

static void listen_for(struct listener *l, const char *vm)
{
    assert_int_equal(arbiter_client_new(event, &config, tls_of(l->host), l->host, vm, PATIENCE_NS,
                                        on_answer, l, &l->client),
                     0);
}

static void run_until(const struct listener *l, unsigned n)
{
    uint64_t end = clock_now_ns() + PATIENCE_NS + NS_PER_S;

    while (l->n_answers < n) {
        assert_true(clock_now_ns() < end);
        assert_return_code(sd_event_run(event, 100000), 0);
    }
    assert_int_equal(l->n_answers, n);
}

static void assert_ask(struct listener *l, const struct wire_arb_request *request, uint8_t status,
                       const struct arb_record *current)
{
    uint64_t id = l->id + 1;

    arbiter_client_ask(l->client, id, request);
    run_until(l, l->n_answers + 1);
    if (l->reply.status != status)
        fail_msg("status %u, not %u: %s", l->reply.status, status, l->why);
    assert_int_equal(l->id, id);
    assert_true(arb_record_equal(&l->reply.current, current));
}

static int setup(void **state)
{
    return sd_event_new(&event) < 0 ? -1 : 0;
}

static int teardown(void **state)
{
    event = sd_event_unref(event);
    return 0;
}

static void test_life_of_a_register(void **state)
{
    struct wire_arb_request start = cas(&none, &solo_a), other_start = cas(&none, &solo_b);
    struct wire_arb_request pair = cas(&solo_a, &paired), part = cas(&paired, &alone);
    struct wire_arb_request take = cas(&paired, &taken), stop = cas(&taken, &stopped);
    struct listener a = listener_open("hosta"), b = listener_open("hostb");

    listen_for(&a, "life");
    listen_for(&b, "life");
    arbiter_client_warm(a.client);
    arbiter_client_warm(a.client);
    assert_ask(&a, &get, WIRE_ARB_DONE, &none);
    assert_ask(&a, &pair, WIRE_ARB_CONFLICT, &none); /* nothing is there yet */
    assert_ask(&a, &start, WIRE_ARB_DONE, &solo_a);
    assert_ask(&a, &start, WIRE_ARB_CONFLICT, &solo_a);
    assert_ask(&b, &other_start, WIRE_ARB_CONFLICT, &solo_a);
    assert_ask(&a, &pair, WIRE_ARB_DONE, &paired);
    assert_ask(&b, &get, WIRE_ARB_DONE, &paired);
    assert_ask(&b, &take, WIRE_ARB_DONE, &taken);
    assert_ask(&a, &part, WIRE_ARB_CONFLICT, &taken); /* too late */
    assert_ask(&a, &pair, WIRE_ARB_CONFLICT, &taken); /* stale */
    assert_ask(&b, &take, WIRE_ARB_CONFLICT, &taken); /* done before: the asker sees its own */
    assert_ask(&b, &stop, WIRE_ARB_DONE, &stopped);
    assert_ask(&a, &get, WIRE_ARB_DONE, &stopped);
    arbiter_client_close(a.client);
    arbiter_client_close(b.client);
}

/* Two VMs, one of whose names begins like the other's, have nothing to do with each other. */
static void test_two_registers(void **state)
{
    struct wire_arb_request start_a = cas(&none, &solo_a), start_b = cas(&none, &solo_b);
    struct listener a = listener_open("hosta"), b = listener_open("hostb");

    listen_for(&a, "two");
    listen_for(&b, "two-more");
    assert_ask(&a, &start_a, WIRE_ARB_DONE, &solo_a);
    assert_ask(&b, &get, WIRE_ARB_DONE, &none);
    assert_ask(&b, &start_b, WIRE_ARB_DONE, &solo_b);
    assert_ask(&a, &get, WIRE_ARB_DONE, &solo_a);
    arbiter_client_close(a.client);
    arbiter_client_close(b.client);
}

static void test_race(void **state)
{
    struct wire_arb_request start = cas(&none, &solo_a), pair = cas(&solo_a, &paired);
    struct wire_arb_request primary = cas(&paired, &alone), standby = cas(&paired, &taken);
    struct listener a = listener_open("hosta"), b = listener_open("hostb");

    listen_for(&a, "race");
    listen_for(&b, "race");
    assert_ask(&a, &start, WIRE_ARB_DONE, &solo_a);
    assert_ask(&a, &pair, WIRE_ARB_DONE, &paired);
    arbiter_client_ask(a.client, 3, &primary);
    arbiter_client_ask(b.client, 3, &standby);
    run_until(&a, 3);
    run_until(&b, 1);
    assert_int_equal(a.reply.status + b.reply.status, WIRE_ARB_DONE + WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&a.reply.current, &b.reply.current));
    assert_true(
        arb_record_equal(&a.reply.current, a.reply.status == WIRE_ARB_DONE ? &alone : &taken));
    arbiter_client_close(a.client);
    arbiter_client_close(b.client);
}

static void test_invalid_request(void **state)
{
    struct wire_arb_request skips = cas(&none, &paired);
    struct listener a = listener_open("hosta");

    listen_for(&a, "invalid");
    assert_ask(&a, &skips, 0, &none);
    assert_ask(&a, &get, WIRE_ARB_DONE, &none);
    arbiter_client_close(a.client);
}

/* A request that takes the place of another gets its own answer, not the other's. */
static void test_superseded_request(void **state)
{
    struct wire_arb_request start = cas(&none, &solo_a);
    struct listener a = listener_open("hosta");

    listen_for(&a, "superseded");
    arbiter_client_ask(a.client, 1, &start); /* before the connection is there: never sent */
    arbiter_client_ask(a.client, 2, &get);
    run_until(&a, 1);
    assert_int_equal(a.id, 2);
    assert_int_equal(a.reply.status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(&a.reply.current, &none));
    for (unsigned i = 0; i < 20; i++) { /* at some point on its way */
        arbiter_client_ask(a.client, 3 + i, &get);
        for (unsigned j = 0; j < i % 5; j++)
            assert_return_code(sd_event_run(event, 1000), 0);
        a.n_answers = 0;
        assert_ask(&a, &get, WIRE_ARB_DONE, &none);
    }
    arbiter_client_close(a.client);
}

static void test_calls_from_inside_the_answer(void **state)
{
    struct listener a = listener_open("hosta");

    listen_for(&a, "inside");
    a.get_inside = true;
    arbiter_client_ask(a.client, 1, &get);
    run_until(&a, 2);
    assert_int_equal(a.id, 2);
    assert_int_equal(a.reply.status, WIRE_ARB_DONE);
    a.close_inside = true;
    arbiter_client_ask(a.client, 3, &get);
    run_until(&a, 3);
    assert_null(a.client);
    listen_for(&a, "inside");
    arbiter_client_ask(a.client, 4, &get); /* closed while it is asking */
    assert_return_code(sd_event_run(event, 0), 0);
    arbiter_client_close(a.client);
}

static void test_longest_names(void **state)
{
    char vm[WIRE_NAME_BYTES] = "";
    struct arb_record long_solo = solo_a, long_paired = paired;
    struct wire_arb_request start, pair;
    struct listener a = listener_open(long_solo.owner);

    memset(vm, 'v', WIRE_NAME_BYTES - 1);
    memset(long_solo.owner, 'a', WIRE_NAME_BYTES - 1);
    memset(long_paired.owner, 'a', WIRE_NAME_BYTES - 1);
    memset(long_paired.standby, 'b', WIRE_NAME_BYTES - 1);
    start = cas(&none, &long_solo);
    pair = cas(&long_solo, &long_paired);
    listen_for(&a, vm);
    assert_ask(&a, &start, WIRE_ARB_DONE, &long_solo);
    assert_ask(&a, &pair, WIRE_ARB_DONE, &long_paired);
    assert_ask(&a, &get, WIRE_ARB_DONE, &long_paired);
    arbiter_client_close(a.client);
}

struct listed {
    unsigned n;
    char last[WIRE_NAME_BYTES];
};

static void on_register(void *user, const char *vm, const struct arb_record *record)
{
    struct listed *listed = user;

    assert_true(strcmp(vm, listed->last) > 0);
    strcpy(listed->last, vm);
    if (strncmp(vm, "list-", 5) == 0) {
        assert_true(arb_record_equal(record, &solo_a));
        listed->n++;
    }
}

/* More registers than any message holds. */
static void test_list(void **state)
{
    enum { N = 150 };
    struct wire_arb_request request = cas(&none, &solo_a);
    struct wire_arb_reply reply;
    struct listed listed = {0};
    struct err err;

    for (unsigned i = 0; i < N; i++) {
        (void)snprintf(request.vm, sizeof(request.vm), "list-%u", i);
        if (arbiter_ask_once(&config, tls_of("hosta"), "hosta", &request, PATIENCE_NS, &reply,
                             &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(reply.status, WIRE_ARB_DONE);
    }
    if (arbiter_list(&config, tls_of("hosta"), "hosta", PATIENCE_NS, on_register, &listed, &err) <
        0)
        fail_msg("%s", err.text);
    assert_int_equal(listed.n, N);
}

static int start_witness(void **state)
{
    if (config.kind == ARBITER_WITNESS) {
        witness_run_start(&witness);
        config = witness.config;
    }
    return 0;
}

static int stop_witness(void **state)
{
    if (config.kind == ARBITER_WITNESS)
        witness_run_done(&witness);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life_of_a_register, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_registers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_race, setup, teardown),
        cmocka_unit_test_setup_teardown(test_invalid_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_superseded_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_calls_from_inside_the_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_longest_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_list, setup, teardown),
    };

    if (argc != 2) {
        fprintf(stderr, "arbiter-semantics: needs an arbiter as its argument\n");
        return 2;
    }
    if (!arbiter_args(argv[1], &config)) {
        config.kind = ARBITER_WITNESS;
        witness_run_init(&witness, argv[1]);
    }
    return cmocka_run_group_tests(tests, start_witness, stop_witness);
}
