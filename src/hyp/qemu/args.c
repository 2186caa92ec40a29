/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/args.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

enum {
    ARG_BYTES = 2048,
    DISK_HEADS = 16,
    DISK_SECTORS = 63, /* of a track */
    DISK_CYLINDERS_MAX = 16383,
    /* How long the guest's requests wait for a server that is gone, to be sent to the next one: a
     * guard that died must never look like a broken disk. */
    DISK_RECONNECT_S = 365 * 86400,
};

/* Appends a formatted argument. */
static int US_PRINTF(2, 3) add(struct args *args, const char *fmt, ...)
{
    va_list ap;
    char *text;
    int n;

    if (args->n == ARGS_MAX)
        return -E2BIG;
    va_start(ap, fmt);
    n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0)
        return -ENOMEM;
    args->v[args->n++] = text;
    return 0;
}

static int add_option(struct args *args, const char *option, const char *value)
{
    int r = add(args, "%s", option);

    return r < 0 ? r : add(args, "%s", value);
}

/* Copies a value for a place inside "key=value,key=value", where QEMU wants commas doubled. */
static const char *escape(char *to, size_t n, const char *from)
{
    size_t used = 0;

    for (; *from && used + 3 <= n; from++) {
        if (*from == ',')
            to[used++] = ',';
        to[used++] = *from;
    }
    to[used] = 0;
    return to;
}

/* A socket's path for QEMU: what is below its own directory it reaches through the descriptor. */
static const char *socket_path(char *to, size_t n, const struct hyp_launch *launch,
                               const char *path)
{
    size_t n_dir = strlen(launch->run_dir);
    char text[ARG_BYTES];

    if (strncmp(path, launch->run_dir, n_dir) != 0 || path[n_dir] != '/')
        return escape(to, n, path);
    (void)snprintf(text, sizeof(text), "/proc/self/fd/%d%s", RUN_DIR_FD, path + n_dir);
    return escape(to, n, text);
}

static int add_machine(struct args *args, const struct hyp_launch *launch)
{
    const struct vm_spec *spec = launch->spec;
    char text[ARG_BYTES];
    uint64_t mebibytes = spec->memory_bytes >> 20;
    int r;

    (void)snprintf(text, sizeof(text), "guest=%s,debug-threads=off", spec->name);
    r = add_option(args, "-name", text);
    (void)snprintf(text, sizeof(text),
                   "%s,memory-backend=ram0,suppress-vmdesc=on,dump-guest-core=off,accel=%s",
                   spec->machine, spec->accel);
    if (r == 0)
        r = add_option(args, "-machine", text);
    if (r == 0 && spec->cpu_model[0])
        r = add_option(args, "-cpu", spec->cpu_model);
    (void)snprintf(text, sizeof(text), "%" PRIu32, spec->cpus);
    if (r == 0)
        r = add_option(args, "-smp", text);
    (void)snprintf(text, sizeof(text), "%" PRIu64 "M", mebibytes);
    if (r == 0)
        r = add_option(args, "-m", text);
    /* share=on: we see the guest's memory in the file, and QEMU leaves it out of the migration
     * stream (x-ignore-shared). */
    (void)snprintf(text, sizeof(text),
                   "memory-backend-file,id=ram0,mem-path=/proc/self/fd/%d,share=on,size=%" PRIu64
                   "M",
                   RAM_FD, mebibytes);
    return r < 0 ? r : add_option(args, "-object", text);
}

/* ACPI hotplug behind PCI bridges keeps a table of 256 entries in the device state, which is a
 * quarter of the time that a VM stands still for a checkpoint. Devices are not plugged into a
 * protected VM anyway. */
