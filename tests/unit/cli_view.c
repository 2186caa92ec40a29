/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* Whatever the answer lacks or has in another type: it is shown somehow. */
static void test_nonsense(void **state)
{
    static const char *const lists[] = {
        "[]", "[{}]", "[1, null, {'vm': 2, 'role': 'primary', 'epoch': 'x', 'seeding': {}}]",
        "[{'vm': 'web', 'role': 'primary', 'reason': 7, 'interval_ms': 1e300}]"};

    int terminal = dup(STDOUT_FILENO), nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);

    (void)fflush(stdout); /* TAP goes there too */
    assert_true(dup2(nowhere, STDOUT_FILENO) >= 0);
    for (size_t i = 0; i < N_OF(lists); i++) {
        json_t *list = parse(lists[i]);

        view_table(list);
        for (size_t j = 0; j < json_array_size(list); j++)
            view_details(json_array_get(list, j));
        json_decref(list);
    }
    (void)fflush(stdout);
    assert_true(dup2(terminal, STDOUT_FILENO) >= 0);
    close(terminal);
    close(nowhere);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conclusions),
        cmocka_unit_test(test_nonsense),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
