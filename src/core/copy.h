/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_COPY_H
#define US_CORE_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/msg.h"

/* What a host knows of its own copy of a VM's disks, and the rule that tells from it and from the
 * arbiter's register whether that copy may be started from (docs/disks.md, "Which copy is the
 * newest").
 *
 * The newest copy is that of the register's last owner: each frame that ever left depends only on
 * writes that are in it (of a pair: also in the standby's, until the owner leaves it). Who that was
 * the register says itself, but for a VM that was stopped: then the record must be one that only
 * the last owner can have. Each change of owner takes a term, and so does the stop, so a record of
 * an earlier owner is at least two terms behind. A host's record may be behind the register (it is
 * written after the swap), never ahead of it. */

enum copy_role {
    COPY_NONE = 0, /* nothing is known: a new VM's disks, given by their user */
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
    COPY_NEWEST = 0, /* start from it */
    COPY_OLDER,      /* another host's copy is newer */
    COPY_INCOMPLETE, /* no valid state */
    COPY_UNKNOWN,    /* the VM has run, and nothing is known of what is here */
};

/* May `self` start the VM from its copy, if the register says so? Who may own the VM is not asked
 * here. */
enum copy_verdict copy_judge(const struct copy_record *copy, const struct arb_record *reg,
                             const char *self);

/* A person's order to start the VM on this host. */
struct start_order {
    bool has_disks;
    struct copy_record copy; /* has_disks: what is known of the disks here */
    bool recover; /* the standby has not taken over: start from the disks, memory is lost */
    bool seize;   /* whoever the register names, and whatever he has, is gone for good */
};

/* Why `self` must not start the VM while the register says `reg`, and what can be done, for people
 * (a static string). NULL: it may, if it can swap that record. */
const char *start_refusal(const struct start_order *order, const struct arb_record *reg,
                          const char *self);

#endif
