/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <errno.h>
#include <string.h>

#include "base/fault.h"
#include "io/log.h"

/* One epoch's cut. What is dirty is copied in three passes, so that the last one, which is all that
 * the VM has to stand still for by itself, finds little:
 *
 *   AHEAD     the VM runs
 *   STOPPING  the VM stands still, and the hypervisor is writing its device state
 *   COPYING   the state is complete, and nobody writes to memory any more
 *
 * The first two are made only when much is dirty: each is a scan more, and the first costs the
 * guest a fault for each page that it writes again.
 *
 * A page that is written after the scan that found it is dirty again, so whatever a pass copies
 * while somebody writes to it the next one replaces (copy_set.h). Then the VM goes on. Encoding and
 * sending are the sender's business and cost no pause. With the engine `remus` there is only the
 * last pass, as in the published algorithm.
 *
 *   IDLE -> AHEAD -> STOPPING -> COPYING -> WAITING -> RESUMING -> IDLE
 *      '--------------^   '----> FROZEN -----^
 *
 * FROZEN: isolated, and the gate is full; the VM stands still until it can go on.
 *
 * WAITING ends at once, unless a flush was answered without a sync and may have been the guest's,
 * or the VM is being handed over to its standby: then it stays stopped; or it has outrun the link:
 * then pace.c lets it go on when earlier epochs are acknowledged.
 *
 * When the staging memory is full the last pass waits for the sender, with the VM stopped.
 *
 * Pages that were marked clean must reach the standby or be sent again. Each cut epoch's pages are
 * therefore remembered until it is acknowledged; when the link breaks in between and resumes, they
 * make up the carry of the next epoch, which so covers all the lost ones. An epoch that is being
 * copied when that happens is among the lost ones, or, when the VM has gone solo, among the
 * forgotten ones. Passes that end without a cut leave their pages to the carry, too. */

bool capture_may_cut(const struct guard *g)
{
    return (primary_may_cut(&g->core) || g->estimate.runs) &&
           g->capture.n_in_flight < IN_FLIGHT_MAX;
}

static bool is_remus(const struct guard *g)
{
    return g->body->spec.protect.engine == VM_ENGINE_REMUS;
}

/* Pages were marked clean that are neither on their way nor remembered: this epoch must never be
 * completed, and this session never resumed. */
static void torn(struct guard *g, const char *why)
{
    g->capture.torn = true;
    g->link.poisoned = true;
    link_broken(g, why);
}

/* Adds what is dirty to the set. */
static void take_dirty(struct guard *g)
{
    struct capture *c = &g->capture;
    uint64_t since = clock_now_ns();
    int r = g->body->ops->dirty_take(g->body->vm, &c->set.list);

    c->now.scan_ns = clock_now_ns() - since;
    if (r == -ESRCH) /* its end, reported soon, is for a standby to hear: the link must live */
        c->torn = true;
    else if (r < 0)
        torn(g, "the dirty pages cannot be read");
}

