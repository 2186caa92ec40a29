/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "io/log.h"

/* Seeding: the first full copy, made while the VM runs. First the disks (resync.c), then memory:
 * round 0 sends every page that the RAM file holds (holes are zero on both sides), later rounds
 * what was written meanwhile, until so little is left that a checkpoint's pause can take it. A page
 * that is written while it is copied is dirty and comes again, so nothing torn survives. Seeding
 * epochs carry no term: nobody can activate them.
 *
 * The loop only lists pages; the sender copies them when it is their turn. So a copy may be newer
 * than the epoch that it goes with, which is harmless as long as all of seeding's epochs are
 * acknowledged before the first checkpoint is cut (end_round). Copying here would take a core away
 * from all other guards, with real-time priority: staging memory that is used for the first time is
 * cleared by the kernel first, a millisecond for every 100 pages or so.
 *
 * Works in small steps between the loop's other events, and stops when staging memory or
 * acknowledgements run out. */

enum {
    EPOCH_PAGES = 4096,  /* pages per seeding epoch */
    STEP_CHUNKS = 4,     /* chunks per step: some microseconds */
    ROUNDS_MAX = 8,      /* then the guest is simply fast */
    LITTLE_PAGES = 1024, /* dirty: seeding is done */
};

bool seed_may_cut(const struct guard *g)
{
    return g->seed.last_epoch - g->core.committed < SEEDS_IN_FLIGHT;
}

/* The next run of pages to send, at most `room` long. False at the end of the round. */
static bool next_run(struct guard *g, uint64_t room, struct page_run *ret_run)
{
    struct seed *s = &g->seed;

    if (s->round > 0)
        return run_list_next(&s->dirty, &s->next, room, ret_run);
    if (s->next_page >= s->extent_end) {
        off_t data = lseek(g->body->ram_fd, (off_t)(s->next_page * VM_PAGE_BYTES), SEEK_DATA);
        off_t hole = data < 0 ? -1 : lseek(g->body->ram_fd, data, SEEK_HOLE);

        if (hole < 0)
            return false; /* nothing but a hole up to the end */
        s->next_page = (uint64_t)data / VM_PAGE_BYTES;
        s->extent_end = ((uint64_t)hole + VM_PAGE_BYTES - 1) / VM_PAGE_BYTES;
    }
    ret_run->first = s->next_page;
    ret_run->count = s->extent_end - s->next_page;
    if (ret_run->count > room)
        ret_run->count = room;
    s->next_page += ret_run->count;
    s->done_pages = s->next_page;
    return true;
}

/* Lists a chunk's pages. False at the end of the round. */
static bool fill(struct guard *g, struct stage_chunk *chunk)
{
    struct page_run run;
    uint64_t i;

    chunk->ram = g->body->ram;
    while (chunk->n_pages < STAGE_CHUNK_PAGES) {
        if (!next_run(g, STAGE_CHUNK_PAGES - chunk->n_pages, &run))
            return false;
        for (i = 0; i < run.count; i++)
            chunk->number[chunk->n_pages++] = run.first + i;
    }
    return true;
}

static void end_epoch(struct guard *g)
{
    if (g->seed.epoch_open) {
        sender_end(g->sender);
        pace_seed_cut(g, g->seed.last_epoch, g->seed.epoch_pages);
    }
    g->seed.epoch_open = false;
}

/* Takes what is dirty, to be sent next. */
static bool begin_round(struct guard *g)
{
    struct seed *s = &g->seed;

    s->dirty.n = 0;
    s->next = (struct run_cursor){0};
    s->round_done = false;
    s->round++;
    return g->body->ops->dirty_take(g->body->vm, &s->dirty) >= 0;
}

