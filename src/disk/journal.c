/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/journal.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "base/fault.h"
#include "io/lock.h"

struct flight {
    uint64_t epoch;
    struct disk_log log;
};

/* `lock` protects everything but the contents of the logs in flight, which nobody changes between
 * their cut and their end; so they are read without it. Memory is freed outside of the lock, since
 * the guest's writes wait for it. */
struct journal {
    uint64_t limit_bytes;
    int notify_fd;
    pthread_mutex_t lock;
    pthread_cond_t room; /* held_bytes has fallen, or nobody needs to wait any more */
    bool on, pass, poisoned;
    bool told; /* of the open log's size */
    unsigned n_waiting;
    uint64_t held_bytes; /* open and in flight */
    struct disk_log open;
    struct flight flight[JOURNAL_EPOCHS_MAX]; /* ring; epochs ascend */
    unsigned first, n;
};

int journal_new(uint64_t limit_bytes, int notify_fd, struct journal **ret_journal)
{
    struct journal *j = calloc(1, sizeof(*j));

    if (!j)
        return -ENOMEM;
    j->limit_bytes = limit_bytes;
    j->notify_fd = notify_fd;
    lock_init(&j->lock);
    pthread_cond_init(&j->room, NULL);
    *ret_journal = j;
    return 0;
}

static struct flight *flight_at(struct journal *j, unsigned i)
{
    return &j->flight[(j->first + i) % JOURNAL_EPOCHS_MAX];
}

/* Under the lock: the oldest log in flight goes behind what *to has. */
static void take_oldest(struct journal *j, struct disk_log *to)
{
    disk_log_move(to, &flight_at(j, 0)->log);
    j->first = (j->first + 1) % JOURNAL_EPOCHS_MAX;
    j->n--;
}

/* Empties the journal and switches it. */
static void begin_anew(struct journal *j, bool on)
{
    struct disk_log dropped = {0};

    pthread_mutex_lock(&j->lock);
    while (j->n)
        take_oldest(j, &dropped);
    disk_log_move(&dropped, &j->open);
    j->held_bytes = 0;
    j->on = on;
    j->poisoned = j->told = false;
    pthread_cond_broadcast(&j->room);
    pthread_mutex_unlock(&j->lock);
    disk_log_clear(&dropped);
}

void journal_free(struct journal *j)
{
    if (!j)
        return;
    begin_anew(j, false);
    pthread_cond_destroy(&j->room);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

void journal_start(struct journal *j)
{
    begin_anew(j, true);
}

void journal_stop(struct journal *j)
{
    begin_anew(j, false);
}

void journal_pass(struct journal *j, bool pass)
{
    pthread_mutex_lock(&j->lock);
    j->pass = pass;
    pthread_cond_broadcast(&j->room);
    pthread_mutex_unlock(&j->lock);
}

static void notify(struct journal *j)
{
    (void)eventfd_write(j->notify_fd, 1); /* fails only when the reader has much to read already */
}

static void wait_for_room(struct journal *j)
{
    if (!j->on || j->pass || j->held_bytes < j->limit_bytes)
        return;
    if (j->n_waiting++ == 0)
        notify(j);
    while (j->on && !j->pass && j->held_bytes >= j->limit_bytes)
        pthread_cond_wait(&j->room, &j->lock);
    j->n_waiting--;
}

int journal_add(struct journal *j, const struct disk_record *rec, const void *data)
{
    uint64_t before;
    int ret = 0;

    pthread_mutex_lock(&j->lock);
    wait_for_room(j);
    if (j->on) {
        before = j->open.n_bytes;
        fault_point("journal.add");
        ret = disk_log_add(&j->open, rec, data);
        j->held_bytes += j->open.n_bytes - before;
        if (ret)
            j->poisoned = true;
        if (ret || (!j->told && j->open.n_bytes > j->limit_bytes / 2)) {
            j->told = true;
            notify(j);
        }
    }
    pthread_mutex_unlock(&j->lock);
    return ret;
}

void journal_flushed(struct journal *j)
{
    pthread_mutex_lock(&j->lock);
    j->open.flushed = j->on;
    pthread_mutex_unlock(&j->lock);
}

bool journal_poisoned(struct journal *j)
{
    bool poisoned;

    pthread_mutex_lock(&j->lock);
    poisoned = j->poisoned;
    pthread_mutex_unlock(&j->lock);
    return poisoned;
}

uint64_t journal_open_bytes(struct journal *j, bool *ret_waiting)
{
    uint64_t n_bytes;

    pthread_mutex_lock(&j->lock);
    n_bytes = j->open.n_bytes;
    *ret_waiting = j->n_waiting > 0;
    pthread_mutex_unlock(&j->lock);
    return n_bytes;
}

const struct disk_log *journal_cut(struct journal *j, uint64_t epoch)
{
    struct flight *flight = NULL;

    pthread_mutex_lock(&j->lock);
    if (j->open.n_records || j->open.flushed) {
        assert(j->n < JOURNAL_EPOCHS_MAX);
        flight = flight_at(j, j->n++);
        flight->epoch = epoch;
        disk_log_move(&flight->log, &j->open);
        fault_point("journal.cut");
        j->told = false;
    }
    pthread_mutex_unlock(&j->lock);
    return flight ? &flight->log : NULL;
}

void journal_acked(struct journal *j, uint64_t epoch)
{
    struct disk_log dropped = {0};

    pthread_mutex_lock(&j->lock);
    while (j->n && flight_at(j, 0)->epoch <= epoch)
        take_oldest(j, &dropped);
    if (dropped.n_bytes) {
        j->held_bytes -= dropped.n_bytes;
        fault_point("journal.acked");
        pthread_cond_broadcast(&j->room);
    }
    pthread_mutex_unlock(&j->lock);
    disk_log_clear(&dropped);
}

void journal_rebase(struct journal *j)
{
    struct disk_log unsure = {0};

    pthread_mutex_lock(&j->lock);
    while (j->n)
        take_oldest(j, &unsure);
    fault_point("journal.rebase");
    j->held_bytes -= unsure.n_bytes;
    disk_log_strip(&unsure);
    j->held_bytes += unsure.n_bytes;
    disk_log_move(&unsure, &j->open);
    disk_log_move(&j->open, &unsure);
    pthread_cond_broadcast(&j->room);
    pthread_mutex_unlock(&j->lock);
}
