/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <grp.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host_run.h"
#include "io/control_line.h"
#include "unit.h"

/* understudyd as a process, with a stand-in for the processes of its VMs (host_fake_guard.c) and
 * this test as its clients. host_door.c has its peers. Arguments: understudyd, the stand-in. */

/* ---- its client ---- */

static const char *order(const struct host_run *f, const char *command, const char *vm)
{
    return host_run_text(f, json_pack("{s:s, s:s}", "command", command, "vm", vm));
}

static void assert_status(const struct host_run *f, const char *vm, const char *key,
                          const char *expected)
{
    json_t *status = host_run_status(f, vm);

    assert_non_null(status);
    assert_string_equal(json_string_value(json_object_get(status, key)), expected);
    json_decref(status);
}

/* ---- tests: orders ---- */

static void test_life(void **state)
{
    struct host_run *f = *state;
    int pid;

    assert_string_equal(host_run_start_vm(f, "web", false), "{\"ok\":true}");
    assert_true(host_run_exists(f, "state/vms/web.json"));
    pid = host_run_number(f, "web", "pid");
    assert_int_equal(getsid(pid), pid);
    assert_status(f, "web", "role", "primary");
    assert_string_equal(host_run_start_vm(f, "web", false), "web: runs on this host already");
    assert_string_equal(host_run_text(f, json_pack("{s:s,s:s,s:s}", "command", "protect", "vm",
                                                   "web", "to", "hosta")),
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
    assert_string_equal(host_run_start_vm(f, "web", false), "{\"ok\":true}");
    assert_string_equal(host_run_start_vm(f, "seized", true), "{\"ok\":true}");
}

static void test_failed_starts(void **state)
{
    struct host_run *f = *state;

    assert_string_equal(host_run_start_vm(f, "refuse", false), "refuse: no room for it");
    assert_false(host_run_exists(f, "state/vms/refuse.json"));
    assert_string_equal(host_run_start_vm(f, "crash", false),
                        "crash: its process was killed by signal 6 (Aborted); the log may say why");
    assert_false(host_run_exists(f, "state/vms/crash.json"));
    assert_string_equal(order(f, "status", "crash"), "crash: not known on this host");
    assert_string_equal(host_run_start_vm(f, "Web", false),
                        "vm: name: \"Web\" is not a name (a-z, 0-9 and -, 63 at most)");
    assert_string_equal(host_run_text(f, json_pack("{s:s}", "command", "start")),
                        "vm: there is no definition");
}

/* The processes of VMs survive understudyd, whether it ends or is killed. */
static void test_restart(void **state)
{
    struct host_run *f = *state;
    int pid;

    assert_string_equal(host_run_start_vm(f, "web", false), "{\"ok\":true}");
    pid = host_run_number(f, "web", "pid");
    for (int round = 0; round < 2; round++) {
        int status = host_run_end(f, round ? SIGKILL : SIGTERM);

        if (round == 0) {
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            assert_false(host_run_exists(f, "run/understudyd.sock"));
        }
        assert_int_equal(kill(pid, 0), 0);
        host_run_start(f);
        assert_int_equal(host_run_number(f, "web", "pid"), pid);
        assert_string_equal(host_run_start_vm(f, "web", false), "web: runs on this host already");
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

    assert_string_equal(host_run_start_vm(f, "web", false), "{\"ok\":true}");
    assert_int_equal(kill(host_run_number(f, "web", "pid"), SIGKILL), 0);
    host_run_wait(f, web_crashed);
    status = host_run_status(f, "web");
    assert_string_equal(json_string_value(json_object_get(status, "state")), "crashed");
    assert_non_null(strstr(json_string_value(json_object_get(status, "reason")),
                           "its process was killed by signal 9 (Killed) at "));
    assert_string_equal(json_string_value(json_object_get(status, "wanted_standby")), "hosta");
    json_decref(status);
    assert_string_equal(host_run_start_vm(f, "web", false), "{\"ok\":true}");
    assert_false(web_crashed(f));

    /* While understudyd is away, nobody writes a note: the record alone tells. */
    pid = host_run_number(f, "web", "pid");
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

    assert_string_equal(host_run_start_vm(f, "deaf", false), "{\"ok\":true}");
    assert_string_equal(host_run_start_vm(f, "web", false), "{\"ok\":true}");
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

/* A member of the control group gives orders; another user does not. */
static void test_group(void **state)
{
    enum { SOMEBODY = 65533, GROUP_OF_NONE = 65532 };
    static const struct {
        gid_t own, other;
        int r;
    } cases[] = {
        {1, GROUP_OF_NONE, 0}, /* daemon, in every Debian */
        {GROUP_OF_NONE, 1, 0},
        {GROUP_OF_NONE, GROUP_OF_NONE, -EACCES},
    };
    struct host_run *f = *state;
    struct stat st;

    (void)host_run_end(f, SIGTERM);
    host_run_configure(f, "control_group: daemon");
    host_run_start(f);
    assert_int_equal(chmod(f->dir, 0711), 0);
    assert_int_equal(stat(f->socket, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    for (size_t i = 0; i < N_OF(cases); i++) {
        pid_t pid = fork();
        int status;

        assert_true(pid >= 0);
        if (pid == 0) {
            json_t *answer;
            struct err err;

            if (setgroups(1, &cases[i].other) < 0 || setgid(cases[i].own) < 0 ||
                setuid(SOMEBODY) < 0)
                _exit(99);
            _exit(-host_run_ask(f, json_pack("{s:s}", "command", "ping"), &answer, &err));
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        assert_int_equal(-WEXITSTATUS(status), cases[i].r);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, host_run_setup, host_run_teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(test_life),    TEST(test_failed_starts),
        TEST(test_restart), TEST(test_crash_while_running),
        TEST(test_deaf),    TEST(test_group),
    };

    if (argc != 3 || !host_run_programs(argv[1], argv[2]))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
