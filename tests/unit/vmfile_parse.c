/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/vmfile.h"
#include "io/vm_json.h"
#include "unit.h"

#define HEAD "name: web\nmemory: 256M\nkernel: /boot/vmlinuz\n"

static int parse(const char *text, struct vm_spec *spec, struct err *err)
{
    return vmfile_parse(text, strlen(text), "/etc/web.yaml", spec, err);
}

static void test_defaults(void **state)
{
    struct vm_spec s;
    struct err err = {""};

    assert_int_equal(parse(HEAD, &s, &err), 0);
    assert_string_equal(s.name, "web");
    assert_int_equal(s.memory_bytes, 256 << 20);
    assert_int_equal(s.cpus, 1);
    assert_string_equal(s.machine, "");
    assert_string_equal(s.cpu_model, "qemu64");
    assert_string_equal(s.accel, "");
    assert_int_equal(s.virtio, VM_VIRTIO_LEGACY);
    assert_int_equal(s.n_nics, 0);
    assert_int_equal(s.n_disks, 0);
    assert_int_equal(s.protect.copy_rate_bytes, 0);
    assert_string_equal(s.protect.standby, "");
    assert_int_equal(s.protect.interval_min_ns, 2000000);
    assert_int_equal(s.protect.interval_max_ns, 500000000);
    assert_int_equal(s.protect.output, VM_OUTPUT_HOLD);
    assert_int_equal(s.protect.engine, VM_ENGINE_DEFAULT);
    assert_int_equal(s.protect.max_slowdown_permille, VM_SLOWDOWN_DEFAULT_PERMILLE);
    assert_int_equal(s.protect.outrun, VM_OUTRUN_THROTTLE);
}

static void test_everything(void **state)
{
    struct vm_spec s;
    struct err err = {""};

    assert_int_equal(parse("name: web\n"
                           "memory: 2G\n"
                           "cpus: 2\n"
                           "machine: pc-i440fx-7.2\n"
                           "cpu: qemu64,-cx16\n"
                           "kernel: vmlinuz\n"
                           "initrd: ./initrd\n"
                           "append: console=ttyS0 quiet\n"
                           "virtio: transitional\n"
                           "nics:\n"
                           "  - mac: 52:54:00:AB:cd:01\n"
                           "    bridge: br0\n"
                           "  - bridge: br1\n"
                           "qemu_args: [-device, virtio-rng-pci, '']\n"
                           "disks:\n"
                           "  - path: web.img\n"
                           "    size: 10G\n"
                           "  - path: /dev/vg0/web\n"
                           "    size: 8192\n"
                           "    serial: data_1\n"
                           "    read_only: true\n"
                           "    cache: writethrough\n"
                           "protect:\n"
                           "  standby: hostb\n"
                           "  copy_rate: 100M\n"
                           "  interval: {min: 2500us, max: 1s}\n"
                           "  output: hold\n"
                           "  engine: remus\n"
                           "  max_slowdown: 10%\n"
                           "  outrun: solo\n",
                           &s, &err),
                     0);
    assert_int_equal(s.memory_bytes, UINT64_C(2) << 30);
    assert_int_equal(s.cpus, 2);
    assert_string_equal(s.machine, "pc-i440fx-7.2");
    assert_string_equal(s.kernel, "/etc/vmlinuz");
    assert_string_equal(s.initrd, "/etc/./initrd");
    assert_int_equal(s.virtio, VM_VIRTIO_TRANSITIONAL);
    assert_int_equal(s.n_nics, 2);
    assert_int_equal(s.nics[0].mac[3], 0xab);
    assert_string_equal(s.nics[1].bridge, "br1");
    assert_int_equal(s.n_qemu_args, 3);
    assert_string_equal(s.qemu_args[1], "virtio-rng-pci");
    assert_string_equal(s.protect.standby, "hostb");
    assert_int_equal(s.protect.interval_min_ns, 2500000);
    assert_int_equal(s.protect.engine, VM_ENGINE_REMUS);
    assert_int_equal(s.protect.max_slowdown_permille, 100);
    assert_int_equal(s.protect.outrun, VM_OUTRUN_SOLO);
    assert_int_equal(s.protect.interval_max_ns, 1000000000);
    assert_int_equal(s.n_disks, 2);
    assert_string_equal(s.disks[0].path, "/etc/web.img");
    assert_int_equal(s.disks[0].size_bytes, UINT64_C(10) << 30);
    assert_string_equal(s.disks[0].serial, "");
    assert_false(s.disks[0].read_only);
    assert_int_equal(s.disks[0].cache, VM_CACHE_WRITEBACK);
    assert_string_equal(s.disks[1].path, "/dev/vg0/web");
    assert_int_equal(s.disks[1].size_bytes, 8192);
    assert_string_equal(s.disks[1].serial, "data_1");
    assert_true(s.disks[1].read_only);
    assert_int_equal(s.disks[1].cache, VM_CACHE_WRITETHROUGH);
    assert_int_equal(s.protect.copy_rate_bytes, 100 << 20);
}

