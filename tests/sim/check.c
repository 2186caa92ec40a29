/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* The invariants of safety (design.md, I1 to I5; docs/simulation.md says how each is checked). What
 * is checked against is never what a machine or a shell believes, but what the simulator has seen
 * itself: messages as they arrive, the register as it changes. */

static bool same_state(struct state a, struct state b)
{
    return a.branch == b.branch && a.index == b.index;
}

uint32_t session_new(struct world *w, unsigned primary, unsigned standby)
{
    struct truth *t = &w->truth;

    if (t->n_sessions == SESSIONS_MAX) {
        world_fail(w, "simulator: too many sessions");
        return 0;
    }
    memset(&t->sessions[t->n_sessions], 0, sizeof(t->sessions[0]));
    t->sessions[t->n_sessions].primary = (uint8_t)primary;
    t->sessions[t->n_sessions].standby = (uint8_t)standby;
    return t->n_sessions++;
}

/* ---- the register ---- */

void check_register(struct world *w, const struct arb_record *before, const struct ask *ask)
{
    const struct arb_record *reg = &w->arbiter.reg;
    struct truth *t = &w->truth;

    if (reg->term != before->term + 1 || reg->term != t->last_term + 1)
        world_fail(w, "register: term %llu follows %llu", (unsigned long long)reg->term,
                   (unsigned long long)t->last_term);
    if (arb_record_check(reg, NULL) < 0)
        world_fail(w, "register: the record of term %llu is malformed",
                   (unsigned long long)reg->term);
    if (reg->term >= TERMS_MAX) {
        world_fail(w, "simulator: too many terms");
        return;
    }
    if (ask->by_order)
        t->must_activate = 0; /* a person's word: nobody lives who could */
    t->last_term = reg->term;
    t->history[reg->term] = *reg;
    t->paired_session[reg->term] = reg->mode == ARB_PAIRED ? ask->session : 0;
}

/* ---- what a standby really has ---- */

static struct staged *arrived(struct world *w, uint32_t session, uint64_t epoch)
{
    struct staged *a = &w->truth.sessions[session].arrived[epoch % ARRIVED_MAX];

    return a->epoch == epoch && epoch ? a : NULL;
}

void check_part(struct world *w, const struct msg *m)
{
    struct session *s = &w->truth.sessions[w->net.conns[m->conn].session];

    if (m->epoch != s->arriving)
        s->n_parts = 0;
    s->arriving = m->epoch;
    s->n_parts++;
}

/* The standby holds this epoch to be whole. */
void check_arrived(struct world *w, const struct sim_standby *standby, const struct msg *m)
{
    struct session *s = &w->truth.sessions[standby->session];

    if (m->epoch != s->arriving || m->parts != s->n_parts)
        world_fail(w, "I3: epoch %llu is not whole, and counts as such",
                   (unsigned long long)m->epoch);
    if (m->base && m->base > s->whole)
        world_fail(w, "I3: epoch %llu applies to epoch %llu, but the image is that of %llu",
                   (unsigned long long)m->epoch, (unsigned long long)m->base,
                   (unsigned long long)s->whole);
    s->n_parts = 0;
    s->whole = m->epoch;
    s->arrived[m->epoch % ARRIVED_MAX] =
        (struct staged){.epoch = m->epoch, .term = m->term, .state = m->state};
}

void check_ack(struct world *w, const struct sim_standby *standby, uint64_t epoch)
{
    struct session *s = &w->truth.sessions[standby->session];

    if (!arrived(w, standby->session, epoch))
        world_fail(w, "I1: epoch %llu is acknowledged and was never whole",
                   (unsigned long long)epoch);
    if (epoch > s->acked)
        s->acked = epoch;
}

/* ---- I1, I2: frames ---- */

/* What this session's standby has acknowledged belongs to the VM's history, or will: it is the
 * partner now, or was, and then took over itself with all that it had acknowledged. */
static bool still_covered(const struct world *w, unsigned host, const struct session *s,
                          uint64_t term)
{
    const struct arbiter *a = &w->arbiter;
    const struct arb_record *next = &w->truth.history[term + 1];

    if (a->reg.term == term)
        return a->reg.mode == ARB_PAIRED && a->owner == host && a->standby == s->standby;
    return a->reg.term > term && next->mode == ARB_SOLO &&
           strcmp(next->owner, host_names[s->standby]) == 0;
}

