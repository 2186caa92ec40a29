/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP client against a socket that this test holds the other end of. */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "unit.h"

#include "base/err.h"
#include "hyp/qemu/qmp.h"
#include "io/clock.h"

struct fixture {
    struct qmp *qmp;
    int peer;
    char events[256];  /* names of events, each followed by a space */
    uint64_t event_ns; /* of the last one */
    char replies[256]; /* "tag:ok " or "tag:error text " */
    int broken;        /* 0 or -errno */
    char why[256];
};

struct tag {
    struct fixture *f;
    const char *name;
};

static void on_event(void *user, const char *name, const json_t *data, uint64_t at_ns)
{
    struct fixture *f = user;
    size_t used = strlen(f->events);

    (void)data;
    f->event_ns = at_ns;
    (void)snprintf(f->events + used, sizeof(f->events) - used, "%s ", name);
}

static void on_broken(void *user, int code, const char *why)
{
    struct fixture *f = user;

    assert_int_equal(f->broken, 0);
    f->broken = code;
    (void)snprintf(f->why, sizeof(f->why), "%s", why);
}

static const struct qmp_callbacks callbacks = {on_event, on_broken};

static void on_reply(void *user, const json_t *ret, const char *error)
{
    struct tag *tag = user;
    size_t used = strlen(tag->f->replies);

    assert_true((ret == NULL) == (error != NULL));
    (void)snprintf(tag->f->replies + used, sizeof(tag->f->replies) - used, "%s:%s ", tag->name,
                   error ? error : "ok");
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    int fds[2];

    assert_non_null(f);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    f->peer = fds[1];
    assert_int_equal(qmp_new(fds[0], &callbacks, f, &f->qmp), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    qmp_free(f->qmp);
    close(f->peer);
    free(f);
    return 0;
}

static void feed(struct fixture *f, const char *text)
{
    qmp_feed(f->qmp, text, strlen(text));
}

/* What the client has sent so far. */
static const char *sent(struct fixture *f)
{
    static char text[4096];
    ssize_t n = recv(f->peer, text, sizeof(text) - 1, MSG_DONTWAIT);

    text[n > 0 ? n : 0] = 0;
    return text;
}

static void delivers_events_and_replies(void **state)
{
    struct fixture *f = *state;
    struct tag a = {f, "a"}, b = {f, "b"};

    assert_int_equal(qmp_send(f->qmp, "one", "", -1, on_reply, &a), 0);
    assert_int_equal(qmp_send(f->qmp, "two", "{\"x\":1}", -1, on_reply, &b), 0);
    assert_string_equal(sent(f), "{\"id\":1,\"execute\":\"one\"}"
                                 "{\"id\":2,\"execute\":\"two\",\"arguments\":{\"x\":1}}");
    feed(f, "{\"QMP\": {}}\r\n{\"event\": \"STOP\"}\r\n{\"return\": {}, \"id\": 1}\r\n"
            "{\"event\": \"X\", \"data\": {\"y\": 2}}\n\n"
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n");
    assert_string_equal(f->events, "STOP X ");
    assert_string_equal(f->replies, "a:ok b:no ");
    assert_int_equal(f->broken, 0);
}

static void tells_when_an_event_happened(void **state)
{
    /* Seconds from now, microseconds; how old the event then is, in ms. */
    static const struct {
        long long seconds, micros;
        uint64_t least_ms, most_ms;
    } cases[] = {
        {-3, 0, 3000, 4000}, {-3, 999999, 2000, 3001}, {+5, 0, 0, 0},        {-100, 0, 0, 0},
        {-3, -1, 0, 0},      {-3, 1000000, 0, 0},      {INT32_MIN, 0, 0, 0}, {INT32_MAX, 0, 0, 0},
    };
    struct fixture *f = *state;
    char line[200];

    for (size_t i = 0; i < N_OF(cases); i++) {
        uint64_t before = clock_now_ns(), after;

        (void)snprintf(line, sizeof(line),
                       "{\"event\": \"X\", \"timestamp\": {\"seconds\": %lld, "
                       "\"microseconds\": %lld}}\n",
                       (long long)time(NULL) + cases[i].seconds, cases[i].micros);
        feed(f, line);
        after = clock_now_ns();
        assert_in_range(f->event_ns, before - cases[i].most_ms * NS_PER_MS,
                        after - cases[i].least_ms * NS_PER_MS);
    }
    feed(f, "{\"event\": \"X\", \"timestamp\": {\"seconds\": \"x\"}}\n");
    assert_int_equal(f->broken, 0);
}

static void takes_lines_in_pieces(void **state)
{
    static const char text[] = "{\"event\": \"A\"}\r\n{\"event\": \"B\"}\r\n";
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(text) - 1; i++)
        qmp_feed(f->qmp, text + i, 1);
    assert_string_equal(f->events, "A B ");
}

static void refuses_what_is_not_qmp(void **state)
{
    static const char *const bad[] = {
        "hello\n",
        "[]\n",
        "{}\n",
        "{\"event\": 3}\n",
        "{\"event\": \"X\", \"data\": []}\n",
        "{\"return\": {}}\n",
        "{\"return\": {}, \"id\": 1}\n", /* to no command */
        "{\"error\": {\"desc\": \"x\"}}\n",
        "{\"event\": \"\xff\"}\n", /* not UTF-8 */
        "{\"event\": \"A\"}garbage\n",
    };

    (void)state;
    for (size_t i = 0; i < N_OF(bad); i++) {
        struct fixture *f;

        assert_int_equal(setup((void **)&f), 0);
        feed(f, bad[i]);
        if (f->broken != -EPROTO)
            fail_msg("taken: %s", bad[i]);
        feed(f, "{\"event\": \"LATER\"}\n");
        assert_string_equal(f->events, ""); /* nothing after the end */
        assert_int_equal(teardown((void **)&f), 0);
    }
}

static void refuses_replies_out_of_order(void **state)
{
    struct fixture *f = *state;
    struct tag a = {f, "a"}, b = {f, "b"};

    assert_int_equal(qmp_send(f->qmp, "one", "", -1, on_reply, &a), 0);
    assert_int_equal(qmp_send(f->qmp, "two", "", -1, on_reply, &b), 0);
    feed(f, "{\"return\": {}, \"id\": 2}\n");
    assert_int_equal(f->broken, -EPROTO);
    assert_string_equal(f->replies, "");
    assert_int_equal(qmp_send(f->qmp, "three", "", -1, on_reply, &a), -ENOTCONN);
}

static void bounds_a_line(void **state)
{
    struct fixture *f = *state;
    size_t n = QMP_LINE_MAX - 1;
    char *line = malloc(n + 1);

    assert_non_null(line);
    memset(line, ' ', n);
    memcpy(line, "{\"event\":\"LONG\"}", 16);
    line[n] = '\n';
    qmp_feed(f->qmp, line, n + 1);
    assert_string_equal(f->events, "LONG ");
    line[n] = ' ';
    qmp_feed(f->qmp, line, n + 1);
    assert_int_equal(f->broken, 0);
    feed(f, "\n");
    assert_int_equal(f->broken, -EPROTO);
    free(line);
}

static void bounds_commands_in_flight(void **state)
{
    struct fixture *f = *state;
    struct tag a = {f, "a"};
    int n = 0, r;

    while ((r = qmp_send(f->qmp, "x", "", -1, on_reply, &a)) == 0)
        n++;
    assert_int_equal(r, -EBUSY);
    assert_in_range(n, 1, QMP_PENDING_MAX);
}

static void types_ahead(void **state)
{
    struct fixture *f = *state;
    struct tag a = {f, "a"};

    qmp_prepare(f->qmp, "cont", "");
    assert_string_equal(sent(f), "{\"id\":1,\"execute\":\"cont\"");
    assert_int_equal(qmp_send(f->qmp, "cont", "", -1, on_reply, &a), 0);
    assert_string_equal(sent(f), "}");
    feed(f, "{\"return\": {}, \"id\": 1}\n");
    assert_string_equal(f->replies, "a:ok ");
}

static void voids_what_was_typed_ahead(void **state)
{
    struct fixture *f = *state;
    struct tag a = {f, "a"};

    qmp_prepare(f->qmp, "migrate", "{\"uri\":\"x\"}");
    assert_int_equal(qmp_send(f->qmp, "cont", "", -1, on_reply, &a), 0);
    assert_string_equal(
        sent(f), "{\"id\":1,\"execute\":\"migrate\",\"arguments\":{\"uri\":\"x\"},\"void\":0}"
                 "{\"id\":2,\"execute\":\"cont\"}");
    feed(f, "{\"error\": {\"desc\": \"void\"}, \"id\": 1}\n{\"return\": {}, \"id\": 2}\n");
    assert_string_equal(f->replies, "a:ok ");
    assert_int_equal(f->broken, 0);
}

static void reports_the_end(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(write(f->peer, "{\"event\": \"LAST\"}\n", 18), 18);
    assert_int_equal(shutdown(f->peer, SHUT_RDWR), 0);
    qmp_drain(f->qmp);
    qmp_drain(f->qmp);
    assert_string_equal(f->events, "LAST ");
    assert_int_equal(f->broken, -ECONNRESET);
}

static void calls_and_waits(void **state)
{
    struct fixture *f = *state;
    struct qmp_wait wait = {.deadline_ns = clock_now_ns() + NS_PER_S, .pidfd = -1};
    json_t *value = NULL;
    struct err err;

    assert_int_equal(write(f->peer, "{\"QMP\": {}}\n{\"return\": {\"a\": 7}, \"id\": 1}\n", 42),
                     42);
    assert_int_equal(qmp_call(f->qmp, "x", "", -1, &wait, &value, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(value, "a")), 7);
    json_decref(value);
    assert_int_equal(qmp_wait_greeting(f->qmp, &wait, &err), 0);
    assert_int_equal(write(f->peer, "{\"error\": {\"desc\": \"why\"}, \"id\": 2}\n", 36), 36);
    assert_int_equal(qmp_call(f->qmp, "y", "", -1, &wait, NULL, &err), -EIO);
    assert_string_equal(err.text, "QMP y: why");
    wait.deadline_ns = clock_now_ns() + 10 * NS_PER_MS;
    assert_int_equal(qmp_call(f->qmp, "z", "", -1, &wait, NULL, &err), -ETIMEDOUT);
    assert_int_equal(shutdown(f->peer, SHUT_RDWR), 0);
    wait.deadline_ns = clock_now_ns() + NS_PER_S;
    assert_int_equal(qmp_call(f->qmp, "z", "", -1, &wait, NULL, &err), -ENOTCONN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(delivers_events_and_replies, setup, teardown),
        cmocka_unit_test_setup_teardown(tells_when_an_event_happened, setup, teardown),
        cmocka_unit_test_setup_teardown(takes_lines_in_pieces, setup, teardown),
        cmocka_unit_test(refuses_what_is_not_qmp),
        cmocka_unit_test_setup_teardown(refuses_replies_out_of_order, setup, teardown),
        cmocka_unit_test_setup_teardown(bounds_a_line, setup, teardown),
        cmocka_unit_test_setup_teardown(bounds_commands_in_flight, setup, teardown),
        cmocka_unit_test_setup_teardown(types_ahead, setup, teardown),
        cmocka_unit_test_setup_teardown(voids_what_was_typed_ahead, setup, teardown),
        cmocka_unit_test_setup_teardown(reports_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(calls_and_waits, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
