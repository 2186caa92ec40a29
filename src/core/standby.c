/* SPDX-License-Identifier: Apache-2.0 */
#include "core/standby.h"

#include <assert.h>
#include <string.h>

#include "core/name.h"

static const char *const state_names[] = {
    [STANDBY_RECEIVING] = "receiving", [STANDBY_READY] = "ready", [STANDBY_CLAIMING] = "claiming",
    [STANDBY_ACTIVE] = "active",       [STANDBY_VOID] = "void",
};
_Static_assert(sizeof(state_names) / sizeof(state_names[0]) == STANDBY_VOID + 1, "a name each");

/* Which states may follow which: the picture in the header, as data. */
#define TO(state) (1u << (state))
static const unsigned permitted[] = {
    [STANDBY_RECEIVING] = TO(STANDBY_READY) | TO(STANDBY_VOID),
    [STANDBY_READY] = TO(STANDBY_CLAIMING) | TO(STANDBY_VOID),
    [STANDBY_CLAIMING] = TO(STANDBY_ACTIVE) | TO(STANDBY_VOID),
    [STANDBY_ACTIVE] = 0,
    [STANDBY_VOID] = 0,
};

const char *standby_state_name(enum standby_state state)
{
    return state_names[state];
}

bool standby_finished(const struct standby *s)
{
    return s->state == STANDBY_ACTIVE || s->state == STANDBY_VOID;
}

static void set_state(struct standby *s, enum standby_state state, const char *why,
                      struct actions *out)
{
    struct action *a;

    assert(permitted[s->state] & TO(state));
    a = actions_add(out, ACT_TRACE);
    a->u.trace.from = state_names[s->state];
    a->u.trace.to = state_names[state];
    a->u.trace.why = why;
    s->state = state;
}

static void drop_link(struct standby *s, uint16_t bye, struct actions *out)
{
    if (s->link_up)
        actions_add(out, ACT_LINK_DROP)->u.bye = bye;
    s->link_up = false;
}

static void enter_void(struct standby *s, const char *why, struct actions *out)
{
    set_state(s, STANDBY_VOID, why, out);
    drop_link(s, WIRE_BYE_DISCARDED, out);
    actions_add(out, ACT_DISCARD)->u.why = why;
}

/* ---- the register ---- */

/* The record that our right is tied to, and the one that we want in its place. */
static void claim_records(const struct standby *s, struct arb_record *ret_expected,
                          struct arb_record *ret_wanted)
{
    memset(ret_expected, 0, sizeof(*ret_expected));
    ret_expected->term = s->right;
    ret_expected->mode = ARB_PAIRED;
    name_copy(ret_expected->owner, s->primary);
    name_copy(ret_expected->standby, s->self);
    memset(ret_wanted, 0, sizeof(*ret_wanted));
    ret_wanted->term = s->right + 1;
    ret_wanted->mode = ARB_SOLO;
    name_copy(ret_wanted->owner, s->self);
}

/* Claims when the primary is silent or an operator says so, and only looks otherwise. */
static void ask(struct standby *s, struct actions *out)
{
    struct action *a = actions_add(out, ACT_ARB_ASK);

    s->asking = true;
    s->ask_at_ns = CORE_NEVER;
    a->u.ask.id = ++s->ask_id;
    if (s->state == STANDBY_CLAIMING && (!s->link_up || s->forced)) {
        a->u.ask.request.op = WIRE_ARB_CAS;
        claim_records(s, &a->u.ask.request.expected, &a->u.ask.request.wanted);
        s->claimed = s->right;
    } else {
        a->u.ask.request.op = WIRE_ARB_GET;
    }
}

static void enter_claiming(struct standby *s, const char *why, struct actions *out)
{
    set_state(s, STANDBY_CLAIMING, why, out);
    ask(s, out);
}

static void enter_active(struct standby *s, const struct arb_record *record, struct actions *out)
{
    set_state(s, STANDBY_ACTIVE, "record swapped: the VM is ours", out);
    drop_link(s, WIRE_BYE_TAKEN_OVER, out);
    actions_add(out, ACT_ACTIVATE)->u.record = *record;
}

/* What the register says now decides what our copy is worth. */
static void judge(struct standby *s, const struct arb_record *current, uint64_t now,
                  struct actions *out)
{
    struct arb_record expected, wanted;

    claim_records(s, &expected, &wanted);
    if (s->state == STANDBY_CLAIMING && s->claimed == s->right &&
        arb_record_equal(current, &wanted)) {
        enter_active(s, &wanted, out);
    } else if (current->term > s->right ||
               (current->term == s->right && !arb_record_equal(current, &expected))) {
        enter_void(s, "the record has moved on", out);
    } else if (s->state == STANDBY_CLAIMING) {
        /* Not paired yet, or paired and nobody has won: look again. */
        s->forced = s->forced && current->term == s->right;
        s->ask_at_ns = now + s->timing.arb_retry_ns;
    }
}

static void on_answer(struct standby *s, const struct standby_event *ev, uint64_t now,
                      struct actions *out)
{
    if (!s->asking || ev->u.answer.id != s->ask_id)
        return; /* an answer to a question that no longer matters */
    s->asking = false;
    s->arbiter_silent = ev->u.answer.status == 0 || ev->u.answer.status == WIRE_ARB_ERROR;
    if (!s->arbiter_silent)
        judge(s, &ev->u.answer.current, now, out);
    else if (s->state == STANDBY_CLAIMING)
        s->ask_at_ns = now + s->timing.arb_retry_ns;
}

