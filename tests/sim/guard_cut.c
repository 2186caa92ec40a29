/* SPDX-License-Identifier: Apache-2.0 */
#include "sim.h"

/* A guard's epochs and frames, in the order of src/guard/capture.c, seed.c and output.c: the VM is
 * stopped, the epoch gets its number, the pages are copied, the frames that the VM had sent so far
 * are taken, the stamp moves on, the VM resumes, the epoch goes out. */

enum { EPOCH_PAGES = 3000, IN_FLIGHT_MIB = 64, HELD_LOW = 64 };

void cut_init(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct controller_params params = {
        .interval_min_ns = w->setup.interval_min_ns,
        .interval_max_ns = w->setup.interval_max_ns,
        .slowdown_permille = w->setup.max_slowdown,
        .epoch_pages_max = EPOCH_PAGES,
        .in_flight_bytes_max = IN_FLIGHT_MIB << 20,
    };

    g->cut = CUT_IDLE;
    g->cut_conn = NONE;
    g->last_cut = g->sent_before = g->dirty_seen = 0;
    g->rebase = g->seeding = false;
    g->held_first = g->n_held = g->n_decided = 0;
    g->stamp_later = 0;
    g->throttled = false;
    controller_init(&g->controller, &params, w->now_ns);
}

/* ---- frames ---- */

static struct frame *held(struct sim_guard *g, unsigned i)
{
    return &g->held[(g->held_first + i) % HELD_MAX];
}

void frames_read(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct vm *vm = &g->vm;
    unsigned i;

    if (!vm->exists)
        return;
    for (i = 0; i < vm->n_socket; i++) {
        vm->socket[i].stamp = g->gate.open_epoch;
        *held(g, g->n_held++) = vm->socket[i];
    }
    vm->n_socket = 0;
    if (g->n_held >= HELD_FULL && !vm->stuffed) {
        vm->stuffed = true;
        cover(w, COVER_STUFFED);
    }
    if (g->stamp_later)
        gate_cut(&g->gate, g->stamp_later);
    g->stamp_later = 0;
}

static void write_frames(struct world *w, unsigned host, unsigned n, bool late)
{
    struct sim_guard *g = &w->hosts[host].guard;

    while (n--) {
        check_emit(w, host, held(g, 0), late);
        g->held_first = (g->held_first + 1) % HELD_MAX;
        g->n_held--;
    }
    if (g->vm.stuffed && g->n_held <= HELD_LOW) {
        g->vm.stuffed = false;
        vm_resume(w, host);
    }
}

bool frames_release(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    unsigned n = 0;

    while (n < g->n_held && gate_may_leave(&g->gate, held(g, n)->stamp))
        check_release(w, host, held(g, n++));
    if (n && fault_midway(w, host)) {
        g->n_decided = n;
        return false;
    }
    write_frames(w, host, n, false);
    return true;
}

void frames_write_decided(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    unsigned n = planted(w, PLANT_THAW_WRITES_ALL) && g->n_decided ? g->n_held : g->n_decided;

    g->n_decided = 0;
    write_frames(w, host, n, true);
}

/* ---- epochs ---- */

/* Numbers an epoch of the VM as it stands. */
static struct msg take_epoch(struct world *w, unsigned host, uint64_t base)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct msg msg = {
        .type = MSG_PART,
        .base = base,
        .state = g->vm.state,
        .memory = g->vm.memory,
        .parts = (uint32_t)rng_range(w, 1, 2),
    };

    msg.epoch = g->last_cut = primary_cut(&g->core, &msg.term);
    msg.delta = disk_cut(w, host, msg.epoch, msg.term);
    return msg;
}

static void send_epoch(struct world *w, unsigned host, struct msg msg)
{
    struct sim_guard *g = &w->hosts[host].guard;
    uint32_t i;

    for (i = 0; i < msg.parts; i++)
        conn_send(w, g->data, 0, &msg);
    msg.type = MSG_END;
    conn_send(w, g->data, 0, &msg);
    if (planted(w, PLANT_RELEASE_ON_SENT) && msg.term) {
        g->gate.committed = msg.epoch;
        (void)frames_release(w, host); /* no schedule of this plant freezes here */
    }
}

unsigned in_flight(const struct sim_guard *g)
{
    uint64_t done = g->core.committed > g->sent_before ? g->core.committed : g->sent_before;

    return g->last_cut > done ? (unsigned)(g->last_cut - done) : 0;
}

static void controller_input(const struct sim_guard *g, struct controller_input *ret_in)
{
    const struct frame *newest = &g->held[(g->held_first + g->n_held + HELD_MAX - 1) % HELD_MAX];

    *ret_in = (struct controller_input){
        .frames_wait = g->gate.holding && g->n_held && newest->stamp == g->gate.open_epoch,
        .dirty_pages = g->dirty_seen,
    };
}

static bool may_cut(const struct sim_guard *g)
{
    return g->cut == CUT_IDLE && !g->throttled && g->vm.exists && primary_may_cut(&g->core) &&
           in_flight(g) < CONTROLLER_IN_FLIGHT_MAX;
}

