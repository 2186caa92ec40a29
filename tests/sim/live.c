/* SPDX-License-Identifier: Apache-2.0 */
#include "sim.h"

/* The invariants of progress: nobody is lost who could have been saved, and when all is well again
 * the VM is protected again.
 *
 *   always    a protected VM that dies is taken over, unless its standby is hit as well
 *   none      once protected, always protected; never a takeover
 *   light     one fault, once it is protected: the VM goes on within a second (live_verdict)
 *   the end   everything heals: within a bound the VM is protected, and its frames flow
 */

enum { SETTLED_FRAMES = 5, SETTLED_MS = 60, FLOW_MS = 400 };

void live_vm_dies(struct world *w, unsigned host)
{
    const struct host *h = &w->hosts[host];

    if (!h->guard.vm.exists)
        return;
    if (h->guard.core.state == PRIMARY_HANDING)
        cover(w, COVER_HAND_DIED);
    if ((h->guard.reports_protected || h->guard.core.state == PRIMARY_HANDING) &&
        truly_protected(w, host) && w->arbiter.owner == host)
        w->truth.must_activate = h->guard.session;
    else if (w->arbiter.owner == host)
        cover(w, COVER_DIED_UNPROTECTED);
}

void live_standby_ends(struct world *w, unsigned host, bool fault)
{
    const struct sim_standby *s = &w->hosts[host].standby;

    if (!w->truth.must_activate || s->session != w->truth.must_activate)
        return;
    if (!fault)
        world_fail(w, "progress: %s discards its copy although it had to take over",
                   host_names[host]);
    w->truth.must_activate = 0;
}

void live_activated(struct world *w, uint32_t session)
{
    if (w->truth.must_activate == session)
        w->truth.must_activate = 0;
}

/* The host whose guard says that its VM is protected, if it is so; NONE otherwise. */
static int protected_host(const struct world *w)
{
    unsigned i;

    for (i = 0; i < w->n_hosts; i++) {
        if (guard_alive(w, i) && w->hosts[i].guard.reports_protected && truly_protected(w, i))
            return (int)i;
    }
    return NONE;
}

static bool in_order(const struct world *w)
{
    const struct truth *t = &w->truth;

    return t->protected_since_ns && !t->must_activate &&
           w->now_ns >= t->protected_since_ns + SETTLED_MS * NS_PER_MS &&
           t->emitted >= t->emitted_before + SETTLED_FRAMES;
}

void live_step(struct world *w)
{
    struct truth *t = &w->truth;
    int host = protected_host(w);
    bool protected_now = host != NONE;

    if (!protected_now) {
        if (t->protected_since_ns)
            t->left_protected = true;
        t->protected_since_ns = 0;
    } else if (!t->protected_since_ns) {
        cover(w, t->was_protected ? COVER_PROTECTED_AGAIN : COVER_PROTECTED);
        if (w->hosts[t->sessions[w->hosts[host].guard.session].standby].has_crashed)
            cover(w, COVER_BACKED_BY_RETURNED);
        if (w->hosts[host].guard.core.cool_until_ns)
            cover(w, COVER_OUTRUN_BACK);
        t->was_protected = true;
        t->protected_since_ns = w->now_ns;
        t->emitted_before = t->emitted;
    }
    if (w->setup.profile == PROFILE_NONE && t->left_protected)
        world_fail(w, "progress: protection was lost without any fault");
    if (w->healed && in_order(w))
        w->done = true;
}

static int running_host(const struct world *w)
{
    unsigned i;

    for (i = 0; i < w->n_hosts; i++) {
        if (guard_alive(w, i) && w->hosts[i].guard.vm.exists && w->arbiter.owner == i)
            return (int)i;
    }
    return NONE;
}

/* Profile light: a bound after its one fault. hosta was the primary. */
void live_verdict(struct world *w)
{
    const struct truth *t = &w->truth;
    int host = running_host(w);
    enum single single = w->setup.single;
    bool primary_hit = single == SINGLE_HOST || single == SINGLE_GUARD || single == SINGLE_VM ||
                       single == SINGLE_FREEZE;
    bool may_move = single == SINGLE_LINK || single == SINGLE_SWITCHOVER || single == SINGLE_MUTE;

    if (t->n_boots != 1 || host == NONE)
        world_fail(w, "progress: one fault, and the VM is lost");
    else if (single == SINGLE_SWITCHOVER && host == 0)
        world_fail(w, "progress: a switchover was ordered, and the VM is where it was");
    else if (primary_hit && host == 0)
        world_fail(w, "progress: the primary failed, and nobody has taken over");
    else if (!primary_hit && !may_move && host != 0)
        world_fail(w, "progress: the primary was well, and lost the VM");
    else if (t->last_emit_ns + FLOW_MS * NS_PER_MS < w->now_ns)
        world_fail(w, "progress: one fault, and no frame gets out any more");
    else if ((single == SINGLE_ARBITER || single == SINGLE_LEADER) && t->left_protected)
        world_fail(w, "progress: the arbiter alone failed, and protection was lost");
    else if (single == SINGLE_DAEMON && t->left_protected)
        world_fail(w, "progress: understudyd alone failed, and protection was lost");
    else if (single == SINGLE_KEYS && t->left_protected)
        world_fail(w, "progress: keys were changed, and protection was lost");
    else if (single == SINGLE_FREEZE_ALL && t->left_protected)
        world_fail(w, "progress: all stood still together, and protection was lost");
    fault_heal(w);
}

void live_deadline(struct world *w)
{
    unsigned i;

    for (i = 0; i < w->n_hosts; i++) {
        if (guard_alive(w, i))
            TRACE(w, "%s guard: is %s", host_names[i],
                  primary_state_name(w->hosts[i].guard.core.state));
        if (standby_alive(w, i) && w->hosts[i].standby.serving)
            TRACE(w, "%s standby: is %s", host_names[i],
                  standby_state_name(w->hosts[i].standby.core.state));
    }
    world_fail(w, "progress: all is well again, but the VM is not protected%s",
               w->truth.must_activate ? ": a standby should have taken over" : "");
}
