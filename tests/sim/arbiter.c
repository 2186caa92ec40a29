/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* The arbiter: src/wire's register behind a way that delays, loses and reorders. Every question is
 * a message of its own, so that a question that was given up may overtake or follow the next one,
 * and may be carried out seconds later or after its asker's death. */

static uint8_t host_number(const char *name)
{
    uint8_t i;

    for (i = 0; i < HOSTS_MAX; i++) {
        if (strcmp(name, host_names[i]) == 0)
            return i;
    }
    return NO_HOST;
}

/* When something sent now over a possibly partitioned way arrives; NEVER = lost. */
static uint64_t arrival(struct world *w, unsigned from, unsigned to)
{
    uint64_t until = w->net.blocked_until_ns[from][to];

    if (until <= w->now_ns)
        return w->now_ns + net_delay(w);
    if (rng_chance(w, 500000))
        return NEVER;
    return until + rng_log(w, NS_PER_MS, NS_PER_S);
}

static bool by_order(const struct world *w, uint8_t proc)
{
    const struct primary *p = &w->hosts[proc / 2].guard.core;

    return proc % 2 == ROLE_GUARD && p->state == PRIMARY_STARTING &&
           (p->order.recover || p->order.seize);
}

void arbiter_ask(struct world *w, uint8_t proc, uint64_t id, const struct wire_arb_request *request,
                 uint32_t session)
{
    struct arbiter *a = &w->arbiter;
    uint32_t i = a->n_asks;
    struct ask *ask;
    uint64_t at;

    arbiter_give_up(w, proc);
    if (i == ASKS_MAX) {
        world_fail(w, "simulator: too many questions");
        return;
    }
    a->n_asks++;
    ask = &a->asks[i];
    *ask = (struct ask){
        .id = id,
        .request = *request,
        .proc = proc,
        .life = proc_get(w, proc)->life,
        .session = session,
        .by_order = by_order(w, proc),
    };
    memcpy(ask->request.vm, "vm", sizeof("vm"));
    if (arb_request_check(&ask->request, NULL) < 0)
        world_fail(w, "%s asks the arbiter for what is no valid request", host_names[proc / 2]);
    proc_get(w, proc)->ask = i + 1;
    at = arrival(w, proc / 2, NODE_ARBITER);
    if (at != NEVER && rng_chance(w, w->setup.late_ask))
        at += rng_range(w, 300 * NS_PER_MS, 4 * NS_PER_S);
    if (at != NEVER)
        world_post(w, at, EV_ARB_ARRIVE, NO_PROC, i);
    world_post(w, w->now_ns + w->setup.arb_timeout_ns, EV_ARB_TIMEOUT, proc, i);
    TRACE(w, "%s %s: asks #%u: %s term %llu -> %llu %s", host_names[proc / 2],
          proc % 2 ? "standby" : "guard", i, request->op == WIRE_ARB_GET ? "get" : "swap",
          (unsigned long long)request->expected.term, (unsigned long long)request->wanted.term,
          request->wanted.owner);
}

void arbiter_give_up(struct world *w, uint8_t proc)
{
    struct proc *p = proc_get(w, proc);

    if (p->ask)
        w->arbiter.asks[p->ask - 1].given_up = true;
    p->ask = 0;
}

void arbiter_take_up(struct world *w, const struct event *ev)
{
    arbiter_give_up(w, ev->proc);
    w->arbiter.asks[ev->arg].given_up = ev->type == EV_ARB_TIMEOUT;
}

static void answer(struct world *w, uint32_t i)
{
    const struct ask *ask = &w->arbiter.asks[i];
    uint64_t at;

    if (proc_get(w, ask->proc)->life != ask->life || rng_chance(w, w->setup.lost_reply))
        return;
    at = arrival(w, NODE_ARBITER, ask->proc / 2);
    if (at != NEVER)
        world_post(w, at, EV_ARB_REPLY, ask->proc, i);
}

void arbiter_arrive(struct world *w, uint32_t i)
{
    struct arbiter *a = &w->arbiter;
    uint64_t delay = rng_log(w, 100 * NS_PER_US, 5 * NS_PER_MS);
    uint64_t leader_ns = a->leaderless_until_ns > w->now_ns ? a->leaderless_until_ns : w->now_ns;

    if (!a->up) {
        if (rng_chance(w, 500000))
            answer(w, i); /* connection refused: status 0 at once */
        return;
    }
    if (w->now_ns < a->slow_until_ns)
        delay = rng_range(w, 100 * NS_PER_MS, 2 * NS_PER_S);
    /* Without a leader it waits for the next one, or is lost. */
    if (leader_ns > w->now_ns && rng_chance(w, 300000))
        return;
    world_post(w, leader_ns + delay, EV_ARB_APPLY, NO_PROC, i);
    if (rng_chance(w, w->setup.repeated_ask))
        world_post(w, leader_ns + rng_log(w, NS_PER_MS, 2 * NS_PER_S), EV_ARB_APPLY, NO_PROC, i);
}

