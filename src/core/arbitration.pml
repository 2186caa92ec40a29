/* SPDX-License-Identifier: Apache-2.0 */

/* The arbitration of one VM between two hosts, as a model for spin (spinroot.com): who may run the
 * VM, and whose output may leave. It abstracts primary.c, standby.c and arb_register_apply() of
 * src/wire, whose names it uses. tests/sim/spin_test.py runs it: the properties hold, and each
 * planted error (PLANT_...) is found. By hand:
 *
 *   spin -a -DFAULTS=3 arbitration.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan -m100000
 *   spin -t -p -g arbitration.pml                       the steps of what was found
 *
 * The simulation (docs/simulation.md) runs the real machines at random; this runs a sketch of them
 * through every order of events that so few faults permit.
 *
 * What is left out, and why nothing is lost by it:
 *  - Time. A time-out may strike at any moment (for a price, see below), a process may be slower
 *    than any. So a frozen one, a partition and an understudyd that takes long to start a guard
 *    again are only orders of steps.
 *  - Pages and frames. An epoch is its number and its pair term. Frames of the open epoch leave as
 *    soon as they may: a frame that leaves later breaks nothing that it does not break at once.
 *  - Seeding: a copy begins to count with the epoch that carries the pair term.
 *  - The looks of a solo primary that would tell it nothing new.
 *
 * Each fault, order and spurious time-out takes one of FAULTS; the model is searched for every
 * choice of so many. A question to the arbiter whose asker has given it up, or is dead, may be
 * carried out at any later moment, or never. */

#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef EPOCHS
#define EPOCHS 1 /* cut in a pair beyond those that the protocol needs */
#endif

#define A        0
#define B        1
#define NOBODY   2
#define NO_END   255
#define other(h) (1 - (h))

mtype = { OFF, MUTE, STARTING, SOLO, ARMING, PAIRING, PROTECTED, HANDING, ISOLATED, STOPPING,
          RECEIVING, READY, CLAIMING };           /* a host's process for the VM */
mtype = { DOWN, CONNECTING, UP };                 /* its link */
mtype = { IDLE, ASKED, ANSWERED };                /* its question to the arbiter */
mtype = { EPOCH, BYE_SWITCHOVER, ACK, READY_MSG } /* what travels between them */

/* `standby` of the real record is the other host when it is paired, and nobody otherwise. */
typedef record { byte term; byte owner; bool paired }
typedef question { mtype phase; bool swap; record expected; record wanted; record answer }

record reg;          /* the arbiter's register */
question q[2];       /* open */
question late[2];    /* given up, and not carried out yet (phase ASKED) */
byte faults = FAULTS;
byte epochs = EPOCHS;

/* By host. Of a primary: */
mtype st[2] = OFF;
mtype link[2] = DOWN; /* also a standby's: UP or DOWN */
record rec[2];        /* the register as last known; term 0: not at all */
byte pair_term[2];    /* a standby's: its right, 0 = none */
byte cut[2];          /* newest epoch; a standby's: newest whole one */
byte acked[2];
byte arm[2];          /* the first epoch with the pair term */
byte hand[2];         /* the last epoch of a switchover */
bool handed[2];
bool recover[2], seize[2];
/* Of a standby: */
byte claimed[2];
bool forced[2];

byte session = NOBODY; /* the primary whose session the other host's standby holds */
chan to_standby = [2] of { mtype, byte, byte }; /* epoch, term */
chan to_primary = [2] of { mtype, byte, byte };

/* What is really the case, which no process knows. */
bool vm[2];     /* there is a hypervisor with the VM's memory */
bool stands[2]; /* ... and it was stopped to be handed over */
bool flow[2];   /* its output leaves freely */
byte front;     /* newest epoch of which anything has left, in the history that goes on */
bool former[2]; /* the VM there does not belong to it any more, */
byte until[2];  /* ... but up to that epoch it did */
bool stale;     /* the copy that is there must never run */

/* ---- what must be true ---- */

/* I1: output leaves without a standby only from the sole owner. I5: who counts as protected is. */
inline check(h) {
    assert(!flow[h] || (reg.owner == h && !reg.paired));
    assert(st[h] != PROTECTED || reg.owner != h || reg.paired)
}

/* I2: all that leaves belongs to one history. */
inline emit(h, epoch) {
    if
    :: former[h] -> assert(epoch <= until[h])
    :: !former[h] && epoch > front -> front = epoch
    :: else
    fi
}

