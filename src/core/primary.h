/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_PRIMARY_H
#define US_CORE_PRIMARY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/action.h"
#include "core/copy.h"

/* The primary of one VM: who may release output, and under which record of the arbiter.
 * arbitration.pml is a model of it and of the standby, searched exhaustively (docs/design.md).
 *
 *            START            PROTECT, link ready        seed done         first epoch acked
 *  STARTING ------> SOLO ----------------------> SEEDING ---------> ARMING ------------.
 *                    ^ ^                            |                 |                v
 *                    | '--------- link lost --------'                 |             PAIRING
 *                    |                                                |                | swapped
 *                    |  swapped back to solo                          v link lost, ... v
 *                    '---------------------- ISOLATED <----------------------------PROTECTED
 *                                                ^                                    |
 *                                                '---(gave up)--- HANDING <-----------'
 *                                                                    |        switchover
 *  any --(stop)--> STOPPING --> STOPPED                              v
 *                                      any --(another owner found)--> LOST
 *
 * Up to ARMING the register says {we, solo} and output flows freely. ARMING closes the gate, then
 * has an epoch cut: whatever was released before is covered by it. That epoch carries the pair term
 * (the register's term + 1), so that its acknowledgement proves that the standby knows the term
 * under which it may take over before the swap solo -> paired is asked for. From ARMING on, frames
 * are released by acknowledgements alone, until the register says {we, solo} again.
 *
 * While the register says solo it is looked at now and then, so that an owner who was replaced by
 * an operator's force finds out, and once more before ARMING: a VM whose arbiter does not answer is
 * not made mute for the sake of a pair that could not be recorded.
 *
 * Once an epoch with the pair term was cut, that term may be known to a standby, and must never be
 * given to another copy: an armed primary that gives up leaves through ISOLATED too, whose swap
 * uses the term up (and tells the standby that its copy is worthless).
 *
 * ISOLATED means "leaving the pair": the swap to solo was asked for and not answered yet. Once it
 * was asked for, an answer may be lost and the question may still be carried out much later, so
 * the machine never goes back to PROTECTED: it goes on asking until it knows. When the link
 * comes back meanwhile, epochs flow and are acknowledged again (the standby's word is enough to
 * release them, whatever the register says: if it takes over, then with all that it
 * acknowledged), but the VM does not count as protected.
 *
 * A guest that outruns the link may leave the pair as one that shall not be protected any more: by
 * way of ISOLATED, while epochs go on. It stays SOLO for a while, since it would outrun it again.
 *
 * HANDING is a switchover: the VM is stopped for a last epoch, and when that is acknowledged (so
 * its frames are released) the standby is told to claim. It claims as it would from a dead primary;
 * the register decides. The VM does not run again before the register has said that it is this
 * host's alone, so whatever gets lost, and whoever dies, it is continued at one place: a switchover
 * that is not carried out in time leaves the pair through ISOLATED, and resumes the VM in SOLO.
 *
 * A guard that died leaves its VM running, mute. The next one attaches to it and begins in
 * ISOLATED: neither what the register says nor what was released is known, so nothing leaves until
 * the register was read and a swap to solo was carried out, which also uses up whatever pair term
 * the dead guard may have given away.
 *
 * From STOPPING on nothing leaves: another host may start the VM as soon as the register says that
 * nobody owns it, which is before the answer is here. Acknowledgements commit nothing any more.
 *
 * A question that never got an answer is harmless: each one names the whole record that it expects,
 * and terms only grow. An answer "conflict" with the very record we wanted means that an earlier
 * question of ours was carried out, since nobody else writes us as the owner. */

enum primary_state {
    PRIMARY_STARTING = 1, /* the VM does not run yet; the register is being claimed */
    PRIMARY_SOLO,         /* runs, output flows, not protected */
    PRIMARY_SEEDING,      /* as SOLO; the first full copy is on its way */
    PRIMARY_ARMING,       /* the gate holds; the first epoch with the pair term is on its way */
    PRIMARY_PAIRING,      /* that epoch is acknowledged; solo -> paired is asked for */
    PRIMARY_PROTECTED,    /* the register says paired */
    PRIMARY_HANDING,      /* as PROTECTED; the VM is being handed over to the standby */
    PRIMARY_ISOLATED,     /* leaving the pair, or attached; the register has not answered yet */
    PRIMARY_STOPPING,     /* the register is being given up, then the VM is destroyed */
    PRIMARY_STOPPED,      /* final: stopped on purpose */
    PRIMARY_LOST,         /* final: another host owns the VM, or it died here */
};

enum primary_link { LINK_NONE = 0, LINK_CONNECTING, LINK_UP };

struct primary {
    /* constant */
    char self[WIRE_NAME_BYTES];
    struct core_timing timing;
    struct start_order order; /* STARTING */

    enum primary_state state;
    struct arb_record record;     /* the register as last known; ours to change unless LOST */
    char wanted[WIRE_NAME_BYTES]; /* host that shall be standby; "" = unprotected on purpose */
    char peer[WIRE_NAME_BYTES];   /* host of the session that is or was last tried */
    enum primary_link link;
    uint64_t peer_seen_ns;  /* LINK_UP: when the standby was last heard, plus what we have stood
                             * still since */
    uint64_t connect_at_ns; /* LINK_NONE: when to try next; CORE_NEVER = do not */