/* ---- events ---- */

static void on_link_lost(struct standby *s, uint64_t now, struct actions *out)
{
    if (!s->link_up)
        return;
    drop_link(s, 0, out);
    if (s->state == STANDBY_RECEIVING) {
        enter_void(s, "the primary was lost before the copy was complete", out);
    } else if (s->state == STANDBY_CLAIMING) {
        s->asking = false; /* a look: now it takes a claim */
        s->ask_at_ns = now;
    }
    /* READY: a broken connection alone is not a dead primary; silence will tell. */
}

static void on_link_resumed(struct standby *s, uint64_t now)
{
    s->link_up = true;
    s->peer_seen_ns = now;
}

static void on_staged(struct standby *s, const struct standby_event *ev, struct actions *out)
{
    uint64_t term = ev->u.staged.term;
    struct action *a;

    if (ev->u.staged.epoch <= s->epoch || (s->right && term != s->right)) {
        enter_void(s, "the primary sent epochs out of order", out);
        return;
    }
    s->epoch = ev->u.staged.epoch;
    a = actions_add(out, ACT_ACK);
    a->u.ack.epoch = s->epoch;
    a->u.ack.term = term;
    if (term && !s->right) {
        s->right = term;
        set_state(s, STANDBY_READY, "the copy is complete", out);
    }
}

/* The primary's VM stands still at our newest epoch, for us to go on with. The link stays: should
 * the claim fail, the primary goes on. */
static void on_switchover(struct standby *s, uint64_t now, struct actions *out)
{
    s->forced = true;
    if (s->state == STANDBY_READY)
        enter_claiming(s, "the primary hands the VM over", out);
    else if (!s->asking)
        s->ask_at_ns = now;
}

static void on_peer_bye(struct standby *s, uint16_t reason, uint64_t now, struct actions *out)
{
    if (reason == WIRE_BYE_SWITCHOVER && s->state != STANDBY_RECEIVING) {
        on_switchover(s, now, out);
    } else if (reason == WIRE_BYE_VM_DIED && s->state == STANDBY_READY) {
        drop_link(s, 0, out);
        enter_claiming(s, "the primary's hypervisor died", out);
    } else if (reason != WIRE_BYE_VM_DIED || s->state == STANDBY_RECEIVING) {
        enter_void(s, "the primary ended the session", out);
    }
}

static void on_silence(struct standby *s, uint64_t now, struct actions *out)
{
    /* Late by itself: this process stood still, and without a link no heartbeat was due to tell. */
    if (now >= s->peer_seen_ns + 2 * s->timing.peer_silent_ns) {
        s->peer_seen_ns = now;
        return;
    }
    if (s->state == STANDBY_READY) {
        drop_link(s, 0, out);
        enter_claiming(s, "the primary is silent", out);
    } else {
        on_link_lost(s, now, out);
    }
}

static bool watches_silence(const struct standby *s)
{
    return s->link_up || s->state == STANDBY_READY;
}

static void on_timer(struct standby *s, uint64_t now, struct actions *out)
{
    if (watches_silence(s) && now >= s->peer_seen_ns + s->timing.peer_silent_ns)
        on_silence(s, now, out);
    if (!standby_finished(s) && !s->asking && now >= s->ask_at_ns)
        ask(s, out);
}

void standby_step(struct standby *s, const struct standby_event *ev, uint64_t now,
                  struct actions *out)
{
    if (standby_finished(s))
        return;
    switch (ev->type) {
    case SEV_TIMER:
        on_timer(s, now, out);
        break;
    case SEV_ARB_ANSWER:
        on_answer(s, ev, now, out);
        break;
    case SEV_LINK_RESUMED:
        on_link_resumed(s, now);
        break;
    case SEV_LINK_LOST:
        on_link_lost(s, now, out);
        break;
    case SEV_PEER_SEEN:
        if (s->link_up)
            s->peer_seen_ns = now;
        break;
    case SEV_STOOD_STILL:
        s->peer_seen_ns = stood_still(s->peer_seen_ns, ev->u.stood_ns, now);
        break;
    case SEV_STAGED:
        on_staged(s, ev, out);
        break;
    case SEV_PEER_BYE:
        on_peer_bye(s, ev->u.bye, now, out);
        break;
    case SEV_FAILOVER:
        if (s->state == STANDBY_READY) {
            s->forced = true;
            enter_claiming(s, "failover was ordered", out);
        }
        break;
    case SEV_KNOCK:
        if (s->right && !s->asking)
            ask(s, out);
        break;
    }
}

uint64_t standby_deadline(const struct standby *s)
{
    uint64_t at = CORE_NEVER;

    if (standby_finished(s))
        return CORE_NEVER;
    if (watches_silence(s))
        at = s->peer_seen_ns + s->timing.peer_silent_ns;
    if (!s->asking && s->ask_at_ns < at)
        at = s->ask_at_ns;
    return at;
}

void standby_init(struct standby *s, const char *self, const char *primary,
                  const struct core_timing *timing, uint64_t now)
{
    memset(s, 0, sizeof(*s));
    name_copy(s->self, self);
    name_copy(s->primary, primary);
    s->timing = *timing;
    s->state = STANDBY_RECEIVING;
    s->link_up = true;
    s->peer_seen_ns = now;
    s->ask_at_ns = CORE_NEVER;
}