uint64_t cut_deadline(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct controller_input in;
    uint64_t at, probe_at;

    if (!may_cut(g))
        return NEVER;
    controller_input(g, &in);
    at = controller_deadline(&g->controller, &in, w->now_ns);
    probe_at = controller_probe_at(&g->controller);
    return at < probe_at ? at : probe_at;
}

static void resume_vm(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    g->cut = CUT_IDLE;
    if (g->stands)
        return;
    if (!primary_may_cut(&g->core))
        controller_forget(&g->controller, w->now_ns);
    g->throttled = controller_holds(&g->controller, w->now_ns);
    if (g->throttled) {
        cover(w, COVER_THROTTLED);
        return;
    }
    g->vm.paused = false;
    vm_resume(w, host);
}

void cut_if_due(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct controller_input in;

    if (g->throttled)
        resume_vm(w, host);
    if (!may_cut(g))
        return;
    if (w->now_ns >= controller_probe_at(&g->controller)) {
        g->dirty_seen = g->vm.dirty_pages;
        controller_probed(&g->controller, g->dirty_seen, w->now_ns, 50 * NS_PER_US);
    }
    controller_input(g, &in);
    if (g->core.arm_epoch && g->core.state != PRIMARY_HANDING &&
        !controller_due(&g->controller, &in, w->now_ns))
        return;
    g->cut = CUT_STOPPING;
    g->cut_at_ns = w->now_ns;
    g->vm.paused = true;
    world_post(w, w->now_ns + rng_log(w, 200 * NS_PER_US, 2 * NS_PER_MS), EV_CUT_OPEN,
               proc_id(host, ROLE_GUARD), 0);
}

void cut_open(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    uint64_t copy_ns = rng_log(w, 500 * NS_PER_US, 12 * NS_PER_MS);

    if (!g->vm.exists)
        return;
    if (!primary_may_cut(&g->core)) {
        resume_vm(w, host);
        return;
    }
    if (rng_chance(w, w->setup.slow_copy))
        copy_ns = rng_range(w, 50 * NS_PER_MS, 300 * NS_PER_MS); /* waits for staging memory */
    g->cut = CUT_COPYING;
    g->cut_conn = g->data;
    g->cut_msg = take_epoch(w, host, g->rebase ? g->core.committed : g->last_cut);
    g->rebase = false;
    g->stands = g->core.hand_epoch == g->cut_msg.epoch;
    g->cut_pages = g->vm.dirty_pages;
    g->vm.dirty_pages = g->dirty_seen = 0;
    world_post(w, w->now_ns + copy_ns, EV_CUT_DONE, proc_id(host, ROLE_GUARD), 0);
}

void cut_done(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct controller_epoch epoch = {
        .epoch = g->cut_msg.epoch,
        .pause_ns = w->now_ns - g->cut_at_ns,
        .busy_permille = (uint32_t)rng_below(w, 1001),
        .bytes = g->cut_pages * WIRE_PAGE_BYTES,
        .in_flight = g->up && g->data == g->cut_conn,
    };
    bool go_on;

    if (!g->vm.exists)
        return;
    frames_read(w, host);
    if (g->seeding)
        cover(w, COVER_CUT_IN_SEEDING);
    if (planted(w, PLANT_STAMP_LATE))
        g->stamp_later = g->cut_msg.epoch;
    else
        gate_cut(&g->gate, g->cut_msg.epoch);
    if (g->up && g->data == g->cut_conn) {
        send_epoch(w, host, g->cut_msg);
    } else if (g->core.pair_term == g->cut_msg.term) {
        /* The link broke under it: it is among the lost ones. */
        if (g->up)
            cover(w, COVER_CUT_LOST);
        g->rebase = true;
    }
    controller_cut(&g->controller, &epoch, w->now_ns);
    resume_vm(w, host);
    go_on = frames_release(w, host);
    if (go_on) {
        cut_if_due(w, host);
        guard_set_timer(w, host);
    }
}

static void seed_once(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    uint8_t blocks = g->to_copy;
    struct msg msg;

    if (--g->seeds_left)
        blocks &= (uint8_t)rng_below(w, 1u << BLOCKS);
    g->to_copy &= (uint8_t)~blocks;
    disk_copy_blocks(w, host, blocks);
    msg = take_epoch(w, host, g->last_cut);
    g->last_seed = msg.epoch;
    gate_cut(&g->gate, g->last_seed);
    send_epoch(w, host, msg);
}

void cut_seed(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;

    if (!g->seeding)
        return;
    if (w->hosts[host].disk.held) {
        world_post(w, w->now_ns + NS_PER_MS, EV_SEED, proc_id(host, ROLE_GUARD), 0);
    } else if (g->seeds_left) {
        seed_once(w, host);
        world_post(w, w->now_ns + rng_log(w, NS_PER_MS, 30 * NS_PER_MS), EV_SEED,
                   proc_id(host, ROLE_GUARD), 0);
    } else if (w->setup.seed_ahead || g->core.committed >= g->last_seed) {
        g->seeding = false;
        guard_simple_step(w, host, PEV_SEEDED);
    }
}
