/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* Hosts and their processes: a guard and a standby at most, for the one VM. What stands for
 * understudyd here decides who gets a new connection, nothing else.
 *
 * A frozen process takes no steps; what comes for it waits, and is dealt with when it thaws, in
 * order within one kind (timers, control, data, arbiter, its own work), but in any order between
 * the kinds. */

bool guard_alive(const struct world *w, unsigned host)
{
    return w->hosts[host].proc[ROLE_GUARD].alive;
}

bool standby_alive(const struct world *w, unsigned host)
{
    return w->hosts[host].proc[ROLE_STANDBY].alive;
}

bool host_free(const struct world *w, unsigned host)
{
    const struct host *h = &w->hosts[host];

    return h->up && h->daemon_up && h->frozen_until_ns <= w->now_ns && !guard_alive(w, host) &&
           !standby_alive(w, host) && (!h->mute || h->attaches > ATTACHES_MAX);
}

/* ---- processes ---- */

void proc_start(struct world *w, uint8_t id)
{
    struct proc *p = proc_get(w, id);

    p->alive = true;
    p->life++;
    p->frozen_until_ns = p->thawed_at_ns = 0;
    p->timer_at_ns = NEVER;
    p->ask = p->n_inbox = 0;
}

static void drop_event(struct world *w, const struct event *ev)
{
    if (ev->type == EV_MSG)
        msg_free(w, ev->arg);
}

void proc_end(struct world *w, uint8_t id)
{
    struct proc *p = proc_get(w, id);
    unsigned i;

    if (id % 2 == ROLE_GUARD)
        w->hosts[id / 2].guard.vm.exists = false;
    arbiter_give_up(w, id);
    for (i = 0; i < p->n_inbox; i++)
        drop_event(w, &p->inbox[i]);
    p->n_inbox = 0;
    p->alive = false;
    p->life++;
    p->frozen_until_ns = 0;
    p->timer_at_ns = NEVER;
}

static void proc_die(struct world *w, uint8_t id, bool with_host)
{
    if (!proc_get(w, id)->alive)
        return;
    if (id % 2 == ROLE_GUARD)
        live_vm_dies(w, id / 2);
    else
        live_standby_ends(w, id / 2, true);
    conn_process_gone(w, id, with_host);
    proc_end(w, id);
}

void proc_crash(struct world *w, uint8_t id)
{
    TRACE(w, "%s %s: crashes", host_names[id / 2], id % 2 ? "standby" : "guard");
    proc_die(w, id, false);
}

/* Repeats nothing: an earlier entry in the queue only wakes up for nothing. */
void proc_set_timer(struct world *w, uint8_t id, uint64_t at_ns)
{
    struct proc *p = proc_get(w, id);

    if (at_ns == NEVER) {
        p->timer_at_ns = NEVER;
        return;
    }
    if (at_ns < w->now_ns)
        at_ns = w->now_ns;
    at_ns += rng_below(w, rng_chance(w, 10000) ? 5 * NS_PER_MS : 100 * NS_PER_US);
    if (p->timer_at_ns <= at_ns)
        return;
    p->timer_at_ns = at_ns;
    world_post(w, at_ns, EV_TIMER, id, 0);
}

static void run(struct world *w, const struct event *ev)
{
    struct proc *p = proc_get(w, ev->proc);

    if (ev->type == EV_TIMER) {
        if (ev->at_ns != p->timer_at_ns)
            return;
        p->timer_at_ns = NEVER;
    }
    if (ev->proc % 2 == ROLE_GUARD)
        guard_event(w, ev->proc / 2, ev);
    else
        standby_event(w, ev->proc / 2, ev);
    drop_event(w, ev);
}

void proc_handle(struct world *w, const struct event *ev)
{
    struct proc *p = proc_get(w, ev->proc);

    if (!p->alive || p->life != ev->life) {
        drop_event(w, ev);
    } else if (p->frozen_until_ns <= w->now_ns) {
        run(w, ev);
    } else if (p->n_inbox < INBOX_MAX) {
        p->inbox[p->n_inbox++] = *ev;
    } else {
        drop_event(w, ev);
        world_fail(w, "simulator: inbox is full");
    }
}

void proc_freeze(struct world *w, uint8_t id, uint64_t for_ns)
{
    struct proc *p = proc_get(w, id);

    if (!p->alive || p->frozen_until_ns > w->now_ns + for_ns)
        return;
    TRACE(w, "%s %s: freezes for %.1f ms", host_names[id / 2], id % 2 ? "standby" : "guard",
          (double)for_ns / 1e6);
    p->frozen_until_ns = w->now_ns + for_ns;
    world_post(w, p->frozen_until_ns, EV_THAW, id, 0);
}

enum { KIND_TIMER, KIND_CONTROL, KIND_DATA, KIND_ARBITER, KIND_OWN, KINDS };

static unsigned kind_of(const struct world *w, const struct event *ev)
{
    uint32_t conn;

    switch (ev->type) {
    case EV_TIMER:
    case EV_ARB_TIMEOUT:
        return KIND_TIMER;
    case EV_ARB_REPLY:
        return KIND_ARBITER;
    case EV_MSG:
    case EV_CONN_LOST:
        conn = ev->type == EV_MSG ? w->net.msgs[ev->arg].conn : ev->arg;
        return w->net.conns[conn].channel == CHANNEL_DATA ? KIND_DATA : KIND_CONTROL;
    default:
        return KIND_OWN;
    }
}

