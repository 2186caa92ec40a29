/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "io/vm_json.h"
#include "wire/msg.h"

#define MIB             (UINT64_C(1) << 20)
#define MEMORY_MIN      (16 * MIB)
#define MEMORY_MAX      (MIB << 20) /* 1 TiB: dirty tracking walks page tables (docs/design.md) */
#define INTERVAL_MIN_NS UINT64_C(1000000)
#define INTERVAL_MAX_NS UINT64_C(10000000000)
#define LETTERS_DIGITS  "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

#define DISK_MAX      (UINT64_C(64) << 40)
#define COPY_RATE_MIN (UINT64_C(64) << 10)

enum { CPUS_MAX = 64, SLOWDOWN_MIN_PERMILLE = 10, SLOWDOWN_MAX_PERMILLE = 900 };

/* Names the field and fails. */
static int bad(char (*ret_field)[32], const char *field, struct err *err, const char *fmt, ...)
    US_PRINTF(4, 5);

static int bad(char (*ret_field)[32], const char *field, struct err *err, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (ret_field)
        (void)snprintf(*ret_field, sizeof(*ret_field), "%s", field);
    return err_set(err, -EINVAL, "%s", text);
}

static bool only(const char *text, const char *allowed)
{
    return text[strspn(text, allowed)] == '\0';
}

/* No control characters: a newline in a kernel command line, say, would end it. */
static bool printable(const char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return false;
    }
    return true;
}

static int check_path(const char *path, const char *field, char (*ret_field)[32], struct err *err)
{
    if (path[0] && path[0] != '/')
        return bad(ret_field, field, err, "\"%s\" is not an absolute path", path);
    if (!printable(path))
        return bad(ret_field, field, err, "has a control character");
    return 0;
}

static int check_boot(const struct vm_spec *s, char (*f)[32], struct err *err)
{
    int r = check_path(s->kernel, "kernel", f, err);

    if (r == 0)
        r = check_path(s->initrd, "initrd", f, err);
    if (r == 0)
        r = check_path(s->firmware, "firmware", f, err);
    if (r < 0)
        return r;
    if (!s->kernel[0] && !s->firmware[0] && s->n_disks == 0)
        return bad(f, "", err, "nothing to boot: give a kernel, a firmware or a disk");
    if (s->kernel[0] && s->firmware[0])
        return bad(f, "firmware", err, "give a kernel or a firmware, not both");
    if (s->initrd[0] && !s->kernel[0])
        return bad(f, "initrd", err, "needs a kernel");
    if (s->append[0] && !s->kernel[0])
        return bad(f, "append", err, "needs a kernel");
    if (!printable(s->append))
        return bad(f, "append", err, "has a control character");
    return 0;
}

static int check_nic(const struct vm_spec *s, uint32_t i, char (*f)[32], struct err *err)
{
    static const uint8_t zero[6];
    const struct vm_nic *nic = &s->nics[i];
    char field[32];

    (void)snprintf(field, sizeof(field), "nics[%u].mac", i);
    if (nic->mac[0] & 1)
        return bad(f, field, err, "a multicast address; the first byte must be even");
    if (memcmp(nic->mac, zero, sizeof(zero)) == 0)
        return bad(f, field, err, "all zero");
    for (uint32_t j = 0; j < i; j++) {
        if (memcmp(nic->mac, s->nics[j].mac, sizeof(nic->mac)) == 0)
            return bad(f, field, err, "the same as that of nics[%u]", j);
    }
    (void)snprintf(field, sizeof(field), "nics[%u].bridge", i);
    if (!nic->bridge[0] || !only(nic->bridge, LETTERS_DIGITS "._-") || nic->bridge[0] == '.' ||
        nic->bridge[0] == '-')
        return bad(f, field, err, "\"%s\" is not the name of a bridge", nic->bridge);
    return 0;
}

