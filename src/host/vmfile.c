/* SPDX-License-Identifier: Apache-2.0 */
#include "host/vmfile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "io/vm_json.h"
#include "io/yamlfile.h"

#define INTERVAL_MIN_DEFAULT_NS UINT64_C(2000000)
#define INTERVAL_MAX_DEFAULT_NS UINT64_C(500000000)

/* The file as libcyaml fills it in: NULL or 0 where a key is missing. */
struct nic_text {
    char *mac, *bridge;
};

struct interval_text {
    char *min, *max;
};

struct disk_text {
    char *path, *size, *serial, *read_only, *cache;
};

struct protect_text {
    char *standby, *output, *copy_rate, *engine, *max_slowdown, *outrun;
    struct interval_text interval;
};

struct vm_text {
    char *name, *memory, *machine, *cpu, *kernel, *initrd, *append, *firmware, *virtio;
    uint32_t cpus;
    struct nic_text *nics;
    uint32_t nics_count;
    struct disk_text *disks;
    uint32_t disks_count;
    char **qemu_args;
    uint32_t qemu_args_count;
    struct protect_text protect;
};

#define TEXT(structure, key, flags, size)                                                          \
    CYAML_FIELD_STRING_PTR(#key, flags, struct structure, key, 1, (size)-1)

static const cyaml_schema_field_t nic_fields[] = {
    TEXT(nic_text, mac, CYAML_FLAG_OPTIONAL, 18),
    TEXT(nic_text, bridge, 0, VM_BRIDGE_MAX),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t disk_fields[] = {
    TEXT(disk_text, path, 0, VM_PATH_MAX),
    TEXT(disk_text, size, CYAML_FLAG_OPTIONAL, 32),
    TEXT(disk_text, serial, CYAML_FLAG_OPTIONAL, VM_SERIAL_BYTES),
    TEXT(disk_text, read_only, CYAML_FLAG_OPTIONAL, 32),
    TEXT(disk_text, cache, CYAML_FLAG_OPTIONAL, 32),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t interval_fields[] = {
    TEXT(interval_text, min, CYAML_FLAG_OPTIONAL, 32),
    TEXT(interval_text, max, CYAML_FLAG_OPTIONAL, 32),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t protect_fields[] = {
    TEXT(protect_text, standby, 0, HOST_NAME_BYTES),
    TEXT(protect_text, output, CYAML_FLAG_OPTIONAL, 32),
    CYAML_FIELD_MAPPING("interval", CYAML_FLAG_OPTIONAL, struct protect_text, interval,
                        interval_fields),
    TEXT(protect_text, copy_rate, CYAML_FLAG_OPTIONAL, 32),
    TEXT(protect_text, engine, CYAML_FLAG_OPTIONAL, 32),
    TEXT(protect_text, max_slowdown, CYAML_FLAG_OPTIONAL, 32),
    TEXT(protect_text, outrun, CYAML_FLAG_OPTIONAL, 32),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t nic_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct nic_text, nic_fields),
};

static const cyaml_schema_value_t disk_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct disk_text, disk_fields),
};

static const cyaml_schema_value_t arg_schema = {
    CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char *, 0, VM_ARG_LEN_MAX - 1),
};

static const cyaml_schema_field_t vm_fields[] = {
    TEXT(vm_text, name, 0, VM_NAME_MAX),
    TEXT(vm_text, memory, 0, 32),
    CYAML_FIELD_UINT("cpus", CYAML_FLAG_OPTIONAL, struct vm_text, cpus),
    TEXT(vm_text, machine, CYAML_FLAG_OPTIONAL, 64),
    TEXT(vm_text, cpu, CYAML_FLAG_OPTIONAL, 64),
    TEXT(vm_text, kernel, CYAML_FLAG_OPTIONAL, VM_PATH_MAX),
    TEXT(vm_text, initrd, CYAML_FLAG_OPTIONAL, VM_PATH_MAX),
    TEXT(vm_text, append, CYAML_FLAG_OPTIONAL, VM_APPEND_MAX),
    TEXT(vm_text, firmware, CYAML_FLAG_OPTIONAL, VM_PATH_MAX),
    TEXT(vm_text, virtio, CYAML_FLAG_OPTIONAL, 32),
    CYAML_FIELD_SEQUENCE("nics", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct vm_text, nics,
                         &nic_schema, 0, VM_NICS_MAX),
    CYAML_FIELD_SEQUENCE("disks", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct vm_text, disks,
                         &disk_schema, 0, VM_DISKS_MAX),
    CYAML_FIELD_SEQUENCE("qemu_args", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct vm_text,
                         qemu_args, &arg_schema, 0, VM_ARGS_MAX),
    CYAML_FIELD_MAPPING("protect", CYAML_FLAG_OPTIONAL, struct vm_text, protect, protect_fields),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t vm_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct vm_text, vm_fields),
};

