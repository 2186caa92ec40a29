/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/log.h"

enum {
    ARBITER_TIMEOUT_MS = 1000,
    ARBITER_RETRY_MS = 100,
    RESUME_MS = 200,
    REPROTECT_MS = 1000,
    COOL_DOWN_MS = 60000,
    LOOK_MS = 5000,
    START_MS = 10000,
    HAND_OVER_MS = 2000,
};

static void settle(struct guard *g);

/* ---- actions ---- */

/* The VM has gone to its standby, as was ordered. */
static bool handed_over(const struct guard *g)
{
    return g->core.handed && g->core.state == PRIMARY_LOST && g->core.record.owner[0];
}

static int on_finish(sd_event_source *source, void *user)
{
    struct guard *g = user;
    bool lost = (g->core.state == PRIMARY_LOST && !handed_over(g)) || g->crashed;

    fault_point("guard.finish");
    if (g->stop_request)
        control_reply(take_ptr(g->stop_request), NULL);
    if (g->switch_request && handed_over(g))
        control_reply(take_ptr(g->switch_request), NULL);
    return sd_event_exit(g->event, lost ? GUARD_LOST : GUARD_STOPPED);
}

/* The end, from the loop: answers and files must not depend on who called. */
static void finish(struct guard *g)
{
    if (!g->finish && sd_event_add_defer(g->event, &g->finish, on_finish, g) < 0)
        (void)sd_event_exit(g->event, GUARD_LOST);
}

static void destroy_vm(struct guard *g)
{
    seed_stop(g);
    estimate_end(g, "the VM ended");
    fault_point("guard.destroy");
    output_drop(g->output);
    if (g->body->vm)
        g->body->ops->kill(g->body->vm);
    if (handed_over(g))
        log_info("%s has it now", g->core.record.owner);
    else if (g->core.state == PRIMARY_LOST || g->crashed)
        status_write_ended(g, g->why_ended[0] ? g->why_ended : "another host has taken it over");
    finish(g);
}

static void run_vm(struct guard *g)
{
    struct err err;

    g->capture.phase = CAPTURE_RESUMING;
    g->capture.epoch_open = false;
    fault_point("guard.start");
    if (g->body->disks)
        disks_start(g->body->disks);
    if (g->body->ops->resume(g->body->vm, &err) < 0) {
        log_error("start: %s", err.text);
        guard_simple_event(g, PEV_VM_DIED);
    } else if (g->on_started) {
        g->on_started(g->user, NULL);
    }
}

static void refuse_start(struct guard *g, const char *why)
{
    const struct arb_record *r = &g->core.record;
    char text[sizeof(g->why_ended) + 256];

    if (!g->on_started)
        return;
    if (g->why_ended[0])
        why = g->why_ended; /* what the machine does not know: the record could not be written */
    if (r->owner[0])
        (void)snprintf(text, sizeof(text), "%s (%s owns it, term %llu, %s%s)", why, r->owner,
                       (unsigned long long)r->term, r->mode == ARB_PAIRED ? "paired with " : "solo",
                       r->standby);
    else
        (void)snprintf(text, sizeof(text), "%s", why);
    g->on_started(g->user, text);
}

/* The disks here are the VM's, and since when. False: that could not be written down. */
static bool copy_record(struct guard *g, uint64_t term, bool wait)
{
    struct copy_record record = {.role = COPY_PRIMARY, .term = term};
    struct err err;

    if (!wait) {
        disks_record_soon(g->body->disks, &record);
    } else if (disks_record(g->body->disks, &record, &err) < 0) {
        log_error("%s", err.text);
        (void)snprintf(g->why_ended, sizeof(g->why_ended), "%s", err.text);
        return false;
    }
    return true;
}

/* A frame for the guest that came too late here. */
static void on_late_frame(void *user, uint8_t nic, const uint8_t *bytes, uint32_t n_bytes)
{
    struct guard *g = user;
    struct wire_msg msg = {.type = WIRE_FRAMES};

    msg.u.frames = (struct wire_frames){.nic = nic, .n_bytes = n_bytes, .bytes = bytes};
    if (g->link.control && n_bytes <= WIRE_FRAME_BYTES_MAX)
        channel_send(g->link.control, &msg);
}

