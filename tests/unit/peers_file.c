/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/peers.h"
#include "keys.h"
#include "unit.h"

#define ADDRESS "192.0.2.2:7700"

static struct host_config config;
static char file[STATE_PATH_MAX];

static int setup(void **state)
{
    config = (struct host_config){.name = "hosta", .state_dir = "/tmp/peers_file.XXXXXX"};
    assert_non_null(mkdtemp(config.state_dir));
    (void)snprintf(file, sizeof(file), "%s/peers.json", config.state_dir);
    return 0;
}

static int teardown(void **state)
{
    (void)unlink(file);
    assert_int_equal(rmdir(config.state_dir), 0); /* nothing else was left there */
    return 0;
}

static struct public_key key(const char *text)
{
    struct public_key key;
    struct err err;

    assert_int_equal(public_key_parse(text, &key, &err), 0);
    return key;
}

/* A key for each number up to 255. */
static struct public_key numbered(unsigned i)
{
    return (struct public_key){.bytes = {(uint8_t)(i + 1), 1}};
}

static int add(const char *name, const char *address, const char *text, struct err *err)
{
    struct public_key k = key(text);

    return peers_add(&config, name, address, &k, err);
}

static int remove_key(const char *name, const char *text, struct err *err)
{
    struct public_key k = key(text);

    return peers_remove(&config, name, &k, err);
}

static void assert_known(const char *text, const char *name)
{
    struct public_key k = key(text);
    const struct host_peer *peer = host_config_peer_by_key(&config, &k);

    if (name)
        assert_string_equal(peer ? peer->name : "nobody", name);
    else
        assert_null(peer);
}

static void write_file(const char *text)
{
    FILE *f = fopen(file, "w");

    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void test_add_and_remove(void **state)
{
    struct err err = {""};

    assert_int_equal(add("hostb", ADDRESS, KEY_1, &err), 0);
    assert_int_equal(add("hostb", ADDRESS, KEY_1, &err), 0);
    assert_int_equal(config.n_peers, 1);
    assert_int_equal(config.peers[0].n_keys, 1);
    assert_int_equal(add("hostb", "[2001:db8::2]:7700", KEY_2, &err), 0);
    assert_string_equal(host_config_peer(&config, "hostb")->address, "[2001:db8::2]:7700");
    assert_int_equal(config.peers[0].n_keys, 2);
    assert_int_equal(add("hostb", ADDRESS, KEY_3, &err), -ENOSPC);
    assert_string_equal(err.text, "hostb has 2 keys already; remove the old one: understudy peer "
                                  "remove hostb KEY");
    assert_int_equal(add("hostc", ADDRESS, KEY_2, &err), -EEXIST);
    assert_string_equal(err.text, "this key is the one of hostb");
    assert_int_equal(add("hostc", ADDRESS, KEY_3, &err), 0);
    assert_known(KEY_1, "hostb");
    assert_known(KEY_2, "hostb");
    assert_known(KEY_3, "hostc");

    assert_int_equal(remove_key("hostb", KEY_3, &err), -ENOENT);
    assert_int_equal(remove_key("hostb", KEY_1, &err), 0);
    assert_known(KEY_1, NULL);
    assert_known(KEY_2, "hostb");
    assert_int_equal(remove_key("hostb", KEY_2, &err), -EINVAL);
    assert_string_equal(err.text, "hostb has no other key; to forget the peer: understudy peer "
                                  "remove hostb");
    assert_int_equal(peers_remove(&config, "hostb", NULL, &err), 0);
    assert_int_equal(peers_remove(&config, "hostb", NULL, &err), -ENOENT);
    assert_known(KEY_2, NULL);
    assert_known(KEY_3, "hostc");
}

static void test_bad_peers(void **state)
{
    static const struct {
        const char *name, *address, *error;
    } cases[] = {
        {"Hostb", ADDRESS, "\"Hostb\" is not a name (a-z, 0-9 and -, 63 at most)"},
        {"", ADDRESS, "\"\" is not a name (a-z, 0-9 and -, 63 at most)"},
        {"hosta", ADDRESS, "hosta is this host itself, not a peer"},
        {"hostb", "hostb:7700",
         "\"hostb:7700\" is not IP:PORT (as 192.0.2.1:7700 or [2001:db8::1]:7700)"},
        {"hostb", "", "\"\" is not IP:PORT (as 192.0.2.1:7700 or [2001:db8::1]:7700)"},
    };
    static char long_name[1000];
    struct public_key none = {{0}};
    struct err err;

    for (size_t i = 0; i < N_OF(cases); i++) {
        assert_int_equal(add(cases[i].name, cases[i].address, KEY_1, &err), -EINVAL);
        assert_string_equal(err.text, cases[i].error);
    }
    memset(long_name, 'a', sizeof(long_name) - 1);
    assert_int_equal(add(long_name, ADDRESS, KEY_1, &err), -EINVAL);
    assert_int_equal(add("hostb", long_name, KEY_1, &err), -EINVAL);
    assert_int_equal(peers_add(&config, "hostb", ADDRESS, &none, &err), -EINVAL);
    assert_int_equal(config.n_peers, 0);
}

static void test_full(void **state)
{
    char name[16];
    struct err err;

    for (unsigned i = 0; i <= HOST_PEERS_MAX; i++) {
        struct public_key k = numbered(i);

        (void)snprintf(name, sizeof(name), "h%u", i);
        assert_int_equal(peers_add(&config, name, ADDRESS, &k, &err),
                         i < HOST_PEERS_MAX ? 0 : -ENOSPC);
    }
    assert_string_equal(err.text, "16 peers are the most that a host has");
    /* The one in the middle goes; those behind it keep their keys. */
    assert_int_equal(peers_remove(&config, "h7", NULL, &err), 0);
    for (unsigned i = 0; i < HOST_PEERS_MAX; i++) {
        struct public_key k = numbered(i);
        const struct host_peer *peer = host_config_peer_by_key(&config, &k);

        (void)snprintf(name, sizeof(name), "h%u", i);
        assert_true(i == 7 ? !peer : strcmp(peer->name, name) == 0);
    }
}

static void test_file(void **state)
{
    struct host_config before;
    struct stat st;
    struct err err;

    assert_int_equal(peers_load(&config, &err), 0); /* no file, no peers */
    assert_int_equal(add("hostb", ADDRESS, KEY_1, &err), 0);
    assert_int_equal(add("hostb", ADDRESS, KEY_2, &err), 0);
    assert_int_equal(add("hostc", "[2001:db8::3]:1", KEY_3, &err), 0);
    assert_int_equal(peers_save(&config, &err), 0);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);

    before = config;
    config.n_peers = 0;
    memset(config.peers, 0, sizeof(config.peers));
    assert_int_equal(peers_load(&config, &err), 0);
    assert_memory_equal(&config, &before, sizeof(config));

    /* What is in force stays so when the file is damaged. */
    write_file("{\"peers\": [");
    assert_int_equal(peers_load(&config, &err), -EBADMSG);
    assert_memory_equal(&config, &before, sizeof(config));

    assert_int_equal(unlink(file), 0);
    assert_int_equal(peers_load(&config, &err), 0);
    assert_int_equal(config.n_peers, 0);
}

