/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* Connections between guards and standbys, as streams of whole messages: in order within one
 * connection, in any order between two. A partition delays what it holds up until it ends, as TCP
 * does; a broken connection loses what was under way from some message on, and each side finds out
 * at a time of its own, or never. */

uint64_t net_delay(struct world *w)
{
    if (rng_chance(w, w->setup.spike))
        return rng_range(w, 50 * NS_PER_MS, 500 * NS_PER_MS);
    return rng_log(w, 50 * NS_PER_US, 5 * NS_PER_MS);
}

bool net_blocked(const struct world *w, unsigned from, unsigned to)
{
    return w->net.blocked_until_ns[from][to] > w->now_ns;
}

/* ---- messages ---- */

static uint32_t msg_new(struct world *w)
{
    uint32_t i = w->net.free_msg;

    if (i) {
        w->net.free_msg = w->net.msgs[--i].next;
        return i;
    }
    if (w->net.n_msgs == MSGS_MAX) {
        world_fail(w, "simulator: too many messages");
        return 0;
    }
    return w->net.n_msgs++;
}

void msg_free(struct world *w, uint32_t index)
{
    w->net.msgs[index].next = w->net.free_msg;
    w->net.free_msg = index + 1;
}

static void way_schedule(struct world *w, uint32_t conn, unsigned side, uint64_t not_before_ns)
{
    struct conn_way *way = &w->net.conns[conn].way[side];
    uint64_t at;

    if (way->due || !way->head)
        return;
    at = w->net.msgs[way->head - 1].ready_at_ns;
    if (at < not_before_ns)
        at = not_before_ns;
    way->due = true;
    world_post(w, at < w->now_ns ? w->now_ns : at, EV_DELIVER, NO_PROC, conn * 2 + side);
}

static uint32_t way_take(struct world *w, struct conn_way *way)
{
    uint32_t i = way->head - 1;

    way->head = w->net.msgs[i].next;
    if (!way->head)
        way->tail = 0;
    return i;
}

/* Loses what is under way from some message on. */
static void way_cut(struct world *w, struct conn_way *way)
{
    uint32_t *link = &way->head, last = 0;

    while (*link && rng_chance(w, 500000)) {
        last = *link;
        link = &w->net.msgs[last - 1].next;
    }
    way->tail = last;
    while (*link) {
        uint32_t i = *link - 1;

        *link = w->net.msgs[i].next;
        msg_free(w, i);
    }
}

/* ---- connections ---- */

int conn_open(struct world *w, unsigned from, unsigned to, enum channel channel, uint32_t session,
              bool resume)
{
    struct msg hello = {.type = MSG_HELLO};
    struct conn *c;
    int i = (int)w->net.n_conns;

    if (i == CONNS_MAX) {
        world_fail(w, "simulator: too many connections");
        return NONE;
    }
    w->net.n_conns++;
    c = &w->net.conns[i];
    memset(c, 0, sizeof(*c));
    c->channel = (uint8_t)channel;
    c->session = session;
    c->resume = resume;
    c->end[0] = (struct conn_end){
        .node = (uint8_t)from,
        .proc = proc_id(from, ROLE_GUARD),
        .life = w->hosts[from].proc[ROLE_GUARD].life,
        .open = true,
    };
    c->end[1] = (struct conn_end){.node = (uint8_t)to, .proc = NO_PROC, .open = true};
    conn_send(w, i, 0, &hello);
    return i;
}

void conn_send(struct world *w, int conn, unsigned side, const struct msg *msg)
{
    struct conn *c;
    struct conn_way *way;
    struct msg *m;
    uint32_t i;

    if (conn == NONE)
        return;
    c = &w->net.conns[conn];
    way = &c->way[side];
    if (c->broken || !c->end[side].open)
        return;
    i = msg_new(w);
    m = &w->net.msgs[i];
    *m = *msg;
    m->conn = (uint32_t)conn;
    m->side = (uint8_t)!side;
    m->next = 0;
    m->ready_at_ns = w->now_ns + net_delay(w);
    if (m->ready_at_ns < way->last_ready_ns)
        m->ready_at_ns = way->last_ready_ns;
    way->last_ready_ns = m->ready_at_ns;
    if (way->tail)
        w->net.msgs[way->tail - 1].next = i + 1;
    else
        way->head = i + 1;
    way->tail = i + 1;
    way_schedule(w, (uint32_t)conn, side, 0);
}