/* One spelling per file, so that two hosts, and two disks, can be compared by their paths. */
static bool plain_path(const char *path)
{
    while (*path == '/') {
        size_t n = strcspn(++path, "/");

        if (n == 0 || (n == 1 && path[0] == '.') || (n == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        path += n;
    }
    return true;
}

static int check_disk_size(uint64_t bytes, const char *field, char (*f)[32], struct err *err)
{
    uint64_t nearest = (bytes + VM_PAGE_BYTES / 2) / VM_PAGE_BYTES * VM_PAGE_BYTES;

    if (bytes == 0)
        return bad(f, field, err, "not given");
    if (bytes > DISK_MAX)
        return bad(f, field, err, "%" PRIu64 " is more than 64T", bytes);
    if (bytes % VM_PAGE_BYTES)
        return bad(f, field, err,
                   "%" PRIu64 " is not a multiple of %" PRIu64 "; the nearest is %" PRIu64, bytes,
                   VM_PAGE_BYTES, nearest ? nearest : VM_PAGE_BYTES);
    return 0;
}

static int check_disk(const struct vm_spec *s, uint32_t i, char (*f)[32], struct err *err)
{
    const struct vm_disk *disk = &s->disks[i];
    char field[32];
    int r;

    (void)snprintf(field, sizeof(field), "disks[%u].path", i);
    r = check_path(disk->path, field, f, err);
    if (r < 0)
        return r;
    if (!disk->path[0] || !plain_path(disk->path))
        return bad(f, field, err,
                   "\"%s\": write it without \".\", \"..\", \"//\" and \"/\" at its end",
                   disk->path);
    for (uint32_t j = 0; j < i; j++) {
        if (strcmp(disk->path, s->disks[j].path) == 0)
            return bad(f, field, err, "the same as that of disks[%u]", j);
    }
    (void)snprintf(field, sizeof(field), "disks[%u].size", i);
    r = check_disk_size(disk->size_bytes, field, f, err);
    if (r < 0)
        return r;
    (void)snprintf(field, sizeof(field), "disks[%u].serial", i);
    if (!only(disk->serial, LETTERS_DIGITS "._-+:"))
        return bad(f, field, err,
                   "\"%s\" has other characters than a-z, A-Z, 0-9 and ._-+:", disk->serial);
    (void)snprintf(field, sizeof(field), "disks[%u].cache", i);
    if (disk->cache != VM_CACHE_WRITEBACK && disk->cache != VM_CACHE_WRITETHROUGH)
        return bad(f, field, err, "must be \"writeback\" or \"writethrough\"");
    return 0;
}

static int check_disks(const struct vm_spec *s, char (*f)[32], struct err *err)
{
    if (s->n_disks > VM_DISKS_MAX)
        return bad(f, "disks", err, "more than %d disks", VM_DISKS_MAX);
    for (uint32_t i = 0; i < s->n_disks; i++) {
        int r = check_disk(s, i, f, err);

        if (r < 0)
            return r;
    }
    return 0;
}

static int check_lists(const struct vm_spec *s, char (*f)[32], struct err *err)
{
    int r;

    if (s->n_nics > VM_NICS_MAX)
        return bad(f, "nics", err, "more than %d NICs", VM_NICS_MAX);
    for (uint32_t i = 0; i < s->n_nics; i++) {
        r = check_nic(s, i, f, err);
        if (r < 0)
            return r;
    }
    r = check_disks(s, f, err);
    if (r < 0)
        return r;
    if (s->n_qemu_args > VM_ARGS_MAX)
        return bad(f, "qemu_args", err, "more than %d arguments", VM_ARGS_MAX);
    for (uint32_t i = 0; i < s->n_qemu_args; i++) {
        char field[32];

        (void)snprintf(field, sizeof(field), "qemu_args[%u]", i);
        if (!printable(s->qemu_args[i]))
            return bad(f, field, err, "has a control character");
    }
    return 0;
}

static int check_protect(const struct vm_protect *p, char (*f)[32], struct err *err)
{
    if (p->standby[0] && !wire_name_valid(p->standby))
        return bad(f, "protect.standby", err, "\"%s\" is not the name of a host", p->standby);
    if (p->interval_min_ns < INTERVAL_MIN_NS || p->interval_min_ns > INTERVAL_MAX_NS)
        return bad(f, "protect.interval.min", err, "not within 1ms to 10s");
    if (p->interval_max_ns < INTERVAL_MIN_NS || p->interval_max_ns > INTERVAL_MAX_NS)
        return bad(f, "protect.interval.max", err, "not within 1ms to 10s");
    if (p->interval_min_ns > p->interval_max_ns)
        return bad(f, "protect.interval.min", err, "longer than the longest interval");
    if (p->output != VM_OUTPUT_HOLD)
        return bad(f, "protect.output", err, "must be \"hold\"");
    if (p->engine != VM_ENGINE_DEFAULT && p->engine != VM_ENGINE_REMUS)
        return bad(f, "protect.engine", err, "must be \"default\" or \"remus\"");
    if (p->max_slowdown_permille < SLOWDOWN_MIN_PERMILLE ||
        p->max_slowdown_permille > SLOWDOWN_MAX_PERMILLE)
        return bad(f, "protect.max_slowdown", err, "not within 1%% to 90%%");
    if (p->outrun != VM_OUTRUN_THROTTLE && p->outrun != VM_OUTRUN_SOLO)
        return bad(f, "protect.outrun", err, "must be \"throttle\" or \"solo\"");
    if (p->copy_rate_bytes &&
        (p->copy_rate_bytes < COPY_RATE_MIN || p->copy_rate_bytes > INT64_MAX))
        return bad(f, "protect.copy_rate", err, "less than 64K a second, or too much");
    return 0;
}

int vm_spec_check(const struct vm_spec *s, char (*f)[32], struct err *err)
{
    int r;

    if (!wire_name_valid(s->name))
        return bad(f, "name", err, "\"%s\" is not a name (a-z, 0-9 and -, 63 at most)", s->name);
    if (s->memory_bytes % MIB || s->memory_bytes < MEMORY_MIN || s->memory_bytes > MEMORY_MAX)
        return bad(f, "memory", err, "not a whole number of MiB from 16M to 1024G");
    if (s->cpus < 1 || s->cpus > CPUS_MAX)
        return bad(f, "cpus", err, "%u is not in 1 to %d", s->cpus, CPUS_MAX);
    /* These become parts of QEMU's options, where a comma would start another one. */
    if (!only(s->machine, LETTERS_DIGITS "._-"))
        return bad(f, "machine", err, "\"%s\" is not a machine type", s->machine);
    if (!only(s->cpu_model, LETTERS_DIGITS "._-+=,"))
        return bad(f, "cpu", err, "\"%s\" is not a CPU model", s->cpu_model);
    if (s->accel[0] && strcmp(s->accel, "tcg") != 0 && strcmp(s->accel, "kvm") != 0)
        return bad(f, "accel", err, "\"%s\" is not an accelerator (tcg, kvm)", s->accel);
    if (s->virtio != VM_VIRTIO_LEGACY && s->virtio != VM_VIRTIO_TRANSITIONAL)
        return bad(f, "virtio", err, "must be \"legacy\" or \"transitional\"");

    r = check_boot(s, f, err);
    if (r == 0)
        r = check_lists(s, f, err);
    if (r == 0)
        r = check_protect(&s->protect, f, err);
    return r;
}
