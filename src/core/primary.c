/* SPDX-License-Identifier: Apache-2.0 */
#include "core/primary.h"

#include <assert.h>
#include <string.h>

#include "core/name.h"
#include "core/primary_ask.h"

enum { HAND_LOOK_MS = 50 }; /* between two looks whether the standby has taken over */

static const char *const state_names[] = {
    [PRIMARY_STARTING] = "starting", [PRIMARY_SOLO] = "solo",
    [PRIMARY_SEEDING] = "seeding",   [PRIMARY_ARMING] = "arming",
    [PRIMARY_PAIRING] = "pairing",   [PRIMARY_PROTECTED] = "protected",
    [PRIMARY_HANDING] = "handing",   [PRIMARY_ISOLATED] = "isolated",
    [PRIMARY_STOPPING] = "stopping", [PRIMARY_STOPPED] = "stopped",
    [PRIMARY_LOST] = "lost",
};
_Static_assert(sizeof(state_names) / sizeof(state_names[0]) == PRIMARY_LOST + 1, "a name each");

/* Which states may follow which: the picture in the header, as data. */
#define TO(state) (1u << (state))
static const unsigned permitted[] = {
    [PRIMARY_STARTING] = TO(PRIMARY_SOLO) | TO(PRIMARY_STOPPED),
    [PRIMARY_SOLO] = TO(PRIMARY_SEEDING) | TO(PRIMARY_STOPPING) | TO(PRIMARY_LOST),
    [PRIMARY_SEEDING] =
        TO(PRIMARY_SOLO) | TO(PRIMARY_ARMING) | TO(PRIMARY_STOPPING) | TO(PRIMARY_LOST),
    [PRIMARY_ARMING] =
        TO(PRIMARY_SOLO) | TO(PRIMARY_PAIRING) | TO(PRIMARY_ISOLATED) | TO(PRIMARY_STOPPING),
    [PRIMARY_PAIRING] =
        TO(PRIMARY_PROTECTED) | TO(PRIMARY_ISOLATED) | TO(PRIMARY_STOPPING) | TO(PRIMARY_LOST),
    [PRIMARY_PROTECTED] =
        TO(PRIMARY_HANDING) | TO(PRIMARY_ISOLATED) | TO(PRIMARY_STOPPING) | TO(PRIMARY_LOST),
    [PRIMARY_HANDING] = TO(PRIMARY_ISOLATED) | TO(PRIMARY_STOPPING) | TO(PRIMARY_LOST),
    [PRIMARY_ISOLATED] = TO(PRIMARY_SOLO) | TO(PRIMARY_STOPPING) | TO(PRIMARY_LOST),
    [PRIMARY_STOPPING] = TO(PRIMARY_STOPPED) | TO(PRIMARY_LOST),
    [PRIMARY_STOPPED] = 0,
    [PRIMARY_LOST] = 0,
};

const char *primary_state_name(enum primary_state state)
{
    return state_names[state];
}

bool primary_finished(const struct primary *p)
{
    return p->state == PRIMARY_STOPPED || p->state == PRIMARY_LOST;
}

static void set_state(struct primary *p, enum primary_state state, const char *why,
                      struct actions *out)
{
    struct action *a;

    assert(permitted[p->state] & TO(state));
    a = actions_add(out, ACT_TRACE);
    a->u.trace.from = state_names[p->state];
    a->u.trace.to = state_names[state];
    a->u.trace.why = why;
    p->state = state;
}

/* Asks what the present state wants from the arbiter. */
static void ask_again(struct primary *p, struct actions *out)
{
    switch (p->state) {
    case PRIMARY_STARTING:
    case PRIMARY_SOLO:
    case PRIMARY_SEEDING:
    case PRIMARY_HANDING:
        primary_ask_get(p, out);
        break;
    case PRIMARY_PAIRING:
        primary_ask_swap(p, p->self, ARB_PAIRED, p->peer, out);
        break;
    case PRIMARY_ISOLATED:
        if (p->record.term == 0) /* attached, and the register was not read yet */
            primary_ask_get(p, out);
        else
            primary_ask_swap(p, p->self, ARB_SOLO, "", out);
        break;
    case PRIMARY_STOPPING:
        primary_ask_swap(p, "", ARB_SOLO, "", out);
        break;
    default:
        p->ask_at_ns = CORE_NEVER;
        break;
    }
}

/* ---- the link ---- */

static void drop_link(struct primary *p, uint16_t bye, uint64_t reconnect_at_ns,
                      struct actions *out)
{
    if (p->link != LINK_NONE)
        actions_add(out, ACT_LINK_DROP)->u.bye = bye;
    p->link = LINK_NONE;
    p->connect_at_ns = reconnect_at_ns;
}

