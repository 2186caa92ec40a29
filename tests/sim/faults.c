/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* What goes wrong in a schedule, and when. Faults come at random, and also right after transitions
 * of the machines, where windows are narrow. At some point everything heals. */

enum fault {
    FAULT_PARTITION,
    FAULT_BREAK,
    FAULT_HOST_CRASH,
    FAULT_POWER, /* all hosts at once */
    FAULT_GUARD_CRASH,
    FAULT_VM_CRASH,
    FAULT_STANDBY_CRASH,
    FAULT_FREEZE_HOST,
    FAULT_FREEZE_GUARD,
    FAULT_FREEZE_STANDBY,
    FAULT_DAEMON_CRASH,
    FAULT_KEYS,
    FAULT_ARBITER_CRASH,
    FAULT_ARBITER_SLOW,
    FAULT_ARBITER_LEADER,
    FAULTS,
};

/* How likely each fault is, by profile. */
static const uint8_t weights[FAULTS][PROFILES] = {
    /* none, light, network, crash, freeze, everything */
    [FAULT_PARTITION] = {0, 0, 6, 0, 0, 6},      [FAULT_BREAK] = {0, 0, 3, 2, 1, 4},
    [FAULT_HOST_CRASH] = {0, 0, 0, 3, 0, 2},     [FAULT_POWER] = {0, 0, 0, 2, 0, 1},
    [FAULT_GUARD_CRASH] = {0, 0, 0, 6, 0, 4},    [FAULT_VM_CRASH] = {0, 0, 0, 3, 0, 2},
    [FAULT_STANDBY_CRASH] = {0, 0, 0, 4, 0, 2},  [FAULT_FREEZE_HOST] = {0, 0, 0, 0, 4, 2},
    [FAULT_FREEZE_GUARD] = {0, 0, 0, 0, 4, 2},   [FAULT_FREEZE_STANDBY] = {0, 0, 0, 0, 4, 2},
    [FAULT_DAEMON_CRASH] = {0, 0, 0, 2, 0, 1},   [FAULT_KEYS] = {0, 0, 3, 1, 1, 3},
    [FAULT_ARBITER_CRASH] = {0, 0, 0, 2, 0, 2},  [FAULT_ARBITER_SLOW] = {0, 0, 1, 0, 2, 2},
    [FAULT_ARBITER_LEADER] = {0, 0, 2, 1, 1, 3},
};

enum { DEADLINE_S = 20, VERDICT_MS = 1200 };

/* ---- setup ---- */

/* As in production; safety must not depend on it, nor on any order between the two time-outs. */
static void setup_timing(struct world *w, bool vary)
{
    struct setup *s = &w->setup;
    struct core_timing timing = {
        .peer_silent_ns = 100 * NS_PER_MS,
        .arb_retry_ns = 100 * NS_PER_MS,
        .resume_ns = 200 * NS_PER_MS,
        .reprotect_ns = 300 * NS_PER_MS,
        .cool_down_ns = NS_PER_S,
        .look_ns = NS_PER_S,
        .start_ns = 5 * NS_PER_S,
        .hand_over_ns = 2 * NS_PER_S,
    };

    s->heartbeat_ns = 20 * NS_PER_MS;
    s->arb_timeout_ns = NS_PER_S;
    s->connect_ns = NS_PER_S;
    if (vary) {
        timing.arb_retry_ns = rng_log(w, 10 * NS_PER_MS, 300 * NS_PER_MS);
        timing.resume_ns = rng_log(w, NS_PER_MS, 300 * NS_PER_MS);
        timing.reprotect_ns = rng_log(w, NS_PER_MS, 500 * NS_PER_MS);
        timing.cool_down_ns = rng_log(w, NS_PER_MS, 3 * NS_PER_S);
        timing.start_ns = rng_log(w, 300 * NS_PER_MS, 5 * NS_PER_S);
        timing.hand_over_ns = rng_log(w, 10 * NS_PER_MS, 2 * NS_PER_S);
        s->heartbeat_ns = rng_range(w, 8 * NS_PER_MS, 20 * NS_PER_MS);
        s->arb_timeout_ns = rng_log(w, 20 * NS_PER_MS, NS_PER_S);
        s->connect_ns = rng_log(w, 200 * NS_PER_MS, NS_PER_S);
    }
    s->primary = s->standby = timing;
    s->standby.peer_silent_ns = 150 * NS_PER_MS;
    if (vary) {
        s->primary.peer_silent_ns = rng_log(w, 50 * NS_PER_MS, 400 * NS_PER_MS);
        s->standby.peer_silent_ns = rng_log(w, 50 * NS_PER_MS, 400 * NS_PER_MS);
    }
}

