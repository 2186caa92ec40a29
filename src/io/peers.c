/* SPDX-License-Identifier: Apache-2.0 */
#include "io/peers.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "io/durable.h"
#include "wire/msg.h"

void host_key_path(const struct host_config *config, char out[static STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%s/host.key", config->state_dir);
}

void host_key_next_path(const struct host_config *config, char out[static STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%s/host.key.next", config->state_dir);
}

static void peers_path(const struct host_config *config, char out[static STATE_PATH_MAX])
{
    (void)snprintf(out, STATE_PATH_MAX, "%s/peers.json", config->state_dir);
}

/* ---- the table ---- */

static struct host_peer *find(struct host_config *config, const char *name)
{
    for (uint32_t i = 0; i < config->n_peers; i++) {
        if (strcmp(config->peers[i].name, name) == 0)
            return &config->peers[i];
    }
    return NULL;
}

/* Whether such a peer may be there at all, whoever else is. */
static int check(const struct host_config *config, const char *name, const char *address,
                 const struct public_key *key, struct err *err)
{
    const struct host_peer *owner = host_config_peer_by_key(config, key);

    if (!wire_name_valid(name))
        return err_set(err, -EINVAL, "\"%.*s\" is not a name (a-z, 0-9 and -, 63 at most)",
                       HOST_NAME_BYTES, name);
    if (strcmp(name, config->name) == 0)
        return err_set(err, -EINVAL, "%s is this host itself, not a peer", name);
    if (strlen(address) >= HOST_ADDRESS_MAX || !host_address_valid(address))
        return err_set(err, -EINVAL,
                       "\"%.*s\" is not IP:PORT (as 192.0.2.1:7700 or [2001:db8::1]:7700)",
                       HOST_ADDRESS_MAX, address);
    if (public_key_none(key))
        return err_set(err, -EINVAL, "%s: this key is none", name);
    if (owner && strcmp(owner->name, name) != 0)
        return err_set(err, -EEXIST, "this key is the one of %s", owner->name);
    return 0;
}

int peers_add(struct host_config *config, const char *name, const char *address,
              const struct public_key *key, struct err *err)
{
    struct host_peer *peer = find(config, name);
    bool known = host_config_peer_by_key(config, key) != NULL;
    int r = check(config, name, address, key, err);

    if (r < 0)
        return r;
    if (!peer && config->n_peers == HOST_PEERS_MAX)
        return err_set(err, -ENOSPC, "%d peers are the most that a host has", HOST_PEERS_MAX);
    if (!known && peer && peer->n_keys == HOST_PEER_KEYS)
        return err_set(err, -ENOSPC,
                       "%s has %d keys already; remove the old one: understudy peer remove %s KEY",
                       name, HOST_PEER_KEYS, name);
    if (!peer) {
        peer = &config->peers[config->n_peers++];
        *peer = (struct host_peer){.n_keys = 0};
        (void)snprintf(peer->name, sizeof(peer->name), "%s", name);
    }
    if (!known)
        peer->keys[peer->n_keys++] = *key;
    (void)snprintf(peer->address, sizeof(peer->address), "%s", address);
    return 0;
}

static int remove_key(struct host_peer *peer, const struct public_key *key, struct err *err)
{
    uint32_t i = 0;

    while (i < peer->n_keys && !public_key_equal(&peer->keys[i], key))
        i++;
    if (i == peer->n_keys)
        return err_set(err, -ENOENT, "%s has no such key", peer->name);
    if (peer->n_keys == 1)
        return err_set(err, -EINVAL,
                       "%s has no other key; to forget the peer: understudy peer remove %s",
                       peer->name, peer->name);
    peer->n_keys--;
    memmove(&peer->keys[i], &peer->keys[i + 1], (peer->n_keys - i) * sizeof(peer->keys[0]));
    return 0;
}

int peers_remove(struct host_config *config, const char *name, const struct public_key *key,
                 struct err *err)
{
    struct host_peer *peer = find(config, name);

    if (!peer)
        return err_set(err, -ENOENT, "%.*s is not among the peers of this host", HOST_NAME_BYTES,
                       name);
    if (key)
        return remove_key(peer, key, err);
    config->n_peers--;
    memmove(peer, peer + 1,
            (size_t)(&config->peers[config->n_peers] - peer) * sizeof(config->peers[0]));
    return 0;
}

/* ---- the file ---- */

static int decode_peer(struct host_config *config, json_t *entry, struct err *err)
{
    const char *name, *address, *text;
    json_t *keys, *item;
    json_error_t why;
    size_t i;

    if (json_unpack_ex(entry, &why, JSON_STRICT, "{s:s, s:s, s:o}", "name", &name, "address",
                       &address, "keys", &keys) < 0)
        return err_set(err, -EBADMSG, "%s", why.text);
    if (host_config_peer(config, name))
        return err_set(err, -EBADMSG, "%s is there twice", name);
    if (json_array_size(keys) == 0)
        return err_set(err, -EBADMSG, "%.*s has no key", HOST_NAME_BYTES, name);
    json_array_foreach(keys, i, item)
    {
        struct public_key key;
        int r;

        text = json_string_value(item);
        r = text ? public_key_parse(text, &key, err) : err_set(err, -EBADMSG, "a key is no text");
        if (r == 0 && host_config_peer_by_key(config, &key))
            r = err_set(err, -EBADMSG, "the key %s is there twice", text);
        if (r == 0)
            r = peers_add(config, name, address, &key, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int decode(struct host_config *config, json_t *root, struct err *err)
{
    json_t *peers, *entry;
    json_error_t why;
    size_t i;

    if (json_unpack_ex(root, &why, JSON_STRICT, "{s:o}", "peers", &peers) < 0)
        return err_set(err, -EBADMSG, "%s", why.text);
    if (!json_is_array(peers))
        return err_set(err, -EBADMSG, "\"peers\" is not a list");
    json_array_foreach(peers, i, entry)
    {
        if (decode_peer(config, entry, err) < 0) {
            err_prefix(err, "peers[%zu]", i);
            return -EBADMSG;
        }
    }
    return 0;
}

int peers_load(struct host_config *config, struct err *err)
{
    CLEANUP_FREE struct host_config *next = malloc(sizeof(*next));
    char path[STATE_PATH_MAX];
    json_error_t why;
    json_t *root;
    int r;

    if (!next)
        return err_set(err, -ENOMEM, "out of memory");
    peers_path(config, path);
    *next = *config;
    next->n_peers = 0;
    if (access(path, R_OK) == 0) {
        root = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
        r = root ? decode(next, root, err) : err_set(err, -EBADMSG, "%s", why.text);
        json_decref(root);
    } else {
        r = errno == ENOENT ? 0 : err_set(err, -errno, "%s", strerror(errno));
    }
    if (r < 0) {
        err_prefix(err, "%s", path);
        return r;
    }
    memcpy(config->peers, next->peers, sizeof(config->peers));
    config->n_peers = next->n_peers;
    return 0;
}

static json_t *encode_keys(const struct host_peer *peer)
{
    json_t *keys = json_array();

    for (uint32_t i = 0; i < peer->n_keys; i++) {
        char text[PUBLIC_KEY_TEXT];

        public_key_format(&peer->keys[i], text);
        if (json_array_append_new(keys, json_string(text)) < 0) {
            json_decref(keys);
            return NULL;
        }
    }
    return keys;
}

static json_t *encode(const struct host_config *config)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < config->n_peers; i++) {
        const struct host_peer *peer = &config->peers[i];

        if (json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "name", peer->name, "address",
                                                  peer->address, "keys", encode_keys(peer))) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return json_pack("{s:o}", "peers", list);
}

int peers_save(const struct host_config *config, struct err *err)
{
    char path[STATE_PATH_MAX];
    json_t *root = encode(config);
    CLEANUP_FREE char *text = json_dumps(root, JSON_INDENT(2));

    json_decref(root);
    if (!text)
        return err_set(err, -ENOMEM, "out of memory");
    peers_path(config, path);
    return durable_replace(path, text, strlen(text), err);
}
