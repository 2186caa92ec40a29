/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_UFFD_INJECT_H
#define US_HYP_QEMU_UFFD_INJECT_H

#include <sys/types.h>

#include "base/err.h"

#define UFFD_DEVICE "/dev/userfaultfd"

enum uffd_kind {
    UFFD_KIND_USER,   /* user mode's faults only: what any process may have */
    UFFD_KIND_KERNEL, /* the kernel's faults too */
};

/* Makes a userfaultfd of process `pid` and brings it here, without that process's cooperation. The
 * process is stopped by ptrace for about 0.2 ms and left exactly as it was, on errors too; it keeps
 * no descriptor, so tracking ends with the returned one. `pidfd` refers to the same process. Blocks
 * for milliseconds, a few seconds where the process does not react. Only on x86-64. Returns 0 and
 * the descriptor (owned by the caller, CLOEXEC, non-blocking), or -errno with the reason.
 *
 * UFFD_KIND_KERNEL: an unprivileged process gets one from UFFD_DEVICE, which it may not open and
 * which we open for it (Linux 6.1); without the device it depends on the sysctl
 * vm.unprivileged_userfaultfd (-EPERM otherwise). */
int uffd_inject(pid_t pid, int pidfd, enum uffd_kind kind, int *ret_uffd,
                struct err *err) US_MUST_CHECK;

#endif
