/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/clock.h"
#include "hyp/qemu/vm.h"
#include "io/log.h"

/* Theory of operation. A checkpoint's state is what an ordinary migration writes into a descriptor,
 * of everything but the guest's RAM, which the capability x-ignore-shared leaves out. Most
 * checkpoints get it in a shorter way (save.c), which is learnt from one that is a migration:
 *
 * QEMU stops the vCPUs by itself
 * (event STOP), writes CPU and device state, says MIGRATION completed, closes the descriptor, and
 * stays stopped. Between STOP and the end it lets the disks' requests end and flushes the disks,
 * which takes as long as the slowest of them. The checkpoint is complete when both the event and
 * the end of the stream were seen: STOP alone does not mean that QEMU's I/O into the guest's RAM is
 * drained.
 *
 * QEMU holds its big lock while it writes, and answers no QMP meanwhile; so the stream is read as
 * it comes, and everything that can be done before the order is done before ("armed").
 *
 * A checkpoint that we cannot keep is read to its end all the same, and dropped: QEMU 7.2 may go on
 * without its disks, and abort at the guest's next write, when it is told to cancel a migration, or
 * loses its descriptor, after it has let the disks go. A migration that fails by itself is well
 * rolled back. In either case the VM continues if it ran before. One that does not end is
 * cancelled; with disks, the VM is given up. The point of no return is the caller's: it may drop
 * any checkpoint and resume. */

enum {
    STREAM_FIRST_BYTES = 1 << 20,
    STREAM_READ_MIN_BYTES = 1 << 16,
    STREAM_SOCKET_BYTES = 1 << 20,
};

/* Short names: QEMU reads them byte by byte. */
static const char getfd_arguments[] = "{\"fdname\":\"c\"}";
static const char migrate_arguments[] = "{\"uri\":\"fd:c\"}";

void vm_stream_done(struct vm_stream *stream)
{
    stream->source = sd_event_source_disable_unref(stream->source);
    if (stream->fd >= 0)
        close(take_fd(&stream->fd));
    free(stream->bytes);
    stream->bytes = NULL;
}

static void disarm(struct vm_stream *stream)
{
    if (stream->source) /* off cannot fail */
        (void)sd_event_source_set_enabled(stream->source, SD_EVENT_OFF);
    stream->source = sd_event_source_disable_unref(stream->source);
    if (stream->fd >= 0)
        close(take_fd(&stream->fd));
}

void vm_checkpoint_end(struct hyp_vm *vm, const uint8_t *bytes, size_t n_bytes)
{
    fault_point("hyp.state-complete");
    vm->timing.state_ns = clock_now_ns() - vm->order_ns - vm->timing.stop_ns;
    vm->state = bytes;
    vm->n_state_bytes = n_bytes;
    vm_end(vm, VM_IDLE, VM_OUTCOME_CHECKPOINT, "device state complete");
}

static void complete_if_all_seen(struct hyp_vm *vm)
{
    if (vm->phase != VM_CHECKPOINT || vm->migration != VM_MIGRATION_COMPLETED || !vm->stream.ended)
        return;
    if (vm->stream.unfit) {
        vm_checkpoint_fail(vm, vm->stream.unfit);
        return;
    }
    if (vm->stream.n_bytes == 0) {
        vm_checkpoint_fail(vm, "QEMU wrote no device state");
        return;
    }
    disarm(&vm->stream);
    vm->migration = VM_MIGRATION_NONE; /* so that the next event does not end it again */
    if (!vm_save_learn(vm))
        vm_checkpoint_end(vm, vm->stream.bytes, vm->stream.n_bytes);
}

/* Makes room for more of the stream. */
static int stream_grow(struct vm_stream *stream)
{
    size_t cap = stream->cap ? stream->cap * 2 : STREAM_FIRST_BYTES;
    uint8_t *grown;

    if (stream->n_bytes > stream->max_bytes)
        return -EFBIG;
    if (stream->cap - stream->n_bytes >= STREAM_READ_MIN_BYTES)
        return 0;
    grown = FAULTY_ALLOC("hyp.state-room", realloc(stream->bytes, cap));
    if (!grown)
        return -ENOMEM;
    stream->bytes = grown;
    stream->cap = cap;
    return 0;
}

/* Reads once, into the stream or, when it is not fit for a checkpoint any more, to nowhere. As
 * recv(2). */