    uint64_t next_epoch; /* number of the next epoch to cut */
    uint64_t committed;  /* newest acknowledged epoch of this VM's history here */
    uint64_t pair_term;  /* ARMING..ISOLATED: the term that epochs carry; otherwise 0 */
    uint64_t arm_epoch;  /* ARMING: the first epoch cut after the gate closed; 0 = not yet cut */

    uint64_t cool_until_ns; /* it outran the link: not to be protected again before */

    bool handing;        /* the VM stands still, or is about to: from HANDING on, or attached so */
    bool handed;         /* the standby was told to claim */
    uint64_t hand_epoch; /* HANDING: the last epoch; 0 = not yet cut */
    uint64_t hand_deadline_ns;

    uint64_t ask_id;             /* newest question to the arbiter */
    bool asking;                 /* it is open */
    struct arb_record asked_for; /* what it wants the record to become */
    uint64_t ask_at_ns;          /* not asking: when to ask (again); CORE_NEVER = nothing to ask */
    uint64_t start_deadline_ns;
    bool arbiter_silent; /* the last question got no answer */
    bool seeded;         /* SEEDING: all is there, the register is being looked at */
};

enum primary_event_type {
    PEV_TIMER = 1,   /* nothing but the time */
    PEV_ARB_ANSWER,  /* u.answer */
    PEV_LINK_READY,  /* both channels are up and the standby is ready: u.ready */
    PEV_LINK_FAILED, /* a connection attempt failed, or an established link broke */
    PEV_RELINK,      /* the shell has replaced the link by a new one, which is about to resume the
                      * session; PEV_LINK_READY or PEV_LINK_FAILED follows. The pair may be left by
                      * now: epochs were lost with the old link all the same */
    PEV_PEER_SEEN,   /* any message came on the control channel */
    PEV_STOOD_STILL, /* this process got no CPU, or did not listen, until now: u.stood_ns */
    PEV_ACK,         /* u.ack */
    PEV_PEER_BYE,    /* the standby gives the session up: u.bye */
    PEV_SEEDED,      /* every page was sent once and little is dirty */
    PEV_PROTECT,     /* operator: u.host */
    PEV_UNPROTECT,   /* operator */
    PEV_SWITCHOVER,  /* operator: hand the VM over; ignored unless PROTECTED with the link up */
    PEV_OUTRUN,      /* the guest writes memory faster than the link carries, and its file says that
                      * it goes on alone then; ignored unless PROTECTED */
    PEV_STOP,        /* operator, or the guest powered itself off */
    PEV_VM_DIED,     /* the hypervisor is gone */
};

struct primary_event {
    enum primary_event_type type;
    union {
        struct {
            uint64_t id;
            uint8_t status; /* enum wire_arb_status, 0 = no answer */
            struct arb_record current;
        } answer;
        struct {
            bool resumed;
            uint64_t epoch, term; /* resumed: newest whole epoch there, and its term */
        } ready;
        struct {
            uint64_t epoch, term;
        } ack;
        uint16_t bye;
        char host[WIRE_NAME_BYTES];
        uint64_t stood_ns;
    } u;
};

/* A VM that shall start on this host: asks the arbiter first (ACT_VM_RUN or ACT_START_REFUSED
 * follows). wanted: standby, or "". order is copied. */
void primary_init_start(struct primary *p, const char *self, const struct core_timing *timing,
                        const char *wanted, const struct start_order *order, uint64_t now_ns,
                        struct actions *out);

/* A VM that this host has just taken over under `record` ({self, solo}); its newest epoch is
 * `epoch`. It is solo until PEV_PROTECT. */
void primary_init_takeover(struct primary *p, const char *self, const struct core_timing *timing,
                           const struct arb_record *record, uint64_t epoch, struct actions *out);

/* A VM of this host whose guard has died; its hypervisor lives on. `running`: its vCPUs run; if
 * not, ACT_VM_RESUME follows once this host is the VM's sole owner. wanted: standby, or "". Epochs
 * begin anew, as for a start: nobody else holds anything of this history that could still be used.
 */
void primary_init_attach(struct primary *p, const char *self, const struct core_timing *timing,
                         const char *wanted, bool running, struct actions *out);

/* One step: an event at a time (which never goes back). Appends actions to *out. */
void primary_step(struct primary *p, const struct primary_event *ev, uint64_t now_ns,
                  struct actions *out);

/* When PEV_TIMER is due at the latest; CORE_NEVER = no timer. */
uint64_t primary_deadline(const struct primary *p);

/* True when the shell may cut an epoch now (as far as arbitration is concerned: the link is up and
 * past seeding, and the VM was not handed over with its last one). The controller says whether it
 * should. */
bool primary_may_cut(const struct primary *p);

/* Numbers an epoch that the shell cuts now: returns its number, *ret_term is what it carries.
 * Seeding epochs get theirs here too (term 0). */
uint64_t primary_cut(struct primary *p, uint64_t *ret_term);

bool primary_finished(const struct primary *p);
const char *primary_state_name(enum primary_state state);

#endif
