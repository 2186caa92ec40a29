/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_BODY_H
#define US_GUARD_BODY_H

#include <systemd/sd-event.h>

#include "guard/disks.h"
#include "hyp/hyp.h"
#include "io/config.h"
#include "io/netport.h"
#include "io/vm_process.h"

/* What a VM consists of on a host, whatever the host's role for it: the RAM file and our view of
 * it, the hypervisor process, the ports of its NICs, its disks. A standby that takes over hands its
 * body to the guard that it becomes; nothing is opened or copied in between. */
struct body {
    sd_event *event;                  /* borrowed */
    const struct host_config *config; /* borrowed */
    struct vm_spec spec;
    const struct hyp_ops *ops;
    struct hyp_vm *vm;                 /* NULL once it is gone */
    char own_dir[VM_PROCESS_PATH_MAX]; /* run_dir/vms/NAME: sockets and log of the hypervisor */
    char ram_path[VM_PROCESS_PATH_MAX];
    int ram_fd;
    uint8_t *ram; /* the guest's memory, shared with the hypervisor; n_pages pages */
    uint64_t n_pages;
    struct netport *ports[VM_NICS_MAX]; /* spec.n_nics of them */
    struct disks *disks;                /* NULL: the VM has none */
    uid_t uid;                          /* whom the hypervisor runs as */
    gid_t gid;
    int lock_fd; /* locked file: one process per VM and host */

    /* Of the role in charge; may be changed at any time outside of callbacks. Borrowed. */
    const struct hyp_callbacks *callbacks;
    void *user;
};

/* Opens everything and starts the hypervisor: stopped (incoming false), or waiting for a restore.
 * The configuration's directories must exist. The RAM file is new and empty. Blocks as ops->launch.
 * A hypervisor that a dead guard left is killed. The caller owns *ret_body; config, event and
 * callbacks are borrowed. -EBUSY: another process of this host has the VM. */
int body_open(const struct host_config *config, const struct vm_spec *spec,
              const struct hyp_ops *ops, sd_event *event, bool incoming,
              const struct hyp_callbacks *callbacks, void *user, struct body **ret_body,
              struct err *err) US_MUST_CHECK;

/* Opens everything for a VM whose earlier guard on this host died, and takes its hypervisor in
 * charge again: memory, devices and connections are as the guest has them. Nothing of it is known
 * to be anywhere else: frames that the dead guard held are lost, as on a network, and the disks are
 * synced, so that no flush is owed. They are open: the guest goes on writing, as in a VM that has
 * lost its standby. *ret_running: whether the VM runs; if not, ops->resume() lets it. Blocks as
 * ops->attach. -ESRCH: there is nothing to attach to, and what waited for a state is killed;
 * -EBUSY: another process has it. In any other case of failure the hypervisor is left as it was
 * (body_open() would kill it). */
int body_attach(const struct host_config *config, const struct vm_spec *spec,
                const struct hyp_ops *ops, sd_event *event, const struct hyp_callbacks *callbacks,
                void *user, struct body **ret_body, bool *ret_running,
                struct err *err) US_MUST_CHECK;

/* Kills the VM if it still runs and removes all traces: RAM file, taps, sockets. NULL is allowed.
 */
void body_close(struct body *body);

#endif
