/* SPDX-License-Identifier: Apache-2.0 */
#include "io/vm_json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"

void mac_format(const uint8_t mac[static 6], char text[static 18])
{
    (void)snprintf(text, 18, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
                   mac[4], mac[5]);
}

int mac_parse(const char *text, uint8_t mac[static 6])
{
    static const char hex[] = "0123456789abcdefABCDEF";
    uint8_t out[6];

    if (strlen(text) != 17)
        return -EINVAL;
    for (int i = 0; i < 6; i++) {
        const char *p = text + (size_t)i * 3;

        if (!strchr(hex, p[0]) || !strchr(hex, p[1]) || (i < 5 && p[2] != ':'))
            return -EINVAL;
        out[i] = (uint8_t)strtoul(p, NULL, 16);
    }
    memcpy(mac, out, sizeof(out));
    return 0;
}

/* Appends `value` (taken) to `list`; keeps NULL, which json_pack then reports. */
static json_t *append(json_t *list, json_t *value)
{
    if (json_array_append_new(list, value) == 0)
        return list;
    json_decref(list);
    return NULL;
}

static const char *const cache_names[] = {
    [VM_CACHE_WRITEBACK] = "writeback",
    [VM_CACHE_WRITETHROUGH] = "writethrough",
};

static const char *const virtio_names[] = {
    [VM_VIRTIO_LEGACY] = "legacy",
    [VM_VIRTIO_TRANSITIONAL] = "transitional",
};

static const char *const engine_names[] = {
    [VM_ENGINE_DEFAULT] = "default",
    [VM_ENGINE_REMUS] = "remus",
};

static const char *const outrun_names[] = {
    [VM_OUTRUN_THROTTLE] = "throttle",
    [VM_OUTRUN_SOLO] = "solo",
};

static json_t *disks_from_spec(const struct vm_spec *s)
{
    json_t *disks = json_array();

    for (uint32_t i = 0; i < s->n_disks; i++) {
        const struct vm_disk *disk = &s->disks[i];

        disks = append(disks,
                       json_pack("{s:s, s:I, s:s, s:b, s:s}", "path", disk->path, "size_bytes",
                                 (json_int_t)disk->size_bytes, "serial", disk->serial, "read_only",
                                 disk->read_only, "cache", cache_names[disk->cache]));
    }
    return disks;
}

static json_t *protect_from_spec(const struct vm_protect *p)
{
    return json_pack("{s:s, s:I, s:I, s:s, s:I, s:s, s:I, s:s}", "standby", p->standby,
                     "interval_min_ns", (json_int_t)p->interval_min_ns, "interval_max_ns",
                     (json_int_t)p->interval_max_ns, "output", "hold", "copy_rate_bytes",
                     (json_int_t)p->copy_rate_bytes, "engine", engine_names[p->engine],
                     "max_slowdown_permille", (json_int_t)p->max_slowdown_permille, "outrun",
                     outrun_names[p->outrun]);
}

json_t *vm_json_from_spec(const struct vm_spec *s)
{
    json_t *nics = json_array(), *args = json_array();

    for (uint32_t i = 0; i < s->n_nics; i++) {
        char mac[18];

        mac_format(s->nics[i].mac, mac);
        nics = append(nics, json_pack("{s:s,s:s}", "mac", mac, "bridge", s->nics[i].bridge));
    }
    for (uint32_t i = 0; i < s->n_qemu_args; i++)
        args = append(args, json_string(s->qemu_args[i]));

    return json_pack("{s:s, s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o,"
                     " s:o}",
                     "name", s->name, "memory_bytes", (json_int_t)s->memory_bytes, "cpus",
                     (json_int_t)s->cpus, "machine", s->machine, "cpu", s->cpu_model, "accel",
                     s->accel, "kernel", s->kernel, "initrd", s->initrd, "append", s->append,
                     "firmware", s->firmware, "virtio", virtio_names[s->virtio], "nics", nics,
                     "disks", disks_from_spec(s), "qemu_args", args, "protect",
                     protect_from_spec(&s->protect));
}

static int copy(char *to, size_t n_to, const char *from, const char *key, struct err *err)
{
    if ((size_t)snprintf(to, n_to, "%s", from) >= n_to)
        return err_set(err, -EPROTO, "%s: longer than %zu bytes", key, n_to - 1);
    return 0;
}

