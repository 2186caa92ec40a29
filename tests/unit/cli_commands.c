/* SPDX-License-Identifier: Apache-2.0 */
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "capture.h"
#include "host/records.h"
#include "host_run.h"
#include "keys.h"

/* The command line as people and scripts see it: what it prints and its exit status. Arguments:
 * understudy, understudyd, the stand-in for the processes of its VMs. */

static const char *understudy;

/* ---- the command ---- */

enum { SAID_MAX = 8192 };

/* What a command said on both its outputs, valid until the next one. */
static char said[SAID_MAX];

/* Runs a command line, words apart by single blanks. Returns its exit status. */
static int run(const struct host_run *h, const char *fmt, ...) US_PRINTF(2, 3);

static int run(const struct host_run *h, const char *fmt, ...)
{
    char args[256], line[512];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(args, sizeof(args), fmt, ap);
    va_end(ap);
    (void)snprintf(line, sizeof(line), "UNDERSTUDY_CONFIG=%s timeout 30 %s %s 2>&1", h->config,
                   understudy, args);
    return capture(line, said, sizeof(said));
}

static void assert_run(const struct host_run *h, const char *args, int status, const char *text)
{
    int got = run(h, "%s", args);

    assert_string_equal(said, text);
    assert_int_equal(got, status);
}

static void assert_said(const char *text)
{
    if (!strstr(said, text))
        fail_msg("\"%s\" is not in: %s", text, said);
}

/* Writes a VM file, and returns its path. It boots itself: nothing does so here. */
static const char *vm_file(const struct host_run *h, const char *vm)
{
    static char path[96];
    FILE *f;

    (void)snprintf(path, sizeof(path), "%s/%s.yaml", h->dir, vm);
    f = fopen(path, "w");
    fprintf(f, "name: %s\nmemory: 64M\nkernel: %s\nprotect: {standby: hosta}\n", vm, path);
    assert_int_equal(fclose(f), 0);
    return path;
}

static void start(const struct host_run *h, const char *vm)
{
    assert_int_equal(run(h, "start --no-wait %s", vm_file(h, vm)), 0);
}

/* ---- tests ---- */

static void test_switchover(void **state)
{
    const struct host_run *h = *state;

    start(h, "web");
    assert_run(h, "switchover web", 0, "web: runs on its other host now, this one backs it\n");
    start(h, "stays");
    assert_run(h, "switchover stays", 1,
               "understudy: stays: hosta does not answer; it goes on here\n");
    assert_run(h, "switchover db", 1, "understudy: db: does not run on this host\n");
}

static void test_verify(void **state)
{
    const struct host_run *h = *state;
    json_t *status;

    start(h, "web");
    assert_run(h, "verify web --rate 50M", 0,
               "web: the copies of its disks are equal: 64 MiB compared\n");
    status = host_run_status(h, "web");
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(status, "verify"), "asked_rate")),
        50 << 20);
    json_decref(status);
    start(h, "differs");
    assert_run(h, "verify differs", 1,
               "DISK  OFFSET                LENGTH\n"
               "0     65536                 4096\n"
               "1     131072                4096\n"
               "differs: the copies of its disks differ in 2 ranges\n");
    start(h, "broken");
    assert_run(h, "verify broken", 2,
               "understudy: broken: the comparison failed: the link broke\n");
    assert_run(h, "verify db", 2, "understudy: db: does not run on this host\n");
    for (size_t i = 0; i < 6; i++) {
        static const char *const rates[6] = {"0", "x", "-1", "5Q", "5MM", "99999999999999T"};

        assert_int_equal(run(h, "verify web --rate %s", rates[i]), 2);
        assert_said("not a number of bytes such as 50M");
    }
}

/* Reads what a command says to its terminal until `text` is there. */
static void read_until(int fd, const char *text)
{
    size_t n = 0;

    while (n + 1 < sizeof(said)) {
        ssize_t got = read(fd, said + n, sizeof(said) - 1 - n);

        n += got > 0 ? (size_t)got : 0;
        said[n] = '\0';
        if (strstr(said, text))
            return;
        if (got <= 0)
            break;
    }
    fail_msg("\"%s\" is not in: %s", text, said);
}

