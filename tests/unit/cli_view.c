/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cli/cli.h"
#include "unit.h"

/* What `understudy status` concludes from a VM's status. */

static const struct {
    const char *status;
    const char *text;
    bool unprotected; /* exit status 3 */
} cases[] = {
    {"{'role':'primary','state':'protected','protected':true,'wanted_standby':'b','peer':'b'}",
     "protected by b", false},
    {"{'role':'primary','state':'solo','protected':false,'wanted_standby':'b','peer':'',"
     "'reason':'b: not connected yet'}",
     "not protected: b: not connected yet", true},
    {"{'role':'primary','state':'seeding','protected':false,'wanted_standby':'b','peer':'b',"
     "'reason':'the first copy to b is not complete yet'}",
     "not protected: the first copy to b is not complete yet", true},
    {"{'role':'primary','state':'solo','protected':false,'wanted_standby':'','reason':''}",
     "not protected: nobody has asked for it", false},
    {"{'role':'standby','state':'ready','protected':true,'wanted_standby':'','peer':'a'}",
     "standby for a: ready to take over", false},
    {"{'role':'standby','state':'receiving','protected':false,'wanted_standby':'','peer':'a'}",
     "standby for a: the copy is not complete", false},
    {"{'role':'none','state':'down','protected':false,'wanted_standby':'b','host':'a',"
     "'reason':'not running'}",
     "down: not running", true},
    {"{'role':'none','state':'crashed','protected':false,'wanted_standby':'b','host':'a',"
     "'reason':'x','ended':{'owner':''}}",
     "crashed: x", true},
    {"{'role':'none','state':'crashed','protected':false,'wanted_standby':'','host':'a',"
     "'reason':'x','ended':{'owner':''}}",
     "crashed: x", true},
    {"{'role':'none','state':'lost','protected':false,'wanted_standby':'b','host':'a',"
     "'reason':'taken over by b','ended':{'owner':'b'}}",
     "lost: taken over by b", false},
    {"{'role':'none','state':'unresponsive','protected':false,'wanted_standby':'b','host':'a',"
     "'reason':'its process does not answer'}",
     "unresponsive: its process does not answer", true},
    {"{}", "", false},
};