/* busy: so many frames that their absence says something. */
static void setup_load(struct world *w, bool busy)
{
    struct setup *s = &w->setup;

    s->step_mean_ns = rng_log(w, 500 * NS_PER_US, (busy ? 3 : 6) * NS_PER_MS);
    s->frame_rate = (unsigned)rng_range(w, busy ? 350000 : 150000, 700000);
    s->disks = rng_chance(w, 800000);
    s->seize = rng_chance(w, 100000);
    s->write_rate = (unsigned)rng_log(w, 5000, 500000);
    s->flush_rate = (unsigned)rng_log(w, 5000, 200000);
    s->seeds = (unsigned)rng_range(w, 1, 6);
    s->seed_ahead = rng_chance(w, 300000);
    s->interval_min_ns = rng_log(w, NS_PER_MS, 8 * NS_PER_MS);
    s->interval_max_ns = rng_log(w, 20 * NS_PER_MS, 200 * NS_PER_MS);
    s->max_slowdown = (unsigned)rng_range(w, 50, 900);
}

void faults_setup(struct world *w, enum profile profile)
{
    struct setup *s = &w->setup;
    bool faulty = profile != PROFILE_NONE && profile != PROFILE_LIGHT;

    memset(s, 0, sizeof(*s));
    s->profile = profile;
    s->single = (enum single)rng_below(w, SINGLES);
    w->n_hosts = rng_chance(w, 250000) ? 3 : 2;
    if (w->n_hosts == 3)
        cover(w, COVER_THIRD_HOST);
    setup_timing(w, faulty && rng_chance(w, 600000));
    setup_load(w, !faulty);
    s->heal_at_ns = rng_range(w, 500 * NS_PER_MS, 900 * NS_PER_MS);
    if (!faulty)
        return;
    s->heal_at_ns = rng_range(w, 600 * NS_PER_MS, 2500 * NS_PER_MS);
    s->fault_mean_ns = rng_log(w, 60 * NS_PER_MS, NS_PER_S);
    s->operator_mean_ns = rng_log(w, 100 * NS_PER_MS, NS_PER_S);
    s->provoke = rng_chance(w, 700000) ? (unsigned)rng_range(w, 20000, 200000) : 0;
    s->lost_reply = (unsigned)rng_log(w, 1000, 100000);
    s->late_ask = (unsigned)rng_log(w, 10000, 300000);
    s->arb_error = (unsigned)rng_log(w, 1000, 50000);
    s->repeated_ask = (unsigned)rng_log(w, 1000, 100000);
    if (rng_chance(w, 200000))
        s->crash_loop = (unsigned)rng_range(w, 300000, 900000);
    s->slow_copy = (unsigned)rng_log(w, 1000, 400000);
    if (profile == PROFILE_NETWORK || profile == PROFILE_EVERYTHING)
        s->spike = (unsigned)rng_log(w, 500, 10000);
    if (profile == PROFILE_FREEZE || profile == PROFILE_EVERYTHING)
        s->midway = (unsigned)rng_log(w, 500, 20000);
}

