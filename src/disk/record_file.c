/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/record_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "io/durable.h"

static const char *const role_names[] = {
    [COPY_NONE] = "none",
    [COPY_PRIMARY] = "primary",
    [COPY_STANDBY] = "standby",
    [COPY_SYNCING] = "syncing",
};

enum { N_ROLES = sizeof(role_names) / sizeof(role_names[0]) };

static void cleanup_json(json_t **json)
{
    json_decref(*json);
}

/* NULL = may be stored; else what is wrong. */
static const char *problem(const struct copy_record *record)
{
    bool follows = record->role == COPY_STANDBY || record->role == COPY_SYNCING;

    if ((unsigned)record->role >= N_ROLES)
        return "unknown role";
    if (record->term > INT64_MAX || record->epoch > INT64_MAX)
        return "a number is out of range";
    if (follows ? !wire_name_valid(record->peer) : record->peer[0])
        return "the peer does not fit the role";
    return NULL;
}

static int from_json(json_t *json, struct copy_record *ret_record, struct err *err)
{
    struct copy_record record = {.role = COPY_NONE};
    const char *role, *peer, *wrong;
    json_int_t term, epoch;
    json_error_t why;
    size_t i = 0;

    if (json_unpack_ex(json, &why, JSON_STRICT, "{s:s, s:I, s:I, s:s}", "role", &role, "term",
                       &term, "epoch", &epoch, "peer", &peer) < 0)
        return err_set(err, -EINVAL, "%s", why.text);
    while (i < N_ROLES && strcmp(role, role_names[i]) != 0)
        i++;
    if (i == N_ROLES)
        return err_set(err, -EINVAL, "unknown role");
    record.role = (enum copy_role)i;
    record.term = (uint64_t)term;
    record.epoch = (uint64_t)epoch;
    if ((size_t)snprintf(record.peer, sizeof(record.peer), "%s", peer) >= sizeof(record.peer))
        return err_set(err, -EINVAL, "the peer's name is too long");
    wrong = problem(&record);
    if (wrong)
        return err_set(err, -EINVAL, "%s", wrong);
    *ret_record = record;
    return 0;
}

int copy_record_load(const char *path, struct copy_record *ret_record, struct err *err)
{
    CLEANUP(cleanup_json) json_t *json = NULL;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    json_error_t why;
    int r;

    if (fd < 0 && errno == ENOENT) {
        *ret_record = (struct copy_record){.role = COPY_NONE};
        return 0;
    }
    if (fd < 0)
        return err_sys(err, -errno, "%s", path);
    json = json_loadfd(fd, JSON_REJECT_DUPLICATES, &why);
    r = json ? from_json(json, ret_record, err) : err_set(err, -EINVAL, "%s", why.text);
    if (r < 0)
        err_prefix(err, "%s: damaged (without the file this copy counts as unknown)", path);
    return r;
}

int copy_record_store(const char *path, const struct copy_record *record, struct err *err)
{
    CLEANUP(cleanup_json) json_t *json = NULL;
    CLEANUP_FREE char *text = NULL;
    const char *wrong = problem(record);

    if (wrong)
        return err_set(err, -EINVAL, "%s: %s", path, wrong);
    json = json_pack("{s:s, s:I, s:I, s:s}", "role", role_names[record->role], "term",
                     (json_int_t)record->term, "epoch", (json_int_t)record->epoch, "peer",
                     record->peer);
    text = json ? json_dumps(json, 0) : NULL;
    if (!text)
        return err_sys(err, -ENOMEM, "%s", path);
    return durable_replace(path, text, strlen(text), err);
}
