/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/records.h"
#include "unit.h"

/* Which definition a recovery works from. */

static struct host_config config;
static struct vm_spec spec, loaded;

static int setup(void **state)
{
    struct err err;

    config = (struct host_config){.name = "hostb"};
    strcpy(config.state_dir, "/tmp/records.XXXXXX");
    assert_non_null(mkdtemp(config.state_dir));
    (void)snprintf(config.run_dir, sizeof(config.run_dir), "%s/run", config.state_dir);
    (void)snprintf(config.memory_dir, sizeof(config.memory_dir), "%s/memory", config.state_dir);
    assert_int_equal(records_prepare(&config, &err), 0);
    spec = (struct vm_spec){.name = "web",
                            .memory_bytes = 64 << 20,
                            .cpus = 1,
                            .kernel = "/k",
                            .virtio = VM_VIRTIO_LEGACY,
                            .protect = {.standby = "hostb",
                                        .interval_min_ns = 5000000,
                                        .interval_max_ns = 500000000,
                                        .output = VM_OUTPUT_HOLD,
                                        .engine = VM_ENGINE_DEFAULT,
                                        .max_slowdown_permille = VM_SLOWDOWN_DEFAULT_PERMILLE,
                                        .outrun = VM_OUTRUN_THROTTLE}};
    return 0;
}

static int teardown(void **state)
{
    char command[VM_PATH_MAX + 16];

    (void)snprintf(command, sizeof(command), "rm -rf %s", config.state_dir);
    return system(command);
}

static void count(void *user, const char *vm)
{
    ++*(unsigned *)user;
}

static unsigned n_known(void)
{
    unsigned n = 0;

    records_each(&config, count, &n);
    return n;
}

static void write_file(const char *name, const char *text)
{
    char path[RECORD_PATH_MAX];
    FILE *f;

    (void)snprintf(path, sizeof(path), "%s/vms/%s", config.state_dir, name);
    f = fopen(path, "w");
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void assert_not_loaded(const char *vm, int code, const char *text)
{
    struct err err;

    assert_int_equal(record_load(&config, vm, &loaded, &err), code);
    if (!strstr(err.text, text))
        fail_msg("\"%s\" is not in: %s", text, err.text);
}

static void test_backed(void **state)
{
    struct err err;

    assert_not_loaded("web", -ENOENT, "give its VM file");
    assert_int_equal(record_write_standby(&config, &spec, "hosta", &err), 0);
    assert_true(record_exists_standby(&config, "web"));
    assert_false(record_exists(&config, "web"));
    assert_int_equal(n_known(), 0);
    assert_int_equal(record_load(&config, "web", &loaded, &err), 0);
    assert_string_equal(loaded.protect.standby, "hosta");
    assert_int_equal(loaded.memory_bytes, spec.memory_bytes);
}

/* What was started here is newer than what was backed before. */
static void test_both(void **state)
{
    struct err err;

    assert_int_equal(record_write_standby(&config, &spec, "hosta", &err), 0);
    spec.cpus = 2;
    assert_int_equal(record_write(&config, &spec, &err), 0);
    assert_int_equal(record_load(&config, "web", &loaded, &err), 0);
    assert_int_equal(loaded.cpus, 2);
    assert_int_equal(n_known(), 1);
    record_remove(&config, "web"); /* a start that failed */
    assert_int_equal(record_load(&config, "web", &loaded, &err), 0);
    assert_int_equal(loaded.cpus, 1);
    ended_note_crash(&config, "web", "x");
    record_forget(&config, "web");
    assert_int_equal(n_known(), 0);
    assert_not_loaded("web", -ENOENT, "no record");
}

/* What is written in a takeover may be torn by a loss of power; what was backed is still there. */
static void test_torn(void **state)
{
    struct err err;

    assert_int_equal(record_write_standby(&config, &spec, "hosta", &err), 0);
    spec.cpus = 2;
    assert_int_equal(record_write_soft(&config, &spec, &err), 0);
    assert_int_equal(record_load(&config, "web", &loaded, &err), 0);
    assert_int_equal(loaded.cpus, 2);
    write_file("web.json", "");
    assert_int_equal(record_load(&config, "web", &loaded, &err), 0);
    assert_int_equal(loaded.cpus, 1);
}

static void test_damaged(void **state)
{
    struct err err;

    write_file("web.json", "{\"name\": \"we");
    assert_not_loaded("web", -EPROTO, "web.json");
    write_file("web.json", "{}");
    assert_not_loaded("web", -EPROTO, "web.json");
    strcpy(spec.name, "db");
    assert_int_equal(record_write(&config, &spec, &err), 0);
    write_file("../x.json", "{}");
    assert_not_loaded("../../x", -ENOENT, "not the name");
    assert_not_loaded("", -ENOENT, "not the name");
}

static void test_renamed(void **state)
{
    char from[RECORD_PATH_MAX], to[RECORD_PATH_MAX];
    struct err err;

    assert_int_equal(record_write(&config, &spec, &err), 0);
    record_path(&config, "web", from);
    record_path(&config, "db", to);
    assert_int_equal(rename(from, to), 0);
    assert_not_loaded("db", -EPROTO, "describes another VM");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_backed), TEST(test_both), TEST(test_torn), TEST(test_damaged), TEST(test_renamed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
