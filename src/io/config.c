/* SPDX-License-Identifier: Apache-2.0 */
#include "io/config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "io/yamlfile.h"
#include "wire/msg.h"

/* The file as libcyaml fills it in: pointers, NULL or 0 where a key is missing. */
struct peer_text {
    char *name, *address;
};

struct arbiter_text {
    char *witness;
};

struct config_text {
    char *name, *listen, *state_dir, *run_dir, *memory_dir, *emulator, *guard;
    struct peer_text *peers;
    uint32_t peers_count;
    struct arbiter_text arbiter;
    struct host_timeouts timeouts;
    uint32_t staging_mib, gate_mib, disk_journal_mib;
    char **disk_dirs;
    uint32_t disk_dirs_count;
};

static const cyaml_schema_field_t peer_fields[] = {
    CYAML_FIELD_STRING_PTR("name", 0, struct peer_text, name, 1, HOST_NAME_BYTES - 1),
    CYAML_FIELD_STRING_PTR("address", 0, struct peer_text, address, 1, HOST_ADDRESS_MAX - 1),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t peer_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct peer_text, peer_fields),
};

static const cyaml_schema_field_t arbiter_fields[] = {
    CYAML_FIELD_STRING_PTR("witness", 0, struct arbiter_text, witness, 1, HOST_ADDRESS_MAX - 1),
    CYAML_FIELD_END,
};

static const cyaml_schema_field_t timeouts_fields[] = {
    CYAML_FIELD_UINT("heartbeat_ms", CYAML_FLAG_OPTIONAL, struct host_timeouts, heartbeat_ms),
    CYAML_FIELD_UINT("standby_ms", CYAML_FLAG_OPTIONAL, struct host_timeouts, standby_ms),
    CYAML_FIELD_UINT("primary_ms", CYAML_FLAG_OPTIONAL, struct host_timeouts, primary_ms),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t path_schema = {
    CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char *, 1, VM_PATH_MAX - 1),
};

#define OPTIONAL_PATH(key)                                                                         \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_OPTIONAL, struct config_text, key, 1, VM_PATH_MAX - 1)
#define OPTIONAL_NUMBER(key) CYAML_FIELD_UINT(#key, CYAML_FLAG_OPTIONAL, struct config_text, key)

static const cyaml_schema_field_t config_fields[] = {
    CYAML_FIELD_STRING_PTR("name", 0, struct config_text, name, 1, HOST_NAME_BYTES - 1),
    CYAML_FIELD_STRING_PTR("listen", 0, struct config_text, listen, 1, HOST_ADDRESS_MAX - 1),
    CYAML_FIELD_SEQUENCE("peers", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct config_text,
                         peers, &peer_schema, 0, HOST_PEERS_MAX),
    CYAML_FIELD_MAPPING("arbiter", 0, struct config_text, arbiter, arbiter_fields),
    OPTIONAL_PATH(state_dir),
    OPTIONAL_PATH(run_dir),
    OPTIONAL_PATH(memory_dir),
    OPTIONAL_PATH(emulator),
    OPTIONAL_PATH(guard),
    CYAML_FIELD_MAPPING("timeouts", CYAML_FLAG_OPTIONAL, struct config_text, timeouts,
                        timeouts_fields),
    OPTIONAL_NUMBER(staging_mib),
    OPTIONAL_NUMBER(gate_mib),
    OPTIONAL_NUMBER(disk_journal_mib),
    CYAML_FIELD_SEQUENCE("disk_dirs", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct config_text,
                         disk_dirs, &path_schema, 0, HOST_DISK_DIRS_MAX),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t config_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct config_text, config_fields),
};

/* True for "A.B.C.D:PORT" or "[IPV6]:PORT". */
static bool address_valid(const char *address)
{
    char ip[HOST_ADDRESS_MAX];
    uint8_t binary[sizeof(struct in6_addr)];
    const char *colon = strrchr(address, ':');
    size_t n_ip = colon ? (size_t)(colon - address) : 0;
    size_t n_port = colon ? strlen(colon + 1) : 0;
    bool v6 = address[0] == '[';

    if (n_ip < 2 || n_port < 1 || n_port > 5 || strspn(colon + 1, "0123456789") != n_port ||
        atoi(colon + 1) < 1 || atoi(colon + 1) > 65535)
        return false;
    if (v6 && address[n_ip - 1] != ']')
        return false;
    (void)snprintf(ip, sizeof(ip), "%.*s", (int)(v6 ? n_ip - 2 : n_ip), address + v6);
    return inet_pton(v6 ? AF_INET6 : AF_INET, ip, binary) == 1;
}

static int take_name(const struct yamlfile *y, const char *path, const char *text,
                     char name[HOST_NAME_BYTES], struct err *err)
{
    if (!wire_name_valid(text))
        return yamlfile_fail(y, err, path, "\"%s\" is not a name (a-z, 0-9 and -, 63 at most)",
                             text);
    (void)snprintf(name, HOST_NAME_BYTES, "%s", text);
    return 0;
}

