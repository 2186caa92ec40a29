/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_SIM_H
#define US_TESTS_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/controller.h"
#include "core/gate.h"
#include "core/primary.h"
#include "core/standby.h"
#include "coverage.h"
#include "disk.h"
#include "plant.h"
#include "setup.h"
#include "vm.h"

/* The simulation: hosts, an arbiter and the network between them in one process, on a virtual
 * clock, driven by one seed (docs/simulation.md). Nothing here reads a real clock, an address or
 * anything else that could differ between two runs of the same seed.
 *
 *   world.c          clock, event queue, random numbers, trace
 *   net.c            connections, partitions
 *   arbiter.c        the register and the way to it
 *   vm.c             the guest: a state that moves on, emits frames and writes to its disk
 *   disk.c           each host's copy of that disk, and how it is replicated
 *   guard_shell.c    a guard around core/primary.h: the machine's actions
 *   guard_link.c     ... its connections
 *   guard_cut.c      ... its epochs and frames
 *   standby_shell.c  a standby around core/standby.h
 *   host.c           processes: start, crash, freeze; who gets a connection
 *   daemon.c         VMs that lost their guard
 *   check.c          the invariants of safety, against what is really the case
 *   check_disk.c     ... those of the disks
 *   live.c           ... and of progress
 *   faults.c         what goes wrong when
 *   operator.c       what people order
 *   main.c           command line, profiles, jobs */

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S  UINT64_C(1000000000)
#define NEVER     UINT64_MAX

enum {
    HOSTS_MAX = 3,
    NODE_ARBITER = HOSTS_MAX, /* node numbers: hosts, then the arbiter */
    NODES = HOSTS_MAX + 1,
    NO_HOST = 255,
    PROCS = HOSTS_MAX * 2,
    NO_PROC = 255,
    NONE = -1,
    INBOX_MAX = 4096,
    HELD_MAX = 256,
    HELD_FULL = 160, /* the VM is paused when that many are held: less than HELD_MAX - SOCKET_MAX */
    STAGED_MAX = 32,
    CONNS_MAX = 4096,
    MSGS_MAX = 8192,
    ASKS_MAX = 4096,
    SESSIONS_MAX = 4096,
    BRANCHES_MAX = 256,
    TERMS_MAX = 4096,
    ARRIVED_MAX = 64,
    ATTACHES_MAX = 3, /* guards in a row that may die of the same VM */
};

/* ---- world.c ---- */

struct rng {
    uint64_t s[4];
    const uint8_t *choices; /* used up first, if there are any: see world_choose() */
    size_t n_choices;
};

enum event_type {
    EV_HANDLED = 0, /* an inbox entry that was dealt with */
    /* of a process: kept in its inbox while it is frozen, void when it is gone */
    EV_TIMER,
    EV_MSG,       /* arg: message */
    EV_CONN_LOST, /* arg: connection; the process finds out that it is dead */
    EV_FRAMES,    /* the guest's socket is readable */
    EV_CUT_OPEN,  /* the VM stands still */
    EV_CUT_DONE,  /* its pages are copied */
    EV_SEED,      /* a piece of seeding is due */
    EV_SERVING,   /* standby: the hypervisor waits */
    EV_STAGED,    /* standby: the oldest staged epoch is verified */
    EV_APPLY,     /* standby: the applier goes on */
    EV_RECORD,    /* guard: the activation record is to be written */
    EV_DISK_OPEN, /* guard that took over: the guest's writes are let through */
    EV_ACTIVATED, /* standby: the hypervisor has restored */
    EV_ARB_REPLY, /* arg: question */
    EV_ARB_TIMEOUT,
    EV_PROC_LAST = EV_ARB_TIMEOUT,
    /* of the world */
    EV_THAW,       /* proc */
    EV_DELIVER,    /* arg: connection * 2 + direction */
    EV_VM_STEP,    /* proc: the guard whose guest it is */
    EV_ARB_ARRIVE, /* arg: question */
    EV_ARB_APPLY,
    EV_ARB_UP,
    EV_HOST_UP,   /* arg: host */
    EV_DAEMON_UP, /* arg: host */
    EV_ATTACH,    /* arg: host; understudyd starts another guard for a mute VM */
    EV_FAULT,
    EV_FAULT_SOON, /* a fault provoked by a transition */
    EV_OPERATOR,
    EV_HEAL,
    EV_SINGLE, /* profile light: the one fault, then its consequence is due */
    EV_LOOP,   /* arg: host; a guard dies of its VM */
    EV_HIT,    /* ... of a primary that hands its VM over */
    EV_VERDICT,
    EV_DEADLINE, /* everything must be in order by now */
};

