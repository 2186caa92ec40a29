/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "hyp/qemu/args.h"
#include "io/clock.h"
#include "hyp/qemu/spawn.h"
#include "hyp/qemu/vm.h"
#include "io/vm_process.h"

void vm_last_words(const char *log_path, char *ret_line, size_t n)
{
    CLEANUP_FD int fd = open(log_path, O_RDONLY | O_CLOEXEC);
    char tail[1024], *line;
    struct stat st;
    ssize_t got = 0;

    *ret_line = 0;
    if (fd < 0 || fstat(fd, &st) < 0)
        return;
    if (st.st_size > 0)
        got = pread(fd, tail, sizeof(tail) - 1,
                    st.st_size < (off_t)sizeof(tail) ? 0 : st.st_size - (off_t)sizeof(tail) + 1);
    while (got > 0 && (tail[got - 1] == '\n' || tail[got - 1] == '\r'))
        got--;
    if (got <= 0)
        return;
    tail[got] = 0;
    line = strrchr(tail, '\n');
    (void)snprintf(ret_line, n, "%s", line ? line + 1 : tail);
    for (char *c = ret_line; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
}

/* Makes a control socket and connects to it, before QEMU exists: QEMU inherits the listening end
 * and answers when it is ready, so nobody has to wait for a file to appear. */
static int make_qmp(const char *path, const struct qmp_callbacks *callbacks, struct hyp_vm *vm,
                    int *ret_listener, struct qmp **ret_qmp, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_FD int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CLEANUP_FD int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r;

    if (listener < 0 || client < 0)
        return err_sys(err, -errno, "socket");
    if (strlen(path) >= sizeof(address.sun_path))
        return err_set(err, -ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
                       sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    if (unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, -errno, "%s", path);
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        chmod(path, S_IRUSR | S_IWUSR) < 0 || listen(listener, 1) < 0 ||
        connect(client, (struct sockaddr *)&address, sizeof(address)) < 0)
        return err_sys(err, -errno, "%s", path);
    r = qmp_new(client, callbacks, vm, ret_qmp);
    if (r < 0)
        return err_sys(err, r, "QMP");
    (void)take_fd(&client); /* the client has it */
    *ret_listener = take_fd(&listener);
    return 0;
}

/* Remembers what close() has to remove. */
static int take_nic_paths(struct hyp_vm *vm, const struct hyp_launch *launch, struct err *err)
{
    size_t n = launch->spec->n_nics;

    if (n > VM_NICS_MAX)
        return err_set(err, -EINVAL, "too many NICs");
    for (size_t i = 0; i < n; i++) {
        const struct hyp_nic_paths *paths = &launch->nics[i];

        if (!memchr(paths->hyp_path, 0, sizeof(paths->hyp_path)) ||
            !memchr(paths->guard_path, 0, sizeof(paths->guard_path)))
            return err_set(err, -ENAMETOOLONG, "NIC %zu: a socket's path has at most %zu bytes", i,
                           sizeof(paths->hyp_path) - 1);
        memcpy(vm->hyp_paths[i], paths->hyp_path, sizeof(vm->hyp_paths[i]));
    }
    vm->n_nics = n;
    return 0;
}

/* Removes what an earlier run left where QEMU is to bind its sockets. */
static int clear_nic_paths(const struct hyp_vm *vm, struct err *err)
{
    for (size_t i = 0; i < vm->n_nics; i++) {
        if (unlink(vm->hyp_paths[i]) < 0 && errno != ENOENT)
            return err_sys(err, -errno, "%s", vm->hyp_paths[i]);
    }
    return 0;
}

int vm_new(const struct hyp_launch *launch, struct hyp_vm **ret_vm, struct err *err)
{
    struct hyp_vm *vm = calloc(1, sizeof(*vm));
    int r;

    if (!vm)
        return err_sys(err, -ENOMEM, "launch");
    vm->event = sd_event_ref(launch->event);
    vm->callbacks = launch->callbacks;
    vm->user = launch->user;
    vm->ram_bytes = launch->spec->memory_bytes;
    vm->incoming = launch->incoming;
    vm->pidfd = vm->stream.fd = vm->feed.fd = -1;
    vm->stream.max_bytes = VM_STATE_MAX_BYTES;
    vm_save_init(&vm->save);
    vm->n_disks = launch->spec->n_disks;
    vm->checkpoint_timeout_ms =
        vm->n_disks > 0 ? VM_CHECKPOINT_DISKS_TIMEOUT_MS : VM_CHECKPOINT_TIMEOUT_MS;
    vm->answer_timeout_ms = VM_ANSWER_TIMEOUT_MS;
    (void)snprintf(vm->machine, sizeof(vm->machine), "%s", launch->spec->machine);
    vm->ram_path = strdup(launch->ram_path);
    if (asprintf(&vm->qmp_path, "%s/qmp.sock", launch->run_dir) < 0)
        vm->qmp_path = NULL;
    if (asprintf(&vm->stop_path, "%s/stop.sock", launch->run_dir) < 0)
        vm->stop_path = NULL;
    if (asprintf(&vm->log_path, "%s/qemu.log", launch->run_dir) < 0)
        vm->log_path = NULL;
    if (asprintf(&vm->pid_path, "%s/" VM_PID_FILE, launch->run_dir) < 0)
        vm->pid_path = NULL;
    if (!vm->ram_path || !vm->qmp_path || !vm->stop_path || !vm->log_path || !vm->pid_path)
        r = err_sys(err, -ENOMEM, "launch");
    else
        r = take_nic_paths(vm, launch, err);
    if (r < 0) {
        vm_let_go(vm);
        return r;
    }
    *ret_vm = vm;
    return 0;
}

/* Our ends of what QEMU gets at its start. */
struct start_fds {
    int fd[ARGS_FDS_END]; /* for its descriptor of that number; -1: none */
    int log_fd, pid_fd;
};

static void start_fds_close(struct start_fds *fds)
{
    for (size_t i = 0; i < ARGS_FDS_END; i++)
        cleanup_fd(&fds->fd[i]);
    cleanup_fd(&fds->log_fd);
    cleanup_fd(&fds->pid_fd);
}

static int open_one(const char *path, int flags, int *ret_fd, struct err *err)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);

    if (fd < 0)
        return err_sys(err, -errno, "%s", path);
    *ret_fd = fd;
    return 0;
}