static bool has_pair(const struct primary *p)
{
    return p->state == PRIMARY_PAIRING || p->state == PRIMARY_PROTECTED ||
           p->state == PRIMARY_HANDING || p->state == PRIMARY_ISOLATED;
}

/* ---- states ---- */

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* When to look for a standby again. */
static uint64_t reprotect_at(const struct primary *p, uint64_t now)
{
    return p->wanted[0] ? max_u64(now + p->timing.reprotect_ns, p->cool_until_ns) : CORE_NEVER;
}

static void enter_solo(struct primary *p, const char *why, uint64_t now, struct actions *out)
{
    set_state(p, PRIMARY_SOLO, why, out);
    p->pair_term = 0;
    p->arm_epoch = 0;
    p->asking = false;
    p->ask_at_ns = now + p->timing.look_ns;
    actions_add(out, ACT_GATE_FLOW);
    if (p->handing)
        actions_add(out, ACT_VM_RESUME);
    p->handing = p->handed = false;
    p->hand_epoch = 0;
    drop_link(p, WIRE_BYE_STOPPED, reprotect_at(p, now), out);
}

static void enter_isolated(struct primary *p, const char *why, struct actions *out)
{
    set_state(p, PRIMARY_ISOLATED, why, out);
    ask_again(p, out);
}

static const char *why_lost(const struct primary *p)
{
    return p->handed ? "handed over" : "another host owns the VM";
}

static void enter_lost(struct primary *p, const char *why, uint16_t bye, struct actions *out)
{
    set_state(p, PRIMARY_LOST, why, out);
    p->asking = false;
    p->ask_at_ns = CORE_NEVER;
    drop_link(p, bye, CORE_NEVER, out);
    actions_add(out, ACT_VM_DESTROY);
}

static void enter_stopped(struct primary *p, const char *why, struct actions *out)
{
    set_state(p, PRIMARY_STOPPED, why, out);
    drop_link(p, WIRE_BYE_STOPPED, CORE_NEVER, out);
    actions_add(out, ACT_VM_DESTROY);
}

static void start_refused(struct primary *p, const char *why, struct actions *out)
{
    set_state(p, PRIMARY_STOPPED, "start refused", out);
    p->asking = false;
    p->ask_at_ns = CORE_NEVER;
    actions_add(out, ACT_START_REFUSED)->u.why = why;
}

/* The record was read: may this host start the VM? */
static void start_judge(struct primary *p, struct actions *out)
{
    const char *why = start_refusal(&p->order, &p->record, p->self);

    if (why) {
        start_refused(p, why, out);
        return;
    }
    /* Should we be cut short between the swap and its record, this is what the copy is known by. */
    if (p->order.copy.role != COPY_PRIMARY && !p->order.seize)
        primary_copy_record(p, out);
    primary_ask_swap(p, p->self, ARB_SOLO, "", out);
}

/* ---- events ---- */

/* The register now is what the last question wanted. */
static void on_swapped(struct primary *p, uint64_t now, struct actions *out)
{
    primary_copy_record(p, out);
    switch (p->state) {
    case PRIMARY_STARTING:
        actions_add(out, ACT_VM_RUN);
        enter_solo(p, "record claimed", now, out);
        if (p->wanted[0])
            p->connect_at_ns = now;
        break;
    case PRIMARY_PAIRING:
        set_state(p, PRIMARY_PROTECTED, "record swapped to paired", out);
        break;
    case PRIMARY_ISOLATED:
        enter_solo(p, "record swapped to solo", now, out);
        break;
    case PRIMARY_STOPPING:
        enter_stopped(p, "record given up", out);
        break;
    default:
        break;
    }
}

/* An earlier question of ours was carried out, or the dead guard's in whose place we are. */
static void on_own_record(struct primary *p, struct actions *out)
{
    primary_copy_record(p, out);
    if (p->state == PRIMARY_PAIRING)
        enter_isolated(p, "the record changed under the pairing", out);
    else
        ask_again(p, out);
}

/* The register holds something else, which is in p->record now. */
static void on_conflict(struct primary *p, struct actions *out)
{
    if (p->state == PRIMARY_STARTING)
        start_judge(p, out);
    else if (strcmp(p->record.owner, p->self) != 0)
        enter_lost(p, why_lost(p), 0, out);
    else
        on_own_record(p, out);
}