/* The history goes on at this host from epoch `from`, or begins anew: then what is left of the one
 * before may end as it likes, it is alone there. */
inline succeed(h, from, last) {
    if
    :: vm[other(h)] && !former[other(h)] -> former[other(h)] = true; until[other(h)] = last
    :: else
    fi;
    former[h] = false; until[h] = 0; front = from; vm[h] = true; stale = true
}

/* ---- the arbiter ---- */

inline ask_get(h) {
    q[h].phase = ASKED; q[h].swap = false
}

inline copy_record(to, from) {
    to.term = from.term; to.owner = from.owner; to.paired = from.paired
}

inline ask_swap(i, new_owner, pair) {
    q[i].phase = ASKED; q[i].swap = true;
    copy_record(q[i].expected, rec[i]);
    q[i].wanted.term = rec[i].term + 1;
    q[i].wanted.owner = new_owner;
    q[i].wanted.paired = pair
}

inline clear(x) {
    x.phase = IDLE; x.swap = false;
    x.expected.term = 0; x.expected.owner = 0; x.expected.paired = false;
    x.wanted.term = 0; x.wanted.owner = 0; x.wanted.paired = false;
    x.answer.term = 0; x.answer.owner = 0; x.answer.paired = false
}

#define same(x, y) (x.term == y.term && x.owner == y.owner && x.paired == y.paired)

#ifdef PLANT_NO_TERMS
#define as_expected(x) (reg.owner == x.expected.owner && reg.paired == x.expected.paired)
#else
#define as_expected(x) same(reg, x.expected)
#endif

inline carry_out(x) {
    if
    :: x.swap && as_expected(x) ->
        if /* who leaves a pair makes the copy worthless */
        :: reg.paired && x.wanted.owner == reg.owner -> stale = true
        :: else
        fi;
#ifdef PLANT_NO_TERMS
        x.wanted.term = reg.term + 1;
#endif
        copy_record(reg, x.wanted);
        check(A); check(B)
    :: else
    fi;
    copy_record(x.answer, reg);
    x.phase = ANSWERED
}

/* The asker waits no longer, or is dead. */
inline leave_question(h) {
    if
    :: q[h].phase == ASKED && q[h].swap && late[h].phase == IDLE ->
        late[h].phase = ASKED; late[h].swap = true;
        copy_record(late[h].expected, q[h].expected);
        copy_record(late[h].wanted, q[h].wanted)
    :: else
    fi;
    clear(q[h])
}

/* One for each asker: none of them waits for the other one's questions. */
proctype Arbiter(byte h) {
end:
    do
    :: d_step { q[h].phase == ASKED -> carry_out(q[h]) }
    :: d_step { late[h].phase == ASKED -> carry_out(late[h]); clear(late[h]) }
    od
}

/* ---- the ends of a session ---- */

inline no_link(h) {
    link[h] = DOWN;
    if
    :: session == h && (st[h] == SOLO || st[h] == OFF || st[h] == MUTE) -> session = NOBODY
    :: else
    fi
}

/* The process is gone, as a standby or as a primary. */
inline leave(h, to) {
    leave_question(h);
    if
    :: session == other(h) && (st[h] == RECEIVING || st[h] == READY || st[h] == CLAIMING) ->
        session = NOBODY
    :: else
    fi;
    st[h] = to;
    no_link(h);
    flow[h] = false;
    copy_record_none(h);
    pair_term[h] = 0; acked[h] = 0; arm[h] = 0; hand[h] = 0;
    handed[h] = false; recover[h] = false; seize[h] = false;
    claimed[h] = 0; forced[h] = false
}

inline copy_record_none(h) {
    rec[h].term = 0; rec[h].owner = 0; rec[h].paired = false
}

inline off(h) {
    leave(h, OFF);
    vm[h] = false; stands[h] = false; former[h] = false; until[h] = 0; cut[h] = 0
}

inline enter_solo(h) {
    st[h] = SOLO;
    pair_term[h] = 0; arm[h] = 0; hand[h] = 0;
    stands[h] = false; handed[h] = false;
    no_link(h);
    flow[h] = true;
    emit(h, cut[h] + 1);
    check(h)
}

#ifdef PLANT_SOLO_UNASKED
#define enter_isolated(h) enter_solo(h)
#else
inline enter_isolated(h) {
    leave_question(h);
    st[h] = ISOLATED;
#ifdef PLANT_RESUME_UNASKED
    stands[h] = false;
#endif
    ask_swap(h, h, false)
}
#endif

