/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* A standby as src/standby is one, around core/standby.h: connections as in session.c, epochs as in
 * receiver.c. What has arrived whole is verified one epoch after the other, then reported,
 * acknowledged and applied. */

static void set_timer(struct world *w, unsigned host)
{
    const struct sim_standby *s = &w->hosts[host].standby;
    uint64_t at = standby_deadline(&s->core);

    if (s->heartbeat_at_ns < at)
        at = s->heartbeat_at_ns;
    proc_set_timer(w, proc_id(host, ROLE_STANDBY), at);
}

static void drop_partial(struct sim_standby *s)
{
    s->part_epoch = 0;
    s->n_parts = 0;
}

static void session_drop(struct world *w, unsigned host, uint16_t bye)
{
    struct sim_standby *s = &w->hosts[host].standby;
    struct msg msg = {.type = MSG_BYE, .bye = bye};

    if (bye)
        conn_send(w, s->control, 1, &msg);
    conn_close(w, s->control, 1, true);
    conn_close(w, s->data, 1, true);
    s->control = s->data = NONE;
    s->heartbeat_at_ns = NEVER;
    if (s->n_parts)
        s->had_partial = true;
    if (!planted(w, PLANT_TAKE_PARTIAL))
        drop_partial(s);
}

static void standby_exit(struct world *w, unsigned host)
{
    session_drop(w, host, 0);
    disk_close(w, host);
    live_standby_ends(w, host, false);
    proc_end(w, proc_id(host, ROLE_STANDBY));
}

bool standby_can_take_over(const struct world *w, unsigned host)
{
    const struct sim_standby *s = &w->hosts[host].standby;
    const struct arb_record *reg = &w->arbiter.reg;

    if (!standby_alive(w, host) || !s->serving || !s->core.right ||
        (s->core.state != STANDBY_READY && s->core.state != STANDBY_CLAIMING))
        return false;
    if (reg->term == s->core.right)
        return reg->mode == ARB_PAIRED && w->arbiter.standby == host;
    return reg->term == s->core.right + 1 && w->arbiter.owner == host &&
           s->core.claimed == s->core.right;
}

/* ---- actions ---- */

static void step(struct world *w, unsigned host, const struct standby_event *ev);

static void note_transition(struct world *w, unsigned host, const struct action *a)
{
    const struct standby *s = &w->hosts[host].standby.core;
    const char *why = a->u.trace.why;

    TRACE(w, "%s standby: %s -> %s: %s (right %llu, epoch %llu)", host_names[host], a->u.trace.from,
          a->u.trace.to, why, (unsigned long long)s->right, (unsigned long long)s->epoch);
    if (strcmp(why, "the record has moved on") == 0)
        cover(w, COVER_STANDBY_OVERTAKEN);
    if (strcmp(why, "the primary's hypervisor died") == 0)
        cover(w, COVER_TAKEOVER_TOLD);
    fault_provoke(w);
}

/* Plant term-ignored: claims on whatever record is there. */
static void forge(const struct sim_standby *s, struct wire_arb_request *request)
{
    if (request->op != WIRE_ARB_CAS || strcmp(s->seen.owner, s->core.primary) != 0)
        return;
    request->expected = s->seen;
    request->wanted.term = s->seen.term + 1;
}

static void ask(struct world *w, unsigned host, const struct action *a)
{
    struct sim_standby *s = &w->hosts[host].standby;
    struct wire_arb_request request = a->u.ask.request;
    struct standby_event ev = {.type = SEV_ARB_ANSWER};

    if (planted(w, PLANT_TERM_IGNORED))
        forge(s, &request);
    arbiter_ask(w, proc_id(host, ROLE_STANDBY), a->u.ask.id, &request, s->session);
    if (planted(w, PLANT_TAKE_UNASKED) && request.op == WIRE_ARB_CAS) {
        ev.u.answer.id = a->u.ask.id;
        ev.u.answer.status = WIRE_ARB_DONE;
        ev.u.answer.current = request.wanted;
        step(w, host, &ev);
    }
}

static void send_ack(struct world *w, unsigned host, uint64_t epoch, uint64_t term)
{
    struct sim_standby *s = &w->hosts[host].standby;
    struct msg msg = {
        .type = MSG_ACK,
        .epoch = epoch,
        .term = term,
        .durable = w->hosts[host].disk.durable,
    };

    conn_send(w, s->control, 1, &msg);
    if (!planted(w, PLANT_ACK_EARLY))
        check_ack(w, s, epoch);
}