/* What the guest starts from. Its path may come from a peer. */
static int open_boot_file(const char *path, int *ret_fd, struct err *err)
{
    CLEANUP_FD int fd = -1;
    struct stat st;
    int r;

    if (!path[0])
        return 0;
    r = open_one(path, O_RDONLY | O_NONBLOCK, &fd, err);
    if (r < 0)
        return r;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "%s: not a regular file", path);
    *ret_fd = take_fd(&fd);
    return 0;
}

static int open_start_fds(const struct hyp_vm *vm, const struct hyp_launch *launch,
                          struct start_fds *fds, struct err *err)
{
    const struct vm_spec *spec = launch->spec;
    int log_flags = O_WRONLY | O_CREAT | O_TRUNC | O_APPEND;
    int r;

    r = fault_error("hyp.open-log") ?: open_one(vm->log_path, log_flags, &fds->log_fd, err);
    if (r == 0)
        r = open_one(vm->pid_path, O_WRONLY | O_CREAT | O_TRUNC, &fds->pid_fd, err);
    if (r == 0)
        r = open_one(launch->ram_path, O_RDWR, &fds->fd[RAM_FD], err);
    if (r == 0)
        r = open_one(launch->run_dir, O_PATH | O_DIRECTORY, &fds->fd[RUN_DIR_FD], err);
    if (r == 0)
        r = open_boot_file(spec->kernel, &fds->fd[KERNEL_FD], err);
    if (r == 0)
        r = open_boot_file(spec->initrd, &fds->fd[INITRD_FD], err);
    if (r == 0)
        r = open_boot_file(spec->firmware, &fds->fd[FIRMWARE_FD], err);
    return r;
}

/* The group that may use /dev/kvm, where that takes one. */
static size_t kvm_groups(const struct vm_spec *spec, gid_t *ret_group)
{
    struct stat st;

    if (strcmp(spec->accel, "kvm") != 0 || stat("/dev/kvm", &st) < 0)
        return 0;
    if ((st.st_mode & (S_IRGRP | S_IWGRP)) != (S_IRGRP | S_IWGRP) || st.st_gid == 0)
        return 0;
    *ret_group = st.st_gid;
    return 1;
}