/* The guest outruns the link, which stays, as for `unprotect`: epochs go on until the swap. */
#ifdef PLANT_OUTRUN_UNASKED
#define outrun(h) enter_solo(h)
#else
#define outrun(h) enter_isolated(h)
#endif

/* ---- the primary ---- */

inline primary_link_lost(h) {
    link[h] = DOWN;
    if
    :: st[h] == SOLO -> no_link(h)
    :: st[h] == ARMING && arm[h] == 0 -> enter_solo(h)
#ifdef PLANT_TERM_REUSED
    :: st[h] == ARMING && arm[h] != 0 -> enter_solo(h)
#else
    :: st[h] == ARMING && arm[h] != 0 -> enter_isolated(h)
#endif
    :: st[h] == PAIRING || st[h] == PROTECTED || (st[h] == HANDING && !handed[h]) ->
        enter_isolated(h)
    :: st[h] == HANDING && handed[h] && q[h].phase == IDLE -> ask_get(h)
    :: else
    fi
}

inline commit(h, epoch) {
    acked[h] = epoch;
    emit(h, epoch)
}

inline start_judge(h) {
    if
    :: seize[h] || ((rec[h].owner == h || rec[h].owner == NOBODY) &&
                    (!rec[h].paired || recover[h])) -> ask_swap(h, h, false)
    :: else -> off(h)
    fi
}

inline on_swapped(h) {
    if
    :: st[h] == STARTING ->
        succeed(h, 0, NO_END);
        seize[h] = false; recover[h] = false;
        enter_solo(h)
    :: st[h] == PAIRING -> st[h] = PROTECTED; check(h)
    :: st[h] == ISOLATED -> enter_solo(h)
    :: st[h] == STOPPING -> off(h)
    :: else
    fi
}

/* The register holds what was not asked for. */
inline on_conflict(h) {
    if
    :: st[h] == STARTING -> start_judge(h)
    :: st[h] != STARTING && rec[h].owner != h -> off(h)
    :: st[h] == PAIRING && rec[h].owner == h -> enter_isolated(h)
    :: st[h] == ISOLATED && rec[h].owner == h -> ask_swap(h, h, false)
    :: st[h] == STOPPING && rec[h].owner == h -> ask_swap(h, NOBODY, false)
    :: else
    fi
}

inline on_looked(h) {
    if
    :: st[h] == STARTING -> start_judge(h)
    :: st[h] != STARTING && rec[h].owner != h -> off(h)
    :: st[h] == HANDING && rec[h].owner == h && link[h] != UP -> enter_isolated(h)
    :: st[h] == SOLO && rec[h].owner == h && link[h] == UP ->
        st[h] = ARMING; pair_term[h] = rec[h].term + 1; flow[h] = false
#ifdef PLANT_ATTACH_UNSWAPPED
    :: st[h] == ISOLATED && rec[h].owner == h && !rec[h].paired -> enter_solo(h)
    :: st[h] == ISOLATED && rec[h].owner == h && rec[h].paired -> ask_swap(h, h, false)
#else
    :: st[h] == ISOLATED && rec[h].owner == h -> ask_swap(h, h, false) /* attached */
#endif
    :: else
    fi
}

inline primary_answer(h) {
    copy_record(rec[h], q[h].answer);
    q[h].phase = IDLE;
    if
    :: !q[h].swap -> clear(q[h]); on_looked(h)
    :: q[h].swap && same(rec[h], q[h].wanted) -> clear(q[h]); on_swapped(h)
    :: else -> clear(q[h]); on_conflict(h)
    fi
}

#ifdef PLANT_ASK_ONCE
#define asks_again(h) false
#else
#define asks_again(h) (st[h] == ISOLATED)
#endif

/* Looks that would tell nothing new are left out. */
#define wants_to_ask(h) (st[h] == STARTING || st[h] == PAIRING || asks_again(h) || \
    st[h] == STOPPING || (st[h] == SOLO && (link[h] == UP || reg.term != rec[h].term)) || \
    (st[h] == HANDING && handed[h] && reg.term != rec[h].term))

inline primary_ask_again(h) {
    if
    :: st[h] == PAIRING -> ask_swap(h, h, true)
    :: st[h] == ISOLATED && rec[h].term != 0 -> ask_swap(h, h, false)
    :: st[h] == STOPPING -> ask_swap(h, NOBODY, false)
    :: st[h] == STARTING && rec[h].term != 0 -> start_judge(h)
    :: else -> ask_get(h)
    fi
}

