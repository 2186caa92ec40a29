/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io/arbiter_client.h"
#include "io/channel.h"
#include "io/clock.h"
#include "tls_rig.h"
#include "witness_run.h"

/* The arbiter's client against a real witness, and against one that lies. */

#define PATIENCE_NS (20 * NS_PER_S)
#define SHORT_NS    (150 * NS_PER_MS)

static const struct arb_record none;
static const struct arb_record solo_a = {1, ARB_SOLO, "hosta", ""};
static const struct arb_record paired = {2, ARB_PAIRED, "hosta", "hostb"};
static const struct arb_record alone = {3, ARB_SOLO, "hosta", ""};
static const struct arb_record taken = {3, ARB_SOLO, "hostb", ""};

static struct witness_run witness;
static sd_event *event;
static struct tls_host our_key, liars_key;

/* What one client heard. */
struct listener {
    struct arbiter_config config;
    struct arbiter_client *client;
    unsigned n_answers;
    uint64_t id;
    uint8_t status;
    struct arb_record current;
    char why[256];
    bool close_inside;                         /* closes the client from inside the answer */
    const struct wire_arb_request *ask_inside; /* asked from inside the first answer */
};

static void on_answer(void *user, uint64_t id, uint8_t status, const struct arb_record *current,
                      const char *why)
{
    struct listener *l = user;

    l->n_answers++;
    l->id = id;
    l->status = status;
    l->current = *current;
    strncpy(l->why, why, sizeof(l->why) - 1);
    if (l->close_inside) {
        arbiter_client_close(l->client);
        l->client = NULL;
    } else if (l->ask_inside) {
        const struct wire_arb_request *request = l->ask_inside;

        l->ask_inside = NULL;
        arbiter_client_ask(l->client, id + 1, request);
    }
}

static void listen_by(struct listener *l, const struct arbiter_config *config,
                      struct tls_context *tls, const char *host, uint64_t timeout_ns)
{
    *l = (struct listener){.config = *config};
    assert_int_equal(arbiter_client_new(event, &l->config, tls, host, "web", timeout_ns, on_answer,
                                        l, &l->client),
                     0);
}

/* To the witness. */
static void listen_to(struct listener *l, const char *host, uint64_t timeout_ns)
{
    listen_by(l, &witness.config, witness_run_tls(&witness, host), host, timeout_ns);
}

/* To somebody else, the liar or nobody. */
static void listen_elsewhere(struct listener *l, const char *address, uint64_t timeout_ns)
{
    struct arbiter_config config = witness_config(address);

    config.key = *identity_public(liars_key.identity);
    listen_by(l, &config, our_key.tls, "hosta", timeout_ns);
}

/* Runs the loop until the listener has heard n answers. */
static void run_until(const struct listener *l, unsigned n)
{
    uint64_t end = clock_now_ns() + PATIENCE_NS;

    while (l->n_answers < n) {
        assert_true(clock_now_ns() < end);
        assert_return_code(sd_event_run(event, 100000), 0);
    }
    assert_int_equal(l->n_answers, n);
}

/* Runs the loop for a while in which nothing should be heard. */
static void run_for(uint64_t ns)
{
    for (uint64_t end = clock_now_ns() + ns; clock_now_ns() < end;)
        assert_return_code(sd_event_run(event, 10000), 0);
}

static struct wire_arb_request cas(const struct arb_record *expected,
                                   const struct arb_record *wanted)
{
    return (struct wire_arb_request){.op = WIRE_ARB_CAS, .expected = *expected, .wanted = *wanted};
}

static const struct wire_arb_request get = {.op = WIRE_ARB_GET};

static void ask(struct listener *l, uint64_t id, const struct wire_arb_request *request)
{
    unsigned n = l->n_answers;

    arbiter_client_ask(l->client, id, request);
    assert_int_equal(l->n_answers, n); /* never from inside the call */
    run_until(l, n + 1);
    assert_int_equal(l->id, id);
}

static void assert_answer(const struct listener *l, uint8_t status,
                          const struct arb_record *current)
{
    assert_int_equal(l->status, status);
    assert_true(arb_record_equal(&l->current, current));
    assert_int_equal(l->why[0] == '\0', status == WIRE_ARB_DONE || status == WIRE_ARB_CONFLICT);
}

static const char *program;

static int setup(void **state)
{
    witness_run_init(&witness, program);
    tls_host_new(&our_key);
    tls_host_new(&liars_key);
    (void)witness_run_host(&witness, "hosta");
    (void)witness_run_host(&witness, "hostb");
    return sd_event_new(&event) < 0 ? -1 : 0;
}

