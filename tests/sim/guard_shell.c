/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* A guard as src/guard is one: turns what happens to the process into events of core/primary.h and
 * carries out the actions, in order. Epochs and frames are in guard_cut.c, connections in
 * guard_link.c. */

static void settle(struct world *w, unsigned host)
{
    cut_if_due(w, host);
    guard_set_timer(w, host);
}

static void guard_exit(struct world *w, unsigned host)
{
    link_close(w, host);
    disk_close(w, host);
    proc_end(w, proc_id(host, ROLE_GUARD));
}

/* ---- actions ---- */

static void note_transition(struct world *w, unsigned host, const struct action *a)
{
    const struct primary *p = &w->hosts[host].guard.core;
    const char *from = a->u.trace.from, *to = a->u.trace.to;

    TRACE(w, "%s guard: %s -> %s: %s (term %llu, epoch %llu)", host_names[host], from, to,
          a->u.trace.why, (unsigned long long)p->record.term,
          (unsigned long long)p->next_epoch - 1);
    if (strcmp(to, "seeding") == 0 && strcmp(p->peer, p->wanted) != 0)
        world_fail(w, "%s copies the VM to %s, but '%s' is wanted", host_names[host], p->peer,
                   p->wanted);
    if (strcmp(to, "isolated") == 0)
        cover(w, COVER_ISOLATED);
    if (strcmp(from, "isolated") == 0 && strcmp(to, "solo") == 0)
        cover(w, w->hosts[host].guard.attaching ? COVER_ATTACH_WON : COVER_SOLO_AGAIN);
    if (strcmp(from, "seeding") == 0 && strcmp(to, "solo") == 0)
        cover(w, COVER_ABORT_SEEDING);
    if (strcmp(from, "arming") == 0 && strcmp(to, "pairing") != 0)
        cover(w, COVER_ABORT_ARMING);
    if (strcmp(from, "pairing") == 0 && strcmp(to, "protected") != 0)
        cover(w, COVER_ABORT_PAIRING);
    if (strcmp(from, "protected") == 0 && strcmp(to, "stopping") == 0)
        cover(w, COVER_STOP_PROTECTED);
    if (strcmp(from, "handing") == 0 && strcmp(to, "lost") == 0 && p->handed)
        cover(w, COVER_HANDED_OVER);
    if (strcmp(from, "isolated") == 0 && strcmp(to, "lost") == 0 && p->handed)
        cover(w, COVER_HAND_TAKEN_LATE);
    if (strcmp(to, "stopped") == 0 && strcmp(from, "stopping") == 0)
        cover(w, COVER_STOPPED);
    if (strcmp(to, "lost") == 0 && w->hosts[host].guard.attaching)
        cover(w, COVER_ATTACH_LOST);
    w->hosts[host].guard.attaching = false;
    if (strcmp(to, "lost") == 0 && w->hosts[host].guard.vm.exists) {
        cover(w, COVER_LOST);
        if (w->hosts[host].guard.n_held)
            cover(w, COVER_HELD_DROPPED);
    }
    fault_provoke(w);
}

static void ask(struct world *w, unsigned host, const struct action *a)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct primary_event ev = {.type = PEV_ARB_ANSWER};

    arbiter_ask(w, proc_id(host, ROLE_GUARD), a->u.ask.id, &a->u.ask.request, g->session);
    if (g->core.state == PRIMARY_ISOLATED &&
        (planted(w, PLANT_SOLO_UNASKED) ||
         (planted(w, PLANT_ATTACH_UNSWAPPED) && a->u.ask.request.op == WIRE_ARB_CAS &&
          a->u.ask.request.expected.mode == ARB_SOLO))) {
        ev.u.answer.id = a->u.ask.id;
        ev.u.answer.status = WIRE_ARB_DONE;
        ev.u.answer.current = a->u.ask.request.wanted;
        guard_step(w, host, &ev);
    }
}

static void destroy_vm(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    if (planted(w, PLANT_KEEP_AFTER_LOSS)) {
        g->gate.holding = false;
        (void)frames_release(w, host); /* whether it freezes over it does not matter any more */
    }
    guard_exit(w, host);
}