#define has_pair(h) (st[h] == PAIRING || st[h] == PROTECTED || st[h] == HANDING || \
                     (st[h] == ISOLATED && pair_term[h] != 0))
#define may_cut(h)  (link[h] == UP && !stands[h] && nfull(to_standby) && \
                     (st[h] == ARMING || has_pair(h)))
#define must_cut(h) ((st[h] == ARMING && arm[h] == 0) || (st[h] == HANDING && hand[h] == 0))

inline cut_epoch(h) {
    cut[h]++;
    if
    :: arm[h] == 0 -> arm[h] = cut[h]
    :: else
    fi;
    if
    :: st[h] == HANDING && hand[h] == 0 -> hand[h] = cut[h]; stands[h] = true
    :: else
    fi;
    to_standby!EPOCH, cut[h], pair_term[h];
#ifdef PLANT_RELEASE_ON_SENT
    emit(h, cut[h])
#endif
}

inline on_ack(h, epoch) {
    if
    :: epoch > acked[h] && st[h] != STOPPING ->
        commit(h, epoch);
        if
        :: st[h] == ARMING && arm[h] != 0 && epoch >= arm[h] ->
            st[h] = PAIRING;
            leave_question(h);
            ask_swap(h, h, true)
        :: st[h] == HANDING && hand[h] != 0 && epoch >= hand[h] ->
            handed[h] = true;
            to_standby!BYE_SWITCHOVER, 0, 0
        :: else
        fi
    :: else
    fi
}

inline on_ready(h, epoch, term) {
    if
    :: (st[h] == ISOLATED || st[h] == PROTECTED) && term == pair_term[h] &&
       epoch >= acked[h] && epoch <= cut[h] ->
        link[h] = UP;
#ifdef PLANT_PROTECTED_AGAIN
        if
        :: st[h] == ISOLATED -> st[h] = PROTECTED; leave_question(h)
        :: else
        fi;
#endif
        if
        :: epoch > acked[h] -> commit(h, epoch)
        :: else
        fi
    :: else -> primary_link_lost(h)
    fi
}

/* ---- the standby ---- */

#define claims(h) (link[h] != UP || forced[h])

inline void(h) {
    off(h)
}

inline claim_or_look(h) {
    if
    :: st[h] == CLAIMING && claims(h) ->
        q[h].phase = ASKED; q[h].swap = true;
#ifdef PLANT_TERM_IGNORED
        copy_record(q[h].expected, reg);
#else
        q[h].expected.term = pair_term[h];
        q[h].expected.owner = other(h);
        q[h].expected.paired = true;
#endif
        q[h].wanted.term = q[h].expected.term + 1;
        q[h].wanted.owner = h;
        q[h].wanted.paired = false;
        claimed[h] = pair_term[h]
    :: else -> ask_get(h)
    fi
}

/* I4, I2, and a VM that was handed over goes on where it was stopped. */
inline activate(h) {
    assert(!stale);
    assert(cut[h] >= front);
    assert(!handed[other(h)] || cut[h] == hand[other(h)]);
    leave_question(h);
    succeed(h, cut[h], cut[h]);
    session = NOBODY;
    link[h] = DOWN;
    pair_term[h] = 0; claimed[h] = 0; forced[h] = false; acked[h] = cut[h];
    enter_solo(h)
}

inline standby_judge(h) {
    copy_record(rec[h], q[h].answer);
    clear(q[h]);
    if
#ifdef PLANT_TERM_IGNORED
    :: st[h] == CLAIMING && rec[h].owner == h -> activate(h)
#endif
    :: st[h] == CLAIMING && claimed[h] == pair_term[h] && rec[h].term == pair_term[h] + 1 &&
       rec[h].owner == h && !rec[h].paired -> activate(h)
    :: else ->
        if
#ifdef PLANT_NEVER_VOID
        :: rec[h].term > pair_term[h] -> copy_record_none(h)
#endif
        :: rec[h].term > pair_term[h] || (rec[h].term == pair_term[h] &&
                                          !(rec[h].owner == other(h) && rec[h].paired)) -> void(h)
        :: else ->
            if
            :: rec[h].term != pair_term[h] -> forced[h] = false
            :: else
            fi;
            copy_record_none(h)
        fi
    fi
}