static ssize_t stream_read(struct vm_stream *stream, int fd)
{
    uint8_t nowhere[STREAM_READ_MIN_BYTES];
    ssize_t n;

    if (!stream->unfit && stream_grow(stream) < 0)
        stream->unfit = "the device state is too large";
    if (stream->unfit)
        return recv(fd, nowhere, sizeof(nowhere), MSG_DONTWAIT);
    n = FAULTY("hyp.state-read", recv(fd, stream->bytes + stream->n_bytes,
                                      stream->cap - stream->n_bytes, MSG_DONTWAIT));
    if (n > 0)
        stream->n_bytes += (size_t)n;
    return n;
}

static int on_stream(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct hyp_vm *vm = user;
    struct vm_stream *stream = &vm->stream;
    ssize_t n;

    do
        n = stream_read(stream, fd);
    while (n > 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n < 0)
        stream->unfit = "the device state cannot be read";
    stream->ended = true;
    (void)sd_event_source_set_enabled(source, SD_EVENT_OFF); /* off cannot fail */
    complete_if_all_seen(vm);
    return 0;
}

static void on_armed(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;

    if (!error)
        return;
    log_warning("qemu: getfd: %s", error);
    if (vm->phase == VM_IDLE) /* else the migration that wants it will fail */
        disarm(&vm->stream);
}

int vm_arm(struct hyp_vm *vm)
{
    const int size = STREAM_SOCKET_BYTES;
    struct vm_stream *stream = &vm->stream;
    CLEANUP_FD int ours = -1;
    CLEANUP_FD int theirs = -1;
    int fds[2], r;

    if (vm_save_ready(vm)) {
        vm_save_arm(vm);
        return 0;
    }
    if (stream->fd >= 0)
        return 0;
    if (FAULTY("hyp.arm", socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)) < 0)
        return -errno;
    ours = fds[0];
    theirs = fds[1];
    /* Best effort, needs privilege: QEMU then never waits for us to read. */
    (void)setsockopt(theirs, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
    r = sd_event_add_io(vm->event, &stream->source, ours, EPOLLIN, on_stream, vm);
    if (r >= 0)
        r = qmp_send(vm->qmp, "getfd", getfd_arguments, theirs, on_armed, vm);
    if (r < 0) {
        stream->source = sd_event_source_disable_unref(stream->source);
        return r;
    }
    stream->fd = take_fd(&ours);
    qmp_prepare(vm->qmp, "migrate", migrate_arguments);
    return 0;
}

static void on_migrate(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;
    char why[300];

    if (!error)
        return;
    vm->migration = VM_MIGRATION_FAILED;
    (void)snprintf(why, sizeof(why), "QEMU refused to migrate: %.250s", error);
    if (vm->phase == VM_CHECKPOINT)
        vm_checkpoint_fail(vm, why);
}

static int order_migration(struct hyp_vm *vm)
{
    int r = vm_arm(vm);

    if (r < 0)
        return r;
    vm->stream.n_bytes = 0;
    vm->stream.ended = false;
    vm->stream.unfit = NULL;
    vm->save.learnable = vm->running; /* else the state says that it did not run */
    r = qmp_send(vm->qmp, "migrate", migrate_arguments, -1, on_migrate, vm);
    if (r < 0)
        return r;
    vm->migration = VM_MIGRATION_ACTIVE;
    qmp_prepare(vm->qmp, vm->n_disks > 0 ? "query-blockstats" : "cont", "");
    return 0;
}

void vm_migrate(struct hyp_vm *vm)
{
    if (order_migration(vm) < 0)
        vm_checkpoint_fail(vm, "QEMU does not take orders");
}

int vm_checkpoint(struct hyp_vm *vm, struct err *err)
{
    int r = vm_check_idle(vm, err);

    if (r < 0)
        return r;
    if (vm->incoming)
        return err_set(err, -EINVAL, "the VM waits for its state: there is nothing to checkpoint");
    vm->was_running = vm->running;
    vm->timing = (struct hyp_timing){0};
    vm->order_ns = clock_now_ns();
    vm->migration = VM_MIGRATION_NONE;
    vm->guest_flushes = VM_FLUSHES_UNASKED;
    r = vm_save_ready(vm) ? vm_save(vm) : order_migration(vm);
    if (r < 0)
        return err_sys(err, r, "QMP");
    fault_point("hyp.checkpoint");
    vm_set_phase(vm, VM_CHECKPOINT, "ordered");
    if (!vm->running) /* QEMU will not say STOP */
        vm_stopped(vm);
    vm_set_timer(vm, vm->checkpoint_timeout_ms);
    return 0;
}

void vm_now_running(struct hyp_vm *vm)
{
    vm->running = true;
    vm->incoming = false;
    vm->arm_due = true; /* after the good news */
    vm_end(vm, VM_IDLE, VM_OUTCOME_RUNNING, "running");
}