/* The oldest of those that have arrived was verified, and is in the redo log. */
static void take_staged(struct world *w, unsigned host)
{
    struct sim_standby *s = &w->hosts[host].standby;

    s->image_before = s->image;
    s->image = s->staged[s->first_staged];
    s->first_staged = (s->first_staged + 1) % STAGED_MAX;
    s->n_staged--;
    if (w->setup.disks)
        disk_stage(w, host, &s->image);
}

static void activate(struct world *w, unsigned host, const struct arb_record *record)
{
    struct sim_standby *s = &w->hosts[host].standby;
    uint64_t after_ns = rng_log(w, 2 * NS_PER_MS, 100 * NS_PER_MS);

    if (s->n_staged && w->setup.disks && rng_chance(w, 500000))
        disk_stage(w, host, &s->staged[s->first_staged]); /* verified, and nobody has heard of it */
    if (planted(w, PLANT_TAKE_PARTIAL) && s->n_parts && s->part_epoch > s->image.epoch)
        s->image = (struct staged){.epoch = s->part_epoch, .state = s->part_state};
    if (planted(w, PLANT_TAKE_OLD))
        s->image = s->image_before;
    check_activate(w, host, s, record);
    if (s->core.forced)
        cover(w, COVER_TAKEOVER_FORCED);
    s->activating = true;
    s->record = *record;
    live_activated(w, s->session);
    world_post(w, w->now_ns + after_ns, EV_ACTIVATED, proc_id(host, ROLE_STANDBY), 0);
}

static void carry_out(struct world *w, unsigned host, const struct actions *out)
{
    uint32_t life = w->hosts[host].proc[ROLE_STANDBY].life;
    unsigned i;

    for (i = 0; i < out->n && w->hosts[host].proc[ROLE_STANDBY].life == life; i++) {
        const struct action *a = &out->a[i];

        switch (a->type) {
        case ACT_ARB_ASK:
            ask(w, host, a);
            break;
        case ACT_LINK_DROP:
            session_drop(w, host, a->u.bye);
            break;
        case ACT_TRACE:
            note_transition(w, host, a);
            break;
        case ACT_ACK:
            send_ack(w, host, a->u.ack.epoch, a->u.ack.term);
            disk_commit(w, host);
            break;
        case ACT_ACTIVATE:
            activate(w, host, &a->u.record);
            break;
        case ACT_DISCARD:
            standby_exit(w, host);
            break;
        default: /* the primary's */
            world_fail(w, "a standby wants action %d", (int)a->type);
            break;
        }
    }
}

static void step(struct world *w, unsigned host, const struct standby_event *ev)
{
    struct sim_standby *s = &w->hosts[host].standby;
    struct actions out;

    out.n = 0;
    standby_step(&s->core, ev, w->now_ns, &out);
    carry_out(w, host, &out);
}

void standby_simple_step(struct world *w, unsigned host, enum standby_event_type type)
{
    struct standby_event ev = {.type = type};

    step(w, host, &ev);
    if (standby_alive(w, host))
        set_timer(w, host);
}

/* ---- connections ---- */

static void refuse(struct world *w, int conn)
{
    struct msg msg = {.type = MSG_REFUSE};

    conn_send(w, conn, 1, &msg);
    conn_close(w, conn, 1, true);
}

static void send_ready(struct world *w, unsigned host)
{
    struct sim_standby *s = &w->hosts[host].standby;
    const struct sim_map *map = &w->hosts[host].disk.map;
    struct msg msg = {
        .type = MSG_READY,
        .epoch = s->core.epoch,
        .term = s->core.right,
        .sync = map->trusted ? map->sync : 0,
        .delta.mask = map->now,
    };

    conn_send(w, s->control, 1, &msg);
    s->heartbeat_at_ns = w->now_ns;
}

static void on_resume(struct world *w, unsigned host, int conn)
{
    struct sim_standby *s = &w->hosts[host].standby;
    bool lost_first = rng_chance(w, 300000);

    session_drop(w, host, 0); /* what is left of the broken link */
    if (lost_first) {
        standby_simple_step(w, host, SEV_LINK_LOST);
        if (!standby_alive(w, host) || standby_finished(&s->core)) {
            refuse(w, conn);
            return;
        }
    }
    s->control = conn;
    standby_simple_step(w, host, SEV_LINK_RESUMED);
    send_ready(w, host);
}

static void on_data_hello(struct world *w, unsigned host, int conn)
{
    struct sim_standby *s = &w->hosts[host].standby;
    struct msg welcome = {.type = MSG_WELCOME};

    conn_close(w, s->data, 1, true);
    s->data = conn;
    drop_partial(s);
    s->had_partial = false;
    conn_send(w, conn, 1, &welcome);
}

