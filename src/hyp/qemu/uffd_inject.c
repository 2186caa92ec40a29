/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/uffd_inject.h"

#include <errno.h>

#ifdef __x86_64__

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/clock.h"
#include "hyp/qemu/uapi.h"

/* Theory of operation. A userfaultfd watches the address space of the process that calls
 * userfaultfd(2), so the process has to make that call itself. We stop its main thread
 * (PTRACE_SEIZE, PTRACE_INTERRUPT), point it at a `syscall` instruction in its vDSO, single-step
 * that one instruction, copy the new descriptor with pidfd_getfd(2), let the thread close its own
 * in the same way, and put all registers back. A system call that was interrupted by the stop is
 * restarted by the kernel as after any other stop, because orig_rax is put back too. Signals are
 * held back (PTRACE_SETSIGMASK) while the thread is not itself.
 *
 * A userfaultfd that handles the kernel's faults too is made by an ioctl on a device, which the
 * process may not open. So the thread makes a pair of sockets; we copy one of them, send the
 * device's descriptor through it, and have the thread receive it. What such calls point to lies on
 * its stack, below what is in use.
 *
 * What can go wrong: nothing below may return between attach and detach without tracee_release().
 * Should we die in between, the kernel detaches but registers stay changed: the process then runs
 * into the vDSO and crashes; a VM that is lost with its guard is the case of a host's death. */

enum {
    STOP_TIMEOUT_MS = 1000,
    STRAY_STOPS_MAX = 16,
    VDSO_BYTES_MAX = 16384,
    RED_ZONE_BYTES = 128, /* below the stack pointer, still in use (x86-64 ABI) */
};

struct tracee {
    pid_t pid;
    bool stopped;
    uint64_t syscall_ip; /* address of a `syscall` instruction in the process */
    struct user_regs_struct regs;
    uint64_t sigmask;
};

/* Waits until the thread has stopped. WEXITED is not asked for: the one who watches the process
 * shall reap it, not we. */
static int tracee_wait(struct tracee *t, int *ret_status)
{
    const struct timespec pause = {.tv_nsec = 20000};
    uint64_t deadline_ns = clock_now_ns() + STOP_TIMEOUT_MS * NS_PER_MS;

    for (;;) {
        siginfo_t info = {0};

        if (waitid(P_PID, (id_t)t->pid, &info, WSTOPPED | __WALL | WNOHANG) < 0)
            return -errno;
        if (info.si_pid == t->pid) {
            t->stopped = true;
            *ret_status = info.si_status;
            return 0;
        }
        if (clock_now_ns() > deadline_ns)
            return -ETIMEDOUT;
        (void)nanosleep(&pause, NULL); /* there is no descriptor to poll for ptrace stops */
    }
}

static long trace(const struct tracee *t, int request, uintptr_t addr, uintptr_t data)
{
    return syscall(SYS_ptrace, request, t->pid, addr, data) < 0 ? -errno : 0;
}

/* The signal that the thread stopped for and that is still to be delivered; 0 at our own stops. */
static int pending_signal(int status)
{
    return status == SIGTRAP || status >> 8 ? 0 : status;
}

/* Lets the stopped thread go on, or one step, with the signal it stopped for. */
static long tracee_continue(struct tracee *t, int request, int status)
{
    long r = trace(t, request, 0, (uintptr_t)pending_signal(status));

    if (r == 0)
        t->stopped = false;
    return r;
}

/* Stops the thread and remembers what it was doing. */
static int tracee_seize(struct tracee *t, struct err *err)
{
    uint64_t none = ~UINT64_C(0) & ~(UINT64_C(1) << (SIGTRAP - 1)); /* the step needs SIGTRAP */
    int status;
    long r;

    r = trace(t, PTRACE_SEIZE, 0, 0);
    if (r < 0)
        return err_sys(err, (int)r, "ptrace: seize process %d", (int)t->pid);
    r = trace(t, PTRACE_INTERRUPT, 0, 0);
    if (r == 0)
        r = tracee_wait(t, &status);
    while (r == 0 && pending_signal(status)) { /* it came first: deliver it, our stop follows */
        r = tracee_continue(t, PTRACE_CONT, status);
        if (r == 0)
            r = tracee_wait(t, &status);
    }
    if (r == 0)
        r = trace(t, PTRACE_GETREGS, 0, (uintptr_t)&t->regs);
    if (r == 0)
        r = trace(t, PTRACE_GETSIGMASK, sizeof(t->sigmask), (uintptr_t)&t->sigmask);
    if (r == 0)
        r = trace(t, PTRACE_SETSIGMASK, sizeof(none), (uintptr_t)&none);
    return r < 0 ? err_sys(err, (int)r, "ptrace: stop process %d", (int)t->pid) : 0;
}

