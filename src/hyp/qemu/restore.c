/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/clock.h"
#include "hyp/qemu/vm.h"

/* Theory of operation. An incoming QEMU has the standby's RAM image mapped as its own memory and
 * was given one end of a socket at launch. To restore, it is told to take a migration from there,
 * and the last checkpoint's device state is written into our end. It starts the vCPUs by itself
 * (RESUME) when the VM ran at its checkpoint; otherwise we say cont after MIGRATION completed. An
 * incoming QEMU that cannot read the state exits, so failure comes as its end. */

enum {
    FEED_SOCKET_BYTES = 1 << 21,
};

static const char incoming_arguments[] = "{\"uri\":\"fd:r\"}";

void vm_feed_done(struct vm_feed *feed)
{
    feed->source = sd_event_source_disable_unref(feed->source);
    if (feed->fd >= 0)
        close(take_fd(&feed->fd));
    free(feed->bytes);
    feed->bytes = NULL;
}

int vm_prepare_restore(struct hyp_vm *vm, const struct qmp_wait *wait, struct err *err)
{
    const int size = FEED_SOCKET_BYTES;
    CLEANUP_FD int ours = -1;
    CLEANUP_FD int theirs = -1;
    int fds[2], r;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return err_sys(err, -errno, "socketpair");
    ours = fds[0];
    theirs = fds[1];
    /* Best effort, needs privilege: the whole state then fits at once. */
    (void)setsockopt(ours, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
    r = qmp_call(vm->qmp, "getfd", "{\"fdname\":\"r\"}", theirs, wait, NULL, err);
    if (r < 0)
        return r;
    vm->feed.fd = take_fd(&ours);
    qmp_prepare(vm->qmp, "migrate-incoming", incoming_arguments);
    return 0;
}

/* Writes what the socket takes; closes it after the last byte. */
static int on_writable(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct hyp_vm *vm = user;
    struct vm_feed *feed = &vm->feed;
    ssize_t n;

    while (feed->n_sent < feed->n_bytes) {
        n = FAULTY("hyp.restore-write",
                   send(fd, feed->bytes + feed->n_sent, feed->n_bytes - feed->n_sent,
                        MSG_DONTWAIT | MSG_NOSIGNAL));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return 0;
        if (n < 0) /* QEMU does not want it: its end, or the time-out, tells why */
            break;
        feed->n_sent += (size_t)n;
    }
    vm_feed_done(feed);
    return 0;
}

static void on_migrate_incoming(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;
    char why[300];

    if (!error || vm->phase != VM_RESTORE)
        return;
    (void)snprintf(why, sizeof(why), "QEMU refused the device state: %.250s", error);
    vm_feed_done(&vm->feed);
    vm_fail(vm, VM_IDLE, why);
}

static int check_restore(const struct hyp_vm *vm, const struct hyp_state *state, struct err *err)
{
    char format[sizeof(state->format)];
    int r = vm_check_idle(vm, err);

    if (r < 0)
        return r;
    if (!vm->incoming || vm->feed.fd < 0)
        return err_set(err, -EINVAL, "the VM does not wait for a state");
    (void)snprintf(format, sizeof(format), "qemu:%s", vm->machine);
    if (strncmp(format, state->format, sizeof(format)) != 0)
        return err_set(err, -EINVAL, "the state is for %.79s, the VM waiting is %s", state->format,
                       format);
    if (state->n_bytes == 0 || state->n_bytes > VM_STATE_MAX_BYTES)
        return err_set(err, -EINVAL, "a device state of %zu bytes", state->n_bytes);
    return 0;
}

int vm_restore(struct hyp_vm *vm, const struct hyp_state *state, struct err *err)
{
    CLEANUP_FREE uint8_t *copy = NULL;
    int r = check_restore(vm, state, err);

    if (r < 0)
        return r;
    copy = FAULTY_ALLOC("hyp.restore-room", malloc(state->n_bytes));
    if (!copy)
        return err_sys(err, -ENOMEM, "a device state of %zu bytes", state->n_bytes);
    memcpy(copy, state->bytes, state->n_bytes);
    vm->migration = VM_MIGRATION_ACTIVE;
    r = qmp_send(vm->qmp, "migrate-incoming", incoming_arguments, -1, on_migrate_incoming, vm);
    if (r < 0)
        return err_sys(err, r, "QMP migrate-incoming");
    vm->feed.bytes = take_ptr(copy);
    vm->feed.n_bytes = state->n_bytes;
    vm->feed.n_sent = 0;
    vm_set_phase(vm, VM_RESTORE, "ordered");
    vm_set_timer(vm, vm->answer_timeout_ms);
    r = sd_event_add_io(vm->event, &vm->feed.source, vm->feed.fd, EPOLLOUT, on_writable, vm);
    if (r < 0) { /* QEMU waits already: it cannot be asked again */
        vm_kill_because(vm, HYP_EXIT_CRASH, "no memory to restore");
        return err_sys(err, r, "restore");
    }
    return 0;
}

void vm_restore_event(struct hyp_vm *vm)
{
    if (vm->phase != VM_RESTORE || vm->migration != VM_MIGRATION_COMPLETED)
        return;
    fault_point("hyp.restored");
    if (vm->running) {
        vm_now_running(vm);
    } else {
        vm->migration = VM_MIGRATION_NONE; /* so that the next event does not say it again */
        vm->cont_tries = 0;
        vm_cont(vm);
    }
}