static void trace(struct guard *g, const struct action *a)
{
    log_info("%s -> %s: %s (term %llu, epoch %llu)%s%s", a->u.trace.from, a->u.trace.to,
             a->u.trace.why, (unsigned long long)g->core.record.term,
             (unsigned long long)g->core.next_epoch - 1, g->link.why[0] ? ": " : "", g->link.why);
    if (g->core.state == PRIMARY_PROTECTED)
        g->stats.protected_since = (int64_t)time(NULL);
    else
        g->stats.protected_since = 0;
}

/* Carries one out. False: it could not be, and what depends on it must not be either. */
static bool act(struct guard *g, struct action *a)
{
    switch (a->type) {
    case ACT_ARB_ASK:
        fault_point("guard.ask");
        arbiter_client_ask(g->arbiter, a->u.ask.id, &a->u.ask.request);
        fault_point("guard.asked");
        break;
    case ACT_LINK_DROP:
        seed_stop(g);
        link_drop(g, a->u.bye);
        break;
    case ACT_TRACE:
        trace(g, a);
        break;
    case ACT_VM_RUN:
        run_vm(g);
        break;
    case ACT_COPY_RECORD:
        return !g->body->disks || copy_record(g, a->u.copy.term, a->u.copy.wait) ||
               !a->u.copy.vital;
    case ACT_HAND_OVER: /* with the next cut */
        fault_point("guard.hand-over");
        output_inbound(g->output, INBOUND_KEEP, NULL, NULL);
        break;
    case ACT_SAY_BYE:
        fault_point("guard.say-bye");
        link_say_bye(g, a->u.bye);
        fault_point("guard.said-bye");
        if (g->link.control) /* the standby may have the VM, and its frames */
            output_inbound(g->output, INBOUND_DIVERT, on_late_frame, g);
        break;
    case ACT_VM_RESUME:
        fault_point("guard.take-back");
        output_inbound(g->output, INBOUND_DELIVER, NULL, NULL);
        capture_release(g);
        break;
    case ACT_START_REFUSED:
        refuse_start(g, a->u.why);
        finish(g);
        break;
    case ACT_VM_DESTROY:
        destroy_vm(g);
        break;
    case ACT_LINK_CONNECT:
        estimate_end(g, "the VM is being protected");
        link_connect(g, a->u.resume);
        break;
    case ACT_SEED:
        seed_begin(g);
        break;
    case ACT_REBASE:
        capture_rebase(g);
        break;
    case ACT_GATE_HOLD:
        g->gate.holding = true;
        fault_point("guard.gate-held");
        break;
    case ACT_GATE_FLOW:
        g->gate.holding = false;
        capture_forget(g);
        fault_point("guard.gate-open");
        output_flush(g->output);
        break;
    case ACT_COMMITTED:
        fault_point("guard.acked");
        g->gate.committed = a->u.epoch;
        capture_committed(g, a->u.epoch);
        resync_committed(g, a->u.epoch);
        output_flush(g->output);
        fault_point("guard.released");
        seed_continue(g);
        break;
    default: /* the standby's */
        break;
    }
    return true;
}

static void act_all(struct guard *g, struct actions *out)
{
    unsigned i;

    for (i = 0; i < out->n; i++) {
        if (!act(g, &out->a[i])) {
            guard_simple_event(g, PEV_VM_DIED);
            return;
        }
    }
}

void guard_event(struct guard *g, const struct primary_event *ev)
{
    struct actions out = {.n = 0};

    primary_step(&g->core, ev, clock_now_ns(), &out);
    act_all(g, &out);
}

void guard_simple_event(struct guard *g, enum primary_event_type type)
{
    struct primary_event ev = {.type = type};

    guard_event(g, &ev);
}

/* ---- the loop ---- */

