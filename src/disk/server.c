/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/server.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fault.h"
#include "disk/server_internal.h"
#include "io/lock.h"
#include "io/thread.h"
#include "io/unix_socket.h"

enum { EVENTS_AT_ONCE = 32 };

void request_list_add(struct request_list *list, struct request *q)
{
    q->next = NULL;
    if (list->first)
        list->last->next = q;
    else
        list->first = q;
    list->last = q;
}

struct request *request_list_take(struct request_list *list)
{
    struct request *q = list->first;

    if (q)
        list->first = q->next;
    return q;
}

static int control_watch(struct disk_server *s, int op, struct watch *w, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = w};

    return epoll_ctl(s->epoll_fd, op, w->fd, &event) < 0 ? -errno : 0;
}

int server_watch(struct disk_server *s, struct watch *w, uint32_t events)
{
    return control_watch(s, EPOLL_CTL_ADD, w, events);
}

int server_rewatch(struct disk_server *s, struct watch *w, uint32_t events)
{
    return control_watch(s, EPOLL_CTL_MOD, w, events);
}

void server_wake(struct disk_server *s)
{
    (void)eventfd_write(s->wake.fd, 1); /* fails only when it is awake many times over */
}

static void listener_ready(struct watch *w, uint32_t events)
{
    struct server_disk *disk = (struct server_disk *)w;
    int sock;

    /* It is watched for edges: a client that cannot be accepted now is tried again with the next
     * one, and does not keep the thread busy until then. */
    while ((sock = FAULTY("disk.accept",
                          accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK))) >= 0)
        connection_new(disk, sock);
}

static void wake_ready(struct watch *w, uint32_t events)
{
    struct disk_server *s = (struct disk_server *)((char *)w - offsetof(struct disk_server, wake));
    struct request_list done;
    struct request *q;
    eventfd_t n;

    (void)eventfd_read(w->fd, &n); /* before looking, or a wake between the two would be lost */
    pthread_mutex_lock(&s->lock);
    done = s->done;
    s->done = (struct request_list){0};
    pthread_mutex_unlock(&s->lock);
    while ((q = request_list_take(&done)))
        connection_reply(q, q->error);
    connections_retry(s);
}

static bool stopped(struct disk_server *s)
{
    bool stop;

    pthread_mutex_lock(&s->lock);
    stop = s->stop;
    pthread_mutex_unlock(&s->lock);
    return stop;
}

static void *server_thread(void *user)
{
    struct disk_server *s = user;

    while (!stopped(s)) {
        struct epoll_event events[EVENTS_AT_ONCE];
        int n = epoll_wait(s->epoll_fd, events, EVENTS_AT_ONCE, -1);

        assert(n >= 0 || errno == EINTR);
        for (int i = 0; i < n; i++) {
            struct watch *w = events[i].data.ptr;

            w->ready(w, events[i].events);
        }
        connections_update(s);
    }
    connections_close(s);
    return NULL;
}

static int open_disk(struct disk_server *s, uint32_t i, const struct disk_server_disk *given,
                     struct err *err)
{
    struct server_disk *disk = &s->disks[i];
    int r;

    *disk = (struct server_disk){
        .listener = {listener_ready, -1},
        .server = s,
        .number = (uint8_t)i,
        .image = given->image,
        .map = given->map,
        .export = {.size_bytes = given->image->size_bytes,
                   .read_only = given->read_only || given->image->read_only},
        .n_changes = 1,
    };
    range_lock_init(&disk->ranges);
    s->n_disks = i + 1;
    if (given->kept_socket) {
        disk->listener.fd = fcntl(given->kept_socket, F_DUPFD_CLOEXEC, 0);
        if (disk->listener.fd < 0)
            return err_sys(err, -errno, "%s", given->socket_path);
    } else {
        r = unix_listen(given->socket_path, DISK_SERVER_CONNECTIONS_MAX, &disk->listener.fd, err);
        if (r < 0)
            return r;
        strcpy(disk->socket_path, given->socket_path); /* fits, or it would not listen */
    }
    r = server_watch(s, &disk->listener, EPOLLIN | EPOLLET);
    return r < 0 ? err_sys(err, r, "%s", given->socket_path) : 0;
}

static int start_helpers(struct disk_server *s)
{
    for (; s->n_helpers < DISK_HELPERS; s->n_helpers++) {
        struct helper *helper = &s->helpers[s->n_helpers];
        int r;

        helper->server = s;
        r = thread_start(&helper->thread, "us-disk-help", helper_thread, helper);
        if (r < 0)
            return r;
    }
    return 0;
}