void faults_begin(struct world *w)
{
    const struct setup *s = &w->setup;

    guard_start(w, 0, 1, HOW_START);
    world_post(w, NS_PER_MS, EV_OPERATOR, NO_PROC, 0);
    if (s->profile == PROFILE_LIGHT) {
        world_post(w, s->heal_at_ns, EV_SINGLE, NO_PROC, 0);
        return;
    }
    world_post(w, s->heal_at_ns, EV_HEAL, NO_PROC, 0);
    if (s->fault_mean_ns)
        world_post(w, rng_mean(w, s->fault_mean_ns), EV_FAULT, NO_PROC, 0);
}

/* ---- faults ---- */

static void partition(struct world *w, unsigned a, unsigned b, bool both, uint64_t for_ns)
{
    TRACE(w, "net: nothing gets from %u to %u%s for %.1f ms", a, b, both ? " and back" : "",
          (double)for_ns / 1e6);
    if (w->net.blocked_until_ns[a][b] < w->now_ns + for_ns)
        w->net.blocked_until_ns[a][b] = w->now_ns + for_ns;
    if (both)
        partition(w, b, a, false, for_ns);
}

static void some_partition(struct world *w)
{
    unsigned a = (unsigned)rng_below(w, w->n_hosts + 1), b = (unsigned)rng_below(w, w->n_hosts);

    if (b >= a)
        b++;
    if (a == w->n_hosts)
        a = NODE_ARBITER;
    if (b == w->n_hosts)
        b = NODE_ARBITER;
    partition(w, a, b, rng_chance(w, 600000), rng_log(w, 10 * NS_PER_MS, 2 * NS_PER_S));
}

/* One of the last connections: the others are dead already. */
static void some_break(struct world *w)
{
    unsigned n = w->net.n_conns, last = n < 4 ? n : 4;

    if (last)
        conn_break(w, n - 1 - (unsigned)rng_below(w, last));
}

static void crash_vm(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    mute_vm_dies(w, host);
    if (!guard_alive(w, host) || !g->vm.exists ||
        w->hosts[host].proc[ROLE_GUARD].frozen_until_ns > w->now_ns)
        return;
    TRACE(w, "%s vm: dies", host_names[host]);
    live_vm_dies(w, host);
    g->vm.exists = false;
    g->vm.n_socket = 0;
    guard_simple_step(w, host, PEV_VM_DIED);
}

/* Now and then the same person wants something else before the new link is there. */
static void new_keys_of(struct world *w, unsigned host)
{
    uint32_t life = w->hosts[host].proc[ROLE_GUARD].life;

    link_new_keys(w, host);
    if (w->setup.operator_mean_ns && w->hosts[host].proc[ROLE_GUARD].life == life &&
        rng_chance(w, 100000))
        guard_simple_step(w, host, rng_chance(w, 500000) ? PEV_UNPROTECT : PEV_SWITCHOVER);
}

/* A person changes a host's key: every connection that this host has or that others have to it is
 * made anew, those to the arbiter too. */
static void new_keys(struct world *w, unsigned host)
{
    unsigned i, role;

    for (role = 0; role < 2; role++)
        arbiter_hang_up(w, proc_id(host, (enum role)role));
    for (i = 0; i < w->n_hosts; i++) {
        const struct sim_guard *g = &w->hosts[i].guard;

        if (guard_alive(w, i) && w->hosts[i].proc[ROLE_GUARD].frozen_until_ns <= w->now_ns &&
            (i == host || strcmp(g->core.peer, host_names[host]) == 0))
            new_keys_of(w, i);
    }
}

void fault_loop_begin(struct world *w, unsigned host)
{
    if (rng_chance(w, w->setup.crash_loop))
        world_post(w, w->now_ns + rng_log(w, 100 * NS_PER_US, 50 * NS_PER_MS), EV_LOOP, NO_PROC,
                   host);
}

void fault_loop(struct world *w, unsigned host)
{
    if (w->healed || !guard_alive(w, host))
        return;
    if (rng_chance(w, 200000))
        host_crash(w, host, rng_log(w, 30 * NS_PER_MS, 2 * NS_PER_S));
    else
        guard_crash(w, host, false);
}