static void enter_arming(struct primary *p, struct actions *out)
{
    set_state(p, PRIMARY_ARMING, "seeded", out);
    p->ask_at_ns = CORE_NEVER;
    p->pair_term = p->record.term + 1;
    actions_add(out, ACT_GATE_HOLD);
}

/* The register was read. */
static void on_looked(struct primary *p, uint64_t now, struct actions *out)
{
    if (p->state == PRIMARY_STARTING)
        start_judge(p, out);
    else if (strcmp(p->record.owner, p->self) != 0)
        enter_lost(p, why_lost(p), 0, out);
    else if (p->state == PRIMARY_HANDING && p->link != LINK_UP)
        enter_isolated(p, "the standby was lost", out);
    else if (p->state == PRIMARY_HANDING)
        p->ask_at_ns = now + HAND_LOOK_MS * UINT64_C(1000000);
    else if (p->state == PRIMARY_SEEDING && p->seeded)
        enter_arming(p, out);
    else if (p->state == PRIMARY_ISOLATED)
        on_own_record(p, out); /* attached */
    else
        p->ask_at_ns = now + p->timing.look_ns;
}

static void on_answer(struct primary *p, const struct primary_event *ev, uint64_t now,
                      struct actions *out)
{
    bool got;

    if (!p->asking || ev->u.answer.id != p->ask_id)
        return; /* an answer to a question that no longer matters */
    p->asking = false;
    p->arbiter_silent = ev->u.answer.status == 0 || ev->u.answer.status == WIRE_ARB_ERROR;
    if (p->arbiter_silent) {
        p->ask_at_ns = now + p->timing.arb_retry_ns;
        return;
    }
    got = p->asked_for.term == 0; /* it was a GET */
    p->record = ev->u.answer.current;
    if (got)
        on_looked(p, now, out);
    else if (arb_record_equal(&p->record, &p->asked_for))
        on_swapped(p, now, out);
    else
        on_conflict(p, out);
}

/* The pair term has left this host: it must never be given to another copy. */
static bool term_given(const struct primary *p)
{
    return p->arm_epoch != 0;
}

/* Perhaps the standby has taken over and hung up: look before leaving the pair. */
static void on_hand_link_lost(struct primary *p, const char *why, uint64_t now, struct actions *out)
{
    drop_link(p, 0, p->handed ? CORE_NEVER : now + p->timing.resume_ns, out);
    if (!p->handed)
        enter_isolated(p, why, out);
    else if (!p->asking)
        primary_ask_get(p, out);
}

static void on_link_lost(struct primary *p, const char *why, uint64_t now, struct actions *out)
{
    switch (p->state) {
    case PRIMARY_SOLO:
        drop_link(p, 0, reprotect_at(p, now), out);
        break;
    case PRIMARY_SEEDING:
        enter_solo(p, why, now, out);
        break;
    case PRIMARY_ARMING:
        if (!term_given(p)) {
            enter_solo(p, why, now, out);
            break;
        }
        /* fallthrough */
    case PRIMARY_PAIRING:
    case PRIMARY_PROTECTED:
        drop_link(p, 0, now + p->timing.resume_ns, out);
        enter_isolated(p, why, out);
        break;
    case PRIMARY_HANDING:
        on_hand_link_lost(p, why, now, out);
        break;
    case PRIMARY_ISOLATED:
        drop_link(p, 0, now + p->timing.resume_ns, out);
        break;
    default:
        drop_link(p, 0, CORE_NEVER, out);
        break;
    }
}

static void committed(struct primary *p, uint64_t epoch, struct actions *out)
{
    p->committed = epoch;
    actions_add(out, ACT_COMMITTED)->u.epoch = epoch;
}

static void on_link_ready(struct primary *p, const struct primary_event *ev, uint64_t now,
                          struct actions *out)
{
    if (p->link != LINK_CONNECTING)
        return;
    p->link = LINK_UP;
    p->peer_seen_ns = now;
    if (p->state == PRIMARY_SOLO && !ev->u.ready.resumed) {
        set_state(p, PRIMARY_SEEDING, "the standby is ready", out);
        p->seeded = false;
        actions_add(out, ACT_SEED);
    } else if ((p->state == PRIMARY_ISOLATED || p->state == PRIMARY_PROTECTED) &&
               ev->u.ready.resumed && ev->u.ready.term == p->pair_term &&
               ev->u.ready.epoch >= p->committed && ev->u.ready.epoch < p->next_epoch) {
        if (ev->u.ready.epoch > p->committed)
            committed(p, ev->u.ready.epoch, out); /* its acknowledgement was lost with the link */
        actions_add(out, ACT_REBASE);
    } else {
        on_link_lost(p, "the standby does not hold what it should", now, out);
    }
}

