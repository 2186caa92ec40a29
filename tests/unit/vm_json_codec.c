/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/vm_json.h"
#include "unit.h"

static const char golden[] =
    "{\"name\":\"web\",\"memory_bytes\":268435456,\"cpus\":2,\"machine\":\"pc-i440fx-7.2\","
    "\"cpu\":\"qemu64\",\"accel\":\"tcg\",\"kernel\":\"/k\",\"initrd\":\"/i\",\"append\":\"quiet\","
    "\"firmware\":\"\",\"virtio\":\"legacy\",\"nics\":[{\"mac\":\"52:54:00:12:34:56\",\"bridge\":"
    "\"br0\"}],"
    "\"disks\":[{\"path\":\"/d\",\"size_bytes\":1073741824,\"serial\":\"s1\","
    "\"read_only\":false,\"cache\":\"writeback\"}],"
    "\"qemu_args\":[\"-device\",\"virtio-rng-pci\"],\"protect\":{\"standby\":\"hostb\","
    "\"interval_min_ns\":5000000,\"interval_max_ns\":500000000,\"output\":\"hold\","
    "\"copy_rate_bytes\":1000000,\"engine\":\"remus\",\"max_slowdown_permille\":100,"
    "\"outrun\":\"solo\"}}";

static struct vm_spec sample(void)
{
    return (struct vm_spec){
        .name = "web",
        .memory_bytes = 256 << 20,
        .cpus = 2,
        .machine = "pc-i440fx-7.2",
        .cpu_model = "qemu64",
        .accel = "tcg",
        .kernel = "/k",
        .initrd = "/i",
        .append = "quiet",
        .virtio = VM_VIRTIO_LEGACY,
        .n_nics = 1,
        .nics = {{.mac = {0x52, 0x54, 0, 0x12, 0x34, 0x56}, .bridge = "br0"}},
        .n_disks = 1,
        .disks =
            {{.path = "/d", .size_bytes = 1 << 30, .serial = "s1", .cache = VM_CACHE_WRITEBACK}},
        .n_qemu_args = 2,
        .qemu_args = {"-device", "virtio-rng-pci"},
        .protect = {.standby = "hostb",
                    .interval_min_ns = 5000000,
                    .interval_max_ns = 500000000,
                    .output = VM_OUTPUT_HOLD,
                    .engine = VM_ENGINE_REMUS,
                    .copy_rate_bytes = 1000000,
                    .max_slowdown_permille = 100,
                    .outrun = VM_OUTRUN_SOLO},
    };
}

static void test_golden(void **state)
{
    struct vm_spec s = sample();
    char *text;

    assert_int_equal(vm_json_encode(&s, &text), 0);
    assert_string_equal(text, golden);
    free(text);
}

static void test_back(void **state)
{
    struct vm_spec expected = sample(), s;
    struct err err = {""};

    memset(&s, 0xff, sizeof(s));
    assert_int_equal(vm_json_decode(golden, strlen(golden), &s, &err), 0);
    assert_memory_equal(&s, &expected, sizeof(s));
}

/* The largest definition there can be must pass. */
static void test_full(void **state)
{
    struct vm_spec s = sample(), back;
    struct err err = {""};
    char *text;

    memset(s.append, '"', sizeof(s.append) - 1);
    s.n_nics = VM_NICS_MAX;
    for (uint32_t i = 0; i < VM_NICS_MAX; i++)
        s.nics[i] =
            (struct vm_nic){.mac = {2, 0, 0, 0, 0, (uint8_t)i}, .bridge = "a23456789012345"};
    s.n_disks = VM_DISKS_MAX;
    for (uint32_t i = 0; i < VM_DISKS_MAX; i++) {
        struct vm_disk *disk = &s.disks[i];

        *disk = (struct vm_disk){.size_bytes = UINT64_C(64) << 40,
                                 .serial = "a2345678901234567890",
                                 .read_only = true,
                                 .cache = VM_CACHE_WRITETHROUGH};
        memset(disk->path, '"', sizeof(disk->path) - 1);
        disk->path[0] = '/';
        disk->path[1] = (char)('a' + i);
    }
    s.n_qemu_args = VM_ARGS_MAX;
    for (uint32_t i = 0; i < VM_ARGS_MAX; i++)
        memset(s.qemu_args[i], '\\', VM_ARG_LEN_MAX - 1);
    assert_int_equal(vm_json_encode(&s, &text), 0);
    assert_int_equal(vm_json_decode(text, strlen(text), &back, &err), 0);
    assert_memory_equal(&s, &back, sizeof(s));
    free(text);
}