static int take_address(const struct yamlfile *y, const char *path, const char *text,
                        char address[HOST_ADDRESS_MAX], struct err *err)
{
    if (!address_valid(text))
        return yamlfile_fail(
            y, err, path, "\"%s\" is not IP:PORT (as 192.0.2.1:7700 or [2001:db8::1]:7700)", text);
    (void)snprintf(address, HOST_ADDRESS_MAX, "%s", text);
    return 0;
}

static int take_dir(const struct yamlfile *y, const char *path, const char *text,
                    const char *fallback, char dir[VM_PATH_MAX], struct err *err)
{
    size_t n = (size_t)snprintf(dir, VM_PATH_MAX, "%s", text ? text : fallback);

    if (dir[0] != '/')
        return yamlfile_fail(y, err, path, "\"%s\" is not an absolute path", text);
    while (n > 1 && dir[n - 1] == '/')
        dir[--n] = '\0';
    return 0;
}

static int take_number(const struct yamlfile *y, const char *path, uint32_t given,
                       uint32_t fallback, uint32_t min, uint32_t max, uint32_t *ret_number,
                       struct err *err)
{
    *ret_number = yamlfile_line(y, path) ? given : fallback;
    if (*ret_number < min || *ret_number > max)
        return yamlfile_fail(y, err, path, "%u is not in %u to %u", *ret_number, min, max);
    return 0;
}

static int take_peers(const struct yamlfile *y, const struct config_text *text,
                      struct host_config *config, struct err *err)
{
    for (uint32_t i = 0; i < text->peers_count; i++) {
        struct host_peer *peer = &config->peers[i];
        char path[YAML_PATH_MAX];
        int r;

        (void)snprintf(path, sizeof(path), "peers[%u].name", i);
        r = take_name(y, path, text->peers[i].name, peer->name, err);
        if (r < 0)
            return r;
        if (strcmp(peer->name, config->name) == 0)
            return yamlfile_fail(y, err, path, "this is the host itself, not a peer");
        if (host_config_peer(config, peer->name))
            return yamlfile_fail(y, err, path, "peer %s is given twice", peer->name);
        (void)snprintf(path, sizeof(path), "peers[%u].address", i);
        r = take_address(y, path, text->peers[i].address, peer->address, err);
        if (r < 0)
            return r;
        config->n_peers = i + 1;
    }
    return 0;
}

static int take_timeouts(const struct yamlfile *y, const struct host_timeouts *text,
                         struct host_timeouts *t, struct err *err)
{
    int r = take_number(y, "timeouts.heartbeat_ms", text->heartbeat_ms, 20, 1, 10000,
                        &t->heartbeat_ms, err);

    if (r == 0)
        r = take_number(y, "timeouts.standby_ms", text->standby_ms, 100, 3, 60000, &t->standby_ms,
                        err);
    if (r == 0)
        r = take_number(y, "timeouts.primary_ms", text->primary_ms, 150, 4, 60000, &t->primary_ms,
                        err);
    if (r < 0)
        return r;
    if (t->heartbeat_ms * 3 > t->standby_ms)
        return yamlfile_fail(y, err, "timeouts.standby_ms",
                             "%u ms is less than three heartbeats of %u ms", t->standby_ms,
                             t->heartbeat_ms);
    if (t->standby_ms >= t->primary_ms)
        return yamlfile_fail(
            y, err, "timeouts.primary_ms",
            "%u ms must be more than standby_ms (%u ms): where only the link breaks, "
            "the primary has to be the first to ask the arbiter",
            t->primary_ms, t->standby_ms);
    return 0;
}

/* The program understudy-guard: beside the running program (a build tree, or an installation that
 * was moved), or where it is installed. */
