/* SPDX-License-Identifier: Apache-2.0 */
#include "io/parallel.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/lock.h"
#include "io/thread.h"

struct helper {
    struct parallel *parallel;
    pthread_t thread;
    pthread_mutex_t working; /* held during a part; taken after the pool's lock */
};

struct parallel {
    pthread_mutex_t lock; /* of what follows, up to the blank line */
    pthread_cond_t wake;
    void (*fn)(void *arg, size_t part);
    void *arg;
    size_t next, n_parts; /* next == n_parts: nothing to claim */
    bool stop;

    unsigned n_helpers;
    struct helper helpers[PARALLEL_THREADS_MAX - 1];
};

static void *helper_thread(void *user)
{
    struct helper *h = user;
    struct parallel *p = h->parallel;

    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        size_t part;

        if (p->next == p->n_parts) {
            pthread_cond_wait(&p->wake, &p->lock);
            continue;
        }
        part = p->next++;
        pthread_mutex_lock(&h->working);
        pthread_mutex_unlock(&p->lock);
        p->fn(p->arg, part); /* they stay until our lock is free */
        pthread_mutex_unlock(&h->working);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void helper_start(struct parallel *p)
{
    struct helper *h = &p->helpers[p->n_helpers];

    h->parallel = p;
    lock_init(&h->working);
    if (thread_start(&h->thread, "us-parallel", helper_thread, h) < 0)
        pthread_mutex_destroy(&h->working);
    else
        p->n_helpers++;
}

int parallel_new(unsigned n_threads, struct parallel **ret_parallel)
{
    struct parallel *p = calloc(1, sizeof(*p));
    long wanted = n_threads ? (long)n_threads : sysconf(_SC_NPROCESSORS_ONLN);

    if (!p)
        return -ENOMEM;
    lock_init(&p->lock);
    pthread_cond_init(&p->wake, NULL);
    for (long i = 1; i < wanted && i < PARALLEL_THREADS_MAX; i++)
        helper_start(p);
    *ret_parallel = p;
    return 0;
}

static void run_alone(size_t n_parts, void (*fn)(void *arg, size_t part), void *arg)
{
    for (size_t i = 0; i < n_parts; i++)
        fn(arg, i);
}

void parallel_run(struct parallel *p, size_t n_parts, void (*fn)(void *arg, size_t part), void *arg)
{
    if (!p || p->n_helpers == 0 || n_parts < 2) {
        run_alone(n_parts, fn, arg);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->arg = arg;
    p->next = 0;
    p->n_parts = n_parts;
    pthread_cond_broadcast(&p->wake);
    while (p->next < p->n_parts) {
        size_t part = p->next++;

        pthread_mutex_unlock(&p->lock);
        fn(arg, part);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_helpers; i++) {
        pthread_mutex_lock(&p->helpers[i].working);
        pthread_mutex_unlock(&p->helpers[i].working);
    }
}

void parallel_free(struct parallel *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_helpers; i++) {
        (void)pthread_join(p->helpers[i].thread, NULL); /* cannot fail: ours, and joined once */
        pthread_mutex_destroy(&p->helpers[i].working);
    }
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
