/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "host/host.h"
#include "host/vm_spawn.h"
#include "io/clock.h"
#include "io/vm_process.h"
#include "wire/msg.h"

/* Long enough for the slowest start: launch of the hypervisor and an arbiter out of reach. */
#define READY_TIMEOUT_US UINT64_C(60000000)

enum {
    READY_LINE_MAX = 8192, /* bytes */
    ATTACHES_MAX = 3,      /* in ATTACH_PERIOD_NS; then the cause will not go away by itself */
};

#define ATTACH_PERIOD_NS (60 * NS_PER_S)

static int on_exit_event(sd_event_source *source, int fd, uint32_t events, void *user);

struct vm *vm_get(const struct host *host, const char *name)
{
    struct vm *vm = host->vms;

    while (vm && strcmp(vm->name, name) != 0)
        vm = vm->next;
    return vm;
}

void vms_notify(const struct host *host)
{
    (void)sd_notifyf(0, "STATUS=%u VM%s on this host", host->n_vms, host->n_vms == 1 ? "" : "s");
}

static void vm_free(struct vm *vm)
{
    sd_event_source_disable_unref(vm->exit_source);
    sd_event_source_disable_unref(vm->ready_source);
    sd_event_source_disable_unref(vm->ready_timer);
    control_buf_done(&vm->ready_line);
    if (vm->ready_fd >= 0)
        close(vm->ready_fd);
    close(vm->pidfd);
    free(vm);
}

/* Adds a process to the table. pidfd and ready_fd (-1 = none) are taken, also on failure. */
static int vm_add(struct host *host, const char *name, pid_t pid, int pidfd, int ready_fd,
                  struct vm **ret_vm)
{
    struct vm *vm = FAULTY_ALLOC("host.vm-room", calloc(1, sizeof(*vm)));
    int r;

    if (!vm) {
        close(pidfd);
        if (ready_fd >= 0)
            close(ready_fd);
        return -ENOMEM;
    }
    *vm = (struct vm){
        .host = host, .state = VM_RUNNING, .pid = pid, .pidfd = pidfd, .ready_fd = ready_fd};
    (void)snprintf(vm->name, sizeof(vm->name), "%s", name);
    r = sd_event_add_io(host->event, &vm->exit_source, pidfd, EPOLLIN, on_exit_event, vm);
    /* Its last words on the ready pipe come before its end, also when both are there at once. */
    if (r >= 0)
        r = sd_event_source_set_priority(vm->exit_source, SD_EVENT_PRIORITY_NORMAL + 1);
    if (r < 0) {
        vm_free(vm);
        return r;
    }
    vm->next = host->vms;
    host->vms = vm;
    host->n_vms++;
    vms_notify(host);
    *ret_vm = vm;
    return 0;
}

/* Takes it out of the table; it still has to be freed. */
static void vm_unlink(struct vm *vm)
{
    struct host *host = vm->host;
    struct vm **link = &host->vms;

    while (*link != vm)
        link = &(*link)->next;
    *link = vm->next;
    host->n_vms--;
    vms_notify(host);
}

/* Ends the starting phase and answers `start`, if somebody waits for it. refused NULL: it runs. */
static void vm_settle(struct vm *vm, const char *refused)
{
    struct control_request *start = take_ptr(vm->start);

    vm->ready_source = sd_event_source_disable_unref(vm->ready_source);
    vm->ready_timer = sd_event_source_disable_unref(vm->ready_timer);
    if (vm->ready_fd >= 0)
        close(take_fd(&vm->ready_fd));
    vm->state = VM_RUNNING;
    if (refused)
        log_warning("%s: not started: %s", vm->name, refused);
    else
        log_info("%s: %s, pid %d", vm->name, vm->backs ? "standby" : "primary", (int)vm->pid);
    if (start && refused)
        control_fail(start, "%s: %s", vm->name, refused);
    else if (start)
        control_reply(start, NULL);
    if (!refused && vm->stale)
        reload_one(vm->host, vm);
    door_vm_changed(vm->host, vm->name);
}

static void vm_not_started(struct vm *vm, const char *why)
{
    if (!vm->backs && !vm->had_record)
        record_remove(&vm->host->config, vm->name);
    vm_settle(vm, why);
}

/* The process will not run the VM, and is about to end: only then `start` is answered, so that the
 * next one finds it gone. */
static void vm_refused(struct vm *vm, const char *why)
{
    (void)snprintf(vm->refusal, sizeof(vm->refusal), "%s", why);
    vm->ready_source = sd_event_source_disable_unref(vm->ready_source);
}

