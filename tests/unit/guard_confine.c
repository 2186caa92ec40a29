/* SPDX-License-Identifier: Apache-2.0 */
/* What a confined process can still do, and what it cannot. Each test is a process of its own. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"

#include "guard/confine.h"
#include "io/thread.h"

enum { STRANGER = 64110 };

/* In the child: says which line does not hold, by the exit status. */
#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "# line %d: %s: %s\n", __LINE__, #condition, strerror(errno));         \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static void in_child(void (*body)(void))
{
    int status;
    pid_t pid;

    if (geteuid() != 0)
        skip();
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)alarm(20);
        body();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static uint64_t status_number(const char *name)
{
    FILE *file = fopen("/proc/self/status", "re");
    unsigned long long value = ~0ULL;
    size_t n = strlen(name);
    char line[256];

    MUST(file);
    while (fgets(line, sizeof(line), file)) {
        if (strncmp(line, name, n) == 0 && line[n] == ':')
            MUST(sscanf(line + n + 1, "%llx", &value) == 1);
    }
    (void)fclose(file); /* only read */
    return value;
}

static void early(void)
{
    struct err err;

    if (confine_early(&err) < 0) {
        fprintf(stderr, "# %s\n", err.text);
        _exit(1);
    }
}

static void late(void)
{
    struct err err;

    if (confine_late(&err) < 0) {
        fprintf(stderr, "# %s\n", err.text);
        _exit(1);
    }
}

/* A process of another user, which waits to be killed. */
static pid_t stranger(void)
{
    int fds[2];
    char byte;
    pid_t pid;

    MUST(pipe2(fds, O_CLOEXEC) == 0);
    pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        MUST(syscall(SYS_setresuid, STRANGER, STRANGER, STRANGER) == 0);
        (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
        MUST(write(fds[1], "", 1) == 1);
        for (;;)
            pause();
    }
    MUST(read(fds[0], &byte, 1) == 1);
    close(fds[0]);
    close(fds[1]);
    return pid;
}

static void early_body(void)
{
    uint64_t useless = UINT64_C(1) << CAP_SYS_ADMIN | UINT64_C(1) << CAP_SYS_MODULE |
                       UINT64_C(1) << CAP_SYS_RAWIO | UINT64_C(1) << CAP_SYS_BOOT |
                       UINT64_C(1) << CAP_NET_RAW | UINT64_C(1) << CAP_SETPCAP |
                       UINT64_C(1) << CAP_FOWNER | UINT64_C(1) << CAP_SETFCAP;
    char *argv[] = {(char *)(uintptr_t) "/bin/true", NULL};
    int status;
    pid_t pid;

    early();
    MUST(status_number("NoNewPrivs") == 1);
    MUST((status_number("CapPrm") & useless) == 0);
    MUST((status_number("CapEff") & useless) == 0);
    MUST((status_number("CapBnd") & useless) == 0);
    MUST(prctl(PR_GET_DUMPABLE) == 0);
    MUST(mount("none", "/mnt", "tmpfs", 0, NULL) < 0 && errno == EPERM);

    /* Launching as another user works. */
    pid = fork();
    if (pid == 0) {
        if (syscall(SYS_setgroups, 0, NULL) < 0 ||
            syscall(SYS_setresgid, STRANGER, STRANGER, STRANGER) < 0 ||
            syscall(SYS_setresuid, STRANGER, STRANGER, STRANGER) < 0)
            _exit(1);
        (void)execv(argv[0], argv);
        _exit(2);
    }
    MUST(waitpid(pid, &status, 0) == pid && status == 0);
}

static void early_leaves_what_a_launch_needs(void **state)
{
    in_child(early_body);
}

