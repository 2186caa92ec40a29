/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HOST_VM_SPAWN_H
#define US_HOST_VM_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"
#include "io/config.h"

/* Starting the process of a VM. It gets a session of its own, so that it survives understudyd, and
 * understudyd's standard error, so that what it says when it crashes stands in the same log. */

struct spawn_params {
    const struct host_config *config;
    const char *config_path;
    const char *vm;
    int conn_fd;         /* standby: the primary's connection; -1: this is a primary */
    bool seize, recover; /* primary */
    bool attach;         /* a primary in the place of one that died */
};

struct spawned {
    pid_t pid;
    int pidfd;    /* readable when the process has ended */
    int ready_fd; /* one line of JSON comes here, then the end; non-blocking */
};

/* Starts it; conn_fd stays the caller's. -errno with the reason. */
int spawn_vm(const struct spawn_params *params, struct spawned *ret_spawned,
             struct err *err) US_MUST_CHECK;

/* How a process ended, in words ("was killed by signal 9 (Killed)"), and reaps it if it is a child.
 * Returns true when it did not end well, or nobody can tell. */
bool spawn_reap(int pidfd, char *out, size_t n_out);

#endif