static int start_process(struct hyp_vm *vm, const struct hyp_launch *launch, struct err *err)
{
    const struct vm_spec *spec = launch->spec;
    CLEANUP(args_done) struct args args = {0};
    CLEANUP(start_fds_close) struct start_fds fds = {.log_fd = -1, .pid_fd = -1};
    CLEANUP_FD int stop_listener = -1;
    struct spawn_order order = {
        .n_fds = ARGS_FDS_END - QMP_LISTEN_FD,
        .drop = launch->uid != geteuid() || launch->gid != getegid(),
        .uid = launch->uid,
        .gid = launch->gid,
        .n_groups = kvm_groups(spec, order.groups),
    };
    int r;

    memset(fds.fd, -1, sizeof(fds.fd));
    r = args_build(&args, launch, err);
    if (r == 0)
        r = clear_nic_paths(vm, err);
    if (r == 0)
        r = make_qmp(vm->qmp_path, &vm_qmp_callbacks, vm, &fds.fd[QMP_LISTEN_FD], &vm->qmp, err);
    if (r == 0)
        r = make_qmp(vm->stop_path, &vm_stop_callbacks, vm, &stop_listener, &vm->stopper, err);
    if (r == 0)
        r = open_start_fds(vm, launch, &fds, err);
    if (r < 0)
        return r;
    order.argv = args.v;
    order.output_fd = fds.log_fd;
    order.pid_fd = fds.pid_fd;
    for (size_t i = 0; i < order.n_fds; i++)
        order.fds[i].fd = fds.fd[QMP_LISTEN_FD + i];
    for (uint32_t i = 0; launch->disk_listeners && i < spec->n_disks; i++)
        order.fds[order.n_fds++].fd = launch->disk_listeners[i];
    while (order.n_fds < STOP_LISTEN_FD - QMP_LISTEN_FD)
        order.fds[order.n_fds++].fd = -1;
    order.fds[order.n_fds++].fd = stop_listener;
    order.fds[KERNEL_FD - QMP_LISTEN_FD].readable = spec->kernel;
    order.fds[INITRD_FD - QMP_LISTEN_FD].readable = spec->initrd;
    order.fds[FIRMWARE_FD - QMP_LISTEN_FD].readable = spec->firmware;
    return spawn(&order, &vm->pid, &vm->pidfd, err);
}

/* Asks QEMU whether a device blocks migration: what cannot migrate cannot be checkpointed. */
static int check_blockers(struct hyp_vm *vm, const struct qmp_wait *wait, struct err *err)
{
    json_auto_t *info = NULL;
    const json_t *reasons;
    const char *text;
    int r = qmp_call(vm->qmp, "query-migrate", "", -1, wait, &info, err);

    if (r < 0)
        return r;
    reasons = json_object_get(info, "blocked-reasons");
    if (json_array_size(reasons) == 0)
        return 0;
    text = json_string_value(json_array_get(reasons, 0));
    return err_set(err, -EOPNOTSUPP, "the VM cannot be checkpointed: %s",
                   text ? text : "QEMU does not say why");
}

int vm_prepare(struct hyp_vm *vm, const struct qmp_wait *wait, struct err *err)
{
    static const struct {
        const char *command, *arguments;
    } setup[] = {
        {"migrate-set-capabilities",
         "{\"capabilities\":[{\"capability\":\"x-ignore-shared\",\"state\":true},"
         "{\"capability\":\"events\",\"state\":true}]}"},
        /* 64 GB/s: never the limit. The time a completion may take is not limited either. */
        {"migrate-set-parameters", "{\"max-bandwidth\":68719476736,\"downtime-limit\":2000000}"},
    };
    int r = 0;

    for (size_t i = 0; r == 0 && i < sizeof(setup) / sizeof(setup[0]); i++)
        r = qmp_call(vm->qmp, setup[i].command, setup[i].arguments, -1, wait, NULL, err);
    if (r == 0)
        r = check_blockers(vm, wait, err);
    if (r == 0 && vm->stopper)
        vm_save_prepare(vm, wait);
    if (r == 0 && vm->incoming)
        r = vm_prepare_restore(vm, wait, err);
    return r;
}

/* QEMU says in its log why it did not start. */
static void explain(const struct hyp_vm *vm, struct err *err)
{
    char words[256];

    vm_last_words(vm->log_path, words, sizeof(words));
    if (words[0])
        err_set(err, 0, "QEMU: %s", words);
}

int vm_launch(const struct hyp_launch *launch, struct hyp_vm **ret_vm, struct err *err)
{
    struct qmp_wait wait;
    struct hyp_vm *vm = NULL;
    int r, status;

    r = vm_new(launch, &vm, err);
    if (r < 0)
        return r;
    r = start_process(vm, launch, err);
    if (r == 0) {
        wait.deadline_ns = clock_now_ns() + VM_LAUNCH_TIMEOUT_MS * NS_PER_MS;
        wait.pidfd = vm->pidfd;
        r = qmp_greet(vm->qmp, &wait, err);
        if (r == 0)
            r = qmp_greet(vm->stopper, &wait, err);
        if (r == 0)
            r = vm_prepare(vm, &wait, err);
        if (r == -ESRCH || r == -ENOTCONN) { /* it has ended */
            if (spawn_wait(vm->pidfd, clock_now_ns() + VM_EOF_GRACE_MS * NS_PER_MS, &status) == 0)
                close(take_fd(&vm->pidfd));
            explain(vm, err);
        }
    }
    if (r == 0) {
        r = vm_join_loop(vm);
        if (r == 0 && !vm->incoming)
            r = vm_arm(vm);
        if (r < 0)
            err_sys(err, r, "event loop");
    }
    if (r < 0) {
        vm_close(vm);
        return r;
    }
    *ret_vm = vm;
    return 0;
}