/* On a terminal there is a bar, and an interrupt leaves the comparison alone. */
static void test_interrupt(void **state)
{
    const struct host_run *h = *state;
    int terminal, status;
    json_t *vm;
    pid_t pid;

    start(h, "endless");
    pid = forkpty(&terminal, NULL, NULL, NULL);
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(30);
        (void)execl(understudy, understudy, "verify", "--config", h->config, "endless", NULL);
        _exit(127);
    }
    read_until(terminal, "endless: comparing [#");
    assert_int_equal(kill(pid, SIGINT), 0);
    read_until(terminal, "the comparison goes on without this command: understudy status endless");
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 130);
    close(terminal);
    vm = host_run_status(h, "endless");
    assert_true(json_is_true(json_object_get(json_object_get(vm, "verify"), "running")));
    json_decref(vm);
}

/* The definition comes from what the host has: of a VM that ran here ... */
static void test_recover_own(void **state)
{
    struct host_run *h = *state;
    json_t *status;

    assert_int_equal(run(h, "recover --no-wait recovered %s", vm_file(h, "recovered")), 0);
    status = host_run_status(h, "recovered");
    (void)host_run_end(h, SIGTERM);
    assert_int_equal(kill((pid_t)json_integer_value(json_object_get(status, "pid")), SIGKILL), 0);
    json_decref(status);
    host_run_start(h);
    assert_run(h, "recover recovered", 0, "recovered: runs\n");
    assert_run(h, "recover recovered", 1, "understudy: recovered: runs on this host already\n");
}

/* ... or of one that it backed; nobody takes that for a VM of this host. */
static void test_recover_backed(void **state)
{
    static struct host_config config;
    static struct vm_spec spec;
    const struct host_run *h = *state;
    struct err err;

    assert_int_equal(host_config_load(h->config, &config, &err), 0);
    for (size_t i = 0; i < 2; i++) {
        static const char *const vms[] = {"recovered", "refused"};

        spec = (struct vm_spec){
            .memory_bytes = 64 << 20, .cpus = 1, .kernel = "/k", .virtio = VM_VIRTIO_LEGACY};
        strcpy(spec.name, vms[i]);
        spec.protect = (struct vm_protect){
            .standby = "hostb",
            .interval_min_ns = 5000000,
            .interval_max_ns = 500000000,
            .output = VM_OUTPUT_HOLD,
            .engine = VM_ENGINE_DEFAULT,
            .max_slowdown_permille = VM_SLOWDOWN_DEFAULT_PERMILLE,
            .outrun = VM_OUTRUN_THROTTLE,
        };
        assert_int_equal(record_write_standby(&config, &spec, "hosta", &err), 0);
    }
    assert_run(h, "status", 0, "no VMs on this host\n");
    assert_run(h, "status recovered", 1,
               "understudy: recovered: does not run on this host, which has a copy of its disks\n"
               "understudy recover recovered starts it from that, if it is the newest\n");
    assert_run(h, "recover refused", 1, "understudy: refused: no room for it\n");
    assert_run(h, "recover refused", 1, "understudy: refused: no room for it\n");
    assert_int_equal(run(h, "stop refused"), 0);
    assert_run(h, "recover refused", 1,
               "understudy: refused: this host has no record of it; give its VM file\n");

    assert_run(h, "recover recovered", 0, "recovered: runs\n");
    assert_false(host_run_exists(h, "state/vms/recovered.standby.json"));
    assert_int_equal(run(h, "stop recovered"), 0);
    assert_run(h, "status recovered", 1, "understudy: recovered: not known on this host\n");
}

static void test_recover_refused(void **state)
{
    const struct host_run *h = *state;

    assert_run(h, "recover ../x", 1, "understudy: ../x: not the name of a VM\n");
    assert_int_equal(run(h, "recover web %s", vm_file(h, "db")), 1);
    assert_said("db.yaml describes db, not web");
    assert_int_equal(run(h, "recover"), 2);
    assert_int_equal(run(h, "recover a b c"), 2);
}

static void test_status(void **state)
{
    const struct host_run *h = *state;

    start(h, "web");
    start(h, "copies");
    assert_int_equal(run(h, "status"), 0);
    assert_said("copies: disk 0, /srv/disk.img: copying: ");
    assert_null(strstr(said, "web: disk"));
    assert_int_equal(run(h, "status copies"), 0);
    assert_said("  disk 0     /srv/disk.img, 64 MiB, copying: 3%, 2 of 64 MiB, ");
    assert_said(" s left, 1024 KiB copied\n");
    assert_int_equal(run(h, "status web"), 0);
    assert_said("  disk 0     /srv/disk.img, 64 MiB, in step, 1024 KiB copied\n");
    assert_int_equal(run(h, "status --json copies"), 0);
    assert_said("\"state\": \"copying\"");
    assert_null(strstr(said, "rate_bytes"));
}

