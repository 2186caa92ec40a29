/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "control_loop.h"
#include "io/control.h"

struct fixture {
    struct loop loop;
    struct control_server *server;
    struct control_request *held;
    unsigned progress;
    char answer[256]; /* of the call, as JSON; "" = none */
    char why[256];
    bool answered;
    int fd; /* came with the last request */
};

static void handler(void *user, struct control_request *req)
{
    struct fixture *f = user;
    const char *command = control_command(req);

    if (f->fd >= 0)
        close(f->fd);
    f->fd = control_take_fd(req);
    if (strcmp(command, "hold") == 0) {
        f->held = req;
    } else if (strcmp(command, "fail") == 0) {
        control_fail(req, "no");
    } else {
        control_progress(req, json_pack("{s:i}", "n", 1));
        control_progress(req, json_pack("{s:i}", "n", 2));
        control_reply(req, json_pack("{s:i}", "n", 3));
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err err;

    f->fd = -1;
    loop_init(&f->loop);
    assert_int_equal(control_server_new(f->loop.event, f->loop.path, handler, f, &f->server, &err),
                     0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    if (f->held)
        control_reply(f->held, NULL);
    if (f->fd >= 0)
        close(f->fd);
    control_server_close(f->server);
    loop_done(&f->loop);
    free(f);
    return 0;
}

static void on_progress(void *user, const json_t *progress)
{
    struct fixture *f = user;

    f->progress++;
    assert_int_equal(json_integer_value(json_object_get(progress, "n")), f->progress);
}

static void on_answer(void *user, const json_t *answer, const char *why)
{
    struct fixture *f = user;
    char *text = answer ? json_dumps(answer, JSON_COMPACT) : strdup("");

    (void)snprintf(f->answer, sizeof(f->answer), "%s", text);
    (void)snprintf(f->why, sizeof(f->why), "%s", why);
    free(text);
    assert_false(f->answered);
    f->answered = true;
}

static const struct control_callbacks callbacks = {on_progress, on_answer};

static int call(struct fixture *f, const char *path, const char *command, int fd,
                uint64_t timeout_ns, struct control_call **ret_call, struct err *err)
{
    json_t *request = json_pack("{s:s}", "command", command);
    int r = control_call_new(f->loop.event, path, request, fd, timeout_ns, &callbacks, f, ret_call,
                             err);

    json_decref(request);
    return r;
}

#define SECOND UINT64_C(1000000000)

static void test_call(void **state)
{
    struct fixture *f = *state;
    struct control_call *c;
    struct err err;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(call(f, f->loop.path, "x", pair[1], 10 * SECOND, &c, &err), 0);
    close(pair[1]);
    assert_false(f->answered);
    loop_until(&f->loop, &f->answered);
    assert_string_equal(f->answer, "{\"n\":3,\"ok\":true}");
    assert_int_equal(f->progress, 2);
    assert_true(f->fd >= 0);
    assert_int_equal(write(f->fd, "x", 1), 1);
    close(pair[0]);

    f->answered = false;
    assert_int_equal(call(f, f->loop.path, "fail", -1, 10 * SECOND, &c, &err), 0);
    loop_until(&f->loop, &f->answered);
    assert_string_equal(f->answer, "{\"ok\":false,\"error\":\"no\"}");
}

static void test_call_timeout(void **state)
{
    struct fixture *f = *state;
    struct control_call *c;
    struct err err;

    assert_int_equal(call(f, f->loop.path, "hold", -1, SECOND / 20, &c, &err), 0);
    loop_until(&f->loop, &f->answered);
    assert_string_equal(f->answer, "");
    assert_string_equal(f->why, "does not answer");
    assert_non_null(f->held);
}

static void test_call_broken(void **state)
{
    struct fixture *f = *state;
    struct control_call *c;
    struct err err;

    assert_int_equal(call(f, f->loop.path, "hold", -1, 10 * SECOND, &c, &err), 0);
    loop_idle(&f->loop);
    control_server_close(f->server);
    f->server = NULL;
    loop_until(&f->loop, &f->answered);
    assert_string_equal(f->answer, "");
    assert_string_equal(f->why, "closed the connection without an answer");
    assert_int_equal(call(f, f->loop.path, "x", -1, SECOND, &c, &err), -ENOENT);
}

static void test_call_cancel(void **state)
{
    struct fixture *f = *state;
    struct control_call *c;
    struct err err;

    assert_int_equal(call(f, f->loop.path, "x", -1, 10 * SECOND, &c, &err), 0);
    control_call_cancel(c);
    loop_idle(&f->loop);
    assert_false(f->answered);
    control_call_cancel(NULL);
}

/* A server that says something that is not of the protocol. */
static void answer_raw(struct fixture *f, const char *text)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), sock;
    struct control_call *c;
    struct err err;

    (void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/raw.sock", f->loop.dir);
    assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(listener, 1), 0);
    f->answered = false;
    assert_int_equal(call(f, addr.sun_path, "x", -1, 10 * SECOND, &c, &err), 0);
    sock = accept(listener, NULL, NULL);
    assert_int_equal(send(sock, text, strlen(text), 0), strlen(text));
    loop_until(&f->loop, &f->answered);
    close(sock);
    close(listener);
    unlink(addr.sun_path);
}