static void cover_stale(struct world *w, const struct ask *ask)
{
    bool gone = proc_get(w, ask->proc)->life != ask->life;

    if (ask->reply.status != WIRE_ARB_DONE)
        cover(w, COVER_STALE_LOST);
    else if (gone)
        cover(w, COVER_STALE_WON_DEAD);
    else
        cover(w, ask->proc % 2 == ROLE_GUARD ? COVER_STALE_WON_PRIMARY : COVER_STALE_WON_STANDBY);
}

static void carry_out(struct world *w, struct ask *ask)
{
    struct arbiter *a = &w->arbiter;
    struct arb_record before = a->reg;
    struct wire_arb_request request = ask->request;

    if (arb_record_equal(&a->reg, &ask->request.expected) &&
        !arb_request_allowed(&ask->request, host_names[ask->proc / 2]))
        world_fail(w, "%s asks for a swap that is not its to make", host_names[ask->proc / 2]);
    if (planted(w, PLANT_REPEATED_BLINDLY) && ask->carried_out)
        request.expected = a->reg;
    arb_register_apply(&a->reg, &request, &ask->reply);
    if (ask->carried_out)
        cover(w, COVER_REPEATED);
    if (ask->carried_out && ask->reply.status == WIRE_ARB_CONFLICT && !ask->given_up &&
        arb_record_equal(&a->reg, &request.wanted) && request.op == WIRE_ARB_CAS)
        cover(w, COVER_REPEATED_WON);
    ask->carried_out = true;
    if (ask->request.op != WIRE_ARB_CAS)
        return;
    if (ask->given_up || proc_get(w, ask->proc)->life != ask->life)
        cover_stale(w, ask);
    if (ask->reply.status != WIRE_ARB_DONE)
        return;
    a->old = before;
    a->owner = host_number(a->reg.owner);
    a->standby = host_number(a->reg.standby);
    TRACE(w, "arbiter: term %llu: %s %s %s", (unsigned long long)a->reg.term,
          a->reg.owner[0] ? a->reg.owner : "nobody", a->reg.mode == ARB_PAIRED ? "paired" : "solo",
          a->reg.standby);
    check_register(w, &before, ask);
}

void arbiter_apply(struct world *w, uint32_t i)
{
    struct arbiter *a = &w->arbiter;
    struct ask *ask = &a->asks[i];

    if (!a->up) { /* it crashed with this one in its hands */
        if (ask->request.op == WIRE_ARB_CAS && rng_chance(w, 500000)) {
            cover(w, COVER_ARB_CRASH_APPLIED);
            ask->given_up = true;
            carry_out(w, ask);
        }
        return;
    }
    if (w->now_ns < a->leaderless_until_ns) { /* the old leader had it in its hands */
        world_post(w, a->leaderless_until_ns + rng_log(w, NS_PER_MS, 50 * NS_PER_MS), EV_ARB_APPLY,
                   NO_PROC, i);
        return;
    }
    if (rng_chance(w, w->setup.arb_error)) {
        cover(w, COVER_ARB_ERROR);
        ask->reply = (struct wire_arb_reply){.status = WIRE_ARB_ERROR, .current = a->reg};
    } else {
        carry_out(w, ask);
    }
    answer(w, i);
}

/* Two plants: the last change is lost. */
static void forget(struct world *w)
{
    struct arbiter *a = &w->arbiter;

    if (!a->old.term)
        return;
    a->reg = a->old;
    a->owner = host_number(a->reg.owner);
    a->standby = host_number(a->reg.standby);
}

void arbiter_crash(struct world *w, uint64_t down_ns)
{
    if (!w->arbiter.up)
        return;
    TRACE(w, "arbiter: crashes");
    w->arbiter.up = false;
    if (planted(w, PLANT_ARBITER_FORGETS))
        forget(w);
    world_post(w, w->now_ns + down_ns, EV_ARB_UP, NO_PROC, 0);
}

void arbiter_new_leader(struct world *w, uint64_t after_ns)
{
    struct arbiter *a = &w->arbiter;

    if (!a->up || w->now_ns < a->leaderless_until_ns)
        return;
    TRACE(w, "arbiter: no leader for %.1f ms", (double)after_ns / 1e6);
    cover(w, COVER_LEADER_LOST);
    a->leaderless_until_ns = w->now_ns + after_ns;
    if (planted(w, PLANT_LEADER_FORGETS))
        forget(w);
}

void arbiter_hang_up(struct world *w, uint8_t proc)
{
    const struct proc *p = proc_get(w, proc);

    if (p->ask)
        world_post(w, w->now_ns, EV_ARB_TIMEOUT, proc, p->ask - 1);
}

void arbiter_up(struct world *w)
{
    TRACE(w, "arbiter: is up");
    if (!w->arbiter.up)
        cover(w, COVER_ARBITER_BACK);
    w->arbiter.up = true;
}