static void inflict(struct world *w, enum fault fault)
{
    unsigned host = (unsigned)rng_below(w, w->n_hosts);
    uint64_t short_ns = rng_log(w, 10 * NS_PER_MS, 3 * NS_PER_S);

    switch (fault) {
    case FAULT_PARTITION:
        some_partition(w);
        break;
    case FAULT_BREAK:
        some_break(w);
        break;
    case FAULT_HOST_CRASH:
        host_crash(w, host, rng_log(w, 30 * NS_PER_MS, 2 * NS_PER_S));
        break;
    case FAULT_POWER:
        for (host = 0; host < w->n_hosts; host++)
            host_crash(w, host, rng_log(w, 30 * NS_PER_MS, 2 * NS_PER_S));
        break;
    case FAULT_GUARD_CRASH:
        if (guard_alive(w, host))
            guard_crash(w, host, rng_chance(w, 300000));
        break;
    case FAULT_VM_CRASH:
        crash_vm(w, host);
        break;
    case FAULT_STANDBY_CRASH:
        if (standby_alive(w, host))
            proc_crash(w, proc_id(host, ROLE_STANDBY));
        break;
    case FAULT_FREEZE_HOST:
        host_freeze(w, host, short_ns);
        break;
    case FAULT_FREEZE_GUARD:
        proc_freeze(w, proc_id(host, ROLE_GUARD), short_ns);
        break;
    case FAULT_FREEZE_STANDBY:
        proc_freeze(w, proc_id(host, ROLE_STANDBY), short_ns);
        break;
    case FAULT_DAEMON_CRASH:
        daemon_crash(w, host, short_ns);
        break;
    case FAULT_KEYS:
        new_keys(w, host);
        break;
    case FAULT_ARBITER_LEADER:
        arbiter_new_leader(w, rng_log(w, 50 * NS_PER_MS, 2 * NS_PER_S));
        break;
    case FAULT_ARBITER_CRASH:
        arbiter_crash(w, rng_log(w, 10 * NS_PER_MS, NS_PER_S));
        break;
    case FAULT_ARBITER_SLOW:
        w->arbiter.slow_until_ns = w->now_ns + short_ns;
        break;
    default:
        break;
    }
}

void fault_strike(struct world *w, bool again)
{
    enum profile profile = w->setup.profile;
    unsigned sum = 0, i;
    uint64_t x;

    if (w->healed)
        return;
    for (i = 0; i < FAULTS; i++)
        sum += weights[i][profile];
    x = rng_below(w, sum);
    for (i = 0; x >= weights[i][profile]; i++)
        x -= weights[i][profile];
    if (again)
        world_post(w, w->now_ns + rng_mean(w, w->setup.fault_mean_ns), EV_FAULT, NO_PROC, 0);
    inflict(w, (enum fault)i);
}

void fault_provoke(struct world *w)
{
    if (!w->healed && rng_chance(w, w->setup.provoke))
        world_post(w, w->now_ns + rng_log(w, 20 * NS_PER_US, 10 * NS_PER_MS), EV_FAULT_SOON,
                   NO_PROC, 0);
}

bool fault_midway(struct world *w, unsigned host)
{
    uint64_t for_ns;

    if (w->healed || !rng_chance(w, w->setup.midway) || planted(w, PLANT_RELEASE_ON_SENT) ||
        planted(w, PLANT_KEEP_AFTER_LOSS))
        return false;
    for_ns = rng_log(w, 50 * NS_PER_MS, 2 * NS_PER_S);
    if (rng_chance(w, 500000))
        host_freeze(w, host, for_ns);
    proc_freeze(w, proc_id(host, ROLE_GUARD), for_ns);
    return true;
}

/* ---- profile light ---- */

