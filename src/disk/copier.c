/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/copier.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <xxh_x86dispatch.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/clock.h"
#include "io/lock.h"
#include "io/thread.h"

/* Theory of operation. A job is done in steps, each for a piece of a range, which is a hole or is
 * read: take the lock of the piece, see what is there, append that to the journal, drop the lock.
 * No range is locked while the rate is waited for; while the journal has no room one is, but then
 * the guest's writes wait for the same room. That something is a hole is only believed under the
 * lock: the guest could have written there since. */

enum {
    READ_BYTES = 4 * DISK_DIGEST_UNIT, /* of a step: what a guest's write may have to wait for */
    HOLE_BYTES = 64 * 1024 * 1024,     /* of a step in a hole */
    BURST_NS = 100 * 1000 * 1000,      /* of the rate may be used at once after a rest */
};

static_assert((int)READ_BYTES <= (int)DISK_DATA_MAX, "a step fits one record");

struct copier {
    struct disk_server *server;
    struct journal *journal;
    int notify_fd;
    pthread_t thread;

    pthread_mutex_t lock; /* protects what follows; never held with a range's or the journal's */
    pthread_cond_t wake;  /* for the thread: a job, or the end of one */
    pthread_cond_t idle;  /* busy has ended */
    bool quit, stop;      /* stop: the present job */
    struct copier_progress progress;

    /* the main thread's while not busy, else the thread's */
    struct copier_order order;
    struct disk_range *ranges; /* order.n_ranges, owned */
    uint64_t due_ns;           /* the rate allows the next step then */

    /* thread only */
    uint8_t buf[READ_BYTES];
    uint8_t zero_digest[DISK_DIGEST_BYTES]; /* of a unit of a hole */
};

static void digest_of(const uint8_t *bytes, size_t n, uint8_t *ret_digest)
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes, n));
    memcpy(ret_digest, canonical.digest, DISK_DIGEST_BYTES);
}

static int put_digest(struct copier *c, uint8_t disk, uint64_t offset, uint64_t n,
                      const uint8_t *digest)
{
    struct disk_record rec = {
        .disk = disk,
        .kind = DISK_DIGEST,
        .n_data = DISK_DIGEST_BYTES,
        .offset = offset,
        .n_bytes = n,
    };

    return journal_add(c->journal, &rec, digest);
}

static int put_zero(struct copier *c, uint8_t disk, uint64_t offset, uint64_t n)
{
    struct disk_record rec = {
        .disk = disk, .kind = DISK_ZERO, .flags = DISK_PUNCH, .offset = offset, .n_bytes = n};

    return c->order.skip_holes ? 0 : journal_add(c->journal, &rec, NULL);
}

static int put_write(struct copier *c, uint8_t disk, uint64_t offset, uint64_t n,
                     const uint8_t *data)
{
    struct disk_record rec = {
        .disk = disk, .kind = DISK_WRITE, .n_data = (uint32_t)n, .offset = offset, .n_bytes = n};

    return journal_add(c->journal, &rec, data);
}

/* The length of the run of blocks at the start of the n bytes that are all zero, or all are not. */
static size_t run_of_blocks(const uint8_t *bytes, size_t n, bool *ret_zero)
{
    static const uint8_t zeros[DISK_BLOCK_BYTES];
    size_t at = 0;

    while (at < n) {
        size_t piece = n - at < sizeof(zeros) ? n - at : sizeof(zeros);
        bool zero = memcmp(bytes + at, zeros, piece) == 0;

        if (at == 0)
            *ret_zero = zero;
        else if (zero != *ret_zero)
            break;
        at += piece;
    }
    return at;
}

static int put_contents(struct copier *c, uint8_t disk, uint64_t offset, uint64_t n)
{
    uint64_t at = 0;
    int r = 0;

    while (r == 0 && at < n) {
        bool zero;
        size_t run = run_of_blocks(c->buf + at, n - at, &zero);

        r = zero ? put_zero(c, disk, offset + at, run)
                 : put_write(c, disk, offset + at, run, c->buf + at);
        at += run;
    }
    return r;
}

static int put_digests(struct copier *c, uint8_t disk, uint64_t offset, uint64_t n)
{
    uint64_t at = 0;
    int r = 0;

    while (r == 0 && at < n) {
        uint64_t unit = n - at < DISK_DIGEST_UNIT ? n - at : DISK_DIGEST_UNIT;
        uint8_t digest[DISK_DIGEST_BYTES];

        digest_of(c->buf + at, unit, digest);
        r = put_digest(c, disk, offset + at, unit, digest);
        at += unit;
    }
    return r;
}

