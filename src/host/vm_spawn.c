/* SPDX-License-Identifier: Apache-2.0 */
#include "host/vm_spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "host/records.h"

/* Keeps a descriptor open across the exec: dup2 onto itself clears CLOEXEC in the child. */
static int pass_fd(posix_spawn_file_actions_t *actions, int fd)
{
    return fd < 0 ? 0 : posix_spawn_file_actions_adddup2(actions, fd, fd);
}

static int set_up(posix_spawn_file_actions_t *actions, posix_spawnattr_t *attr, int conn_fd,
                  int ready_fd)
{
    sigset_t none, all;
    int r;

    sigemptyset(&none);
    sigfillset(&all);
    r = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
                                           POSIX_SPAWN_SETSIGDEF);
    if (r == 0)
        r = posix_spawnattr_setsigmask(attr, &none);
    if (r == 0)
        r = posix_spawnattr_setsigdefault(attr, &all);
    if (r == 0)
        r = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(actions, STDERR_FILENO, STDOUT_FILENO);
    if (r == 0)
        r = pass_fd(actions, conn_fd);
    if (r == 0)
        r = pass_fd(actions, ready_fd);
    return r;
}

static int run(const struct spawn_params *p, int ready_fd, pid_t *ret_pid)
{
    char record[RECORD_PATH_MAX], ready[16], conn[16];
    const char *role = p->conn_fd >= 0 ? "standby" : p->attach ? "attach" : "primary";
    const char *argv[12] = {p->config->guard, role,   "--config",
                            p->config_path,   "--vm", p->conn_fd < 0 ? record : p->vm,
                            "--ready-fd",     ready};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    size_t n = 8;
    int r;

    record_path(p->config, p->vm, record);
    (void)snprintf(ready, sizeof(ready), "%d", ready_fd);
    (void)snprintf(conn, sizeof(conn), "%d", p->conn_fd);
    if (p->conn_fd >= 0) {
        argv[n++] = "--conn-fd";
        argv[n++] = conn;
    }
    if (p->seize)
        argv[n++] = "--seize";
    if (p->recover)
        argv[n++] = "--recover";
    if (posix_spawn_file_actions_init(&actions) != 0)
        return -ENOMEM;
    if (posix_spawnattr_init(&attr) != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return -ENOMEM;
    }
    r = set_up(&actions, &attr, p->conn_fd, ready_fd);
    if (r == 0) /* execve does not change the strings; its type is older than const */
        r = -fault_error("host.spawn")
                ?: posix_spawn(ret_pid, p->config->guard, &actions, &attr, (char **)(uintptr_t)argv,
                               environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    return -r;
}

int spawn_vm(const struct spawn_params *p, struct spawned *ret_spawned, struct err *err)
{
    CLEANUP_FD int ready_read = -1;
    CLEANUP_FD int ready_write = -1;
    struct spawned s;
    int fds[2];
    int r;

    if (FAULTY("host.pipe", pipe2(fds, O_CLOEXEC)) < 0)
        return err_sys(err, -errno, "pipe");
    ready_read = fds[0];
    ready_write = fds[1];
    if (fcntl(ready_read, F_SETFL, O_NONBLOCK) < 0)
        return err_sys(err, -errno, "pipe");
    r = run(p, ready_write, &s.pid);
    if (r < 0)
        return err_sys(err, r, "%s", p->config->guard);
    fault_point("host.spawned");
    s.pidfd = FAULTY("host.pidfd",
                     pidfd_open(s.pid, 0)); /* nobody else reaps it, so the pid is still its own */
    if (s.pidfd < 0) {
        r = -errno;
        (void)kill(s.pid, SIGKILL);
        (void)waitpid(s.pid, NULL, 0);
        return err_sys(err, r, "pidfd_open");
    }
    s.ready_fd = take_fd(&ready_read);
    *ret_spawned = s;
    return 0;
}

bool spawn_reap(int pidfd, char *out, size_t n_out)
{
    siginfo_t info = {0};

    if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0) {
        (void)snprintf(out, n_out, "ended"); /* not our child: started before we were */
        return true;
    }
    if (info.si_code == CLD_EXITED) {
        (void)snprintf(out, n_out, "ended with status %d", info.si_status);
        return info.si_status != 0;
    }
    (void)snprintf(out, n_out, "was killed by signal %d (%s)", info.si_status,
                   strsignal(info.si_status));
    return true;
}
