/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_PACE_H
#define US_GUARD_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/controller.h"

/* When to cut, and when the VM is held back: gives the controller (core/controller.h) what it looks
 * at, and does what it says. */

struct guard;
struct epoch_trace;

struct pace {
    struct controller controller;
    uint64_t ran_at_ns, ran_cpu_ns; /* when the VM went on; CPU time of its hypervisor then */
    uint32_t busy_permille;         /* of the time from then to the checkpoint's order */
    uint64_t disk_bytes;            /* in the journal when the checkpoint was ordered */
    uint64_t talked_ns;             /* when frames were last seen waiting */
    bool holds;                     /* the VM stands still until the way has room */
    bool outrun;                    /* the guest outruns the link, as was logged */
};

/* Makes the controller, from the VM's file and the size of the staging memory. */
void pace_setup(struct guard *g);

/* A data connection is there: `fd`, for its round trip. */
void pace_link(struct guard *g, int fd);

/* Cuts an epoch when it is due. Returns when to come back for that. */
uint64_t pace_cut_if_due(struct guard *g, uint64_t now_ns);

/* The VM is about to go on after a cut whose epoch is complete but for pace_cut(). True: not yet.
 * pace_continue() lets it. */
bool pace_will_hold(const struct guard *g);
bool pace_holds(struct guard *g);

/* An epoch is complete. in_flight: it is on its way. */
void pace_cut(struct guard *g, const struct epoch_trace *epoch, bool in_flight);

/* So is one of seeding, of so many pages. */
void pace_seed_cut(struct guard *g, uint64_t epoch, uint64_t pages);

/* Epochs up to this one are acknowledged; nothing is in flight any more. */
void pace_committed(struct guard *g, uint64_t epoch);
void pace_forget(struct guard *g);

/* After anything that happened: lets a held VM go on when it may, gives the pair up when the guest
 * outruns the link and its file says so. */
void pace_continue(struct guard *g);

#endif