static int put_hole(struct copier *c, uint8_t disk, uint64_t offset, uint64_t n)
{
    int r = 0;

    if (c->order.job == COPIER_COPY)
        return put_zero(c, disk, offset, n);
    for (uint64_t at = 0; r == 0 && at < n; at += DISK_DIGEST_UNIT)
        r = put_digest(c, disk, offset + at, DISK_DIGEST_UNIT, c->zero_digest);
    return r;
}

/* How many of the n bytes from the offset on are a hole; for digests, in whole units. */
static int find_hole(const struct copier *c, uint8_t disk, uint64_t offset, uint64_t n,
                     uint64_t *ret_hole)
{
    uint64_t start, end, hole = n;
    int r = image_next_data(disk_server_image(c->server, disk), offset, &start, &end);

    if (r < 0)
        return r;
    if (r > 0 && start - offset < n)
        hole = start - offset;
    *ret_hole = c->order.job == COPIER_DIGEST ? hole - hole % DISK_DIGEST_UNIT : hole;
    return 0;
}

/* *ret_done is 0 when there is data at the offset. */
static int hole_step(struct copier *c, uint8_t disk, uint64_t offset, uint64_t n,
                     uint64_t *ret_done)
{
    uint64_t hole;
    int r = find_hole(c, disk, offset, n < HOLE_BYTES ? n : HOLE_BYTES, &hole);

    if (r < 0)
        return r;
    *ret_done = hole;
    if (hole == 0 || (c->order.job == COPIER_COPY && c->order.skip_holes))
        return 0;
    disk_server_lock(c->server, disk, offset, hole);
    r = find_hole(c, disk, offset, hole, ret_done);
    if (r == 0)
        r = put_hole(c, disk, offset, *ret_done);
    disk_server_unlock(c->server, disk, offset, hole);
    return r;
}

static int data_step(struct copier *c, uint8_t disk, uint64_t offset, uint64_t n,
                     uint64_t *ret_done)
{
    uint64_t now_ns = clock_now_ns();
    int r;

    if (n > READ_BYTES)
        n = READ_BYTES;
    if (c->order.rate_bytes) {
        if (c->due_ns < now_ns - BURST_NS)
            c->due_ns = now_ns - BURST_NS;
        c->due_ns += n * NS_PER_S / c->order.rate_bytes;
    }
    disk_server_lock(c->server, disk, offset, n);
    r = fault_error("copier.read")
            ?: image_read(disk_server_image(c->server, disk), c->buf, n, offset);
    if (r == 0 && c->order.job == COPIER_COPY)
        r = put_contents(c, disk, offset, n);
    else if (r == 0)
        r = put_digests(c, disk, offset, n);
    disk_server_unlock(c->server, disk, offset, n);
    *ret_done = n;
    return r;
}

/* Waits until the rate allows another step. False: the job is to end. */
static bool wait_turn(struct copier *c)
{
    struct timespec due = {(time_t)(c->due_ns / NS_PER_S), (long)(c->due_ns % NS_PER_S)};
    bool stop;

    pthread_mutex_lock(&c->lock);
    while (!c->stop && clock_now_ns() < c->due_ns)
        (void)pthread_cond_timedwait(&c->wake, &c->lock, &due);
    stop = c->stop;
    pthread_mutex_unlock(&c->lock);
    return !stop;
}

static int do_range(struct copier *c, const struct disk_range *range)
{
    uint64_t at = 0, done;

    while (at < range->n_bytes) {
        uint64_t offset = range->offset + at, left = range->n_bytes - at;
        int r;

        if (!wait_turn(c))
            return -ECANCELED;
        fault_point("copier.step");
        r = hole_step(c, range->disk, offset, left, &done);
        if (r == 0 && done == 0)
            r = data_step(c, range->disk, offset, left, &done);
        if (r < 0)
            return r;
        at += done;
        pthread_mutex_lock(&c->lock);
        c->progress.done_bytes += done;
        pthread_mutex_unlock(&c->lock);
    }
    return 0;
}

