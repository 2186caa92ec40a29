/* SPDX-License-Identifier: Apache-2.0 */
#include "standby/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "guard/confine.h"
#include "guard/guard.h"
#include "io/log.h"
#include "io/vm_json.h"

enum { ARBITER_TIMEOUT_MS = 1000, ARBITER_RETRY_MS = 100, PRIORITY_TIMER = 10 };

static double unix_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* ---- the end ---- */

static int on_finish(sd_event_source *source, void *user)
{
    struct standby_shell *s = user;

    if (s->failover_request)
        control_fail(take_ptr(s->failover_request), "%s: %s", s->vm, s->why_finished);
    return sd_event_exit(s->event, s->vm_lost ? GUARD_LOST : GUARD_STOPPED);
}

void standby_finish(struct standby_shell *s, const char *why)
{
    if (s->finish)
        return;
    log_info("discarding the copy: %s", why);
    fault_point("standby.discard");
    (void)snprintf(s->why_finished, sizeof(s->why_finished), "%s", why);
    if (sd_event_add_defer(s->event, &s->finish, on_finish, s) < 0)
        (void)sd_event_exit(s->event, 1);
    else /* after what is still to be sent */
        (void)sd_event_source_set_priority(s->finish, PRIORITY_TIMER);
}

/* The VM was this host's, and does not run. */
static void lose_vm(struct standby_shell *s, const char *why)
{
    log_error("THE VM IS LOST: activation failed: %s", why);
    s->vm_lost = true;
    standby_finish(s, why);
}

/* ---- taking over ---- */

/* The disks get what is committed. Their writes wait until the redo log is empty: see
 * applier_finish(). */
static int take_disks(struct standby_shell *s, struct err *err)
{
    struct applier_report report;

    applier_drain(s->applier);
    applier_report_get(s->applier, &report);
    if (report.error)
        return err_set(err, report.error, "%s (when that is repaired: understudy recover %s)",
                       report.text, s->vm);
    disk_server_mode(s->body->disks->server, DISK_HELD);
    return 0;
}

/* The VM is ours. The image gets what is still staged, the hypervisor its device state. */
static void activate(struct standby_shell *s, const struct arb_record *record)
{
    struct hyp_state state = {.n_bytes = 0};
    struct receiver_report report;
    const char *format;
    struct err err;
    uint32_t i;
    int r;

    s->takeover.won_ms = unix_ms();
    fault_point("standby.won");
    s->on_won(s->user, &s->body->spec, s->primary);
    s->takeover.record = *record;
    (void)snprintf(s->takeover.from, sizeof(s->takeover.from), "%s", s->primary);
    receiver_detach(s->receiver);
    receiver_drain(s->receiver);
    fault_point("standby.drained");
    r = s->applier ? take_disks(s, &err) : 0;
    receiver_report_get(s->receiver, &report);
    s->takeover.epoch = report.applied_epoch;
    if (r >= 0) {
        r = receiver_state(s->receiver, &format, &state.bytes, &state.n_bytes);
        if (r < 0)
            (void)err_sys(&err, r, "device state");
    }
    if (r >= 0) {
        (void)snprintf(state.format, sizeof(state.format), "%s", format);
        /* Frames from before are for the VM at the other host, which may have answered them. */
        for (i = 0; i < s->body->spec.n_nics; i++)
            while (netport_discard_inbound(s->body->ports[i]) > 0)
                ;
        fault_point("standby.restore");
        r = s->hyp->restore(s->body->vm, &state, &err);
        fault_point("standby.restoring");
    }
    if (r < 0)
        lose_vm(s, err.text);
}

static void on_running(void *user)
{
    struct standby_shell *s = user;
    uint32_t i;

    s->takeover.running_ms = unix_ms();
    fault_point("standby.running");
    for (i = 0; i < s->body->spec.n_nics; i++)
        netport_announce(s->body->ports[i]);
    fault_point("standby.announced");
    session_deliver_late(s);
    /* Up to now the primary has passed on what came for the guest. */
    session_drop(s, WIRE_BYE_TAKEN_OVER);
    fault_point("standby.said-bye");
    if (s->applier)
        applier_finish(s->applier);
    s->takeover.applier = take_ptr(s->applier);
    s->takeover.body = take_ptr(s->body);
    log_info("took over at epoch %llu under term %llu: decision to running %.1f ms",
             (unsigned long long)s->takeover.epoch, (unsigned long long)s->takeover.record.term,
             s->takeover.running_ms - s->takeover.decided_ms);
    if (s->failover_request)
        control_reply(take_ptr(s->failover_request), NULL);
    s->on_takeover(s->user, &s->takeover);
}

/* Not reached: a standby orders no checkpoint. */
static void on_stopped(void *user)
{
}

static void on_guest_flushes(void *user, const uint64_t *flushes)
{
}

static void on_checkpoint(void *user, const struct hyp_state *state,
                          const struct hyp_timing *timing)
{
}

