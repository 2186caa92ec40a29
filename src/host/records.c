/* SPDX-License-Identifier: Apache-2.0 */
#include "host/records.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "io/durable.h"
#include "io/log.h"
#include "io/vm_json.h"
#include "wire/msg.h"

/* Makes a directory and those above it. */
static int make_dirs(const char *dir, struct err *err)
{
    char path[RECORD_PATH_MAX];

    (void)snprintf(path, sizeof(path), "%s", dir);
    for (char *p = path + 1;; p++) {
        char was = *p;

        if (was != '/' && was != '\0')
            continue;
        *p = '\0';
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
            return err_sys(err, -errno, "%s", path);
        if (was == '\0')
            return 0;
        *p = was;
    }
}

/* Lets others pass through a directory, to what they have a right to, and no more than that. */
static int let_pass(const char *dir, struct err *err)
{
    struct stat st;

    if (stat(dir, &st) < 0 || chmod(dir, (st.st_mode & 07777) | S_IXGRP | S_IXOTH) < 0)
        return err_sys(err, -errno, "%s", dir);
    return 0;
}

int records_prepare(const struct host_config *config, struct err *err)
{
    char state[RECORD_PATH_MAX], run[RECORD_PATH_MAX];
    int r;

    (void)snprintf(state, sizeof(state), "%s/vms", config->state_dir);
    (void)snprintf(run, sizeof(run), "%s/vms", config->run_dir);
    r = make_dirs(state, err);
    if (r == 0)
        r = make_dirs(run, err);
    if (r == 0)
        r = make_dirs(config->memory_dir, err);
    if (r == 0)
        r = let_pass(config->run_dir, err); /* control_group, to understudyd.sock */
    return r;
}

void record_path(const struct host_config *config, const char *vm, char *out)
{
    (void)snprintf(out, RECORD_PATH_MAX, "%s/vms/%s.json", config->state_dir, vm);
}

static void standby_path(const struct host_config *config, const char *vm, char *out)
{
    (void)snprintf(out, RECORD_PATH_MAX, "%s/vms/%s.standby.json", config->state_dir, vm);
}

static void ended_path(const struct host_config *config, const char *vm, char *out)
{
    (void)snprintf(out, RECORD_PATH_MAX, "%s/vms/%s.ended.json", config->state_dir, vm);
}

void vm_socket_path(const struct host_config *config, const char *vm, char *out)
{
    (void)snprintf(out, RECORD_PATH_MAX, "%s/vms/%s.sock", config->run_dir, vm);
}

/* Replaces a file as a whole, durably. */
static int write_json(const char *path, const json_t *json, struct err *err)
{
    CLEANUP_FREE char *text = json_dumps(json, JSON_INDENT(2));

    if (!text)
        return err_set(err, -ENOMEM, "%s: out of memory", path);
    return durable_replace(path, text, strlen(text), err);
}

static int write_spec(const char *path, const struct vm_spec *spec, struct err *err)
{
    json_t *json = vm_json_from_spec(spec);
    int r = json ? write_json(path, json, err) : err_set(err, -ENOMEM, "out of memory");

    json_decref(json);
    return r;
}

int record_write(const struct host_config *config, const struct vm_spec *spec, struct err *err)
{
    char path[RECORD_PATH_MAX];

    record_path(config, spec->name, path);
    return write_spec(path, spec, err);
}

int record_write_soft(const struct host_config *config, const struct vm_spec *spec, struct err *err)
{
    json_t *json = vm_json_from_spec(spec);
    char path[RECORD_PATH_MAX], new_path[RECORD_PATH_MAX + 8];
    int r = 0;

    record_path(config, spec->name, path);
    (void)snprintf(new_path, sizeof(new_path), "%s.new", path);
    if (!json)
        r = err_set(err, -ENOMEM, "out of memory");
    else if (json_dump_file(json, new_path, JSON_INDENT(2)) < 0 || rename(new_path, path) < 0)
        r = err_set(err, -EIO, "%s: cannot be written", path);
    if (r < 0)
        (void)unlink(new_path);
    json_decref(json);
    return r;
}

int record_write_standby(const struct host_config *config, const struct vm_spec *spec,
                         const char *primary, struct err *err)
{
    CLEANUP_FREE struct vm_spec *own = malloc(sizeof(*own));
    char path[RECORD_PATH_MAX];

    if (!own)
        return err_set(err, -ENOMEM, "out of memory");
    *own = *spec;
    (void)snprintf(own->protect.standby, sizeof(own->protect.standby), "%s", primary);
    standby_path(config, spec->name, path);
    return write_spec(path, own, err);
}