static void vm_ready(struct vm *vm)
{
    if (!vm->backs) {
        ended_remove(&vm->host->config, vm->name);
        record_remove_standby(&vm->host->config, vm->name);
    }
    vm_settle(vm, NULL);
}

static bool hypervisor_lives(const struct host *host, const char *name)
{
    CLEANUP_FD int pidfd = -1;
    pid_t pid;

    return vm_process_find(&host->config, name, &pid, &pidfd) == 0;
}

/* The process died and left its hypervisor: the VM runs on, mute, until another process takes its
 * place. False: there is nothing to attach to, or no sense in it. */
static bool vm_attach(struct host *host, const struct vm *dead)
{
    struct vm_order order = {.name = dead->name, .attach = true, .had_record = true, .conn_fd = -1};
    uint64_t now = clock_now_ns();
    bool again = dead->attaches && now - dead->attached_ns < ATTACH_PERIOD_NS;
    struct err err;
    struct vm *vm;

    if (!record_exists(&host->config, dead->name) || !hypervisor_lives(host, dead->name))
        return false;
    if (again && dead->attaches == ATTACHES_MAX) {
        log_error("%s: NOBODY ATTENDS TO IT: its process died %d times in a row; its hypervisor "
                  "is mute: start it again",
                  dead->name, ATTACHES_MAX + 1);
        return false;
    }
    if (vm_start(host, &order, &err) < 0) {
        log_error("%s: %s", dead->name, err.text);
        return false;
    }
    vm = vm_get(host, dead->name);
    vm->attaches = again ? dead->attaches + 1 : 1;
    vm->attached_ns = again ? dead->attached_ns : now;
    return true;
}

/* A standby's process may have taken the VM over and died with it, before it could record that. */
static bool may_have_had_vm(const struct vm *vm)
{
    const struct host_config *config = &vm->host->config;

    return vm->backs || record_exists(config, vm->name) || record_exists_standby(config, vm->name);
}

/* The process has ended. A start that never became ready failed; a VM that ended otherwise than by
 * its process' own decision leaves a note. */
static void vm_gone(struct vm *vm)
{
    struct host *host = vm->host;
    char how[96], text[160], path[RECORD_PATH_MAX];
    bool bad = spawn_reap(vm->pidfd, how, sizeof(how));

    fault_point("host.vm-gone");
    vm_unlink(vm);
    vm_socket_path(&host->config, vm->name, path);
    (void)unlink(path); /* a process that ended well has done it */
    (void)snprintf(text, sizeof(text), "its process %s", how);
    log_line(bad ? LOG_WARNING : LOG_INFO, "%s: %s", vm->name, text);
    if (!vm->start && vm_attach(host, vm))
        log_info("%s: another one takes its place", vm->name);
    else if (vm->state == VM_STARTING)
        vm_not_started(vm, vm->refusal[0] ? vm->refusal : strcat(text, "; the log may say why"));
    else if (bad && may_have_had_vm(vm))
        ended_note_crash(&host->config, vm->name, text);
    relay_vm_gone(host, vm->name);
    door_vm_changed(host, vm->name);
    vm_free(vm);
}

static int on_exit_event(sd_event_source *source, int fd, uint32_t events, void *user)
{
    vm_gone(user);
    return 0;
}

/* The ready line: {"ok": true} or {"ok": false, "error": ...}. */
static void ready_line(struct vm *vm, const char *line, size_t n)
{
    json_t *json = NULL;
    struct err err;
    bool is_answer = false;

    if (control_parse_answer(line, n, &json, &is_answer, &err) < 0)
        vm_refused(vm, err.text);
    else if (is_answer && json_is_true(json_object_get(json, "ok")))
        vm_ready(vm);
    else
        vm_refused(vm, json_string_value(json_object_get(json, "error")) ?: "no reason given");
    json_decref(json);
}

static int on_ready(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct vm *vm = user;
    char text[1024];
    ssize_t n = FAULTY("host.read-ready", read(fd, text, sizeof(text)));

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        /* It crashed; how will be known when the process is gone. */
        vm->ready_source = sd_event_source_disable_unref(vm->ready_source);
        return 0;
    }
    if (vm->ready_line.n > READY_LINE_MAX ||
        control_buf_add(&vm->ready_line, text, (size_t)n) < 0) {
        vm_refused(vm, "its ready line is too long");
        return 0;
    }
    n = control_buf_line(&vm->ready_line);
    if (n >= 0)
        ready_line(vm, vm->ready_line.bytes, (size_t)n);
    return 0;
}

