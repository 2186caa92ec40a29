/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "hyp/qemu/vm.h"
#include "io/clock.h"
#include "io/log.h"
#include "io/vm_process.h"

/* Theory of operation. QEMU itself holds the listening end of its control socket: when its client
 * dies it takes the next one, and what the dead one had typed only in part is forgotten. What was
 * under way in it comes to an end without us:
 *
 *     a checkpoint         its reader is gone. Either all of it fitted into the socket: then it
 *                          completes, and the VM stands still. Or writing fails, and QEMU rolls it
 *                          back: the VM runs if it ran before. It is not cancelled (checkpoint.c)
 *     ... by saving        what was ordered and not begun is dropped; the VM stands still if it was
 *                          stopped. The answer may come to us, and is dropped too (qmp_greet())
 *     cont, sent           carried out or not
 *     a restore            the state was all there, and the VM runs; or QEMU ends
 *
 * So we wait until no migration is under way, and look whether the VM runs. What QEMU was told for
 * good (capabilities, parameters) is told again, which does no harm; a descriptor passed under the
 * same name takes the place of the old one. A checkpoint may wait for requests of the disks, and
 * those for the NBD server, which is the caller's: it must serve already. */

enum { SETTLE_POLL_MS = 5 };

static int connect_qmp(struct hyp_vm *vm, const char *path, const struct qmp_callbacks *callbacks,
                       struct qmp **ret_qmp, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r;

    if (fd < 0)
        return err_sys(err, -errno, "socket");
    if (strlen(path) >= sizeof(address.sun_path))
        return err_set(err, -ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
                       sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    if (FAULTY("hyp.attach", connect(fd, (struct sockaddr *)&address, sizeof(address))) < 0)
        return err_sys(err, -errno, "%s", path);
    r = qmp_new(fd, callbacks, vm, ret_qmp);
    if (r < 0)
        return err_sys(err, r, "QMP");
    (void)take_fd(&fd); /* the client has it */
    return 0;
}

/* Whether a text is among those of a list that ends with NULL. */
static bool is_one_of(const char *text, const char *const *list)
{
    while (*list && strcmp(text, *list) != 0)
        list++;
    return *list != NULL;
}

/* Asks QEMU how it is. *ret_settled: nothing is under way in it. */
static int look(struct hyp_vm *vm, const struct qmp_wait *wait, bool *ret_settled, struct err *err)
{
    static const char *const over[] = {"none", "completed", "failed", "cancelled", NULL};
    static const char *const fresh[] = {"prelaunch", "inmigrate", NULL};
    json_auto_t *migration = NULL, *run = NULL;
    const char *text, *state;
    int r;

    r = qmp_call(vm->qmp, "query-migrate", "", -1, wait, &migration, err);
    if (r == 0)
        r = qmp_call(vm->qmp, "query-status", "", -1, wait, &run, err);
    if (r < 0)
        return r;
    text = json_string_value(json_object_get(migration, "status")); /* none: there never was one */
    state = json_string_value(json_object_get(run, "status"));
    if (!state)
        return err_set(err, -EPROTO, "QEMU does not say whether its VM runs");
    *ret_settled = !text || is_one_of(text, over);
    if (*ret_settled && is_one_of(state, fresh))
        return err_set(err, -ESRCH, "QEMU has never run its VM (%s)", state);
    /* The end of a migration comes a moment before what follows from it. */
    if (strcmp(state, "finish-migrate") == 0)
        *ret_settled = false;
    vm->running = strcmp(state, "running") == 0;
    return 0;
}

static int settle(struct hyp_vm *vm, const struct qmp_wait *wait, struct err *err)
{
    struct pollfd gone = {.fd = wait->pidfd, .events = POLLIN};
    bool settled = false;
    int r = 0;

    while (r == 0 && !settled) {
        r = look(vm, wait, &settled, err);
        if (r == 0 && !settled && clock_now_ns() > wait->deadline_ns)
            r = err_set(err, -ETIMEDOUT, "QEMU does not end a migration");
        if (r == 0 && !settled) /* or its end, which the next question finds */
            (void)poll(&gone, 1, SETTLE_POLL_MS);
    }
    return r;
}

static int attach(struct hyp_vm *vm, struct err *err)
{
    unsigned int ms = vm->n_disks > 0 ? VM_ATTACH_DISKS_TIMEOUT_MS : VM_ATTACH_TIMEOUT_MS;
    const struct qmp_wait wait = {clock_now_ns() + ms * NS_PER_MS, vm->pidfd};
    int r = connect_qmp(vm, vm->qmp_path, &vm_qmp_callbacks, &vm->qmp, err);

    if (r == 0)
        r = qmp_greet(vm->qmp, &wait, err);
    /* A QEMU that an earlier version has launched has no such socket. */
    if (r == 0 && access(vm->stop_path, F_OK) == 0)
        r = connect_qmp(vm, vm->stop_path, &vm_stop_callbacks, &vm->stopper, err);
    if (r == 0 && vm->stopper)
        r = qmp_greet(vm->stopper, &wait, err);
    if (r == 0)
        r = settle(vm, &wait, err);
    fault_point("hyp.settled");
    if (r == 0)
        r = vm_prepare(vm, &wait, err);
    if (r < 0)
        return r;
    r = vm_join_loop(vm);
    if (r == 0)
        r = vm_arm(vm);
    return r < 0 ? err_sys(err, r, "event loop") : 0;
}

/* A conversation that did not come about, or broke: with a QEMU that was ending? (One whose guard
 * dies while it starts does not find its disks.) */
static int explain(const struct hyp_vm *vm, int code, struct err *err)
{
    struct pollfd gone = {.fd = vm->pidfd, .events = POLLIN};

    if (code != -ENOTCONN && code != -ECONNREFUSED && code != -ESRCH)
        return code;
    return poll(&gone, 1, VM_EOF_GRACE_MS) == 1 ? err_set(err, -ESRCH, "QEMU has ended") : code;
}

int vm_attach(const struct hyp_launch *launch, pid_t pid, struct hyp_vm **ret_vm, bool *ret_running,
              struct err *err)
{
    struct hyp_vm *vm;
    int r = vm_new(launch, &vm, err);

    if (r < 0)
        return r;
    vm->pid = pid;
    vm->adopted = true;
    vm->incoming = false;
    r = vm_process_open(pid, launch->ram_path, &vm->pidfd);
    if (r < 0)
        err_set(err, r, "process %d does not have this VM any more", (int)pid);
    else if ((r = attach(vm, err)) < 0)
        r = explain(vm, r, err);
    if (r < 0) {
        vm_let_go(vm);
        return r;
    }
    *ret_vm = vm;
    *ret_running = vm->running;
    return 0;
}
