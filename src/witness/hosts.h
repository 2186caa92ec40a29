/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WITNESS_HOSTS_H
#define US_WITNESS_HOSTS_H

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"
#include "io/identity.h"
#include "wire/msg.h"

/* Who may talk to the witness: hosts by their keys, each in one group. Hosts of different groups
 * may have equal names, and know nothing of each other. A key belongs to one host of one group. */

enum {
    HOSTS_MAX = 4096,
    HOSTS_KEYS = 2, /* of one host: the present one, and the next one while it changes */
};

#define HOSTS_GROUP_DEFAULT "default"

struct host {
    char group[WIRE_NAME_BYTES];
    char name[WIRE_NAME_BYTES];
    uint32_t n_keys; /* at least 1 */
    struct public_key keys[HOSTS_KEYS];
};

struct hosts {
    uint32_t n;
    struct host host[HOSTS_MAX];
};

/* Reads the file, {"version": 1, "hosts": [{"host", "group", "keys": [...]}...]}; a missing one has
 * no hosts. 0; -EBADMSG when it is not exactly that; another negative errno; with the reason.
 * Blocks on the disk. The caller frees *ret_hosts with free(). */
int hosts_load(const char *path, struct hosts **ret_hosts, struct err *err) US_MUST_CHECK;

/* Replaces the file, durably. Blocks on the disk. */
int hosts_save(const struct hosts *hosts, const char *path, struct err *err) US_MUST_CHECK;

/* The file's content; the caller owns it. NULL: out of memory. */
json_t *hosts_json(const struct hosts *hosts);

/* Whose key it is, or NULL. Borrowed. */
const struct host *hosts_find(const struct hosts *hosts, const struct public_key *key);

/* Adds a host's key. 0, also when it was there already; -EINVAL (a name, no key), -EEXIST (the key
 * is another's), -ENOSPC (too many keys of that host, or hosts), with the reason. */
int hosts_allow(struct hosts *hosts, const char *group, const char *name,
                const struct public_key *key, struct err *err) US_MUST_CHECK;

/* Removes a key of a host, or, with NULL, all of them; without keys it is gone. 0; -ENOENT with the
 * reason. */
int hosts_forbid(struct hosts *hosts, const char *group, const char *name,
                 const struct public_key *key, struct err *err) US_MUST_CHECK;

#endif