#define PEER(name, keys)                                                                           \
    "{\"name\": \"" name "\", \"address\": \"192.0.2.2:1\", \"keys\": [" keys "]}"
#define Q(text) "\"" text "\""

static void test_damaged_files(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        {"[]", ": Expected object, got array"},
        {"{}", ": Object item not found: peers"},
        {"{\"peers\": 7}", ": \"peers\" is not a list"},
        {"{\"peers\": [], \"x\": 1}", ": 1 object item(s) left unpacked: x"},
        {"{\"peers\": [], \"peers\": []}", ": duplicate object key"},
        {"{\"peers\": [7]}", ": peers[0]: Expected object, got integer"},
        {"{\"peers\": [{\"name\": \"hostb\"}]}", ": peers[0]: Object item not found: address"},
        {"{\"peers\": [" PEER("hostb", "") "]}", ": peers[0]: hostb has no key"},
        {"{\"peers\": [" PEER("hostb", "7") "]}", ": peers[0]: a key is no text"},
        {"{\"peers\": [" PEER("hosta", Q(KEY_1)) "]}",
         ": peers[0]: hosta is this host itself, not a peer"},
        {"{\"peers\": [" PEER("hostb", Q(KEY_1) "," Q(KEY_1)) "]}",
         ": peers[0]: the key " KEY_1 " is there twice"},
        {"{\"peers\": [" PEER("hostb", Q(KEY_1)) "," PEER("hostc", Q(KEY_1)) "]}",
         ": peers[1]: the key " KEY_1 " is there twice"},
        {"{\"peers\": [" PEER("hostb", Q(KEY_1)) "," PEER("hostb", Q(KEY_2)) "]}",
         ": peers[1]: hostb is there twice"},
        {"{\"peers\": [" PEER("hostb", Q(KEY_1) "," Q(KEY_2) "," Q(KEY_3)) "]}",
         ": peers[0]: hostb has 2 keys already; remove the old one: understudy peer remove hostb "
         "KEY"},
        {"{\"peers\": [" PEER("hostb", "\"ed25519:x\"") "]}",
         ": peers[0]: 'ed25519:x' is no public key: 44 characters of Base64 follow ed25519:"},
    };

    for (size_t i = 0; i < N_OF(cases); i++) {
        struct err err = {""};

        write_file(cases[i].text);
        assert_int_equal(peers_load(&config, &err), -EBADMSG);
        if (strncmp(err.text, file, strlen(file)) != 0 || !strstr(err.text, cases[i].error))
            fail_msg("\"%s\" for %s", err.text, cases[i].text);
        assert_int_equal(config.n_peers, 0);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_add_and_remove), TEST(test_bad_peers),     TEST(test_full),
        TEST(test_file),           TEST(test_damaged_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
