/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/clock.h"
#include "hyp/qemu/spawn.h"
#include "hyp/qemu/vm.h"
#include "io/log.h"

#define TO(phase) (1U << (phase))

static const struct {
    const char *name;
    unsigned int next; /* phases that it may leave to, beside DYING and GONE */
} phases[] = {
    [VM_IDLE] = {"idle", TO(VM_CHECKPOINT) | TO(VM_FLUSHES) | TO(VM_RESUME) | TO(VM_RESTORE)},
    [VM_CHECKPOINT] = {"checkpoint", TO(VM_IDLE) | TO(VM_ROLLBACK) | TO(VM_LOST)},
    [VM_ROLLBACK] = {"rollback", TO(VM_IDLE) | TO(VM_LOST)},
    [VM_FLUSHES] = {"query of flushes", TO(VM_IDLE) | TO(VM_LOST)},
    [VM_RESUME] = {"resume", TO(VM_IDLE) | TO(VM_LOST)},
    [VM_RESTORE] = {"restore", TO(VM_IDLE) | TO(VM_LOST)},
    [VM_LOST] = {"lost", 0},
    [VM_DYING] = {"dying", 0},
    [VM_GONE] = {"gone", 0},
};
_Static_assert(sizeof(phases) / sizeof(phases[0]) == VM_N_PHASES, "a phase without a row");

void vm_set_phase(struct hyp_vm *vm, enum vm_phase phase, const char *because)
{
    unsigned int next = phases[vm->phase].next | TO(VM_GONE);

    if (vm->phase != VM_DYING)
        next |= TO(VM_DYING);
    if (vm->phase == VM_GONE || !(next & TO(phase))) {
        log_error("qemu: %s -> %s is no transition (%s)", phases[vm->phase].name,
                  phases[phase].name, because);
        return;
    }
    log_debug("qemu: %s -> %s, %s", phases[vm->phase].name, phases[phase].name, because);
    vm->phase = phase;
}

void vm_set_timer(struct hyp_vm *vm, unsigned int ms)
{
    /* Not sd_event_source_set_time_relative(): that counts from the start of the loop's round, and
     * our caller may just have copied gigabytes. */
    uint64_t usec = clock_now_ns() / 1000 + ms * UINT64_C(1000);

    vm->timer_ms = ms;
    if (sd_event_source_set_time(vm->timer_source, usec) < 0 ||
        sd_event_source_set_enabled(vm->timer_source, SD_EVENT_ONESHOT) < 0)
        log_error("qemu: cannot arm a time-out");
}

static void report_soon(struct hyp_vm *vm)
{
    if (sd_event_source_set_enabled(vm->report_source, SD_EVENT_ONESHOT) < 0)
        log_error("qemu: cannot report an outcome");
}

void vm_stopped(struct hyp_vm *vm)
{
    vm->stopped_due = true;
    report_soon(vm);
}

void vm_end(struct hyp_vm *vm, enum vm_phase phase, enum vm_outcome outcome, const char *because)
{
    (void)sd_event_source_set_enabled(vm->timer_source, SD_EVENT_OFF); /* off cannot fail */
    vm->outcome = outcome;
    vm_set_phase(vm, phase, because);
    report_soon(vm);
}

void vm_fail(struct hyp_vm *vm, enum vm_phase phase, const char *why)
{
    if (why != vm->failure)
        (void)snprintf(vm->failure, sizeof(vm->failure), "%s", why);
    vm->failure_running = vm->running;
    vm_end(vm, phase, VM_OUTCOME_FAILURE, why);
}

int vm_check_idle(const struct hyp_vm *vm, struct err *err)
{
    if (vm->phase == VM_IDLE && vm->outcome == VM_OUTCOME_NONE)
        return 0;
    if (vm->phase >= VM_LOST)
        return err_set(err, -EIO, "the VM's QEMU is %s", phases[vm->phase].name);
    if (vm->phase == VM_IDLE)
        return err_set(err, -EBUSY, "the last operation's outcome is not delivered yet");
    return err_set(err, -EBUSY, "a %s is under way", phases[vm->phase].name);
}

