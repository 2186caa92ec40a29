/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "host/preflight.h"
#include "unit.h"

/* Which definitions a host refuses before anything of them is opened. */

static int no_objection(struct vm_spec *spec, const char *emulator, struct err *err)
{
    return 0;
}

static const struct hyp_ops hyp = {.preflight = no_objection};

static bool objects(struct vm_spec *spec, const struct host_config *config,
                    enum preflight_role role, const char *text)
{
    struct preflight p;

    preflight_check(spec, config, &hyp, role, &p);
    for (unsigned i = 0; i < p.n; i++) {
        if (strstr(p.problem[i].text, text))
            return true;
    }
    return false;
}

/* A peer names files for its standby to write; a user of this host may use what he likes. */
static void test_disk_dirs(void **state)
{
    static struct host_config config = {
        .name = "hostb", .memory_dir = "/dev/shm", .n_disk_dirs = 1};
    static struct vm_spec spec = {
        .name = "web", .n_disks = 2, .disks = {{.path = "/tmp/a.img"}, {.path = "/etc/passwd"}}};

    strcpy(config.disk_dirs[0], "/tmp");
    assert_true(objects(&spec, &config, PREFLIGHT_STANDBY, "disks[1]: /etc/passwd is not in"));
    assert_false(objects(&spec, &config, PREFLIGHT_STANDBY, "disks[0]"));
    assert_false(objects(&spec, &config, PREFLIGHT_PRIMARY, "disks["));
    spec.n_disks = 1;
    assert_false(objects(&spec, &config, PREFLIGHT_STANDBY, "disks["));
}

static void test_emulator_user(void **state)
{
    static struct host_config config = {.name = "hostb", .memory_dir = "/dev/shm"};
    static struct vm_spec spec = {.name = "web"};

    strcpy(config.emulator_user, "us-nobody-has-this");
    assert_true(objects(&spec, &config, PREFLIGHT_PRIMARY, "useradd --system"));
    strcpy(config.emulator_user, "64110:64110"); /* needs no entry */
    assert_false(objects(&spec, &config, PREFLIGHT_PRIMARY, "emulator_user"));
    strcpy(config.emulator_user, "root");
    assert_false(objects(&spec, &config, PREFLIGHT_PRIMARY, "emulator_user"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_disk_dirs),
        cmocka_unit_test(test_emulator_user),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
