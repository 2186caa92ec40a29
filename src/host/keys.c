/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "host/host.h"
#include "io/durable.h"

/* Who this host is, and whom it knows. docs/security.md has the way that a key is changed in. Each
 * change is on the disk before it counts here, and here before the VMs' processes are told. */

int keys_open(struct host *host, struct err *err)
{
    char path[STATE_PATH_MAX];
    int r;

    host_key_path(&host->config, path);
    r = identity_load(path, true, &host->identity, err);
    return r < 0 ? r : tls_context_new(host->identity, &host->tls, err);
}

void keys_close(struct host *host)
{
    tls_context_free(host->tls);
    identity_free(host->identity);
}

/* ---- this host's key ---- */

static void add_key(json_t *json, const char *member, const struct identity *identity)
{
    char text[PUBLIC_KEY_TEXT];

    public_key_format(identity_public(identity), text);
    (void)json_object_set_new(json, member, json_string(text)); /* out of memory: it is missing */
}

/* Loads the next key. make: it may be made. -ENOENT: there is none. */
static int load_next(const struct host *host, bool make, struct identity **ret_next,
                     struct err *err)
{
    char path[STATE_PATH_MAX];

    host_key_next_path(&host->config, path);
    if (!make && access(path, F_OK) < 0)
        return err_set(err, -ENOENT, "there is no next key: understudy key new makes one");
    return identity_load(path, make, ret_next, err);
}

void keys_show(struct host *host, struct control_request *req, const char *none)
{
    json_t *answer = json_pack("{s:s}", "host", host->config.name);
    struct identity *next;

    add_key(answer, "key", host->identity);
    if (load_next(host, false, &next, NULL) == 0) {
        add_key(answer, "next", next);
        identity_free(next);
    }
    control_reply(req, answer);
}

void keys_new(struct host *host, struct control_request *req, const char *none)
{
    json_t *answer;
    struct identity *next;
    struct err err;

    if (load_next(host, true, &next, &err) < 0) {
        control_fail(req, "%s", err.text);
        return;
    }
    answer = json_object();
    add_key(answer, "next", next);
    identity_free(next);
    control_reply(req, answer);
}

/* Makes the next key the key: on the disk, then here. */
static int replace_key(struct host *host, struct identity *next, struct err *err)
{
    char path[STATE_PATH_MAX], next_path[STATE_PATH_MAX];
    int r;

    host_key_path(&host->config, path);
    host_key_next_path(&host->config, next_path);
    if (rename(next_path, path) < 0)
        return err_sys(err, -errno, "%s", next_path);
    r = durable_sync_name(path);
    if (r < 0)
        err_sys(err, r, "%s", path);
    else
        r = tls_context_change(host->tls, next, err);
    if (r < 0)
        err_prefix(err, "the next key is in its place, but not in use; restart understudyd");
    return r;
}

void keys_use(struct host *host, struct control_request *req, const char *none)
{
    struct identity *next;
    char text[PUBLIC_KEY_TEXT];
    struct err err;

    if (load_next(host, false, &next, &err) < 0) {
        control_fail(req, "%s", err.text);
        return;
    }
    if (replace_key(host, next, &err) < 0) {
        identity_free(next);
        control_fail(req, "%s", err.text);
        return;
    }
    identity_free(host->identity);
    host->identity = next;
    public_key_format(identity_public(next), text);
    log_info("this host's key is now %s", text);
    reload_all(host, req);
}

void keys_forget(struct host *host, struct control_request *req, const char *none)
{
    char path[STATE_PATH_MAX];
    int r;

    host_key_next_path(&host->config, path);
    r = unlink(path) < 0 ? -errno : durable_sync_name(path);
    if (r < 0)
        control_fail(req, "%s: %s", path, strerror(-r));
    else
        control_reply(req, NULL);
}

/* ---- those of its peers ---- */

static json_t *keys_of(const struct host *host, const struct host_peer *peer)
{
    json_t *keys = json_array();

    for (uint32_t i = 0; i < peer->n_keys; i++) {
        time_t seen = door_seen(host, &peer->keys[i]);
        char text[PUBLIC_KEY_TEXT];

        public_key_format(&peer->keys[i], text);
        (void)json_array_append_new(/* out of memory: the entry is missing */
                                    keys, json_pack("{s:s, s:I}", "key", text, "seen_unix",
                                                    (json_int_t)seen));
    }
    return keys;
}

void keys_peers(struct host *host, struct control_request *req, const char *none)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < host->config.n_peers; i++) {
        const struct host_peer *peer = &host->config.peers[i];

        (void)json_array_append_new(list,
                                    json_pack("{s:s, s:s, s:o}", "name", peer->name, "address",
                                              peer->address, "keys", keys_of(host, peer)));
    }
    control_reply(req, json_pack("{s:s, s:o}", "host", host->config.name, "peers", list));
}

/* Makes other peers count, and answers the request. */
static void replace_peers(struct host *host, const struct host_config *next,
                          struct control_request *req)
{
    struct err err;

    if (peers_save(next, &err) < 0) {
        control_fail(req, "%s", err.text);
        return;
    }
    host->config = *next;
    door_peers_changed(host);
    reload_all(host, req);
}

/* The string under `key`, or "". */
static const char *text_of(const struct control_request *req, const char *key)
{
    const char *text = control_string(req, key);

    return text ? text : "";
}

static int add_peer(const struct host *host, const struct control_request *req,
                    struct host_config *next, struct err *err)
{
    const char *name = text_of(req, "name");
    struct public_key key;
    int r = public_key_parse(text_of(req, "key"), &key, err);

    if (r < 0)
        return r;
    if (public_key_equal(&key, identity_public(host->identity)))
        return err_set(err, -EINVAL,
                       "%.*s: this is the key of %s itself; take what `understudy key` says there",
                       HOST_NAME_BYTES, name, host->config.name);
    return peers_add(next, name, text_of(req, "address"), &key, err);
}

static int remove_peer(const struct host *host, const struct control_request *req,
                       struct host_config *next, struct err *err)
{
    const char *key_text = control_string(req, "key");
    struct public_key key;
    int r = key_text ? public_key_parse(key_text, &key, err) : 0;

    return r < 0 ? r : peers_remove(next, text_of(req, "name"), key_text ? &key : NULL, err);
}

static void change_peers(struct host *host, struct control_request *req,
                         int (*change)(const struct host *host, const struct control_request *req,
                                       struct host_config *next, struct err *err))
{
    CLEANUP_FREE struct host_config *next = malloc(sizeof(*next));
    struct err err = {"out of memory"};

    if (next)
        *next = host->config;
    if (next && change(host, req, next, &err) == 0)
        replace_peers(host, next, req);
    else
        control_fail(req, "%s", err.text);
}

void keys_peer_add(struct host *host, struct control_request *req, const char *none)
{
    change_peers(host, req, add_peer);
}

void keys_peer_remove(struct host *host, struct control_request *req, const char *none)
{
    change_peers(host, req, remove_peer);
}