/* The event RESUME comes a bit before the vCPUs run, the reply to cont just after. */
static void on_cont(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;
    char why[300];

    if (vm->phase != VM_RESUME && vm->phase != VM_ROLLBACK && vm->phase != VM_RESTORE)
        return;
    if (error && vm->cont_tries++ < VM_CONT_TRIES) {
        vm_cont(vm);
        return;
    }
    if (vm->phase == VM_ROLLBACK) {
        vm->running = !error;
        vm_fail(vm, VM_IDLE, vm->failure);
    } else if (error) {
        (void)snprintf(why, sizeof(why), "QEMU refused to continue: %.250s", error);
        vm_fail(vm, VM_IDLE, why);
    } else {
        vm_now_running(vm);
    }
}

static void ignore_reply(void *user, const json_t *ret, const char *error)
{
    (void)user;
}

void vm_cont(struct hyp_vm *vm)
{
    if (qmp_send(vm->qmp, "cont", "", -1, on_cont, vm) < 0)
        vm_fail(vm, VM_LOST, "QEMU does not take orders");
}

int vm_resume(struct hyp_vm *vm, struct err *err)
{
    int r = vm_check_idle(vm, err);

    if (r < 0)
        return r;
    if (vm->incoming)
        return err_set(err, -EINVAL, "the VM waits for its state: it can only be restored");
    vm->cont_tries = 0;
    r = qmp_send(vm->qmp, "cont", "", -1, on_cont, vm);
    if (r < 0)
        return err_sys(err, r, "QMP cont");
    fault_point("hyp.resume");
    vm_set_phase(vm, VM_RESUME, "ordered");
    vm_set_timer(vm, vm->answer_timeout_ms);
    return 0;
}

/* QEMU has given the migration up: let the VM run again if it did before. */
static void settle_rollback(struct hyp_vm *vm)
{
    vm->migration = VM_MIGRATION_NONE; /* so that the next event does not settle again */
    if (vm->was_running) {
        vm->cont_tries = 0;
        vm_cont(vm);
    } else {
        vm_fail(vm, VM_IDLE, vm->failure);
    }
}

static void on_query_migrate(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;
    const char *text = json_string_value(json_object_get(ret, "error-desc"));
    size_t used = strlen(vm->failure);

    if (vm->phase != VM_ROLLBACK)
        return;
    if (text)
        (void)snprintf(vm->failure + used, sizeof(vm->failure) - used, ": %.200s", text);
    settle_rollback(vm);
}

void vm_checkpoint_fail(struct hyp_vm *vm, const char *why)
{
    int r = 0;

    (void)snprintf(vm->failure, sizeof(vm->failure), "%s", why);
    disarm(&vm->stream);
    vm_set_phase(vm, VM_ROLLBACK, why);
    vm_set_timer(vm, vm->answer_timeout_ms);
    if (vm->migration == VM_MIGRATION_ACTIVE)
        r = qmp_send(vm->qmp, "migrate_cancel", "", -1, ignore_reply, vm);
    else if (vm->migration == VM_MIGRATION_NONE) /* it was not, or is over */
        settle_rollback(vm);
    else /* ended already; the event did not say why */
        r = qmp_send(vm->qmp, "query-migrate", "", -1, on_query_migrate, vm);
    if (vm->migration != VM_MIGRATION_ACTIVE)
        vm->migration = VM_MIGRATION_NONE; /* nothing more to wait for but the reply */
    if (r < 0)
        vm_fail(vm, VM_LOST, vm->failure);
}

void vm_checkpoint_event(struct hyp_vm *vm)
{
    if (vm->phase == VM_CHECKPOINT && vm->migration == VM_MIGRATION_FAILED)
        vm_checkpoint_fail(vm, "QEMU's migration failed");
    else if (vm->phase == VM_ROLLBACK && vm->migration > VM_MIGRATION_ACTIVE)
        settle_rollback(vm);
    else
        complete_if_all_seen(vm);
}

void vm_checkpoint_timeout(struct hyp_vm *vm)
{
    static const char why[] = "QEMU did not complete the device state in time";

    if (vm->phase == VM_CHECKPOINT &&
        (vm->save.stopping || (vm->n_disks > 0 && vm->migration == VM_MIGRATION_ACTIVE)))
        vm_fail(vm, VM_LOST, why);
    else if (vm->phase == VM_CHECKPOINT)
        vm_checkpoint_fail(vm, why);
    else
        vm_fail(vm, VM_LOST, vm->failure);
}