/* Puts the thread back and lets it go. `seized` says whether registers were read. */
static int tracee_release(struct tracee *t, bool seized)
{
    int status;
    long r = 0, r2;

    /* A thread that runs cannot be detached: stop it again first. */
    if (!t->stopped && (trace(t, PTRACE_INTERRUPT, 0, 0) < 0 || tracee_wait(t, &status) < 0))
        return -ETIMEDOUT;
    if (seized) {
        r = trace(t, PTRACE_SETREGS, 0, (uintptr_t)&t->regs);
        r2 = trace(t, PTRACE_SETSIGMASK, sizeof(t->sigmask), (uintptr_t)&t->sigmask);
        r = r < 0 ? r : r2;
    }
    r2 = trace(t, PTRACE_DETACH, 0, 0);
    return (int)(r < 0 ? r : r2);
}

/* Makes the stopped thread do a system call. Stores the kernel's answer (a value or -errno). */
static int tracee_syscall(struct tracee *t, uint64_t number, const uint64_t args[4],
                          long *ret_value)
{
    struct user_regs_struct regs = t->regs;
    int status = 0;
    long r;

    regs.rip = t->syscall_ip;
    regs.rax = number;
    regs.orig_rax = ~UINT64_C(0); /* not in a system call: nothing to restart at this stop */
    regs.rdi = args[0];
    regs.rsi = args[1];
    regs.rdx = args[2];
    regs.r10 = args[3];
    r = trace(t, PTRACE_SETREGS, 0, (uintptr_t)&regs);
    for (int i = 0; r == 0 && i < STRAY_STOPS_MAX; i++) {
        r = tracee_continue(t, PTRACE_SINGLESTEP, status);
        if (r == 0)
            r = tracee_wait(t, &status);
        if (r == 0)
            r = trace(t, PTRACE_GETREGS, 0, (uintptr_t)&regs);
        if (r < 0)
            break;
        if (regs.rip == t->syscall_ip + 2) {
            *ret_value = (long)regs.rax;
            return 0;
        }
        if (regs.rip != t->syscall_ip) /* a group stop may come first; a stray jump may not */
            return -EFAULT;
    }
    return r < 0 ? (int)r : -ETIMEDOUT;
}

/* Finds the bytes of a `syscall` instruction in the process's vDSO. */
static int find_syscall_instruction(pid_t pid, uint64_t *ret_ip, struct err *err)
{
    static const uint8_t instruction[] = {0x0f, 0x05};
    uint8_t code[VDSO_BYTES_MAX];
    uint64_t start, end, base = 0;
    char path[32], line[512];
    struct iovec local, remote;
    const uint8_t *found;
    ssize_t n;
    FILE *maps;

    (void)snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    maps = fopen(path, "re");
    if (!maps)
        return err_sys(err, -errno, "%s", path);
    while (base == 0 && fgets(line, sizeof(line), maps)) {
        if (strstr(line, "[vdso]") && sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) == 2 &&
            end > start)
            base = start;
    }
    (void)fclose(maps); /* only read */
    if (base == 0)
        return err_set(err, -EOPNOTSUPP, "process %d has no vDSO", (int)pid);
    local = (struct iovec){code, end - base < sizeof(code) ? end - base : sizeof(code)};
    remote = (struct iovec){(void *)base, local.iov_len}; // NOLINT: an address elsewhere
    n = process_vm_readv(pid, &local, 1, &remote, 1, 0);
    if (n < 0)
        return err_sys(err, -errno, "read the vDSO of process %d", (int)pid);
    found = memmem(code, (size_t)n, instruction, sizeof(instruction));
    if (!found)
        return err_set(err, -EOPNOTSUPP, "the vDSO of process %d has no syscall instruction",
                       (int)pid);
    *ret_ip = base + (uint64_t)(found - code);
    return 0;
}

