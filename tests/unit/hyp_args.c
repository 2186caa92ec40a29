/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's command line, machine types, and what is refused in a VM file's qemu_args. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "unit.h"

#include "hyp/qemu/args.h"
#include "hyp/qemu/machine.h"

static const struct hyp_nic_paths nics[] = {{"/run/a,b/nic0.hyp", "/run/nic0"}};

static struct vm_spec example(void)
{
    return (struct vm_spec){
        .name = "web",
        .memory_bytes = UINT64_C(256) << 20,
        .cpus = 2,
        .machine = "pc-i440fx-7.2",
        .accel = "tcg",
        .kernel = "/boot/vmlinuz",
        .append = "quiet",
        .virtio = VM_VIRTIO_LEGACY,
        .n_nics = 1,
        .nics = {{.mac = {0x52, 0x54, 0, 0, 0, 1}}},
        .n_qemu_args = 2,
        .qemu_args = {"-device", "virtio-rng-pci"},
    };
}

static struct hyp_launch launch_of(const struct vm_spec *spec, bool incoming)
{
    return (struct hyp_launch){
        .spec = spec,
        .run_dir = "/run/x",
        .ram_path = "/dev/shm/web,1",
        .emulator = "qemu-system-x86_64",
        .nics = nics,
        .incoming = incoming,
    };
}

/* Joins the arguments with single spaces. */
static const char *joined(const struct args *args)
{
    static char text[8192];
    size_t used = 0;

    for (size_t i = 0; i < args->n; i++)
        used +=
            (size_t)snprintf(text + used, sizeof(text) - used, "%s%s", i ? " " : "", args->v[i]);
    assert_null(args->v[args->n]);
    return text;
}

static void builds_a_primary(void **state)
{
    struct vm_spec spec = example();
    struct hyp_launch launch = launch_of(&spec, false);
    struct args args = {0};

    (void)state;
    assert_int_equal(args_build(&args, &launch, NULL), 0);
    assert_string_equal(
        joined(&args),
        "qemu-system-x86_64 -nodefaults -no-user-config -display none "
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny "
        "-name guest=web,debug-threads=off "
        "-machine "
        "pc-i440fx-7.2,memory-backend=ram0,suppress-vmdesc=on,dump-guest-core=off,accel=tcg -smp 2 "
        "-m 256M "
        "-object memory-backend-file,id=ram0,mem-path=/proc/self/fd/4,share=on,size=256M "
        "-global PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off "
        "-kernel /proc/self/fd/6 -append quiet "
        "-netdev dgram,id=net0,local.type=unix,local.path=/run/a,,b/nic0.hyp,"
        "remote.type=unix,remote.path=/run/nic0 "
        "-device virtio-net-pci,id=nic0,netdev=net0,romfile=,disable-modern=on,"
        "mac=52:54:00:00:00:01 "
        "-chardev socket,id=understudy-qmp,fd=3,server=on,wait=off "
        "-mon chardev=understudy-qmp,mode=control "
        "-chardev socket,id=understudy-stop,fd=17,server=on,wait=off "
        "-mon chardev=understudy-stop,mode=control -S -device virtio-rng-pci");
    args_done(&args);
}

static void leaves_both_interfaces(void **state)
{
    struct vm_spec spec = example();
    struct hyp_launch launch = launch_of(&spec, false);
    struct args args = {0};

    (void)state;
    spec.virtio = VM_VIRTIO_TRANSITIONAL;
    assert_int_equal(args_build(&args, &launch, NULL), 0);
    assert_non_null(strstr(joined(&args), "netdev=net0,romfile=,mac="));
    args_done(&args);
}

static void builds_the_same_standby(void **state)
{
    struct vm_spec spec = example();
    struct hyp_launch primary = launch_of(&spec, false), standby = launch_of(&spec, true);
    struct args p = {0}, s = {0};
    size_t i = 0, j = 0;

    (void)state;
    assert_int_equal(args_build(&p, &primary, NULL), 0);
    assert_int_equal(args_build(&s, &standby, NULL), 0);
    for (; i < p.n && j < s.n; i++, j++) {
        if (strcmp(p.v[i], "-S") == 0) {
            assert_string_equal(s.v[j++], "-incoming");
            assert_string_equal(s.v[j], "defer");
        } else {
            assert_string_equal(p.v[i], s.v[j]);
        }
    }
    assert_true(i == p.n && j == s.n);
    args_done(&p);
    args_done(&s);
}