void fault_single(struct world *w)
{
    if (w->now_ns > 5 * NS_PER_S) {
        world_fail(w, "progress: no fault at all, and the VM is not protected");
        return;
    }
    if (!w->truth.protected_since_ns || w->now_ns < w->truth.protected_since_ns + 50 * NS_PER_MS) {
        world_post(w, w->now_ns + 10 * NS_PER_MS, EV_SINGLE, NO_PROC, 0);
        return;
    }
    world_post(w, w->now_ns + VERDICT_MS * NS_PER_MS, EV_VERDICT, NO_PROC, 0);
    fault_hit(w);
}

/* Often the primary is hit at some point of it: it does not matter where, the VM has to go on. */
static void switchover(struct world *w)
{
    static const enum single then[] = {SINGLE_HOST, SINGLE_GUARD, SINGLE_MUTE, SINGLE_VM,
                                       SINGLE_FREEZE};

    guard_simple_step(w, 0, PEV_SWITCHOVER);
    if (rng_chance(w, 300000))
        return;
    w->setup.single = then[rng_below(w, sizeof(then) / sizeof(then[0]))];
    world_post(w, w->now_ns + rng_log(w, 100 * NS_PER_US, 100 * NS_PER_MS), EV_HIT, NO_PROC, 0);
}

void fault_hit(struct world *w)
{
    uint64_t for_ns = rng_range(w, 800 * NS_PER_MS, 3 * NS_PER_S);
    unsigned i;

    switch (w->setup.single) {
    case SINGLE_HOST:
        host_crash(w, 0, for_ns);
        break;
    case SINGLE_GUARD:
    case SINGLE_MUTE:
        if (guard_alive(w, 0))
            guard_crash(w, 0, w->setup.single == SINGLE_GUARD);
        break;
    case SINGLE_DAEMON:
        daemon_crash(w, (unsigned)rng_below(w, 2), for_ns);
        break;
    case SINGLE_KEYS:
        new_keys(w, (unsigned)rng_below(w, 2));
        break;
    case SINGLE_LEADER:
        arbiter_new_leader(w, for_ns);
        break;
    case SINGLE_VM:
        crash_vm(w, 0);
        break;
    case SINGLE_STANDBY_HOST:
        host_crash(w, 1, for_ns);
        break;
    case SINGLE_STANDBY:
        proc_crash(w, proc_id(1, ROLE_STANDBY));
        break;
    case SINGLE_LINK:
        partition(w, 0, 1, true, for_ns);
        break;
    case SINGLE_ARBITER:
        arbiter_crash(w, for_ns);
        break;
    case SINGLE_FREEZE:
        host_freeze(w, 0, for_ns);
        break;
    case SINGLE_FREEZE_STANDBY:
        proc_freeze(w, proc_id(1, ROLE_STANDBY), for_ns);
        break;
    case SINGLE_SWITCHOVER:
        switchover(w);
        break;
    default:
        for (i = 0; i < w->n_hosts; i++)
            host_freeze(w, i, for_ns / 8);
        break;
    }
}

/* ---- the end ---- */

void fault_heal(struct world *w)
{
    struct setup *s = &w->setup;
    unsigned i;

    TRACE(w, "all is well from now on");
    w->healed = true;
    s->spike = s->lost_reply = s->late_ask = s->arb_error = s->midway = s->provoke = 0;
    s->slow_copy = s->repeated_ask = s->crash_loop = 0;
    memset(w->net.blocked_until_ns, 0, sizeof(w->net.blocked_until_ns));
    w->arbiter.slow_until_ns = w->arbiter.leaderless_until_ns = 0;
    arbiter_up(w);
    for (i = 0; i < w->n_hosts; i++) {
        host_up(w, i);
        w->hosts[i].frozen_until_ns = 0;
        daemon_up(w, i);
    }
    for (i = 0; i < PROCS; i++) {
        if (proc_get(w, (uint8_t)i)->frozen_until_ns > w->now_ns) {
            proc_get(w, (uint8_t)i)->frozen_until_ns = w->now_ns;
            proc_thaw(w, (uint8_t)i);
        }
    }
    world_post(w, w->now_ns + DEADLINE_S * NS_PER_S, EV_DEADLINE, NO_PROC, 0);
}