/* Valid: an epoch that was cut, with the term that it was cut under. */
static bool ack_valid(const struct primary *p, uint64_t epoch, uint64_t term)
{
    bool armed = p->arm_epoch && epoch >= p->arm_epoch;

    return epoch < p->next_epoch && term == (armed ? p->pair_term : 0);
}

static void on_ack(struct primary *p, const struct primary_event *ev, uint64_t now,
                   struct actions *out)
{
    uint64_t epoch = ev->u.ack.epoch;

    if (p->link != LINK_UP || epoch <= p->committed || p->state == PRIMARY_STOPPING)
        return;
    if (!ack_valid(p, epoch, ev->u.ack.term)) {
        on_link_lost(p, "the standby acknowledged what was never sent", now, out);
        return;
    }
    p->peer_seen_ns = now;
    committed(p, epoch, out);
    if (p->state == PRIMARY_ARMING && p->arm_epoch && epoch >= p->arm_epoch) {
        set_state(p, PRIMARY_PAIRING, "the first paired epoch is committed", out);
        ask_again(p, out);
    } else if (p->state == PRIMARY_HANDING && p->hand_epoch && epoch >= p->hand_epoch) {
        p->handed = true;
        actions_add(out, ACT_SAY_BYE)->u.bye = WIRE_BYE_SWITCHOVER;
        p->ask_at_ns = now + HAND_LOOK_MS * UINT64_C(1000000);
    }
}

static void on_peer_bye(struct primary *p, uint64_t now, struct actions *out)
{
    on_link_lost(p, "the standby gave the session up", now, out);
    if (p->state == PRIMARY_ISOLATED)
        p->connect_at_ns = CORE_NEVER; /* there is nothing left to resume */
}

static void on_seeded(struct primary *p, struct actions *out)
{
    if (p->state != PRIMARY_SEEDING)
        return;
    /* Not before the arbiter has answered: without it there would be no way back from ARMING. */
    p->seeded = true;
    if (!p->asking)
        primary_ask_get(p, out);
}

static void on_protect(struct primary *p, const char *host, uint64_t now, struct actions *out)
{
    bool other = strcmp(p->wanted, host) != 0;

    name_copy(p->wanted, host);
    p->cool_until_ns = 0;
    if (p->state == PRIMARY_SOLO && (p->link == LINK_NONE || other))
        drop_link(p, WIRE_BYE_STOPPED, now, out); /* also an attempt to reach another host */
}

static void on_unprotect(struct primary *p, uint64_t now, struct actions *out)
{
    p->wanted[0] = '\0';
    if (p->state == PRIMARY_SOLO)
        drop_link(p, WIRE_BYE_STOPPED, CORE_NEVER, out);
    else if (p->state == PRIMARY_SEEDING || (p->state == PRIMARY_ARMING && !term_given(p)))
        enter_solo(p, "unprotect", now, out);
    else if (p->state == PRIMARY_ARMING || p->state == PRIMARY_PAIRING ||
             p->state == PRIMARY_PROTECTED || p->state == PRIMARY_HANDING)
        enter_isolated(p, "unprotect", out); /* the link stays: epochs go on until the swap */
}

static void on_switchover(struct primary *p, uint64_t now, struct actions *out)
{
    if (p->state != PRIMARY_PROTECTED || p->link != LINK_UP)
        return;
    set_state(p, PRIMARY_HANDING, "switchover", out);
    p->handing = true;
    p->hand_deadline_ns = now + p->timing.hand_over_ns;
    actions_add(out, ACT_HAND_OVER);
}

static void on_outrun(struct primary *p, uint64_t now, struct actions *out)
{
    if (p->state != PRIMARY_PROTECTED)
        return;
    p->cool_until_ns = now + p->timing.cool_down_ns;
    enter_isolated(p, "the guest outruns the link", out); /* which stays, as for unprotect */
}

static void on_stop(struct primary *p, struct actions *out)
{
    if (p->state == PRIMARY_STARTING) {
        start_refused(p, "stopped before it ran", out);
    } else if (p->state != PRIMARY_STOPPING) {
        set_state(p, PRIMARY_STOPPING, "stop", out);
        actions_add(out, ACT_GATE_HOLD);
        p->connect_at_ns = CORE_NEVER;
        primary_copy_record(p, out);
        ask_again(p, out);
    }
}

