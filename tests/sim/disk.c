/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* The disks, as docs/disks.md has them: the primary's image, dirty map and journal; the standby's
 * redo log and its applier; what a crash of a process leaves, and what a loss of power.
 *
 * Left out: bytes and ranges (an epoch's records are its last write of each block), digests (where
 * the maps cannot be trusted, all is copied), limits. A record of a mark or a copy is written in
 * one step. The sync of an image or a log, too, but when it comes is a matter of chance. */

enum { ALL = (1 << BLOCKS) - 1 };

static struct sim_disk *disk_of(struct world *w, unsigned host)
{
    return &w->hosts[host].disk;
}

static void delta_put(struct delta *d, unsigned block, uint32_t v)
{
    d->mask |= (uint8_t)(1u << block);
    d->v[block] = v;
}

/* `from` comes after what is in *to. */
static void delta_merge(struct delta *to, const struct delta *from)
{
    unsigned b;

    for (b = 0; b < BLOCKS; b++) {
        if (from->mask & (1u << b))
            delta_put(to, b, from->v[b]);
    }
    to->flushed = to->flushed || from->flushed;
}

static void delta_apply(struct sim_disk *d, const struct delta *delta, uint8_t mask)
{
    unsigned b;

    for (b = 0; b < BLOCKS; b++) {
        if (delta->mask & mask & (1u << b))
            d->image[b] = delta->v[b];
    }
}

void disk_sync(struct sim_disk *d)
{
    memcpy(d->safe, d->image, sizeof(d->safe));
}

/* ---- the dirty map ---- */

static void map_begin_sync(struct sim_map *m, uint64_t epoch, uint32_t sync)
{
    m->before |= m->now;
    m->now = 0;
    m->before_epoch = epoch;
    m->next = sync;
}

static void map_cut(struct sim_map *m, uint64_t epoch)
{
    if (m->before || m->next)
        return;
    m->before = m->now;
    m->now = 0;
    m->before_epoch = epoch;
}

static void map_durable(struct sim_map *m, uint64_t epoch)
{
    if (!m->before_epoch || epoch < m->before_epoch)
        return;
    m->before = 0;
    m->before_epoch = 0;
    if (m->next) {
        m->sync = m->next;
        m->next = 0;
        m->trusted = true;
    }
}

/* The session is over: what is not durable by now will not be by its epochs. */
static void map_abort(struct sim_map *m)
{
    m->now |= m->before;
    m->before = 0;
    m->before_epoch = 0;
    m->next = 0;
}

static void map_reset(struct sim_map *m, uint32_t sync)
{
    *m = (struct sim_map){.sync = sync, .trusted = true};
}

/* ---- what survives ---- */

void disk_init(struct world *w, unsigned host)
{
    memset(disk_of(w, host), 0, sizeof(struct sim_disk));
}

static void redo_reset(struct sim_disk *d)
{
    d->n_redo = d->n_redo_safe = d->n_committed = d->n_applied = 0;
    d->apply_done = 0;
}

static void redo_recover(struct world *w, struct sim_disk *d)
{
    unsigned i;

    if (!d->n_redo)
        return;
    cover(w, d->apply_done ? COVER_REDO_TORN : COVER_REDO_REPLAYED);
    for (i = 0; i < d->n_redo && !planted(w, PLANT_NO_REDO); i++) {
        delta_apply(d, &d->redo[i].delta, ALL);
        d->last = d->redo[i].state;
    }
    disk_sync(d);
    redo_reset(d);
}

void disk_open(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);

    redo_recover(w, d);
    map_abort(&d->map);
    d->map.closed = false;
    d->durable = 0;
    d->apply_due = d->held = false;
    d->record_term = 0;
}

void disk_close(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);

    if (!planted(w, PLANT_CLOSE_UNSYNCED))
        disk_sync(d);
    map_abort(&d->map);
    d->map.closed = true;
}

void disk_power_loss(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);
    unsigned lost = d->n_redo - d->n_redo_safe, b;

    if (memcmp(d->image, d->safe, sizeof(d->image)) != 0)
        cover(w, COVER_POWER_LOST_WRITES);
    for (b = 0; b < BLOCKS; b++) {
        if (rng_chance(w, 500000))
            d->image[b] = d->safe[b];
    }
    disk_sync(d);
    if (lost) {
        cover(w, COVER_POWER_LOST_REDO);
        d->n_redo = d->n_redo_safe += (unsigned)rng_below(w, lost + 1);
    }
    if (!d->map.closed && !planted(w, PLANT_MAP_TRUSTED))
        d->map.trusted = false;
}

/* ---- the activation record ---- */

static void record_write(struct world *w, unsigned host, const struct copy_record *record)
{
    disk_of(w, host)->record = *record;
    TRACE(w, "%s disk: record: role %d, term %llu", host_names[host], (int)record->role,
          (unsigned long long)record->term);
}

