/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keys.h"
#include "unit.h"
#include "witness/hosts.h"
#include "witness_run.h"

/* Whom a witness lets in: the list, its file, and the sub-commands that change it. */

static const char *program;
static char dir[] = "/tmp/us-hosts-XXXXXX", path[64];
static struct hosts *hosts;

static int setup(void **state)
{
    if (!mkdtemp(dir))
        return -1;
    (void)snprintf(path, sizeof(path), "%s/hosts.json", dir);
    return 0;
}

static int teardown(void **state)
{
    return rmdir(dir);
}

static int start(void **state)
{
    hosts = calloc(1, sizeof(*hosts));
    return hosts ? 0 : -1;
}

static int end(void **state)
{
    free(hosts);
    (void)unlink(path);
    return 0;
}

/* Keys of nobody, told apart by a number. */
static const struct public_key *key(unsigned n)
{
    static struct public_key keys[4];
    struct public_key *made = &keys[n % 4];

    memset(made, 0x5a, sizeof(*made));
    memcpy(made->bytes, &n, sizeof(n));
    return made;
}

static int allow(const char *group, const char *name, unsigned n)
{
    return hosts_allow(hosts, group, name, key(n), NULL);
}

static void assert_owner(unsigned n, const char *group, const char *name)
{
    const struct host *host = hosts_find(hosts, key(n));

    assert_int_equal(host == NULL, name == NULL);
    if (host) {
        assert_string_equal(host->group, group);
        assert_string_equal(host->name, name);
    }
}

static void test_rules(void **state)
{
    static const struct public_key no_key;

    assert_int_equal(allow("one", "hosta", 1), 0);
    assert_int_equal(allow("one", "hosta", 1), 0); /* once more is no change */
    assert_int_equal(hosts->host[0].n_keys, 1);
    assert_int_equal(allow("one", "hosta", 2), 0);
    assert_int_equal(allow("one", "hosta", 3), -ENOSPC);
    assert_int_equal(allow("one", "hostb", 2), -EEXIST);
    assert_int_equal(allow("two", "hosta", 2), -EEXIST);
    assert_int_equal(allow("two", "hosta", 3), 0);
    assert_int_equal(hosts->n, 2);
    assert_int_equal(allow("one", "Hosta", 4), -EINVAL);
    assert_int_equal(allow("../one", "hosta", 4), -EINVAL);
    assert_int_equal(allow("", "hosta", 4), -EINVAL);
    assert_int_equal(hosts_allow(hosts, "one", "hostc", &no_key, NULL), -EINVAL);
    assert_owner(1, "one", "hosta");
    assert_owner(2, "one", "hosta");
    assert_owner(3, "two", "hosta");
    assert_owner(4, NULL, NULL);

    assert_int_equal(hosts_forbid(hosts, "one", "hostb", NULL, NULL), -ENOENT);
    assert_int_equal(hosts_forbid(hosts, "one", "hosta", key(3), NULL), -ENOENT);
    assert_int_equal(hosts_forbid(hosts, "one", "hosta", key(1), NULL), 0);
    assert_owner(1, NULL, NULL);
    assert_owner(2, "one", "hosta");
    assert_int_equal(hosts_forbid(hosts, "one", "hosta", key(2), NULL), 0); /* its last one */
    assert_int_equal(hosts->n, 1);
    assert_owner(3, "two", "hosta");
    assert_int_equal(hosts_forbid(hosts, "two", "hosta", NULL, NULL), 0);
    assert_int_equal(hosts->n, 0);
}

static void test_number_is_bounded(void **state)
{
    char name[16];

    for (unsigned i = 0; i <= HOSTS_MAX; i++) {
        (void)snprintf(name, sizeof(name), "host-%u", i);
        assert_int_equal(allow("one", name, i), i < HOSTS_MAX ? 0 : -ENOSPC);
    }
    assert_int_equal(allow("one", "host-7", HOSTS_MAX), 0); /* a second key of one */
}

