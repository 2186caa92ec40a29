/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_LOCK_H
#define US_IO_LOCK_H

#include <pthread.h>
#include <time.h>

/* A mutex between a main thread, which runs with real-time priority, and its helper threads, which
 * do not: whoever holds it inherits the priority of who waits, so that the main thread never waits
 * for the guest's CPU load. Cannot fail on Linux. */
static inline void lock_init(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attr;

    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(lock, &attr);
    pthread_mutexattr_destroy(&attr);
}

/* A condition whose time-outs are in the time of io/clock.h. Cannot fail on Linux. */
static inline void cond_init_timed(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

#endif