struct unit {
    const char *name;
    uint64_t factor;
};

/* Reads a whole number with a unit, as "256M". -EINVAL for anything else, also for an overflow. */
static int number_with_unit(const char *text, const struct unit *units, uint64_t *ret_value)
{
    char *end;
    unsigned long long number;

    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    errno = 0;
    number = strtoull(text, &end, 10);
    if (errno)
        return -EINVAL;
    for (; units->name; units++) {
        if (strcmp(end, units->name) == 0)
            return __builtin_mul_overflow(number, units->factor, ret_value) ? -EINVAL : 0;
    }
    return -EINVAL;
}

/* Numbers of bytes. The first one is for plain bytes. */
static const struct unit byte_units[] = {
    {"", 1},
    {"K", UINT64_C(1) << 10},
    {"KiB", UINT64_C(1) << 10},
    {"M", UINT64_C(1) << 20},
    {"MiB", UINT64_C(1) << 20},
    {"G", UINT64_C(1) << 30},
    {"GiB", UINT64_C(1) << 30},
    {"T", UINT64_C(1) << 40},
    {"TiB", UINT64_C(1) << 40},
    {NULL, 0},
};

int vmfile_bytes(const char *text, uint64_t *ret_bytes)
{
    return number_with_unit(text, byte_units, ret_bytes);
}

static int take_memory(const struct yamlfile *y, const char *text, struct vm_spec *spec,
                       struct err *err)
{
    if (number_with_unit(text, byte_units + 1, &spec->memory_bytes) < 0)
        return yamlfile_fail(y, err, "memory", "\"%s\" is not a size such as 256M or 2G", text);
    return 0;
}

static int take_interval(const struct yamlfile *y, const char *path, const char *text,
                         uint64_t *ret_ns, struct err *err)
{
    static const struct unit units[] = {
        {"us", UINT64_C(1000)},
        {"ms", UINT64_C(1000000)},
        {"s", UINT64_C(1000000000)},
        {NULL, 0},
    };

    if (text && number_with_unit(text, units, ret_ns) < 0)
        return yamlfile_fail(y, err, path, "\"%s\" is not a time such as 5ms or 1s", text);
    return 0;
}

/* Reads one of two words; NULL is the first. *ret_choice is its place in the list. */
static int take_choice(const struct yamlfile *y, const char *key, const char *text,
                       const char *const words[2], unsigned *ret_choice, struct err *err)
{
    *ret_choice = 0;
    for (unsigned i = 0; text; i++) {
        if (i == 2)
            return yamlfile_fail(y, err, key, "\"%s\" is neither %s nor %s", text, words[0],
                                 words[1]);
        if (strcmp(text, words[i]) == 0) {
            *ret_choice = i;
            break;
        }
    }
    return 0;
}

/* How checkpoints are made, and how much they may disturb. */
static int take_effort(const struct yamlfile *y, const struct protect_text *text,
                       struct vm_protect *protect, struct err *err)
{
    static const char *const engines[] = {"default", "remus"};
    static const char *const policies[] = {"throttle", "solo"};
    static const struct unit units[] = {{"%", 10}, {NULL, 0}};
    uint64_t permille = VM_SLOWDOWN_DEFAULT_PERMILLE;
    unsigned engine, outrun;
    int r = take_choice(y, "protect.engine", text->engine, engines, &engine, err);

    if (r == 0)
        r = take_choice(y, "protect.outrun", text->outrun, policies, &outrun, err);
    if (r < 0)
        return r;
    if (text->max_slowdown &&
        (number_with_unit(text->max_slowdown, units, &permille) < 0 || permille > UINT32_MAX))
        return yamlfile_fail(y, err, "protect.max_slowdown", "\"%s\" is not a share such as 25%%",
                             text->max_slowdown);
    protect->engine = VM_ENGINE_DEFAULT + engine;
    protect->outrun = VM_OUTRUN_THROTTLE + outrun;
    protect->max_slowdown_permille = (uint32_t)permille;
    return 0;
}