static int teardown(void **state)
{
    event = sd_event_unref(event);
    tls_host_free(&our_key);
    tls_host_free(&liars_key);
    witness_run_done(&witness);
    return 0;
}

static void test_swaps(void **state)
{
    struct wire_arb_request start = cas(&none, &solo_a), pair = cas(&solo_a, &paired);
    struct listener l;

    witness_run_start(&witness);
    listen_to(&l, "hosta", PATIENCE_NS);
    arbiter_client_warm(l.client);
    arbiter_client_warm(l.client);
    ask(&l, 1, &get);
    assert_answer(&l, WIRE_ARB_DONE, &none);
    ask(&l, 2, &pair);
    assert_answer(&l, WIRE_ARB_CONFLICT, &none);
    ask(&l, 3, &start);
    assert_answer(&l, WIRE_ARB_DONE, &solo_a);
    ask(&l, 4, &pair);
    assert_answer(&l, WIRE_ARB_DONE, &paired);
    arbiter_client_close(l.client);
    arbiter_client_close(NULL);
}

/* Primary and standby race for the same pairing: exactly one wins, both learn who. */
static void test_race(void **state)
{
    struct wire_arb_request start = cas(&none, &solo_a), pair = cas(&solo_a, &paired);
    struct wire_arb_request primary = cas(&paired, &alone), standby = cas(&paired, &taken);
    struct listener a, b;

    witness_run_start(&witness);
    listen_to(&a, "hosta", PATIENCE_NS);
    listen_to(&b, "hostb", PATIENCE_NS);
    ask(&a, 1, &start);
    ask(&a, 2, &pair);
    arbiter_client_ask(a.client, 3, &primary);
    arbiter_client_ask(b.client, 3, &standby);
    run_until(&a, 3);
    run_until(&b, 1);
    assert_int_equal(a.status + b.status, WIRE_ARB_DONE + WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&a.current, &b.current));
    assert_true(arb_record_equal(&a.current, a.status == WIRE_ARB_DONE ? &alone : &taken));
    arbiter_client_close(a.client);
    arbiter_client_close(b.client);
}

/* A stopped witness: the request times out, and its late answer is not taken for another's. */
static void test_stopped_witness(void **state)
{
    struct wire_arb_request start = cas(&none, &solo_a);
    struct listener l;
    uint64_t since;

    witness_run_start(&witness);
    listen_to(&l, "hosta", SHORT_NS);
    ask(&l, 1, &get);
    witness_run_signal(&witness, SIGSTOP);
    since = clock_now_ns();
    ask(&l, 2, &start); /* on the connection that is there */
    assert_answer(&l, 0, &none);
    /* Timers are due a little early: the loop collects them. */
    assert_in_range(clock_now_ns() - since, SHORT_NS * 9 / 10, PATIENCE_NS);
    ask(&l, 3, &get); /* on a new one: the kernel takes it, nobody greets */
    assert_answer(&l, 0, &none);
    assert_non_null(strstr(l.why, "no answer within 150 ms"));
    witness_run_signal(&witness, SIGCONT);
    do /* it may take a while to come round */
        ask(&l, 4, &get);
    while (l.status == 0);
    assert_answer(&l, WIRE_ARB_DONE, &solo_a); /* nobody knew, but it was carried out */
    arbiter_client_close(l.client);
}

/* A request that takes the place of another gets its own answer, not the other's. */
static void test_superseded_request(void **state)
{
    struct wire_arb_request start = cas(&none, &solo_a);
    struct listener l;

    witness_run_start(&witness);
    listen_to(&l, "hosta", PATIENCE_NS);
    arbiter_client_ask(l.client, 1, &start); /* before the connection is there: never sent */
    arbiter_client_ask(l.client, 2, &get);
    run_until(&l, 1);
    assert_int_equal(l.id, 2);
    assert_answer(&l, WIRE_ARB_DONE, &none);
    arbiter_client_ask(l.client, 3, &get); /* sent, and given up */
    arbiter_client_ask(l.client, 3, &start);
    run_until(&l, 2);
    assert_answer(&l, WIRE_ARB_DONE, &solo_a);
    run_for(SHORT_NS);
    assert_int_equal(l.n_answers, 2);
    arbiter_client_close(l.client);
}

