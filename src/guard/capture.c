/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/fault.h"
#include "io/log.h"

/* One epoch's cut: the VM is stopped, its device state comes out of the hypervisor, the dirty pages
 * are copied to the staging memory, the VM goes on. Encoding and sending are the sender's business
 * and cost no pause.
 *
 *   IDLE -> STOPPING -> COPYING -> WAITING -> RESUMING -> IDLE
 *                '----> FROZEN -----^
 *
 * FROZEN: isolated, and the gate is full; the VM stands still until it can go on.
 *
 * WAITING ends at once, unless a flush was answered without a sync and may have been the guest's,
 * or the VM is being handed over to its standby: then it stays stopped.
 *
 * When the staging memory is full the copy waits for the sender, with the VM stopped: that is how
 * a guest that dirties faster than the link carries is throttled.
 *
 * Pages that were marked clean must reach the standby or be sent again. Each cut epoch's pages are
 * therefore remembered until it is acknowledged; when the link breaks in between and resumes, they
 * make up the carry of the next epoch, which so covers all the lost ones. An epoch that is being
 * copied when that happens is among the lost ones, or, when the VM has gone solo, among the
 * forgotten ones. */

/* Appends a run, which fits, to a chunk. */
static void copy_run(struct guard *g, struct stage_chunk *chunk, struct page_run run)
{
    uint64_t i;

    assert(run.count <= STAGE_CHUNK_PAGES - chunk->n_pages);
    memcpy(chunk->bytes + (size_t)chunk->n_pages * STAGE_PAGE_BYTES,
           g->body->ram + run.first * VM_PAGE_BYTES, run.count * VM_PAGE_BYTES);
    for (i = 0; i < run.count; i++)
        chunk->number[chunk->n_pages++] = run.first + i;
}

/* Pages were marked clean that are neither on their way nor remembered: this epoch must never be
 * completed, and this session never resumed. */
static void torn(struct guard *g, const char *why)
{
    g->capture.torn = true;
    g->link.poisoned = true;
    link_broken(g, why);
}

/* Makes the list of the epoch's pages: the carry and the dirty ones. */
static void take(struct guard *g)
{
    struct capture *c = &g->capture;
    struct run_list empty = c->current;
    int r;

    c->current = c->carry;
    c->carry = empty;
    c->carry.n = 0;
    c->next = (struct run_cursor){0};
    r = g->body->ops->dirty_take(g->body->vm, &c->current);
    if (r == -ESRCH) /* its end, reported soon, is for a standby to hear: the link must live */
        c->torn = true;
    else if (r < 0)
        torn(g, "the dirty pages cannot be read");
}

/* Fills one chunk from the list. False when everything is copied. */
static bool fill_chunk(struct guard *g, struct stage_chunk *chunk)
{
    struct capture *c = &g->capture;
    struct page_run run;

    while (chunk->n_pages < STAGE_CHUNK_PAGES) {
        if (!run_list_next(&c->current, &c->next, STAGE_CHUNK_PAGES - chunk->n_pages, &run))
            return false;
        copy_run(g, chunk, run);
        c->n_pages += run.count;
    }
    return true;
}

static void order_resume(struct guard *g)
{
    struct err err;

    g->capture.phase = CAPTURE_RESUMING;
    disks_phase(g->body->disks, DISK_RUNNING);
    if (g->body->ops->resume(g->body->vm, &err) < 0)
        log_error("resume: %s", err.text); /* the hypervisor's end will be reported */
    fault_point("guard.resumed");
}

/* The pages are copied: the epoch is completed with its device state. */
static void close_epoch(struct guard *g)
{
    struct capture *c = &g->capture;
    uint64_t now = clock_now_ns();

    if (!c->epoch_open)
        return;
    c->epoch_open = false;
    c->dirty_pages = 0;
    if (sender_state(g->sender, c->state.format, c->state.bytes, c->state.n_bytes) < 0)
        torn(g, "the sender does not take the device state");
    if (!c->torn)
        sender_end(g->sender);
    fault_point("guard.closed");
    controller_cut(&g->controller, now);
    stats_epoch(&g->stats, now, now - c->begun_ns - c->timing.stop_ns, c->n_pages);
}

/* Lets the VM run, unless there is a reason to wait. */
static void go_on(struct guard *g)
{
    struct capture *c = &g->capture;

    c->phase = CAPTURE_WAITING;
    if (c->flush != FLUSH_CLEAR)
        return;
    if (g->core.handing && g->core.hand_epoch == c->epoch)
        close_epoch(g); /* the last one here */
    else
        order_resume(g);
}

/* ---- flushes (docs/disks.md, "Flush") ---- */

static int sync_disks(void *user)
{
    const struct guard *g = user;

    fault_point("guard.sync-disks");
    return disks_sync(g->body->disks);
}