/* The next entry of that kind from *at on. False: there is none. */
static bool next_of_kind(const struct world *w, const struct proc *p, unsigned kind, unsigned *at)
{
    while (*at < p->n_inbox &&
           (p->inbox[*at].type == EV_HANDLED || kind_of(w, &p->inbox[*at]) != kind))
        (*at)++;
    return *at < p->n_inbox;
}

/* Takes what came meanwhile in a random order of kinds, until the process ends or freezes again. */
static void empty_inbox(struct world *w, uint8_t id)
{
    struct proc *p = proc_get(w, id);
    unsigned next[KINDS] = {0}, more = (1u << KINDS) - 1, i, n = 0;
    uint32_t life = p->life;

    while (more && p->frozen_until_ns <= w->now_ns) {
        unsigned kind = (unsigned)rng_below(w, KINDS);

        if (!(more & (1u << kind)))
            continue;
        if (!next_of_kind(w, p, kind, &next[kind])) {
            more &= ~(1u << kind);
            continue;
        }
        struct event ev = p->inbox[next[kind]];

        p->inbox[next[kind]].type = EV_HANDLED;
        run(w, &ev);
        if (p->life != life)
            return;
    }
    for (i = 0; i < p->n_inbox; i++) {
        if (p->inbox[i].type != EV_HANDLED)
            p->inbox[n++] = p->inbox[i];
    }
    p->n_inbox = n;
}

void proc_thaw(struct world *w, uint8_t id)
{
    struct proc *p = proc_get(w, id);
    uint32_t life = p->life;

    if (p->frozen_until_ns > w->now_ns)
        return; /* frozen for longer meanwhile */
    TRACE(w, "%s %s: thaws", host_names[id / 2], id % 2 ? "standby" : "guard");
    p->thawed_at_ns = w->now_ns;
    if (id % 2 == ROLE_GUARD)
        guard_go_on(w, id / 2);
    if (p->life == life)
        empty_inbox(w, id);
}

/* ---- hosts ---- */

void host_crash(struct world *w, unsigned host, uint64_t down_ns)
{
    struct host *h = &w->hosts[host];

    if (!h->up)
        return;
    TRACE(w, "%s: crashes", host_names[host]);
    proc_die(w, proc_id(host, ROLE_GUARD), true);
    proc_die(w, proc_id(host, ROLE_STANDBY), true);
    mute_vm_dies(w, host);
    disk_power_loss(w, host);
    h->up = h->daemon_up = false;
    h->has_crashed = true;
    h->frozen_until_ns = 0;
    world_post(w, w->now_ns + down_ns, EV_HOST_UP, NO_PROC, host);
}

void host_up(struct world *w, unsigned host)
{
    if (w->hosts[host].up)
        return;
    TRACE(w, "%s: is up", host_names[host]);
    cover(w, COVER_HOST_BACK);
    w->hosts[host].up = w->hosts[host].daemon_up = true;
}

void host_freeze(struct world *w, unsigned host, uint64_t for_ns)
{
    struct host *h = &w->hosts[host];

    if (!h->up || h->frozen_until_ns > w->now_ns + for_ns)
        return;
    h->frozen_until_ns = w->now_ns + for_ns;
    proc_freeze(w, proc_id(host, ROLE_GUARD), for_ns);
    proc_freeze(w, proc_id(host, ROLE_STANDBY), for_ns);
}

/* ---- connections ---- */

static void hand_over(struct world *w, unsigned host, struct conn *c, uint32_t msg)
{
    uint8_t id = proc_id(host, ROLE_STANDBY);
    struct event ev = {.at_ns = w->now_ns, .type = EV_MSG, .proc = id, .arg = msg};

    ev.life = c->end[1].life = proc_get(w, id)->life;
    c->end[1].proc = id;
    proc_handle(w, &ev);
}

void host_hello(struct world *w, unsigned host, uint32_t msg)
{
    uint32_t conn = w->net.msgs[msg].conn;
    struct conn *c = &w->net.conns[conn];
    struct msg refuse = {.type = MSG_REFUSE};

    if (!w->hosts[host].daemon_up) { /* it passes every connection on */
        cover(w, COVER_DAEMON_AWAY);
        msg_free(w, msg);
        conn_close(w, (int)conn, 1, true);
        return;
    }
    if (standby_alive(w, host)) {
        hand_over(w, host, c, msg);
        return;
    }
    msg_free(w, msg);
    if (c->channel == CHANNEL_CONTROL && !c->resume && !guard_alive(w, host)) {
        if (w->hosts[host].mute)
            cover(w, COVER_MUTE_REPLACED);
        mute_vm_dies(w, host);
        standby_start(w, host, (int)conn);
        return;
    }
    if (c->channel == CHANNEL_CONTROL && guard_alive(w, host))
        cover(w, COVER_BUSY_PRIMARY);
    conn_send(w, (int)conn, 1, &refuse);
    conn_close(w, (int)conn, 1, true);
}