static void test_restarted_witness(void **state)
{
    struct wire_arb_request start = cas(&none, &solo_a);
    struct listener l;

    witness_run_start(&witness);
    listen_to(&l, "hosta", PATIENCE_NS);
    ask(&l, 1, &start);
    witness_run_signal(&witness, SIGKILL);
    (void)witness_run_wait(&witness);
    run_for(SHORT_NS); /* an idle connection breaks silently */
    assert_int_equal(l.n_answers, 1);
    ask(&l, 2, &get);
    assert_answer(&l, 0, &none);
    assert_non_null(strstr(l.why, "refused"));
    witness_run_start(&witness);
    ask(&l, 3, &get);
    assert_answer(&l, WIRE_ARB_DONE, &solo_a);
    arbiter_client_close(l.client);
}

static void test_unusable_addresses(void **state)
{
    struct arbiter_config config = witness_config("127.0.0.1:1");
    struct listener l;

    assert_int_equal(
        arbiter_client_new(event, &config, NULL, "-", "web", 1, on_answer, &l, &l.client), -EINVAL);
    assert_int_equal(
        arbiter_client_new(event, &config, NULL, "hosta", "", 1, on_answer, &l, &l.client),
        -EINVAL);
    listen_elsewhere(&l, "not an address", PATIENCE_NS);
    ask(&l, 1, &get);
    assert_answer(&l, 0, &none);
    arbiter_client_warm(l.client);
    arbiter_client_ask(l.client, 2, &get); /* two failures pending: one answer */
    arbiter_client_ask(l.client, 3, &get);
    run_until(&l, 2);
    assert_int_equal(l.id, 3);
    arbiter_client_close(l.client);
    listen_elsewhere(&l, "127.0.0.1:1", PATIENCE_NS); /* nobody listens */
    ask(&l, 1, &get);
    assert_answer(&l, 0, &none);
    arbiter_client_close(l.client);
}

static void test_invalid_request(void **state)
{
    struct wire_arb_request skips = cas(&none, &paired);
    struct listener l;

    witness_run_start(&witness);
    listen_to(&l, "hosta", PATIENCE_NS);
    ask(&l, 1, &skips);
    assert_answer(&l, 0, &none);
    arbiter_client_ask(l.client, 2, &skips); /* its failure must not hit the next one */
    ask(&l, 3, &get);
    assert_answer(&l, WIRE_ARB_DONE, &none);
    arbiter_client_close(l.client);
}

static void test_calls_from_inside_the_answer(void **state)
{
    struct listener l;

    witness_run_start(&witness);
    listen_to(&l, "hosta", PATIENCE_NS);
    l.ask_inside = &get;
    arbiter_client_ask(l.client, 1, &get);
    run_until(&l, 2);
    assert_int_equal(l.id, 2);
    assert_answer(&l, WIRE_ARB_DONE, &none);
    l.close_inside = true; /* inside a reply */
    arbiter_client_ask(l.client, 3, &get);
    run_until(&l, 3);
    assert_null(l.client);

    listen_elsewhere(&l, "127.0.0.1:1", PATIENCE_NS);
    l.close_inside = true; /* inside a broken connection */
    arbiter_client_ask(l.client, 1, &get);
    run_until(&l, 1);
    witness_run_signal(&witness, SIGSTOP);
    listen_to(&l, "hosta", SHORT_NS);
    l.close_inside = true; /* inside a time-out */
    arbiter_client_ask(l.client, 1, &get);
    run_until(&l, 1);
    listen_elsewhere(&l, "nonsense", PATIENCE_NS);
    l.close_inside = true; /* inside a failure to connect */
    arbiter_client_ask(l.client, 1, &get);
    run_until(&l, 1);
    run_for(SHORT_NS);
}

static void test_ask_once(void **state)
{
    struct wire_arb_request request = cas(&none, &solo_a);
    struct arbiter_config config;
    struct wire_arb_reply reply;
    struct err err;

    strcpy(request.vm, "web");
    witness_run_start(&witness);
    config = witness.config;
    assert_int_equal(arbiter_ask_once(&config, witness_run_tls(&witness, "hosta"), "hosta",
                                      &request, PATIENCE_NS, &reply, &err),
                     0);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(&reply.current, &solo_a));
    witness_run_signal(&witness, SIGSTOP);
    assert_int_equal(arbiter_ask_once(&config, witness_run_tls(&witness, "hosta"), "hosta",
                                      &request, SHORT_NS, &reply, &err),
                     -ECOMM);
    assert_non_null(strstr(err.text, "no answer within 150 ms"));
}

/* An arbiter inside the test's own loop, which answers whatever it is told to. */
struct liar {
    int listen_fd;
    char address[32];
    sd_event_source *source;
    struct channel *channel;
    uint8_t hello_status;
    struct wire_msg reply; /* its epoch becomes the request's */
};

