/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "control_loop.h"
#include "io/control.h"
#include "io/control_line.h"

enum { BIG = 900000 }; /* bytes of an answer that no socket's buffer holds */

enum { NOBODY = 65533, ALLOWED = 65532, OTHERS = 65531 }; /* a user; groups */

struct fixture {
    struct loop loop;
    struct control_server *server;
    struct control_request *held; /* by command "hold" */
    unsigned served;
    int fd; /* taken by command "fd" */
    bool gone;
};

static void on_gone(void *user)
{
    ((struct fixture *)user)->gone = true;
}

static void handler(void *user, struct control_request *req)
{
    struct fixture *f = user;
    const char *command = control_command(req);

    f->served++;
    if (strcmp(command, "hold") == 0) {
        assert_null(f->held);
        f->held = req;
        control_on_gone(req, on_gone, f);
    } else if (strcmp(command, "fd") == 0) {
        f->fd = control_take_fd(req);
        control_reply(req, json_pack("{s:b}", "got", f->fd >= 0));
    } else if (strcmp(command, "fail") == 0) {
        control_fail(req, "%s: no", control_string(req, "vm"));
    } else if (strcmp(command, "big") == 0) {
        char *text = malloc(BIG + 1);

        memset(text, 'a', BIG);
        text[BIG] = '\0';
        control_reply(req, json_pack("{s:s}", "text", text));
        free(text);
    } else {
        control_reply(req, NULL);
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

    control_server_close(f->server);
    loop_done(&f->loop);
    free(f);
    return 0;
}

static int client(struct fixture *f)
{
    struct err err;
    int sock;

    assert_int_equal(control_connect(f->loop.path, &sock, &err), 0);
    return sock;
}

static void say(int sock, const char *text)
{
    assert_int_equal(send(sock, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Reads one line, or "" at the end of the stream. */
static const char *hear(struct fixture *f, int sock)
{
    static char line[4096];
    double end = loop_seconds() + 10;
    size_t n = 0;

    while (n == 0 || line[n - 1] != '\n') {
        ssize_t got = recv(sock, line + n, 1, 0);

        assert_true(loop_seconds() < end);
        assert_true(n < sizeof(line) - 1);
        if (got == 0 || (got < 0 && errno == ECONNRESET))
            break;
        if (got < 0) {
            assert_int_equal(errno, EAGAIN);
            assert_true(sd_event_run(f->loop.event, 10000) >= 0);
        } else {
            n++;
        }
    }
    line[n > 0 && line[n - 1] == '\n' ? n - 1 : n] = '\0';
    return line;
}

static void test_answers(void **state)
{
    struct fixture *f = *state;
    int sock = client(f);

    say(sock, "{\"command\":\"x\"}\n");
    assert_string_equal(hear(f, sock), "{\"ok\":true}");
    say(sock, "{\"command\":\"fail\",\"vm\":\"web\"}\n");
    assert_string_equal(hear(f, sock), "{\"ok\":false,\"error\":\"web: no\"}");
    say(sock, "{\"command\"");
    loop_idle(&f->loop);
    say(sock, ":\"x\"}\n\n\n{\"command\":\"x\"}\n");
    assert_string_equal(hear(f, sock), "{\"ok\":true}");
    assert_string_equal(hear(f, sock), "{\"ok\":true}");
    close(sock);
}

static void test_bad_lines(void **state)
{
    static const char *const lines[] = {
        "x\n",      "[]\n", "{}\n", "{\"command\":1}\n", "{\"command\":\"a\",\"command\":\"b\"}\n",
        "{\"a\":\n"};
    struct fixture *f = *state;
    int sock = client(f);

    for (size_t i = 0; i < N_OF(lines); i++) {
        say(sock, lines[i]);
        assert_non_null(strstr(hear(f, sock), "{\"ok\":false,\"error\":\""));
    }
    assert_int_equal(send(sock, "{\0}\n", 4, 0), 4);
    assert_string_equal(hear(f, sock), "{\"ok\":false,\"error\":\"a NUL byte in the request\"}");
    assert_int_equal(f->served, 0);
    say(sock, "{\"command\":\"x\"}\n");
    assert_string_equal(hear(f, sock), "{\"ok\":true}");
    close(sock);
}

static void test_line_without_end(void **state)
{
    static char chunk[65536];
    struct fixture *f = *state;
    int sock = client(f);
    size_t sent = 0;

    memset(chunk, 'a', sizeof(chunk));
    while (sent < CONTROL_LINE_MAX + sizeof(chunk)) {
        ssize_t n = send(sock, chunk, sizeof(chunk), MSG_NOSIGNAL);

        if (n < 0 && errno != EAGAIN)
            break;
        sent += n > 0 ? (size_t)n : 0;
        loop_idle(&f->loop);
    }
    assert_string_equal(hear(f, sock), "{\"ok\":false,\"error\":\"the line is too long\"}");
    assert_string_equal(hear(f, sock), "");
    close(sock);
}

/* A request that waits holds up the next ones of its connection, and nobody else's. */
static void test_one_at_a_time(void **state)
{
    struct fixture *f = *state;
    int sock = client(f), other = client(f);

    say(sock, "{\"command\":\"hold\"}\n{\"command\":\"x\"}\n");
    say(other, "{\"command\":\"x\"}\n");
    assert_string_equal(hear(f, other), "{\"ok\":true}");
    loop_idle(&f->loop);
    assert_int_equal(f->served, 2);
    control_progress(f->held, json_pack("{s:i}", "percent", 7));
    control_reply(f->held, json_pack("{s:i}", "answer", 42));
    assert_string_equal(hear(f, sock), "{\"progress\":{\"percent\":7}}");
    assert_string_equal(hear(f, sock), "{\"answer\":42,\"ok\":true}");
    assert_string_equal(hear(f, sock), "{\"ok\":true}");
    assert_false(f->gone);
    close(sock);
    close(other);
}

/* Thousands of lines at once, from a client that reads as it goes. */
static void test_flood(void **state)
{
    enum { N = 20000 };
    static const char line[] = "{\"command\":\"x\"}\n";
    struct fixture *f = *state;
    int sock = client(f);
    unsigned sent = 0, heard = 0;
    size_t part = 0;

    while (heard < N) {
        while (sent < N) {
            ssize_t n = send(sock, line + part, strlen(line) - part, MSG_NOSIGNAL);

            if (n < 0)
                break;
            part += (size_t)n;
            if (part == strlen(line)) {
                part = 0;
                sent++;
            }
        }
        assert_string_equal(hear(f, sock), "{\"ok\":true}");
        heard++;
    }
    assert_int_equal(f->served, N);
    close(sock);
}

static void test_client_goes(void **state)
{
    struct fixture *f = *state;
    int sock = client(f);

    say(sock, "{\"command\":\"hold\"}\n");
    loop_idle(&f->loop);
    assert_non_null(f->held);
    close(sock);
    loop_until(&f->loop, &f->gone);
    control_progress(f->held, json_object());
    control_reply(f->held, NULL);
}

/* What `echo ... | socat - UNIX:...` does at the end of its input. */
static void test_half_close(void **state)
{
    struct fixture *f = *state;
    int sock = client(f);

    say(sock, "{\"command\":\"hold\"}\n");
    assert_int_equal(shutdown(sock, SHUT_WR), 0);
    loop_idle(&f->loop);
    assert_false(f->gone);
    control_reply(f->held, NULL);
    assert_string_equal(hear(f, sock), "{\"ok\":true}");
    assert_string_equal(hear(f, sock), "");
    close(sock);
}

/* The same while most of the answer is still on our side. */
static void test_half_close_of_a_slow_reader(void **state)
{
    static char chunk[65536];
    struct fixture *f = *state;
    int sock = client(f);
    size_t heard = 0;
    ssize_t n;

    say(sock, "{\"command\":\"big\"}\n");
    assert_int_equal(shutdown(sock, SHUT_WR), 0);
    loop_idle(&f->loop);
    for (;;) {
        n = recv(sock, chunk, sizeof(chunk), 0);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            break;
        heard += n > 0 ? (size_t)n : 0;
        loop_idle(&f->loop);
    }
    assert_int_equal(heard, BIG + strlen("{\"text\":\"\",\"ok\":true}\n"));
    close(sock);
}

static void test_server_goes(void **state)
{
    struct fixture *f = *state;
    int sock = client(f);

    say(sock, "{\"command\":\"hold\"}\n");
    loop_idle(&f->loop);
    control_server_close(f->server);
    f->server = NULL;
    assert_string_equal(hear(f, sock), "");
    control_fail(f->held, "too late");
    assert_int_equal(access(f->loop.path, F_OK), -1);
    close(sock);
}

static void send_fds(int sock, const char *text, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (char *)(uintptr_t)text, .iov_len = strlen(text)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = CMSG_SPACE(n_fds * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    assert_int_equal(sendmsg(sock, &msg, 0), strlen(text));
}

static unsigned open_fds(void)
{
    unsigned n = 0;

    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void test_passing_fds(void **state)
{
    struct fixture *f = *state;
    int sock = client(f);
    unsigned before;
    int pair[2];
    int many[6];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    say(sock, "{\"command\":\"fd\"}\n");
    assert_string_equal(hear(f, sock), "{\"got\":false,\"ok\":true}");

    send_fds(sock, "{\"command\":\"fd\"}\n", &pair[1], 1);
    assert_string_equal(hear(f, sock), "{\"got\":true,\"ok\":true}");
    assert_int_equal(fcntl(f->fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(write(f->fd, "x", 1), 1);
    assert_int_equal(poll(&(struct pollfd){.fd = pair[0], .events = POLLIN}, 1, 0), 1);
    close(f->fd);

    /* Nothing may be left open: not what a request does not take, nor what comes in excess, nor
     * what comes with a line that is refused. */
    before = open_fds();
    for (size_t i = 0; i < N_OF(many); i++)
        many[i] = pair[1];
    send_fds(sock, "{\"command\":\"x\"}\n", many, N_OF(many));
    assert_string_equal(hear(f, sock), "{\"ok\":true}");
    send_fds(sock, "{}\n", many, N_OF(many));
    assert_non_null(strstr(hear(f, sock), "false"));
    say(sock, "{\"command\":\"fd\"}\n");
    assert_string_equal(hear(f, sock), "{\"got\":false,\"ok\":true}");
    assert_int_equal(open_fds(), before);
    close(sock);
    close(pair[0]);
    close(pair[1]);
}

static void test_socket_file(void **state)
{
    struct fixture *f = *state;
    struct control_server *second;
    struct err err = {""};
    char path[64], expected[128], far[200];
    struct stat st;

    assert_int_equal(stat(f->loop.path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);

    assert_int_equal(control_server_new(f->loop.event, f->loop.path, handler, f, &second, &err),
                     -EADDRINUSE);
    (void)snprintf(expected, sizeof(expected), "%s: another process serves it", f->loop.path);
    assert_string_equal(err.text, expected);

    /* A socket that a crash has left behind. */
    (void)snprintf(path, sizeof(path), "%s/dead.sock", f->loop.dir);
    {
        struct sockaddr_un addr = {.sun_family = AF_UNIX};
        int sock = socket(AF_UNIX, SOCK_STREAM, 0);

        strcpy(addr.sun_path, path);
        assert_int_equal(bind(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
        close(sock);
    }
    assert_int_equal(control_server_new(f->loop.event, path, handler, f, &second, &err), 0);
    control_server_close(second);

    memset(far, 'a', sizeof(far));
    far[sizeof(far) - 1] = '\0';
    assert_int_equal(control_server_new(f->loop.event, far, handler, f, &second, &err),
                     -ENAMETOOLONG);
}

static void test_too_many_clients(void **state)
{
    struct fixture *f = *state;
    int socks[CONTROL_CLIENTS_MAX], late;

    for (size_t i = 0; i < N_OF(socks); i++) {
        socks[i] = client(f);
        loop_idle(&f->loop);
    }
    late = client(f);
    assert_string_equal(hear(f, late), "");
    close(late);
    for (size_t i = 0; i < N_OF(socks); i++)
        close(socks[i]);
    loop_idle(&f->loop);
    late = client(f);
    say(late, "{\"command\":\"x\"}\n");
    assert_string_equal(hear(f, late), "{\"ok\":true}");
    close(late);
}

/* Asks as a user who is in these two groups. Whether there is an answer. */
static bool served_as(struct fixture *f, gid_t own, gid_t other)
{
    static const char line[] = "{\"command\":\"x\"}\n";
    bool ended = false;
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        struct pollfd p = {.events = POLLIN};

        if (setgroups(1, &other) < 0 || setgid(own) < 0 || setuid(NOBODY) < 0 ||
            control_connect(f->loop.path, &p.fd, NULL) < 0)
            _exit(99);
        (void)send(p.fd, line, strlen(line), MSG_NOSIGNAL);
        _exit(poll(&p, 1, 10000) == 1 && recv(p.fd, &status, 1, 0) == 1 ? 0 : 1);
    }
    for (double end = loop_seconds() + 10; !ended;) {
        assert_true(loop_seconds() < end);
        assert_true(sd_event_run(f->loop.event, 10000) >= 0);
        ended = waitpid(pid, &status, WNOHANG) == pid;
    }
    assert_true(WIFEXITED(status));
    assert_in_range(WEXITSTATUS(status), 0, 1);
    return WEXITSTATUS(status) == 0;
}

/* The socket lets everybody connect here, so that it is the server that tells them apart. */
static void test_group(void **state)
{
    struct fixture *f = *state;
    struct stat st;
    struct err err;

    assert_int_equal(chmod(f->loop.dir, 0711) | chmod(f->loop.path, 0666), 0);
    assert_false(served_as(f, ALLOWED, ALLOWED));
    assert_int_equal(control_server_allow(f->server, ALLOWED, &err), 0);
    assert_int_equal(stat(f->loop.path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    assert_int_equal(st.st_gid, ALLOWED);
    assert_int_equal(chmod(f->loop.path, 0666), 0);
    assert_true(served_as(f, ALLOWED, OTHERS));
    assert_true(served_as(f, OTHERS, ALLOWED));
    assert_false(served_as(f, OTHERS, OTHERS));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_answers),
        TEST(test_bad_lines),
        TEST(test_line_without_end),
        TEST(test_one_at_a_time),
        TEST(test_flood),
        TEST(test_client_goes),
        TEST(test_half_close),
        TEST(test_half_close_of_a_slow_reader),
        TEST(test_server_goes),
        TEST(test_passing_fds),
        TEST(test_socket_file),
        TEST(test_too_many_clients),
        TEST(test_group),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