/* After whatever happened: broken links, due timers, due cuts, and the next time to wake up. */
static void settle(struct guard *g)
{
    uint64_t now, at, cut_at;

    if (g->finish)
        return;
    if (g->link.failed) {
        log_debug("link: %s", g->link.why);
        link_drop(g, 0);
        guard_simple_event(g, PEV_LINK_FAILED);
    }
    status_answer_switchover(g);
    capture_continue(g);
    pace_continue(g);
    now = clock_now_ns();
    cut_at = pace_cut_if_due(g, now);
    at = primary_deadline(&g->core);
    if (cut_at < at)
        at = cut_at;
    if (capture_deadline(g) < at)
        at = capture_deadline(g);
    if (at == CORE_NEVER) {
        (void)sd_event_source_set_enabled(g->timer, SD_EVENT_OFF);
    } else {
        (void)sd_event_source_set_time(g->timer, (at + 999) / 1000);
        (void)sd_event_source_set_enabled(g->timer, SD_EVENT_ONESHOT);
    }
}

static int on_timer(sd_event_source *source, uint64_t usec, void *user)
{
    struct guard *g = user;

    if (clock_now_ns() >= primary_deadline(&g->core))
        guard_simple_event(g, PEV_TIMER);
    return 0;
}

static int on_post(sd_event_source *source, void *user)
{
    settle(user);
    return 0;
}

static int on_sender(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct guard *g = user;
    struct sender_report report;
    uint64_t count;

    (void)!read(fd, &count, sizeof(count)); /* only wakes us */
    sender_report_get(g->sender, &report);
    estimate_sent(g, report.sent_epoch);
    if (report.error && g->link.up)
        link_broken(g, strerror(-report.error));
    seed_continue(g);
    return 0;
}

static void on_arbiter_answer(void *user, uint64_t id, uint8_t status,
                              const struct arb_record *current, const char *why)
{
    struct guard *g = user;
    struct primary_event ev = {.type = PEV_ARB_ANSWER};
    bool was_silent = g->core.arbiter_silent;

    ev.u.answer.id = id;
    ev.u.answer.status = status;
    ev.u.answer.current = *current;
    fault_point("guard.answered");
    guard_event(g, &ev);
    if (g->core.arbiter_silent != was_silent)
        log_warning("%s", g->core.arbiter_silent ? why : "the arbiter answers again");
}

/* ---- life ---- */

static void setup_timing(const struct host_config *config, struct core_timing *ret_timing)
{
    *ret_timing = (struct core_timing){
        .peer_silent_ns = config->timeouts.standby_ms * NS_PER_MS,
        .arb_retry_ns = ARBITER_RETRY_MS * NS_PER_MS,
        .resume_ns = RESUME_MS * NS_PER_MS,
        .reprotect_ns = REPROTECT_MS * NS_PER_MS,
        .cool_down_ns = COOL_DOWN_MS * NS_PER_MS,
        .look_ns = LOOK_MS * NS_PER_MS,
        .start_ns = START_MS * NS_PER_MS,
        .hand_over_ns = HAND_OVER_MS * NS_PER_MS,
    };
}

static int setup_loop(struct guard *g, struct err *err)
{
    int r;

    g->sender_notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r = g->sender_notify < 0 ? -errno : 0;
    if (r >= 0)
        r = sd_event_add_io(g->event, &g->sender_source, g->sender_notify, EPOLLIN, on_sender, g);
    if (r >= 0)
        r = sd_event_add_time(g->event, &g->timer, CLOCK_MONOTONIC, 0, 1, on_timer, g);
    if (r >= 0)
        r = sd_event_source_set_priority(g->timer, PRIORITY_TIMER);
    if (r >= 0)
        r = sd_event_add_post(g->event, &g->post, on_post, g);
    return r < 0 ? err_sys(err, r, "event loop") : 0;
}

static int setup_pipeline(struct guard *g, struct err *err)
{
    const struct sender_options options = {
        .delta_cache_bytes = (uint64_t)g->config->delta_cache_mib << 20,
        .raw = g->body->spec.protect.engine == VM_ENGINE_REMUS,
    };
    int r;

    g->pool = stage_pool_new((uint64_t)g->config->staging_mib << 20);
    if (!g->pool)
        return err_sys(err, -ENOMEM, "staging memory");
    r = capture_setup(g);
    if (r < 0)
        return err_sys(err, r, "capture");
    r = sender_new(g->pool, IN_FLIGHT_MAX + SEEDS_IN_FLIGHT, g->sender_notify, &options,
                   &g->sender);
    if (r < 0)
        return err_sys(err, r, "sender");
    r = resync_setup(g, err);
    if (r < 0)
        return r;
    r = arbiter_client_new(g->event, &g->config->arbiter, g->tls, g->config->name,
                           g->body->spec.name, ARBITER_TIMEOUT_MS * NS_PER_MS, on_arbiter_answer, g,
                           &g->arbiter);
    if (r < 0)
        return err_sys(err, r, "arbiter");
    return output_new(g->body, &g->gate, &g->output, err);
}

