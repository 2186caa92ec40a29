/* SPDX-License-Identifier: Apache-2.0 */
#include "sim.h"

/* Hypervisors whose guard has died, and understudyd, which starts another one for them. (Who gets a
 * connection is decided in host.c.) */

/* It has died before the guard's eyes, or understudyd has just come back: soon. */
static void daemon_look(struct world *w, unsigned host)
{
    if (w->hosts[host].mute && w->hosts[host].attaches > ATTACHES_MAX)
        cover(w, COVER_MUTE_GIVEN_UP);
    else if (w->hosts[host].mute && w->hosts[host].daemon_up)
        world_post(w, w->now_ns + rng_log(w, 2 * NS_PER_MS, NS_PER_S), EV_ATTACH, NO_PROC, host);
}

/* What the guard held and what the guest sends from now on is lost; its writes wait. */
void guard_crash(struct world *w, unsigned host, bool vm_too)
{
    struct sim_guard *g = &w->hosts[host].guard;
    bool mute = g->vm.exists && !vm_too;

    if (!mute) {
        proc_crash(w, proc_id(host, ROLE_GUARD));
        return;
    }
    TRACE(w, "%s guard: crashes, its VM lives on", host_names[host]);
    cover(w, COVER_MUTE);
    if (g->core.pair_term && g->core.arm_epoch && g->core.state < PRIMARY_PROTECTED)
        cover(w, COVER_MUTE_TERM_GIVEN);
    if (planted(w, PLANT_MUTE_LEAKS)) {
        g->gate.holding = false;
        (void)frames_release(w, host); /* whether it freezes over it does not matter any more */
    }
    conn_process_gone(w, proc_id(host, ROLE_GUARD), false);
    proc_end(w, proc_id(host, ROLE_GUARD));
    w->hosts[host].mute = true;
    w->hosts[host].attaches = g->attached ? w->hosts[host].attaches + 1 : 0;
    daemon_look(w, host);
}

void mute_vm_dies(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    if (!w->hosts[host].mute)
        return;
    TRACE(w, "%s vm: dies, mute", host_names[host]);
    g->vm.exists = true; /* until now */
    live_vm_dies(w, host);
    g->vm.exists = false;
    w->hosts[host].mute = false;
}

void daemon_attach(struct world *w, unsigned host)
{
    const struct host *h = &w->hosts[host];

    if (!h->up || !h->daemon_up || !h->mute || h->attaches > ATTACHES_MAX || guard_alive(w, host) ||
        standby_alive(w, host))
        return;
    if (h->frozen_until_ns > w->now_ns)
        world_post(w, h->frozen_until_ns, EV_ATTACH, NO_PROC, host);
    else
        guard_attach(w, host);
}

/* No VM notices; but nobody is let in, started or attached to. */
void daemon_crash(struct world *w, unsigned host, uint64_t down_ns)
{
    if (!w->hosts[host].up || !w->hosts[host].daemon_up)
        return;
    TRACE(w, "%s understudyd: crashes", host_names[host]);
    cover(w, COVER_DAEMON_CRASH);
    w->hosts[host].daemon_up = false;
    if (planted(w, PLANT_DAEMON_FATAL)) {
        proc_crash(w, proc_id(host, ROLE_GUARD));
        proc_crash(w, proc_id(host, ROLE_STANDBY));
    }
    world_post(w, w->now_ns + down_ns, EV_DAEMON_UP, NO_PROC, host);
}

void daemon_up(struct world *w, unsigned host)
{
    if (!w->hosts[host].up || w->hosts[host].daemon_up)
        return;
    TRACE(w, "%s understudyd: is up", host_names[host]);
    w->hosts[host].daemon_up = true;
    if (!planted(w, PLANT_MUTE_FORGOTTEN))
        daemon_look(w, host);
}