void check_release(struct world *w, unsigned host, const struct frame *frame)
{
    const struct arbiter *a = &w->arbiter;
    const struct sim_guard *g = &w->hosts[host].guard;
    const struct session *s = &w->truth.sessions[g->session];
    const struct staged *whole;

    if (a->reg.mode == ARB_SOLO && a->owner == host)
        return;
    whole = g->session ? arrived(w, g->session, s->whole) : NULL;
    if (!whole || !state_covers(w, whole->state, frame->state))
        world_fail(w, "I1: %s lets a frame of epoch %llu go, the standby has %llu",
                   host_names[host], (unsigned long long)frame->stamp,
                   (unsigned long long)s->whole);
    else if (!whole->term || !still_covered(w, host, s, whole->term))
        world_fail(w,
                   "I1: %s lets a frame of epoch %llu go, committed under term %llu, but the "
                   "register is at term %llu: %s %s",
                   host_names[host], (unsigned long long)frame->stamp,
                   (unsigned long long)whole->term, (unsigned long long)a->reg.term, a->reg.owner,
                   a->reg.mode == ARB_PAIRED ? "paired" : "solo");
}

/* Each start of the VM has a history of its own: frames of an earlier one may still come from a
 * former owner that was frozen, but must fit together as well. late: decided on before the guard
 * stood still, written now. */
void check_emit(struct world *w, unsigned host, const struct frame *frame, bool late)
{
    struct truth *t = &w->truth;
    uint32_t boot = t->branches[frame->state.branch].boot;
    struct state *front = &t->front[boot];
    bool current = boot + 1 == t->n_boots;

    if (state_covers(w, frame->state, *front))
        *front = frame->state;
    else if (!state_covers(w, *front, frame->state))
        world_fail(w, "I2: %s emits a frame of state %u.%u (epoch %llu), history is at %u.%u",
                   host_names[host], frame->state.branch, frame->state.index,
                   (unsigned long long)frame->stamp, front->branch, front->index);
    if (late && w->arbiter.owner != host)
        cover(w, COVER_SLOW_WIRE);
    if (current) {
        if (frame->flush > t->required)
            t->required = frame->flush;
        t->emitted++;
        t->last_emit_ns = w->now_ns;
    }
}

/* ---- I2, I3, I4: activation ---- */

static void check_right(struct world *w, unsigned host, const struct sim_standby *s,
                        const struct arb_record *record)
{
    const struct truth *t = &w->truth;
    uint64_t right = record->term - 1;

    if (!arb_record_equal(record, &w->arbiter.reg) || w->arbiter.owner != host)
        world_fail(w, "I4: %s activates under term %llu, the register is at %llu: %s",
                   host_names[host], (unsigned long long)record->term,
                   (unsigned long long)w->arbiter.reg.term, w->arbiter.reg.owner);
    else if (t->history[right].mode != ARB_PAIRED)
        world_fail(w, "I4: %s took over although nobody was paired", host_names[host]);
    else if (t->paired_session[right] != s->session)
        world_fail(w, "I4: %s took over by session %u, but session %u was paired", host_names[host],
                   s->session, t->paired_session[right]);
}

static void cover_takeover(struct world *w, const struct sim_standby *s)
{
    const struct sim_guard *g = &w->hosts[s->primary].guard;
    bool same = g->session == s->session;

    if (w->covered[COVER_TAKEOVER])
        cover(w, COVER_TAKEOVER_AGAIN);
    cover(w, COVER_TAKEOVER);
    cover(w, guard_alive(w, s->primary) && same ? COVER_TAKEOVER_FROM_LIVING
                                                : COVER_TAKEOVER_AFTER_CRASH);
    if (same && s->image.epoch > g->core.committed)
        cover(w, COVER_TAKEOVER_NEWER);
    if (s->had_partial)
        cover(w, COVER_PARTIAL_DROPPED);
}

void check_activate(struct world *w, unsigned host, const struct sim_standby *s,
                    const struct arb_record *record)
{
    struct truth *t = &w->truth;
    const struct session *session = &t->sessions[s->session];
    const struct staged *whole = arrived(w, s->session, s->image.epoch);
    struct state *front = &t->front[t->n_boots - 1];

    check_right(w, host, s, record);
    if (!whole || !same_state(whole->state, s->image.state))
        world_fail(w, "I3: %s activates epoch %llu, which is not whole", host_names[host],
                   (unsigned long long)s->image.epoch);
    else if (s->image.epoch < session->acked)
        world_fail(w, "I3: %s activates epoch %llu, it has acknowledged %llu", host_names[host],
                   (unsigned long long)s->image.epoch, (unsigned long long)session->acked);
    else if (whole->term != record->term - 1)
        world_fail(w, "I4: %s activates a copy of term %llu", host_names[host],
                   (unsigned long long)whole->term);
    else if (!state_covers(w, s->image.state, *front))
        world_fail(w, "I2: %s activates state %u.%u, history is at %u.%u", host_names[host],
                   s->image.state.branch, s->image.state.index, front->branch, front->index);
    if (session->handed && !same_state(session->handed_state, s->image.state))
        world_fail(w, "S: %s goes on at state %u.%u, but it was handed over at %u.%u",
                   host_names[host], s->image.state.branch, s->image.state.index,
                   session->handed_state.branch, session->handed_state.index);
    cover_takeover(w, s);
    *front = s->image.state;
}