static void on_vm_died(struct primary *p, struct actions *out)
{
    if (p->state == PRIMARY_STARTING) {
        start_refused(p, "the hypervisor died", out);
    } else if (has_pair(p)) {
        /* The standby may take over: the record is left to it. */
        enter_lost(p, "the hypervisor died", WIRE_BYE_VM_DIED, out);
    } else {
        on_stop(p, out);
    }
}

static void on_timer(struct primary *p, uint64_t now, struct actions *out)
{
    if (p->state == PRIMARY_STARTING && now >= p->start_deadline_ns) {
        start_refused(p, "the arbiter does not answer", out);
        return;
    }
    if (p->link == LINK_UP && now >= p->peer_seen_ns + p->timing.peer_silent_ns)
        on_link_lost(p, "the standby is silent", now, out);
    if (p->state == PRIMARY_HANDING && now >= p->hand_deadline_ns)
        enter_isolated(p, "the switchover takes too long", out);
    if (p->link == LINK_NONE && now >= p->connect_at_ns &&
        (p->state == PRIMARY_SOLO || p->state == PRIMARY_ISOLATED)) {
        if (p->state == PRIMARY_SOLO)
            name_copy(p->peer, p->wanted);
        p->link = LINK_CONNECTING;
        p->connect_at_ns = CORE_NEVER;
        actions_add(out, ACT_LINK_CONNECT)->u.resume = p->state == PRIMARY_ISOLATED;
    }
    if (!p->asking && now >= p->ask_at_ns)
        ask_again(p, out);
}

void primary_step(struct primary *p, const struct primary_event *ev, uint64_t now,
                  struct actions *out)
{
    if (primary_finished(p))
        return;
    switch (ev->type) {
    case PEV_TIMER:
        on_timer(p, now, out);
        break;
    case PEV_ARB_ANSWER:
        on_answer(p, ev, now, out);
        break;
    case PEV_LINK_READY:
        on_link_ready(p, ev, now, out);
        break;
    case PEV_LINK_FAILED:
        if (p->link != LINK_NONE)
            on_link_lost(p, "the link broke", now, out);
        break;
    case PEV_RELINK:
        if (p->link == LINK_UP)
            p->link = LINK_CONNECTING;
        break;
    case PEV_PEER_SEEN:
        if (p->link == LINK_UP)
            p->peer_seen_ns = now;
        break;
    case PEV_STOOD_STILL:
        p->peer_seen_ns = stood_still(p->peer_seen_ns, ev->u.stood_ns, now);
        break;
    case PEV_ACK:
        on_ack(p, ev, now, out);
        break;
    case PEV_PEER_BYE:
        if (p->link != LINK_NONE)
            on_peer_bye(p, now, out);
        break;
    case PEV_SEEDED:
        on_seeded(p, out);
        break;
    case PEV_PROTECT:
        on_protect(p, ev->u.host, now, out);
        break;
    case PEV_UNPROTECT:
        on_unprotect(p, now, out);
        break;
    case PEV_SWITCHOVER:
        on_switchover(p, now, out);
        break;
    case PEV_OUTRUN:
        on_outrun(p, now, out);
        break;
    case PEV_STOP:
        on_stop(p, out);
        break;
    case PEV_VM_DIED:
        on_vm_died(p, out);
        break;
    }
}

uint64_t primary_deadline(const struct primary *p)
{
    uint64_t at = CORE_NEVER;

    if (primary_finished(p))
        return CORE_NEVER;
    if (p->state == PRIMARY_STARTING)
        at = p->start_deadline_ns;
    if (p->state == PRIMARY_HANDING)
        at = p->hand_deadline_ns;
    if (p->link == LINK_UP && p->peer_seen_ns + p->timing.peer_silent_ns < at)
        at = p->peer_seen_ns + p->timing.peer_silent_ns;
    if (p->link == LINK_NONE && p->connect_at_ns < at)
        at = p->connect_at_ns;
    if (!p->asking && p->ask_at_ns < at)
        at = p->ask_at_ns;
    return at;
}

bool primary_may_cut(const struct primary *p)
{
    bool stands = p->handing && (p->state != PRIMARY_HANDING || p->hand_epoch);

    return p->link == LINK_UP && !stands && (p->state == PRIMARY_ARMING || has_pair(p));
}

uint64_t primary_cut(struct primary *p, uint64_t *ret_term)
{
    uint64_t epoch = p->next_epoch++;

    if (p->pair_term && !p->arm_epoch)
        p->arm_epoch = epoch;
    if (p->state == PRIMARY_HANDING && !p->hand_epoch)
        p->hand_epoch = epoch;
    *ret_term = p->pair_term;
    return epoch;
}