static void refuses_all(void)
{
    char *argv[] = {(char *)(uintptr_t) "/bin/true", NULL};

    (void)execv(argv[0], argv);
    MUST(errno == EPERM);
    MUST(syscall(SYS_setresuid, 0, 0, 0) < 0 && errno == EPERM);
    MUST(syscall(SYS_setgroups, 0, NULL) < 0 && errno == EPERM);
    MUST(chown("/dev/null", 0, 0) < 0 && errno == EPERM);
    MUST(mount("none", "/mnt", "tmpfs", 0, NULL) < 0 && errno == EPERM);
    MUST(unshare(CLONE_FILES) < 0 && errno == EPERM); /* which would need no privilege */
    MUST(syscall(SYS_bpf, 0, NULL, 0) < 0 && errno == EPERM);
    MUST(syscall(SYS_io_uring_setup, 1, NULL) < 0 && errno == EPERM);
    MUST(sched_setscheduler(getppid(), SCHED_OTHER, &(struct sched_param){0}) < 0 &&
         errno == EPERM);
    MUST(nice(-1) < 0 && errno == EPERM);
    MUST(socket(AF_NETLINK, SOCK_RAW, 0) < 0 && errno == EPERM);
    MUST(socket(AF_PACKET, SOCK_RAW, 0) < 0 && errno == EPERM);
    MUST(syscall(SYS_socket, 1L << 32 | AF_NETLINK, SOCK_RAW, 0) < 0 && errno == EPERM);
}

static void *other_thread(void *arg)
{
    pthread_barrier_t *barrier = arg;

    (void)pthread_barrier_wait(barrier);
    refuses_all();
    return NULL;
}

static void late_refuses_body(void)
{
    pthread_barrier_t barrier;
    pthread_t thread;

    early();
    MUST(pthread_barrier_init(&barrier, NULL, 2) == 0);
    MUST(pthread_create(&thread, NULL, other_thread, &barrier) == 0);
    late();
    MUST(status_number("Seccomp") == 2);
    refuses_all();
    (void)pthread_barrier_wait(&barrier); /* one that was there before */
    MUST(pthread_join(thread, NULL) == 0);
}

static void late_refuses_in_all_threads(void **state)
{
    in_child(late_refuses_body);
}

/* Its own priority is a thread's own business. */
static void *raise_priority(void *arg)
{
    struct sched_param param;

    MUST(thread_raise_priority() == 0);
    MUST(sched_getscheduler(0) == (SCHED_RR | SCHED_RESET_ON_FORK));
    MUST(sched_getparam(0, &param) == 0 && param.sched_priority == 1);
    return arg;
}

static void late_allows_body(void)
{
    static const char secret[] = "guest";
    char copy[sizeof(secret)], path[] = "/tmp/us-confine.XXXXXX";
    struct iovec local = {copy, sizeof(copy)}, remote = {(void *)(uintptr_t)secret, sizeof(secret)};
    pthread_t thread;
    int status, fds[2], size = 1 << 22, got;
    socklen_t n = sizeof(got);
    pid_t pid;
    int fd;

    early();
    pid = stranger();
    late();
    /* What dirty tracking does with a hypervisor of another user, at any time. */
    MUST(ptrace(PTRACE_SEIZE, pid, NULL, NULL) == 0);
    MUST(ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) == 0);
    MUST(waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status));
    MUST(ptrace(PTRACE_DETACH, pid, NULL, NULL) == 0);
    MUST(process_vm_readv(pid, &local, 1, &remote, 1, 0) == sizeof(secret));
    MUST(kill(pid, SIGKILL) == 0);
    MUST(waitpid(pid, &status, 0) == pid);
    /* What every epoch does. */
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    MUST(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) == 0);
    MUST(getsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &got, &n) == 0 && got >= size);
    MUST(socket(AF_INET, SOCK_STREAM, 0) >= 0 && socket(AF_INET6, SOCK_STREAM, 0) >= 0);
    MUST(pthread_create(&thread, NULL, raise_priority, NULL) == 0);
    MUST(pthread_join(thread, NULL) == 0);
    fd = mkstemp(path);
    MUST(fd >= 0 && write(fd, "x", 1) == 1 && fsync(fd) == 0 && unlink(path) == 0);
}

static void late_leaves_what_a_takeover_needs(void **state)
{
    in_child(late_allows_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(early_leaves_what_a_launch_needs),
        cmocka_unit_test(late_refuses_in_all_threads),
        cmocka_unit_test(late_leaves_what_a_takeover_needs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