inline on_epoch(h, epoch, term) {
    if
    :: epoch <= cut[h] || (pair_term[h] != 0 && term != pair_term[h]) -> void(h)
    :: else ->
        cut[h] = epoch;
        pair_term[h] = term;
        if
        :: st[h] == RECEIVING -> st[h] = READY
        :: else
        fi;
        to_primary!ACK, epoch, term
    fi
}

inline on_bye(h) {
    if
    :: st[h] == RECEIVING -> void(h)
    :: else ->
        forced[h] = true;
        if
        :: st[h] == READY -> leave_question(h); st[h] = CLAIMING; claim_or_look(h)
        :: else
        fi
    fi
}

inline on_silence(h) {
    if
    :: st[h] == RECEIVING -> void(h)
    :: st[h] == READY -> leave_question(h); link[h] = DOWN; st[h] = CLAIMING; claim_or_look(h)
    :: st[h] == CLAIMING -> leave_question(h); link[h] = DOWN
    fi
#ifdef PLANT_TAKE_UNASKED
    ;
    if
    :: st[h] == CLAIMING -> activate(h)
    :: else
    fi
#endif
}

/* No answer in time. */
inline give_up(h) {
    leave_question(h)
#ifdef PLANT_CLAIM_GIVEN_UP
    ;
    if
    :: st[h] == CLAIMING -> void(h)
    :: else
    fi
#endif
}

/* ---- the network between them ---- */

inline flush() {
    do
    :: nempty(to_standby) -> to_standby?_, _, _
    :: nempty(to_primary) -> to_primary?_, _, _
    :: empty(to_standby) && empty(to_primary) -> break
    od
}

/* A sole owner looks for a standby. A hypervisor without a guard is cleared away for it. */
inline connect(h) {
    if
    :: st[other(h)] == OFF || st[other(h)] == MUTE ->
        off(other(h));
        flush();
        st[other(h)] = RECEIVING; link[other(h)] = UP; link[h] = UP;
        session = h; stale = false
    :: (st[other(h)] == READY || st[other(h)] == CLAIMING) && q[other(h)].phase == IDLE ->
        ask_get(other(h)) /* it knocks */
    fi
}

inline resume(h) {
    flush();
    link[h] = CONNECTING; link[other(h)] = UP;
    to_primary!READY_MSG, cut[other(h)], pair_term[other(h)]
}

/* ---- the hosts ---- */

#define primary(h) (st[h] == SOLO || st[h] == ARMING || has_pair(h) || st[h] == ISOLATED || \
                    st[h] == STOPPING || st[h] == STARTING)
#define standby(h) (st[h] == RECEIVING || st[h] == READY || st[h] == CLAIMING)
#define away(h)    (st[h] == OFF || st[h] == MUTE)
#define left_alone(h) (session != other(h) || link[other(h)] == DOWN) /* a standby */
#define seizing    (seize[A] || seize[B])

/* Nobody runs the VM, and nobody could. */
#define may_take_over(h) ((st[h] == READY || st[h] == CLAIMING) && \
    ((reg.term == pair_term[h] && reg.paired) || \
     (reg.term == pair_term[h] + 1 && reg.owner == h && claimed[h] != 0)))
#define lost_for_good (!vm[A] && !vm[B] && !may_take_over(A) && !may_take_over(B))

inline start(h) {
    off(h);
    st[h] = STARTING;
    ask_get(h)
}

