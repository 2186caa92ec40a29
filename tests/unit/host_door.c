/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "host_peer.h"
#include "plain_transport.h"
#include "unit.h"

/* understudyd's door: who is let in, who is not, and that nobody keeps others out. This test is the
 * peer, and whoever else comes; host_fake_guard.c is behind the door. Arguments: understudyd, the
 * stand-in. */

/* A key that this host does not know, or not yet. */
static struct identity *new_key(const struct host_run *h, const char *name)
{
    struct identity *identity;
    char path[64];
    struct err err;

    (void)snprintf(path, sizeof(path), "%s/%s", h->dir, name);
    assert_int_equal(identity_load(path, true, &identity, &err), 0);
    return identity;
}

static int knock(const struct host_run *h, struct hello_order order, char text[64],
                 struct transport **ret_room)
{
    return peer_knock(h, h->hosta, order, text, ret_room);
}

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- who is let in ---- */

static void test_refused(void **state)
{
    const struct host_run *h = *state;
    char text[64];

    assert_int_equal(knock(h, (struct hello_order){.from = "mallory", .vm = "web"}, text, NULL),
                     WIRE_REFUSED_UNKNOWN_PEER);
    assert_string_equal(text, "your key is known here by another name");
    assert_int_equal(host_run_logged(h, "says that it is mallory, but has the key of hosta"), 1);
    assert_int_equal(knock(h, (struct hello_order){.vm = "web", .version = 99}, NULL, NULL),
                     WIRE_REFUSED_VERSION);
    assert_int_equal(
        knock(h, (struct hello_order){.vm = "web", .channel = WIRE_CHANNEL_DATA}, text, NULL),
        WIRE_REFUSED_SESSION);
    assert_string_equal(text, "hostb has no such session");
    assert_int_equal(knock(h, (struct hello_order){.vm = "web", .resume = true}, NULL, NULL),
                     WIRE_REFUSED_SESSION);
    assert_int_equal(
        knock(h, (struct hello_order){.vm = "", .channel = WIRE_CHANNEL_ARBITER}, NULL, NULL),
        WIRE_REFUSED_SESSION);
    assert_string_equal(host_run_text(h, json_pack("{s:s}", "command", "status")),
                        "{\"host\":\"hostb\",\"vms\":[],\"ok\":true}");
}

/* The control connection makes a standby; the data connection goes to the same process. */
static void test_standby(void **state)
{
    const struct host_run *h = *state;
    struct transport *control, *data;
    char text[64];
    double before;

    assert_int_equal(knock(h, (struct hello_order){.vm = "web"}, text, &control), WIRE_OK);
    assert_string_equal(text, "web"); /* said by the standby, not by understudyd */
    assert_int_equal(
        knock(h, (struct hello_order){.vm = "web", .channel = WIRE_CHANNEL_DATA}, text, &data),
        WIRE_OK);
    assert_int_equal(host_run_number(h, "web", "adopted"), 1);
    assert_false(host_run_exists(h, "state/vms/web.json"));
    assert_string_equal(host_run_start_vm(h, "web", false),
                        "web: this host is its standby, or has taken it over");

    /* understudyd keeps no copy: the connection ends with its owner, not when understudyd would
     * have given it up. */
    before = seconds();
    assert_int_equal(kill(host_run_number(h, "web", "pid"), SIGKILL), 0);
    assert_true(peer_ended(data, 10000));
    assert_true(seconds() - before <= 2);
    peer_close(control);
    peer_close(data);
}

static void test_slow_standby(void **state)
{
    const struct host_run *h = *state;
    struct hello_order to_data = {.vm = "slow", .channel = WIRE_CHANNEL_DATA};
    struct transport *control, *data = peer_tls(peer_connect(h), TLS_DOOR, h->hosta, NULL);
    uint8_t byte = 'x';
    struct iovec iov = {&byte, 1};

    assert_int_equal(knock(h, (struct hello_order){.vm = "slow"}, NULL, &control), WIRE_OK);
    assert_true(peer_say(data, &to_data));
    assert_true(host_run_is_up(h)); /* a round trip: by now the data connection waits there */
    assert_string_equal(
        host_run_text(h, json_pack("{s:s, s:s}", "command", "failover", "vm", "slow")),
        "slow: is starting");
    assert_int_equal(transport_write_all(control, &iov, 1), 0);
    assert_int_equal(peer_hear(data, NULL), WIRE_OK);
    peer_close(data);
    peer_close(control);
}

