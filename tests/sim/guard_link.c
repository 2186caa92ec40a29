/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* A guard's connections to its standby, as in src/guard/link.c. */

void link_init(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    g->control = g->data = g->next = NONE;
    g->up = g->old_gone = false;
    g->heartbeat_at_ns = g->connect_by_ns = NEVER;
}

void link_close(struct world *w, unsigned host)
{
    const struct sim_guard *g = &w->hosts[host].guard;

    conn_close(w, g->control, 0, true);
    conn_close(w, g->data, 0, true);
    conn_close(w, g->next, 0, true);
}

void link_connect(struct world *w, unsigned host, bool resume)
{
    struct sim_guard *g = &w->hosts[host].guard;
    unsigned to = 0;

    while (to < w->n_hosts && strcmp(g->core.peer, host_names[to]) != 0)
        to++;
    if (to == w->n_hosts || to == host) {
        world_fail(w, "%s wants '%s' as its standby", host_names[host], g->core.peer);
        return;
    }
    if (planted(w, PLANT_PROTECT_ONCE) && !resume && g->session)
        return;
    if (!resume)
        g->session = session_new(w, host, to);
    g->resume = resume;
    g->connect_by_ns = w->now_ns + w->setup.connect_ns;
    g->control = conn_open(w, host, to, CHANNEL_CONTROL, g->session, resume);
    TRACE(w, "%s guard: connects to %s (session %u, %s)", host_names[host], host_names[to],
          g->session, resume ? "resume" : "new");
}

void link_drop(struct world *w, unsigned host, uint16_t bye)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct msg msg = {.type = MSG_BYE, .bye = bye};

    if (bye)
        conn_send(w, g->control, 0, &msg);
    link_close(w, host);
    link_init(w, host);
    g->seeding = false;
}

/* ---- a new link for an old one ---- */

/* The standby has accepted the new control channel, and dropped the old link by that. */
static void next_accepted(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    cover(w, COVER_RELINK);
    if (g->cut != CUT_IDLE || in_flight(g))
        cover(w, COVER_RELINK_IN_FLIGHT);
    if (g->core.state != PRIMARY_PROTECTED)
        cover(w, COVER_RELINK_LEFT);
    conn_close(w, g->control, 0, true);
    conn_close(w, g->data, 0, true);
    g->control = g->next;
    g->data = g->next = NONE;
    g->up = g->old_gone = false;
    if (!planted(w, PLANT_RELINK_UNTOLD) || g->core.state == PRIMARY_PROTECTED)
        guard_simple_step(w, host, PEV_RELINK);
}

/* It will not be there. If the old one is, nothing has happened. */
static void next_failed(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    conn_close(w, g->next, 0, true);
    g->next = NONE;
    g->connect_by_ns = NEVER;
    cover(w, g->old_gone ? COVER_RELINK_LOST : COVER_RELINK_KEPT);
    if (g->old_gone)
        guard_simple_step(w, host, PEV_LINK_FAILED);
}

void link_new_keys(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    if (g->control == NONE || g->next != NONE)
        return;
    TRACE(w, "%s guard: keys have changed", host_names[host]);
    if (!g->up || g->core.state != PRIMARY_PROTECTED || planted(w, PLANT_RELINK_BREAKS)) {
        guard_simple_step(w, host, PEV_LINK_FAILED);
        return;
    }
    g->resume = true;
    g->old_gone = false;
    g->connect_by_ns = w->now_ns + w->setup.connect_ns;
    g->next =
        conn_open(w, host, w->net.conns[g->control].end[1].node, CHANNEL_CONTROL, g->session, true);
    guard_set_timer(w, host);
}

/* ---- messages ---- */

static void on_ready(struct world *w, unsigned host, const struct msg *m)
{
    struct sim_guard *g = &w->hosts[host].guard;
    const struct conn *c = &w->net.conns[g->control];

    if (g->data != NONE)
        return;
    g->ready_epoch = m->epoch;
    g->ready_term = m->term;
    g->ready_sync = m->sync;
    g->ready_dirty = m->delta.mask;
    g->heartbeat_at_ns = w->now_ns;
    g->data = conn_open(w, host, c->end[1].node, CHANNEL_DATA, g->session, g->resume);
    guard_set_timer(w, host);
}

