/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "hyp/qemu/deadline.h"

/* Fills in what happens in the child between fork and exec. Returns an errno, as posix_spawn(3). */
static int describe_child(posix_spawn_file_actions_t *actions, posix_spawnattr_t *attr,
                          int output_fd, int extra_fd)
{
    sigset_t all, none;
    int e;

    sigfillset(&all);
    sigemptyset(&none);
    e = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!e)
        e = posix_spawn_file_actions_adddup2(actions, output_fd, STDOUT_FILENO);
    if (!e)
        e = posix_spawn_file_actions_adddup2(actions, output_fd, STDERR_FILENO);
    if (!e && extra_fd >= 0)
        e = posix_spawn_file_actions_adddup2(actions, extra_fd, 3);
    if (!e)
        e = posix_spawn_file_actions_addclosefrom_np(actions, extra_fd >= 0 ? 4 : 3);
    if (!e)
        e = posix_spawnattr_setsigdefault(attr, &all);
    if (!e)
        e = posix_spawnattr_setsigmask(attr, &none);
    if (!e)
        e = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF |
                                               POSIX_SPAWN_SETSIGMASK);
    return e;
}

int spawn(char *const argv[], int output_fd, int extra_fd, pid_t *ret_pid, int *ret_pidfd,
          struct err *err)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    pid_t pid;
    int e, pidfd;

    if (posix_spawn_file_actions_init(&actions) != 0)
        return err_sys(err, -ENOMEM, "%s", argv[0]);
    if (posix_spawnattr_init(&attr) != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return err_sys(err, -ENOMEM, "%s", argv[0]);
    }
    e = describe_child(&actions, &attr, output_fd, extra_fd);
    if (!e)
        e = -fault_error("hyp.spawn")
                ?: posix_spawnp(&pid, argv[0], &actions, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    if (e)
        return err_sys(err, -e, "%s", argv[0]);
    fault_point("hyp.spawned");
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0); /* our unreaped child: the pid is still its own */
    if (pidfd < 0) {
        e = errno;
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        return err_sys(err, -e, "pidfd_open");
    }
    *ret_pid = pid;
    *ret_pidfd = pidfd;
    return 0;
}

int spawn_wait(int pidfd, uint64_t deadline_ns, int *ret_status)
{
    struct pollfd fd = {.fd = pidfd, .events = POLLIN};
    siginfo_t info = {0};

    while (poll(&fd, 1, ms_until(deadline_ns)) <= 0) {
        if (clock_now_ns() >= deadline_ns)
            return -ETIMEDOUT;
    }
    *ret_status = 0;
    if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0)
        return 0; /* with SIGCHLD ignored, the kernel has reaped it */
    *ret_status =
        info.si_code == CLD_EXITED ? W_EXITCODE(info.si_status, 0) : W_EXITCODE(0, info.si_status);
    return 0;
}

void spawn_kill(int pidfd)
{
    (void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0); /* ESRCH: gone, as wanted */
}

void spawn_describe(int status, char *ret_text, size_t n)
{
    if (WIFSIGNALED(status))
        (void)snprintf(ret_text, n, "killed by signal %d (%s)", WTERMSIG(status),
                       strsignal(WTERMSIG(status)));
    else
        (void)snprintf(ret_text, n, "exit status %d", WEXITSTATUS(status));
}

/* Reads until the end of the output, the deadline, or until the buffer is full; the rest of a long
 * output is read and dropped. */
static int read_output(int fd, uint64_t deadline_ns, char *output, size_t cap)
{
    size_t n = 0;

    for (;;) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        char chunk[4096];
        ssize_t got;

        if (poll(&pfd, 1, ms_until(deadline_ns)) <= 0) {
            if (clock_now_ns() >= deadline_ns)
                return -ETIMEDOUT;
            continue;
        }
        got = read(fd, chunk, sizeof(chunk));
        if (got <= 0)
            break;
        if ((size_t)got > cap - 1 - n)
            got = (ssize_t)(cap - 1 - n);
        memcpy(output + n, chunk, (size_t)got);
        n += (size_t)got;
    }
    output[n] = 0;
    return 0;
}

int spawn_capture(char *const argv[], uint64_t timeout_ns, char *ret_output, size_t cap,
                  struct err *err)
{
    uint64_t deadline_ns = clock_now_ns() + timeout_ns;
    CLEANUP_FD int read_end = -1;
    CLEANUP_FD int write_end = -1;
    CLEANUP_FD int pidfd = -1;
    char text[64];
    int fds[2], r, status;
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_sys(err, -errno, "pipe");
    read_end = fds[0];
    write_end = fds[1];
    r = spawn(argv, write_end, -1, &pid, &pidfd, err);
    if (r < 0)
        return r;
    close(take_fd(&write_end));
    r = read_output(read_end, deadline_ns, ret_output, cap);
    if (r == 0)
        r = spawn_wait(pidfd, deadline_ns, &status);
    if (r < 0) {
        spawn_kill(pidfd);
        if (spawn_wait(pidfd, clock_now_ns() + NS_PER_S, &status) < 0)
            return err_set(err, r, "%s does not end, even when killed", argv[0]);
        return err_set(err, r, "%s %s: no answer within %d ms", argv[0], argv[1],
                       (int)(timeout_ns / NS_PER_MS));
    }
    if (status == 0)
        return 0;
    spawn_describe(status, text, sizeof(text));
    return err_set(err, -EIO, "%s %s: %s: %.*s", argv[0], argv[1], text,
                   (int)strcspn(ret_output, "\n"), ret_output);
}