static void test_failing_standby(void **state)
{
    const struct host_run *h = *state;

    assert_int_equal(knock(h, (struct hello_order){.vm = "crash"}, NULL, NULL), -1);
    assert_int_equal(knock(h, (struct hello_order){.vm = "refuse"}, NULL, NULL), -1);
    assert_false(host_run_exists(h, "state/vms/crash.ended.json"));
}

static void test_busy(void **state)
{
    const struct host_run *h = *state;
    char text[64];

    assert_string_equal(host_run_start_vm(h, "busy", false), "{\"ok\":true}");
    assert_int_equal(knock(h, (struct hello_order){.vm = "busy"}, text, NULL), WIRE_REFUSED_BUSY);
    assert_string_equal(text, "busy: runs here");
}

/* ---- who is not ---- */

static void test_unknown_key(void **state)
{
    const struct host_run *h = *state;
    struct identity *mallory = new_key(h, "mallory.key");
    char text[PUBLIC_KEY_TEXT];

    for (size_t i = 0; i < 3; i++)
        assert_int_equal(peer_knock(h, mallory, (struct hello_order){.vm = "web"}, NULL, NULL), -1);
    public_key_format(identity_public(mallory), text);
    assert_int_equal(host_run_logged(h, text), 1);
    assert_int_equal(host_run_logged(h, "connection from 127.0.0.1: its key is no peer's"), 1);
    identity_free(mallory);
}

/* Other protocols, and TLS with another purpose. */
static void test_strangers(void **state)
{
    const struct host_run *h = *state;
    static const char http[] = "GET / HTTP/1.0\r\n\r\n";

    for (size_t i = 0; i < 4; i++) {
        struct transport *plain = transport_tcp_new(peer_connect(h));
        struct transport *room = peer_tls(peer_connect(h), TLS_ROOM, h->hosta, NULL);
        struct iovec iov = {(void *)(uintptr_t)http, strlen(http)};

        if (i % 2)
            assert_int_equal(transport_write_all(plain, &iov, 1), 0);
        else
            assert_true(peer_say(plain, &(struct hello_order){.vm = "web"}));
        assert_true(peer_ended(plain, 4000)); /* before the time is up */
        assert_true(!peer_say(room, &(struct hello_order){.vm = "web"}) ||
                    peer_hear(room, NULL) == -1);
        peer_close(plain);
        peer_close(room);
    }
    assert_int_equal(host_run_logged(h, "it does not speak TLS 1.3 as a peer does"), 1);
}

/* What the start of a handshake looks like: a whole record's header, and a part of the record. */
static int half_open(const struct host_run *h)
{
    static const uint8_t part[] = {22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3};
    int sock = peer_connect(h);

    assert_int_equal(send(sock, part, sizeof(part), MSG_NOSIGNAL), sizeof(part));
    return sock;
}

/* Whoever says too little is sent away: before TLS, within it, and after it, also a peer. */
static void test_silence(void **state)
{
    const struct host_run *h = *state;
    struct transport *quiet[] = {
        transport_tcp_new(peer_connect(h)),
        transport_tcp_new(half_open(h)),
        peer_tls(peer_connect(h), TLS_DOOR, h->hosta, NULL),
    };
    uint8_t part[100] = {0};
    struct iovec iov = {part, sizeof(part)};
    double before = seconds();

    assert_int_equal(transport_write_all(quiet[2], &iov, 1), 0);
    for (size_t i = 0; i < N_OF(quiet); i++) {
        assert_true(peer_ended(quiet[i], 8000));
        peer_close(quiet[i]);
    }
    assert_true(seconds() - before <= 8);
    assert_int_equal(host_run_logged(h, "no hello in time"), 1);
}

static unsigned open_files(const struct host_run *h)
{
    char path[32];
    unsigned n = 0;
    DIR *dir;

    (void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)h->daemon);
    dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    (void)closedir(dir); /* only read */
    return n;
}

/* Hundreds who say nothing, or only half of it, do not keep a peer out; of those that wait there is
 * a fixed number, and so of what they cost. */