void conn_close(struct world *w, int conn, unsigned side, bool fin)
{
    struct msg msg = {.type = MSG_FIN};

    if (conn == NONE)
        return;
    if (fin)
        conn_send(w, conn, side, &msg);
    w->net.conns[conn].end[side].open = false;
}

static void find_out(struct world *w, unsigned conn, unsigned side, uint64_t within_ns)
{
    const struct conn_end *end = &w->net.conns[conn].end[side];

    if (end->open && end->proc != NO_PROC)
        world_post(w, w->now_ns + rng_log(w, NS_PER_MS, within_ns), EV_CONN_LOST, end->proc, conn);
}

void conn_break(struct world *w, unsigned conn)
{
    struct conn *c = &w->net.conns[conn];

    if (c->broken)
        return;
    TRACE(w, "net: connection %u breaks", conn);
    c->broken = true;
    way_cut(w, &c->way[0]);
    way_cut(w, &c->way[1]);
    /* Who sends bulk finds out by himself (a limit to how long TCP may retry); of others nobody can
     * say. Heartbeats tell those who use the control channel. */
    if (c->channel == CHANNEL_DATA || rng_chance(w, 600000))
        find_out(w, conn, 0, 2 * NS_PER_S);
    if (rng_chance(w, 600000))
        find_out(w, conn, 1, 2 * NS_PER_S);
}

void conn_process_gone(struct world *w, uint8_t proc, bool host)
{
    uint32_t life = proc_get(w, proc)->life;
    unsigned i, side;

    for (i = 0; i < w->net.n_conns; i++) {
        for (side = 0; side < 2; side++) {
            struct conn *c = &w->net.conns[i];

            if (!c->end[side].open || c->end[side].proc != proc || c->end[side].life != life)
                continue;
            conn_close(w, (int)i, side, !host);
            if (!host)
                continue;
            c->broken = true;
            if (c->channel == CHANNEL_DATA || rng_chance(w, 500000))
                find_out(w, i, !side, 2 * NS_PER_S);
        }
    }
}

/* ---- delivery ---- */

static void deliver_to_host(struct world *w, struct conn *c, uint32_t i)
{
    struct msg *m = &w->net.msgs[i];

    if (m->type == MSG_HELLO && w->hosts[c->end[1].node].up) {
        host_hello(w, c->end[1].node, i);
        return;
    }
    c->end[1].open = false; /* nobody there, or the guard changed its mind */
    if (m->type == MSG_HELLO && rng_chance(w, 500000))
        find_out(w, m->conn, 0, 100 * NS_PER_MS);
    msg_free(w, i);
}

void net_deliver(struct world *w, uint32_t arg)
{
    uint32_t conn = arg / 2;
    unsigned side = arg % 2, from, to;
    struct conn *c = &w->net.conns[conn];
    struct conn_end *end = &c->end[!side];
    struct event ev = {.type = EV_MSG};

    c->way[side].due = false;
    if (!c->way[side].head)
        return;
    from = c->end[side].node;
    to = end->node;
    if (net_blocked(w, from, to)) {
        way_schedule(w, conn, side, w->net.blocked_until_ns[from][to] + net_delay(w));
        return;
    }
    if (end->proc == NO_PROC && w->hosts[to].frozen_until_ns > w->now_ns) {
        way_schedule(w, conn, side, w->hosts[to].frozen_until_ns);
        return;
    }
    ev.arg = way_take(w, &c->way[side]);
    way_schedule(w, conn, side, 0);
    if (!end->open) {
        msg_free(w, ev.arg);
    } else if (end->proc == NO_PROC) {
        deliver_to_host(w, c, ev.arg);
    } else {
        ev.at_ns = w->now_ns;
        ev.proc = end->proc;
        ev.life = end->life;
        proc_handle(w, &ev);
    }
}