void disk_record_due(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);
    struct copy_record record = {.role = COPY_PRIMARY, .term = d->record_term};

    if (d->record_term)
        record_write(w, host, &record);
    d->record_term = 0;
}

void disk_record(struct world *w, unsigned host, uint64_t term, bool wait)
{
    disk_of(w, host)->record_term = term;
    if (wait)
        disk_record_due(w, host);
    else
        world_post(w, w->now_ns + rng_log(w, 200 * NS_PER_US, 500 * NS_PER_MS), EV_RECORD,
                   proc_id(host, ROLE_GUARD), 0);
}

/* ---- the guest ---- */

bool disk_write(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);
    struct sim_guard *g = &w->hosts[host].guard;
    struct truth *t = &w->truth;
    unsigned b = (unsigned)rng_below(w, BLOCKS);

    if (d->held)
        cover(w, COVER_HELD_WRITE);
    if (d->held || t->n_writes + 1 == WRITES_MAX)
        return !planted(w, PLANT_HELD_ERROR);
    t->writes[++t->n_writes] = g->vm.state;
    g->vm.memory.disk[b] = d->image[b] = t->n_writes;
    d->map.now |= (uint8_t)(1u << b);
    d->last = g->vm.state;
    if (g->journal.on)
        delta_put(&g->journal.open, b, t->n_writes);
    return true;
}

void disk_flush(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);
    struct sim_guard *g = &w->hosts[host].guard;
    struct truth *t = &w->truth;

    if (d->held || t->n_flushes + 1 == FLUSHES_MAX)
        return;
    disk_sync(d);
    g->vm.memory.flush = ++t->n_flushes;
    memcpy(t->flushes[t->n_flushes], g->vm.memory.disk, sizeof(t->flushes[0]));
    if (g->journal.on)
        g->journal.open.flushed = true;
}

void disk_hold(struct world *w, unsigned host)
{
    disk_of(w, host)->held = !planted(w, PLANT_NO_DISK_HOLD);
    world_post(w, w->now_ns + rng_log(w, 500 * NS_PER_US, 200 * NS_PER_MS), EV_DISK_OPEN,
               proc_id(host, ROLE_GUARD), 0);
}

void disk_release(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);

    disk_sync(d);
    redo_reset(d);
    disk_record_due(w, host);
    d->held = false;
}

/* ---- the primary's journal ---- */

uint8_t disk_resync(struct world *w, unsigned host)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct sim_map *map = &disk_of(w, host)->map;
    uint8_t mask = g->ready_dirty | map->now | map->before;

    g->journal = (struct sim_journal){.on = true};
    if (!map->trusted || !g->ready_sync || g->ready_sync != map->sync) {
        cover(w, COVER_RESYNC_FULL);
        return ALL;
    }
    cover(w, COVER_RESYNC_UNION);
    check_resync(w, host, w->truth.sessions[g->session].standby, mask);
    return mask;
}

void disk_copy_blocks(struct world *w, unsigned host, uint8_t mask)
{
    struct sim_disk *d = disk_of(w, host);
    unsigned b;

    for (b = 0; b < BLOCKS; b++) {
        if (mask & (1u << b))
            delta_put(&w->hosts[host].guard.journal.open, b, d->image[b]);
    }
}

struct delta disk_cut(struct world *w, unsigned host, uint64_t epoch, uint64_t term)
{
    struct sim_guard *g = &w->hosts[host].guard;
    struct sim_journal *j = &g->journal;
    struct sim_map *map = &disk_of(w, host)->map;
    struct delta cut = j->open;

    if (term && epoch == g->core.arm_epoch)
        map_begin_sync(map, epoch, g->session);
    else if (term || planted(w, PLANT_DROP_IN_SEEDING))
        map_cut(map, epoch);
    j->open = (struct delta){.mask = 0};
    if (!j->on || (!cut.mask && !cut.flushed))
        return cut;
    if (j->n == JOURNAL_MAX) {
        world_fail(w, "simulator: too many epochs in the journal");
        return cut;
    }
    j->in_flight[j->n].epoch = epoch;
    j->in_flight[j->n++].delta = cut;
    return cut;
}

void disk_committed(struct world *w, unsigned host, uint64_t epoch)
{
    struct sim_journal *j = &w->hosts[host].guard.journal;
    unsigned n = 0;

    while (n < j->n && j->in_flight[n].epoch <= epoch)
        n++;
    memmove(j->in_flight, j->in_flight + n, (j->n - n) * sizeof(j->in_flight[0]));
    j->n -= n;
}

void disk_durable(struct world *w, unsigned host, uint64_t epoch)
{
    map_durable(&disk_of(w, host)->map, epoch);
}

void disk_rebase(struct world *w, unsigned host)
{
    struct sim_journal *j = &w->hosts[host].guard.journal;
    struct delta all = {.mask = 0};
    unsigned i;

    for (i = 0; i < j->n && !planted(w, PLANT_JOURNAL_LOST); i++)
        delta_merge(&all, &j->in_flight[i].delta);
    delta_merge(&all, &j->open);
    j->open = all;
    j->n = 0;
}