static void report_checkpoint(struct hyp_vm *vm)
{
    struct hyp_state state = {.bytes = vm->state, .n_bytes = vm->n_state_bytes};
    struct hyp_timing timing = vm->timing;

    (void)snprintf(state.format, sizeof(state.format), "qemu:%s", vm->machine);
    vm->callbacks->on_checkpoint(vm->user, &state, &timing);
}

/* True when the caller was told, who may have freed the VM. Not after a checkpoint that has failed
 * meanwhile: the VM may run again. */
static bool report_stopped(struct hyp_vm *vm)
{
    bool due = vm->stopped_due && vm->callbacks->on_stopped &&
               (vm->phase == VM_CHECKPOINT || vm->outcome == VM_OUTCOME_CHECKPOINT);

    vm->stopped_due = false;
    if (!due)
        return false;
    if (vm->outcome)
        report_soon(vm);
    vm->callbacks->on_stopped(vm->user);
    return true;
}

static int on_report(sd_event_source *source, void *user)
{
    struct hyp_vm *vm = user;
    enum vm_outcome outcome;

    if (vm->phase != VM_GONE && report_stopped(vm))
        return 0;
    outcome = vm->outcome;
    vm->outcome = VM_OUTCOME_NONE;
    if (vm->phase == VM_GONE) {
        if (vm->exit_reported)
            return 0;
        vm->exit_reported = true;
        vm->callbacks->on_exit(vm->user, vm->exit_how, vm->exit_detail);
    } else if (outcome == VM_OUTCOME_CHECKPOINT) {
        report_checkpoint(vm);
    } else if (outcome == VM_OUTCOME_FLUSHES) {
        vm->callbacks->on_guest_flushes(vm->user, vm->flushes_known ? vm->flushes : NULL);
    } else if (outcome == VM_OUTCOME_RUNNING) {
        report_soon(vm); /* to prepare the next checkpoint */
        vm->callbacks->on_running(vm->user);
    } else if (outcome == VM_OUTCOME_FAILURE) {
        vm->callbacks->on_failure(vm->user, vm->failure, vm->failure_running);
    } else if (vm->arm_due && vm->phase == VM_IDLE) {
        vm->arm_due = false;
        if (vm_arm(vm) < 0)
            log_warning("qemu: the next checkpoint is not prepared");
    }
    return 0;
}

void vm_kill_because(struct hyp_vm *vm, enum hyp_exit how, const char *detail)
{
    if (vm->phase == VM_GONE)
        return;
    if (vm->phase != VM_DYING)
        vm_set_phase(vm, VM_DYING, detail);
    if (!vm->exit_how) {
        vm->exit_how = how;
        (void)snprintf(vm->exit_detail, sizeof(vm->exit_detail), "%s", detail);
    }
    spawn_kill(vm->pidfd);
}

/* SHUTDOWN says why QEMU is about to end. */
static void on_shutdown(struct hyp_vm *vm, const char *reason)
{
    bool by_guest = strcmp(reason, "guest-shutdown") == 0 || strcmp(reason, "guest-reset") == 0;

    if (vm->exit_how)
        return;
    vm->exit_how = by_guest ? HYP_EXIT_GUEST_SHUTDOWN : HYP_EXIT_CRASH;
    (void)snprintf(vm->exit_detail, sizeof(vm->exit_detail), "QEMU ended: %.200s", reason);
}

static void on_migration(struct hyp_vm *vm, const char *status)
{
    if (strcmp(status, "completed") == 0)
        vm->migration = VM_MIGRATION_COMPLETED;
    else if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0)
        vm->migration = VM_MIGRATION_FAILED;
}