struct event {
    uint64_t at_ns, seq;
    uint32_t life, arg;
    uint8_t type, proc;
};

struct queue {
    struct event *heap;
    unsigned n, capacity;
    uint64_t seq;
};

/* ---- net.c ---- */

enum channel { CHANNEL_CONTROL, CHANNEL_DATA };

enum msg_type {
    MSG_HELLO,   /* guard: of a new or a resumed session */
    MSG_WELCOME, /* standby: the data channel is attached */
    MSG_REFUSE,
    MSG_READY,
    MSG_HEARTBEAT,
    MSG_ACK,
    MSG_BYE,
    MSG_PART, /* a piece of an epoch */
    MSG_END,  /* its trailer */
    MSG_FIN,  /* the connection was closed by the other side */
};

struct msg {
    uint64_t ready_at_ns;
    uint64_t epoch, term;
    uint64_t base; /* END: the epoch whose image this one applies to; 0 = to nothing */
    struct state state;
    struct memory memory; /* END */
    struct delta delta;   /* END; READY: in its mask, the dirty map */
    uint32_t sync;        /* READY: the id of the full copy; 0 = none that counts */
    uint64_t durable;     /* ACK */
    uint32_t next, conn, parts;
    uint16_t bye;
    uint8_t type, side; /* side that receives it */
};

struct conn_end {
    uint8_t node, proc; /* proc: NO_PROC until the host has handed it over */
    uint32_t life;
    bool open;
};

struct conn_way {
    uint32_t head, tail; /* messages + 1; 0 = empty */
    bool due;            /* its head's delivery is in the event queue */
    uint64_t last_ready_ns;
};

struct conn {
    struct conn_end end[2]; /* 0: the guard's */
    struct conn_way way[2]; /* way[i]: what end i sent */
    uint32_t session;
    uint8_t channel;
    bool resume;
    bool broken; /* nothing gets through any more */
};

struct net {
    uint64_t blocked_until_ns[NODES][NODES];
    unsigned n_conns, n_msgs;
    uint32_t free_msg; /* + 1 */
    struct conn conns[CONNS_MAX];
    struct msg msgs[MSGS_MAX];
};

/* ---- arbiter.c ---- */

struct ask {
    uint64_t id;
    struct wire_arb_request request;
    struct wire_arb_reply reply; /* status 0 = none */
    uint32_t life, session;
    uint8_t proc;
    bool given_up;    /* nobody waits for the answer any more */
    bool by_order;    /* of a person: recover or seize */
    bool carried_out; /* once at least */
};

struct arbiter {
    bool up;
    uint32_t life;
    uint64_t slow_until_ns;
    uint64_t leaderless_until_ns; /* a cluster's: nobody answers, nothing is carried out */
    struct arb_record reg, old;   /* old: before the last change */
    uint8_t owner, standby;       /* of reg, as host numbers or NO_HOST */
    unsigned n_asks;
    struct ask asks[ASKS_MAX];
};

/* ---- processes ---- */

enum role { ROLE_GUARD, ROLE_STANDBY };

struct proc {
    bool alive;
    uint32_t life; /* grows with each start and end */
    uint64_t frozen_until_ns;
    uint64_t thawed_at_ns;
    uint64_t timer_at_ns;
    uint32_t ask; /* open question + 1; 0 = none */
    unsigned n_inbox;
    struct event inbox[INBOX_MAX];
};