static void start_refused(struct world *w, unsigned host, const struct action *a)
{
    TRACE(w, "%s guard: start refused: %s", host_names[host], a->u.why);
    cover(w, strstr(a->u.why, "does not answer") ? COVER_START_TIMEOUT : COVER_START_REFUSED);
    if (strstr(a->u.why, "are older"))
        cover(w, COVER_REFUSED_OLDER);
    if (strstr(a->u.why, "not complete"))
        cover(w, COVER_REFUSED_INCOMPLETE);
    if (strstr(a->u.why, "nothing is known"))
        cover(w, COVER_REFUSED_UNKNOWN);
    guard_exit(w, host);
}

static void seed_begin(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    g->seeding = true;
    g->seeds_left = w->setup.seeds;
    g->last_seed = g->core.committed;
    g->last_cut = 0;
    g->rebase = false;
    g->to_copy = w->setup.disks ? disk_resync(w, host) : 0;
    world_post(w, w->now_ns, EV_SEED, proc_id(host, ROLE_GUARD), 0);
}

static bool committed(struct world *w, unsigned host, uint64_t epoch)
{
    struct sim_guard *g = &w->hosts[host].guard;

    g->gate.committed = epoch;
    controller_acked(&g->controller, epoch, w->now_ns);
    disk_committed(w, host, epoch);
    if (g->seeding && !g->seeds_left)
        world_post(w, w->now_ns, EV_SEED, proc_id(host, ROLE_GUARD), 0);
    return frames_release(w, host);
}

static void say_bye(struct world *w, unsigned host, uint16_t reason)
{
    struct msg msg = {.type = MSG_BYE, .bye = reason};

    check_bye(w, host);
    conn_send(w, w->hosts[host].guard.control, 0, &msg);
}

static void resume_handed(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    cover(w, g->attached && !g->stands ? COVER_ATTACH_RESUMED : COVER_HAND_GIVEN_UP);
    g->stands = false;
    if (g->cut != CUT_IDLE)
        return; /* resumed when that is done */
    g->vm.paused = false;
    vm_resume(w, host);
}

/* False: the guard froze in the middle of it. */
static bool act(struct world *w, unsigned host, const struct action *a)
{
    struct sim_guard *g = &w->hosts[host].guard;

    switch (a->type) {
    case ACT_ARB_ASK:
        ask(w, host, a);
        break;
    case ACT_LINK_DROP:
        link_drop(w, host, a->u.bye);
        break;
    case ACT_TRACE:
        note_transition(w, host, a);
        break;
    case ACT_VM_RUN:
        vm_boot(w, host);
        break;
    case ACT_START_REFUSED:
        start_refused(w, host, a);
        break;
    case ACT_VM_DESTROY:
        destroy_vm(w, host);
        break;
    case ACT_LINK_CONNECT:
        link_connect(w, host, a->u.resume);
        break;
    case ACT_SEED:
        seed_begin(w, host);
        break;
    case ACT_REBASE:
        cover(w, COVER_RESUMED);
        controller_forget(&g->controller, w->now_ns);
        disk_rebase(w, host);
        g->sent_before = g->core.next_epoch - 1;
        g->rebase = !planted(w, PLANT_NO_REBASE) &&
                    !(planted(w, PLANT_RELINK_NO_REBASE) && g->core.state == PRIMARY_PROTECTED);
        break;
    case ACT_GATE_HOLD:
        g->gate.holding =
            !planted(w, PLANT_NO_HOLD) && !(planted(w, PLANT_ATTACH_FLOWS) && g->attaching);
        break;
    case ACT_GATE_FLOW:
        g->gate.holding = false;
        controller_forget(&g->controller, w->now_ns);
        disk_solo(w, host);
        return frames_release(w, host);
    case ACT_COMMITTED:
        return committed(w, host, a->u.epoch);
    case ACT_COPY_RECORD:
        if (w->setup.disks && !(planted(w, PLANT_ATTACH_UNRECORDED) && g->attached &&
                                g->core.state == PRIMARY_ISOLATED))
            disk_record(w, host, a->u.copy.term, a->u.copy.wait);
        break;
    case ACT_HAND_OVER:
        if (planted(w, PLANT_BYE_EARLY))
            say_bye(w, host, WIRE_BYE_SWITCHOVER);
        break;
    case ACT_SAY_BYE:
        if (!planted(w, PLANT_BYE_EARLY))
            say_bye(w, host, a->u.bye);
        break;
    case ACT_VM_RESUME:
        if (!planted(w, PLANT_ATTACH_STANDS) || !g->attached)
            resume_handed(w, host);
        break;
    default: /* the standby's */
        world_fail(w, "a primary wants action %d", (int)a->type);
        break;
    }
    return true;
}