/* What a command has said: a key, and a newline. */
static const char *said_key(void)
{
    static char text[PUBLIC_KEY_TEXT];
    struct public_key key;

    (void)snprintf(text, sizeof(text), "%.*s", (int)strcspn(said, "\n"), said);
    assert_int_equal(public_key_parse(text, &key, NULL), 0);
    assert_string_equal(said + strlen(text), "\n");
    return text;
}

static void test_key(void **state)
{
    const struct host_run *h = *state;
    char first[PUBLIC_KEY_TEXT], next[PUBLIC_KEY_TEXT];

    assert_int_equal(run(h, "key"), 0);
    strcpy(first, said_key());
    assert_run(h, "key use", 1, "understudy: there is no next key: understudy key new makes one\n");
    assert_int_equal(run(h, "key new"), 0);
    strcpy(next, said_key());
    assert_string_not_equal(first, next);
    assert_int_equal(run(h, "key"), 0);
    assert_said(first);
    assert_said("understudy: the next key, not in use yet: ");
    assert_said(next);
    assert_run(h, "key forget", 0, "key: the next one is forgotten\n");
    assert_int_equal(run(h, "key forget"), 1);
    assert_int_equal(run(h, "key new"), 0);
    assert_string_not_equal(said_key(), next);
    strcpy(next, said_key());
    start(h, "web");
    start(h, "old");
    assert_run(h, "key use", 1,
               "key: the next one is in use now\n"
               "understudy: old: does not take the change over: unknown command \"reload\"\n");
    assert_int_equal(run(h, "key"), 0);
    assert_string_equal(said_key(), next);
    assert_int_equal(run(h, "key again"), 2);
    assert_int_equal(run(h, "key new one"), 2);
}

static void test_peer(void **state)
{
    const struct host_run *h = *state;
    char own[PUBLIC_KEY_TEXT];

    assert_int_equal(run(h, "peer list"), 0);
    assert_said("hosta         127.0.0.1:1             ed25519:");
    assert_run(h, "peer add hostc 192.0.2.3:7700 " KEY_1, 0, "hostc: added\n");
    assert_run(h, "peer add hostc 192.0.2.4:7700 " KEY_2, 0, "hostc: added\n");
    assert_int_equal(run(h, "peer list"), 0);
    assert_said("hostc         192.0.2.4:7700          " KEY_1 "  -\n"
                "hostc         192.0.2.4:7700          " KEY_2 "  -\n");
    assert_run(h, "peer add hostd 192.0.2.4:7700 " KEY_2, 1,
               "understudy: this key is the one of hostc\n");
    assert_run(h, "peer remove hostc " KEY_1, 0, "hostc: this key is removed\n");
    assert_run(h, "peer remove hostc " KEY_1, 1, "understudy: hostc has no such key\n");
    assert_run(h, "peer remove hostc", 0, "hostc: removed\n");
    assert_run(h, "peer remove hosta", 0, "hosta: removed\n");
    assert_run(h, "peer list", 0,
               "no peers; understudy peer add NAME ADDRESS KEY makes one known\n");
    assert_run(h, "peer list --json", 0, "{\n  \"host\": \"hostb\",\n  \"peers\": []\n}\n");

    assert_int_equal(run(h, "key"), 0);
    strcpy(own, said_key());
    assert_int_equal(run(h, "peer add hostc 192.0.2.3:7700 %s", own), 1);
    assert_said("hostc: this is the key of hostb itself; take what `understudy key` says there");
    assert_int_equal(run(h, "peer add hostc 192.0.2.3:7700 " KEY_1 " " KEY_2), 2);
    assert_int_equal(run(h, "peer add hostc " KEY_1), 2);
    assert_int_equal(run(h, "peer"), 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, host_run_setup, host_run_teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(test_switchover),     TEST(test_verify),
        TEST(test_interrupt),      TEST(test_recover_own),
        TEST(test_recover_backed), TEST(test_recover_refused),
        TEST(test_status),         TEST(test_key),
        TEST(test_peer),
    };

    if (argc != 4 || !host_run_programs(argv[2], argv[3]))
        return 2;
    understudy = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