static void on_hello(struct world *w, unsigned host, int conn)
{
    struct sim_standby *s = &w->hosts[host].standby;
    const struct conn *c = &w->net.conns[conn];
    bool ours = s->serving && !standby_finished(&s->core) && c->session == s->session;

    if (ours && c->channel == CHANNEL_DATA && s->control != NONE) {
        on_data_hello(w, host, conn);
    } else if (ours && c->channel == CHANNEL_CONTROL && c->resume) {
        on_resume(w, host, conn);
    } else {
        if (c->channel == CHANNEL_CONTROL && !c->resume && s->serving) {
            if (standby_can_take_over(w, host))
                cover(w, COVER_KNOCK_BUSY);
            standby_simple_step(w, host, SEV_KNOCK);
        }
        refuse(w, conn);
    }
}

static void on_conn_lost(struct world *w, unsigned host, int conn)
{
    struct sim_standby *s = &w->hosts[host].standby;

    if (conn != s->control && conn != s->data) {
        conn_close(w, conn, 1, true);
    } else if (!s->serving) {
        standby_exit(w, host);
    } else {
        session_drop(w, host, 0);
        standby_simple_step(w, host, SEV_LINK_LOST);
    }
}

static void on_control(struct world *w, unsigned host, const struct msg *m)
{
    struct standby_event bye = {.type = SEV_PEER_BYE, .u.bye = m->bye};
    struct sim_standby *s = &w->hosts[host].standby;

    if (!s->serving) {
        if (m->type == MSG_BYE)
            standby_exit(w, host);
        return;
    }
    standby_simple_step(w, host, SEV_PEER_SEEN);
    if (m->type == MSG_BYE)
        step(w, host, &bye);
}

/* ---- epochs ---- */

static void on_part(struct world *w, unsigned host, const struct msg *m)
{
    struct sim_standby *s = &w->hosts[host].standby;

    check_part(w, m);
    if (m->epoch != s->part_epoch) {
        s->n_parts = 0;
        if (planted(w, PLANT_ACK_EARLY))
            send_ack(w, host, m->epoch, m->term);
    }
    if (planted(w, PLANT_APPLY_EARLY))
        disk_apply_early(w, host, &m->delta);
    s->part_epoch = m->epoch;
    s->part_state = m->state;
    s->n_parts++;
}

static void on_end(struct world *w, unsigned host, const struct msg *m)
{
    struct sim_standby *s = &w->hosts[host].standby;
    uint64_t verify_ns = rng_log(w, 50 * NS_PER_US, 4 * NS_PER_MS);
    bool whole = m->epoch == s->part_epoch && s->n_parts == m->parts;

    drop_partial(s);
    if (!whole || s->n_staged == STAGED_MAX) {
        world_fail(w, "%s: epoch %llu arrives in pieces", host_names[host],
                   (unsigned long long)m->epoch);
        return;
    }
    check_arrived(w, s, m);
    s->arrived = m->epoch;
    s->staged[(s->first_staged + s->n_staged++) % STAGED_MAX] = (struct staged){
        .epoch = m->epoch,
        .term = m->term,
        .state = m->state,
        .memory = m->memory,
        .delta = m->delta,
    };
    if (s->stage_busy_until_ns < w->now_ns)
        s->stage_busy_until_ns = w->now_ns;
    s->stage_busy_until_ns += verify_ns;
    world_post(w, s->stage_busy_until_ns, EV_STAGED, proc_id(host, ROLE_STANDBY), 0);
}

static void on_staged(struct world *w, unsigned host)
{
    struct sim_standby *s = &w->hosts[host].standby;
    struct standby_event ev = {.type = SEV_STAGED};

    if (!s->n_staged || standby_finished(&s->core))
        return;
    take_staged(w, host);
    ev.u.staged.epoch = s->image.epoch;
    ev.u.staged.term = s->image.term;
    step(w, host, &ev);
}

static void on_message(struct world *w, unsigned host, const struct msg *m)
{
    struct sim_standby *s = &w->hosts[host].standby;
    int conn = (int)m->conn;

    if (m->type == MSG_HELLO)
        on_hello(w, host, conn);
    else if (m->type == MSG_FIN)
        on_conn_lost(w, host, conn);
    else if (conn == s->control)
        on_control(w, host, m);
    else if (conn == s->data && m->type == MSG_PART)
        on_part(w, host, m);
    else if (conn == s->data && m->type == MSG_END)
        on_end(w, host, m);
}

/* ---- events ---- */

static void on_serving(struct world *w, unsigned host)
{
    struct sim_standby *s = &w->hosts[host].standby;

    s->serving = true;
    disk_open(w, host);
    standby_init(&s->core, host_names[host], host_names[s->primary], &w->setup.standby, w->now_ns);
    send_ready(w, host);
}