static void report(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    g->reports_protected =
        g->core.state == PRIMARY_PROTECTED ||
        (planted(w, PLANT_SEEDING_PROTECTED) && g->core.state == PRIMARY_SEEDING);
    if (planted(w, PLANT_RESUME_UNASKED) && g->stands && g->core.state == PRIMARY_ISOLATED)
        resume_handed(w, host);
    if (planted(w, PLANT_NO_HOLD) && g->core.state == PRIMARY_PROTECTED)
        g->gate.holding = true;
}

static void carry_out(struct world *w, unsigned host, const struct actions *out, unsigned first)
{
    struct sim_guard *g = &w->hosts[host].guard;
    uint32_t life = w->hosts[host].proc[ROLE_GUARD].life;
    unsigned i;

    for (i = first; i < out->n; i++) {
        bool go_on = act(w, host, &out->a[i]);

        if (w->hosts[host].proc[ROLE_GUARD].life != life)
            return;
        if (!go_on) {
            if (out != &g->interrupted)
                g->interrupted = *out;
            g->next_action = i + 1;
            return;
        }
    }
    settle(w, host);
}

void guard_go_on(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    unsigned next = g->next_action;

    frames_write_decided(w, host);
    g->next_action = 0;
    if (next)
        carry_out(w, host, &g->interrupted, next);
    else
        settle(w, host);
}

void guard_step(struct world *w, unsigned host, const struct primary_event *ev)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct actions out;

    out.n = 0;
    primary_step(&g->core, ev, w->now_ns, &out);
    report(w, host);
    carry_out(w, host, &out, 0);
}

void guard_simple_step(struct world *w, unsigned host, enum primary_event_type type)
{
    struct primary_event ev = {.type = type};

    guard_step(w, host, &ev);
}

/* ---- time ---- */

void guard_set_timer(struct world *w, unsigned host)
{
    const struct sim_guard *g = &w->hosts[host].guard;
    uint64_t at = primary_deadline(&g->core), cut_at = cut_deadline(w, host);

    if (g->heartbeat_at_ns < at)
        at = g->heartbeat_at_ns;
    if (g->connect_by_ns < at)
        at = g->connect_by_ns;
    if (cut_at < at)
        at = cut_at;
    proc_set_timer(w, proc_id(host, ROLE_GUARD), at);
}

static void machine_timer(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    uint32_t life = w->hosts[host].proc[ROLE_GUARD].life;

    if (planted(w, PLANT_DEAF))
        guard_simple_step(w, host, PEV_PEER_SEEN);
    guard_simple_step(w, host, PEV_TIMER);
    if (w->hosts[host].proc[ROLE_GUARD].life == life && primary_deadline(&g->core) <= w->now_ns)
        world_fail(w, "%s: the primary's timer is due again at once (%s)", host_names[host],
                   primary_state_name(g->core.state));
}

static void on_timer(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    uint32_t life = w->hosts[host].proc[ROLE_GUARD].life;

    link_timer(w, host);
    if (w->hosts[host].proc[ROLE_GUARD].life == life && w->now_ns >= primary_deadline(&g->core))
        machine_timer(w, host);
    if (w->hosts[host].proc[ROLE_GUARD].life == life)
        settle(w, host);
}

/* ---- events ---- */

static void on_arbiter(struct world *w, unsigned host, const struct event *ev)
{
    struct primary_event answer = {.type = PEV_ARB_ANSWER};
    struct proc *p = &w->hosts[host].proc[ROLE_GUARD];
    struct ask *ask = &w->arbiter.asks[ev->arg];

    if (p->ask == ev->arg + 1)
        arbiter_take_up(w, ev);
    else if (ev->type == EV_ARB_TIMEOUT)
        return;
    answer.u.answer.id = ask->id;
    if (ev->type == EV_ARB_REPLY) {
        answer.u.answer.status = ask->reply.status;
        answer.u.answer.current = ask->reply.current;
        if (ask->reply.status == WIRE_ARB_CONFLICT &&
            strcmp(ask->reply.current.owner, host_names[host]) == 0)
            cover(w, arb_record_equal(&ask->reply.current, &ask->request.wanted)
                         ? COVER_OWN_WANTED_FOUND
                         : COVER_OWN_OTHER_FOUND);
    }
    guard_step(w, host, &answer);
}