static void test_call_nonsense(void **state)
{
    struct fixture *f = *state;

    answer_raw(f, "hello\n");
    assert_string_equal(f->answer, "");
    assert_non_null(strstr(f->why, "not a line of JSON"));
    answer_raw(f, "{\"ok\":1}\n");
    assert_string_equal(f->why, "neither an answer nor progress");
    answer_raw(f, "{\"progress\":{\"n\":1}}\n{\"ok\":true}\n{\"ok\":false}\n");
    assert_string_equal(f->answer, "{\"ok\":true}");
}

/* Runs control_ask() in a child, while this process serves. Returns its result; its text is in
 * f->answer: the answer, or the error. */
static int ask(struct fixture *f, const char *command, unsigned timeout_ms)
{
    int pipe_fds[2], status;
    bool ended = false;
    pid_t pid;
    ssize_t n;

    assert_int_equal(pipe(pipe_fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        json_t *request = json_pack("{s:s}", "command", command), *answer = NULL;
        struct err err = {""};
        int r = control_ask(f->loop.path, request, timeout_ms, NULL, NULL, &answer, &err);
        char *text = answer ? json_dumps(answer, JSON_COMPACT) : strdup(err.text);

        if (write(pipe_fds[1], text, strlen(text)) < 0)
            _exit(255);
        _exit(-r);
    }
    close(pipe_fds[1]);
    while (!ended) {
        assert_true(sd_event_run(f->loop.event, 10000) >= 0);
        ended = waitpid(pid, &status, WNOHANG) == pid;
    }
    n = read(pipe_fds[0], f->answer, sizeof(f->answer) - 1);
    f->answer[n > 0 ? n : 0] = '\0';
    close(pipe_fds[0]);
    assert_true(WIFEXITED(status));
    return -WEXITSTATUS(status);
}

static void test_ask(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(ask(f, "x", 10000), 0);
    assert_string_equal(f->answer, "{\"n\":3,\"ok\":true}");
    assert_int_equal(ask(f, "fail", 10000), -EREMOTEIO);
    assert_string_equal(f->answer, "no");
    assert_int_equal(ask(f, "hold", 50), -ETIMEDOUT);
    control_server_close(f->server);
    f->server = NULL;
    assert_int_equal(ask(f, "x", 10000), -ENOENT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_call),        TEST(test_call_timeout),  TEST(test_call_broken),
        TEST(test_call_cancel), TEST(test_call_nonsense), TEST(test_ask),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
