/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_THREAD_H
#define US_IO_THREAD_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

/* Starts a helper thread that takes no signals: they are the main thread's. The name, of at most 15
 * characters, is for people who look at threads. 0 or a negative errno. */
static inline int thread_start(pthread_t *ret_thread, const char *name, void *(*run)(void *),
                               void *arg)
{
    sigset_t all, old;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = -pthread_create(ret_thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r == 0)
        (void)pthread_setname_np(*ret_thread, name); /* only for people */
    return r;
}

/* Gives the calling thread real-time priority: it must not wait behind the guest, or anybody else's
 * load, for a core. What it starts, threads and processes, has the usual priority. Returns 0, or a
 * negative errno: it is not allowed to, and keeps the usual one. */
static inline int thread_raise_priority(void)
{
    struct sched_param param = {.sched_priority = 1};

    return sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &param) < 0 ? -errno : 0;
}

#endif
