/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_FAULT_H
#define US_BASE_FAULT_H

/* Named points at which a test can have a process stop (build option fault_points). The environment
 * names one: UNDERSTUDY_FAULT=guard.paused:20 stops the process (SIGSTOP) when it comes to that
 * point for the 20th time; the test then kills the host in exactly that phase. In other builds a
 * point costs nothing. */
#ifdef US_FAULT_POINTS

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static inline void fault_point(const char *name)
{
    static int left = -1; /* one point is armed at a time, and each is in one file */
    const char *armed = getenv("UNDERSTUDY_FAULT");
    size_t n = strlen(name);

    if (!armed || strncmp(armed, name, n) != 0 || armed[n] != ':')
        return;
    if (left < 0)
        left = atoi(armed + n + 1);
    if (left > 0 && --left == 0)
        raise(SIGSTOP);
}

#else

static inline void fault_point(const char *name)
{
    (void)name;
}

#endif
#endif
