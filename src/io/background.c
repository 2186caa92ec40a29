/* SPDX-License-Identifier: Apache-2.0 */
#include "io/background.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fault.h"
#include "io/lock.h"
#include "io/thread.h"

struct task {
    struct task *next;
    int (*work)(void *user);
    void (*done)(void *user, int result);
    void *user;
    int result;
};

struct background {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    struct task *todo, **todo_end; /* oldest first */
    struct task *over, **over_end;
    bool busy, stop;
    int notify_fd;
    sd_event_source *source;
};

static void *background_thread(void *arg)
{
    struct background *b = arg;
    uint64_t one = 1;

    pthread_mutex_lock(&b->lock);
    while (b->todo || !b->stop) {
        struct task *task = b->todo;

        if (!task) {
            pthread_cond_wait(&b->wake, &b->lock);
            continue;
        }
        b->todo = task->next;
        if (!b->todo)
            b->todo_end = &b->todo;
        b->busy = true;
        pthread_mutex_unlock(&b->lock);
        task->result = task->work(task->user);
        fault_point("task.done");
        pthread_mutex_lock(&b->lock);
        task->next = NULL;
        *b->over_end = task;
        b->over_end = &task->next;
        b->busy = false;
        pthread_cond_broadcast(&b->idle);
        (void)!write(b->notify_fd, &one, sizeof(one)); /* a full eventfd is readable as well */
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

static int on_over(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct background *b = user;
    struct task *task, *next;
    uint64_t count;

    (void)!read(fd, &count, sizeof(count)); /* only wakes us */
    pthread_mutex_lock(&b->lock);
    task = b->over;
    b->over = NULL;
    b->over_end = &b->over;
    pthread_mutex_unlock(&b->lock);
    for (; task; task = next) {
        next = task->next;
        if (task->done)
            task->done(task->user, task->result);
        free(task);
    }
    return 0;
}

int background_new(sd_event *event, struct background **ret_background)
{
    struct background *b = calloc(1, sizeof(*b));
    int r;

    if (!b)
        return -ENOMEM;
    lock_init(&b->lock);
    pthread_cond_init(&b->wake, NULL);
    pthread_cond_init(&b->idle, NULL);
    b->todo_end = &b->todo;
    b->over_end = &b->over;
    b->notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r = b->notify_fd < 0 ? -errno : 0;
    if (r >= 0)
        r = sd_event_add_io(event, &b->source, b->notify_fd, EPOLLIN, on_over, b);
    if (r >= 0)
        r = thread_start(&b->thread, "us-background", background_thread, b);
    if (r < 0) {
        sd_event_source_disable_unref(b->source);
        if (b->notify_fd >= 0)
            close(b->notify_fd);
        free(b);
        return r;
    }
    *ret_background = b;
    return 0;
}

int background_run(struct background *b, int (*work)(void *user),
                   void (*done)(void *user, int result), void *user)
{
    struct task *task = FAULTY_ALLOC("task.room", malloc(sizeof(*task)));

    if (!task)
        return -ENOMEM;
    *task = (struct task){.work = work, .done = done, .user = user};
    pthread_mutex_lock(&b->lock);
    *b->todo_end = task;
    b->todo_end = &task->next;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
    return 0;
}

void background_drain(struct background *b)
{
    pthread_mutex_lock(&b->lock);
    while (b->todo || b->busy)
        pthread_cond_wait(&b->idle, &b->lock);
    pthread_mutex_unlock(&b->lock);
}

void background_free(struct background *b)
{
    struct task *task, *next;

    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
    (void)pthread_join(b->thread, NULL); /* cannot fail: it is ours and joined once */
    for (task = b->over; task; task = next) {
        next = task->next;
        free(task);
    }
    sd_event_source_disable_unref(b->source);
    close(b->notify_fd);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->wake);
    pthread_cond_destroy(&b->idle);
    free(b);
}