static void write_text(const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

#define FILE_OF(list) "{\"version\": 1, \"hosts\": [" list "]}"
#define HOST_OF(group, name, keys)                                                                 \
    "{\"group\": \"" group "\", \"host\": \"" name "\", \"keys\": [" keys "]}"
#define QUOTED(text) "\"" text "\""

static void test_file(void **state)
{
    struct hosts *read;

    assert_int_equal(hosts_load(path, &read, NULL), 0); /* none yet */
    assert_int_equal(read->n, 0);
    free(read);
    assert_int_equal(allow("one", "hosta", 1), 0);
    assert_int_equal(allow("one", "hosta", 2), 0);
    assert_int_equal(allow("two", "hosta", 3), 0);
    assert_int_equal(hosts_save(hosts, path, NULL), 0);
    assert_int_equal(hosts_load(path, &read, NULL), 0);
    assert_memory_equal(read, hosts, sizeof(*read));
    free(read);
    write_text(FILE_OF(HOST_OF("one", "hosta", QUOTED(KEY_1) ", " QUOTED(KEY_2)) ", " HOST_OF(
        "two", "hosta", QUOTED(KEY_3))));
    assert_int_equal(hosts_load(path, &read, NULL), 0);
    assert_int_equal(read->n, 2);
    free(read);
}

static void test_what_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"version\": 2, \"hosts\": []}",
        "{\"version\": 1, \"hosts\": {}}",
        "{\"version\": 1, \"hosts\": [], \"more\": 1}",
        FILE_OF("") "x",
        FILE_OF("{}"),
        FILE_OF("1"),
        FILE_OF(HOST_OF("one", "hosta", "")),
        FILE_OF(HOST_OF("one", "hosta", "1")),
        FILE_OF(HOST_OF("one", "hosta", QUOTED("ed25519:AA"))),
        FILE_OF(HOST_OF("one", "Hosta", QUOTED(KEY_1))),
        FILE_OF(HOST_OF("one/two", "hosta", QUOTED(KEY_1))),
        FILE_OF(HOST_OF("one", "hosta", QUOTED(KEY_1) ", " QUOTED(KEY_1))),
        FILE_OF(HOST_OF("one", "hosta", QUOTED(KEY_1) ", " QUOTED(KEY_2) ", " QUOTED(KEY_3))),
        FILE_OF(HOST_OF("one", "a", QUOTED(KEY_1)) ", " HOST_OF("one", "b", QUOTED(KEY_1))),
        FILE_OF(HOST_OF("one", "a", QUOTED(KEY_1)) ", " HOST_OF("one", "a", QUOTED(KEY_2))),
        "{\"version\": 1, \"hosts\": [{\"host\": \"a\", \"keys\": [" QUOTED(KEY_1) "]}]}",
    };
    struct hosts *read;
    struct err err;

    for (size_t i = 0; i < N_OF(bad); i++) {
        write_text(bad[i]);
        if (hosts_load(path, &read, &err) != -EBADMSG)
            fail_msg("case %zu", i);
        assert_non_null(strstr(err.text, path));
    }
}

static void assert_says(struct witness_run *w, const char *command, int status, const char *text)
{
    char said[1024];

    if (witness_run_command(w, command, said, sizeof(said)) != status || !strstr(said, text))
        fail_msg("%s: %s", command, said);
}

static void test_commands(void **state)
{
    struct witness_run w;

    witness_run_init(&w, program);
    assert_says(&w, "hosts", 0, "No hosts");
    assert_says(&w, "allow hosta " KEY_1, 0, "");
    assert_says(&w, "allow hosta " KEY_2 " --group two", 0, "");
    assert_says(&w, "hosts", 0, "default              hosta                " KEY_1 "\n");
    assert_says(&w, "hosts", 0, "two                  hosta                " KEY_2 "\n");
    assert_says(&w, "hosts --json", 0, "\"group\": \"two\"");
    assert_says(&w, "allow hostb " KEY_2, 1, "that key is hosta's, of group two");
    assert_says(&w, "allow hostb ed25519:x", 1, "understudy-witness: ");
    assert_says(&w, "forbid hosta " KEY_2, 1, "that is not a key of hosta in group default");
    assert_says(&w, "forbid hosta " KEY_2 " --group two", 0, "");
    assert_says(&w, "forbid hosta --group two", 1, "there is no host hosta in group two");
    assert_says(&w, "key use", 1, "there is no next key");
    assert_says(&w, "key bogus", 1, "only \"new\" and \"use\"");
    assert_says(&w, "allow hosta", 2, "usage: understudy-witness allow HOST KEY");
    assert_says(&w, "bogus", 2, "there is no command \"bogus\"");
    witness_run_done(&w);
}

/* What root does in the directory of a daemon that is another user, that user can read. */
static void test_files_belong_to_the_directorys_owner(void **state)
{
    enum { NOBODY = 65534 };
    static const char *const names[] = {"host.key", "hosts.json"};
    struct witness_run w;
    struct stat st;
    char name[128];

    witness_run_init(&w, program);
    (void)snprintf(name, sizeof(name), "%s/host.key", w.dir);
    assert_int_equal(unlink(name), 0);
    assert_int_equal(chown(w.dir, NOBODY, NOBODY), 0);
    assert_says(&w, "key", 0, "ed25519:");
    assert_says(&w, "allow hosta " KEY_1, 0, "");
    for (size_t i = 0; i < N_OF(names); i++) {
        (void)snprintf(name, sizeof(name), "%s/%s", w.dir, names[i]);
        assert_int_equal(stat(name, &st), 0);
        assert_int_equal(st.st_uid, NOBODY);
        assert_int_equal(st.st_gid, NOBODY);
        assert_int_equal(st.st_mode & 07777, 0600);
    }
    witness_run_done(&w);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rules, start, end),
        cmocka_unit_test_setup_teardown(test_number_is_bounded, start, end),
        cmocka_unit_test_setup_teardown(test_file, start, end),
        cmocka_unit_test_setup_teardown(test_what_is_refused, start, end),
        cmocka_unit_test(test_commands),
        cmocka_unit_test(test_files_belong_to_the_directorys_owner),
    };

    program = argc > 1 ? argv[1] : "understudy-witness";
    return cmocka_run_group_tests(tests, setup, teardown);
}
