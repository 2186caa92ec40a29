/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_PEERS_H
#define US_IO_PEERS_H

#include "io/config.h"

/* Whom this host knows, in STATE_DIR/peers.json, and where its own key is. understudyd writes these
 * files; the processes of the VMs read them. docs/security.md has how keys are changed.
 *
 *     {"peers": [{"name": "hostb", "address": "192.0.2.2:7700", "keys": ["ed25519:..."]}]}
 *
 * At most HOST_PEERS_MAX peers with one to HOST_PEER_KEYS keys each, no name and no key twice, none
 * with the name of this host. A file that breaks a rule is refused as a whole. */

enum { STATE_PATH_MAX = VM_PATH_MAX + 32 }; /* bytes of a path below STATE_DIR */

/* STATE_DIR/host.key and STATE_DIR/host.key.next. */
void host_key_path(const struct host_config *config, char out[static STATE_PATH_MAX]);
void host_key_next_path(const struct host_config *config, char out[static STATE_PATH_MAX]);

/* Replaces config->peers by what the file says, which is nobody when there is none. Whatever
 * host_config_peer() has returned is no longer valid. On failure nothing changes. -errno or
 * -EBADMSG with file and reason. Blocks on the disk. */
int peers_load(struct host_config *config, struct err *err) US_MUST_CHECK;

/* Writes config->peers, durably. Blocks on the disk. */
int peers_save(const struct host_config *config, struct err *err) US_MUST_CHECK;

/* Adds a peer, or one more key to it, and sets its address; it is no error when all of that is
 * there already. Changes config->peers only. -EINVAL, -EEXIST (somebody else's key) or -ENOSPC (the
 * table, or the peer's keys, are full) with the reason. */
int peers_add(struct host_config *config, const char *name, const char *address,
              const struct public_key *key, struct err *err) US_MUST_CHECK;

/* Removes a peer, or with a key only that one of its keys. Changes config->peers only. -ENOENT, or
 * -EINVAL (its only key) with the reason. */
int peers_remove(struct host_config *config, const char *name, const struct public_key *key,
                 struct err *err) US_MUST_CHECK;

#endif
