/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "host_run.h"
#include "io/control_line.h"
#include "unit.h"
#include "wire/msg.h"

/* understudyd as a process, with a stand-in for the processes of its VMs (host_fake_guard.c) and
 * this test as its clients and peers. Arguments: understudyd, the stand-in. */

static const char *understudyd, *fake_guard;

static int setup(void **state)
{
    struct host_run *f = calloc(1, sizeof(*f));

    host_run_init(f, understudyd, fake_guard);
    host_run_start(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    host_run_done(*state);
    free(*state);
    return 0;
}

/* ---- its client ---- */

/* Sends a command; returns the answer's JSON or the error's text, valid until the next call. */
static const char *ask(const struct host_run *f, json_t *request)
{
    static char text[8192];
    struct err err;
    json_t *answer;

    if (host_run_ask(f, request, &answer, &err) < 0) {
        (void)snprintf(text, sizeof(text), "%s", err.text);
    } else {
        char *dump = json_dumps(answer, JSON_COMPACT);

        (void)snprintf(text, sizeof(text), "%s", dump);
        free(dump);
        json_decref(answer);
    }
    return text;
}

static const char *order(const struct host_run *f, const char *command, const char *vm)
{
    return ask(f, json_pack("{s:s, s:s}", "command", command, "vm", vm));
}

static const char *start(const struct host_run *f, const char *vm, bool seize)
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
static int status_number(const struct host_run *f, const char *vm, const char *key)
{
    json_t *status = host_run_status(f, vm);
    int number = (int)json_integer_value(json_object_get(status, key));

    json_decref(status);
    return number;
}

static void assert_status(const struct host_run *f, const char *vm, const char *key,
                          const char *expected)
{
    json_t *status = host_run_status(f, vm);

    assert_non_null(status);
    assert_string_equal(json_string_value(json_object_get(status, key)), expected);
    json_decref(status);
}

/* ---- its peer ---- */

struct hello_order {
    const char *from, *vm;
    uint8_t channel;
    uint16_t version;
    bool resume;
};

static int peer_connect(const struct host_run *f)
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
static int knock(const struct host_run *f, struct hello_order o, char text[64], int *ret_sock)
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
    struct host_run *f = *state;
    int pid;

    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_true(host_run_exists(f, "state/vms/web.json"));
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
    assert_false(host_run_exists(f, "state/vms/web.json"));
    assert_false(host_run_exists(f, "run/vms/web.sock"));
    assert_string_equal(order(f, "status", "web"), "web: not known on this host");
    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_string_equal(start(f, "seized", true), "{\"ok\":true}");
}

static void test_failed_starts(void **state)
{
    struct host_run *f = *state;

    assert_string_equal(start(f, "refuse", false), "refuse: no room for it");
    assert_false(host_run_exists(f, "state/vms/refuse.json"));
    assert_string_equal(start(f, "crash", false),
                        "crash: its process was killed by signal 6 (Aborted); the log may say why");
    assert_false(host_run_exists(f, "state/vms/crash.json"));
    assert_string_equal(order(f, "status", "crash"), "crash: not known on this host");
    assert_string_equal(start(f, "Web", false),
                        "vm: name: \"Web\" is not a name (a-z, 0-9 and -, 63 at most)");
    assert_string_equal(ask(f, json_pack("{s:s}", "command", "start")),
                        "vm: there is no definition");
}

/* The processes of VMs survive understudyd, whether it ends or is killed. */
static void test_restart(void **state)
{
    struct host_run *f = *state;
    int pid;

    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    pid = status_number(f, "web", "pid");
    for (int round = 0; round < 2; round++) {
        int status = host_run_end(f, round ? SIGKILL : SIGTERM);

        if (round == 0) {
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            assert_false(host_run_exists(f, "run/understudyd.sock"));
        }
        assert_int_equal(kill(pid, 0), 0);
        host_run_start(f);
        assert_int_equal(status_number(f, "web", "pid"), pid);
        assert_string_equal(start(f, "web", false), "web: runs on this host already");
    }
    assert_string_equal(order(f, "stop", "web"), "{\"ok\":true}");
    assert_false(host_run_exists(f, "run/vms/web.sock"));
}

static bool web_crashed(const struct host_run *f)
{
    return host_run_exists(f, "state/vms/web.ended.json");
}

static bool web_unserved(const struct host_run *f)
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
    struct host_run *f = *state;
    json_t *status;
    int pid;

    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_int_equal(kill(status_number(f, "web", "pid"), SIGKILL), 0);
    host_run_wait(f, web_crashed);
    status = host_run_status(f, "web");
    assert_string_equal(json_string_value(json_object_get(status, "state")), "crashed");
    assert_non_null(strstr(json_string_value(json_object_get(status, "reason")),
                           "its process was killed by signal 9 (Killed) at "));
    assert_string_equal(json_string_value(json_object_get(status, "wanted_standby")), "hosta");
    json_decref(status);
    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_false(web_crashed(f));

    /* While understudyd is away, nobody writes a note: the record alone tells. */
    pid = status_number(f, "web", "pid");
    (void)host_run_end(f, SIGTERM);
    assert_int_equal(kill(pid, SIGKILL), 0);
    host_run_wait(f, web_unserved);
    host_run_start(f);
    assert_status(f, "web", "state", "down");
    assert_false(host_run_exists(f, "run/vms/web.sock"));
    assert_non_null(strstr(order(f, "stop", "web"), "it was not running; forgotten"));
    assert_string_equal(order(f, "status", "web"), "web: not known on this host");
}

/* A process that is stuck neither hides the others nor is missing. */
static void test_deaf(void **state)
{
    struct host_run *f = *state;
    json_t *answer, *vms, *vm;
    struct err err;

    assert_string_equal(start(f, "deaf", false), "{\"ok\":true}");
    assert_string_equal(start(f, "web", false), "{\"ok\":true}");
    assert_int_equal(host_run_ask(f, json_pack("{s:s}", "command", "status"), &answer, &err), 0);
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
    struct host_run *f = *state;
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
    struct host_run *f = *state;
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
    struct host_run *f = *state;
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
    assert_false(host_run_exists(f, "state/vms/web.json"));
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
    struct host_run *f = *state;
    int control, data;

    assert_int_equal(knock(f, (struct hello_order){.vm = "slow"}, NULL, &control), WIRE_OK);
    data = peer_connect(f);
    peer_say(data, &(struct hello_order){.vm = "slow", .channel = WIRE_CHANNEL_DATA});
    assert_true(host_run_is_up(f)); /* a round trip: by now the data connection waits there */
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
    struct host_run *f = *state;

    assert_int_equal(knock(f, (struct hello_order){.vm = "crash"}, NULL, NULL), -1);
    assert_int_equal(knock(f, (struct hello_order){.vm = "refuse"}, NULL, NULL), -1);
    assert_false(host_run_exists(f, "state/vms/crash.ended.json"));
}

static void test_busy(void **state)
{
    struct host_run *f = *state;
    char text[64];

    assert_string_equal(start(f, "busy", false), "{\"ok\":true}");
    assert_int_equal(knock(f, (struct hello_order){.vm = "busy"}, text, NULL), WIRE_REFUSED_BUSY);
    assert_string_equal(text, "busy: runs here");
}

/* Whoever opens connections and says nothing does not keep peers out. */
static void test_crowd(void **state)
{
    struct host_run *f = *state;
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