/* The addresses are part of what a guest remembers: they must never change. */
static void test_derived_mac(void **state)
{
    struct vm_spec s;
    struct err err = {""};
    char text[18];

    assert_int_equal(parse(HEAD "nics: [{bridge: br0}, {bridge: br0}]\n", &s, &err), 0);
    mac_format(s.nics[0].mac, text);
    assert_string_equal(text, "52:54:00:8a:23:d1");
    mac_format(s.nics[1].mac, text);
    assert_string_equal(text, "52:54:00:d3:a0:7a");
}

static const struct {
    const char *text, *error;
} mistakes[] = {
    {"memory: 1G\n", "/etc/web.yaml:1: \"name\" is missing"},
    {"name: Web\nmemory: 256M\nkernel: /k\n",
     "/etc/web.yaml:1: name: \"Web\" is not a name (a-z, 0-9 and -, 63 at most)"},
    {HEAD "disks:\n- /a.img\n",
     "/etc/web.yaml:5: disks[0]: keys with values belong here (key: value)"},
    {HEAD "disks:\n", "/etc/web.yaml:4: disks: a list belongs here"},
    {HEAD "disks:\n- size: 1G\n", "/etc/web.yaml:5: disks[0]: \"path\" is missing"},
    {HEAD "disks:\n- path: a\n  format: raw\n",
     "/etc/web.yaml:6: disks[0]: unknown key \"format\""},
    {HEAD "disks:\n- path: a\n", "/etc/web.yaml:5: disks[0].size: not given"},
    {HEAD "disks:\n- path: a\n  size: big\n",
     "/etc/web.yaml:6: disks[0].size: \"big\" is not a size such as 512M or 10G"},
    {HEAD "disks:\n- path: a\n  size: 0G\n",
     "/etc/web.yaml:6: disks[0].size: \"0G\" is not a size such as 512M or 10G"},
    {HEAD "disks:\n- path: a\n  size: 1000000\n",
     "/etc/web.yaml:6: disks[0].size: 1000000 is not a multiple of 4096; the nearest is 999424"},
    {HEAD "disks:\n- path: a\n  size: 1K\n",
     "/etc/web.yaml:6: disks[0].size: 1024 is not a multiple of 4096; the nearest is 4096"},
    {HEAD "disks:\n- path: a\n  size: 65T\n",
     "/etc/web.yaml:6: disks[0].size: 71468255805440 is more than 64T"},
    {HEAD "disks:\n- path: ../a\n  size: 4K\n",
     "/etc/web.yaml:5: disks[0].path: \"/etc/../a\": write it without \".\", \"..\", \"//\" and "
     "\"/\" at its end"},
    {HEAD "disks:\n- path: a/\n  size: 4K\n",
     "/etc/web.yaml:5: disks[0].path: \"/etc/a/\": write it without \".\", \"..\", \"//\" and "
     "\"/\" at its end"},
    {HEAD "disks:\n- path: \"a\\tb\"\n  size: 4K\n",
     "/etc/web.yaml:5: disks[0].path: has a control character"},
    {HEAD "disks:\n- {path: a, size: 4K}\n- {path: /etc/a, size: 4K}\n",
     "/etc/web.yaml:6: disks[1].path: the same as that of disks[0]"},
    {HEAD "disks:\n- path: a\n  size: 4K\n  serial: a,b\n",
     "/etc/web.yaml:7: disks[0].serial: \"a,b\" has other characters than a-z, A-Z, 0-9 and "
     "._-+:"},
    {HEAD "disks:\n- path: a\n  size: 4K\n  serial: a23456789012345678901\n",
     "/etc/web.yaml:7: disks[0].serial: longer than 20 characters"},
    {HEAD "disks:\n- path: a\n  size: 4K\n  read_only: yes\n",
     "/etc/web.yaml:7: disks[0].read_only: \"yes\" is neither false nor true"},
    {HEAD "disks:\n- path: a\n  size: 4K\n  cache: none\n",
     "/etc/web.yaml:7: disks[0].cache: \"none\" is neither writeback nor writethrough"},
    {HEAD "disks: [{path: a}, {path: b}, {path: c}, {path: d}, {path: e}, {path: f}, {path: g},"
          "{path: h}, {path: i}]\n",
     "/etc/web.yaml:4: disks: more than 8 entries"},
    {HEAD "protect:\n  standby: hostb\n  copy_rate: fast\n",
     "/etc/web.yaml:6: protect.copy_rate: \"fast\" is not a number of bytes per second such as "
     "100M"},
    {HEAD "protect:\n  standby: hostb\n  copy_rate: 1K\n",
     "/etc/web.yaml:6: protect.copy_rate: less than 64K a second, or too much"},
    {HEAD "protect:\n  standby: hostb\n  engine: colo\n",
     "/etc/web.yaml:6: protect.engine: \"colo\" is neither default nor remus"},
    {HEAD "protect:\n  standby: hostb\n  outrun: never\n",
     "/etc/web.yaml:6: protect.outrun: \"never\" is neither throttle nor solo"},
    {HEAD "protect:\n  standby: hostb\n  max_slowdown: 0.1\n",
     "/etc/web.yaml:6: protect.max_slowdown: \"0.1\" is not a share such as 25%"},
    {HEAD "protect:\n  standby: hostb\n  max_slowdown: 95%\n",
     "/etc/web.yaml:6: protect.max_slowdown: not within 1% to 90%"},
    {HEAD "protect:\n  standby: hostb\n  max_slowdown: 4294967297%\n",
     "/etc/web.yaml:6: protect.max_slowdown: \"4294967297%\" is not a share such as 25%"},
    {HEAD "\nmemroy: 1G\n", "/etc/web.yaml:5: unknown key \"memroy\""},
    {HEAD "nics:\n- macc: x\n  bridge: br0\n", "/etc/web.yaml:5: nics[0]: unknown key \"macc\""},
    {HEAD "nics:\n- bridge: br0\n- mac: 52:54:00:00:00:01\n",
     "/etc/web.yaml:6: nics[1]: \"bridge\" is missing"},
    {HEAD "nics:\n- bridge: br0\n  mac: 52:54:00:00:00\n",
     "/etc/web.yaml:6: nics[0].mac: \"52:54:00:00:00\" is not a MAC address such as "
     "52:54:00:12:34:56"},
    {HEAD "nics:\n- bridge: br0\n  mac: 53:54:00:00:00:01\n",
     "/etc/web.yaml:6: nics[0].mac: a multicast address; the first byte must be even"},
    {HEAD "nics:\n- bridge: br0\n  mac: 00:00:00:00:00:00\n",
     "/etc/web.yaml:6: nics[0].mac: all zero"},
    {HEAD "nics:\n- {bridge: br0, mac: 52:54:00:00:00:01}\n- {bridge: br0, mac: 52:54:00:00:00:01}"
          "\n",
     "/etc/web.yaml:6: nics[1].mac: the same as that of nics[0]"},
    {HEAD "nics:\n- bridge: ../br0\n",
     "/etc/web.yaml:5: nics[0].bridge: \"../br0\" is not the name of a bridge"},
    {HEAD "nics:\n- bridge: a-very-long-name\n",
     "/etc/web.yaml:5: nics[0].bridge: longer than 15 characters"},
    {"name: web\nkernel: /k\nmemory: 256\n",
     "/etc/web.yaml:3: memory: \"256\" is not a size such as 256M or 2G"},
    {"name: web\nkernel: /k\nmemory: 1.5G\n",
     "/etc/web.yaml:3: memory: \"1.5G\" is not a size such as 256M or 2G"},
    {"name: web\nkernel: /k\nmemory: -256M\n",
     "/etc/web.yaml:3: memory: \"-256M\" is not a size such as 256M or 2G"},
    {"name: web\nkernel: /k\nmemory: 18446744073709551615G\n",
     "/etc/web.yaml:3: memory: \"18446744073709551615G\" is not a size such as 256M or 2G"},
    {"name: web\nkernel: /k\nmemory: 99999999999999999999M\n",
     "/etc/web.yaml:3: memory: \"99999999999999999999M\" is not a size such as 256M or 2G"},
    {"name: web\nkernel: /k\nmemory: 8M\n",
     "/etc/web.yaml:3: memory: not a whole number of MiB from 16M to 1024G"},
    {HEAD "cpus: 0\n", "/etc/web.yaml:4: cpus: 0 is not in 1 to 64"},
    {HEAD "cpus: two\n", "/etc/web.yaml:4: cpus: not a number in range"},
    {HEAD "machine: pc,dumpdtb=/x\n",
     "/etc/web.yaml:4: machine: \"pc,dumpdtb=/x\" is not a machine type"},
    {HEAD "cpu: 'a b'\n", "/etc/web.yaml:4: cpu: \"a b\" is not a CPU model"},
    {HEAD "firmware: /f\n", "/etc/web.yaml:4: firmware: give a kernel or a firmware, not both"},
    {"name: web\nmemory: 64M\n",
     "/etc/web.yaml:1: nothing to boot: give a kernel, a firmware or a disk"},
    {"name: web\nmemory: 64M\nfirmware: /f\ninitrd: /i\n",
     "/etc/web.yaml:4: initrd: needs a kernel"},
    {"name: web\nmemory: 64M\nfirmware: /f\nappend: x\n",
     "/etc/web.yaml:4: append: needs a kernel"},
    {HEAD "append: \"a\\nb\"\n", "/etc/web.yaml:4: append: has a control character"},
    {HEAD "virtio: modern\n",
     "/etc/web.yaml:4: virtio: \"modern\" is neither legacy nor transitional"},
    {HEAD "qemu_args: -x\n", "/etc/web.yaml:4: qemu_args: a list belongs here"},
    {HEAD "protect:\n  interval: {min: 5ms}\n", "/etc/web.yaml:4: protect: \"standby\" is missing"},
    {HEAD "protect:\n  standby: hostb\n  interval: 5ms\n",
     "/etc/web.yaml:6: protect.interval: keys with values belong here (key: value)"},
    {HEAD "protect:\n  standby: hostb\n  interval:\n    min: 5\n",
     "/etc/web.yaml:7: protect.interval.min: \"5\" is not a time such as 5ms or 1s"},
    {HEAD "protect:\n  standby: hostb\n  interval:\n    max: 1ms\n",
     "/etc/web.yaml:6: protect.interval.min: longer than the longest interval"},
    {HEAD "protect:\n  standby: hostb\n  interval:\n    max: 60s\n",
     "/etc/web.yaml:7: protect.interval.max: not within 1ms to 10s"},
    {HEAD "protect:\n  standby: Hostb\n",
     "/etc/web.yaml:5: protect.standby: \"Hostb\" is not the name of a host"},
    {HEAD "protect:\n  standby: hostb\n  output: drop\n",
     "/etc/web.yaml:6: protect.output: \"drop\" is not supported; only hold is"},
};