proctype Host(byte h) {
    byte epoch, term;
end:
    do
    /* what processes do by themselves */
    :: d_step { primary(h) && q[h].phase == ANSWERED -> primary_answer(h) }
    :: d_step { wants_to_ask(h) && q[h].phase == IDLE -> primary_ask_again(h) }
    :: d_step { standby(h) && q[h].phase == ANSWERED -> standby_judge(h) }
    :: d_step { st[h] == CLAIMING && q[h].phase == IDLE && (claims(h) || reg.term != pair_term[h])
                -> claim_or_look(h) }
    :: d_step { st[h] == SOLO && link[h] == DOWN && session == NOBODY && !seizing &&
                (away(other(h)) || ((st[other(h)] == READY || st[other(h)] == CLAIMING) &&
                                    q[other(h)].phase == IDLE)) -> connect(h) }
    :: d_step { st[h] == ISOLATED && link[h] == DOWN && session == h && pair_term[h] != 0 &&
                (st[other(h)] == READY || st[other(h)] == CLAIMING) -> resume(h) }
    :: d_step { may_cut(h) && must_cut(h) -> cut_epoch(h) }
    :: d_step { may_cut(h) && !must_cut(h) && epochs -> epochs--; cut_epoch(h) }
    :: d_step { standby(h) && link[h] == UP && nfull(to_primary) && to_standby?[EPOCH, epoch, term]
                -> to_standby?EPOCH, epoch, term; on_epoch(h, epoch, term); epoch = 0; term = 0 }
    :: d_step { standby(h) && link[h] == UP && to_standby?[BYE_SWITCHOVER, _, _]
                -> to_standby?BYE_SWITCHOVER, _, _; on_bye(h) }
    :: d_step { primary(h) && link[h] == UP && nfull(to_standby) && to_primary?[ACK, epoch, term]
                -> to_primary?ACK, epoch, term; on_ack(h, epoch); epoch = 0; term = 0 }
    :: d_step { primary(h) && link[h] == CONNECTING && to_primary?[READY_MSG, epoch, term]
                -> to_primary?READY_MSG, epoch, term; on_ready(h, epoch, term);
                epoch = 0; term = 0 }
    :: d_step { st[h] == HANDING -> enter_isolated(h) } /* it takes too long */
    :: d_step { st[h] == MUTE && !seizing -> leave(h, ISOLATED); ask_get(h) }       /* attaches */
    /* who is gone is silent */
    :: d_step { primary(h) && link[h] != DOWN && (session != h || link[other(h)] == DOWN)
                -> primary_link_lost(h) }
    :: d_step { standby(h) && (st[h] != CLAIMING || link[h] == UP) && left_alone(h)
                -> on_silence(h) }
    /* faults, orders, and time-outs that strike for nothing */
    :: d_step { faults && st[h] == PROTECTED && link[h] == UP
                -> faults--; st[h] = HANDING }
    :: d_step { faults && st[h] == PROTECTED && link[h] == UP && session == h
                -> faults--; resume(h) } /* new keys: the link is replaced by another one */
    :: d_step { faults && (st[h] == PAIRING || st[h] == PROTECTED || st[h] == HANDING)
                -> faults--; enter_isolated(h) } /* unprotect: the link stays */
    :: d_step { faults && st[h] == PROTECTED -> faults--; outrun(h) }
    :: d_step { faults && (primary(h) || standby(h)) && q[h].phase != IDLE
                -> faults--; give_up(h) }
    :: d_step { faults && primary(h) && link[h] != DOWN -> faults--; primary_link_lost(h) }
    :: d_step { faults && standby(h) && (st[h] != CLAIMING || link[h] == UP)
                -> faults--; on_silence(h) }
    :: d_step { faults && primary(h) && vm[h] -> faults--; leave(h, MUTE) } /* the guard dies */
#ifndef UNATTENDED
    :: d_step { faults && st[h] != OFF -> faults--; off(h) } /* the host, or a standby, dies */
    :: d_step { faults && primary(h) && st[h] != STARTING && st[h] != STOPPING
                -> faults--; leave_question(h); st[h] = STOPPING; flow[h] = false;
                ask_swap(h, NOBODY, false) }
    :: atomic { faults && st[h] == OFF && !seizing -> faults--; start(h);
                if
                :: true
                :: recover[h] = true
                fi }
    :: d_step { faults && st[h] == OFF && away(other(h)) && !seizing
                -> faults--; start(h); seize[h] = true }
    :: d_step { st[h] == OFF && lost_for_good && !seizing -> start(h); recover[h] = true }
#endif
    od
}

/* hosta runs the VM, alone. */
init {
    d_step {
        reg.term = 1; reg.owner = A;
        copy_record(rec[A], reg);
        clear(q[A]); clear(q[B]); clear(late[A]); clear(late[B]);
        vm[A] = true; st[A] = SOLO; flow[A] = true; front = 1
    }
    atomic { run Arbiter(A); run Arbiter(B); run Host(A); run Host(B) }
}

/* ---- progress: when the faults are over, the VM is protected at last, and stays so ---- */

#define protected(h) (vm[h] && !stands[h] && reg.owner == h && st[h] == PROTECTED && \
                      link[h] == UP && session == h && may_take_over(other(h)))

/* Nothing happens any more. */
active proctype End() {
end:
    timeout -> assert(protected(A) || protected(B))
}

/* Nothing but the same happens. */
ltl progress { <> [] (protected(A) || protected(B)) }