enum cut_phase { CUT_IDLE, CUT_STOPPING, CUT_COPYING };

struct sim_guard {
    struct primary core;
    struct gate gate;
    struct controller controller;
    struct vm vm;

    /* the session */
    uint32_t session;
    int control, data;
    bool resume, up;
    int next;      /* control channel that is to replace the link; NONE = none */
    bool old_gone; /* ... and the link broke meanwhile */
    uint64_t ready_epoch, ready_term;
    uint32_t ready_sync;
    uint8_t ready_dirty;
    uint64_t heartbeat_at_ns, connect_by_ns;

    /* the epoch that is being cut */
    enum cut_phase cut;
    int cut_conn;         /* data connection that it was begun for */
    struct msg cut_msg;   /* what is sent when it is copied */
    uint64_t last_cut;    /* newest epoch that was sent over this link */
    uint64_t sent_before; /* epochs up to here do not count as in flight */
    bool rebase;          /* the next epoch carries all that is unacknowledged */
    uint64_t dirty_seen;
    uint64_t cut_at_ns, cut_pages;
    bool throttled; /* the VM stands still until earlier epochs are acknowledged */

    struct sim_journal journal;
    bool stands;    /* the VM: its last epoch was cut, it is being handed over */
    bool attached;  /* its VM had another guard before, which died, */
    bool attaching; /* ... and whose the VM is now is not known yet */

    bool seeding;
    unsigned seeds_left;
    uint8_t to_copy; /* blocks of the disk */
    uint64_t last_seed;

    unsigned held_first, n_held; /* ring */
    struct frame held[HELD_MAX];
    /* Frozen between the decision to release frames and writing them. */
    unsigned n_decided;
    unsigned next_action;
    struct actions interrupted;

    uint64_t stamp_later; /* for the plant stamp-late: gate_cut() that is still to come; 0 = none */
    bool reports_protected;
    uint64_t untrue_since_ns; /* it reports so and it is not the case; 0 = fine */
};

struct staged {
    uint64_t epoch, term;
    struct state state;
    struct memory memory;
    struct delta delta;
};

struct sim_standby {
    struct standby core;
    bool serving;
    uint32_t session;
    uint8_t primary;
    int control, data;
    uint64_t heartbeat_at_ns;

    uint64_t part_epoch; /* the epoch that is arriving */
    unsigned n_parts;
    struct state part_state;
    bool had_partial; /* it was thrown away with its connection */
    uint64_t arrived; /* newest whole one */
    unsigned first_staged, n_staged;
    struct staged staged[STAGED_MAX]; /* whole, not yet reported */
    uint64_t stage_busy_until_ns;
    struct staged image; /* newest one that was reported: what a takeover runs from */
    struct staged image_before;
    struct arb_record seen; /* for the plant term-ignored */

    bool activating;
    struct arb_record record;
};

struct host {
    bool up;
    bool has_crashed;
    bool daemon_up;    /* understudyd */
    bool mute;         /* a hypervisor without a guard: guard.vm */
    unsigned attaches; /* guards in a row that died after they had attached */
    uint64_t frozen_until_ns;
    struct proc proc[2]; /* by enum role */
    struct sim_guard guard;
    struct sim_standby standby;
    struct sim_disk disk;
};

/* ---- what is really the case (check.c, live.c) ---- */

/* A session as seen by somebody who sees everything. */
struct session {
    uint8_t primary, standby;
    uint32_t standby_life; /* of the process that was started for it */
    uint64_t whole;        /* newest epoch that arrived complete */
    uint64_t acked;        /* newest epoch acknowledged */
    uint64_t arriving;
    unsigned n_parts;
    bool handed; /* the primary said bye: its VM stands still at ... */
    struct state handed_state;
    struct staged arrived[ARRIVED_MAX]; /* by epoch % ARRIVED_MAX */
};

