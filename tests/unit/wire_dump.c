/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "capture.h"
#include "golden/hello.h"
#include "golden/msg.h"
#include "golden/register.h"
#include "wire/msg.h"

/* The dump tool shows every kind of message, and says where it stopped. */

static const char *program;
static char dir[] = "/tmp/us-dump-XXXXXX";
static char path[64], output[8192];

static int setup(void **state)
{
    if (!mkdtemp(dir))
        return -1;
    (void)snprintf(path, sizeof(path), "%s/web", dir); /* a register is named for its VM */
    return 0;
}

static int teardown(void **state)
{
    (void)unlink(path);
    return rmdir(dir);
}

/* Runs the tool on the file; fills in `output`, returns the exit status. */
static int dump(void)
{
    char command[256];

    (void)snprintf(command, sizeof(command), "'%s' '%s' 2>&1", program, path);
    return capture(command, output, sizeof(output));
}

static void put(const char *mode, const uint8_t *bytes, size_t n)
{
    FILE *f = fopen(path, mode);

    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void assert_shows(const char *text)
{
    if (!strstr(output, text))
        fail_msg("not shown: %s", text);
}

static void test_register(void **state)
{
    put("wb", golden_register, sizeof(golden_register));
    assert_int_equal(dump(), 0);
    assert_string_equal(output, "web {term 2, paired, owner \"hosta\", standby \"hostb\"}\n");
    put("r+b", (const uint8_t *)"undrsreg?", 9);
    assert_int_equal(dump(), 1);
    assert_shows("damaged");
}

static void test_control(void **state)
{
    put("wb", golden_hello, sizeof(golden_hello));
    for (int i = 0; i < 9; i++)
        put("ab", golden_msgs[i].bytes, golden_msgs[i].n);
    assert_int_equal(dump(), 0);
    assert_shows("hello versions 1-3 channel control status 3 resume 1 "
                 "features 0x1122334455667788 session a0a1a2a3a4a5a6a7a8a9aaabacadaeaf "
                 "vm \"web\" from \"hosta\" text \"busy with hostc\"\n");
    assert_shows("72623859790382856 heartbeat seq 258 term 7 paired 1\n");
    assert_shows(" offer {}\n");
    assert_shows(" ready term 7 disks 2: known/b0b1b2b3b4b5b6b7b8b9babbbcbdbebf empty\n");
    assert_shows(" refuse \"no room\"\n");
    assert_shows(" ack term 8 durable 258\n");
    assert_shows(" bye VM died\n");
    assert_shows(" addresses 2: {nic 1, 192.0.2.7, vlan 258, age 260 s}"
                 " {nic 7, fe80::1234 router, vlan 0, age 0 s}\n");
    assert_shows(" disk-ranges differ disk 7 mark 259 last 2: 4096+8192 65536+258\n");
    assert_shows(" frames nic 7 14 bytes, header e0e1e2e3e4e5e6e7e8e9eaebeced\n");
}

static void put_hello(enum wire_channel channel)
{
    struct wire_hello hello = {
        .version_min = 2, .version_max = 2, .channel = (uint8_t)channel, .from = "hosta"};
    uint8_t raw[WIRE_HELLO_BYTES];

    if (channel != WIRE_CHANNEL_ARBITER) {
        hello.session[0] = 1;
        strcpy(hello.vm, "web");
    }
    wire_hello_encode(&hello, raw);
    put("wb", raw, sizeof(raw));
}

static void test_data(void **state)
{
    put_hello(WIRE_CHANNEL_DATA);
    for (int i = 9; i < 14; i++)
        put("ab", golden_msgs[i].bytes, golden_msgs[i].n);
    assert_int_equal(dump(), 0);
    assert_shows(" epoch-begin pair term 9 flushed\n");
    assert_shows(" pages 4 in 48 raw/48: 258=zero 260=unchanged 65536=changes/26"
                 " 4503599627370495=duplicate-258\n");
    assert_shows(" state qemu/pc-q35-7.2 258+260 of 1000 delta zstd/3\n");
    assert_shows(" disk 4: {disk 1, write 4096+260 lz4/3}"
                 " {disk 7, zero punch 2211975595520+1099511627776}"
                 " {disk 2, digest 131072+65536 d0d1d2d3d4d5d6d7d8d9dadbdcdddedf}"
                 " {mark 259 sync}\n");
    assert_shows(
        " epoch-end pages 2 disk pieces 4 state 1000 digest d0d1d2d3d4d5d6d7d8d9dadbdcdddedf\n");
}

static void test_arbiter(void **state)
{
    put_hello(WIRE_CHANNEL_ARBITER);
    for (int i = 14; i < 18; i++)
        put("ab", golden_msgs[i].bytes, golden_msgs[i].n);
    assert_int_equal(dump(), 0);
    assert_shows(" arbiter-request swap vm \"web\""
                 " expected {term 6, solo, owner \"hosta\", standby \"\"}"
                 " wanted {term 7, paired, owner \"hosta\", standby \"hostb\"}\n");
    assert_shows(" arbiter-reply conflict"
                 " current {term 7, paired, owner \"hosta\", standby \"hostb\"}\n");
    assert_shows(" arbiter-list after \"db\"\n");
    assert_shows(" arbiter-registers 2 and more"
                 " mail {term 6, solo, owner \"hosta\", standby \"\"}"
                 " web {term 7, paired, owner \"hosta\", standby \"hostb\"}\n");
}

static void test_where_it_stops(void **state)
{
    char where[64];

    put("wb", golden_hello, sizeof(golden_hello));
    put("ab", golden_msgs[0].bytes, golden_msgs[0].n);
    put("ab", golden_msgs[2].bytes, golden_msgs[2].n - 1);
    assert_int_equal(dump(), 1);
    assert_shows("heartbeat");
    (void)snprintf(where, sizeof(where), "byte %zu: cut off",
                   sizeof(golden_hello) + golden_msgs[0].n + golden_msgs[2].n - 1);
    assert_shows(where);
    put("wb", golden_hello, sizeof(golden_hello));
    put("ab", golden_msgs[10].bytes, golden_msgs[10].n); /* pages on a control channel */
    assert_int_equal(dump(), 1);
    assert_shows("message of type 17 on channel 1");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_register),       cmocka_unit_test(test_control),
        cmocka_unit_test(test_data),           cmocka_unit_test(test_arbiter),
        cmocka_unit_test(test_where_it_stops),
    };

    program = argc > 1 ? argv[1] : "understudy-dump";
    return cmocka_run_group_tests(tests, setup, teardown);
}