static void test_mistakes(void **state)
{
    for (size_t i = 0; i < N_OF(mistakes); i++) {
        struct vm_spec s;
        struct err err = {""};

        assert_int_equal(parse(mistakes[i].text, &s, &err), -EINVAL);
        assert_string_equal(err.text, mistakes[i].error);
    }
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void test_files(void **state)
{
    char dir[] = "/tmp/vmfile_parse.XXXXXX";
    struct vm_spec s;
    struct err err = {""};

    assert_non_null(mkdtemp(dir));
    assert_int_equal(chdir(dir), 0);
    write_file("web.yaml", "name: web\nmemory: 64M\nkernel: k\ninitrd: sub\n");
    assert_int_equal(vmfile_load("web.yaml", &s, &err), -EINVAL);
    assert_non_null(strstr(err.text, "web.yaml:3: kernel: /tmp/vmfile_parse."));
    assert_non_null(strstr(err.text, "/k: No such file or directory"));
    write_file("k", "");
    write_file("sub", "");
    assert_int_equal(vmfile_load("web.yaml", &s, &err), 0);
    assert_int_equal(strncmp(s.kernel, dir, strlen(dir)), 0);
    assert_string_equal(s.kernel + strlen(dir), "/k");
    assert_int_equal(vmfile_load("none.yaml", &s, &err), -ENOENT);
    assert_string_equal(err.text, "none.yaml: No such file or directory");
    unlink("k");
    unlink("sub");
    unlink("web.yaml");
    assert_int_equal(chdir("/"), 0);
    assert_int_equal(rmdir(dir), 0);
}

/* Loads a VM file with that one disk; gives what it says, "" when it is taken. */
static const char *loaded(const char *disk, struct vm_spec *spec)
{
    static struct err err;
    char text[256];

    (void)snprintf(text, sizeof(text), "name: web\nmemory: 64M\ndisks: [%s]\n", disk);
    write_file("web.yaml", text);
    err.text[0] = '\0';
    if (vmfile_load("web.yaml", spec, &err) == 0)
        return "";
    assert_non_null(strstr(err.text, "disks[0]."));
    return err.text;
}

static void test_images(void **state)
{
    char dir[] = "/tmp/vmfile_parse.XXXXXX";
    struct vm_spec s;

    assert_non_null(mkdtemp(dir));
    assert_int_equal(chdir(dir), 0);
    assert_string_equal(loaded("{path: new.img, size: 1M}", &s), "");
    assert_int_equal(s.disks[0].size_bytes, 1 << 20);
    assert_int_equal(access("new.img", F_OK), -1);
    assert_non_null(strstr(loaded("{path: new.img}", &s), "/new.img does not exist; give a size"));
    assert_non_null(
        strstr(loaded("{path: no/new.img, size: 1M}", &s), "/no/: No such file or directory"));
    assert_non_null(strstr(loaded("{path: /dev/null}", &s), "neither a file nor a block device"));

    write_file("a.img", "");
    assert_non_null(strstr(loaded("{path: a.img}", &s), "has 0 bytes, not a multiple of 4096; the "
                                                        "next one is 4096"));
    assert_int_equal(truncate("a.img", 8191), 0);
    assert_non_null(strstr(loaded("{path: a.img}", &s), "/a.img has 8191 bytes, not a multiple of "
                                                        "4096; the next one is 8192"));
    assert_int_equal(truncate("a.img", 8192), 0);
    assert_string_equal(loaded("{path: a.img}", &s), "");
    assert_int_equal(s.disks[0].size_bytes, 8192);
    assert_string_equal(loaded("{path: a.img, size: 8K}", &s), "");
    assert_non_null(strstr(loaded("{path: a.img, size: 12K}", &s),
                           "has 8192 bytes, but its size here is 12288"));
    unlink("a.img");
    unlink("web.yaml");
    assert_int_equal(chdir("/"), 0);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),    cmocka_unit_test(test_everything),
        cmocka_unit_test(test_derived_mac), cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_files),       cmocka_unit_test(test_images),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