bool record_exists(const struct host_config *config, const char *vm)
{
    char path[RECORD_PATH_MAX];

    record_path(config, vm, path);
    return access(path, F_OK) == 0;
}

static void remove_file(const char *path)
{
    if (unlink(path) < 0 && errno != ENOENT)
        log_warning("%s: %s", path, strerror(errno));
}

void record_remove(const struct host_config *config, const char *vm)
{
    char path[RECORD_PATH_MAX];

    record_path(config, vm, path);
    remove_file(path);
}

void ended_remove(const struct host_config *config, const char *vm)
{
    char path[RECORD_PATH_MAX];

    ended_path(config, vm, path);
    remove_file(path);
}

bool record_exists_standby(const struct host_config *config, const char *vm)
{
    char path[RECORD_PATH_MAX];

    standby_path(config, vm, path);
    return access(path, F_OK) == 0;
}

void record_remove_standby(const struct host_config *config, const char *vm)
{
    char path[RECORD_PATH_MAX];

    standby_path(config, vm, path);
    remove_file(path);
}

void record_forget(const struct host_config *config, const char *vm)
{
    record_remove(config, vm);
    record_remove_standby(config, vm);
    ended_remove(config, vm);
}

int record_load(const struct host_config *config, const char *vm, struct vm_spec *ret_spec,
                struct err *err)
{
    char path[RECORD_PATH_MAX];
    json_error_t why;
    json_t *json;
    int r;

    if (!wire_name_valid(vm))
        return err_set(err, -ENOENT, "not the name of a VM");
    record_path(config, vm, path);
    if (!record_exists(config, vm))
        standby_path(config, vm, path);
    if (access(path, F_OK) < 0)
        return err_set(err, -ENOENT, "this host has no record of it; give its VM file");
    json = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (!json && record_exists_standby(config, vm)) { /* torn: power was lost in a takeover */
        standby_path(config, vm, path);
        json = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    }
    if (!json)
        return err_set(err, -EPROTO, "%s: %s; give its VM file", path, why.text);
    r = vm_json_to_spec(json, ret_spec, err);
    json_decref(json);
    if (r == 0 && strcmp(ret_spec->name, vm) != 0)
        r = err_set(err, -EPROTO, "describes another VM");
    if (r < 0)
        err_prefix(err, "%s", path);
    return r;
}

json_t *record_read(const struct host_config *config, const char *vm)
{
    char path[RECORD_PATH_MAX];

    record_path(config, vm, path);
    return json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
}

json_t *ended_read(const struct host_config *config, const char *vm)
{
    char path[RECORD_PATH_MAX];

    ended_path(config, vm, path);
    return json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
}

void ended_note_crash(const struct host_config *config, const char *vm, const char *detail)
{
    char path[RECORD_PATH_MAX];
    struct err err;
    json_t *note;

    ended_path(config, vm, path);
    if (access(path, F_OK) == 0)
        return;
    note = json_pack("{s:s, s:s, s:s, s:s, s:i, s:I}", "vm", vm, "reason", "crashed", "detail",
                     detail, "owner", "", "term", 0, "unix", (json_int_t)time(NULL));
    if (!note || write_json(path, note, &err) < 0)
        log_warning("%s: %s", vm, note ? err.text : "out of memory");
    json_decref(note);
}

void records_each(const struct host_config *config, void (*fn)(void *user, const char *vm),
                  void *user)
{
    static const char *const endings[] = {".ended.json", ".json"};
    char path[RECORD_PATH_MAX];
    struct dirent *entry;
    DIR *dir;

    (void)snprintf(path, sizeof(path), "%s/vms", config->state_dir);
    dir = opendir(path);
    while (dir && (entry = readdir(dir))) {
        size_t n = strlen(entry->d_name);

        for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
            size_t n_ending = strlen(endings[i]);
            char vm[VM_NAME_MAX];

            if (n <= n_ending || n - n_ending >= sizeof(vm) ||
                strcmp(entry->d_name + n - n_ending, endings[i]) != 0)
                continue;
            (void)snprintf(vm, sizeof(vm), "%.*s", (int)(n - n_ending), entry->d_name);
            if (wire_name_valid(vm)) /* no name has a dot, so each file fits one ending */
                fn(user, vm);
        }
    }
    if (dir)
        (void)closedir(dir); /* only read */
}
