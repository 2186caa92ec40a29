/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_CONFINE_H
#define US_GUARD_CONFINE_H

#include "base/err.h"

/* A VM's process gives up what it will not need, in two steps, since it has to launch the
 * hypervisor first. What is left is enough for its whole life, taking over included
 * (docs/security.md, "Processes and privileges"). Nothing of it can be taken back. */

/* At the start, before there is a second thread: no new privileges by exec, no core dumps (they
 * would hold the guest's memory), and only the capabilities that a guard or standby needs, also for
 * what it executes. 0 or -errno with the reason. */
int confine_early(struct err *err) US_MUST_CHECK;

/* Once the hypervisor runs and the priority is set: shuts off, for all threads, system calls that
 * have no use any more, among them those that execute programs, change users, owners, mounts and
 * name spaces; they fail with EPERM. 0 or -errno with the reason. */
int confine_late(struct err *err) US_MUST_CHECK;

#endif