static void gives_the_disks(void **state)
{
    static const char *const sockets[] = {"/run/a,b/disk0.sock", "/run/x/disk1.sock"};
    struct vm_spec spec = example();
    struct hyp_launch launch = launch_of(&spec, false);
    struct args args = {0};

    (void)state;
    spec.n_disks = 2;
    spec.disks[0] = (struct vm_disk){.size_bytes = UINT64_C(1) << 30, .cache = VM_CACHE_WRITEBACK};
    spec.disks[1] = (struct vm_disk){.size_bytes = UINT64_C(1) << 40,
                                     .serial = "data1",
                                     .read_only = true,
                                     .cache = VM_CACHE_WRITETHROUGH};
    assert_int_equal(args_build(&args, &launch, NULL), -EINVAL);
    launch.disk_sockets = sockets;
    assert_int_equal(args_build(&args, &launch, NULL), 0);
    assert_non_null(strstr(
        joined(&args),
        " -blockdev driver=nbd,node-name=disk0,server.type=unix,"
        "server.path=/run/a,,b/disk0.sock,discard=unmap,reconnect-delay=31536000,read-only=off "
        "-device virtio-blk-pci,id=disk0,drive=disk0,disable-modern=on,num-queues=1,"
        "ioeventfd=off,write-cache=on,"
        "config-wce=off,discard=on,write-zeroes=on,werror=report,rerror=report,"
        "cyls=2080,heads=16,secs=63 "
        "-blockdev driver=nbd,node-name=disk1,server.type=unix,"
        "server.path=/proc/self/fd/5/"
        "disk1.sock,discard=unmap,reconnect-delay=31536000,read-only=on "
        "-device virtio-blk-pci,id=disk1,drive=disk1,disable-modern=on,num-queues=1,"
        "ioeventfd=off,write-cache=off,"
        "config-wce=off,discard=on,write-zeroes=on,werror=report,rerror=report,"
        "cyls=16383,heads=16,secs=63,serial=data1 "));
    args_done(&args);

    spec.kernel[0] = 0; /* it boots from the first disk */
    assert_int_equal(args_build(&args, &launch, NULL), 0);
    assert_non_null(strstr(joined(&args), "cyls=2080,heads=16,secs=63,bootindex=0 "));
    assert_null(strstr(joined(&args), "serial=data1,bootindex"));
    args_done(&args);
}

static void refuses_what_is_not_resolved(void **state)
{
    struct vm_spec spec = example();
    struct hyp_launch launch = launch_of(&spec, false);
    struct args args = {0};

    (void)state;
    spec.accel[0] = 0;
    assert_int_equal(args_build(&args, &launch, NULL), -EINVAL);
    spec = example();
    strcpy(spec.machine, "pc-i440fx-7.2,kernel=/etc/passwd");
    assert_int_equal(args_build(&args, &launch, NULL), -EINVAL);
    args_done(&args);
}

/* Checks a definition with up to four extra arguments; returns the reason or "". */
static const char *checked(const char *const *extra)
{
    static struct err err;
    struct vm_spec spec = {0};
    int r;

    for (size_t i = 0; i < 4 && extra[i]; i++)
        strcpy(spec.qemu_args[spec.n_qemu_args++], extra[i]);
    err.text[0] = 0;
    r = args_check_extra(&spec, &err);
    assert_int_equal(r, err.text[0] ? -EINVAL : 0);
    return err.text;
}

static void refuses_extra_arguments(void **state)
{
    static const struct {
        const char *extra[4];
        const char *why;
    } refused[] = {
        {{"-drive", "file=x"},
         "qemu_args: only the disks of the VM file's disks: are replicated: remove -drive"},
        {{"--blockdev", "x"}, "disks"},
        {{"-hda", "x"}, "disks"},
        {{"-cdrom", "x"}, "disks"},
        {{"disk.img"}, "disks"},
        {{"-nographic", "disk.img"}, "disks"},
        {{"-device", "virtio-blk-pci,drive=d"}, "disks"},
        {{"-device", "drive=d,driver=virtio-blk-pci"}, "disks"},
        {{"-device", "{\"driver\": \"ide-hd\"}"}, "disks"},
        {{"-device", "{\"driver\": "}, "no driver in it"},
        {{"-device"}, "no driver in it"},
        {{"-device", "vfio-pci,host=1:0.0"}, "host device"},
        {{"-device", "vhost-user-fs-pci"}, "other half"},
        {{"-device", "ivshmem-plain"}, "behind the guest's back"},
        {{"-device", "pc-dimm,memdev=m"}, "main memory"},
        {{"-device", "virtio-balloon-pci"}, "dirty tracking"},
        {{"-object", "memory-backend-ram,id=m"}, "main memory"},
        {{"-netdev", "user,id=n"}, "output gate"},
        {{"-nic", "tap"}, "output gate"},
        {{"-incoming", "defer"}, "itself"},
        {{"-S"}, "itself"},
        {{"-daemonize"}, "itself"},
        {{"-no-shutdown"}, "itself"},
        {{"-m", "1G"}, "key of its own"},
        {{"-machine", "q35"}, "key of its own"},
        {{"-enable-kvm"}, "key of its own"},
        {{"-serial", "stdio", "-cpu", "max"}, "key of its own"},
    };

    (void)state;
    for (size_t i = 0; i < N_OF(refused); i++) {
        const char *why = checked(refused[i].extra);

        if (!strstr(why, refused[i].why))
            fail_msg("%s %s: %s", refused[i].extra[0],
                     refused[i].extra[1] ? refused[i].extra[1] : "", why[0] ? why : "taken");
    }
}

