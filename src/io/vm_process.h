/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_VM_PROCESS_H
#define US_IO_VM_PROCESS_H

#include <sys/types.h>

#include "base/err.h"
#include "io/config.h"

/* Where a VM's hypervisor lives on a host, so that it can be found without the process that
 * launched it: it outlives that one. */

#define VM_PID_FILE "hypervisor.pid" /* in the VM's directory; written before it runs */

enum {
    VM_PROCESS_PATH_MAX = VM_PATH_MAX + 80,
    VM_RAM_FD = 4, /* the hypervisor's descriptor of its RAM file, by which it is known */
    /* The first of those that it has inherited and keeps, unused, for its next guard: the listening
     * sockets of its disks. */
    VM_KEPT_FD = 9,
};

/* The VM's directory, for the hypervisor's sockets, log and pid; its RAM file. `out` has room for
 * VM_PROCESS_PATH_MAX bytes. */
void vm_process_dir(const struct host_config *config, const char *vm, char *out);
void vm_process_ram(const struct host_config *config, const char *vm, char *out);

/* Opens a process whose descriptor VM_RAM_FD is the file `ram_path`: pids are used again. The
 * result (a pidfd) is the caller's. -ESRCH: there is no such process. Does not block. */
int vm_process_open(pid_t pid, const char *ram_path, int *ret_pidfd) US_MUST_CHECK;

/* Finds the hypervisor that was last launched for a VM on this host, if it lives, as
 * vm_process_open(). Whether a guard has it in charge is another question (its control socket), and
 * so is whether it is of use: it may be a standby's, that waits for a state. */
int vm_process_find(const struct host_config *config, const char *vm, pid_t *ret_pid,
                    int *ret_pidfd) US_MUST_CHECK;

/* Copies the listening socket at `path` that a hypervisor keeps, number `n` of them. The descriptor
 * is the caller's. -EBADF: it does not, or keeps something else there. */
int vm_process_kept(int pidfd, unsigned n, const char *path, int *ret_sock) US_MUST_CHECK;

#endif