static void liar_hello(void *user, const struct wire_hello *hello)
{
    struct liar *liar = user;
    struct wire_hello answer;

    wire_hello_answer(hello, "liar", liar->hello_status, "because", &answer);
    channel_send_hello(liar->channel, &answer);
}

static void liar_message(void *user, const struct wire_msg *msg)
{
    struct liar *liar = user;

    liar->reply.epoch = msg->epoch;
    channel_send(liar->channel, &liar->reply);
}

static void liar_broken(void *user, const char *why)
{
    struct liar *liar = user;

    channel_close(liar->channel);
    liar->channel = NULL;
}

static int liar_accept(sd_event_source *source, int fd, uint32_t events, void *user)
{
    static const struct channel_callbacks callbacks = {liar_hello, liar_message, liar_broken};
    struct liar *liar = user;
    struct transport *t = tls_side(&liars_key, accept4(fd, NULL, NULL, SOCK_CLOEXEC), TLS_SERVER,
                                   TLS_ARBITER, &our_key);

    channel_close(liar->channel);
    assert_int_equal(channel_new(event, t, WIRE_CHANNEL_ARBITER, SD_EVENT_PRIORITY_NORMAL,
                                 &callbacks, liar, &liar->channel),
                     0);
    return 0;
}

static void liar_start(struct liar *liar)
{
    struct sockaddr_in addr;
    socklen_t len = sizeof(addr);

    *liar = (struct liar){0};
    assert_int_equal(transport_tcp_listen("127.0.0.1:0", &liar->listen_fd, NULL), 0);
    assert_int_equal(getsockname(liar->listen_fd, (struct sockaddr *)&addr, &len), 0);
    (void)snprintf(liar->address, sizeof(liar->address), "127.0.0.1:%u", ntohs(addr.sin_port));
    assert_return_code(
        sd_event_add_io(event, &liar->source, liar->listen_fd, EPOLLIN, liar_accept, liar), 0);
}

static void test_impossible_answers(void **state)
{
    const struct wire_arb_request swap = cas(&solo_a, &paired);
    const struct {
        const struct wire_arb_request *request;
        struct wire_arb_reply reply;
        uint8_t heard;
    } cases[] = {
        {&get, {WIRE_ARB_DONE, solo_a}, WIRE_ARB_DONE},
        {&get, {WIRE_ARB_CONFLICT, solo_a}, 0},
        {&swap, {WIRE_ARB_DONE, paired}, WIRE_ARB_DONE},
        {&swap, {WIRE_ARB_DONE, solo_a}, 0}, /* done, and yet not there */
        {&swap, {WIRE_ARB_DONE, taken}, 0},
        {&swap, {WIRE_ARB_CONFLICT, taken}, WIRE_ARB_CONFLICT},
        {&swap, {WIRE_ARB_CONFLICT, paired}, WIRE_ARB_CONFLICT}, /* an earlier request's work */
        {&swap, {WIRE_ARB_CONFLICT, solo_a}, 0},                 /* no conflict */
        {&swap, {WIRE_ARB_ERROR, solo_a}, WIRE_ARB_ERROR},
    };
    struct liar liar;
    struct listener l;

    liar_start(&liar);
    listen_elsewhere(&l, liar.address, PATIENCE_NS);
    for (size_t i = 0; i < N_OF(cases); i++) {
        liar.reply = (struct wire_msg){.type = WIRE_ARB_REPLY, .u.arb_reply = cases[i].reply};
        ask(&l, i, cases[i].request);
        assert_answer(&l, cases[i].heard, cases[i].heard ? &cases[i].reply.current : &none);
    }
    liar.reply = (struct wire_msg){.type = WIRE_ARB_REQUEST, .u.arb_request = get};
    strcpy(liar.reply.u.arb_request.vm, "web"); /* answers with a question */
    ask(&l, 100, &get);
    assert_answer(&l, 0, &none);
    liar.hello_status = WIRE_REFUSED_UNKNOWN_PEER;
    ask(&l, 101, &get);
    assert_answer(&l, 0, &none);
    assert_non_null(strstr(l.why, "refused by liar: because"));
    arbiter_client_close(l.client);
    channel_close(liar.channel);
    sd_event_source_disable_unref(liar.source);
    close(liar.listen_fd);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_swaps, setup, teardown),
        cmocka_unit_test_setup_teardown(test_race, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stopped_witness, setup, teardown),
        cmocka_unit_test_setup_teardown(test_superseded_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_restarted_witness, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unusable_addresses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_invalid_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_calls_from_inside_the_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ask_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_impossible_answers, setup, teardown),
    };

    program = argc > 1 ? argv[1] : "understudy-witness";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