static void guard_default(char guard[VM_PATH_MAX])
{
    static const char *const beside[] = {"understudy-guard", "../understudy-guard"};
    char exe[VM_PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    char *slash;

    exe[n > 0 ? n : 0] = '\0';
    slash = strrchr(exe, '/');
    for (size_t i = 0; slash && i < sizeof(beside) / sizeof(beside[0]); i++) {
        int n_dir = (int)(slash - exe);
        int len = snprintf(guard, VM_PATH_MAX, "%.*s/%s", n_dir, exe, beside[i]);

        if (len < VM_PATH_MAX && access(guard, X_OK) == 0)
            return;
    }
    (void)snprintf(guard, VM_PATH_MAX, "%s/understudy-guard", US_LIBEXECDIR);
}

static int take_paths(const struct yamlfile *y, const struct config_text *text,
                      struct host_config *config, struct err *err)
{
    char guard[VM_PATH_MAX];
    int r;

    guard_default(guard);
    r = take_dir(y, "state_dir", text->state_dir, "/var/lib/understudy", config->state_dir, err);
    if (r == 0)
        r = take_dir(y, "run_dir", text->run_dir, "/run/understudy", config->run_dir, err);
    if (r == 0)
        r = take_dir(y, "memory_dir", text->memory_dir, "/dev/shm/understudy", config->memory_dir,
                     err);
    if (r == 0)
        r = take_dir(y, "guard", text->guard, guard, config->guard, err);
    (void)snprintf(config->emulator, sizeof(config->emulator), "%s",
                   text->emulator ? text->emulator : "qemu-system-x86_64");
    return r;
}

static int take_disk_dirs(const struct yamlfile *y, const struct config_text *text,
                          struct host_config *config, struct err *err)
{
    if (!yamlfile_line(y, "disk_dirs")) {
        config->n_disk_dirs = 1;
        return take_dir(y, "disk_dirs", NULL, "/var/lib/understudy/images", config->disk_dirs[0],
                        err);
    }
    for (uint32_t i = 0; i < text->disk_dirs_count; i++) {
        char path[YAML_PATH_MAX];
        int r;

        (void)snprintf(path, sizeof(path), "disk_dirs[%u]", i);
        r = take_dir(y, path, text->disk_dirs[i], NULL, config->disk_dirs[i], err);
        if (r < 0)
            return r;
        config->n_disk_dirs = i + 1;
    }
    return 0;
}

static int convert(const struct yamlfile *y, const struct config_text *text,
                   struct host_config *config, struct err *err)
{
    int r = take_name(y, "name", text->name, config->name, err);

    if (r == 0)
        r = take_address(y, "listen", text->listen, config->listen, err);
    if (r == 0)
        r = take_address(y, "arbiter.witness", text->arbiter.witness, config->witness, err);
    if (r == 0) {
        config->arbiter.kind = ARBITER_WITNESS;
        strcpy(config->arbiter.address, config->witness);
    }
    if (r == 0)
        r = take_peers(y, text, config, err);
    if (r == 0)
        r = take_paths(y, text, config, err);
    if (r == 0)
        r = take_timeouts(y, &text->timeouts, &config->timeouts, err);
    if (r == 0)
        r = take_number(y, "staging_mib", text->staging_mib, 256, 16, 65536, &config->staging_mib,
                        err);
    if (r == 0)
        r = take_number(y, "gate_mib", text->gate_mib, 64, 1, 4096, &config->gate_mib, err);
    if (r == 0)
        r = take_number(y, "disk_journal_mib", text->disk_journal_mib, 128, 16, 4096,
                        &config->disk_journal_mib, err);
    if (r == 0)
        r = take_disk_dirs(y, text, config, err);
    return r;
}

int host_config_parse(const char *text, size_t n_text, const char *file,
                      struct host_config *ret_config, struct err *err)
{
    struct host_config config = {0};
    struct yamlfile *y;
    void *data = NULL;
    int r;

    r = yamlfile_open(text, n_text, file, &y, err);
    if (r < 0)
        return r;
    r = yamlfile_read(y, &config_schema, &data, err);
    if (r == 0)
        r = convert(y, data, &config, err);
    yamlfile_data_free(&config_schema, data);
    yamlfile_free(y);
    if (r == 0)
        *ret_config = config;
    return r;
}

int host_config_load(const char *path, struct host_config *ret_config, struct err *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t n;
    int r = yamlfile_slurp(path, &text, &n, err);

    return r < 0 ? r : host_config_parse(text, n, path, ret_config, err);
}

const char *host_config_path(const char *option)
{
    const char *env = secure_getenv("UNDERSTUDY_CONFIG");

    if (option)
        return option;
    return env && env[0] ? env : HOST_CONFIG_DEFAULT_PATH;
}

const struct host_peer *host_config_peer(const struct host_config *config, const char *name)
{
    for (uint32_t i = 0; i < config->n_peers; i++) {
        if (strcmp(config->peers[i].name, name) == 0)
            return &config->peers[i];
    }
    return NULL;
}

/* True when the directory `dir`, resolved, is `top` or lies below it. */
static bool dir_below(const char *dir, const char *top)
{
    CLEANUP_FREE char *resolved = realpath(top, NULL);
    size_t n = resolved ? strlen(resolved) : 0;

    if (n == 0 || strncmp(dir, resolved, n) != 0)
        return false;
    return n == 1 || dir[n] == '/' || dir[n] == '\0'; /* one byte: the root */
}

static int disk_allowed(const char *path, const struct host_config *config, struct err *err)
{
    char parent[VM_PATH_MAX];
    CLEANUP_FREE char *dir = NULL;

    (void)snprintf(parent, sizeof(parent), "%s", path);
    *(strrchr(parent, '/') + 1) = '\0';
    dir = realpath(parent, NULL);
    if (!dir)
        return err_sys(err, -errno, "%s", parent);
    for (uint32_t i = 0; i < config->n_disk_dirs; i++) {
        if (strcmp(path, config->disk_dirs[i]) == 0 || dir_below(dir, config->disk_dirs[i]))
            return 0;
    }
    return err_set(err, -EACCES, "%s is not in the disk_dirs of %s (understudy.yaml)", path,
                   config->name);
}

int vm_disks_allowed(const struct vm_spec *spec, const struct host_config *config, struct err *err)
{
    for (uint32_t i = 0; i < spec->n_disks; i++) {
        int r = disk_allowed(spec->disks[i].path, config, err);

        if (r < 0) {
            err_prefix(err, "disks[%u]", i);
            return r;
        }
    }
    return 0;
}