static int do_job(struct copier *c)
{
    struct disk_record mark = {
        .kind = DISK_MARK, .flags = c->order.sync ? DISK_SYNC : 0, .offset = c->order.mark};
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < c->order.n_ranges; i++)
        r = do_range(c, &c->ranges[i]);
    if (r == 0 && !wait_turn(c))
        r = -ECANCELED;
    fault_point("copier.done");
    return r < 0 ? r : journal_add(c->journal, &mark, NULL);
}

static void *copier_thread(void *arg)
{
    struct copier *c = arg;

    digest_of(c->buf, DISK_DIGEST_UNIT, c->zero_digest); /* nothing was read into it yet */
    pthread_mutex_lock(&c->lock);
    while (!c->quit) {
        int r;

        if (!c->progress.busy) {
            pthread_cond_wait(&c->wake, &c->lock);
            continue;
        }
        pthread_mutex_unlock(&c->lock);
        r = do_job(c);
        pthread_mutex_lock(&c->lock);
        c->progress.busy = false;
        c->progress.error = r == -ECANCELED ? 0 : r;
        pthread_cond_signal(&c->idle);
        (void)eventfd_write(c->notify_fd, 1); /* fails only when there is much to read already */
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static void release(struct copier *c)
{
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->wake);
    pthread_cond_destroy(&c->idle);
    free(c->ranges);
    free(c);
}

int copier_new(struct disk_server *server, struct journal *journal, int notify_fd,
               struct copier **ret_copier)
{
    struct copier *c = calloc(1, sizeof(*c));
    int r;

    if (!c)
        return -ENOMEM;
    c->server = server;
    c->journal = journal;
    c->notify_fd = notify_fd;
    lock_init(&c->lock);
    cond_init_timed(&c->wake);
    pthread_cond_init(&c->idle, NULL);
    r = thread_start(&c->thread, "us-copy", copier_thread, c);
    if (r < 0)
        release(c);
    else
        *ret_copier = c;
    return r;
}

void copier_free(struct copier *c)
{
    if (!c)
        return;
    copier_stop(c);
    pthread_mutex_lock(&c->lock);
    c->quit = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
    (void)pthread_join(c->thread, NULL); /* cannot fail: it is ours and joined once */
    release(c);
}

/* Puts the range as the job needs it into *to. */
static int take_range(const struct copier *c, enum copier_job job, const struct disk_range *range,
                      struct disk_range *to)
{
    uint64_t size = disk_server_image(c->server, range->disk)->size_bytes;
    uint64_t offset = range->offset, end;

    if (offset > size || range->n_bytes > size - offset)
        return -EINVAL;
    end = offset + range->n_bytes;
    if (job == COPIER_DIGEST && range->n_bytes) {
        uint64_t over = end % DISK_DIGEST_UNIT, more = over ? DISK_DIGEST_UNIT - over : 0;

        offset -= offset % DISK_DIGEST_UNIT;
        end = more < size - end ? end + more : size;
    }
    *to = (struct disk_range){range->disk, offset, end - offset};
    return 0;
}

int copier_start(struct copier *c, const struct copier_order *order)
{
    CLEANUP_FREE struct disk_range *ranges = NULL;
    struct copier_progress progress = {.busy = true}, present;
    int r;

    copier_progress_get(c, &present);
    if (present.busy)
        return -EBUSY;
    ranges = FAULTY_ALLOC("copier.ranges", /* never of nothing */
                          calloc(order->n_ranges + 1UL, sizeof(*ranges)));
    if (!ranges)
        return -ENOMEM;
    for (uint32_t i = 0; i < order->n_ranges; i++) {
        r = take_range(c, order->job, &order->ranges[i], &ranges[i]);
        if (r < 0)
            return r;
        progress.total_bytes += ranges[i].n_bytes;
    }
    pthread_mutex_lock(&c->lock);
    free(c->ranges);
    c->ranges = take_ptr(ranges);
    c->order = *order;
    c->order.ranges = NULL;
    c->due_ns = 0;
    c->stop = false;
    c->progress = progress;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
    return 0;
}

void copier_stop(struct copier *c)
{
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_signal(&c->wake);
    while (c->progress.busy)
        pthread_cond_wait(&c->idle, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

void copier_progress_get(struct copier *c, struct copier_progress *ret_progress)
{
    pthread_mutex_lock(&c->lock);
    *ret_progress = c->progress;
    pthread_mutex_unlock(&c->lock);
}
