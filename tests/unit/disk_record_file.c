/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk/record_file.h"
#include "unit.h"

/* A peer's name of 64 characters. */
#define LONG_NAME                                                                                  \
    "{\"role\": \"standby\", \"term\": 7, \"epoch\": 0, \"peer\": "                                \
    "\"a234567890123456789012345678901234567890123456789012345678901234\"}"

static char folder[] = "/tmp/us-copy-XXXXXX";
static char path[64];

static int setup(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    (void)snprintf(path, sizeof(path), "%s/copy", folder);
    return 0;
}

static int teardown(void **state)
{
    return rmdir(folder);
}

static int clean(void **state)
{
    return unlink(path) == 0 || errno == ENOENT ? 0 : -1;
}

static void put(const char *text)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void assert_loads(const struct copy_record *wanted)
{
    struct copy_record record;

    assert_int_equal(copy_record_load(path, &record, NULL), 0);
    assert_int_equal(record.role, wanted->role);
    assert_int_equal(record.term, wanted->term);
    assert_int_equal(record.epoch, wanted->epoch);
    assert_string_equal(record.peer, wanted->peer);
}

static void stores_what_it_loads(void **state)
{
    static const struct copy_record records[] = {
        {COPY_PRIMARY, 7, 0, ""},
        {COPY_STANDBY, 8, INT64_MAX, "hosta"},
        {COPY_SYNCING, 0, 0, "hostb"},
        {COPY_NONE, 0, 0, ""},
    };

    for (size_t i = 0; i < N_OF(records); i++) {
        assert_int_equal(copy_record_store(path, &records[i], NULL), 0);
        assert_loads(&records[i]);
    }
}

static void reads_what_older_versions_wrote(void **state)
{
    put("{\"role\": \"standby\", \"term\": 8, \"epoch\": 1234, \"peer\": \"hosta\"}");
    assert_loads(&(struct copy_record){COPY_STANDBY, 8, 1234, "hosta"});
}

static void missing_file_knows_nothing(void **state)
{
    assert_loads(&(struct copy_record){.role = COPY_NONE});
}

static void damaged_files_are_refused(void **state)
{
    static const char *const texts[] = {
        "",
        "{\"role\": \"primary\", \"term\": 7, \"epoch\": 0, \"peer\": \"\"",
        "{\"role\": \"primary\", \"term\": 7, \"epoch\": 0}",
        "{\"role\": \"primary\", \"term\": 7, \"epoch\": 0, \"peer\": \"\", \"more\": 1}",
        "{\"role\": \"primary\", \"role\": \"standby\", \"term\": 7, \"epoch\": 0, \"peer\": \"\"}",
        "{\"role\": \"owner\", \"term\": 7, \"epoch\": 0, \"peer\": \"\"}",
        "{\"role\": \"primary\", \"term\": -1, \"epoch\": 0, \"peer\": \"\"}",
        "{\"role\": \"primary\", \"term\": \"7\", \"epoch\": 0, \"peer\": \"\"}",
        "{\"role\": \"primary\", \"term\": 7, \"epoch\": 0, \"peer\": \"hosta\"}",
        "{\"role\": \"standby\", \"term\": 7, \"epoch\": 0, \"peer\": \"\"}",
        "{\"role\": \"standby\", \"term\": 7, \"epoch\": 0, \"peer\": \"-\"}",
        (LONG_NAME),
        "[]",
    };

    for (size_t i = 0; i < N_OF(texts); i++) {
        struct copy_record record;
        struct err err = {""};

        put(texts[i]);
        if (copy_record_load(path, &record, &err) != -EINVAL)
            fail_msg("accepted: %s", texts[i]);
        assert_non_null(strstr(err.text, path));
        assert_non_null(strstr(err.text, "damaged"));
    }
}

static void bad_records_are_not_stored(void **state)
{
    static const struct copy_record records[] = {
        {COPY_PRIMARY, 7, 0, "hosta"},
        {COPY_STANDBY, 7, 0, ""},
        {COPY_STANDBY, UINT64_MAX, 0, "hosta"},
        {(enum copy_role)9, 7, 0, ""},
    };
    const struct copy_record good = {COPY_PRIMARY, 3, 0, ""};
    struct err err;

    assert_int_equal(copy_record_store(path, &good, NULL), 0);
    for (size_t i = 0; i < N_OF(records); i++)
        assert_int_equal(copy_record_store(path, &records[i], &err), -EINVAL);
    assert_loads(&good);
}

static void errors_name_the_file(void **state)
{
    const struct copy_record record = {COPY_PRIMARY, 3, 0, ""};
    struct copy_record back;
    struct err err;
    char elsewhere[80];

    (void)snprintf(elsewhere, sizeof(elsewhere), "%s/not/there", folder);
    assert_int_equal(copy_record_store(elsewhere, &record, &err), -ENOENT);
    assert_non_null(strstr(err.text, elsewhere));
    assert_int_equal(copy_record_load(folder, &back, &err), -EINVAL); /* a folder */
    assert_non_null(strstr(err.text, folder));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(stores_what_it_loads, clean),
        cmocka_unit_test_teardown(reads_what_older_versions_wrote, clean),
        cmocka_unit_test_teardown(missing_file_knows_nothing, clean),
        cmocka_unit_test_teardown(damaged_files_are_refused, clean),
        cmocka_unit_test_teardown(bad_records_are_not_stored, clean),
        cmocka_unit_test_teardown(errors_name_the_file, clean),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
