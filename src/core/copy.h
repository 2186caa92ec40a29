/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_COPY_H
#define US_CORE_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/msg.h"

/* What a host knows of its own copy of a VM's disks, and the rule that tells from it and from the arbiter's
 * register whether that copy may be started from (docs/disks.md, "Which copy is the newest"). */

enum copy_role {
    COPY_NONE = 0, /* nothing is known: a new VM's disks, given by their user; or a VM without disks */
    COPY_PRIMARY,  /* the VM's disks: it ran here, since or before `term` */
    COPY_STANDBY,  /* stands at the end of `epoch`, of a pairing with the pair term `term` */
    COPY_SYNCING,  /* being brought up to date: no valid state */
};

struct copy_record {
    enum copy_role role;
    uint64_t term;  /* PRIMARY: the register's term when last known here; STANDBY: the pair term */
    uint64_t epoch; /* STANDBY */
    char peer[WIRE_NAME_BYTES]; /* STANDBY, SYNCING: whose copy it follows */
};

enum copy_verdict {
    COPY_NEWEST = 0,  /* start from it */
    COPY_OLDER,       /* another host's copy is newer */
    COPY_INCOMPLETE,  /* no valid state */
    COPY_UNKNOWN,     /* the VM has run elsewhere, and nothing is known of what is here */
};

/* May `self` start the VM from its copy, if the register says so? Who may *own* the VM is not asked here. */
enum copy_verdict copy_judge(const struct copy_record *copy, const struct arb_record *reg,
                             const char *self);

#endif