static void on_welcome(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct primary_event ev = {.type = PEV_LINK_READY};

    g->up = true;
    controller_link(&g->controller, NS_PER_MS, w->now_ns);
    g->connect_by_ns = NEVER;
    if (g->resume && g->ready_term && g->ready_epoch > g->core.committed)
        cover(w, COVER_RESUMED_NEWER);
    ev.u.ready.resumed = g->resume;
    ev.u.ready.epoch = g->ready_epoch;
    ev.u.ready.term = g->ready_term;
    guard_step(w, host, &ev);
}

static void on_link_lost(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    if (planted(w, PLANT_DEAF) && g->up)
        return;
    if (g->next != NONE)
        g->old_gone = true; /* the new one decides */
    else
        guard_simple_step(w, host, PEV_LINK_FAILED);
}

static void on_peer_message(struct world *w, unsigned host, const struct msg *m)
{
    struct primary_event ev = {.type = PEV_ACK};
    uint32_t life = w->hosts[host].proc[ROLE_GUARD].life;

    guard_simple_step(w, host, PEV_PEER_SEEN);
    if (w->hosts[host].proc[ROLE_GUARD].life != life)
        return;
    if (m->type == MSG_READY) {
        on_ready(w, host, m);
    } else if (m->type == MSG_ACK) {
        ev.u.ack.epoch = m->epoch;
        ev.u.ack.term = m->term;
        disk_durable(w, host, planted(w, PLANT_MAP_AT_ACK) ? m->epoch : m->durable);
        guard_step(w, host, &ev);
    } else if (m->type == MSG_BYE && !planted(w, PLANT_DEAF)) {
        ev.type = PEV_PEER_BYE;
        ev.u.bye = m->bye;
        guard_step(w, host, &ev);
    }
}

void link_message(struct world *w, unsigned host, const struct msg *m)
{
    struct sim_guard *g = &w->hosts[host].guard;
    uint32_t life = w->hosts[host].proc[ROLE_GUARD].life;

    if ((int)m->conn == g->next && g->next != NONE) {
        if (m->type != MSG_READY) {
            next_failed(w, host);
            return;
        }
        next_accepted(w, host);
        if (w->hosts[host].proc[ROLE_GUARD].life != life)
            return;
    }
    if ((int)m->conn != g->control && (int)m->conn != g->data)
        return; /* of a connection that was closed since */
    switch (m->type) {
    case MSG_WELCOME:
        on_welcome(w, host);
        break;
    case MSG_REFUSE:
    case MSG_FIN:
        on_link_lost(w, host);
        break;
    default:
        on_peer_message(w, host, m);
        break;
    }
}

void link_conn_lost(struct world *w, unsigned host, int conn)
{
    struct sim_guard *g = &w->hosts[host].guard;

    if (conn == g->next && g->next != NONE)
        next_failed(w, host);
    else if (conn == g->control || conn == g->data)
        on_link_lost(w, host);
}

/* ---- time ---- */

static void send_heartbeat(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct primary_event stood = {.type = PEV_STOOD_STILL};
    struct msg msg = {.type = MSG_HEARTBEAT};

    stood.u.stood_ns = w->now_ns - g->heartbeat_at_ns;
    if (stood.u.stood_ns > w->setup.heartbeat_ns) {
        cover(w, COVER_STOOD_PRIMARY);
        guard_step(w, host, &stood);
    }
    conn_send(w, g->control, 0, &msg);
    g->heartbeat_at_ns = w->now_ns + w->setup.heartbeat_ns;
}

void link_timer(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    if (w->now_ns >= g->heartbeat_at_ns)
        send_heartbeat(w, host);
    if (w->now_ns >= g->connect_by_ns && g->next != NONE)
        next_failed(w, host);
    else if (w->now_ns >= g->connect_by_ns)
        on_link_lost(w, host);
}
