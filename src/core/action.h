/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_ACTION_H
#define US_CORE_ACTION_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/msg.h"

/* What a state machine of the core asks its shell to do, in order. The machines never do anything
 * themselves: one step takes an event and the time, and appends actions. The shells (guard,
 * standby, and the simulator in their place) carry them out and feed the outcomes back as events.
 */

enum action_type {
    /* both machines */
    ACT_ARB_ASK = 1, /* ask the arbiter: u.ask */
    ACT_LINK_DROP,   /* say bye (if bye is not 0) and close both channels: u.bye */
    ACT_TRACE,       /* a transition, for the log and the tests: u.trace */
    /* primary */
    ACT_VM_RUN,        /* first start: the VM may run now */
    ACT_START_REFUSED, /* the VM must not start, see the record: u.why */
    ACT_VM_DESTROY,    /* kill the VM, drop held frames; the machine is finished */
    ACT_LINK_CONNECT,  /* connect to the wanted standby: u.resume */
    ACT_SEED,          /* begin seeding over the new link */
    ACT_REBASE,        /* the link resumed: the next epoch carries all that is unacknowledged */
    ACT_GATE_HOLD,     /* from now on hold frames until their epoch is committed */
    ACT_GATE_FLOW,     /* sole owner: release everything, hold nothing */
    ACT_COMMITTED,     /* epochs up to u.epoch are committed: release their frames */
    ACT_COPY_RECORD,   /* the disks here are the VM's under the register's term u.copy: see below */
    ACT_HAND_OVER,     /* cut one more epoch, for which the VM is stopped; it stays so */
    ACT_SAY_BYE,       /* say bye, but keep the link: u.bye */
    ACT_VM_RESUME,     /* the hand-over was given up: the VM runs on (if it was stopped already) */
    /* standby */
    ACT_ACK,      /* acknowledge u.ack, then apply it */
    ACT_ACTIVATE, /* the VM is ours, under u.record: see below */
    ACT_DISCARD,  /* throw the copy away; the machine is finished: u.why */
};

/* ACT_COPY_RECORD: a VM with disks gets the activation record {COPY_PRIMARY, u.copy.term}
 * (core/copy.h) on stable storage: with `wait`, before the next action is carried out; otherwise
 * soon, and the newest one is enough; after a takeover in any case before the guest's first write
 * is carried out and before the first epoch is sent. Without a `vital` one the VM must not run: if
 * it cannot be written, skip the actions that follow it, and step PEV_VM_DIED.
 *
 * ACT_ACTIVATE: the VM is run from the newest epoch that was acknowledged, or a newer one that is
 * whole. No later one may be left in the redo log: after a crash it would be carried out.
 *
 * ACT_HAND_OVER: the last epoch is the first one that primary_cut() numbers afterwards, so a
 * checkpoint that was ordered before may become it. Its frames are read as at any cut. After it the
 * VM stands still until ACT_VM_RESUME, ACT_VM_DESTROY, or the process's end. ACT_VM_RESUME may come
 * while that epoch is still being cut or copied: then the VM goes on as after any cut. */

struct action {
    enum action_type type;
    union {
        struct {
            uint64_t id;
            struct wire_arb_request request; /* vm is left to the shell */
        } ask;
        uint16_t bye; /* enum wire_bye_reason or 0 */
        struct {
            const char *from, *to, *why; /* static strings */
        } trace;
        bool resume;
        uint64_t epoch;
        struct {
            uint64_t epoch, term;
        } ack;
        struct {
            uint64_t term;
            bool wait, vital; /* vital: wait as well */
        } copy;
        struct arb_record record;
        const char *why; /* a static string, for people */
    } u;
};

enum { ACTIONS_MAX = 16 };

/* The actions of one step. No step appends more than ACTIONS_MAX. */
struct actions {
    unsigned n;
    struct action a[ACTIONS_MAX];
};

/* Appends an action of that type, to be filled in by the caller. */
struct action *actions_add(struct actions *out, enum action_type type);

/* Time-outs of both machines, in nanoseconds. */
struct core_timing {
    uint64_t peer_silent_ns; /* no word from the peer for that long: the link is lost */
    uint64_t arb_retry_ns;   /* between two questions to an arbiter that does not answer */
    uint64_t resume_ns;      /* between two attempts to resume a broken session */
    uint64_t reprotect_ns;   /* between two attempts to find a standby for a solo VM */
    uint64_t cool_down_ns;   /* after a guest has outrun the link, until the next such attempt */
    uint64_t look_ns;        /* between two looks at the register while solo */
    uint64_t start_ns;       /* how long a start waits for the arbiter */
    uint64_t hand_over_ns;   /* how long a switchover may take before it is given up */
};

#define CORE_NEVER UINT64_MAX

/* When the peer counts as seen after this process has stood still for stood_ns, up to now: nobody
 * listened meanwhile, so that is no silence of the peer's. */
static inline uint64_t stood_still(uint64_t peer_seen_ns, uint64_t stood_ns, uint64_t now_ns)
{
    return stood_ns < now_ns - peer_seen_ns ? peer_seen_ns + stood_ns : now_ns;
}

#endif
