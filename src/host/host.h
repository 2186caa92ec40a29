/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HOST_HOST_H
#define US_HOST_HOST_H

#include <systemd/sd-event.h>

#include "host/records.h"
#include "io/config.h"
#include "io/control.h"
#include "io/control_line.h"
#include "io/log.h"
#include "io/peers.h"
#include "io/tls.h"

/* understudyd's insides. One thread, one sd_event loop; nothing in it blocks but the short writes
 * of records. What runs a VM is a process of its own (understudy-guard), which lives on when
 * understudyd ends or crashes; the table here is what understudyd knows of these processes:
 *
 *   vms.c       the table: processes started, found again, ended
 *   commands.c  the control socket: start and stop; everything else goes to
 *   relay.c     the VM's process, whose answer comes back from there
 *   status.c    status, put together from all processes and records
 *   door.c      connections of peers: who they are, and on to the VM's process
 *   keys.c      this host's key, and those of its peers
 *   reload.c    tells the VMs' processes that they have changed
 *   records.c   what is on disk
 *   vm_spawn.c  how a process is started and how it ended */

enum {
    HOST_VMS_MAX = 64,   /* processes of VMs, either role */
    HOST_KNOCKS_MAX = 64 /* connections of peers that are not handed over yet */
};

struct host {
    sd_event *event;
    struct host_config config;
    const char *config_path;
    struct control_server *control;
    struct vm *vms;
    unsigned n_vms;
    struct relay *relays;
    struct identity *identity;
    struct tls_context *tls;
    struct door *door;
};

enum vm_state {
    VM_STARTING = 1, /* spawned; its ready line has not come. Exits: running, gone */
    VM_RUNNING,      /* serves its socket. Exits: gone */
};

/* One process of a VM. Lives from spawn or discovery until the process has ended. */
struct vm {
    struct vm *next;
    struct host *host;
    char name[VM_NAME_MAX];
    enum vm_state state;
    bool backs; /* began as a standby (it may have taken over since) */
    bool stale; /* starting: keys or peers have changed meanwhile */
    pid_t pid;
    int pidfd;
    sd_event_source *exit_source;
    /* starting only */
    int ready_fd; /* else -1 */
    struct control_buf ready_line;
    sd_event_source *ready_source, *ready_timer;
    struct control_request *start; /* waits for the answer; NULL for a standby */
    bool had_record;               /* before this start */
    /* How often in a row a process had to take a dead one's place, and since when. */
    unsigned attaches;
    uint64_t attached_ns;
    char refusal[512]; /* why it will not run, "" = it has not refused */
};

/* --- vms.c --- */

/* Finds the processes that an earlier understudyd has left, and removes the sockets of those that
 * are gone. Blocks for a moment; before the loop runs. An error: one that is
 * there could not be taken note of, and would stay unknown for as long as this understudyd runs. */
int vms_find(struct host *host, struct err *err) US_MUST_CHECK;

struct vm *vm_get(const struct host *host, const char *name); /* NULL: there is no process */

/* What to start. A primary: its record is written; `start` is answered once the VM runs, or with
 * why not, and taken on success only. A standby: conn_fd is its connection, which stays the
 * caller's. attach: in the place of a primary's process that died and left its hypervisor. */
struct vm_order {
    const char *name;
    struct control_request *start; /* NULL for a standby */
    bool seize, recover;           /* primary: passed on to the process */
    bool attach;
    bool had_record; /* primary: one that an earlier start has left */
    int conn_fd;     /* -1 for a primary */
};

int vm_start(struct host *host, const struct vm_order *order, struct err *err) US_MUST_CHECK;

/* Forgets everything; the processes go on. */
void vms_done(struct host *host);

/* Tells systemd how many VMs there are. */
void vms_notify(const struct host *host);

/* --- relay.c --- */

/* Passes a request (taken) on to the VM's process and its answer back. */
void relay_order(struct host *host, struct vm *vm, struct control_request *req);

/* As relay_order() for "stop"; answers once the process is gone, and then clears the VM's record.
 */
void relay_stop(struct host *host, struct vm *vm, struct control_request *req);

void relay_vm_gone(struct host *host, const char *name); /* the process has ended */
void relays_done(struct host *host);

/* --- status.c --- */

/* Answers "status" (taken): of one VM with "vm", of all without. */
void status_request(struct host *host, struct control_request *req);

/* --- commands.c --- */

void host_command(void *user, struct control_request *req); /* a control_handler_fn */

/* --- door.c --- */

/* Listens for peers. */
int door_open(struct host *host, struct err *err) US_MUST_CHECK;
void door_close(struct host *host);

/* A VM's process is ready, or gone: connections that wait for it go on. */
void door_vm_changed(struct host *host, const char *vm);

/* host->config has other peers: connections by a key that is no longer known end. */
void door_peers_changed(struct host *host);

/* When a peer last showed this key at the door, since understudyd started; 0: it did not. */
time_t door_seen(const struct host *host, const struct public_key *key);

/* --- keys.c --- */

/* Reads this host's key, or makes it, and readies TLS with it. Blocks on the disk. */
int keys_open(struct host *host, struct err *err) US_MUST_CHECK;
void keys_close(struct host *host);

/* The commands "key", "key-new", ..., "peer-remove" (req is taken): docs/control.md. */
void keys_show(struct host *host, struct control_request *req, const char *none);
void keys_new(struct host *host, struct control_request *req, const char *none);
void keys_use(struct host *host, struct control_request *req, const char *none);
void keys_forget(struct host *host, struct control_request *req, const char *none);
void keys_peers(struct host *host, struct control_request *req, const char *none);
void keys_peer_add(struct host *host, struct control_request *req, const char *none);
void keys_peer_remove(struct host *host, struct control_request *req, const char *none);

/* --- reload.c --- */

/* Has the VMs' processes read keys and peers again. Then `req` is answered, with "not_followed": a
 * list of texts about those that did not. Both are logged. req NULL: nobody waits. */
void reload_all(struct host *host, struct control_request *req);
void reload_one(struct host *host, const struct vm *vm);

#endif