static int take_protect(const struct yamlfile *y, const struct protect_text *text,
                        struct vm_protect *protect, struct err *err)
{
    int r;

    *protect = (struct vm_protect){
        .interval_min_ns = INTERVAL_MIN_DEFAULT_NS,
        .interval_max_ns = INTERVAL_MAX_DEFAULT_NS,
        .output = VM_OUTPUT_HOLD,
    };
    if (text->output && strcmp(text->output, "hold") != 0)
        return yamlfile_fail(y, err, "protect.output", "\"%s\" is not supported; only hold is",
                             text->output);
    if (text->copy_rate && vmfile_bytes(text->copy_rate, &protect->copy_rate_bytes) < 0)
        return yamlfile_fail(y, err, "protect.copy_rate",
                             "\"%s\" is not a number of bytes per second such as 100M",
                             text->copy_rate);
    (void)snprintf(protect->standby, sizeof(protect->standby), "%s",
                   text->standby ? text->standby : "");
    r = take_effort(y, text, protect, err);
    if (r == 0)
        r = take_interval(y, "protect.interval.min", text->interval.min, &protect->interval_min_ns,
                          err);
    if (r == 0)
        r = take_interval(y, "protect.interval.max", text->interval.max, &protect->interval_max_ns,
                          err);
    return r;
}

/* A stable address for a NIC without one: QEMU's locally administered prefix, then bits that depend
 * on the VM's name and the NIC's place alone, so that the guest sees the same NIC at every start.
 */
static void derive_mac(const char *vm, uint32_t index, uint8_t mac[6])
{
    char key[VM_NAME_MAX + 16];
    int n = snprintf(key, sizeof(key), "%s/%u", vm, index);
    uint64_t hash = XXH64(key, (size_t)n, 0);

    mac[0] = 0x52;
    mac[1] = 0x54;
    mac[2] = 0x00;
    mac[3] = (uint8_t)hash;
    mac[4] = (uint8_t)(hash >> 8);
    mac[5] = (uint8_t)(hash >> 16);
}

static int take_nics(const struct yamlfile *y, const struct vm_text *text, struct vm_spec *spec,
                     struct err *err)
{
    for (uint32_t i = 0; i < text->nics_count; i++) {
        const struct nic_text *nic = &text->nics[i];
        char path[YAML_PATH_MAX];

        (void)snprintf(path, sizeof(path), "nics[%u].mac", i);
        if (!nic->mac)
            derive_mac(spec->name, i, spec->nics[i].mac);
        else if (mac_parse(nic->mac, spec->nics[i].mac) < 0)
            return yamlfile_fail(y, err, path,
                                 "\"%s\" is not a MAC address such as 52:54:00:12:34:56", nic->mac);
        (void)snprintf(spec->nics[i].bridge, VM_BRIDGE_MAX, "%s", nic->bridge);
        spec->n_nics = i + 1;
    }
    return 0;
}

/* A path as the host needs it: relative ones start from the VM file's directory. */
static int take_path(const struct yamlfile *y, const char *key, const char *file, const char *text,
                     char path[VM_PATH_MAX], struct err *err)
{
    CLEANUP_FREE char *dir = NULL;
    const char *slash = strrchr(file, '/');
    int n;

    if (!text || text[0] == '/') {
        (void)snprintf(path, VM_PATH_MAX, "%s", text ? text : "");
        return 0;
    }
    if (slash && slash != file) {
        CLEANUP_FREE char *relative = strndup(file, (size_t)(slash - file));

        dir = relative ? realpath(relative, NULL) : NULL;
    } else {
        dir = realpath(slash ? "/" : ".", NULL);
    }
    if (!dir)
        return yamlfile_fail(y, err, key, "cannot find the directory of %s", file);
    n = snprintf(path, VM_PATH_MAX, "%s/%s", dir[1] ? dir : "", text);
    if (n >= VM_PATH_MAX)
        return yamlfile_fail(y, err, key, "longer than %d characters with its directory",
                             VM_PATH_MAX - 1);
    return 0;
}