/* ---- what the stopped thread is made to do ---- */

static int tracee_close(struct tracee *t, int remote_fd, struct err *err)
{
    long r;

    if (remote_fd < 0)
        return 0;
    if (tracee_syscall(t, SYS_close, (uint64_t[4]){(uint64_t)remote_fd}, &r) < 0 || r < 0)
        return err_set(err, -EIO, "ptrace: run close in process %d", (int)t->pid);
    return 0;
}

/* A system call that makes or fetches something. Returns what the kernel did, or -errno. */
static long tracee_call(struct tracee *t, const char *name, uint64_t number, const uint64_t args[4],
                        struct err *err)
{
    long value;
    int r = tracee_syscall(t, number, args, &value);

    if (r < 0)
        return err_sys(err, r, "ptrace: run %s in process %d", name, (int)t->pid);
    return value < 0 ? err_sys(err, (int)value, "%s in process %d", name, (int)t->pid) : value;
}

/* What recvmsg(2) is told and tells, as it lies on the thread's stack. */
struct mailbox {
    int sockets[2];
    struct msghdr message;
    struct iovec byte_at;
    uint64_t byte;
    union {
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(sizeof(int))];
    } control;
};

/* Words between our memory and the thread's. */
static int tracee_copy(const struct tracee *t, int request, uint64_t address, void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i += sizeof(uint64_t)) {
        uint64_t *word = (void *)((uint8_t *)bytes + i);
        long r =
            trace(t, request, address + i, request == PTRACE_PEEKDATA ? (uintptr_t)word : *word);

        if (r < 0)
            return (int)r;
    }
    return 0;
}

/* Sends a descriptor through a socket. */
static int send_fd(int socket, int fd)
{
    union {
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
                            .cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS}};
    struct iovec byte = {(char[]){0}, 1};
    struct msghdr message = {
        .msg_iov = &byte,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };

    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* The thread receives a descriptor that is on its way to its socket. Returns its number there. */
static int tracee_receive_fd(struct tracee *t, uint64_t at, int remote_socket, struct err *err)
{
    struct mailbox box = {
        .message =
            {
                .msg_iov = (void *)(at + offsetof(struct mailbox, byte_at)), // NOLINT
                .msg_iovlen = 1,
                .msg_control = (void *)(at + offsetof(struct mailbox, control)), // NOLINT
                .msg_controllen = sizeof(box.control),
            },
        .byte_at = {(void *)(at + offsetof(struct mailbox, byte)), 1}, // NOLINT
    };
    long n;
    int r, fd;

    r = tracee_copy(t, PTRACE_POKEDATA, at, &box, sizeof(box));
    if (r < 0)
        return err_sys(err, r, "ptrace: write to the stack of process %d", (int)t->pid);
    n = tracee_call(t, "recvmsg", SYS_recvmsg,
                    (uint64_t[4]){(uint64_t)remote_socket, at + offsetof(struct mailbox, message),
                                  MSG_CMSG_CLOEXEC | MSG_DONTWAIT},
                    err);
    if (n < 0)
        return (int)n;
    r = tracee_copy(t, PTRACE_PEEKDATA, at, &box, sizeof(box));
    if (r < 0 || box.control.header.cmsg_len != CMSG_LEN(sizeof(int)))
        return err_set(err, -EIO, "process %d received no descriptor", (int)t->pid);
    memcpy(&fd, CMSG_DATA(&box.control.header), sizeof(fd));
    return fd;
}

