/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_CONFIG_H
#define US_IO_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "core/vm_spec.h"
#include "io/identity.h"

/* The configuration of a host: understudy.yaml(5), and its peers, which are in a file of their own
 * (io/peers.h). Plain data; all defaults filled in. */

#define HOST_CONFIG_DEFAULT_PATH "/etc/understudy/understudy.yaml"

enum {
    HOST_ADDRESS_MAX = 64, /* bytes of "ADDRESS:PORT" with the NUL */
    HOST_PEERS_MAX = 16,
    HOST_DISK_DIRS_MAX = 16,
    HOST_PEER_KEYS = 2, /* the present key, and the next one while it changes */
    ARBITER_ETCD_MAX = 9,
    ARBITER_URL_MAX = 256,
};

struct host_peer {
    char name[HOST_NAME_BYTES];
    char address[HOST_ADDRESS_MAX]; /* where its understudyd listens */
    struct public_key keys[HOST_PEER_KEYS];
    uint32_t n_keys;
};

enum arbiter_kind { ARBITER_WITNESS = 1, ARBITER_ETCD };

/* Who decides. */
struct arbiter_config {
    enum arbiter_kind kind;
    /* witness: where it listens, and its key */
    char address[HOST_ADDRESS_MAX];
    struct public_key key;
    /* etcd: endpoints, the files to authenticate with, and what all keys begin with */
    uint32_t n_etcd;
    char etcd[ARBITER_ETCD_MAX][ARBITER_URL_MAX];
    char ca[VM_PATH_MAX], cert_file[VM_PATH_MAX], key_file[VM_PATH_MAX];
    char prefix[HOST_NAME_BYTES];
};

/* How long silence lasts until somebody acts. heartbeat * 3 <= standby < primary. */
struct host_timeouts {
    uint32_t heartbeat_ms; /* between two heartbeats */
    uint32_t standby_ms;   /* primary: silence of the standby until it asks to go solo */
    uint32_t primary_ms;   /* standby: silence of the primary until it asks to take over */
};

struct host_config {
    char name[HOST_NAME_BYTES];
    char listen[HOST_ADDRESS_MAX];
    uint32_t n_peers;
    struct host_peer peers[HOST_PEERS_MAX];
    struct arbiter_config arbiter;
    char state_dir[VM_PATH_MAX];  /* records of VMs: survive a reboot */
    char run_dir[VM_PATH_MAX];    /* sockets */
    char memory_dir[VM_PATH_MAX]; /* RAM files of VMs; a tmpfs */
    char emulator[VM_PATH_MAX];
    char guard[VM_PATH_MAX]; /* the program understudy-guard */
    /* Whom the hypervisor runs as: a user's name, "UID:GID", or "root". */
    char emulator_user[HOST_NAME_BYTES];
    char control_group[HOST_NAME_BYTES]; /* may give orders, besides root; "" = none */
    struct host_timeouts timeouts;
    uint32_t staging_mib;      /* per VM, at its primary: epochs captured and not yet sent */
    uint32_t gate_mib;         /* per VM: frames held */
    uint32_t disk_journal_mib; /* per VM: disk writes that the standby does not have yet */
    uint32_t delta_cache_mib;  /* per VM, at its primary: pages as the standby has them; 0 = none */
    /* Where a peer may have images opened and made: directories, or single block devices. */
    uint32_t n_disk_dirs;
    char disk_dirs[HOST_DISK_DIRS_MAX][VM_PATH_MAX];
};

/* The configuration file to use: `option` (from --config) if it is not NULL, else the environment's
 * UNDERSTUDY_CONFIG, else HOST_CONFIG_DEFAULT_PATH. Borrowed. */
const char *host_config_path(const char *option);

/* Reads a configuration file, path as from host_config_path(), and STATE_DIR/peers.json. 0, or
 * -errno with file, line and reason. Blocks on the disk. */
int host_config_load(const char *path, struct host_config *ret_config,
                     struct err *err) US_MUST_CHECK;

/* As host_config_load(), without the peers: for who may not read those. */
int host_config_load_file(const char *path, struct host_config *ret_config,
                          struct err *err) US_MUST_CHECK;

/* As host_config_load_file(), from a text; `file` names it in errors. */
int host_config_parse(const char *text, size_t n_text, const char *file,
                      struct host_config *ret_config, struct err *err) US_MUST_CHECK;

/* The peer of that name, or whose key that is; NULL: there is none. Borrowed from `config`, until
 * its peers change. */
const struct host_peer *host_config_peer(const struct host_config *config, const char *name);
const struct host_peer *host_config_peer_by_key(const struct host_config *config,
                                                const struct public_key *key);

/* True for "A.B.C.D:PORT" or "[IPV6]:PORT", both numeric. */
bool host_address_valid(const char *address);

/* Whether a standby may open, or make, the images of a VM that a peer defines: each one's directory
 * lies, symbolic links resolved, in one of disk_dirs, or its path is listed there itself. 0;
 * -EACCES or the error of looking for the directory, with the reason. Blocks on the disk. */
int vm_disks_allowed(const struct vm_spec *spec, const struct host_config *config,
                     struct err *err) US_MUST_CHECK;

#endif