static int take_boot(const struct yamlfile *y, const struct vm_text *text, const char *file,
                     struct vm_spec *spec, struct err *err)
{
    int r = take_path(y, "kernel", file, text->kernel, spec->kernel, err);

    if (r == 0)
        r = take_path(y, "initrd", file, text->initrd, spec->initrd, err);
    if (r == 0)
        r = take_path(y, "firmware", file, text->firmware, spec->firmware, err);
    (void)snprintf(spec->append, sizeof(spec->append), "%s", text->append ? text->append : "");
    return r;
}

static const char *disk_key(char key[YAML_PATH_MAX], uint32_t i, const char *member)
{
    (void)snprintf(key, YAML_PATH_MAX, "disks[%u].%s", i, member);
    return key;
}

static int take_disk(const struct yamlfile *y, const struct disk_text *text, const char *file,
                     uint32_t i, struct vm_disk *disk, struct err *err)
{
    static const char *const truth[] = {"false", "true"};
    static const char *const caches[] = {"writeback", "writethrough"};
    char key[YAML_PATH_MAX];
    unsigned read_only, cache;
    int r;

    if (text->size && (vmfile_bytes(text->size, &disk->size_bytes) < 0 || disk->size_bytes == 0))
        return yamlfile_fail(y, err, disk_key(key, i, "size"),
                             "\"%s\" is not a size such as 512M or 10G", text->size);
    (void)snprintf(disk->serial, sizeof(disk->serial), "%s", text->serial ? text->serial : "");
    r = take_path(y, disk_key(key, i, "path"), file, text->path, disk->path, err);
    if (r == 0)
        r = take_choice(y, disk_key(key, i, "read_only"), text->read_only, truth, &read_only, err);
    if (r == 0)
        r = take_choice(y, disk_key(key, i, "cache"), text->cache, caches, &cache, err);
    if (r < 0)
        return r;
    disk->read_only = read_only;
    disk->cache = VM_CACHE_WRITEBACK + cache;
    return 0;
}

/* The size of an image in bytes. -ENOTBLK: it is neither a file nor a block device. */
static int image_size(const char *path, uint64_t *ret_bytes)
{
    CLEANUP_FD int fd = -1;
    struct stat st;

    if (stat(path, &st) < 0)
        return -errno;
    if (S_ISREG(st.st_mode)) {
        *ret_bytes = (uint64_t)st.st_size;
        return 0;
    }
    if (!S_ISBLK(st.st_mode))
        return -ENOTBLK;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 || ioctl(fd, BLKGETSIZE64, ret_bytes) < 0 ? -errno : 0;
}

/* A new image needs a size, and a directory to be made in. */
static int check_new_image(const struct yamlfile *y, const char *key, const struct vm_disk *disk,
                           struct err *err)
{
    char dir[VM_PATH_MAX];
    struct stat st;
    int n_dir = (int)(strrchr(disk->path, '/') - disk->path);

    (void)snprintf(dir, sizeof(dir), "%.*s/", n_dir, disk->path);
    if (stat(dir, &st) < 0)
        return yamlfile_fail(y, err, key, "%s: %s", dir, strerror(errno));
    if (disk->size_bytes == 0)
        return yamlfile_fail(y, err, key, "%s does not exist; give a size, and it will be made",
                             disk->path);
    return 0;
}

/* Fits the definition to what is there already. */
static int take_image(const struct yamlfile *y, const char *key, struct vm_disk *disk,
                      struct err *err)
{
    uint64_t there, rest;
    int r = image_size(disk->path, &there);

    if (r == -ENOENT)
        return check_new_image(y, key, disk, err);
    if (r == -ENOTBLK)
        return yamlfile_fail(y, err, key, "%s is neither a file nor a block device", disk->path);
    if (r < 0)
        return yamlfile_fail(y, err, key, "%s: %s", disk->path, strerror(-r));
    if (disk->size_bytes && disk->size_bytes != there)
        return yamlfile_fail(y, err, key,
                             "%s has %" PRIu64 " bytes, but its size here is %" PRIu64
                             " (it may be left out)",
                             disk->path, there, disk->size_bytes);
    rest = there % VM_PAGE_BYTES;
    if (there == 0 || rest)
        return yamlfile_fail(y, err, key,
                             "%s has %" PRIu64 " bytes, not a multiple of %" PRIu64
                             "; the next one is %" PRIu64,
                             disk->path, there, VM_PAGE_BYTES, there - rest + VM_PAGE_BYTES);
    disk->size_bytes = there;
    return 0;
}