static void on_synced(void *user, int result)
{
    struct guard *g = user;

    g->capture.flush = FLUSH_CLEAR;
    if (result < 0) {
        /* The guest was told that it is safe: it must not go on here believing that. */
        (void)snprintf(g->why_ended, sizeof(g->why_ended), "the disks cannot be synced: %s",
                       strerror(-result));
        log_error("%s", g->why_ended);
        g->body->ops->kill(g->body->vm);
    } else if (g->capture.phase == CAPTURE_WAITING) {
        go_on(g);
    }
}

static void sync_disks_soon(struct guard *g)
{
    g->capture.flush = FLUSH_SYNCING;
    if (background_run(g->body->disks->background, sync_disks, on_synced, g) < 0)
        on_synced(g, -ENOMEM);
}

static void on_guest_flushes(void *user, const uint64_t *flushes)
{
    struct guard *g = user;
    struct capture *c = &g->capture;

    if (c->flush != FLUSH_ASKING)
        return;
    c->flush = FLUSH_CLEAR;
    if (disks_owe_sync(g->body->disks, flushes)) {
        sync_disks_soon(g);
    } else if (c->phase == CAPTURE_WAITING) {
        go_on(g);
    }
}

/* The VM stands still: was a flush answered that nobody has looked into? */
static void check_flushes(struct guard *g)
{
    struct err err;

    if (!disks_deferred(g->body->disks))
        return;
    g->capture.flush = FLUSH_ASKING;
    fault_point("guard.flush-ask");
    if (g->body->ops->guest_flushes(g->body->vm, &err) < 0)
        on_guest_flushes(g, NULL);
}

/* ---- the epoch ---- */

/* All is copied: the epoch's pages are remembered until it is acknowledged. */
static void remember(struct guard *g)
{
    struct capture *c = &g->capture;
    struct in_flight *slot = &c->ring[c->n_in_flight];
    struct run_list list = slot->runs;

    if (c->fate == EPOCH_FORGOTTEN)
        return;
    if (c->fate == EPOCH_REBASED) {
        if (run_list_append(&c->carry, &c->current) < 0)
            torn(g, "out of memory for the list of dirty pages");
        return;
    }
    slot->epoch = c->epoch;
    slot->runs = c->current;
    c->n_in_flight++;
    c->current = list;
}

/* Copies what is dirty as far as the staging memory goes, then lets the VM run. */
static void copy(struct guard *g)
{
    struct capture *c = &g->capture;
    bool more = true;

    while (more) {
        struct stage_chunk *chunk = stage_pool_get(g->pool);

        if (!chunk)
            return; /* capture_continue() when the sender has given some back */
        more = fill_chunk(g, chunk);
        fault_point("guard.copying");
        sender_chunk(g->sender, chunk);
        if (c->phase != CAPTURE_COPYING)
            return;
    }
    remember(g);
    fault_point("guard.copied");
    /* What the guest sent up to here was sent before this checkpoint: it covers it. */
    output_take(g->output);
    gate_cut(&g->gate, c->epoch);
    fault_point("guard.cut");
    go_on(g);
}

/* The VM stands still and may be cut: numbers the epoch and starts to fill it. */
static void open_epoch(struct guard *g, const struct hyp_state *state)
{
    struct capture *c = &g->capture;

    c->phase = CAPTURE_COPYING;
    c->epoch_open = true;
    c->torn = false;
    c->fate = EPOCH_IN_FLIGHT;
    c->epoch = primary_cut(&g->core, &c->term);
    c->n_pages = 0;
    c->state = *state; /* its bytes stay until the next checkpoint */
    if (sender_begin(g->sender, c->epoch, c->term, resync_cut(g, c->epoch, c->term)) < 0)
        torn(g, "the sender does not take the epoch");
    take(g);
    copy(g);
}

static bool may_cut(const struct guard *g)
{
    return primary_may_cut(&g->core) && g->capture.n_in_flight < IN_FLIGHT_MAX;
}

static bool must_freeze(const struct guard *g)
{
    return g->core.state == PRIMARY_ISOLATED && output_full(g->output);
}

static void on_checkpoint(void *user, const struct hyp_state *state,
                          const struct hyp_timing *timing)
{
    struct guard *g = user;
    struct capture *c = &g->capture;

    if (c->phase != CAPTURE_STOPPING)
        return;
    c->timing = *timing;
    c->failures = 0;
    check_flushes(g);
    if (may_cut(g)) {
        fault_point("guard.paused");
        open_epoch(g, state);
    } else if (must_freeze(g)) {
        log_warning("isolated, and the output gate is full: the VM is paused");
        c->phase = CAPTURE_FROZEN;
    } else {
        go_on(g);
    }
}

static void on_stopped(void *user)
{
    struct guard *g = user;

    g->capture.late_at_ns = CORE_NEVER;
    disks_phase(g->body->disks, DISK_STOPPED);
}

static void on_running(void *user)
{
    struct guard *g = user;

    if (g->capture.phase != CAPTURE_RESUMING)
        return;
    g->capture.phase = CAPTURE_IDLE;
    fault_point("guard.running");
    close_epoch(g);
}

