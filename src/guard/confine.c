/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/confine.h"

#include <cap-ng.h>
#include <errno.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>

/* Theory of operation. Capabilities belong to threads, so they are dropped before there are any
 * others. Some of those that are kept serve the launch alone; they are worth nothing afterwards,
 * because the system calls that use them are filtered, and a filter can be put on all threads.
 *
 * The filter is a list of what is refused, not of what is allowed: libraries (TLS, allocator,
 * event loop) change the calls they make from version to version, and a VM whose guard meets a
 * refusal at its takeover is lost. Landlock is not for a guard: a process in a Landlock domain can
 * trace those of the same domain only, and one that attaches to the hypervisor that an earlier
 * guard launched would be in another. */

/* For each one, who needs it. */
static const int kept[] = {
    CAP_SYS_PTRACE,   /* to track the memory of a hypervisor of another user, whenever it begins */
    CAP_KILL,         /* to end it */
    CAP_NET_ADMIN,    /* taps; socket buffers that hold a whole device state */
    CAP_DAC_OVERRIDE, /* images of other owners; the hypervisor's sockets */
    CAP_CHOWN,        /* launch: files for the hypervisor's user */
    CAP_SETUID,       /* launch */
    CAP_SETGID,       /* launch */
    CAP_SYS_NICE,     /* real-time priority */
};

static const char *const refused[] = {
    "execve",
    "execveat",
    /* users, owners, special files */
    "setuid",
    "setgid",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "setgroups",
    "setfsuid",
    "setfsgid",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "mknod",
    "mknodat",
    /* file systems and name spaces */
    "mount",
    "umount2",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "pivot_root",
    "chroot",
    "unshare",
    "setns",
    "swapon",
    "swapoff",
    "quotactl",
    "acct",
    "name_to_handle_at",
    "open_by_handle_at",
    /* the kernel and the machine */
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "bpf",
    "perf_event_open",
    "iopl",
    "ioperm",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
    "sethostname",
    "setdomainname",
    "syslog",
    "vhangup",
    "personality",
    "modify_ldt",
    /* ways around this list, and into other processes; process_vm_readv is needed */
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "userfaultfd",
    "process_vm_writev",
    "process_madvise",
    "keyctl",
    "add_key",
    "request_key",
    "fanotify_init",
    /* priorities; but see add_rules() */
    "sched_setparam",
    "sched_setattr",
    "setpriority",
    "ioprio_set",
};

/* Sockets that nothing here is made with; with CAP_NET_ADMIN some could change the host's network.
 */
static const int refused_families[] = {AF_NETLINK, AF_PACKET,    AF_ALG, AF_VSOCK, AF_XDP,
                                       AF_KEY,     AF_BLUETOOTH, AF_CAN, AF_TIPC};

static bool is_kept(int capability)
{
    for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
        if (kept[i] == capability)
            return true;
    }
    return false;
}

static int drop_capabilities(struct err *err)
{
    if (capng_get_caps_process() < 0)
        return err_set(err, -EPERM, "capabilities cannot be read");
    for (int c = 0; c <= CAP_LAST_CAP; c++) {
        if (!is_kept(c) &&
            capng_update(CAPNG_DROP,
                         CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_INHERITABLE | CAPNG_BOUNDING_SET,
                         (unsigned int)c) < 0)
            return err_set(err, -EINVAL, "capability %d", c);
    }
    if (capng_apply(CAPNG_SELECT_ALL) < 0)
        return err_set(err, -EPERM, "capabilities cannot be dropped");
    return 0;
}

int confine_early(struct err *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_sys(err, -errno, "PR_SET_NO_NEW_PRIVS");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return err_sys(err, -errno, "PR_SET_DUMPABLE");
    return drop_capabilities(err);
}

static int add_rules(scmp_filter_ctx filter)
{
    const struct scmp_arg_cmp not_itself = SCMP_A0(SCMP_CMP_NE, 0, 0);
    int r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);

    if (r == 0) /* a thread sets its own priority, and nobody else's */
        r = seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(sched_setscheduler), 1,
                                   &not_itself);
    for (size_t i = 0; r == 0 && i < sizeof(refused) / sizeof(refused[0]); i++) {
        int number = seccomp_syscall_resolve_name(refused[i]);

        r = number == __NR_SCMP_ERROR ? -ENOSYS
                                      : seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), number, 0);
    }
    for (size_t i = 0; r == 0 && i < sizeof(refused_families) / sizeof(refused_families[0]); i++) {
        const struct scmp_arg_cmp family = {
            .arg = 0,
            .op = SCMP_CMP_MASKED_EQ,
            .datum_a = UINT32_MAX, /* the kernel takes an int: what is above does not count */
            .datum_b = (scmp_datum_t)refused_families[i],
        };

        r = seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(socket), 1, &family);
    }
    return r;
}

int confine_late(struct err *err)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int r = -ENOMEM;

    if (filter) {
        r = add_rules(filter);
        if (r == 0)
            r = seccomp_load(filter);
        seccomp_release(filter);
    }
    return r < 0 ? err_sys(err, r, "filter of system calls") : 0;
}