/* A record of a host that did not know the newest keys yet. */
static void test_old(void **state)
{
    const char *at = strstr(golden, ",\"engine\"");
    struct vm_spec s;
    struct err err = {""};
    char text[2048];

    (void)snprintf(text, sizeof(text), "%.*s}}", (int)(at - golden), golden);
    assert_int_equal(vm_json_decode(text, strlen(text), &s, &err), 0);
    assert_int_equal(s.protect.engine, VM_ENGINE_DEFAULT);
    assert_int_equal(s.protect.max_slowdown_permille, VM_SLOWDOWN_DEFAULT_PERMILLE);
    assert_int_equal(s.protect.outrun, VM_OUTRUN_THROTTLE);
}

/* Such a host's VM has the devices that were the only ones then. */
static void test_old_devices(void **state)
{
    static const char key[] = "\"virtio\":\"legacy\",";
    const char *at = strstr(golden, key);
    struct vm_spec s;
    struct err err = {""};
    char text[2048];

    (void)snprintf(text, sizeof(text), "%.*s%s", (int)(at - golden), golden, at + strlen(key));
    assert_int_equal(vm_json_decode(text, strlen(text), &s, &err), 0);
    assert_int_equal(s.virtio, VM_VIRTIO_TRANSITIONAL);
}

/* Replaces the first `from` in the golden text by `to`, and gives what decoding says. */
static const char *twisted(const char *from, const char *to)
{
    static struct err err;
    char text[2048];
    const char *at = strstr(golden, from);
    struct vm_spec s;

    assert_non_null(at);
    (void)snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - golden), golden, to,
                   at + strlen(from));
    err.text[0] = '\0';
    assert_int_equal(vm_json_decode(text, strlen(text), &s, &err), -EPROTO);
    return err.text;
}