/* Gives the thread a descriptor of ours. Returns its number there. */
static int tracee_give(struct tracee *t, int pidfd, int fd, struct err *err)
{
    uint64_t at = (t->regs.rsp - RED_ZONE_BYTES - sizeof(struct mailbox)) & ~UINT64_C(15);
    CLEANUP_FD int ours = -1;
    int sockets[2], given, r;
    long n;

    n = tracee_call(t, "socketpair", SYS_socketpair,
                    (uint64_t[4]){AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, at}, err);
    if (n < 0)
        return (int)n;
    r = tracee_copy(t, PTRACE_PEEKDATA, at, sockets, sizeof(sockets));
    if (r < 0)
        return err_sys(err, r, "ptrace: read the stack of process %d", (int)t->pid);
    ours = (int)syscall(SYS_pidfd_getfd, pidfd, sockets[1], 0);
    r = ours < 0 ? -errno : send_fd(ours, fd);
    if (r < 0)
        (void)err_sys(err, r, "descriptor for process %d", (int)t->pid);
    given = r < 0 ? r : tracee_receive_fd(t, at, sockets[0], err);
    for (int i = 0; i < 2; i++) {
        r = tracee_close(t, sockets[i], err);
        given = r < 0 ? r : given;
    }
    return given;
}

/* Makes a userfaultfd from the device. Returns its number in the process. */
static int make_from_device(struct tracee *t, int pidfd, int device, struct err *err)
{
    int given = tracee_give(t, pidfd, device, err), closed;
    long made;

    if (given < 0)
        return given;
    made = tracee_call(t, "USERFAULTFD_IOC_NEW", SYS_ioctl,
                       (uint64_t[4]){(uint64_t)given, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK},
                       err);
    closed = tracee_close(t, given, err);
    return closed < 0 ? closed : (int)made;
}

/* With the thread stopped: makes the descriptor, copies it, closes the thread's own. */
static int make_and_copy(struct tracee *t, int pidfd, enum uffd_kind kind, int device,
                         int *ret_uffd, struct err *err)
{
    uint64_t flags = O_CLOEXEC | O_NONBLOCK | (kind == UFFD_KIND_USER ? UFFD_USER_MODE_ONLY : 0);
    CLEANUP_FD int uffd = -1;
    int remote_fd, r = 0;

    if (device >= 0)
        remote_fd = make_from_device(t, pidfd, device, err);
    else
        remote_fd = (int)tracee_call(t, "userfaultfd", SYS_userfaultfd, (uint64_t[4]){flags}, err);
    if (remote_fd < 0)
        return remote_fd;
    uffd = (int)FAULTY("hyp.take-uffd", syscall(SYS_pidfd_getfd, pidfd, remote_fd, 0));
    if (uffd < 0)
        err_sys(err, r = -errno, "pidfd_getfd from process %d", (int)t->pid);
    if (tracee_close(t, remote_fd, r < 0 ? NULL : err) < 0)
        return r < 0 ? r : -EIO;
    if (r == 0)
        *ret_uffd = take_fd(&uffd);
    return r;
}

int uffd_inject(pid_t pid, int pidfd, enum uffd_kind kind, int *ret_uffd, struct err *err)
{
    struct tracee t = {.pid = pid};
    CLEANUP_FD int uffd = -1;
    CLEANUP_FD int device = kind == UFFD_KIND_KERNEL ? open(UFFD_DEVICE, O_RDWR | O_CLOEXEC) : -1;
    bool seized;
    int r, released;

    r = find_syscall_instruction(pid, &t.syscall_ip, err);
    if (r < 0)
        return r;
    r = tracee_seize(&t, err);
    seized = r == 0;
    fault_point("hyp.seized");
    if (seized)
        r = make_and_copy(&t, pidfd, kind, device, &uffd, err);
    fault_point("hyp.injected");
    released = tracee_release(&t, seized);
    if (r < 0)
        return r;
    if (released < 0)
        return err_sys(err, released, "ptrace: release process %d", (int)pid);
    *ret_uffd = take_fd(&uffd);
    return 0;
}

#else

int uffd_inject(pid_t pid, int pidfd, enum uffd_kind kind, int *ret_uffd, struct err *err)
{
    (void)pid;
    (void)kind;
    (void)pidfd;
    (void)ret_uffd;
    return err_set(err, -EOPNOTSUPP, "memory capture is only written for x86-64 hosts");
}

#endif