static void test_crowd(void **state)
{
    enum { CROWD = 400, WAITING = 64, FOR_THE_VMS = 16 };
    const struct host_run *h = *state;
    unsigned before = open_files(h);
    struct transport *room;
    int crowd[CROWD];
    char vm[16];

    for (size_t i = 0; i < CROWD; i++) {
        crowd[i] = i % 2 ? half_open(h) : peer_connect(h);
        if (i % 100 != 99)
            continue;
        (void)snprintf(vm, sizeof(vm), "vm%zu", i);
        assert_int_equal(knock(h, (struct hello_order){.vm = vm}, NULL, &room), WIRE_OK);
        peer_close(room);
    }
    assert_in_range(open_files(h), before + WAITING / 2, before + WAITING + FOR_THE_VMS);
    for (size_t i = 0; i < CROWD; i++)
        close(crowd[i]);
    assert_int_equal(knock(h, (struct hello_order){.vm = "last"}, NULL, &room), WIRE_OK);
    peer_close(room);
}

/* A peer that has shown its key is not pushed out by those who have not. */
static void test_crowd_behind_peer(void **state)
{
    enum { CROWD = 100 };
    const struct host_run *h = *state;
    struct hello_order to_data = {.vm = "slow", .channel = WIRE_CHANNEL_DATA};
    struct transport *control, *data = peer_tls(peer_connect(h), TLS_DOOR, h->hosta, NULL);
    uint8_t byte = 'x';
    struct iovec iov = {&byte, 1};
    int crowd[CROWD];

    assert_int_equal(knock(h, (struct hello_order){.vm = "slow"}, NULL, &control), WIRE_OK);
    assert_true(peer_say(data, &to_data));
    assert_true(host_run_is_up(h));
    for (size_t i = 0; i < CROWD; i++)
        crowd[i] = peer_connect(h);
    assert_true(host_run_is_up(h));
    assert_int_equal(transport_write_all(control, &iov, 1), 0);
    assert_int_equal(peer_hear(data, NULL), WIRE_OK);
    for (size_t i = 0; i < CROWD; i++)
        close(crowd[i]);
    peer_close(data);
    peer_close(control);
}

/* ---- changes of keys ---- */

static const char *change_peer(const struct host_run *h, const char *command,
                               const struct identity *key)
{
    char text[PUBLIC_KEY_TEXT];

    public_key_format(identity_public(key), text);
    return host_run_text(h, json_pack("{s:s, s:s, s:s, s:s}", "command", command, "name", "hosta",
                                      "address", "127.0.0.1:1", "key", text));
}

/* A peer changes its key: for a while both count. */
static void test_key_of_peer(void **state)
{
    static const char done[] = "{\"not_followed\":[],\"ok\":true}";
    struct host_run *h = *state;
    struct identity *next = new_key(h, "next.key"), *third = new_key(h, "third.key");
    struct hello_order order = {.vm = "web"};

    assert_string_equal(host_run_start_vm(h, "busy", false), "{\"ok\":true}");
    order.vm = "busy"; /* answers whoever is let in */
    assert_int_equal(peer_knock(h, next, order, NULL, NULL), -1);
    assert_string_equal(change_peer(h, "peer-add", next), done);
    assert_int_equal(host_run_number(h, "busy", "reloads"), 1);
    assert_non_null(strstr(change_peer(h, "peer-add", third), "hosta has 2 keys already"));
    assert_int_equal(peer_knock(h, h->hosta, order, NULL, NULL), WIRE_REFUSED_BUSY);
    assert_int_equal(peer_knock(h, next, order, NULL, NULL), WIRE_REFUSED_BUSY);
    assert_int_equal(peer_knock(h, third, order, NULL, NULL), -1);
    assert_string_equal(change_peer(h, "peer-remove", h->hosta), done);
    assert_int_equal(host_run_number(h, "busy", "reloads"), 2);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(peer_knock(h, h->hosta, order, NULL, NULL), -1);
        assert_int_equal(peer_knock(h, next, order, NULL, NULL), WIRE_REFUSED_BUSY);
        (void)host_run_end(h, SIGTERM); /* it stays so */
        host_run_start(h);
    }
    assert_true(host_run_number(h, "busy", "reloads") > 2); /* in case of a crash in between */
    identity_free(next);
    identity_free(third);
}

/* The key that this host shows; none when there is no TLS. */
static struct public_key shown(const struct host_run *h, const struct public_key *expected)
{
    struct transport *t = peer_tls(peer_connect(h), TLS_DOOR, h->hosta, expected);
    struct public_key key = {{0}};

    if (peer_say(t, &(struct hello_order){.vm = "busy"}) && peer_hear(t, NULL) > 0)
        key = *tls_peer_key(t);
    peer_close(t);
    return key;
}

/* The member of an answer that is a key. */
static struct public_key asked(const struct host_run *h, const char *command, const char *member)
{
    struct public_key key = {{0}};
    json_t *answer;
    struct err err;