static void takes_other_extra_arguments(void **state)
{
    static const char *const taken[][4] = {
        {NULL},
        {"-serial", "file:/tmp/console"},
        {"-monitor", "stdio"},
        {"-device", "virtio-rng-pci"},
        {"-device", "{\"driver\": \"virtio-serial-pci\"}"},
        {"-object", "rng-random,id=r,filename=/dev/urandom"},
        {"-nographic", "-usb", "-device", "usb-tablet"},
        {"-no-reboot"},
    };

    (void)state;
    for (size_t i = 0; i < N_OF(taken); i++)
        assert_string_equal(checked(taken[i]), "");
}

static const char machines[] =
    "Supported machines are:\n"
    "microvm              microvm (i386)\n"
    "pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)\n"
    "pc-i440fx-10.0       Standard PC (i440FX + PIIX, 1996) (default)\n"
    "pc-i440fx-2.4        Standard PC (i440FX + PIIX, 1996) (deprecated)\n"
    "q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)\n"
    "pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)\n"
    "pc-q35-4.0.1         Standard PC (Q35 + ICH9, 2009)\n"
    "none                 empty machine";

static void pins_machine_types(void **state)
{
    static const char *const known[][2] = {
        {"", "pc-i440fx-10.0"},           {"pc", "pc-i440fx-10.0"},
        {"q35", "pc-q35-10.0"},           {"pc-i440fx-2.4", "pc-i440fx-2.4"},
        {"pc-q35-4.0.1", "pc-q35-4.0.1"},
    };
    static const char *const unknown[] = {"pc-i440fx-99.9", "pc-", "Supported", "p", "pc "};
    static const char *const unversioned[] = {"microvm", "none"};
    struct err err;
    char name[64];

    (void)state;
    for (size_t i = 0; i < N_OF(known); i++) {
        assert_int_equal(qemu_find_machine(machines, known[i][0], name, sizeof(name), &err), 0);
        assert_string_equal(name, known[i][1]);
    }
    for (size_t i = 0; i < N_OF(unknown); i++) {
        int r = qemu_find_machine(machines, unknown[i], name, sizeof(name), &err);

        assert_true(r == -ENOENT || r == -EINVAL);
    }
    for (size_t i = 0; i < N_OF(unversioned); i++) {
        assert_int_equal(qemu_find_machine(machines, unversioned[i], name, sizeof(name), &err),
                         -EINVAL);
        assert_non_null(strstr(err.text, "no version"));
    }
    assert_int_equal(qemu_find_machine("", "", name, sizeof(name), &err), -ENOENT);
    assert_int_equal(qemu_find_machine(machines, "pc", name, 4, &err), -ENAMETOOLONG);
}

static void asks_the_emulator(void **state)
{
    struct err err;
    char name[64];
    int version;

    (void)state;
    assert_int_equal(qemu_parse_version("QEMU emulator version 7.2.22 (Debian)", &version), 0);
    assert_int_equal(version, 702);
    assert_int_equal(qemu_parse_version("GNU bash, version 5.2", &version), -EINVAL);
    assert_int_equal(qemu_check_version("/nonexistent/qemu", &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/qemu"));
    assert_int_equal(qemu_check_version("false", &err), -EIO);
    assert_non_null(strstr(err.text, "exit status 1"));
    assert_int_equal(qemu_check_version("true", &err), -EINVAL);
    assert_int_equal(qemu_resolve_machine("true", "pc", name, sizeof(name), &err), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builds_a_primary),
        cmocka_unit_test(leaves_both_interfaces),
        cmocka_unit_test(builds_the_same_standby),
        cmocka_unit_test(gives_the_disks),
        cmocka_unit_test(refuses_what_is_not_resolved),
        cmocka_unit_test(refuses_extra_arguments),
        cmocka_unit_test(takes_other_extra_arguments),
        cmocka_unit_test(pins_machine_types),
        cmocka_unit_test(asks_the_emulator),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
