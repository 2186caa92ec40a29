/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_ARGS_H
#define US_HYP_QEMU_ARGS_H

#include <stddef.h>

#include "base/err.h"
#include "hyp/hyp.h"
#include "io/vm_process.h"

/* QEMU's command line for a VM, and what may stand in a VM file's qemu_args. */

enum {
    ARGS_MAX = 160,
    /* Descriptors that QEMU inherits. What it opens by path it opens through them (/proc/self/fd),
     * so that nothing on the way there has to be open to its user. */
    QMP_LISTEN_FD = 3, /* its control socket, listening */
    RAM_FD = VM_RAM_FD,
    RUN_DIR_FD = 5,
    KERNEL_FD = 6,
    INITRD_FD = 7,
    FIRMWARE_FD = 8,
    ARGS_FDS_END = 9, /* from there on, those that it only keeps */
    /* A second control socket, after those. */
    STOP_LISTEN_FD = VM_KEPT_FD + VM_DISKS_MAX,
};

/* A NULL-terminated argument vector. */
struct args {
    char *v[ARGS_MAX + 1]; /* owned */
    size_t n;
};

/* Builds the command line for a launch whose definition has been through preflight. *args must be
 * zeroed; args_done() frees it also after an error. The same definition gives both hosts the same
 * machine: only paths and the way of starting (-S or -incoming) differ. Returns 0, or -errno with
 * the reason. */
int args_build(struct args *args, const struct hyp_launch *launch, struct err *err) US_MUST_CHECK;

void args_done(struct args *args);

/* Checks the extra arguments of a definition: refuses, with the reason, what cannot be
 * checkpointed, what would slip past replication or the output gate, and what the driver itself
 * sets. Returns 0, or -EINVAL with the reason. */
int args_check_extra(const struct vm_spec *spec, struct err *err) US_MUST_CHECK;

#endif
