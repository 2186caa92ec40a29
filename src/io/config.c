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
#include "io/peers.h"
#include "io/yamlfile.h"
#include "wire/msg.h"

/* The file as libcyaml fills it in: pointers, NULL or 0 where a key is missing. */
struct arbiter_text {
    char *witness, *key, *ca, *cert, *prefix;
    char **etcd;
    uint32_t etcd_count;
};

struct config_text {
    char *name, *listen, *state_dir, *run_dir, *memory_dir, *emulator, *guard;
    char *emulator_user, *control_group;
    struct arbiter_text arbiter;
    struct host_timeouts timeouts;
    uint32_t staging_mib, gate_mib, disk_journal_mib, delta_cache_mib;
    char **disk_dirs;
    uint32_t disk_dirs_count;
};

#define OPTIONAL_TEXT(type, key, bytes)                                                            \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_OPTIONAL, struct type, key, 1, (bytes)-1)

static const cyaml_schema_value_t url_schema = {
    CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char *, 1, ARBITER_URL_MAX - 1),
};

static const cyaml_schema_field_t arbiter_fields[] = {
    OPTIONAL_TEXT(arbiter_text, witness, HOST_ADDRESS_MAX),
    CYAML_FIELD_SEQUENCE("etcd", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct arbiter_text,
                         etcd, &url_schema, 0, ARBITER_ETCD_MAX),
    OPTIONAL_TEXT(arbiter_text, key, VM_PATH_MAX),
    OPTIONAL_TEXT(arbiter_text, ca, VM_PATH_MAX),
    OPTIONAL_TEXT(arbiter_text, cert, VM_PATH_MAX),
    OPTIONAL_TEXT(arbiter_text, prefix, HOST_NAME_BYTES),
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

#define OPTIONAL_PATH(key)   OPTIONAL_TEXT(config_text, key, VM_PATH_MAX)
#define OPTIONAL_NAME(key)   OPTIONAL_TEXT(config_text, key, HOST_NAME_BYTES)
#define OPTIONAL_NUMBER(key) CYAML_FIELD_UINT(#key, CYAML_FLAG_OPTIONAL, struct config_text, key)

static const cyaml_schema_field_t config_fields[] = {
    CYAML_FIELD_STRING_PTR("name", 0, struct config_text, name, 1, HOST_NAME_BYTES - 1),
    CYAML_FIELD_STRING_PTR("listen", 0, struct config_text, listen, 1, HOST_ADDRESS_MAX - 1),
    CYAML_FIELD_MAPPING("arbiter", 0, struct config_text, arbiter, arbiter_fields),
    OPTIONAL_PATH(state_dir),
    OPTIONAL_PATH(run_dir),
    OPTIONAL_PATH(memory_dir),
    OPTIONAL_PATH(emulator),
    OPTIONAL_PATH(guard),
    OPTIONAL_NAME(emulator_user),
    OPTIONAL_NAME(control_group),
    CYAML_FIELD_MAPPING("timeouts", CYAML_FLAG_OPTIONAL, struct config_text, timeouts,
                        timeouts_fields),
    OPTIONAL_NUMBER(staging_mib),
    OPTIONAL_NUMBER(gate_mib),
    OPTIONAL_NUMBER(disk_journal_mib),
    OPTIONAL_NUMBER(delta_cache_mib),
    CYAML_FIELD_SEQUENCE("disk_dirs", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct config_text,
                         disk_dirs, &path_schema, 0, HOST_DISK_DIRS_MAX),
    CYAML_FIELD_END,
};

static const cyaml_schema_value_t config_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct config_text, config_fields),
};

bool host_address_valid(const char *address)
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
    if (!host_address_valid(text))
        return yamlfile_fail(
            y, err, path, "\"%s\" is not IP:PORT (as 192.0.2.1:7700 or [2001:db8::1]:7700)", text);
    (void)snprintf(address, HOST_ADDRESS_MAX, "%s", text);
    return 0;
}

