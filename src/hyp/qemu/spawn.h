/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_SPAWN_H
#define US_HYP_QEMU_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

enum { SPAWN_FDS_MAX = 16 };

struct spawn_fd {
    int fd;               /* -1: none */
    const char *readable; /* what it is, if the program will open it again, which is tried; NULL */
};

/* A program to start, in a session of its own, with default signals, so that neither a terminal nor
 * our end reaches it. All is borrowed. */
struct spawn_order {
    char *const *argv; /* argv[0] is looked up in PATH */
    int output_fd;     /* its standard output and error; its standard input is /dev/null */
    size_t n_fds;
    struct spawn_fd fds[SPAWN_FDS_MAX]; /* become its descriptors 3, 4, ... */
    int pid_fd;                         /* a file for its pid, written before it runs; -1: none */
    bool drop; /* run it as `uid` and `gid`, without privileges or a way to get any, and apart from
                * others of that user (domain.h) */
    uid_t uid;
    gid_t gid;
    size_t n_groups;
    gid_t groups[1]; /* supplementary ones */
};

/* Starts it. The descriptors stay the caller's. Returns 0, the pid and a pidfd (owned by the
 * caller, who also reaps), or -errno with the reason. */
int spawn(const struct spawn_order *order, pid_t *ret_pid, int *ret_pidfd,
          struct err *err) US_MUST_CHECK;

/* Waits for the end of a process until deadline_ns (CLOCK_MONOTONIC) and reaps it. Returns 0 and
 * its wait status (as waitpid(2); 0 when it is not our child, or reaped already), or -ETIMEDOUT. */
int spawn_wait(int pidfd, uint64_t deadline_ns, int *ret_status) US_MUST_CHECK;

/* Sends SIGKILL. A process that is gone already is fine. */
void spawn_kill(int pidfd);

/* Runs a program to its end and takes its output, NUL-terminated, cut to `cap` - 1 bytes. Blocks
 * for at most `timeout_ns`. Returns 0, or -errno with the reason: not found, time-out, a failure
 * exit. */
int spawn_capture(char *const argv[], uint64_t timeout_ns, char *ret_output, size_t cap,
                  struct err *err) US_MUST_CHECK;

/* Describes a wait status: "exit status 1", "killed by signal 11 (Segmentation fault)". */
void spawn_describe(int status, char *ret_text, size_t n);

#endif