static void on_failure(void *user, const char *why, bool running)
{
    struct standby_shell *s = user;

    lose_vm(s, why);
}

static void on_exit_(void *user, enum hyp_exit how, const char *detail)
{
    struct standby_shell *s = user;

    if (s->core.state == STANDBY_ACTIVE) {
        lose_vm(s, detail);
        return;
    }
    log_error("the waiting hypervisor died: %s", detail);
    session_drop(s, WIRE_BYE_DISCARDED);
    standby_finish(s, detail);
}

static const struct hyp_callbacks hyp_callbacks = {
    .on_stopped = on_stopped,
    .on_guest_flushes = on_guest_flushes,
    .on_checkpoint = on_checkpoint,
    .on_running = on_running,
    .on_failure = on_failure,
    .on_exit = on_exit_,
};

/* ---- actions ---- */

static void trace(struct standby_shell *s, const struct action *a)
{
    log_info("%s -> %s: %s (term %llu, epoch %llu)", a->u.trace.from, a->u.trace.to, a->u.trace.why,
             (unsigned long long)s->core.right, (unsigned long long)s->core.epoch);
    if (s->core.state == STANDBY_CLAIMING && !s->takeover.decided_ms)
        s->takeover.decided_ms = unix_ms();
    else if (s->core.state == STANDBY_READY)
        s->takeover.decided_ms = 0;
}

static void act(struct standby_shell *s, struct action *a)
{
    switch (a->type) {
    case ACT_ARB_ASK:
        fault_point("standby.ask");
        arbiter_client_ask(s->arbiter, a->u.ask.id, &a->u.ask.request);
        fault_point("standby.asked");
        break;
    case ACT_LINK_DROP:
        if (a->u.bye != WIRE_BYE_TAKEN_OVER) /* else said when the VM runs: see on_running() */
            session_drop(s, a->u.bye);
        break;
    case ACT_TRACE:
        trace(s, a);
        break;
    case ACT_ACK:
        session_send_ack(s, a->u.ack.epoch, a->u.ack.term);
        receiver_apply(s->receiver);
        break;
    case ACT_ACTIVATE:
        activate(s, &a->u.record);
        break;
    case ACT_DISCARD:
        standby_finish(s, a->u.why);
        break;
    default: /* the primary's */
        break;
    }
}

void standby_event(struct standby_shell *s, const struct standby_event *ev)
{
    struct actions out = {.n = 0};
    unsigned i;

    standby_step(&s->core, ev, clock_now_ns(), &out);
    for (i = 0; i < out.n; i++)
        act(s, &out.a[i]);
}

void standby_simple_event(struct standby_shell *s, enum standby_event_type type)
{
    struct standby_event ev = {.type = type};

    standby_event(s, &ev);
}

/* ---- the loop ---- */

void standby_look_at_receiver(struct standby_shell *s)
{
    struct standby_event ev = {.type = SEV_STAGED};
    struct receiver_report report;

    receiver_report_get(s->receiver, &report);
    if (report.staged_epoch > s->core.epoch) {
        ev.u.staged.epoch = report.staged_epoch;
        ev.u.staged.term = report.staged_term;
        standby_event(s, &ev);
    }
    if (report.error && s->core.link_up) {
        log_info("%s", report.text);
        s->control_failed = true;
    }
}

static int on_receiver(sd_event_source *source, int fd, uint32_t events, void *user)
{
    uint64_t count;

    (void)!read(fd, &count, sizeof(count)); /* only wakes us */
    standby_look_at_receiver(user);
    return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *user)
{
    struct standby_shell *s = user;

    if (s->serving && clock_now_ns() >= standby_deadline(&s->core))
        standby_simple_event(s, SEV_TIMER);
    return 0;
}

static int on_post(sd_event_source *source, void *user)
{
    struct standby_shell *s = user;
    uint64_t at;

    if (s->control_failed) {
        session_drop(s, 0);
        if (s->serving)
            standby_simple_event(s, SEV_LINK_LOST);
        else
            standby_finish(s, "the primary went away");
    }
    at = s->serving ? standby_deadline(&s->core) : CORE_NEVER;
    if (at == CORE_NEVER) {
        (void)sd_event_source_set_enabled(s->timer, SD_EVENT_OFF);
    } else {
        (void)sd_event_source_set_time(s->timer, (at + 999) / 1000);
        (void)sd_event_source_set_enabled(s->timer, SD_EVENT_ONESHOT);
    }
    return 0;
}

static void on_arbiter_answer(void *user, uint64_t id, uint8_t status,
                              const struct arb_record *current, const char *why)
{
    struct standby_shell *s = user;
    struct standby_event ev = {.type = SEV_ARB_ANSWER};
    bool was_silent = s->core.arbiter_silent;

    ev.u.answer.id = id;
    ev.u.answer.status = status;
    ev.u.answer.current = *current;
    fault_point("standby.answered");
    standby_event(s, &ev);
    if (s->core.arbiter_silent != was_silent)
        log_warning("%s", s->core.arbiter_silent ? why : "the arbiter answers again");
}