static int take_path(const struct yamlfile *y, const char *path, const char *text,
                     const char *fallback, char out[VM_PATH_MAX], struct err *err)
{
    size_t n = (size_t)snprintf(out, VM_PATH_MAX, "%s", text ? text : fallback);

    if (out[0] != '/')
        return yamlfile_fail(y, err, path, "\"%s\" is not an absolute path", text);
    while (n > 1 && out[n - 1] == '/')
        out[--n] = '\0';
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

/* Keys of one kind of arbiter that are not for the other. */
static int refuse_keys(const struct yamlfile *y, const char *kind, const char *const *keys,
                       struct err *err)
{
    char path[YAML_PATH_MAX];

    for (; *keys; keys++) {
        (void)snprintf(path, sizeof(path), "arbiter.%s", *keys);
        if (yamlfile_line(y, path))
            return yamlfile_fail(y, err, path, "does not belong to %s", kind);
    }
    return 0;
}

static int take_witness(const struct yamlfile *y, const struct arbiter_text *text,
                        struct arbiter_config *arbiter, struct err *err)
{
    static const char *const not_mine[] = {"ca", "cert", "prefix", NULL};
    struct err why;
    int r = refuse_keys(y, "a witness", not_mine, err);

    if (r == 0)
        r = take_address(y, "arbiter.witness", text->witness, arbiter->address, err);
    if (r == 0 && !text->key)
        r = yamlfile_fail(y, err, "arbiter",
                          "\"key\" is missing: what `understudy-witness key` says there");
    if (r == 0 && public_key_parse(text->key, &arbiter->key, &why) < 0)
        r = yamlfile_fail(y, err, "arbiter.key", "%s", why.text);
    arbiter->kind = ARBITER_WITNESS;
    return r;
}

static int take_file(const struct yamlfile *y, const char *path, const char *text,
                     char file[VM_PATH_MAX], struct err *err)
{
    if (!text)
        return yamlfile_fail(y, err, path, "a file is needed to authenticate with etcd");
    return take_path(y, path, text, NULL, file, err);
}

static int take_endpoints(const struct yamlfile *y, const struct arbiter_text *text,
                          struct arbiter_config *arbiter, struct err *err)
{
    static const char https[] = "https://";
    const char *allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:[]";

    if (text->etcd_count == 0)
        return yamlfile_fail(y, err, "arbiter.etcd", "at least one endpoint is needed");
    for (uint32_t i = 0; i < text->etcd_count; i++) {
        const char *url = text->etcd[i];
        char path[YAML_PATH_MAX];

        (void)snprintf(path, sizeof(path), "arbiter.etcd[%u]", i);
        if (strncmp(url, https, strlen(https)) != 0 || !url[strlen(https)] ||
            url[strlen(https) + strspn(url + strlen(https), allowed)])
            return yamlfile_fail(y, err, path, "\"%s\" is not https://HOST:PORT", url);
        (void)snprintf(arbiter->etcd[i], ARBITER_URL_MAX, "%s", url);
        arbiter->n_etcd = i + 1;
    }
    return 0;
}

static int take_etcd(const struct yamlfile *y, const struct arbiter_text *text,
                     struct arbiter_config *arbiter, struct err *err)
{
    const char *prefix = text->prefix ? text->prefix : "/understudy/";
    int r = take_endpoints(y, text, arbiter, err);

    if (r == 0)
        r = take_file(y, "arbiter.ca", text->ca, arbiter->ca, err);
    if (r == 0)
        r = take_file(y, "arbiter.cert", text->cert, arbiter->cert_file, err);
    if (r == 0)
        r = take_file(y, "arbiter.key", text->key, arbiter->key_file, err);
    if (r == 0 && prefix[strlen(prefix) - 1] != '/')
        r = yamlfile_fail(y, err, "arbiter.prefix", "\"%s\" does not end with /", prefix);
    (void)snprintf(arbiter->prefix, sizeof(arbiter->prefix), "%s", prefix);
    arbiter->kind = ARBITER_ETCD;
    return r;
}

static int take_arbiter(const struct yamlfile *y, const struct arbiter_text *text,
                        struct arbiter_config *arbiter, struct err *err)
{
    bool witness = yamlfile_line(y, "arbiter.witness"), etcd = yamlfile_line(y, "arbiter.etcd");

    if (witness == etcd)
        return yamlfile_fail(y, err, "arbiter", "either \"witness\" or \"etcd\" belongs here%s",
                             witness ? ", not both" : "");
    return witness ? take_witness(y, text, arbiter, err) : take_etcd(y, text, arbiter, err);
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
    r = take_path(y, "state_dir", text->state_dir, "/var/lib/understudy", config->state_dir, err);
    if (r == 0)
        r = take_path(y, "run_dir", text->run_dir, "/run/understudy", config->run_dir, err);
    if (r == 0)
        r = take_path(y, "memory_dir", text->memory_dir, "/dev/shm/understudy", config->memory_dir,
                      err);
    if (r == 0)
        r = take_path(y, "guard", text->guard, guard, config->guard, err);
    (void)snprintf(config->emulator, sizeof(config->emulator), "%s",
                   text->emulator ? text->emulator : "qemu-system-x86_64");
    return r;
}

/* True for what can be the name of a user or group. Whether it exists, who needs it will see. */
static bool account_valid(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";

    return strchr(letters, name[0]) && strspn(name + 1, "abcdefghijklmnopqrstuvwxyz"
                                                        "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                        "0123456789_.-") == strlen(name + 1);
}

/* True for "UID:GID". */
static bool ids_valid(const char *text)
{
    static const char digits[] = "0123456789";
    size_t uid = strspn(text, digits), gid = 0;

    if (text[uid] == ':')
        gid = strspn(text + uid + 1, digits);
    return uid > 0 && uid < 10 && gid > 0 && gid < 10 && !text[uid + 1 + gid];
}

static int take_users(const struct yamlfile *y, const struct config_text *text,
                      struct host_config *config, struct err *err)
{
    const char *user = text->emulator_user ? text->emulator_user : "understudy-qemu";
    const char *group = text->control_group ? text->control_group : "";

    if (!account_valid(user) && !ids_valid(user))
        return yamlfile_fail(y, err, "emulator_user", "\"%s\" is neither a user nor UID:GID", user);
    if (group[0] && !account_valid(group))
        return yamlfile_fail(y, err, "control_group", "\"%s\" is not a group", group);
    (void)snprintf(config->emulator_user, sizeof(config->emulator_user), "%s", user);
    (void)snprintf(config->control_group, sizeof(config->control_group), "%s", group);
    return 0;
}

static int take_disk_dirs(const struct yamlfile *y, const struct config_text *text,
                          struct host_config *config, struct err *err)
{
    if (!yamlfile_line(y, "disk_dirs")) {
        config->n_disk_dirs = 1;
        return take_path(y, "disk_dirs", NULL, "/var/lib/understudy/images", config->disk_dirs[0],
                         err);
    }
    for (uint32_t i = 0; i < text->disk_dirs_count; i++) {
        char path[YAML_PATH_MAX];
        int r;

        (void)snprintf(path, sizeof(path), "disk_dirs[%u]", i);
        r = take_path(y, path, text->disk_dirs[i], NULL, config->disk_dirs[i], err);
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
        r = take_arbiter(y, &text->arbiter, &config->arbiter, err);
    if (r == 0)
        r = take_paths(y, text, config, err);
    if (r == 0)
        r = take_users(y, text, config, err);
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
        r = take_number(y, "delta_cache_mib", text->delta_cache_mib, 64, 0, 65536,
                        &config->delta_cache_mib, err);
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
    if (yamlfile_line(y, "peers"))
        r = yamlfile_fail(y, err, "peers",
                          "peers are not listed here; each is made known by "
                          "`understudy peer add NAME ADDRESS KEY`");
    else
        r = yamlfile_read(y, &config_schema, &data, err);
    if (r == 0)
        r = convert(y, data, &config, err);
    yamlfile_data_free(&config_schema, data);
    yamlfile_free(y);
    if (r == 0)
        *ret_config = config;
    return r;
}

int host_config_load_file(const char *path, struct host_config *ret_config, struct err *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t n;
    int r = yamlfile_slurp(path, &text, &n, err);

    return r < 0 ? r : host_config_parse(text, n, path, ret_config, err);
}

int host_config_load(const char *path, struct host_config *ret_config, struct err *err)
{
    CLEANUP_FREE struct host_config *config = malloc(sizeof(*config));
    int r;

    if (!config)
        return err_set(err, -ENOMEM, "out of memory");
    r = host_config_load_file(path, config, err);
    if (r == 0)
        r = peers_load(config, err);
    if (r == 0)
        *ret_config = *config;
    return r;
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

const struct host_peer *host_config_peer_by_key(const struct host_config *config,
                                                const struct public_key *key)
{
    for (uint32_t i = 0; i < config->n_peers; i++) {
        for (uint32_t k = 0; k < config->peers[i].n_keys; k++) {
            if (public_key_equal(&config->peers[i].keys[k], key))
                return &config->peers[i];
        }
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