static int take_disks(const struct yamlfile *y, const struct vm_text *text, const char *file,
                      bool with_files, struct vm_spec *spec, struct err *err)
{
    for (uint32_t i = 0; i < text->disks_count; i++) {
        struct vm_disk *disk = &spec->disks[i];
        char key[YAML_PATH_MAX];
        int r = take_disk(y, &text->disks[i], file, i, disk, err);

        if (r == 0 && with_files)
            r = take_image(y, disk_key(key, i, "path"), disk, err);
        if (r < 0)
            return r;
        spec->n_disks = i + 1;
    }
    return 0;
}

static int take_machine(const struct yamlfile *y, const struct vm_text *text, struct vm_spec *spec,
                        struct err *err)
{
    static const char *const interfaces[] = {"legacy", "transitional"};
    unsigned virtio;
    int r = take_choice(y, "virtio", text->virtio, interfaces, &virtio, err);

    if (r < 0)
        return r;
    spec->virtio = VM_VIRTIO_LEGACY + virtio;
    (void)snprintf(spec->name, sizeof(spec->name), "%s", text->name);
    (void)snprintf(spec->machine, sizeof(spec->machine), "%s", text->machine ? text->machine : "");
    (void)snprintf(spec->cpu_model, sizeof(spec->cpu_model), "%s",
                   text->cpu ? text->cpu : "qemu64");
    spec->cpus = yamlfile_line(y, "cpus") ? text->cpus : 1;
    for (uint32_t i = 0; i < text->qemu_args_count; i++) {
        (void)snprintf(spec->qemu_args[i], VM_ARG_LEN_MAX, "%s", text->qemu_args[i]);
        spec->n_qemu_args = i + 1;
    }
    return 0;
}

static int convert(const struct yamlfile *y, const struct vm_text *text, const char *file,
                   bool with_files, struct vm_spec *spec, struct err *err)
{
    char field[32];
    struct err why;
    int r = take_machine(y, text, spec, err);

    if (r == 0)
        r = take_memory(y, text->memory, spec, err);
    if (r == 0)
        r = take_boot(y, text, file, spec, err);
    if (r == 0)
        r = take_nics(y, text, spec, err);
    if (r == 0)
        r = take_disks(y, text, file, with_files, spec, err);
    if (r == 0)
        r = take_protect(y, &text->protect, &spec->protect, err);
    if (r == 0 && vm_spec_check(spec, &field, &why) < 0)
        r = yamlfile_fail(y, err, field, "%s", why.text);
    return r;
}

/* The files that the VM boots from must be there. */
static int check_files(const struct yamlfile *y, const struct vm_spec *spec, struct err *err)
{
    const struct {
        const char *key, *path;
    } files[] = {
        {"kernel", spec->kernel},
        {"initrd", spec->initrd},
        {"firmware", spec->firmware},
    };

    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        if (files[i].path[0] && access(files[i].path, R_OK) < 0)
            return yamlfile_fail(y, err, files[i].key, "%s: %s", files[i].path, strerror(errno));
    }
    return 0;
}

static int read_text(const char *text, size_t n_text, const char *file, bool with_files,
                     struct vm_spec *ret_spec, struct err *err)
{
    struct vm_spec spec = {0};
    struct yamlfile *y;
    void *data = NULL;
    int r = yamlfile_open(text, n_text, file, &y, err);

    if (r < 0)
        return r;
    r = yamlfile_read(y, &vm_schema, &data, err);
    if (r == 0)
        r = convert(y, data, file, with_files, &spec, err);
    if (r == 0 && with_files)
        r = check_files(y, &spec, err);
    yamlfile_data_free(&vm_schema, data);
    yamlfile_free(y);
    if (r == 0)
        *ret_spec = spec;
    return r;
}

int vmfile_parse(const char *text, size_t n_text, const char *file, struct vm_spec *ret_spec,
                 struct err *err)
{
    return read_text(text, n_text, file, false, ret_spec, err);
}

int vmfile_load(const char *path, struct vm_spec *ret_spec, struct err *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t n;
    int r = yamlfile_slurp(path, &text, &n, err);

    return r < 0 ? r : read_text(text, n, path, true, ret_spec, err);
}