/* The hosts have changed places: the VM should be protected still, by whom it came from. */
static void protect_by(struct guard *g, const char *host)
{
    struct primary_event ev = {.type = PEV_PROTECT};

    (void)snprintf(ev.u.host, sizeof(ev.u.host), "%s", host);
    guard_event(g, &ev);
}

/* The VM's former guard died. */
static void attach(struct guard *g, const struct core_timing *timing, bool running,
                   struct actions *out)
{
    fault_point("guard.attach");
    if (!running)
        g->capture.phase = CAPTURE_WAITING; /* until ACT_VM_RESUME */
    primary_init_attach(&g->core, g->config->name, timing, g->body->spec.protect.standby, running,
                        out);
    log_warning("attached to the VM of a guard that died; it %s, mute",
                running ? "runs" : "stands still");
}

static void begin(struct guard *g, const struct guard_params *params)
{
    struct start_order order = {.seize = params->seize, .recover = params->recover};
    struct core_timing timing;
    struct actions out = {.n = 0};

    setup_timing(g->config, &timing);
    pace_setup(g);
    if (g->body->disks) {
        order.has_disks = true;
        order.copy = g->body->disks->record;
    }
    g->stats.started_ns = clock_now_ns();
    if (params->takeover) {
        g->takeover = *params->takeover;
        primary_init_takeover(&g->core, g->config->name, &timing, &g->takeover.record,
                              g->takeover.epoch, &out);
        fault_point("guard.took-over");
        output_announce(g->output);
    } else if (params->attached) {
        attach(g, &timing, params->running, &out);
    } else {
        primary_init_start(&g->core, g->config->name, &timing, g->body->spec.protect.standby,
                           &order, clock_now_ns(), &out);
    }
    gate_init(&g->gate, g->core.next_epoch);
    act_all(g, &out);
    if (params->takeover)
        protect_by(g, g->takeover.from);
    arbiter_client_warm(g->arbiter);
}

int guard_new(const struct guard_params *params, struct guard **ret_guard, struct err *err)
{
    struct guard *g = calloc(1, sizeof(*g));
    int r;

    if (!g)
        return err_sys(err, -ENOMEM, "guard");
    g->event = params->event;
    g->config = params->config;
    g->tls = params->tls;
    g->body = params->body;
    g->on_started = params->on_started;
    g->user = params->user;
    g->sender_notify = -1;
    r = setup_loop(g, err);
    if (r >= 0)
        r = setup_pipeline(g, err);
    if (r < 0) {
        g->body = NULL; /* the caller's */
        guard_free(g);
        return r;
    }
    g->body->callbacks = &capture_callbacks;
    g->body->user = g;
    begin(g, params);
    *ret_guard = g;
    return 0;
}

void guard_keys_changed(struct guard *g, bool own)
{
    link_keys_changed(g, own);
}

void guard_free(struct guard *g)
{
    if (!g)
        return;
    if (g->stop_request)
        control_fail(g->stop_request, "the guard ended");
    if (g->switch_request)
        control_fail(g->switch_request, "%s", g->why_ended[0] ? g->why_ended : "the guard ended");
    if (g->sender)
        link_drop(g, 0);
    sd_event_source_disable_unref(g->seed.source);
    run_list_free(&g->seed.dirty);
    sd_event_source_disable_unref(g->finish);
    sd_event_source_disable_unref(g->post);
    sd_event_source_disable_unref(g->timer);
    sd_event_source_disable_unref(g->sender_source);
    resync_free(g);
    output_close(g->output);
    arbiter_client_close(g->arbiter);
    sender_close(g->sender);
    estimate_free(g);
    capture_free(g);
    if (g->pool)
        stage_pool_close(g->pool);
    if (g->sender_notify >= 0)
        close(g->sender_notify);
    body_close(g->body);
    free(g);
}