    assert_int_equal(host_run_ask(h, json_pack("{s:s}", "command", command), &answer, &err), 0);
    if (json_object_get(answer, member))
        assert_int_equal(
            public_key_parse(json_string_value(json_object_get(answer, member)), &key, &err), 0);
    json_decref(answer);
    return key;
}

/* This host changes its key. */
static void test_own_key(void **state)
{
    struct host_run *h = *state;
    struct public_key first = asked(h, "key", "key"), next, now;

    assert_string_equal(host_run_start_vm(h, "busy", false), "{\"ok\":true}");
    now = shown(h, &first);
    assert_true(public_key_equal(&now, &first));
    assert_string_equal(host_run_text(h, json_pack("{s:s}", "command", "key-use")),
                        "there is no next key: understudy key new makes one");
    next = asked(h, "key-new", "next");
    assert_false(public_key_equal(&next, &first));
    now = asked(h, "key-new", "next"); /* it stays that one, and is not in use */
    assert_true(public_key_equal(&now, &next));
    now = asked(h, "key", "next");
    assert_true(public_key_equal(&now, &next));
    now = shown(h, &first);
    assert_true(public_key_equal(&now, &first));

    assert_string_equal(host_run_text(h, json_pack("{s:s}", "command", "key-use")),
                        "{\"not_followed\":[],\"ok\":true}");
    assert_int_equal(host_run_number(h, "busy", "reloads"), 1);
    for (size_t i = 0; i < 2; i++) {
        now = asked(h, "key", "key");
        assert_true(public_key_equal(&now, &next));
        now = asked(h, "key", "next");
        assert_true(public_key_none(&now));
        now = shown(h, &next);
        assert_true(public_key_equal(&now, &next));
        now = shown(h, &first); /* a peer that knows the old one only stays away */
        assert_true(public_key_none(&now));
        (void)host_run_end(h, SIGTERM);
        host_run_start(h);
    }
}

/* A connection whose key is removed ends, though it waits for nothing but the VM's process. */
static void test_removed_while_waiting(void **state)
{
    const struct host_run *h = *state;
    struct hello_order to_data = {.vm = "slow", .channel = WIRE_CHANNEL_DATA};
    struct identity *next = new_key(h, "next.key");
    struct transport *control, *data = peer_tls(peer_connect(h), TLS_DOOR, next, NULL);
    uint8_t byte = 'x';
    struct iovec iov = {&byte, 1};

    (void)change_peer(h, "peer-add", next);
    assert_int_equal(knock(h, (struct hello_order){.vm = "slow"}, NULL, &control), WIRE_OK);
    assert_true(peer_say(data, &to_data));
    assert_true(host_run_is_up(h));
    assert_false(peer_ended(data, 0));
    (void)change_peer(h, "peer-remove", next);
    assert_true(peer_ended(data, 2000));
    /* The process that was starting meanwhile is told once it runs. */
    assert_int_equal(transport_write_all(control, &iov, 1), 0);
    while (host_run_number(h, "slow", "pid") == 0)
        ; /* each question is a round trip; the test's own time limit bounds it */
    assert_int_equal(host_run_number(h, "slow", "reloads"), 1);
    peer_close(data);
    peer_close(control);
    identity_free(next);
}

/* Who does not take a change over is named. */
static void test_not_followed(void **state)
{
    const struct host_run *h = *state;

    assert_string_equal(host_run_start_vm(h, "old", false), "{\"ok\":true}");
    assert_string_equal(host_run_start_vm(h, "web", false), "{\"ok\":true}");
    assert_string_equal(change_peer(h, "peer-add", h->hosta),
                        "{\"not_followed\":[\"old: does not take the change over: unknown command "
                        "\\\"reload\\\"\"],"
                        "\"ok\":true}");
    assert_int_equal(host_run_number(h, "web", "reloads"), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, host_run_setup, host_run_teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(test_refused),
        TEST(test_standby),
        TEST(test_slow_standby),
        TEST(test_failing_standby),
        TEST(test_busy),
        TEST(test_unknown_key),
        TEST(test_strangers),
        TEST(test_silence),
        TEST(test_crowd),
        TEST(test_crowd_behind_peer),
        TEST(test_key_of_peer),
        TEST(test_own_key),
        TEST(test_removed_while_waiting),
        TEST(test_not_followed),
    };

    if (argc != 3 || !host_run_programs(argv[1], argv[2]))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