struct truth {
    unsigned n_branches, n_boots, n_sessions;
    struct branch branches[BRANCHES_MAX];
    struct state front[BRANCHES_MAX]; /* by boot: deepest state that anything outside depends on */
    uint64_t boot_at_ns[BRANCHES_MAX];
    struct session sessions[SESSIONS_MAX];
    uint64_t last_term;
    struct arb_record history[TERMS_MAX]; /* the register by term */
    uint32_t paired_session[TERMS_MAX];   /* by term: the session that was paired; 0 = none */
    uint64_t emitted, last_emit_ns;
    uint32_t must_activate;      /* session whose standby has to take over; 0 = none */
    uint64_t protected_since_ns; /* in truth; 0 = not */
    uint64_t emitted_before;     /* ... emitted until then */
    bool was_protected, left_protected;
    uint32_t n_writes, n_flushes;
    uint32_t required;    /* the last flush that somebody outside may know of */
    uint32_t judged_from; /* writes up to it were made the VM's by a person */
    struct state writes[WRITES_MAX];
    uint32_t flushes[FLUSHES_MAX][BLOCKS]; /* the disk as it was flushed; 0 = nothing ever */
};

enum { TRACE_LINES = 200, TRACE_BYTES = 176 };

struct world {
    uint64_t seed;
    enum plant plant;
    bool verbose, tracing;
    struct rng rng;
    uint64_t now_ns;
    uint64_t n_events;
    struct queue queue;
    struct setup setup;
    unsigned n_hosts;
    bool healed, done, failed;
    struct host hosts[HOSTS_MAX];
    struct arbiter arbiter;
    struct net net;
    struct truth truth;
    uint64_t dead_since_ns; /* no VM and nobody about to run one; 0 = there is one */
    bool covered[COVERAGES];
    char failure[512];
    unsigned n_trace;
    char trace[TRACE_LINES][TRACE_BYTES];
};

extern const char *const host_names[HOSTS_MAX];
extern const char *const profile_names[PROFILES];

/* Makes an empty world; NULL without memory. One is used for many schedules. */
struct world *world_new(void);
void world_free(struct world *w);

/* Runs one schedule to its end: w->failed and w->failure say how it went. A failed assertion inside
 * the machines counts as a failure. */
void world_run(struct world *w, uint64_t seed, enum profile profile, enum plant plant, bool tracing,
               bool verbose);

/* The next schedule takes its decisions from these bytes (borrowed), one or two for each, and what
 * goes on after the last of them from its seed. For the fuzzer. */
void world_choose(struct world *w, const uint8_t *choices, size_t n);

void world_post(struct world *w, uint64_t at_ns, enum event_type type, uint8_t proc, uint32_t arg);