static int on_ready_timeout(sd_event_source *source, uint64_t usec, void *user)
{
    struct vm *vm = user;

    vm_settle(vm, vm->refusal[0] ? vm->refusal : "it is not ready yet after 60 s; see its status");
    return 0;
}

int vm_start(struct host *host, const struct vm_order *order, struct err *err)
{
    struct spawn_params params = {.config = &host->config,
                                  .config_path = host->config_path,
                                  .vm = order->name,
                                  .conn_fd = order->conn_fd,
                                  .seize = order->seize,
                                  .attach = order->attach,
                                  .recover = order->recover};
    struct spawned s;
    struct vm *vm;
    int r;

    if (host->n_vms == HOST_VMS_MAX)
        return err_set(err, -EBUSY, "%d VMs are the most that a host takes", HOST_VMS_MAX);
    r = spawn_vm(&params, &s, err);
    if (r < 0)
        return r;
    r = vm_add(host, order->name, s.pid, s.pidfd, s.ready_fd, &vm);
    if (r < 0)
        return err_sys(err, r, "%s", order->name);
    vm->state = VM_STARTING;
    vm->backs = order->conn_fd >= 0;
    vm->start = order->start;
    vm->had_record = order->had_record;
    r = sd_event_add_io(host->event, &vm->ready_source, vm->ready_fd, EPOLLIN, on_ready, vm);
    if (r >= 0)
        r = sd_event_add_time_relative(host->event, &vm->ready_timer, CLOCK_MONOTONIC,
                                       READY_TIMEOUT_US, 1000, on_ready_timeout, vm);
    if (r < 0) /* the process exists and goes on: only nobody hears from it */
        vm_settle(vm, strerror(-r));
    return 0;
}

/* The process that listens on a VM's socket, or 0 when there is none. */
static pid_t listener_of(const char *path)
{
    CLEANUP_FD int sock = -1;
    struct ucred cred;
    socklen_t n = sizeof(cred);

    if (control_connect(path, &sock, NULL) < 0 ||
        getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
        return 0;
    return cred.pid;
}

static int find_one(struct host *host, const char *name, struct err *err)
{
    char path[RECORD_PATH_MAX];
    struct vm *vm;
    int pidfd, r;
    pid_t pid;

    fault_point("host.find");
    if (vm_get(host, name))
        return 0; /* attached to a moment ago: its new socket is there already */
    vm_socket_path(&host->config, name, path);
    pid = listener_of(path);
    if (pid == 0) {
        struct vm dead = {.attaches = 0};

        log_info("%s: its process is gone", name);
        (void)unlink(path);
        (void)snprintf(dead.name, sizeof(dead.name), "%s", name);
        (void)vm_attach(host, &dead);
        return 0;
    }
    pidfd = pidfd_open(pid, 0);
    if (pidfd < 0 && errno == ESRCH)
        return 0; /* it has just ended */
    r = pidfd < 0 ? -errno : vm_add(host, name, pid, pidfd, -1, &vm);
    if (r < 0)
        return err_sys(err, r, "%s: pid %d", name, (int)pid);
    log_info("%s: found again, pid %d", name, (int)pid);
    return 0;
}

int vms_find(struct host *host, struct err *err)
{
    static const char ending[] = ".sock";
    char path[RECORD_PATH_MAX];
    struct dirent *entry;
    DIR *dir;
    int r = 0;

    (void)snprintf(path, sizeof(path), "%s/vms", host->config.run_dir);
    dir = opendir(path);
    while (r == 0 && dir && (entry = readdir(dir)) && host->n_vms < HOST_VMS_MAX) {
        size_t n = strlen(entry->d_name);
        char name[VM_NAME_MAX];

        if (n <= strlen(ending) || n - strlen(ending) >= sizeof(name) ||
            strcmp(entry->d_name + n - strlen(ending), ending) != 0)
            continue;
        (void)snprintf(name, sizeof(name), "%.*s", (int)(n - strlen(ending)), entry->d_name);
        if (wire_name_valid(name))
            r = find_one(host, name, err);
    }
    if (dir)
        (void)closedir(dir); /* only read */
    return r;
}

void vms_done(struct host *host)
{
    while (host->vms) {
        struct vm *vm = host->vms;
        struct control_request *start = take_ptr(vm->start);

        if (start)
            control_fail(start, "%s: understudyd ends; the VM goes on starting", vm->name);
        vm_unlink(vm);
        vm_free(vm);
    }
}