static void stop_helpers(struct disk_server *s)
{
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < s->n_helpers; i++)
        pthread_join(s->helpers[i].thread, NULL);
}

/* The threads have ended, and the connections with them. */
static void free_server(struct disk_server *s)
{
    for (uint32_t i = 0; i < s->n_disks; i++) {
        struct server_disk *disk = &s->disks[i];

        if (disk->listener.fd >= 0)
            close(disk->listener.fd);
        if (disk->socket_path[0])
            (void)unlink(disk->socket_path); /* already gone is as good */
        range_lock_done(&disk->ranges);
    }
    if (s->wake.fd >= 0)
        close(s->wake.fd);
    if (s->epoll_fd >= 0)
        close(s->epoll_fd);
    pthread_cond_destroy(&s->idle);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static int start_server(struct disk_server *s, const struct disk_server_disk *disks,
                        uint32_t n_disks, struct err *err)
{
    int r = 0;

    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    s->wake = (struct watch){wake_ready, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (s->epoll_fd < 0 || s->wake.fd < 0 || server_watch(s, &s->wake, EPOLLIN) < 0)
        return err_sys(err, -errno, "disk server");
    for (uint32_t i = 0; r == 0 && i < n_disks; i++)
        r = open_disk(s, i, &disks[i], err);
    if (r < 0)
        return r;
    r = start_helpers(s);
    if (r == 0)
        r = thread_start(&s->thread, "us-disk", server_thread, s);
    return r < 0 ? err_sys(err, r, "disk server: threads") : 0;
}

int disk_server_open(const struct disk_server_disk *disks, uint32_t n_disks,
                     struct journal *journal, enum disk_mode mode, struct disk_server **ret_server,
                     struct err *err)
{
    struct disk_server *s;
    int r;

    assert(n_disks <= DISK_SERVER_DISKS_MAX);
    s = calloc(1, sizeof(*s) + n_disks * sizeof(s->disks[0]));
    if (!s)
        return err_set(err, -ENOMEM, "disk server: out of memory");
    s->journal = journal;
    s->mode = mode;
    s->epoll_fd = s->wake.fd = -1;
    lock_init(&s->lock);
    pthread_cond_init(&s->work, NULL);
    pthread_cond_init(&s->idle, NULL);
    r = start_server(s, disks, n_disks, err);
    if (r < 0) {
        stop_helpers(s);
        free_server(s);
        return r;
    }
    *ret_server = s;
    return 0;
}

void disk_server_close(struct disk_server *s)
{
    if (!s)
        return;
    stop_helpers(s); /* the server's thread waits for none of them after that */
    server_wake(s);
    pthread_join(s->thread, NULL);
    free_server(s);
}

void disk_server_mode(struct disk_server *s, enum disk_mode mode)
{
    pthread_mutex_lock(&s->lock);
    s->mode = mode;
    pthread_mutex_unlock(&s->lock);
    server_wake(s);
}

void disk_server_phase(struct disk_server *s, enum disk_phase phase)
{
    pthread_mutex_lock(&s->lock);
    if (phase == DISK_RUNNING && s->phase != DISK_RUNNING) {
        for (uint32_t i = 0; i < s->n_disks; i++)
            s->disks[i].flushes = (struct disk_flushes){0};
    }
    s->phase = phase;
    pthread_mutex_unlock(&s->lock);
    server_wake(s);
}

void disk_server_flushes(struct disk_server *s, uint32_t disk, struct disk_flushes *ret_flushes)
{
    pthread_mutex_lock(&s->lock);
    *ret_flushes = s->disks[disk].flushes;
    pthread_mutex_unlock(&s->lock);
}

void disk_server_lock(struct disk_server *s, uint32_t disk, uint64_t offset, uint64_t n_bytes)
{
    range_take(&s->disks[disk].ranges, offset, n_bytes);
}

void disk_server_unlock(struct disk_server *s, uint32_t disk, uint64_t offset, uint64_t n_bytes)
{
    range_drop(&s->disks[disk].ranges, offset, n_bytes);
}

int disk_server_listener(const struct disk_server *s, uint32_t disk)
{
    return s->disks[disk].listener.fd;
}

const struct image *disk_server_image(const struct disk_server *s, uint32_t disk)
{
    return s->disks[disk].image;
}
