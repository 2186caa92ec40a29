/* SPDX-License-Identifier: Apache-2.0 */
#include "witness/hosts.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "io/durable.h"

enum { FILE_VERSION = 1 };

static void cleanup_json(json_t **json)
{
    json_decref(*json);
}

const struct host *hosts_find(const struct hosts *hosts, const struct public_key *key)
{
    for (uint32_t i = 0; i < hosts->n; i++) {
        for (uint32_t k = 0; k < hosts->host[i].n_keys; k++) {
            if (public_key_equal(&hosts->host[i].keys[k], key))
                return &hosts->host[i];
        }
    }
    return NULL;
}

static struct host *find_name(struct hosts *hosts, const char *group, const char *name)
{
    for (uint32_t i = 0; i < hosts->n; i++) {
        if (strcmp(hosts->host[i].group, group) == 0 && strcmp(hosts->host[i].name, name) == 0)
            return &hosts->host[i];
    }
    return NULL;
}

int hosts_allow(struct hosts *hosts, const char *group, const char *name,
                const struct public_key *key, struct err *err)
{
    const struct host *owner = hosts_find(hosts, key);
    struct host *host;

    if (!wire_name_valid(name))
        return err_set(err, -EINVAL, "\"%s\" is not a name: 1 to 63 of a-z, 0-9 and -", name);
    if (!wire_name_valid(group))
        return err_set(err, -EINVAL, "\"%s\" is not the name of a group", group);
    if (public_key_none(key))
        return err_set(err, -EINVAL, "%s: that is no key", name);
    host = find_name(hosts, group, name);
    if (owner && owner != host)
        return err_set(err, -EEXIST, "that key is %s's, of group %s", owner->name, owner->group);
    if (owner)
        return 0;
    if (host && host->n_keys == HOSTS_KEYS)
        return err_set(err, -ENOSPC, "%s has %d keys already: forbid one first", name, HOSTS_KEYS);
    if (!host && hosts->n == HOSTS_MAX)
        return err_set(err, -ENOSPC, "there are %d hosts already", HOSTS_MAX);
    if (!host) {
        host = &hosts->host[hosts->n++];
        *host = (struct host){.n_keys = 0};
        strcpy(host->group, group);
        strcpy(host->name, name);
    }
    host->keys[host->n_keys++] = *key;
    return 0;
}

int hosts_forbid(struct hosts *hosts, const char *group, const char *name,
                 const struct public_key *key, struct err *err)
{
    struct host *host = find_name(hosts, group, name);
    uint32_t k = 0;

    if (!host)
        return err_set(err, -ENOENT, "there is no host %s in group %s", name, group);
    if (key) {
        while (k < host->n_keys && !public_key_equal(&host->keys[k], key))
            k++;
        if (k == host->n_keys)
            return err_set(err, -ENOENT, "that is not a key of %s in group %s", name, group);
        host->keys[k] = host->keys[--host->n_keys];
    }
    if (!key || host->n_keys == 0) {
        hosts->n--;
        memmove(host, host + 1, (size_t)(&hosts->host[hosts->n] - host) * sizeof(*host));
    }
    return 0;
}

static json_t *keys_json(const struct host *host)
{
    json_t *keys = json_array();
    char text[PUBLIC_KEY_TEXT];

    for (uint32_t k = 0; k < host->n_keys; k++) {
        public_key_format(&host->keys[k], text);
        if (json_array_append_new(keys, json_string(text)) < 0) {
            json_decref(keys);
            return NULL;
        }
    }
    return keys;
}

json_t *hosts_json(const struct hosts *hosts)
{
    CLEANUP(cleanup_json) json_t *list = json_array();

    for (uint32_t i = 0; i < hosts->n; i++) {
        const struct host *host = &hosts->host[i];

        if (json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "host", host->name, "group",
                                                  host->group, "keys", keys_json(host))) < 0)
            return NULL;
    }
    return json_pack("{s:i, s:O}", "version", FILE_VERSION, "hosts", list);
}

int hosts_save(const struct hosts *hosts, const char *path, struct err *err)
{
    CLEANUP(cleanup_json) json_t *json = hosts_json(hosts);
    CLEANUP_FREE char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;

    if (!text)
        return err_sys(err, -ENOMEM, "%s", path);
    return durable_replace(path, text, strlen(text), err);
}

static int read_host(struct hosts *hosts, json_t *json, struct err *err)
{
    const char *name, *group;
    struct public_key key;
    json_error_t why;
    json_t *keys, *text;
    size_t i;
    int r;

    if (json_unpack_ex(json, &why, JSON_STRICT, "{s:s, s:s, s:o}", "host", &name, "group", &group,
                       "keys", &keys) < 0)
        return err_set(err, -EBADMSG, "%s", why.text);
    if (find_name(hosts, group, name))
        return err_set(err, -EBADMSG, "%s of group %s is there twice", name, group);
    if (json_array_size(keys) == 0)
        return err_set(err, -EBADMSG, "%s of group %s has no keys", name, group);
    json_array_foreach(keys, i, text)
    {
        if (!json_is_string(text))
            return err_set(err, -EBADMSG, "%s: keys[%zu] is not a string", name, i);
        r = public_key_parse(json_string_value(text), &key, err);
        if (r == 0 && hosts_find(hosts, &key))
            r = err_set(err, -EBADMSG, "keys[%zu] is there already", i);
        if (r == 0)
            r = hosts_allow(hosts, group, name, &key, err);
        if (r < 0) {
            err_prefix(err, "%s", name);
            return r;
        }
    }
    return 0;
}

int hosts_load(const char *path, struct hosts **ret_hosts, struct err *err)
{
    CLEANUP_FREE struct hosts *hosts = calloc(1, sizeof(*hosts));
    CLEANUP(cleanup_json) json_t *json = NULL;
    json_t *list, *one;
    json_error_t why;
    int version, r;
    size_t i;

    if (!hosts)
        return err_sys(err, -ENOMEM, "%s", path);
    errno = 0;
    json = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (!json && json_error_code(&why) == json_error_cannot_open_file) {
        if (errno != ENOENT)
            return err_sys(err, errno ? -errno : -EIO, "%s", path);
        *ret_hosts = take_ptr(hosts);
        return 0;
    }
    if (!json)
        return err_set(err, -EBADMSG, "%s: line %d: %s", path, why.line, why.text);
    if (json_unpack_ex(json, &why, JSON_STRICT, "{s:i, s:o}", "version", &version, "hosts", &list) <
        0)
        return err_set(err, -EBADMSG, "%s: %s", path, why.text);
    if (version != FILE_VERSION || !json_is_array(list))
        return err_set(err, -EBADMSG, "%s: not a list of hosts of version %d", path, FILE_VERSION);
    json_array_foreach(list, i, one)
    {
        r = read_host(hosts, one, err);
        if (r < 0) {
            err_prefix(err, "%s: hosts[%zu]", path, i);
            return -EBADMSG;
        }
    }
    *ret_hosts = take_ptr(hosts);
    return 0;
}
