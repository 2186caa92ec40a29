/* SPDX-License-Identifier: Apache-2.0 */
#include "sim.h"

/* The people: they start a VM that does not run, protect one that is not protected, and now and
 * then order something else. When all is well again they only want the VM protected. If it does not
 * start and nobody is left who could take over, they recover it; some schedules' people seize it
 * instead, which overrules the register and takes whatever copy there is. */

enum { TURN_MS = 50, START_AFTER_MS = 1000, RECOVER_AFTER_MS = 2500 };

static unsigned other_host(struct world *w, unsigned host)
{
    unsigned other = (unsigned)rng_below(w, w->n_hosts - 1);

    return other < host ? other : other + 1;
}

static int find_guard(const struct world *w)
{
    unsigned i;

    for (i = 0; i < w->n_hosts; i++) {
        if (guard_alive(w, i))
            return (int)i;
    }
    return NONE;
}

static bool someone_activates(const struct world *w)
{
    unsigned i;

    for (i = 0; i < w->n_hosts; i++) {
        if (standby_alive(w, i) && w->hosts[i].standby.activating)
            return true;
    }
    return false;
}

/* A VM has no guard at present. */
static bool someone_attaches(const struct world *w)
{
    unsigned i;

    for (i = 0; i < w->n_hosts; i++) {
        if (w->hosts[i].mute && w->hosts[i].attaches <= ATTACHES_MAX)
            return true;
    }
    return false;
}

static bool someone_can_take_over(const struct world *w)
{
    unsigned i;

    for (i = 0; i < w->n_hosts; i++) {
        if (standby_can_take_over(w, i))
            return true;
    }
    return false;
}

static void protect(struct world *w, unsigned host)
{
    struct primary_event ev = {.type = PEV_PROTECT};
    unsigned other = other_host(w, host), i;

    for (i = 0; host_names[other][i]; i++)
        ev.u.host[i] = host_names[other][i];
    TRACE(w, "operator: protect, to %s", host_names[other]);
    guard_step(w, host, &ev);
}

/* The register's owner first: he need not ask anybody. */
static void start(struct world *w, enum start_how how)
{
    unsigned host = w->arbiter.owner;

    if (host == NO_HOST || !host_free(w, host) || rng_chance(w, 200000))
        host = (unsigned)rng_below(w, w->n_hosts);
    if (!host_free(w, host))
        return;
    mute_vm_dies(w, host);
    if (how == HOW_SEIZE)
        cover(w, COVER_SEIZED);
    guard_start(w, host, (int)other_host(w, host), how);
}

static void restart(struct world *w)
{
    if (!w->dead_since_ns)
        w->dead_since_ns = w->now_ns;
    if (w->now_ns < w->dead_since_ns + START_AFTER_MS * NS_PER_MS)
        return;
    if (someone_can_take_over(w) || w->truth.must_activate)
        start(w, HOW_START);
    else if (w->now_ns < w->dead_since_ns + RECOVER_AFTER_MS * NS_PER_MS)
        start(w, HOW_START);
    else
        start(w, w->setup.seize ? HOW_SEIZE : HOW_RECOVER);
}

static void keep_protected(struct world *w)
{
    int host = find_guard(w);

    if (host == NONE && !someone_activates(w) && !someone_attaches(w)) {
        restart(w);
        return;
    }
    /* A start that will be refused is no sign of life. */
    if (host != NONE && w->hosts[host].guard.vm.exists)
        w->dead_since_ns = 0;
    if (host != NONE && w->hosts[host].guard.core.state == PRIMARY_SOLO &&
        !w->hosts[host].guard.core.wanted[0])
        protect(w, (unsigned)host);
}

/* Whoever's VM it is, by his own account. */
static int some_responsive_guard(struct world *w)
{
    unsigned host = (unsigned)rng_below(w, w->n_hosts);

    if (!guard_alive(w, host) || w->hosts[host].proc[ROLE_GUARD].frozen_until_ns > w->now_ns)
        return NONE;
    return (int)host;
}

static void order_failover(struct world *w)
{
    unsigned host = (unsigned)rng_below(w, w->n_hosts);

    if (!standby_alive(w, host) || !w->hosts[host].standby.serving ||
        w->hosts[host].proc[ROLE_STANDBY].frozen_until_ns > w->now_ns)
        return;
    TRACE(w, "operator: failover to %s", host_names[host]);
    standby_simple_step(w, host, SEV_FAILOVER);
}

static void order(struct world *w)
{
    uint64_t what = rng_below(w, 100);
    int host = some_responsive_guard(w);

    if (what < 15) {
        order_failover(w);
    } else if (host == NONE) {
        if (find_guard(w) == NONE || rng_chance(w, 200000))
            start(w, rng_chance(w, 300000) ? HOW_RECOVER : HOW_START);
    } else if (what < 60) {
        if (w->hosts[host].guard.core.state == PRIMARY_SOLO)
            protect(w, (unsigned)host);
    } else if (what < 75) {
        TRACE(w, "operator: switchover");
        guard_simple_step(w, (unsigned)host, PEV_SWITCHOVER);
    } else if (what < 80) {
        TRACE(w, "the guest outruns the link");
        if (w->hosts[host].guard.core.state == PRIMARY_PROTECTED)
            cover(w, COVER_OUTRUN);
        guard_simple_step(w, (unsigned)host, PEV_OUTRUN);
    } else if (what < 90) {
        TRACE(w, "operator: unprotect");
        if (w->hosts[host].guard.core.state == PRIMARY_PROTECTED)
            cover(w, COVER_UNPROTECTED);
        guard_simple_step(w, (unsigned)host, PEV_UNPROTECT);
    } else {
        TRACE(w, "operator: stop");
        guard_simple_step(w, (unsigned)host, PEV_STOP);
    }
}

void operator_turn(struct world *w)
{
    uint64_t next_ns = TURN_MS * NS_PER_MS;

    if (w->healed || !w->setup.operator_mean_ns) {
        keep_protected(w);
    } else {
        order(w);
        next_ns = rng_mean(w, w->setup.operator_mean_ns);
    }
    if (next_ns > TURN_MS * NS_PER_MS * 20)
        next_ns = TURN_MS * NS_PER_MS * 20;
    world_post(w, w->now_ns + next_ns + NS_PER_MS, EV_OPERATOR, NO_PROC, 0);
}