/* The first failure of a schedule counts; it ends with the current step. */
void world_fail(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void world_trace(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Formatting costs more than everything else together: only when somebody will read it. */
#define TRACE(w, ...)                                                                              \
    do {                                                                                           \
        if ((w)->tracing)                                                                          \
            world_trace((w), __VA_ARGS__);                                                         \
    } while (0)

/* Prints the last lines of the trace. */
void world_print_trace(const struct world *w);

uint64_t rng_below(struct world *w, uint64_t n);               /* 0 .. n - 1; n > 0 */
uint64_t rng_range(struct world *w, uint64_t lo, uint64_t hi); /* lo .. hi */
uint64_t rng_log(struct world *w, uint64_t lo, uint64_t hi);   /* every octave is as likely */
uint64_t rng_mean(struct world *w, uint64_t mean);             /* waiting time, at most 4 * mean */
bool rng_chance(struct world *w, unsigned millionths);

static inline void cover(struct world *w, enum coverage what)
{
    w->covered[what] = true;
}

static inline bool planted(const struct world *w, enum plant plant)
{
    return w->plant == plant;
}

static inline uint8_t proc_id(unsigned host, enum role role)
{
    return (uint8_t)(host * 2 + role);
}

static inline struct proc *proc_get(struct world *w, uint8_t id)
{
    return &w->hosts[id / 2].proc[id % 2];
}

/* ---- net.c ---- */

uint64_t net_delay(struct world *w);
bool net_blocked(const struct world *w, unsigned from, unsigned to);
/* Opens a connection of a guard to a host and sends the hello. Returns its number. */
int conn_open(struct world *w, unsigned from, unsigned to, enum channel channel, uint32_t session,
              bool resume);
/* Sends; what goes nowhere is dropped. The message is copied. */
void conn_send(struct world *w, int conn, unsigned side, const struct msg *msg);
/* Closes one side; the other one is told if fin. NONE is allowed. */
void conn_close(struct world *w, int conn, unsigned side, bool fin);
/* Nothing gets through from now on, what is under way is partly lost; each side finds out some time
 * or never. */
void conn_break(struct world *w, unsigned conn);
/* All connections of a process end with it: the peers are told, or (host) not. */
void conn_process_gone(struct world *w, uint8_t proc, bool host);
void net_deliver(struct world *w, uint32_t arg);
void msg_free(struct world *w, uint32_t index);

/* ---- arbiter.c ---- */

void arbiter_ask(struct world *w, uint8_t proc, uint64_t id, const struct wire_arb_request *request,
                 uint32_t session);
void arbiter_arrive(struct world *w, uint32_t ask);
void arbiter_apply(struct world *w, uint32_t ask);
void arbiter_crash(struct world *w, uint64_t down_ns);
void arbiter_up(struct world *w);
void arbiter_new_leader(struct world *w, uint64_t after_ns);
/* The connection of a process to it breaks: an open question gets no answer. */
void arbiter_hang_up(struct world *w, uint8_t proc);
/* The process waits for no answer any more. */
void arbiter_give_up(struct world *w, uint8_t proc);
/* The answer to the process's open question, or none, is here. Answers to questions that were given
 * up reach the machines too, though src/io/arbiter_client.h keeps them back: ids must do. */
void arbiter_take_up(struct world *w, const struct event *ev);

/* ---- guard_shell.c, guard_cut.c ---- */

enum start_how { HOW_START, HOW_RECOVER, HOW_SEIZE };

void guard_start(struct world *w, unsigned host, int wanted, enum start_how how);
void guard_takeover(struct world *w, unsigned host, const struct arb_record *record,
                    const struct staged *image);
void guard_attach(struct world *w, unsigned host);
void guard_event(struct world *w, unsigned host, const struct event *ev);
void guard_step(struct world *w, unsigned host, const struct primary_event *ev);
void guard_simple_step(struct world *w, unsigned host, enum primary_event_type type);
/* Thawed: goes on where it stood. */
void guard_go_on(struct world *w, unsigned host);
void guard_set_timer(struct world *w, unsigned host);

void cut_init(struct world *w, unsigned host);
void cut_open(struct world *w, unsigned host);
void cut_done(struct world *w, unsigned host);
void cut_if_due(struct world *w, unsigned host);
uint64_t cut_deadline(struct world *w, unsigned host);
unsigned in_flight(const struct sim_guard *g); /* epochs sent and not acknowledged */
void cut_seed(struct world *w, unsigned host);
void frames_read(struct world *w, unsigned host);
/* Lets go what the gate lets go. False: the guard stands still in the middle. */
bool frames_release(struct world *w, unsigned host);
void frames_write_decided(struct world *w, unsigned host);

/* ---- guard_link.c ---- */

void link_init(struct world *w, unsigned host);
void link_close(struct world *w, unsigned host);
void link_connect(struct world *w, unsigned host, bool resume);
void link_drop(struct world *w, unsigned host, uint16_t bye);
void link_message(struct world *w, unsigned host, const struct msg *msg);
void link_conn_lost(struct world *w, unsigned host, int conn);
void link_timer(struct world *w, unsigned host);
/* The host or its peer has a new key: the link is made anew. */
void link_new_keys(struct world *w, unsigned host);

/* ---- standby_shell.c ---- */

void standby_start(struct world *w, unsigned host, int conn);
void standby_event(struct world *w, unsigned host, const struct event *ev);
void standby_simple_step(struct world *w, unsigned host, enum standby_event_type type);
bool standby_can_take_over(const struct world *w, unsigned host);

/* ---- host.c ---- */

void proc_start(struct world *w, uint8_t id);
void proc_end(struct world *w, uint8_t id);
/* Dies without a word; its host lives on. */
void proc_crash(struct world *w, uint8_t id);
void proc_freeze(struct world *w, uint8_t id, uint64_t for_ns);
void proc_thaw(struct world *w, uint8_t id);
void proc_handle(struct world *w, const struct event *ev);
void proc_set_timer(struct world *w, uint8_t id, uint64_t at_ns);
void host_crash(struct world *w, unsigned host, uint64_t down_ns);
void host_up(struct world *w, unsigned host);
void host_freeze(struct world *w, unsigned host, uint64_t for_ns);
/* A hello that no process of the host has taken yet. */
void host_hello(struct world *w, unsigned host, uint32_t msg);
/* Runs and backs no VM, and could: a person may start it there. A mute VM stands in the way until
 * understudyd has given it up. */
bool host_free(const struct world *w, unsigned host);
bool guard_alive(const struct world *w, unsigned host);
bool standby_alive(const struct world *w, unsigned host);

/* ---- daemon.c ---- */

/* A guard dies; its VM lives on, mute, unless vm_too. */
void guard_crash(struct world *w, unsigned host, bool vm_too);
void daemon_crash(struct world *w, unsigned host, uint64_t down_ns);
void daemon_up(struct world *w, unsigned host);
/* Starts a guard for a VM that has none. */
void daemon_attach(struct world *w, unsigned host);
/* A hypervisor that is nobody's dies: its memory is lost. */
void mute_vm_dies(struct world *w, unsigned host);

/* ---- check.c ---- */

void check_step(struct world *w);
void check_register(struct world *w, const struct arb_record *before, const struct ask *ask);
void check_part(struct world *w, const struct msg *msg);
void check_arrived(struct world *w, const struct sim_standby *s, const struct msg *msg);
void check_ack(struct world *w, const struct sim_standby *s, uint64_t epoch);
void check_release(struct world *w, unsigned host, const struct frame *frame);
void check_emit(struct world *w, unsigned host, const struct frame *frame, bool late);
void check_activate(struct world *w, unsigned host, const struct sim_standby *s,
                    const struct arb_record *record);
void check_boot(struct world *w, unsigned host);
void check_bye(struct world *w, unsigned host);
uint32_t session_new(struct world *w, unsigned primary, unsigned standby);
/* A standby that can and may take over from this guard is really there. */
bool truly_protected(const struct world *w, unsigned host);

/* ---- live.c ---- */

/* A VM is about to die with its guard, by a fault. */
void live_vm_dies(struct world *w, unsigned host);
void live_standby_ends(struct world *w, unsigned host, bool fault);
void live_activated(struct world *w, uint32_t session);
void live_step(struct world *w);
void live_verdict(struct world *w);
void live_deadline(struct world *w);

/* ---- faults.c, operator.c ---- */

void faults_setup(struct world *w, enum profile profile);
void faults_begin(struct world *w);
void fault_strike(struct world *w, bool again);
void fault_provoke(struct world *w);
void fault_heal(struct world *w);
void fault_single(struct world *w);
void fault_hit(struct world *w);
/* A VM that is not good for its guards, or its host: the guard that has just got it may die soon.
 */
void fault_loop_begin(struct world *w, unsigned host);
void fault_loop(struct world *w, unsigned host);
bool fault_midway(struct world *w, unsigned host);
void operator_turn(struct world *w);

#endif
