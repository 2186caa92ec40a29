/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "unit.h"

#include "io/user.h"

static void finds_users(void **state)
{
    uid_t uid = 1;
    gid_t gid = 1;

    (void)state;
    assert_int_equal(user_lookup("root", &uid, &gid, NULL), 0);
    assert_true(uid == 0 && gid == 0);
    assert_int_equal(user_lookup("64110:107", &uid, &gid, NULL), 0);
    assert_true(uid == 64110 && gid == 107);
    assert_int_equal(user_lookup("0:0", &uid, &gid, NULL), 0);
    assert_true(uid == 0 && gid == 0);
}

static void refuses_the_rest(void **state)
{
    static const char *const bad[] = {
        "",     "us-nobody", "64110", "64110:",       "1:2:3",
        "-1:1", "1:-1",      "1: 1",  "4294967295:0", "1:99999999999999999999",
    };
    uid_t uid = 7;
    gid_t gid = 7;
    struct err err;

    (void)state;
    for (size_t i = 0; i < N_OF(bad); i++) {
        assert_int_equal(user_lookup(bad[i], &uid, &gid, &err), -ENOENT);
        assert_non_null(strstr(err.text, "no user"));
        assert_true(uid == 7 && gid == 7);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_users),
        cmocka_unit_test(refuses_the_rest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