static void on_qmp_event(void *user, const char *name, const json_t *data, uint64_t at_ns)
{
    struct hyp_vm *vm = user;
    const char *status = json_string_value(json_object_get(data, "status"));
    const char *reason = json_string_value(json_object_get(data, "reason"));

    if (strcmp(name, "STOP") == 0) {
        vm->running = false;
        if (vm->phase == VM_CHECKPOINT && !vm->timing.stop_ns) {
            vm->timing.stop_ns = at_ns > vm->order_ns ? at_ns - vm->order_ns : 1;
            vm_stopped(vm);
            vm_save_stopped(vm);
        }
    } else if (strcmp(name, "RESUME") == 0) {
        vm->running = true;
    } else if (strcmp(name, "RESET") == 0) {
        vm_save_forget(vm);
    } else if (strcmp(name, "MIGRATION") == 0 && status) {
        on_migration(vm, status);
    } else if (strcmp(name, "SHUTDOWN") == 0) {
        on_shutdown(vm, reason ? reason : "no reason given");
    }
    vm_checkpoint_event(vm);
    vm_restore_event(vm);
}

static void on_qmp_broken(void *user, int code, const char *why)
{
    struct hyp_vm *vm = user;
    char detail[300];

    if (!vm->timer_source || vm->phase >= VM_DYING) /* launch reports it; or it was expected */
        return;
    if (code == -ECONNRESET) { /* it is ending: its exit status will tell more, soon */
        vm_set_phase(vm, VM_DYING, why);
        vm_set_timer(vm, VM_EOF_GRACE_MS);
        return;
    }
    (void)snprintf(detail, sizeof(detail), "QEMU broke its control protocol: %s", why);
    vm_kill_because(vm, HYP_EXIT_CRASH, detail);
}

const struct qmp_callbacks vm_qmp_callbacks = {
    .on_event = on_qmp_event,
    .on_broken = on_qmp_broken,
};

/* Events come on all control sockets. */
static void ignore_event(void *user, const char *name, const json_t *data, uint64_t at_ns)
{
}

const struct qmp_callbacks vm_stop_callbacks = {
    .on_event = ignore_event,
    .on_broken = on_qmp_broken,
};

/* A time-out of the phase. */
static int on_timer(sd_event_source *source, uint64_t usec, void *user)
{
    struct hyp_vm *vm = user;

    /* The loop was held up, or this process was stopped: QEMU's answer may lie waiting. */
    if (clock_now_ns() / 1000 > usec + VM_LATE_MS * UINT64_C(1000)) {
        vm_set_timer(vm, vm->timer_ms);
        return 0;
    }
    switch (vm->phase) {
    case VM_CHECKPOINT:
    case VM_ROLLBACK:
        vm_checkpoint_timeout(vm);
        break;
    case VM_FLUSHES:
        vm_guest_flushes_timeout(vm);
        break;
    case VM_RESUME:
    case VM_RESTORE:
        vm_fail(vm, VM_LOST, "QEMU does not answer");
        break;
    default:
        vm_kill_because(vm, HYP_EXIT_CRASH, "QEMU closed its control connection and went on");
    }
    return 0;
}

static void describe_exit(struct hyp_vm *vm, int status)
{
    char how[64] = "", words[256];

    if (!vm->adopted)
        spawn_describe(status, how, sizeof(how));
    vm_last_words(vm->log_path, words, sizeof(words));
    vm->exit_how = HYP_EXIT_CRASH;
    (void)snprintf(vm->exit_detail, sizeof(vm->exit_detail), "QEMU ended%s%s%s%s",
                   how[0] ? ": " : "", how, words[0] ? ": " : "", words);
}