/* The set's pages are in no epoch: the next one that is cut carries them. */
static void put_back(struct guard *g)
{
    struct capture *c = &g->capture;

    if (run_list_append(&c->carry, &c->set.list) < 0)
        torn(g, "out of memory for the list of dirty pages");
    copy_set_clear(&c->set);
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

/* All is copied: the epoch's pages are remembered until it is acknowledged. */
static void remember(struct guard *g)
{
    struct capture *c = &g->capture;
    struct in_flight *slot = &c->ring[c->n_in_flight];

    if (c->fate == EPOCH_IN_FLIGHT) {
        slot->epoch = c->epoch;
        copy_set_finish(&c->set, &slot->runs);
        c->n_in_flight++;
        return;
    }
    if (c->fate == EPOCH_REBASED && run_list_append(&c->carry, &c->set.list) < 0)
        torn(g, "out of memory for the list of dirty pages");
    copy_set_clear(&c->set);
}

static void feed(struct guard *g)
{
    struct stage_chunk *chunk;

    while ((chunk = copy_set_take(&g->capture.set)))
        sender_chunk(g->sender, chunk);
}

static void send_epoch(struct guard *g)
{
    struct capture *c = &g->capture;

    feed(g);
    if (sender_state(g->sender, c->state.format, c->state.bytes, c->state.n_bytes) < 0)
        torn(g, "the sender does not take the device state");
    if (!c->torn)
        sender_end(g->sender);
}

/* The epoch is complete. */
static void close_epoch(struct guard *g)
{
    struct capture *c = &g->capture;
    uint64_t now = clock_now_ns();

    if (!c->epoch_open)
        return;
    c->epoch_open = false;
    c->dirty_pages = 0;
    c->now.epoch = c->epoch;
    c->now.at_ns = now;
    c->now.pages = copy_set_pages(&c->set);
    c->now.resume_ns = now - c->resumed_ns;
    c->now.pause_ns = now - c->stopped_ns;
    if (c->fate == EPOCH_IN_FLIGHT)
        send_epoch(g);
    remember(g);
    fault_point("guard.closed");
    pace_cut(g, &c->now, c->fate == EPOCH_IN_FLIGHT && !c->torn);
    stats_epoch(&g->stats, &c->now);
    estimate_epoch(g, &c->now);
}

/* Lets the VM run, unless there is a reason to wait. */
static void go_on(struct guard *g)
{
    struct capture *c = &g->capture;
    bool last = g->core.handing && g->core.hand_epoch == c->epoch;

    c->phase = CAPTURE_WAITING;
    if (c->flush != FLUSH_CLEAR)
        return;
    c->resumed_ns = clock_now_ns();
    if (last || pace_will_hold(g))
        close_epoch(g); /* what is waited for may be its acknowledgement */
    if (!last && !pace_holds(g))
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

/* Copies all of the list. False: the staging memory has run out. Much, and into memory that the
 * kernel has to clear first, takes longer than the peer's patience: it hears that we are at it. */
static bool copy_all(struct guard *g)
{
    struct copy_set *set = &g->capture.set;

    while (!copy_set_copy(set, COPY_BATCH_PAGES)) {
        if (copy_set_full(set))
            return copy_set_copy(set, UINT64_MAX); /* of what has a place already */
        link_beat(g);
    }
    return true;
}

/* The last pass, as far as the staging memory goes; then lets the VM run. Of an epoch that is lost
 * already nothing but its list is needed. */
static void copy(struct guard *g)
{
    struct capture *c = &g->capture;
    uint64_t since = clock_now_ns();
    bool done = c->fate != EPOCH_IN_FLIGHT || copy_all(g);

    fault_point("guard.copying");
    if (!done) {
        copy_set_refresh(&c->set);
        feed(g);
        done = copy_all(g);
    }
    c->now.copy_ns += clock_now_ns() - since;
    if (!done)
        return; /* capture_continue() when the sender has given some back */
    g->body->ops->dirty_settle(g->body->vm);
    fault_point("guard.copied");
    /* What the guest sent up to here was sent before this checkpoint: it covers it. */
    output_take(g->output);
    if (!c->estimated)
        gate_cut(&g->gate, c->epoch);
    fault_point("guard.cut");
    go_on(g);
}

static int begin_epoch(struct guard *g)
{
    struct capture *c = &g->capture;

    c->estimated = g->estimate.runs;
    if (c->estimated) {
        c->epoch = estimate_cut(g);
        return sender_begin(g->sender, c->epoch, c->term = 0, NULL);
    }
    c->epoch = primary_cut(&g->core, &c->term);
    return sender_begin(g->sender, c->epoch, c->term, resync_cut(g, c->epoch, c->term));
}

/* The VM stands still and may be cut: numbers the epoch and completes its pages. */
static void open_epoch(struct guard *g, const struct hyp_state *state)
{
    struct capture *c = &g->capture;

    c->phase = CAPTURE_COPYING;
    c->epoch_open = true;
    c->fate = EPOCH_IN_FLIGHT;
    c->state = *state; /* its bytes stay until the next checkpoint */
    if (begin_epoch(g) < 0)
        torn(g, "the sender does not take the epoch");
    take_dirty(g);
    if (run_list_append(&c->set.list, &c->carry) < 0)
        torn(g, "out of memory for the list of dirty pages");
    c->carry.n = 0;
    copy(g);
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
    c->now.stop_ns = timing->stop_ns;
    c->now.state_ns = timing->state_ns;
    c->stopped_ns = clock_now_ns() - timing->state_ns;
    c->failures = 0;
    check_flushes(g);
    if (capture_may_cut(g)) {
        fault_point("guard.paused");
        open_epoch(g, state);
        return;
    }
    put_back(g);
    if (must_freeze(g)) {
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
    if (g->capture.much && capture_may_cut(g)) {
        take_dirty(g);
        (void)copy_all(g); /* the last pass does the rest */
    }
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
    put_back(g);
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

/* Has the VM stopped. */
static void order_checkpoint(struct guard *g)
{
    struct capture *c = &g->capture;
    struct err err;

    c->ordered_ns = clock_now_ns();
    disks_phase(g->body->disks, DISK_STOPPING);
    if (g->body->ops->checkpoint(g->body->vm, &err) < 0) {
        put_back(g);
        c->phase = CAPTURE_IDLE;
        disks_phase(g->body->disks, DISK_RUNNING);
        c->retry_at_ns = c->ordered_ns + 10 * NS_PER_MS; /* the last one is being cleared away */
        log_debug("checkpoint: %s", err.text);
        return;
    }
    c->phase = CAPTURE_STOPPING;
    fault_point("guard.stopping");
    c->late_at_ns = c->ordered_ns + STOP_MS * NS_PER_MS;
}

/* Another piece of the first pass, between the loop's other events. */
static int on_ahead(sd_event_source *source, void *user)
{
    struct guard *g = user;
    struct capture *c = &g->capture;

    if (c->phase != CAPTURE_AHEAD)
        return 0;
    fault_point("guard.ahead");
    if (!copy_set_copy(&c->set, AHEAD_STEP_PAGES) && !copy_set_full(&c->set)) {
        (void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
        return 0;
    }
    c->now.ahead_pages = copy_set_pages(&c->set);
    c->now.ahead_ns = clock_now_ns() - c->begun_ns;
    order_checkpoint(g);
    return 0;
}

void capture_begin(struct guard *g)
{
    struct capture *c = &g->capture;
    uint64_t expected = c->dirty_pages > c->now.pages ? c->dirty_pages : c->now.pages;

    if (c->phase != CAPTURE_IDLE || c->flush != FLUSH_CLEAR)
        return; /* the end of either brings us back */
    c->begun_ns = clock_now_ns();
    if (c->begun_ns < c->retry_at_ns)
        return;
    c->torn = false;
    c->now = (struct epoch_trace){0};
    c->much = !is_remus(g) && expected >= AHEAD_PAGES;
    if (!c->much || !capture_may_cut(g)) {
        order_checkpoint(g);
        return;
    }
    c->phase = CAPTURE_AHEAD;
    take_dirty(g);
    (void)sd_event_source_set_enabled(c->ahead, SD_EVENT_ONESHOT);
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

    pace_committed(g, epoch);
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
    pace_forget(g);
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
    struct capture *c = &g->capture;

    pace_forget(g);
    c->n_in_flight = 0;
    c->carry.n = 0;
    c->fate = EPOCH_FORGOTTEN;
    if (!c->epoch_open)
        copy_set_clear(&c->set);
    if (c->phase == CAPTURE_AHEAD)
        c->phase = CAPTURE_IDLE;
    resync_end(g);
}

int capture_setup(struct guard *g)
{
    struct capture *c = &g->capture;
    int r = parallel_new(0, &c->parallel);

    if (r >= 0)
        r = copy_set_init(&c->set, g->pool, c->parallel, g->body->ram, g->body->n_pages);
    if (r >= 0)
        r = sd_event_add_defer(g->event, &c->ahead, on_ahead, g);
    if (r >= 0)
        r = sd_event_source_set_enabled(c->ahead, SD_EVENT_OFF);
    return r;
}

void capture_free(struct guard *g)
{
    unsigned i;

    sd_event_source_disable_unref(g->capture.ahead);
    copy_set_free(&g->capture.set);
    parallel_free(g->capture.parallel);

    for (i = 0; i < IN_FLIGHT_MAX; i++)
        run_list_free(&g->capture.ring[i].runs);
    run_list_free(&g->capture.carry);
}