static int read_nics(json_t *list, struct vm_spec *s, struct err *err)
{
    if (json_array_size(list) > VM_NICS_MAX)
        return err_set(err, -EPROTO, "nics: more than %d", VM_NICS_MAX);
    for (; s->n_nics < json_array_size(list); s->n_nics++) {
        struct vm_nic *nic = &s->nics[s->n_nics];
        const char *mac, *bridge;
        json_error_t why;

        if (json_unpack_ex(json_array_get(list, s->n_nics), &why, JSON_STRICT, "{s:s, s:s}", "mac",
                           &mac, "bridge", &bridge) < 0)
            return err_set(err, -EPROTO, "nics[%u]: %s", s->n_nics, why.text);
        if (mac_parse(mac, nic->mac) < 0)
            return err_set(err, -EPROTO, "nics[%u].mac: not a MAC address", s->n_nics);
        if (copy(nic->bridge, sizeof(nic->bridge), bridge, "bridge", err) < 0)
            return -EPROTO;
    }
    return 0;
}

/* The place of a word in a table of them that begins with 1; NULL is the first; 0: there is none
 * such, which vm_spec_check() will refuse. */
static unsigned choice(const char *word, const char *const *names, unsigned last)
{
    for (unsigned i = 1; word && i <= last; i++) {
        if (strcmp(word, names[i]) == 0)
            return i;
    }
    return word ? 0 : 1;
}

static int read_disks(json_t *list, struct vm_spec *s, struct err *err)
{
    if (json_array_size(list) > VM_DISKS_MAX)
        return err_set(err, -EPROTO, "disks: more than %d", VM_DISKS_MAX);
    for (; s->n_disks < json_array_size(list); s->n_disks++) {
        struct vm_disk *disk = &s->disks[s->n_disks];
        const char *path, *serial, *cache;
        json_error_t why;
        json_int_t size;
        int read_only;

        if (json_unpack_ex(json_array_get(list, s->n_disks), &why, JSON_STRICT,
                           "{s:s, s:I, s:s, s:b, s:s}", "path", &path, "size_bytes", &size,
                           "serial", &serial, "read_only", &read_only, "cache", &cache) < 0)
            return err_set(err, -EPROTO, "disks[%u]: %s", s->n_disks, why.text);
        if (size < 0)
            return err_set(err, -EPROTO, "disks[%u].size_bytes: out of range", s->n_disks);
        disk->cache = choice(cache, cache_names, VM_CACHE_WRITETHROUGH);
        disk->size_bytes = (uint64_t)size;
        disk->read_only = read_only;
        if (copy(disk->path, sizeof(disk->path), path, "path", err) < 0 ||
            copy(disk->serial, sizeof(disk->serial), serial, "serial", err) < 0)
            return -EPROTO;
    }
    return 0;
}

static int read_args(json_t *list, struct vm_spec *s, struct err *err)
{
    if (json_array_size(list) > VM_ARGS_MAX)
        return err_set(err, -EPROTO, "qemu_args: more than %d", VM_ARGS_MAX);
    for (; s->n_qemu_args < json_array_size(list); s->n_qemu_args++) {
        const char *arg = json_string_value(json_array_get(list, s->n_qemu_args));

        if (!arg)
            return err_set(err, -EPROTO, "qemu_args[%u]: not a string", s->n_qemu_args);
        if (copy(s->qemu_args[s->n_qemu_args], VM_ARG_LEN_MAX, arg, "qemu_args", err) < 0)
            return -EPROTO;
    }
    return 0;
}

/* The texts of a definition, borrowed from the JSON. */
struct spec_texts {
    const char *name, *machine, *cpu, *accel, *kernel, *initrd, *append, *firmware, *virtio;
};

static int read_protect(json_t *json, struct vm_protect *p, struct err *err)
{
    json_int_t interval_min, interval_max, copy_rate, slowdown = VM_SLOWDOWN_DEFAULT_PERMILLE;
    const char *standby, *output, *engine = NULL, *outrun = NULL;
    json_error_t why;

    if (json_unpack_ex(json, &why, JSON_STRICT, "{s:s, s:I, s:I, s:s, s:I, s?s, s?I, s?s}",
                       "standby", &standby, "interval_min_ns", &interval_min, "interval_max_ns",
                       &interval_max, "output", &output, "copy_rate_bytes", &copy_rate, "engine",
                       &engine, "max_slowdown_permille", &slowdown, "outrun", &outrun) < 0)
        return err_set(err, -EPROTO, "protect: %s", why.text);
    if (interval_min < 0 || interval_max < 0 || copy_rate < 0 || slowdown < 0 ||
        slowdown > UINT32_MAX)
        return err_set(err, -EPROTO, "protect: a number is out of range");
    if (strcmp(output, "hold") != 0)
        return err_set(err, -EPROTO, "protect.output: not \"hold\"");
    *p = (struct vm_protect){
        .interval_min_ns = (uint64_t)interval_min,
        .interval_max_ns = (uint64_t)interval_max,
        .output = VM_OUTPUT_HOLD,
        .engine = choice(engine, engine_names, VM_ENGINE_REMUS),
        .copy_rate_bytes = (uint64_t)copy_rate,
        .max_slowdown_permille = (uint32_t)slowdown,
        .outrun = choice(outrun, outrun_names, VM_OUTRUN_SOLO),
    };
    return copy(p->standby, sizeof(p->standby), standby, "protect.standby", err);
}