static void on_failure(void *user, const char *why, bool running)
{
    struct guard *g = user;
    struct capture *c = &g->capture;

    log_warning("checkpoint failed: %s", why);
    c->phase = CAPTURE_IDLE;
    if (running && disks_deferred(g->body->disks))
        sync_disks_soon(g); /* too late to ask whose flush that was */
    disks_phase(g->body->disks, DISK_RUNNING);
    c->retry_at_ns = clock_now_ns() + 100 * NS_PER_MS;
    if (!running) {
        (void)snprintf(g->why_ended, sizeof(g->why_ended), "the VM does not go on: %s", why);
        g->body->ops->kill(g->body->vm);
    } else if (++c->failures >= CHECKPOINT_FAILURES_MAX) {
        (void)snprintf(g->link.why, sizeof(g->link.why), "checkpoints fail: %s", why);
        link_broken(g, g->link.why);
    }
}

static void on_exit_(void *user, enum hyp_exit how, const char *detail)
{
    struct guard *g = user;

    log_info("hypervisor: %s", detail);
    if (!g->why_ended[0])
        (void)snprintf(g->why_ended, sizeof(g->why_ended), "%s", detail);
    g->capture.phase = CAPTURE_IDLE;
    g->crashed = how != HYP_EXIT_GUEST_SHUTDOWN && g->core.state != PRIMARY_STOPPING && !g->finish;
    guard_simple_event(g, how == HYP_EXIT_GUEST_SHUTDOWN ? PEV_STOP : PEV_VM_DIED);
}

const struct hyp_callbacks capture_callbacks = {
    .on_stopped = on_stopped,
    .on_guest_flushes = on_guest_flushes,
    .on_checkpoint = on_checkpoint,
    .on_running = on_running,
    .on_failure = on_failure,
    .on_exit = on_exit_,
};

void capture_begin(struct guard *g)
{
    struct capture *c = &g->capture;
    struct err err;

    if (c->phase != CAPTURE_IDLE || c->flush != FLUSH_CLEAR)
        return; /* the end of either brings us back */
    c->begun_ns = clock_now_ns();
    if (c->begun_ns < c->retry_at_ns)
        return;
    disks_phase(g->body->disks, DISK_STOPPING);
    if (g->body->ops->checkpoint(g->body->vm, &err) < 0) {
        disks_phase(g->body->disks, DISK_RUNNING);
        c->retry_at_ns = c->begun_ns + 10 * NS_PER_MS; /* the last one is being cleared away */
        log_debug("checkpoint: %s", err.text);
        return;
    }
    c->phase = CAPTURE_STOPPING;
    fault_point("guard.stopping");
    c->late_at_ns = c->begun_ns + STOP_MS * NS_PER_MS;
}

uint64_t capture_deadline(const struct guard *g)
{
    return g->capture.phase == CAPTURE_STOPPING ? g->capture.late_at_ns : CORE_NEVER;
}

void capture_release(struct guard *g)
{
    if (g->capture.phase == CAPTURE_WAITING)
        go_on(g);
}

void capture_continue(struct guard *g)
{
    struct capture *c = &g->capture;

    if (capture_deadline(g) <= clock_now_ns()) {
        c->late_at_ns = CORE_NEVER;
        disks_let_flushes_go(g->body->disks);
    }
    if (c->phase == CAPTURE_COPYING)
        copy(g);
    else if (c->phase == CAPTURE_FROZEN && !must_freeze(g))
        go_on(g);
    else if (c->phase == CAPTURE_IDLE && must_freeze(g))
        capture_begin(g);
}

void capture_committed(struct guard *g, uint64_t epoch)
{
    struct capture *c = &g->capture;
    unsigned done = 0, i;
    struct in_flight first;

    while (done < c->n_in_flight && c->ring[done].epoch <= epoch)
        done++;
    /* Rotates, so that the lists' memory is used again. */
    for (i = 0; done && i < done; i++) {
        first = c->ring[0];
        memmove(&c->ring[0], &c->ring[1], (IN_FLIGHT_MAX - 1) * sizeof(c->ring[0]));
        c->ring[IN_FLIGHT_MAX - 1] = first;
    }
    c->n_in_flight -= done;
}

void capture_rebase(struct guard *g)
{
    struct capture *c = &g->capture;
    unsigned i;

    fault_point("guard.rebase");
    for (i = 0; i < c->n_in_flight; i++) {
        if (run_list_append(&c->carry, &c->ring[i].runs) < 0)
            torn(g, "out of memory for the list of dirty pages");
    }
    c->n_in_flight = 0;
    c->fate = EPOCH_REBASED;
    resync_rebase(g);
}

void capture_forget(struct guard *g)
{
    g->capture.n_in_flight = 0;
    g->capture.carry.n = 0;
    g->capture.fate = EPOCH_FORGOTTEN;
    resync_end(g);
}

void capture_free(struct guard *g)
{
    unsigned i;

    for (i = 0; i < IN_FLIGHT_MAX; i++)
        run_list_free(&g->capture.ring[i].runs);
    run_list_free(&g->capture.carry);
    run_list_free(&g->capture.current);
}