/* ---- life ---- */

static int open_pipeline(struct standby_shell *s, struct err *err)
{
    struct receiver_disks disks;
    int r;

    /* An epoch is staged whole, and can be as large as the VM. Touched only as far as used. */
    s->pool = stage_pool_new(s->body->spec.memory_bytes + (UINT64_C(4) << 20));
    if (!s->pool)
        return err_sys(err, -ENOMEM, "staging memory");
    r = standby_disks_open(s, &disks, err);
    if (r < 0)
        return r;
    r = receiver_new(s->pool, s->body->ram, s->body->n_pages, &disks, s->receiver_notify,
                     &s->receiver);
    if (r < 0)
        return err_sys(err, r, "receiver");
    r = sd_event_add_io(s->event, &s->receiver_source, s->receiver_notify, EPOLLIN, on_receiver, s);
    if (r >= 0)
        r = arbiter_client_new(s->event, &s->config->arbiter, s->tls, s->config->name, s->vm,
                               ARBITER_TIMEOUT_MS * NS_PER_MS, on_arbiter_answer, s, &s->arbiter);
    if (r >= 0)
        r = session_start_heartbeat(s);
    return r < 0 ? err_sys(err, r, "event loop") : 0;
}

int standby_serve(struct standby_shell *s, const char *json, size_t n_json, struct err *err)
{
    struct core_timing timing = {
        .peer_silent_ns = s->config->timeouts.primary_ms * NS_PER_MS,
        .arb_retry_ns = ARBITER_RETRY_MS * NS_PER_MS,
    };
    CLEANUP_FREE struct vm_spec *spec = malloc(sizeof(*spec));
    int r;

    if (!spec)
        return err_sys(err, -ENOMEM, "offer");
    fault_point("standby.offer");
    r = vm_json_decode(json, n_json, spec, err);
    if (r >= 0 && strcmp(spec->name, s->vm) != 0)
        r = err_set(err, -EPROTO, "the offer is for '%s'", spec->name);
    if (r >= 0)
        r = s->preflight(spec, s->config, err);
    if (r >= 0)
        r = body_open(s->config, spec, s->hyp, s->event, true, &hyp_callbacks, s, &s->body, err);
    if (r >= 0)
        r = confine_late(err);
    if (r >= 0)
        r = open_pipeline(s, err);
    if (r < 0)
        return r;
    arbiter_client_warm(s->arbiter);
    standby_init(&s->core, s->config->name, s->primary, &timing, clock_now_ns());
    s->serving = true;
    fault_point("standby.serving");
    log_info("backing it for %s", s->primary);
    return 0;
}

int standby_new(const struct standby_params *params, struct standby_shell **ret_shell,
                struct err *err)
{
    struct standby_shell *s = calloc(1, sizeof(*s));
    int r;

    if (!s) {
        close(params->conn_fd);
        return err_sys(err, -ENOMEM, "standby");
    }
    s->event = params->event;
    s->config = params->config;
    s->tls = params->tls;
    s->hyp = params->hyp;
    s->preflight = params->preflight;
    s->on_won = params->on_won;
    s->on_takeover = params->on_takeover;
    s->on_complete = params->on_complete;
    s->user = params->user;
    s->started_ns = clock_now_ns();
    (void)snprintf(s->vm, sizeof(s->vm), "%s", params->vm);
    s->receiver_notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r = s->receiver_notify < 0 ? -errno : 0;
    if (r >= 0)
        r = sd_event_add_time(s->event, &s->timer, CLOCK_MONOTONIC, 0, 1, on_timer, s);
    if (r >= 0)
        r = sd_event_source_set_priority(s->timer, PRIORITY_TIMER);
    if (r >= 0)
        r = sd_event_add_post(s->event, &s->post, on_post, s);
    if (r < 0) {
        close(params->conn_fd);
        (void)err_sys(err, r, "event loop");
    } else {
        r = session_adopt(s, params->conn_fd, err);
    }
    if (r < 0) {
        standby_free(s);
        return r;
    }
    *ret_shell = s;
    return 0;
}

void standby_keys_changed(struct standby_shell *s)
{
    session_keys_changed(s);
}

void standby_free(struct standby_shell *s)
{
    if (!s)
        return;
    if (s->failover_request)
        control_fail(s->failover_request, "%s: the standby ended", s->vm);
    session_drop(s, 0);
    frame_queue_close(s->late);
    sd_event_source_disable_unref(s->heartbeat);
    sd_event_source_disable_unref(s->timer);
    sd_event_source_disable_unref(s->post);
    sd_event_source_disable_unref(s->finish);
    sd_event_source_disable_unref(s->receiver_source);
    arbiter_client_close(s->arbiter);
    receiver_close(s->receiver);
    sd_event_source_disable_unref(s->disks_source);
    applier_close(s->applier);
    if (s->pool)
        stage_pool_close(s->pool);
    if (s->receiver_notify >= 0)
        close(s->receiver_notify);
    body_close(s->body);
    free(s);
}
