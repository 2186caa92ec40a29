/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "io/control.h"
#include "io/control_line.h"
#include "unit.h"
#include "wire/msg.h"

/* understudyd as a process, with a stand-in for the processes of its VMs (host_fake_guard.c) and
 * this test as its clients and peers. Arguments: understudyd, the stand-in. */

static const char *understudyd, *fake_guard;

struct fixture {
    char dir[32];
    char config[64];
    char socket[64];
    unsigned port;
    pid_t daemon;
};

/* ---- the daemon ---- */

static unsigned free_port(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(addr);
    int sock = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(sock, (struct sockaddr *)&addr, n), 0);
    assert_int_equal(getsockname(sock, (struct sockaddr *)&addr, &n), 0);
    close(sock);
    return ntohs(addr.sin_port);
}

static void wait_until(const struct fixture *f, bool (*done)(const struct fixture *f))
{
    for (int i = 0; i < 1000; i++) {
        if (done(f))
            return;
        (void)poll(NULL, 0, 10);
    }
    fail_msg("waited for 10 s");
}

static int ask_json(const struct fixture *f, json_t *request, json_t **ret_answer, struct err *err)
{
    int r = control_ask(f->socket, request, 20000, NULL, NULL, ret_answer, err);

    json_decref(request);
    return r;
}

static bool is_up(const struct fixture *f)
{
    json_t *answer;
    struct err err;

    assert_int_equal(waitpid(f->daemon, NULL, WNOHANG), 0);
    if (ask_json(f, json_pack("{s:s}", "command", "ping"), &answer, &err) < 0)
        return false;
    json_decref(answer);
    return true;
}

static void daemon_start(struct fixture *f)
{
    f->daemon = fork();
    assert_true(f->daemon >= 0);
    if (f->daemon == 0) {
        char log[64];
        int fd;

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)snprintf(log, sizeof(log), "%s/understudyd.log", f->dir);
        fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        (void)dup2(fd, STDERR_FILENO);
        (void)execl(understudyd, understudyd, "--config", f->config, NULL);
        _exit(127);
    }
    wait_until(f, is_up);
}