/* The primary tells the standby to go on. */
void check_bye(struct world *w, unsigned host)
{
    const struct sim_guard *g = &w->hosts[host].guard;
    struct session *s = &w->truth.sessions[g->session];

    s->handed = true;
    s->handed_state = g->vm.state;
}

void check_boot(struct world *w, unsigned host)
{
    if (w->setup.disks)
        check_disk_start(w, host, w->hosts[host].guard.core.order.seize);
    if (w->truth.must_activate)
        world_fail(w, "%s starts the VM anew although a standby had to take over",
                   host_names[host]);
}

/* ---- every step ---- */

bool truly_protected(const struct world *w, unsigned host)
{
    const struct sim_guard *g = &w->hosts[host].guard;
    const struct session *s = &w->truth.sessions[g->session];
    const struct sim_standby *standby = &w->hosts[s->standby].standby;

    return g->session && w->hosts[s->standby].proc[ROLE_STANDBY].life == s->standby_life &&
           standby_can_take_over(w, s->standby) && standby->session == g->session &&
           standby->core.right == g->core.pair_term;
}

static void check_sole_owner(struct world *w, unsigned host, const struct sim_guard *g)
{
    const struct arbiter *a = &w->arbiter;

    if (a->reg.term != g->core.record.term || a->reg.mode != ARB_SOLO || a->owner != host)
        world_fail(
            w,
            "register: %s holds itself to be the sole owner (%s, term %llu); the register says "
            "%s, term %llu",
            host_names[host], primary_state_name(g->core.state),
            (unsigned long long)g->core.record.term, a->reg.owner, (unsigned long long)a->reg.term);
}

/* I5: who reports protection that is not there has to notice in time. */
static void check_report(struct world *w, unsigned host, struct sim_guard *g)
{
    const struct proc *p = &w->hosts[host].proc[ROLE_GUARD];
    uint64_t since, bound = 2 * g->core.timing.peer_silent_ns + NS_PER_S;

    if (!g->gate.holding)
        world_fail(w, "I5: %s reports protection while output flows", host_names[host]);
    if (truly_protected(w, host)) {
        g->untrue_since_ns = 0;
        return;
    }
    if (!g->untrue_since_ns)
        g->untrue_since_ns = w->now_ns;
    if (p->frozen_until_ns > w->now_ns)
        return;
    since = g->untrue_since_ns > p->thawed_at_ns ? g->untrue_since_ns : p->thawed_at_ns;
    if (w->now_ns - since > bound)
        world_fail(w, "I5: %s has reported protection for %.0f ms that was not there",
                   host_names[host], (double)(w->now_ns - since) / 1e6);
}

void check_step(struct world *w)
{
    unsigned i;

    for (i = 0; i < w->n_hosts; i++) {
        struct sim_guard *g = &w->hosts[i].guard;

        if (!guard_alive(w, i))
            continue;
        switch (g->core.state) {
        case PRIMARY_SOLO:
        case PRIMARY_SEEDING:
        case PRIMARY_ARMING:
            check_sole_owner(w, i, g);
            break;
        case PRIMARY_PAIRING:
        case PRIMARY_PROTECTED:
        case PRIMARY_HANDING:
        case PRIMARY_ISOLATED:
            if (!g->gate.holding)
                world_fail(w, "I1: %s is %s and holds nothing", host_names[i],
                           primary_state_name(g->core.state));
            break;
        default:
            break;
        }
        if (g->vm.exists && g->vm.paused && g->cut == CUT_IDLE && !g->next_action &&
            !g->core.handing && !(g->throttled && g->up && in_flight(g)))
            world_fail(w, "S: the VM of %s stands still for nothing", host_names[i]);
        if (g->core.handed && g->vm.exists && !g->vm.paused)
            world_fail(w, "S: %s has handed its VM over and runs it all the same", host_names[i]);
        if (g->reports_protected)
            check_report(w, i, g);
        else
            g->untrue_since_ns = 0;
    }
    live_step(w);
}