void disk_solo(struct world *w, unsigned host)
{
    w->hosts[host].guard.journal = (struct sim_journal){.on = false};
    map_abort(&disk_of(w, host)->map);
}

/* ---- the standby ---- */

/* While seeding: the records go straight to the image, which is nobody's recovery point. Whoever
 * has a copy with the id that was ours must not take it for that any more. */
static void stage_seed(struct world *w, unsigned host, const struct staged *epoch)
{
    struct copy_record record = {.role = COPY_SYNCING};
    struct sim_disk *d = disk_of(w, host);

    if (d->record.role != COPY_SYNCING) {
        record_write(w, host, &record);
        d->map = (struct sim_map){.trusted = false};
    }
    delta_apply(d, &epoch->delta, ALL);
    d->last = epoch->state;
    if (rng_chance(w, 300000)) {
        disk_sync(d);
        d->durable = epoch->epoch;
    }
}

/* The first epoch with a term is whole: with it the copy is. */
static void become_consistent(struct world *w, unsigned host, const struct staged *epoch)
{
    struct copy_record record = {.role = COPY_STANDBY, .term = epoch->term};
    struct sim_disk *d = disk_of(w, host);

    disk_sync(d);
    record_write(w, host, &record);
    map_reset(&d->map, w->hosts[host].standby.session);
}

static void redo_sync(struct sim_disk *d)
{
    d->n_redo_safe = d->n_redo;
    d->durable = d->redo[d->n_redo - 1].epoch;
}

/* Carries out some blocks of the next entry. */
static void apply_some(struct sim_disk *d, unsigned blocks)
{
    const struct redo_entry *e = &d->redo[d->n_applied];
    unsigned b;

    for (b = 0; b < BLOCKS && blocks; b++) {
        uint8_t bit = (uint8_t)(1u << b);

        if ((e->delta.mask & bit) && !(d->apply_done & bit)) {
            delta_apply(d, &e->delta, bit);
            d->apply_done |= bit;
            blocks--;
        }
    }
    if (!(e->delta.mask & ~d->apply_done)) {
        d->last = e->state;
        d->apply_done = 0;
        d->n_applied++;
    }
}

static void apply_committed(struct sim_disk *d)
{
    if (d->n_redo)
        redo_sync(d);
    while (d->n_applied < d->n_committed)
        apply_some(d, BLOCKS);
}

void disk_stage(struct world *w, unsigned host, const struct staged *epoch)
{
    struct sim_disk *d = disk_of(w, host);

    if (!epoch->term) {
        stage_seed(w, host, epoch);
        return;
    }
    if (d->record.role != COPY_STANDBY || d->record.term != epoch->term)
        become_consistent(w, host, epoch);
    if (d->n_redo == REDO_MAX) { /* it waits for the applier */
        apply_committed(d);
        disk_sync(d);
        redo_reset(d);
    }
    d->redo[d->n_redo++] = (struct redo_entry){epoch->epoch, epoch->state, epoch->delta};
    if (epoch->delta.flushed && !planted(w, PLANT_FLUSH_UNSYNCED))
        redo_sync(d);
}

void disk_commit(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);

    d->n_committed = d->n_redo;
    if (d->n_redo && d->redo[d->n_redo - 1].delta.flushed)
        cover(w, COVER_DISK_EPOCH);
    if (d->apply_due || !d->n_redo)
        return;
    d->apply_due = true;
    world_post(w, w->now_ns + rng_log(w, 100 * NS_PER_US, NS_PER_S), EV_APPLY,
               proc_id(host, ROLE_STANDBY), 0);
}

void disk_apply(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);

    d->apply_due = false;
    if (d->n_applied < d->n_committed) {
        redo_sync(d);
        apply_some(d, 1 + (unsigned)rng_below(w, 4));
    } else if (d->n_redo && d->n_applied == d->n_redo && rng_chance(w, 300000)) {
        disk_sync(d);
        redo_reset(d);
    }
    if (!d->n_redo)
        return;
    d->apply_due = true;
    world_post(w, w->now_ns + rng_log(w, 50 * NS_PER_US, 100 * NS_PER_MS), EV_APPLY,
               proc_id(host, ROLE_STANDBY), 0);
}

void disk_drain(struct world *w, unsigned host)
{
    struct sim_disk *d = disk_of(w, host);

    if (planted(w, PLANT_TAIL_APPLIED))
        d->n_committed = d->n_redo;
    apply_committed(d);
    if (d->n_redo > d->n_committed) {
        cover(w, COVER_TAIL_DROPPED);
        d->n_redo = d->n_redo_safe = d->n_committed;
    }
}

void disk_apply_early(struct world *w, unsigned host, const struct delta *delta)
{
    delta_apply(disk_of(w, host), delta, ALL);
}