/* All of the last round is acknowledged: another round, or done. */
static void end_round(struct guard *g)
{
    struct seed *s = &g->seed;
    uint64_t dirty = 0;

    if (g->body->ops->dirty_count(g->body->vm, g->body->n_pages, &dirty) < 0) {
        link_broken(g, "the dirty pages cannot be counted");
        return;
    }
    if (dirty > LITTLE_PAGES && s->round < ROUNDS_MAX) {
        fault_point("guard.seed-round");
        if (!begin_round(g))
            link_broken(g, "the dirty pages cannot be read");
        return;
    }
    s->done_pages = s->total_pages;
    seed_stop(g);
    fault_point("guard.seeded");
    guard_simple_event(g, PEV_SEEDED);
}

void seed_begin_epoch(struct guard *g)
{
    uint64_t term, epoch = primary_cut(&g->core, &term);

    g->seed.last_epoch = epoch;
    gate_cut(&g->gate, epoch);
    fault_point("guard.seed-epoch");
    if (sender_begin(g->sender, epoch, term, resync_cut(g, epoch, term)) < 0)
        link_broken(g, "the sender does not take the epoch");
}

/* Opens an epoch if none is open. False: not now. */
static bool need_epoch(struct guard *g)
{
    struct seed *s = &g->seed;

    if (s->epoch_open)
        return true;
    if (!seed_may_cut(g))
        return false;
    s->epoch_open = true;
    s->epoch_pages = 0;
    seed_begin_epoch(g);
    return true;
}

/* One step. False: wait for staging memory or acknowledgements. */
static bool step(struct guard *g)
{
    struct seed *s = &g->seed;
    unsigned i;

    if (!resync_step(g))
        return false;
    if (s->round_done) {
        end_epoch(g);
        if (g->core.committed < s->last_epoch)
            return false;
        end_round(g);
        return s->active;
    }
    fault_point("guard.seeding");
    for (i = 0; i < STEP_CHUNKS; i++) {
        struct stage_chunk *chunk = need_epoch(g) ? stage_pool_get(g->pool) : NULL;

        if (!chunk)
            return false;
        s->round_done = !fill(g, chunk);
        s->epoch_pages += chunk->n_pages;
        sender_chunk(g->sender, chunk);
        if (s->epoch_pages >= EPOCH_PAGES || s->round_done) {
            end_epoch(g);
            return true;
        }
    }
    return true;
}

static int on_step(sd_event_source *source, void *user)
{
    struct guard *g = user;

    if (g->seed.active && !g->link.failed && step(g))
        (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
    return 0;
}

void seed_continue(struct guard *g)
{
    if (g->seed.active)
        (void)sd_event_source_set_enabled(g->seed.source, SD_EVENT_ONESHOT);
}

int seed_track(struct guard *g, struct err *err)
{
    int r = g->body->ops->track(g->body->vm, err);

    if (r < 0)
        return r;
    r = g->body->ops->dirty_take(g->body->vm, &g->seed.dirty);
    g->seed.dirty.n = 0; /* forgotten */
    return r < 0 ? err_sys(err, r, "dirty pages") : 0;
}

void seed_begin(struct guard *g)
{
    struct seed *s = &g->seed;
    struct err err;
    int r;

    r = seed_track(g, &err); /* round 0 sends everything anyway */
    if (r >= 0 && !s->source) {
        r = sd_event_add_defer(g->event, &s->source, on_step, g);
        if (r >= 0)
            r = sd_event_source_set_priority(s->source, PRIORITY_SEED);
        if (r < 0)
            (void)err_sys(&err, r, "event loop");
    }
    if (r < 0) {
        log_error("cannot seed: %s", err.text);
        link_broken(g, err.text);
        return;
    }
    s->active = true;
    fault_point("guard.seed-begin");
    s->round = 0;
    s->round_done = false;
    s->next_page = s->extent_end = s->done_pages = 0;
    s->epoch_open = false;
    s->last_epoch = g->core.committed;
    s->total_pages = g->body->n_pages;
    resync_begin(g);
    seed_continue(g);
}

void seed_stop(struct guard *g)
{
    end_epoch(g);
    g->seed.active = false;
    if (g->seed.source)
        (void)sd_event_source_set_enabled(g->seed.source, SD_EVENT_OFF);
}
