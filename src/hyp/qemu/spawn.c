/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <linux/close_range.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "hyp/qemu/deadline.h"
#include "hyp/qemu/domain.h"

/* Theory of operation. Between fork and exec the child makes itself what the order says; what does
 * not work it reports through a pipe that an exec closes. It may be a copy of a process with many
 * threads, so it makes system calls only, and those that change users directly: the library's own
 * would look for threads that the child does not have.
 *
 * Its pid is written down by itself, because we may be killed at any moment: until it executes the
 * program, it holds our locks; from then on, its pid is found in the file. */

enum {
    FD_FIRST = 3,
    FD_ASIDE = 64, /* above every number that a descriptor is moved to */
};

struct failure {
    int code; /* errno */
    char doing[24];
    int unreadable; /* number in the order's fds; -1: it was something else */
};

static int set_fds(const struct spawn_order *order, int null_fd)
{
    int aside[SPAWN_FDS_MAX];

    /* Out of the way first: one may have the number that another one is to get. */
    for (size_t i = 0; i < order->n_fds; i++) {
        aside[i] = order->fds[i].fd < 0 ? -1 : fcntl(order->fds[i].fd, F_DUPFD_CLOEXEC, FD_ASIDE);
        if (order->fds[i].fd >= 0 && aside[i] < 0)
            return -1;
    }
    if (dup2(null_fd, STDIN_FILENO) < 0 || dup2(order->output_fd, STDOUT_FILENO) < 0 ||
        dup2(order->output_fd, STDERR_FILENO) < 0)
        return -1;
    /* The pipe for failures has to stay until the exec. */
    if (syscall(SYS_close_range, FD_FIRST, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
        return -1;
    for (size_t i = 0; i < order->n_fds; i++) {
        if (aside[i] >= 0 && dup2(aside[i], FD_FIRST + (int)i) < 0)
            return -1;
    }
    return 0;
}

static int set_signals(void)
{
    sigset_t none;

    for (int i = 1; i < SIGRTMIN; i++)
        (void)signal(i, SIG_DFL); /* not possible, nor needed, for some */
    sigemptyset(&none);
    return sigprocmask(SIG_SETMASK, &none, NULL);
}

static int note_pid(int fd)
{
    char text[16];
    int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());

    return fd < 0 || write(fd, text, (size_t)n) == n ? 0 : -1;
}

static int drop_privileges(const struct spawn_order *order)
{
    if (!order->drop)
        return 0;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || domain_enter() < 0 ||
        syscall(SYS_setgroups, order->n_groups, order->groups) < 0 ||
        syscall(SYS_setresgid, order->gid, order->gid, order->gid) < 0)
        return -1;
    return (int)syscall(SYS_setresuid, order->uid, order->uid, order->uid);
}

/* Tries to open what the program will open. Stores the number of the one that fails. */
static int try_files(const struct spawn_order *order, int *ret_unreadable)
{
    char path[32];

    for (size_t i = 0; i < order->n_fds; i++) {
        CLEANUP_FD int fd = -1;

        if (order->fds[i].fd < 0 || !order->fds[i].readable)
            continue;
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", FD_FIRST + (int)i);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
            *ret_unreadable = (int)i;
            return -1;
        }
    }
    return 0;
}

/* The child's life until it is the program. */
static void __attribute__((noreturn))
become(const struct spawn_order *order, int null_fd, int failure_fd)
{
    struct failure failure = {.unreadable = -1};

    (void)setsid(); /* a new process leads no group: cannot fail */
    if (note_pid(order->pid_fd) < 0)
        strcpy(failure.doing, "write its pid");
    else if (set_signals() < 0)
        strcpy(failure.doing, "signals");
    else if (set_fds(order, null_fd) < 0)
        strcpy(failure.doing, "descriptors");
    else if (drop_privileges(order) < 0)
        strcpy(failure.doing, "drop privileges");
    else if (try_files(order, &failure.unreadable) == 0)
        (void)execvp(order->argv[0], order->argv);
    failure.code = errno;
    (void)!write(failure_fd, &failure, sizeof(failure)); /* its end tells, too */
    _exit(127);
}

static int give_up(pid_t pid, const struct spawn_order *order, const struct failure *failure,
                   struct err *err)
{
    (void)kill(pid, SIGKILL); /* ours and not reaped: the pid is still its own */
    (void)waitpid(pid, NULL, 0);
    if (failure->unreadable >= 0)
        return err_sys(err, -failure->code, "user %u may not read %s", (unsigned int)order->uid,
                       order->fds[failure->unreadable].readable);
    return failure->doing[0]
               ? err_sys(err, -failure->code, "%s: %s", order->argv[0], failure->doing)
               : err_sys(err, -failure->code, "%s", order->argv[0]);
}

int spawn(const struct spawn_order *order, pid_t *ret_pid, int *ret_pidfd, struct err *err)
{
    CLEANUP_FD int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CLEANUP_FD int failure_read = -1;
    CLEANUP_FD int failure_write = -1;
    struct failure failure;
    int fds[2], pidfd;
    ssize_t n;
    pid_t pid;

    if (null_fd < 0 || pipe2(fds, O_CLOEXEC) < 0)
        return err_sys(err, -errno, "%s", order->argv[0]);
    failure_read = fds[0];
    failure_write = fds[1];
    pid = FAULTY("hyp.spawn", fork());
    if (pid < 0)
        return err_sys(err, -errno, "%s: fork", order->argv[0]);
    if (pid == 0)
        become(order, null_fd, failure_write);
    close(take_fd(&failure_write));
    do
        n = read(failure_read, &failure, sizeof(failure));
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof(failure))
        return give_up(pid, order, &failure, err);
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        failure = (struct failure){errno, "pidfd_open", -1};
        return give_up(pid, order, &failure, err);
    }
    fault_point("hyp.spawned");
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
    struct spawn_order order = {.argv = argv, .pid_fd = -1};
    char text[64];
    int fds[2], r, status;
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_sys(err, -errno, "pipe");
    read_end = fds[0];
    order.output_fd = write_end = fds[1];
    r = spawn(&order, &pid, &pidfd, err);
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