static int daemon_end(struct fixture *f, int sig)
{
    int status;

    assert_int_equal(kill(f->daemon, sig), 0);
    assert_int_equal(waitpid(f->daemon, &status, 0), f->daemon);
    f->daemon = 0;
    return status;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    FILE *config;

    strcpy(f->dir, "/tmp/host.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    (void)snprintf(f->config, sizeof(f->config), "%s/u.yaml", f->dir);
    (void)snprintf(f->socket, sizeof(f->socket), "%s/run/understudyd.sock", f->dir);
    f->port = free_port();
    config = fopen(f->config, "w");
    fprintf(config,
            "name: hostb\nlisten: 127.0.0.1:%u\npeers: [{name: hosta, address: 127.0.0.1:1}]\n"
            "arbiter: {witness: 127.0.0.1:1}\nstate_dir: %s/state\nrun_dir: %s/run\n"
            "memory_dir: %s/memory\nguard: %s\n",
            f->port, f->dir, f->dir, f->dir, fake_guard);
    assert_int_equal(fclose(config), 0);
    daemon_start(f);
    *state = f;
    return 0;
}

/* ---- its client ---- */

/* Sends a command; returns the answer's JSON or the error's text, valid until the next call. */
static const char *ask(const struct fixture *f, json_t *request)
{
    static char text[8192];
    struct err err;
    json_t *answer;

    if (ask_json(f, request, &answer, &err) < 0) {
        (void)snprintf(text, sizeof(text), "%s", err.text);
    } else {
        char *dump = json_dumps(answer, JSON_COMPACT);

        (void)snprintf(text, sizeof(text), "%s", dump);
        free(dump);
        json_decref(answer);
    }
    return text;
}

static const char *order(const struct fixture *f, const char *command, const char *vm)
{
    return ask(f, json_pack("{s:s, s:s}", "command", command, "vm", vm));
}

static const char *start(const struct fixture *f, const char *vm, bool seize)
{
    json_t *spec =
        json_pack("{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:[], s:[], s:[], "
                  "s:{s:s, s:i, s:i, s:s, s:i}}",
                  "name", vm, "memory_bytes", 64 << 20, "cpus", 1, "machine", "", "cpu", "",
                  "accel", "", "kernel", "/k", "initrd", "", "append", "", "firmware", "", "nics",
                  "disks", "qemu_args", "protect", "standby", "hosta", "interval_min_ns", 5000000,
                  "interval_max_ns", 500000000, "output", "hold", "copy_rate_bytes", 0);

    return ask(f, json_pack("{s:s, s:o, s:b}", "command", "start", "vm", spec, "seize", seize));
}

/* A member of a VM's status; 0 when the VM is not known. */
static json_t *status_of(const struct fixture *f, const char *vm)
{
    json_t *answer, *one;
    struct err err;

    if (ask_json(f, json_pack("{s:s, s:s}", "command", "status", "vm", vm), &answer, &err) < 0)
        return NULL;
    one = json_incref(json_array_get(json_object_get(answer, "vms"), 0));
    json_decref(answer);
    return one;
}

static int status_number(const struct fixture *f, const char *vm, const char *key)
{
    json_t *status = status_of(f, vm);
    int number = (int)json_integer_value(json_object_get(status, key));

    json_decref(status);
    return number;
}

static void assert_status(const struct fixture *f, const char *vm, const char *key,
                          const char *expected)
{
    json_t *status = status_of(f, vm);

    assert_non_null(status);
    assert_string_equal(json_string_value(json_object_get(status, key)), expected);
    json_decref(status);
}

static bool exists(const struct fixture *f, const char *path)
{
    char full[128];

    (void)snprintf(full, sizeof(full), "%s/%s", f->dir, path);
    return access(full, F_OK) == 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[64];
    json_t *answer, *vm;
    struct err err;
    size_t i;

    if (f->daemon && ask_json(f, json_pack("{s:s}", "command", "status"), &answer, &err) == 0) {
        json_array_foreach(json_object_get(answer, "vms"), i, vm)
        {
            if (json_integer_value(json_object_get(vm, "pid")) > 1)
                (void)kill((pid_t)json_integer_value(json_object_get(vm, "pid")), SIGKILL);
        }
        json_decref(answer);
    }
    if (f->daemon)
        (void)daemon_end(f, SIGKILL);
    (void)snprintf(command, sizeof(command), "rm -rf %s", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

/* ---- its peer ---- */

struct hello_order {
    const char *from, *vm;
    uint8_t channel;
    uint16_t version;
    bool resume;
};

static int peer_connect(const struct fixture *f)
{
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                               .sin_port = htons((uint16_t)f->port)};
    struct timeval limit = {.tv_sec = 10};
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    assert_int_equal(connect(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return sock;
}

static void peer_say(int sock, const struct hello_order *o)
{
    struct wire_hello hello = {.version_min = o->version ? o->version : WIRE_VERSION_MIN,
                               .version_max = o->version ? o->version : WIRE_VERSION_MAX,
                               .channel = o->channel ? o->channel : WIRE_CHANNEL_CONTROL,
                               .resume = o->resume};
    uint8_t raw[WIRE_HELLO_BYTES];

    if (hello.channel != WIRE_CHANNEL_ARBITER)
        hello.session[0] = 1;
    (void)snprintf(hello.vm, sizeof(hello.vm), "%s", o->vm);
    (void)snprintf(hello.from, sizeof(hello.from), "%s", o->from ? o->from : "hosta");
    wire_hello_encode(&hello, raw);
    assert_int_equal(send(sock, raw, sizeof(raw), MSG_NOSIGNAL), sizeof(raw));
}

/* The status of the answer; -1 when the connection is closed without one. */
static int peer_hear(int sock, char text[64])
{
    uint8_t raw[WIRE_HELLO_BYTES];
    struct wire_hello answer;
    ssize_t n = recv(sock, raw, sizeof(raw), MSG_WAITALL);

    if (n == 0 || (n < 0 && errno == ECONNRESET))
        return -1;
    assert_int_equal(n, sizeof(raw));
    assert_int_equal(wire_hello_decode(raw, &answer, NULL), 0);
    assert_string_equal(answer.from, "hostb");
    if (text)
        memcpy(text, answer.text, sizeof(answer.text));
    return answer.status;
}

static void assert_closed(int sock)
{
    char byte;

    assert_int_equal(recv(sock, &byte, 1, 0), 0);
}

/* One whole knock; the connection stays open in *ret_sock, if that is not NULL. */
static int knock(const struct fixture *f, struct hello_order o, char text[64], int *ret_sock)
{
    int sock = peer_connect(f), status;

    peer_say(sock, &o);
    status = peer_hear(sock, text);
    if (ret_sock) {
        *ret_sock = sock;
    } else {
        if (status > 0)
            assert_closed(sock);
        close(sock);
    }
    return status;
}

/* ---- tests: orders ---- */

static void test_life(void **state)
{
    struct fixture *f = *state;
    int pid;

    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_true(exists(f, "state/vms/web.json"));
    pid = status_number(f, "web", "pid");
    assert_int_equal(getsid(pid), pid);
    assert_status(f, "web", "role", "primary");
    assert_string_equal(start(f, "web", false), "web: runs on this host already");
    assert_string_equal(
        ask(f, json_pack("{s:s,s:s,s:s}", "command", "protect", "vm", "web", "to", "hosta")),
        "{\"to\":\"hosta\",\"ok\":true}");
    assert_string_equal(order(f, "failover", "db"), "db: does not run on this host");
    assert_string_equal(order(f, "stop", "db"), "db: not known on this host");
    assert_string_equal(order(f, "status", "db"), "db: not known on this host");
    assert_string_equal(order(f, "stop", "../x"), "stop: \"vm\" must be the name of a VM");
    assert_string_equal(order(f, "dance", "web"), "unknown command \"dance\"");

    assert_string_equal(order(f, "stop", "web"), "{\"ok\":true}");
    assert_int_equal(kill(pid, 0), -1); /* gone and reaped before the answer */
    assert_false(exists(f, "state/vms/web.json"));
    assert_false(exists(f, "run/vms/web.sock"));
    assert_string_equal(order(f, "status", "web"), "web: not known on this host");
    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_string_equal(start(f, "seized", true), "{\"ok\":true}");
}

static void test_failed_starts(void **state)
{
    struct fixture *f = *state;

    assert_string_equal(start(f, "refuse", false), "refuse: no room for it");
    assert_false(exists(f, "state/vms/refuse.json"));
    assert_string_equal(start(f, "crash", false),
                        "crash: its process was killed by signal 6 (Aborted); the log may say why");
    assert_false(exists(f, "state/vms/crash.json"));
    assert_string_equal(order(f, "status", "crash"), "crash: not known on this host");
    assert_string_equal(start(f, "Web", false),
                        "vm: name: \"Web\" is not a name (a-z, 0-9 and -, 63 at most)");
    assert_string_equal(ask(f, json_pack("{s:s}", "command", "start")),
                        "vm: there is no definition");
}

/* The processes of VMs survive understudyd, whether it ends or is killed. */
static void test_restart(void **state)
{
    struct fixture *f = *state;
    int pid;

    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    pid = status_number(f, "web", "pid");
    for (int round = 0; round < 2; round++) {
        int status = daemon_end(f, round ? SIGKILL : SIGTERM);

        if (round == 0) {
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            assert_false(exists(f, "run/understudyd.sock"));
        }
        assert_int_equal(kill(pid, 0), 0);
        daemon_start(f);
        assert_int_equal(status_number(f, "web", "pid"), pid);
        assert_string_equal(start(f, "web", false), "web: runs on this host already");
    }
    assert_string_equal(order(f, "stop", "web"), "{\"ok\":true}");
    assert_false(exists(f, "run/vms/web.sock"));
}

static bool web_crashed(const struct fixture *f)
{
    return exists(f, "state/vms/web.ended.json");
}

static bool web_unserved(const struct fixture *f)
{
    char path[64];
    int sock;

    (void)snprintf(path, sizeof(path), "%s/run/vms/web.sock", f->dir);
    if (control_connect(path, &sock, NULL) < 0)
        return true;
    close(sock);
    return false;
}

static void test_crash_while_running(void **state)
{
    struct fixture *f = *state;
    json_t *status;
    int pid;

    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_int_equal(kill(status_number(f, "web", "pid"), SIGKILL), 0);
    wait_until(f, web_crashed);
    status = status_of(f, "web");
    assert_string_equal(json_string_value(json_object_get(status, "state")), "crashed");
    assert_non_null(strstr(json_string_value(json_object_get(status, "reason")),
                           "its process was killed by signal 9 (Killed) at "));
    assert_string_equal(json_string_value(json_object_get(status, "wanted_standby")), "hosta");
    json_decref(status);
    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_false(web_crashed(f));

    /* While understudyd is away, nobody writes a note: the record alone tells. */
    pid = status_number(f, "web", "pid");
    (void)daemon_end(f, SIGTERM);
    assert_int_equal(kill(pid, SIGKILL), 0);
    wait_until(f, web_unserved);
    daemon_start(f);
    assert_status(f, "web", "state", "down");
    assert_false(exists(f, "run/vms/web.sock"));
    assert_non_null(strstr(order(f, "stop", "web"), "it was not running; forgotten"));
    assert_string_equal(order(f, "status", "web"), "web: not known on this host");
}

/* A process that is stuck neither hides the others nor is missing. */
static void test_deaf(void **state)
{
    struct fixture *f = *state;
    json_t *answer, *vms, *vm;
    struct err err;

    assert_string_equal(start(f, "deaf", false), "{\"ok\":true}");
    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_int_equal(ask_json(f, json_pack("{s:s}", "command", "status"), &answer, &err), 0);
    vms = json_object_get(answer, "vms");
    assert_int_equal(json_array_size(vms), 2);
    vm = json_array_get(vms, 0);
    assert_string_equal(json_string_value(json_object_get(vm, "vm")), "deaf");
    assert_string_equal(json_string_value(json_object_get(vm, "state")), "unresponsive");
    vm = json_array_get(vms, 1);
    assert_string_equal(json_string_value(json_object_get(vm, "vm")), "web");
    assert_string_equal(json_string_value(json_object_get(vm, "role")), "primary");
    json_decref(answer);
    assert_string_equal(order(f, "stop", "deaf"), "{\"ok\":true}");
}

/* ---- tests: peers ---- */

static void test_refused_peers(void **state)
{
    struct fixture *f = *state;
    char text[64];

    assert_int_equal(knock(f, (struct hello_order){.from = "mallory", .vm = "web"}, text, NULL),
                     WIRE_REFUSED_UNKNOWN_PEER);
    assert_string_equal(text, "you are not among my peers");
    assert_int_equal(knock(f, (struct hello_order){.vm = "web", .version = 99}, NULL, NULL),
                     WIRE_REFUSED_VERSION);
    assert_int_equal(
        knock(f, (struct hello_order){.vm = "web", .channel = WIRE_CHANNEL_DATA}, text, NULL),
        WIRE_REFUSED_SESSION);
    assert_string_equal(text, "hostb has no such session");
    assert_int_equal(knock(f, (struct hello_order){.vm = "web", .resume = true}, NULL, NULL),
                     WIRE_REFUSED_SESSION);
    assert_int_equal(
        knock(f, (struct hello_order){.vm = "", .channel = WIRE_CHANNEL_ARBITER}, NULL, NULL),
        WIRE_REFUSED_SESSION);
    assert_string_equal(ask(f, json_pack("{s:s}", "command", "status")),
                        "{\"host\":\"hostb\",\"vms\":[],\"ok\":true}");
}

static void test_no_hello(void **state)
{
    struct fixture *f = *state;
    uint8_t junk[WIRE_HELLO_BYTES] = {0};
    int half = peer_connect(f), garbage = peer_connect(f);
    struct timespec before, after;

    clock_gettime(CLOCK_MONOTONIC, &before);
    assert_int_equal(send(half, junk, 100, 0), 100);
    assert_int_equal(send(garbage, junk, sizeof(junk), 0), sizeof(junk));
    assert_int_equal(peer_hear(garbage, NULL), -1);
    assert_int_equal(peer_hear(half, NULL), -1);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_true(after.tv_sec - before.tv_sec <= 8);
    close(half);
    close(garbage);
}

/* The control connection makes a standby; the data connection goes to the same process. */
static void test_standby(void **state)
{
    struct fixture *f = *state;
    struct timespec before, after;
    char text[64];
    int control, data;

    assert_int_equal(knock(f, (struct hello_order){.vm = "web"}, text, &control), WIRE_OK);
    assert_string_equal(text, "web"); /* said by the standby, not by understudyd */
    assert_int_equal(
        knock(f, (struct hello_order){.vm = "web", .channel = WIRE_CHANNEL_DATA}, text, &data),
        WIRE_OK);
    assert_int_equal(status_number(f, "web", "adopted"), 1);
    assert_status(f, "web", "role", "standby");
    assert_false(exists(f, "state/vms/web.json"));
    assert_string_equal(start(f, "web", false),
                        "web: this host is its standby, or has taken it over");

    /* understudyd keeps no copy: the connection ends with its owner, not when understudyd would
     * have given it up. */
    clock_gettime(CLOCK_MONOTONIC, &before);
    assert_int_equal(kill(status_number(f, "web", "pid"), SIGKILL), 0);
    assert_int_equal(peer_hear(data, NULL), -1);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_true(after.tv_sec - before.tv_sec <= 2);
    close(control);
    close(data);
}

static void test_standby_that_is_slow(void **state)
{
    struct fixture *f = *state;
    int control, data;

    assert_int_equal(knock(f, (struct hello_order){.vm = "slow"}, NULL, &control), WIRE_OK);
    data = peer_connect(f);
    peer_say(data, &(struct hello_order){.vm = "slow", .channel = WIRE_CHANNEL_DATA});
    assert_true(is_up(f)); /* a round trip: by now the data connection waits there */
    assert_status(f, "slow", "state", "starting");
    assert_string_equal(order(f, "failover", "slow"), "slow: is starting");
    assert_int_equal(send(control, "x", 1, 0), 1);
    assert_int_equal(peer_hear(data, NULL), WIRE_OK);
    assert_int_equal(status_number(f, "slow", "adopted"), 1);
    close(control);
    close(data);
}

static void test_standby_that_fails(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(knock(f, (struct hello_order){.vm = "crash"}, NULL, NULL), -1);
    assert_int_equal(knock(f, (struct hello_order){.vm = "refuse"}, NULL, NULL), -1);
    assert_false(exists(f, "state/vms/crash.ended.json"));
}

static void test_busy(void **state)
{
    struct fixture *f = *state;
    char text[64];

    assert_string_equal(start(f, "busy", false), "{\"ok\":true}");
    assert_int_equal(knock(f, (struct hello_order){.vm = "busy"}, text, NULL), WIRE_REFUSED_BUSY);
    assert_string_equal(text, "busy: runs here");
}

/* Whoever opens connections and says nothing does not keep peers out. */
static void test_crowd(void **state)
{
    struct fixture *f = *state;
    int crowd[80], control;

    for (size_t i = 0; i < N_OF(crowd); i++)
        crowd[i] = peer_connect(f);
    assert_int_equal(knock(f, (struct hello_order){.vm = "web"}, NULL, &control), WIRE_OK);
    assert_int_equal(peer_hear(crowd[0], NULL), -1);
    for (size_t i = 0; i < N_OF(crowd); i++)
        close(crowd[i]);
    close(control);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(test_life),
        TEST(test_failed_starts),
        TEST(test_restart),
        TEST(test_crash_while_running),
        TEST(test_deaf),
        TEST(test_refused_peers),
        TEST(test_no_hello),
        TEST(test_standby),
        TEST(test_standby_that_is_slow),
        TEST(test_standby_that_fails),
        TEST(test_busy),
        TEST(test_crowd),
    };

    if (argc != 3)
        return 2;
    understudyd = realpath(argv[1], NULL); /* the configuration wants whole paths */
    fake_guard = realpath(argv[2], NULL);
    if (!understudyd || !fake_guard)
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