void guard_event(struct world *w, unsigned host, const struct event *ev)
{
    switch (ev->type) {
    case EV_TIMER:
        on_timer(w, host);
        break;
    case EV_MSG:
        link_message(w, host, &w->net.msgs[ev->arg]);
        break;
    case EV_CONN_LOST:
        link_conn_lost(w, host, (int)ev->arg);
        break;
    case EV_ARB_REPLY:
    case EV_ARB_TIMEOUT:
        on_arbiter(w, host, ev);
        break;
    case EV_FRAMES:
        frames_read(w, host);
        if (frames_release(w, host))
            settle(w, host);
        break;
    case EV_CUT_OPEN:
        cut_open(w, host);
        settle(w, host);
        break;
    case EV_CUT_DONE:
        cut_done(w, host);
        break;
    case EV_SEED:
        cut_seed(w, host);
        break;
    case EV_RECORD:
        disk_record_due(w, host);
        break;
    case EV_DISK_OPEN:
        disk_release(w, host);
        break;
    default:
        break;
    }
}

/* ---- life ---- */

static void guard_init(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    proc_start(w, proc_id(host, ROLE_GUARD));
    g->vm.exists = false;
    g->session = 0;
    g->attached = g->attaching = false;
    link_init(w, host);
    g->reports_protected = false;
    g->untrue_since_ns = 0;
    g->next_action = 0;
    g->stands = false;
    g->journal = (struct sim_journal){.on = false};
    cut_init(w, host);
}

void guard_start(struct world *w, unsigned host, int wanted, enum start_how how)
{
    static const char *const texts[] = {"starts", "starts, to recover", "starts, and seizes"};
    struct start_order order = {
        .has_disks = w->setup.disks,
        .recover = how == HOW_RECOVER,
        .seize = how == HOW_SEIZE,
    };
    struct sim_guard *g = &w->hosts[host].guard;
    struct actions out;

    TRACE(w, "%s guard: %s", host_names[host], texts[how]);
    guard_init(w, host);
    disk_open(w, host);
    order.copy = w->hosts[host].disk.record;
    if (planted(w, PLANT_STALE_NEWEST) && order.copy.role == COPY_PRIMARY)
        order.has_disks = false;
    out.n = 0;
    primary_init_start(&g->core, host_names[host], &w->setup.primary,
                       wanted == NONE ? "" : host_names[wanted], &order, w->now_ns, &out);
    gate_init(&g->gate, g->core.next_epoch);
    carry_out(w, host, &out, 0);
}

void guard_takeover(struct world *w, unsigned host, const struct arb_record *record,
                    const struct staged *image)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct actions out;

    guard_init(w, host);
    out.n = 0;
    primary_init_takeover(&g->core, host_names[host], &w->setup.primary, record, image->epoch,
                          &out);
    gate_init(&g->gate, g->core.next_epoch);
    if (w->setup.disks) {
        check_disk_matches(w, host, &image->memory, "taking over");
        disk_hold(w, host);
    }
    fault_loop_begin(w, host);
    vm_activate(w, host, image);
    carry_out(w, host, &out, 0);
}

void guard_attach(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    bool running = !g->vm.paused && !g->vm.stuffed;
    struct vm vm = g->vm;
    struct actions out;

    TRACE(w, "%s guard: attaches, its VM %s", host_names[host], running ? "runs" : "stands still");
    cover(w, w->hosts[host].attaches ? COVER_ATTACH_AGAIN : COVER_ATTACH);
    guard_init(w, host);
    w->hosts[host].mute = false;
    disk_open(w, host);
    disk_sync(&w->hosts[host].disk); /* a flush may have been answered that is still owed */
    g->vm = vm;
    g->vm.exists = true;
    g->vm.paused = !running;
    g->vm.stuffed = g->vm.step_due = false;
    g->vm.n_socket = 0;
    if (running)
        g->vm.state.index += (uint32_t)rng_below(w, 100); /* it has gone on, unheard */
    g->attached = g->attaching = true;
    fault_loop_begin(w, host);
    out.n = 0;
    primary_init_attach(&g->core, host_names[host], &w->setup.primary,
                        host_names[(host + 1 + rng_below(w, w->n_hosts - 1)) % w->n_hosts], running,
                        &out);
    gate_init(&g->gate, g->core.next_epoch);
    vm_resume(w, host);
    carry_out(w, host, &out, 0);
}