static int read_texts(const struct spec_texts *t, struct vm_spec *s, struct err *err)
{
    const struct {
        char *to;
        size_t n_to;
        const char *from, *key;
    } texts[] = {
        {s->name, sizeof(s->name), t->name, "name"},
        {s->machine, sizeof(s->machine), t->machine, "machine"},
        {s->cpu_model, sizeof(s->cpu_model), t->cpu, "cpu"},
        {s->accel, sizeof(s->accel), t->accel, "accel"},
        {s->kernel, sizeof(s->kernel), t->kernel, "kernel"},
        {s->initrd, sizeof(s->initrd), t->initrd, "initrd"},
        {s->append, sizeof(s->append), t->append, "append"},
        {s->firmware, sizeof(s->firmware), t->firmware, "firmware"},
    };

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        int r = copy(texts[i].to, texts[i].n_to, texts[i].from, texts[i].key, err);

        if (r < 0)
            return r;
    }
    return 0;
}

int vm_json_to_spec(const json_t *json, struct vm_spec *ret_spec, struct err *err)
{
    struct vm_spec s = {0};
    /* Where nothing is said, it is by a host that knows of nothing else. */
    struct spec_texts t = {.virtio = virtio_names[VM_VIRTIO_TRANSITIONAL]};
    json_t *nics, *disks, *args, *protect;
    json_int_t memory, cpus;
    json_error_t why;
    char field[32];
    int r;

    if (!json)
        return err_set(err, -EPROTO, "there is no definition");
    /* json_unpack does not change what it reads; its parameter is not const for old callers. */
    if (json_unpack_ex((json_t *)(uintptr_t)json, &why, JSON_STRICT,
                       "{s:s, s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s?s, s:o, s:o, s:o,"
                       " s:o}",
                       "name", &t.name, "memory_bytes", &memory, "cpus", &cpus, "machine",
                       &t.machine, "cpu", &t.cpu, "accel", &t.accel, "kernel", &t.kernel, "initrd",
                       &t.initrd, "append", &t.append, "firmware", &t.firmware, "virtio", &t.virtio,
                       "nics", &nics, "disks", &disks, "qemu_args", &args, "protect", &protect) < 0)
        return err_set(err, -EPROTO, "%s", why.text);
    if (!json_is_array(nics) || !json_is_array(disks) || !json_is_array(args))
        return err_set(err, -EPROTO, "nics, disks and qemu_args must be lists");
    if (memory < 0 || cpus < 0 || cpus > UINT32_MAX)
        return err_set(err, -EPROTO, "a number is out of range");
    s.memory_bytes = (uint64_t)memory;
    s.cpus = (uint32_t)cpus;
    s.virtio = choice(t.virtio, virtio_names, VM_VIRTIO_TRANSITIONAL);

    r = read_texts(&t, &s, err);
    if (r == 0)
        r = read_nics(nics, &s, err);
    if (r == 0)
        r = read_disks(disks, &s, err);
    if (r == 0)
        r = read_args(args, &s, err);
    if (r == 0)
        r = read_protect(protect, &s.protect, err);
    if (r < 0)
        return r;
    if (vm_spec_check(&s, &field, err) < 0) {
        if (field[0])
            err_prefix(err, "%s", field);
        return -EPROTO;
    }
    *ret_spec = s;
    return 0;
}

int vm_json_encode(const struct vm_spec *spec, char **ret_text)
{
    json_t *json = vm_json_from_spec(spec);
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

    json_decref(json);
    if (!text)
        return -ENOMEM;
    *ret_text = text;
    return 0;
}

int vm_json_decode(const char *text, size_t n_text, struct vm_spec *ret_spec, struct err *err)
{
    json_error_t why;
    json_t *json;
    int r;

    if (n_text > VM_JSON_MAX)
        return err_set(err, -EPROTO, "longer than %d bytes", VM_JSON_MAX);
    json = json_loadb(text, n_text, JSON_REJECT_DUPLICATES, &why);
    if (!json)
        return err_set(err, -EPROTO, "not JSON: %s", why.text);
    r = vm_json_to_spec(json, ret_spec, err);
    json_decref(json);
    return r;
}