static int add_no_bridge_hotplug(struct args *args, const char *machine)
{
    static const char *const chipsets[][2] = {
        {"pc-i440fx-", "PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off"},
        {"pc-q35-", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"},
    };

    for (size_t i = 0; i < sizeof(chipsets) / sizeof(chipsets[0]); i++) {
        if (strncmp(machine, chipsets[i][0], strlen(chipsets[i][0])) == 0)
            return add_option(args, "-global", chipsets[i][1]);
    }
    return 0;
}

static int add_boot(struct args *args, const struct vm_spec *spec)
{
    const struct {
        const char *option, *path;
        int fd;
    } files[] = {
        {"-kernel", spec->kernel, KERNEL_FD},
        {"-initrd", spec->initrd, INITRD_FD},
        {"-bios", spec->firmware, FIRMWARE_FD},
    };
    char path[32];
    int r = 0;

    for (size_t i = 0; r == 0 && i < sizeof(files) / sizeof(files[0]); i++) {
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", files[i].fd);
        if (files[i].path[0])
            r = add_option(args, files[i].option, path);
    }
    if (r == 0 && spec->append[0])
        r = add_option(args, "-append", spec->append);
    return r;
}

/* Of the interface of version 1.0, QEMU saves the state of 1,024 queues field by field, whether
 * they are in use or not: for each device that takes as long as all the rest of a small VM's. */
static const char *virtio_interfaces(const struct vm_spec *spec)
{
    return spec->virtio == VM_VIRTIO_LEGACY ? "disable-modern=on," : "";
}

static int add_nic(struct args *args, size_t i, const struct hyp_launch *launch)
{
    const struct vm_nic *nic = &launch->spec->nics[i];
    const struct hyp_nic_paths *paths = &launch->nics[i];
    char hyp_path[ARG_BYTES], guard_path[ARG_BYTES], text[3 * ARG_BYTES];
    int r;

    (void)snprintf(text, sizeof(text),
                   "dgram,id=net%zu,local.type=unix,local.path=%s,"
                   "remote.type=unix,remote.path=%s",
                   i, socket_path(hyp_path, sizeof(hyp_path), launch, paths->hyp_path),
                   socket_path(guard_path, sizeof(guard_path), launch, paths->guard_path));
    r = add_option(args, "-netdev", text);
    if (r < 0)
        return r;
    /* No boot ROM: it would add 256 KB to every checkpoint's device state. */
    (void)snprintf(text, sizeof(text),
                   "virtio-net-pci,id=nic%zu,netdev=net%zu,romfile=,%s"
                   "mac=%02x:%02x:%02x:%02x:%02x:%02x",
                   i, i, virtio_interfaces(launch->spec), nic->mac[0], nic->mac[1], nic->mac[2],
                   nic->mac[3], nic->mac[4], nic->mac[5]);
    return add_option(args, "-device", text);
}

/* Given, so that QEMU does not look for a partition table to guess it from: where it starts on the
 * standby, the disk's content is not there yet. The heads and sectors of every large disk; the
 * guest's virtio driver does not care. */
static unsigned cylinders(uint64_t size_bytes)
{
    uint64_t n = size_bytes / 512 / DISK_HEADS / DISK_SECTORS;

    return n < 2 ? 2 : n > DISK_CYLINDERS_MAX ? DISK_CYLINDERS_MAX : (unsigned)n;
}

/* A disk of the guest, whose id is also its node's name in QEMU and must be the same on both hosts.
 */
static int add_disk(struct args *args, size_t i, const struct hyp_launch *launch, bool boot)
{
    const struct vm_disk *disk = &launch->spec->disks[i];
    char path[ARG_BYTES], serial[ARG_BYTES], text[3 * ARG_BYTES];
    int r;

    (void)snprintf(text, sizeof(text),
                   "driver=nbd,node-name=disk%zu,server.type=unix,server.path=%s,discard=unmap,"
                   "reconnect-delay=%d,read-only=%s",
                   i, socket_path(path, sizeof(path), launch, launch->disk_sockets[i]),
                   DISK_RECONNECT_S, disk->read_only ? "on" : "off");
    r = add_option(args, "-blockdev", text);
    if (r < 0)
        return r;
    /* ioeventfd=off: with it, QEMU 9 and later lets the disk's requests end before it says STOP,
     * and a guest's flush may be kept waiting until then. config-wce=off: QEMU forgets in a
     * checkpoint whether the guest has switched the cache off. werror, rerror: the guest gets its
     * disk's errors; QEMU would stop it when there is no space.
     */
    (void)snprintf(
        text, sizeof(text),
        "virtio-blk-pci,id=disk%zu,drive=disk%zu,%snum-queues=1,ioeventfd=off,"
        "write-cache=%s,config-wce=off,discard=on,write-zeroes=on,werror=report,rerror=report,"
        "cyls=%u,heads=%d,secs=%d%s%s%s",
        i, i, virtio_interfaces(launch->spec), disk->cache == VM_CACHE_WRITETHROUGH ? "off" : "on",
        cylinders(disk->size_bytes), DISK_HEADS, DISK_SECTORS, disk->serial[0] ? ",serial=" : "",
        escape(serial, sizeof(serial), disk->serial), boot ? ",bootindex=0" : "");
    return add_option(args, "-device", text);
}

static int add_disks(struct args *args, const struct hyp_launch *launch)
{
    const struct vm_spec *spec = launch->spec;
    bool boot = !spec->kernel[0] && !spec->firmware[0];
    int r = 0;

    for (size_t i = 0; r == 0 && i < spec->n_disks; i++)
        r = add_disk(args, i, launch, boot && i == 0);
    return r;
}

/* A control socket. */
static int add_monitor(struct args *args, const char *id, int fd)
{
    char text[96];
    int r;

    (void)snprintf(text, sizeof(text), "socket,id=%s,fd=%d,server=on,wait=off", id, fd);
    r = add_option(args, "-chardev", text);
    (void)snprintf(text, sizeof(text), "chardev=%s,mode=control", id);
    return r < 0 ? r : add_option(args, "-mon", text);
}

static int add_all(struct args *args, const struct hyp_launch *launch)
{
    const struct vm_spec *spec = launch->spec;
    int r;

    r = add(args, "%s", launch->emulator);
    if (r == 0)
        r = add(args, "-nodefaults");
    if (r == 0)
        r = add(args, "-no-user-config");
    if (r == 0)
        r = add_option(args, "-display", "none");
    if (r == 0)
        r = add_option(args, "-sandbox",
                       "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    if (r == 0)
        r = add_machine(args, launch);
    if (r == 0)
        r = add_no_bridge_hotplug(args, spec->machine);
    if (r == 0)
        r = add_boot(args, spec);
    for (size_t i = 0; r == 0 && i < spec->n_nics; i++)
        r = add_nic(args, i, launch);
    if (r == 0)
        r = add_disks(args, launch);
    if (r == 0)
        r = add_monitor(args, "understudy-qmp", QMP_LISTEN_FD);
    if (r == 0)
        r = add_monitor(args, "understudy-stop", STOP_LISTEN_FD);
    if (r == 0)
        r = launch->incoming ? add_option(args, "-incoming", "defer") : add(args, "-S");
    for (size_t i = 0; r == 0 && i < spec->n_qemu_args; i++)
        r = add(args, "%s", spec->qemu_args[i]);
    return r;
}

_Static_assert((int)ARGS_FDS_END == (int)VM_KEPT_FD, "one after the other");

int args_build(struct args *args, const struct hyp_launch *launch, struct err *err)
{
    const struct vm_spec *spec = launch->spec;
    int r;

    if (!spec->machine[0] || !spec->accel[0])
        return err_set(err, -EINVAL, "machine type or accelerator is not resolved");
    if (strchr(spec->machine, ',') || strchr(spec->accel, ',') || strchr(spec->name, ','))
        return err_set(err, -EINVAL, "a comma in the VM's name, machine type or accelerator");
    if (spec->n_nics > VM_NICS_MAX || spec->n_disks > VM_DISKS_MAX ||
        spec->n_qemu_args > VM_ARGS_MAX)
        return err_set(err, -EINVAL, "too many NICs, disks or qemu_args");
    if (spec->n_disks > 0 && !launch->disk_sockets)
        return err_set(err, -EINVAL, "nobody serves the disks");
    r = add_all(args, launch);
    return r < 0 ? err_sys(err, r, "QEMU's command line") : 0;
}

void args_done(struct args *args)
{
    for (size_t i = 0; i < args->n; i++)
        free(args->v[i]);
    *args = (struct args){0};
}
