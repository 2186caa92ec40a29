/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "io/tap.h"
#include "unit.h"

static void short_names_are_whole(void **state)
{
    char name[IFNAMSIZ];

    tap_name("web", 0, name);
    assert_string_equal(name, "us-web-0");
    tap_name("ten-bytes1", 7, name);
    assert_string_equal(name, "us-ten-bytes1-7"); /* just fits */
}

static void long_names_stay_apart(void **state)
{
    static const char *const vm[] = {"eleven-byte", "eleven-byts",
                                     "a-very-long-name-of-a-machine-1",
                                     "a-very-long-name-of-a-machine-2"};
    char name[N_OF(vm) * 2][IFNAMSIZ];

    for (size_t i = 0; i < N_OF(name); i++) {
        tap_name(vm[i / 2], i % 2 ? 99 : 1, name[i]);
        assert_in_range(strlen(name[i]), 1, IFNAMSIZ - 1);
        assert_int_equal(strncmp(name[i], "us-", 3), 0);
        assert_non_null(strchr(name[i], '_'));
        assert_string_equal(strrchr(name[i], '-'), i % 2 ? "-99" : "-1");
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(name[i], name[k]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_names_are_whole),
        cmocka_unit_test(long_names_stay_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
