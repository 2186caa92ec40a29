/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_STANDBY_H
#define US_CORE_STANDBY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/action.h"

/* The standby of one VM, for one session with its primary. arbitration.pml is a model of both.
 *
 *   RECEIVING --(an epoch with a pair term is whole)--> READY
 *       |                                                 |
 *       | link lost                                       | primary silent, its VM died,
 *       v                                                 v failover or switchover
 *     VOID <------(the record has moved on)------------ CLAIMING --(swap succeeded)--> ACTIVE
 *
 * Its right to take over is the pair term of its newest whole epoch: it may swap exactly the record
 * {term, primary, paired, self} to {term + 1, self, solo}, and activates only when it knows that
 * the swap was carried out. A copy from an earlier pairing has an earlier term and so can do
 * nothing (I4).
 *
 * A claim whose answer got lost may still be carried out later. From the first claim on, the
 * machine therefore never believes the pairing again without looking: when the link resumes it goes
 * on acknowledging epochs (should the claim succeed, it activates with all of them), and looks at
 * the register until that says either that it won or that the primary moved on. */

enum standby_state {
    STANDBY_RECEIVING = 1, /* no right yet */
    STANDBY_READY,         /* could take over; the primary is alive */
    STANDBY_CLAIMING,      /* the primary is silent, or a claim's outcome is not known */
    STANDBY_ACTIVE,        /* final: the VM is ours */
    STANDBY_VOID,          /* final: the copy is worthless */
};

struct standby {
    char self[WIRE_NAME_BYTES];
    char primary[WIRE_NAME_BYTES];
    struct core_timing timing;

    enum standby_state state;
    bool link_up;
    uint64_t peer_seen_ns; /* when it was last heard, plus what we have stood still since */
    uint64_t epoch;        /* newest whole epoch here; 0 = none */
    uint64_t right;        /* its pair term; 0 = no right to take over */

    uint64_t claimed; /* highest term for which a claim was ever sent; 0 = none */
    bool forced;      /* CLAIMING: wanted by an operator or the primary itself, which lives */
    uint64_t ask_id;
    bool asking;
    uint64_t ask_at_ns; /* not asking: when to ask (again); CORE_NEVER = nothing to ask */
    bool arbiter_silent;
};

enum standby_event_type {
    SEV_TIMER = 1,
    SEV_ARB_ANSWER,   /* u.answer */
    SEV_LINK_RESUMED, /* the primary came back with the same session */
    SEV_LINK_LOST,    /* a channel broke */
    SEV_PEER_SEEN,    /* any message came on the control channel */
    SEV_STOOD_STILL,  /* this process got no CPU, or did not listen, until now: u.stood_ns */
    SEV_STAGED,       /* an epoch is whole and verified: u.staged */
    SEV_PEER_BYE,     /* u.bye */
    SEV_FAILOVER,     /* operator: take over now */
    SEV_KNOCK,        /* somebody offers a new session for this VM: is our copy still good? */
};

struct standby_event {
    enum standby_event_type type;
    union {
        struct {
            uint64_t id;
            uint8_t status;
            struct arb_record current;
        } answer;
        struct {
            uint64_t epoch, term;
        } staged;
        uint16_t bye;
        uint64_t stood_ns;
    } u;
};

/* A new session with `primary`; the link is up. */
void standby_init(struct standby *s, const char *self, const char *primary,
                  const struct core_timing *timing, uint64_t now_ns);

void standby_step(struct standby *s, const struct standby_event *ev, uint64_t now_ns,
                  struct actions *out);

/* When SEV_TIMER is due at the latest; CORE_NEVER = no timer. */
uint64_t standby_deadline(const struct standby *s);

bool standby_finished(const struct standby *s);
const char *standby_state_name(enum standby_state state);

#endif
