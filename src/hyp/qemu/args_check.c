/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fnmatch.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "hyp/qemu/args.h"

static const char disk[] = "only the disks of the VM file's disks: are replicated";
static const char bypass[] = "it would carry data past the output gate";
static const char outside_ram[] = "only the VM's main memory is replicated";
static const char holes[] = "memory that it gives back to the host escapes dirty tracking";
static const char passthrough[] = "the state of a host device cannot be checkpointed";
static const char ours[] = "Understudy sets this itself";
static const char in_file[] = "it has a key of its own in the VM file";

struct pattern {
    const char *glob; /* fnmatch(3) */
    const char *why;  /* it is refused */
};

/* Options, without their dashes, that are refused whatever their value. */
static const struct pattern options[] = {
    {"drive", disk},        {"blockdev", disk},
    {"hd[abcd]", disk},     {"fd[ab]", disk},
    {"cdrom", disk},        {"sd", disk},
    {"mtdblock", disk},     {"pflash", disk},
    {"snapshot", disk},     {"virtfs", disk},
    {"fsdev", disk},        {"loadvm", "the VM starts from its own checkpoints"},
    {"netdev", bypass},     {"nic", bypass},
    {"net", bypass},        {"mem-path", ours},
    {"mem-prealloc", ours}, {"numa", outside_ram},
    {"incoming", ours},     {"S", ours},
    {"preconfig", ours},    {"daemonize", ours},
    {"no-shutdown", ours},  {"action", ours},
    {"name", ours},         {"sandbox", ours},
    {"runas", ours},        {"run-with", ours},
    {"chroot", ours},       {"add-fd", ours},
    {"machine", in_file},   {"M", in_file},
    {"accel", in_file},     {"enable-kvm", in_file},
    {"cpu", in_file},       {"smp", in_file},
    {"m", in_file},         {"kernel", in_file},
    {"initrd", in_file},    {"append", in_file},
    {"bios", in_file},      {"readconfig", "the options in another file cannot be checked"},
};

/* Options that take no value, so that a lone word after them is a disk to QEMU. */
static const struct pattern flags[] = {
    {"no*", ""}, /* -nographic, -no-reboot, -nodefaults, ... */
    {"only-migratable", ""},
    {"s", ""},
    {"usb", ""},
    {"singlestep", ""},
    {"one-insn-per-tb", ""},
    {"full-screen", ""},
};

/* Values of -device and -object: the driver or type. */
static const struct pattern devices[] = {
    {"vfio-*", passthrough},
    {"usb-host*", passthrough},
    {"usb-redir*", passthrough},
    {"pci-assign*", passthrough},
    {"ipmi-bmc-extern*", passthrough},
    {"tpm-*", passthrough},
    {"vhost-*", "its other half, outside of QEMU, is not checkpointed"},
    {"ivshmem*", "memory shared with others changes behind the guest's back"},
    {"virtio-balloon*", holes},
    {"hv-balloon*", holes},
    {"virtio-mem*", outside_ram},
    {"virtio-pmem*", outside_ram},
    {"pc-dimm*", outside_ram},
    {"nvdimm*", outside_ram},
    {"memory-backend-*", outside_ram},
    {"virtio-9p*", disk},
    {"virtio-blk*", disk},
    {"virtio-scsi*", disk},
    {"scsi-*", disk},
    {"ide-*", disk},
    {"nvme*", disk},
    {"floppy*", disk},
    {"sd-card*", disk},
    {"usb-storage*", disk},
    {"usb-bot*", disk},
    {"usb-uas*", disk},
    {"usb-mtp*", disk},
    {"megasas*", disk},
    {"mptsas*", disk},
    {"lsi53*", disk},
    {"pvscsi*", disk},
    {"filter-*", bypass},
    {"colo-compare*", bypass},
};

/* Returns the reason that goes with the first pattern that fits, NULL when none does. */
static const char *match(const struct pattern *table, size_t n, const char *text)
{
    for (size_t i = 0; i < n; i++) {
        if (fnmatch(table[i].glob, text, 0) == 0)
            return table[i].why;
    }
    return NULL;
}

#define MATCH(table, text) match(table, sizeof(table) / sizeof((table)[0]), text)

/* Finds the driver of a -device or the type of an -object in its three notations: "virtio-rng,..",
 * "..,driver=virtio-rng,.." and {"driver": "virtio-rng", ..}. */
static int find_driver(const char *value, const char *key, char *ret_driver, size_t n)
{
    char prefix[32];
    size_t key_bytes = (size_t)snprintf(prefix, sizeof(prefix), "%s=", key);
    const char *start = value;

    if (*value == '{') {
        json_auto_t *root = json_loads(value, 0, NULL);
        const char *name = json_string_value(json_object_get(root, key));

        return name && snprintf(ret_driver, n, "%s", name) < (int)n ? 0 : -EINVAL;
    }
    for (const char *part = value; part; part = strchr(part, ',')) {
        part += *part == ',';
        if (strncmp(part, prefix, key_bytes) == 0)
            start = part + key_bytes;
    }
    return snprintf(ret_driver, n, "%.*s", (int)strcspn(start, ","), start) < (int)n ? 0 : -EINVAL;
}

static int check_driver(const char *option, const char *key, const char *value, struct err *err)
{
    char driver[VM_ARG_LEN_MAX];
    const char *why;

    if (!value || find_driver(value, key, driver, sizeof(driver)) < 0)
        return err_set(err, -EINVAL, "qemu_args: -%s: no %s in it", option, key);
    why = MATCH(devices, driver);
    return why ? err_set(err, -EINVAL, "qemu_args: %s: remove -%s %s", why, option, driver) : 0;
}

int args_check_extra(const struct vm_spec *spec, struct err *err)
{
    for (uint32_t i = 0; i < spec->n_qemu_args; i++) {
        const char *option = spec->qemu_args[i];
        const char *value = i + 1 < spec->n_qemu_args ? spec->qemu_args[i + 1] : NULL;
        const char *why;
        int r = 0;

        if (*option != '-') /* the value of an option; QEMU would take a lone one for a disk */
            return err_set(err, -EINVAL, "qemu_args: %s: remove %s", disk, option);
        option += option[1] == '-' ? 2 : 1;
        why = MATCH(options, option);
        if (why)
            return err_set(err, -EINVAL, "qemu_args: %s: remove -%s", why, option);
        if (strcmp(option, "device") == 0)
            r = check_driver(option, "driver", value, err);
        else if (strcmp(option, "object") == 0)
            r = check_driver(option, "qom-type", value, err);
        if (r < 0)
            return r;
        if (value && *value != '-' && !MATCH(flags, option))
            i++;
    }
    return 0;
}
