/* SPDX-License-Identifier: Apache-2.0 */
#include "witness/admin.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "io/durable.h"
#include "io/identity.h"
#include "witness/hosts.h"
#include "witness/state.h"

static int print_key(const char *path, struct err *err)
{
    struct identity *identity;
    char text[PUBLIC_KEY_TEXT];
    int r = identity_load(path, true, &identity, err);

    if (r < 0)
        return r;
    public_key_format(identity_public(identity), text);
    printf("%s\n", text);
    identity_free(identity);
    return 0;
}

static int run_key(const struct admin_args *args, struct err *err)
{
    CLEANUP_FD int lock = -1;
    int r = state_lock(&lock, err);

    if (r < 0)
        return r;
    if (args->n == 0)
        return print_key(STATE_KEY, err);
    if (strcmp(args->arg[0], "new") == 0)
        return print_key(STATE_KEY_NEXT, err);
    if (strcmp(args->arg[0], "use") != 0)
        return err_set(err, -EINVAL, "key %s: only \"new\" and \"use\" are known", args->arg[0]);
    if (rename(STATE_KEY_NEXT, STATE_KEY) < 0)
        return errno == ENOENT ? err_set(err, -ENOENT, "there is no next key: make one (key new)")
                               : err_sys(err, -errno, "%s", STATE_KEY);
    r = durable_sync_name(STATE_KEY);
    return r < 0 ? err_sys(err, r, "%s", STATE_KEY) : print_key(STATE_KEY, err);
}

/* Reads the hosts, has them changed, and writes them. */
static int change_hosts(const struct admin_args *args, bool allow, struct err *err)
{
    const char *group = args->group ? args->group : HOSTS_GROUP_DEFAULT, *name = args->arg[0];
    CLEANUP_FREE struct hosts *hosts = NULL;
    CLEANUP_FD int lock = -1;
    struct public_key key;
    int r = 0;

    if (args->n > 1)
        r = public_key_parse(args->arg[1], &key, err);
    if (r == 0)
        r = state_lock(&lock, err);
    if (r == 0)
        r = hosts_load(STATE_HOSTS, &hosts, err);
    if (r == 0)
        r = allow ? hosts_allow(hosts, group, name, &key, err)
                  : hosts_forbid(hosts, group, name, args->n > 1 ? &key : NULL, err);
    return r < 0 ? r : hosts_save(hosts, STATE_HOSTS, err);
}

static int run_allow(const struct admin_args *args, struct err *err)
{
    return change_hosts(args, true, err);
}

static int run_forbid(const struct admin_args *args, struct err *err)
{
    return change_hosts(args, false, err);
}

static int print_json(const struct hosts *hosts, struct err *err)
{
    json_t *json = hosts_json(hosts);

    if (!json)
        return err_sys(err, -ENOMEM, "hosts");
    (void)json_dumpf(json, stdout, JSON_INDENT(2)); /* what fails shows at exit */
    putchar('\n');
    json_decref(json);
    return 0;
}

static int run_hosts(const struct admin_args *args, struct err *err)
{
    CLEANUP_FREE struct hosts *hosts = NULL;
    char text[PUBLIC_KEY_TEXT];
    int r = hosts_load(STATE_HOSTS, &hosts, err);

    if (r < 0)
        return r;
    if (args->json)
        return print_json(hosts, err);
    if (hosts->n == 0)
        printf("No hosts: understudy-witness allow HOST KEY\n");
    else
        printf("%-20s %-20s %s\n", "GROUP", "HOST", "KEY");
    for (uint32_t i = 0; i < hosts->n; i++) {
        const struct host *host = &hosts->host[i];

        for (uint32_t k = 0; k < host->n_keys; k++) {
            public_key_format(&host->keys[k], text);
            printf("%-20s %-20s %s\n", host->group, host->name, text);
        }
    }
    return 0;
}

const struct admin_command admin_commands[] = {
    {"key", "[new|use]", "Print its key; make the next one, or use it", 0, 1, run_key},
    {"allow", "HOST KEY", "Talk to a host, by its key", 2, 2, run_allow},
    {"forbid", "HOST [KEY]", "No longer talk to a host, or not by this key", 1, 2, run_forbid},
    {"hosts", "", "Show whom it talks to", 0, 0, run_hosts},
    {0},
};