static int on_process_end(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct hyp_vm *vm = user;
    int status;

    (void)sd_event_source_set_enabled(source, SD_EVENT_OFF); /* off cannot fail */
    qmp_drain(vm->qmp);                                      /* its last event says why */
    if (spawn_wait(vm->pidfd, clock_now_ns(), &status) < 0)
        status = 0;
    close(vm->pidfd);
    vm->pidfd = -1;
    (void)sd_event_source_set_enabled(vm->timer_source, SD_EVENT_OFF);
    if (!vm->exit_how)
        describe_exit(vm, status);
    vm->running = false;
    vm_set_phase(vm, VM_GONE, "the process has ended");
    report_soon(vm);
    return 0;
}

int vm_join_loop(struct hyp_vm *vm)
{
    int r = qmp_attach(vm->qmp, vm->event);

    if (r >= 0 && vm->stopper)
        r = qmp_attach(vm->stopper, vm->event);
    if (r >= 0 && vm->stopper) /* nothing urgent is said there */
        r = qmp_set_priority(vm->stopper, SD_EVENT_PRIORITY_IDLE);
    if (r >= 0)
        r = sd_event_add_io(vm->event, &vm->exit_source, vm->pidfd, EPOLLIN, on_process_end, vm);
    if (r >= 0)
        r = sd_event_add_time(vm->event, &vm->timer_source, CLOCK_MONOTONIC, UINT64_MAX, 10000,
                              on_timer, vm);
    if (r >= 0)
        r = sd_event_source_set_enabled(vm->timer_source, SD_EVENT_OFF);
    if (r >= 0)
        r = sd_event_add_defer(vm->event, &vm->report_source, on_report, vm);
    if (r >= 0)
        r = sd_event_source_set_enabled(vm->report_source, SD_EVENT_OFF);
    return r < 0 ? r : 0;
}

static pid_t op_pid(const struct hyp_vm *vm)
{
    return vm->pid;
}

static void op_kill(struct hyp_vm *vm)
{
    vm_kill_because(vm, HYP_EXIT_KILLED, "killed by order");
}

void vm_let_go(struct hyp_vm *vm)
{
    sd_event_source_disable_unref(vm->exit_source);
    sd_event_source_disable_unref(vm->timer_source);
    sd_event_source_disable_unref(vm->report_source);
    vm_stream_done(&vm->stream);
    vm_save_done(&vm->save);
    vm_feed_done(&vm->feed);
    dirty_free(vm->dirty);
    if (vm->pidfd >= 0)
        close(vm->pidfd);
    qmp_free(vm->qmp);
    qmp_free(vm->stopper);
    free(vm->pid_path);
    free(vm->qmp_path);
    free(vm->stop_path);
    free(vm->log_path);
    free(vm->ram_path);
    sd_event_unref(vm->event);
    free(vm);
}

void vm_close(struct hyp_vm *vm)
{
    int status;

    if (!vm)
        return;
    if (vm->pidfd >= 0) {
        spawn_kill(vm->pidfd);
        if (spawn_wait(vm->pidfd, clock_now_ns() + VM_EXIT_TIMEOUT_MS * NS_PER_MS, &status) < 0)
            log_error("qemu: process %d does not end, even when killed", (int)vm->pid);
    }
    (void)unlink(vm->qmp_path); /* leftovers do no harm: a launch removes them first */
    (void)unlink(vm->stop_path);
    (void)unlink(vm->pid_path);
    for (size_t i = 0; i < vm->n_nics; i++)
        (void)unlink(vm->hyp_paths[i]);
    vm_let_go(vm);
}

const struct hyp_ops hyp_qemu = {
    .name = "qemu",
    .preflight = vm_preflight,
    .launch = vm_launch,
    .attach = vm_attach,
    .track = vm_track,
    .checkpoint = vm_checkpoint,
    .dirty_take = vm_dirty_take,
    .dirty_count = vm_dirty_count,
    .dirty_settle = vm_dirty_settle,
    .guest_flushes = vm_guest_flushes,
    .resume = vm_resume,
    .restore = vm_restore,
    .pid = op_pid,
    .kill = op_kill,
    .close = vm_close,
};