static void on_timer(struct world *w, unsigned host)
{
    struct sim_standby *s = &w->hosts[host].standby;
    struct standby_event stood = {.type = SEV_STOOD_STILL};
    struct msg heartbeat = {.type = MSG_HEARTBEAT};

    if (!s->serving)
        return;
    if (w->now_ns >= s->heartbeat_at_ns) {
        stood.u.stood_ns = w->now_ns - s->heartbeat_at_ns;
        if (stood.u.stood_ns > w->setup.heartbeat_ns) {
            cover(w, COVER_STOOD_STANDBY);
            step(w, host, &stood);
        }
        conn_send(w, s->control, 1, &heartbeat);
        s->heartbeat_at_ns = w->now_ns + w->setup.heartbeat_ns;
    }
    if (w->now_ns < standby_deadline(&s->core))
        return;
    if (w->now_ns >= s->core.peer_seen_ns + 2 * s->core.timing.peer_silent_ns &&
        (s->core.link_up || s->core.state == STANDBY_READY))
        cover(w, COVER_LATE_STANDBY);
    standby_simple_step(w, host, SEV_TIMER);
    if (standby_alive(w, host) && standby_deadline(&s->core) <= w->now_ns)
        world_fail(w, "%s: the standby's timer is due again at once (%s)", host_names[host],
                   standby_state_name(s->core.state));
}

static void on_arbiter(struct world *w, unsigned host, const struct event *ev)
{
    struct standby_event answer = {.type = SEV_ARB_ANSWER};
    struct sim_standby *s = &w->hosts[host].standby;
    struct proc *p = &w->hosts[host].proc[ROLE_STANDBY];
    struct ask *ask = &w->arbiter.asks[ev->arg];

    if (p->ask == ev->arg + 1)
        arbiter_take_up(w, ev);
    else if (ev->type == EV_ARB_TIMEOUT)
        return;
    answer.u.answer.id = ask->id;
    if (ev->type == EV_ARB_REPLY) {
        answer.u.answer.status = ask->reply.status;
        answer.u.answer.current = ask->reply.current;
    }
    if (planted(w, PLANT_TERM_IGNORED)) {
        s->seen = answer.u.answer.current;
        if (answer.u.answer.status == WIRE_ARB_CONFLICT)
            answer.u.answer.status = 0;
        else if (ask->request.op == WIRE_ARB_CAS)
            answer.u.answer.current.term = s->core.right + 1;
    }
    step(w, host, &answer);
}

static void on_activated(struct world *w, unsigned host)
{
    struct sim_standby *s = &w->hosts[host].standby;

    disk_drain(w, host);
    proc_end(w, proc_id(host, ROLE_STANDBY));
    guard_takeover(w, host, &s->record, &s->image);
}

void standby_event(struct world *w, unsigned host, const struct event *ev)
{
    uint32_t life = w->hosts[host].proc[ROLE_STANDBY].life;

    switch (ev->type) {
    case EV_TIMER:
        on_timer(w, host);
        break;
    case EV_MSG:
        on_message(w, host, &w->net.msgs[ev->arg]);
        break;
    case EV_CONN_LOST:
        on_conn_lost(w, host, (int)ev->arg);
        break;
    case EV_SERVING:
        on_serving(w, host);
        break;
    case EV_STAGED:
        on_staged(w, host);
        break;
    case EV_APPLY:
        disk_apply(w, host);
        break;
    case EV_ARB_REPLY:
    case EV_ARB_TIMEOUT:
        on_arbiter(w, host, ev);
        break;
    case EV_ACTIVATED:
        on_activated(w, host);
        return;
    default:
        break;
    }
    if (w->hosts[host].proc[ROLE_STANDBY].life == life && w->hosts[host].standby.serving)
        set_timer(w, host);
}

void standby_start(struct world *w, unsigned host, int conn)
{
    struct sim_standby *s = &w->hosts[host].standby;
    struct conn *c = &w->net.conns[conn];
    struct proc *p = &w->hosts[host].proc[ROLE_STANDBY];

    proc_start(w, proc_id(host, ROLE_STANDBY));
    memset(s, 0, sizeof(*s));
    s->session = c->session;
    s->primary = c->end[0].node;
    s->control = conn;
    s->data = NONE;
    s->heartbeat_at_ns = NEVER;
    c->end[1].proc = proc_id(host, ROLE_STANDBY);
    c->end[1].life = p->life;
    w->truth.sessions[s->session].standby_life = p->life;
    TRACE(w, "%s standby: starts (session %u of %s)", host_names[host], s->session,
          host_names[s->primary]);
    world_post(w, w->now_ns + rng_log(w, 2 * NS_PER_MS, 60 * NS_PER_MS), EV_SERVING,
               proc_id(host, ROLE_STANDBY), 0);
}