static json_t *parse(const char *text)
{
    char *json = strdup(text);
    json_t *vm;

    for (char *p = json; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    vm = json_loads(json, 0, NULL);
    assert_non_null(vm);
    free(json);
    return vm;
}

static void test_conclusions(void **state)
{
    for (size_t i = 0; i < N_OF(cases); i++) {
        json_t *vm = parse(cases[i].status);
        char text[256];

        view_protection(vm, text, sizeof(text));
        assert_string_equal(text, cases[i].text);
        assert_int_equal(view_unprotected(vm), cases[i].unprotected);
        json_decref(vm);
    }
}

/* ---- what is printed ---- */

static int terminal = -1, capture = -1;

/* From here to capture_end(), standard output, where TAP goes too, is kept in a file. */
static void capture_begin(void)
{
    (void)fflush(stdout);
    terminal = dup(STDOUT_FILENO);
    capture = memfd_create("stdout", MFD_CLOEXEC);
    assert_true(dup2(capture, STDOUT_FILENO) >= 0);
}

/* What was printed, valid until the next call. */
static const char *capture_end(void)
{
    static char text[4096];
    ssize_t n;

    (void)fflush(stdout);
    assert_true(dup2(terminal, STDOUT_FILENO) >= 0);
    n = pread(capture, text, sizeof(text) - 1, 0);
    assert_true(n >= 0);
    text[n] = '\0';
    close(terminal);
    close(capture);
    return text;
}

/* Whatever the answer lacks or has in another type: it is shown somehow. */
static void test_nonsense(void **state)
{
    static const char *const lists[] = {
        "[]", "[{}]", "[1, null, {'vm': 2, 'role': 'primary', 'epoch': 'x', 'seeding': {}}]",
        "[{'vm': 'web', 'role': 'primary', 'reason': 7, 'interval_ms': 1e300}]"};

    capture_begin();
    for (size_t i = 0; i < N_OF(lists); i++) {
        json_t *list = parse(lists[i]);

        view_table(list);
        for (size_t j = 0; j < json_array_size(list); j++)
            view_details(json_array_get(list, j));
        json_decref(list);
    }
    (void)capture_end();
}

static const struct {
    const char *status, *lines;
} disk_cases[] = {
    {"{}", ""},
    {"{'disks': [{'path': '/a', 'size_bytes': 10737418240, 'state': 'in step'},"
     " {'path': '/b', 'size_bytes': 104857600, 'state': 'copying', 'done_bytes': 52428800,"
     " 'total_bytes': 104857600, 'rate_bytes': 10485760, 'copied_bytes': 20971520}]}",
     "  disk 0     /a, 10.0 GiB, in step\n"
     "  disk 1     /b, 100 MiB, copying: 50%, 50 of 100 MiB, 10.0 MiB/s, 5 s left, 20 MiB "
     "copied\n"},
    {"{'disks': [{'path': '/a', 'size_bytes': 4096, 'state': 'alone', 'dirty_bytes': 8192}]}",
     "  disk 0     /a, 4 KiB, alone, 8 KiB changed\n"},
    {"{'disks': [{'path': '/a', 'size_bytes': 4096, 'state': 'standby', 'applied_bytes': 8192,"
     " 'durable_epoch': 77}]}",
     "  disk 0     /a, 4 KiB, standby, 8 KiB applied, epoch 77 on stable storage\n"},
    {"{'verify': {'running': true, 'disk': 1, 'done_bytes': 1048576, 'total_bytes': 4194304,"
     " 'differing': [{}]}}",
     "  verify     disk 1: 25%, 1 of 4 MiB, differing so far: 1 range\n"},
    {"{'verify': {'running': false, 'differing': [], 'finished_at': 0}}",
     "  verify     the copies were equal at 1970-01-01 00:00:00\n"},
    {"{'verify': {'running': false, 'differing': [{}], 'finished_at': 0}}",
     "  verify     the copies differed in 1 range at 1970-01-01 00:00:00\n"},
    {"{'verify': {'running': false, 'differing': [{}, {}], 'more': true, 'finished_at': 0}}",
     "  verify     the copies differed in more than 2 ranges at 1970-01-01 00:00:00\n"},
    {"{'verify': {'running': false, 'error': 'x', 'finished_at': 0}}",
     "  verify     failed at 1970-01-01 00:00:00: x\n"},
    {"{'disks': 7, 'verify': []}", ""},
    {"{'disks': [3, {}]}", "  disk 0     , 0 KiB, \n  disk 1     , 0 KiB, \n"},
};

static void test_disks(void **state)
{
    setenv("TZ", "UTC", 1);
    for (size_t i = 0; i < N_OF(disk_cases); i++) {
        json_t *vm = parse(disk_cases[i].status);

        capture_begin();
        view_disk_lines(vm);
        view_verify_line(vm);
        assert_string_equal(capture_end(), disk_cases[i].lines);
        json_decref(vm);
    }
}

/* What a command that waits for protection looks at. */
static void test_copying(void **state)
{
    static const struct {
        const char *status, *what;
        double done, total;
    } table[] = {
        {"{'disks': [], 'seeding': null}", NULL, 0, 0},
        {"{'seeding': {'done_bytes': 3, 'total_bytes': 4}}", "copying memory", 3, 4},
        {"{'disks': [{'state': 'in step'}], 'seeding': {'done_bytes': 3, 'total_bytes': 4}}",
         "copying memory", 3, 4},
        {"{'disks': [{'state': 'comparing', 'done_bytes': 1, 'total_bytes': 2},"
         " {'state': 'comparing', 'done_bytes': 3, 'total_bytes': 5}]}",
         "comparing disks", 4, 7},
        {"{'disks': [{'state': 'copying', 'done_bytes': 1, 'total_bytes': 2},"
         " {'state': 'comparing', 'done_bytes': 3, 'total_bytes': 5}], 'seeding': {}}",
         "copying disks", 4, 7},
    };

    for (size_t i = 0; i < N_OF(table); i++) {
        json_t *vm = parse(table[i].status);
        double done, total;
        const char *what = view_copying(vm, &done, &total);

        assert_int_equal(!what, !table[i].what);
        if (what) {
            assert_string_equal(what, table[i].what);
            assert_true(done == table[i].done && total == table[i].total);
        }
        json_decref(vm);
    }
}

static void test_rates(void **state)
{
    json_t *before = parse("{'disks': [{'state': 'copying', 'done_bytes': 1000}, {}],"
                           " 'verify': {'running': true, 'done_bytes': 50}}");
    json_t *now = parse("{'disks': [{'state': 'copying', 'done_bytes': 3000}, {}, {}],"
                        " 'verify': {'running': true, 'done_bytes': 20}}");
    json_t *disks = json_object_get(now, "disks");

    assert_true(view_moves(before));
    view_set_rates(now, before, 0.5);
    assert_true(view_number(json_array_get(disks, 0), "rate_bytes") == 4000);
    assert_null(json_object_get(json_array_get(disks, 1), "rate_bytes"));
    /* Another comparison than before. */
    assert_null(json_object_get(json_object_get(now, "verify"), "rate_bytes"));
    json_decref(before);
    json_decref(now);
    now = parse("{'disks': [{'state': 'in step'}], 'verify': {'running': false}}");
    assert_false(view_moves(now));
    json_decref(now);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conclusions), cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_disks),       cmocka_unit_test(test_copying),
        cmocka_unit_test(test_rates),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