static void test_refusals(void **state)
{
    assert_string_equal(twisted("{\"name\"", "{\"extra\":1,\"name\""),
                        "1 object item(s) left unpacked: extra");
    assert_string_equal(twisted("\"cpus\":2,", ""), "Object item not found: cpus");
    assert_string_equal(twisted("\"cpus\":2", "\"cpus\":\"2\""), "Expected integer, got string");
    assert_string_equal(twisted("\"cpus\":2", "\"cpus\":-1"), "a number is out of range");
    assert_string_equal(twisted("\"cpus\":2", "\"cpus\":4294967298"), "a number is out of range");
    assert_string_equal(twisted("\"cpus\":2", "\"cpus\":2.0"), "Expected integer, got real");
    assert_string_equal(twisted("\"cpus\":2", "\"cpus\":65"), "cpus: 65 is not in 1 to 64");
    assert_string_equal(twisted("268435456", "268435457"),
                        "memory: not a whole number of MiB from 16M to 1024G");
    assert_non_null(strstr(twisted("268435456", "99999999999999999999"), "too big integer"));
    assert_string_equal(twisted("\"web\"", "\"../web\""),
                        "name: \"../web\" is not a name (a-z, 0-9 and -, 63 at most)");
    assert_string_equal(twisted("\"/k\"", "\"k\""), "kernel: \"k\" is not an absolute path");
    assert_string_equal(twisted("\"legacy\"", "\"modern\""),
                        "virtio: must be \"legacy\" or \"transitional\"");
    assert_string_equal(twisted("\"tcg\"", "\"xen\""),
                        "accel: \"xen\" is not an accelerator (tcg, kvm)");
    assert_string_equal(twisted("52:54:00:12:34:56", "52:54:00:12:34:5g"),
                        "nics[0].mac: not a MAC address");
    assert_string_equal(twisted("\"bridge\":\"br0\"", "\"bridge\":\"br0\",\"x\":1"),
                        "nics[0]: 1 object item(s) left unpacked: x");
    assert_string_equal(twisted("br0", "a234567890123456"), "bridge: longer than 15 bytes");
    assert_string_equal(twisted("\"/d\"", "\"d\""), "disks[0].path: \"d\" is not an absolute path");
    assert_non_null(strstr(twisted("\"/d\"", "\"\""), "disks[0].path: \"\": write it without"));
    assert_non_null(strstr(twisted("\"/d\"", "\"/a/../d\""), "disks[0].path: \"/a/../d\": write"));
    assert_string_equal(twisted("\"/d\"", "\"/d\\n\""), "disks[0].path: has a control character");
    assert_string_equal(twisted("1073741824", "1073741825"),
                        "disks[0].size: 1073741825 is not a multiple of 4096; the nearest is "
                        "1073741824");
    assert_string_equal(twisted("1073741824", "-4096"), "disks[0].size_bytes: out of range");
    assert_string_equal(twisted("1073741824", "0"), "disks[0].size: not given");
    assert_string_equal(twisted("s1", "s1,x"), "disks[0].serial: \"s1,x\" has other characters "
                                               "than a-z, A-Z, 0-9 and ._-+:");
    assert_string_equal(twisted("s1", "a23456789012345678901"), "serial: longer than 20 bytes");
    assert_string_equal(twisted("\"writeback\"", "\"unsafe\""),
                        "disks[0].cache: must be \"writeback\" or \"writethrough\"");
    assert_string_equal(twisted("\"read_only\":false", "\"read_only\":0"),
                        "disks[0]: Expected true or false, got integer");
    assert_string_equal(twisted("\"read_only\":false,", ""),
                        "disks[0]: Object item not found: read_only");
    assert_string_equal(twisted("1000000,", "1000,"),
                        "protect.copy_rate: less than 64K a second, or too much");
    assert_string_equal(twisted("1000000,", "-1,"), "protect: a number is out of range");
    assert_string_equal(twisted("\"remus\"", "\"colo\""),
                        "protect.engine: must be \"default\" or \"remus\"");
    assert_string_equal(twisted("\"solo\"", "\"\""),
                        "protect.outrun: must be \"throttle\" or \"solo\"");
    assert_string_equal(twisted(":100,", ":9,"), "protect.max_slowdown: not within 1% to 90%");
    assert_string_equal(twisted(":100,", ":901,"), "protect.max_slowdown: not within 1% to 90%");
    assert_string_equal(twisted(":100,", ":-1,"), "protect: a number is out of range");
    assert_string_equal(twisted(":100,", ":4294967396,"), "protect: a number is out of range");
    assert_string_equal(twisted("\"outrun\"", "\"outran\""),
                        "protect: 1 object item(s) left unpacked: outran");
    assert_string_equal(twisted("\"-device\"", "7"), "qemu_args[0]: not a string");
    assert_string_equal(twisted("[\"-device\",\"virtio-rng-pci\"]", "{}"),
                        "nics, disks and qemu_args must be lists");
    assert_string_equal(twisted("\"hold\"", "\"drop\""), "protect.output: not \"hold\"");
    assert_string_equal(twisted("500000000", "4000000"),
                        "protect.interval.min: longer than the longest interval");
    assert_non_null(strstr(twisted("quiet", "a\\u0000b"), "not JSON: "));
    assert_non_null(strstr(twisted("\"cpus\":2", "\"cpus\":2,\"cpus\":2"), "duplicate object key"));
    assert_non_null(strstr(twisted("}}", "}}x"), "not JSON: "));
    assert_string_equal(twisted(golden, "[]"), "Expected object, got array");
}

static void test_mac(void **state)
{
    static const char *const bad[] = {"",
                                      "52:54:00:12:34",
                                      "52-54-00-12-34-56",
                                      "52:54:00:12:34:5",
                                      "52:54:00:12:34:567",
                                      " 2:54:00:12:34:56",
                                      "+2:54:00:12:34:56",
                                      "0x:54:00:12:34:56"};
    uint8_t mac[6] = {0};
    char text[18];

    for (size_t i = 0; i < N_OF(bad); i++)
        assert_int_equal(mac_parse(bad[i], mac), -EINVAL);
    assert_int_equal(mac_parse("02:aB:ff:00:10:09", mac), 0);
    mac_format(mac, text);
    assert_string_equal(text, "02:ab:ff:00:10:09");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),      cmocka_unit_test(test_back),
        cmocka_unit_test(test_full),        cmocka_unit_test(test_old),
        cmocka_unit_test(test_old_devices), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_mac),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
