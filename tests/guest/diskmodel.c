/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random requests to a disk, against a model of what it must hold. Every sector that was written
 * says which one it is and of which generation; the model, in memory, knows the generation that
 * each must have. Memory and disk that were not taken at the same instant differ at the next read.
 *
 *   diskmodel DEVICE [PAUSE_US]     PAUSE_US: between two requests of a thread (default 1000)
 *
 *   STATUS    -> ops=N syncs=N trims=N bad=N errors=N      bad: sectors; errors: requests refused
 *   PAUSE     -> the same line, when no request is under way
 *   RUN       -> goes on
 *   VERIFY    -> reads all of the disk against the model, then the same line
 *   otherwise -> ERR <reason>
 *
 * Threads, so that several requests are in flight, each with stripes of its own: what requests at
 * the same time do to one sector is nobody's promise. Reads and writes of 0.5 to 64 KiB bypass the
 * page cache. Zeroes are asked for with and without leave to unmap, discards may or may not read as
 * zeros, but must make up their mind. One request in eight goes to the same eight sectors.
 *
 * At its start the model believes the disk: sectors are all zero, or whole and where they belong.
 */
#include "line_server.h"
#include "pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    MODEL_PORT = 7003,
    SECTOR_BYTES = 512,
    SECTOR_WORDS = SECTOR_BYTES / 8,
    REQUEST_SECTORS_MAX = 128,
    STRIPE_SECTORS = 512,
    HOT_SECTORS = 8,
    THREADS = 4,
    PAUSE_US_DEFAULT = 1000,
    REPORTS_MAX = 20, /* bad sectors described on the console */
};

/* From the kernel's interface, whose headers musl does not bring along. */
#ifndef FALLOC_FL_ZERO_RANGE
#define FALLOC_FL_ZERO_RANGE 0x10
#endif
#ifndef BLKDISCARD
#define BLKDISCARD _IO(0x12, 119)
#endif

/* A sector of the model. */
struct expected {
    uint32_t generation; /* 0: reads as zeros */
    bool maybe_zero;     /* it was discarded, and not read since */
};

struct model {
    int fd;
    bool is_device;
    unsigned pause_us;
    uint64_t n_sectors; /* whole rounds of stripes */
    struct expected *sectors;
    atomic_uint_fast64_t ops, syncs, trims, bad, errors;
};

struct worker {
    struct model *model;
    unsigned index;
    uint32_t random;
    pthread_mutex_t busy; /* held during a request; whoever else holds it keeps the thread out */
    pthread_t thread;
    uint64_t *buffer;
};

static struct worker workers[THREADS];

/* xorshift32 (G. Marsaglia) */
static uint32_t below(struct worker *w, uint32_t limit)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 17;
    w->random ^= w->random << 5;
    return w->random % limit;
}

/* What follows a checkpoint is not to be the same at each of two hosts: the time of day decides,
 * too. */
static void stir(struct worker *w)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail: the clock always exists */
    w->random += (uint32_t)t.tv_nsec;
    w->random |= w->random == 0;
}

static void sector_make(uint64_t *words, uint64_t sector, uint32_t generation)
{
    words[0] = sector;
    words[1] = generation;
    pattern_write(words + 2, SECTOR_WORDS - 2, sector, generation);
}

static bool sector_is_zero(const uint64_t *words)
{
    uint64_t any = 0;

    for (int i = 0; i < SECTOR_WORDS; i++)
        any |= words[i];
    return any == 0;
}

static bool sector_is(const uint64_t *words, uint64_t sector, uint32_t generation)
{
    if (generation == 0)
        return sector_is_zero(words);
    return words[0] == sector && words[1] == generation &&
           pattern_is(words + 2, SECTOR_WORDS - 2, sector, generation);
}

static void sector_judge(struct model *m, const uint64_t *words, uint64_t sector)
{
    struct expected *want = &m->sectors[sector];

    if (want->maybe_zero && sector_is_zero(words))
        want->generation = 0;
    want->maybe_zero = false;
    if (sector_is(words, sector, want->generation))
        return;
    if (atomic_fetch_add(&m->bad, 1) < REPORTS_MAX)
        fprintf(stderr,
                "diskmodel: sector %" PRIu64 " is bad: holds sector %" PRIu64 " generation %" PRIu64
                ", expected generation %u\n",
                sector, words[0], words[1], want->generation);
}

/* A refused request leaves contents that the model does not know: the thread stands still then. */
static bool done(struct model *m, bool ok, const char *what, uint64_t sector)
{
    if (!ok && atomic_fetch_add(&m->errors, 1) < REPORTS_MAX)
        fprintf(stderr, "diskmodel: %s at sector %" PRIu64 ": %s\n", what, sector, strerror(errno));
    return ok;
}

static bool read_sectors(struct model *m, uint64_t *buffer, uint64_t first, unsigned n)
{
    ssize_t want = (ssize_t)n * SECTOR_BYTES;

    if (!done(m, pread(m->fd, buffer, (size_t)want, (off_t)(first * SECTOR_BYTES)) == want, "read",
              first))
        return false;
    for (unsigned i = 0; i < n; i++)
        sector_judge(m, buffer + (size_t)i * SECTOR_WORDS, first + i);
    return true;
}

static bool write_sectors(struct model *m, uint64_t *buffer, uint64_t first, unsigned n)
{
    ssize_t want = (ssize_t)n * SECTOR_BYTES;

    for (unsigned i = 0; i < n; i++) {
        struct expected *s = &m->sectors[first + i];

        *s = (struct expected){.generation = s->generation + 1};
        sector_make(buffer + (size_t)i * SECTOR_WORDS, first + i, s->generation);
    }
    return done(m, pwrite(m->fd, buffer, (size_t)want, (off_t)(first * SECTOR_BYTES)) == want,
                "write", first);
}

static bool zero_sectors(struct model *m, uint64_t first, unsigned n, bool unmap)
{
    int mode = FALLOC_FL_KEEP_SIZE | (unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);

    for (unsigned i = 0; i < n; i++)
        m->sectors[first + i] = (struct expected){0};
    atomic_fetch_add(&m->trims, 1);
    return done(m,
                fallocate(m->fd, mode, (off_t)(first * SECTOR_BYTES), (off_t)n * SECTOR_BYTES) == 0,
                "zeroes", first);
}

static bool discard_sectors(struct model *m, uint64_t first, unsigned n)
{
    uint64_t range[2] = {first * SECTOR_BYTES, (uint64_t)n * SECTOR_BYTES};

    if (!m->is_device)
        return zero_sectors(m, first, n, true);
    for (unsigned i = 0; i < n; i++)
        m->sectors[first + i].maybe_zero = true;
    atomic_fetch_add(&m->trims, 1);
    return done(m, ioctl(m->fd, BLKDISCARD, range) == 0, "discard", first);
}

/* One random request within the thread's own stripes. */
static bool request(struct worker *w)
{
    stir(w);

    struct model *m = w->model;
    uint32_t stripes = (uint32_t)(m->n_sectors / STRIPE_SECTORS / THREADS);
    uint64_t first = ((uint64_t)below(w, stripes) * THREADS + w->index) * STRIPE_SECTORS;
    unsigned n = 1 + below(w, below(w, 4) ? 16 : REQUEST_SECTORS_MAX);
    unsigned kind = below(w, 100);

    atomic_fetch_add(&m->ops, 1);
    if (below(w, 8) == 0) {
        first = (uint64_t)w->index * STRIPE_SECTORS + below(w, HOT_SECTORS);
        return write_sectors(m, w->buffer, first, 1);
    }
    first += below(w, STRIPE_SECTORS - n + 1);
    if (kind < 55)
        return write_sectors(m, w->buffer, first, n);
    if (kind < 85)
        return read_sectors(m, w->buffer, first, n);
    if (kind < 89)
        return zero_sectors(m, first, n, true);
    if (kind < 93)
        return zero_sectors(m, first, n, false);
    if (kind < 97)
        return discard_sectors(m, first, n);
    atomic_fetch_add(&m->syncs, 1);
    return done(m, fdatasync(m->fd) == 0, "sync", 0);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    bool ok = true;

    while (ok) {
        pthread_mutex_lock(&w->busy);
        ok = request(w);
        pthread_mutex_unlock(&w->busy);
        usleep(w->model->pause_us);
    }
    return NULL;
}

/* The lock that keeps threads out is the main thread's between PAUSE and RUN. */
static void hold(bool *held, bool on)
{
    for (int i = 0; i < THREADS && on != *held; i++) {
        if (on)
            pthread_mutex_lock(&workers[i].busy);
        else
            pthread_mutex_unlock(&workers[i].busy);
    }
    *held = on;
}

static void verify(struct model *m)
{
    for (uint64_t at = 0; at < m->n_sectors; at += REQUEST_SECTORS_MAX)
        (void)read_sectors(m, workers[0].buffer, at, REQUEST_SECTORS_MAX); /* counted there */
}

static void answer_line(void *ctx, const char *line, char *answer, size_t size)
{
    static bool held;
    struct model *m = ctx;

    if (strcmp(line, "PAUSE") == 0) {
        hold(&held, true);
    } else if (strcmp(line, "RUN") == 0) {
        hold(&held, false);
    } else if (strcmp(line, "VERIFY") == 0) {
        bool was_held = held;

        hold(&held, true);
        verify(m);
        hold(&held, was_held);
    } else if (strcmp(line, "STATUS") != 0) {
        snprintf(answer, size, "ERR unknown request");
        return;
    }
    snprintf(answer, size,
             "ops=%" PRIuFAST64 " syncs=%" PRIuFAST64 " trims=%" PRIuFAST64 " bad=%" PRIuFAST64
             " errors=%" PRIuFAST64,
             m->ops, m->syncs, m->trims, m->bad, m->errors);
}

/* What the disk holds already becomes what is expected of it. */
static int learn(struct model *m, uint64_t *buffer)
{
    size_t bytes = REQUEST_SECTORS_MAX * SECTOR_BYTES;

    for (uint64_t at = 0; at < m->n_sectors; at += REQUEST_SECTORS_MAX) {
        if (pread(m->fd, buffer, bytes, (off_t)(at * SECTOR_BYTES)) != (ssize_t)bytes)
            return -EIO;
        for (unsigned i = 0; i < REQUEST_SECTORS_MAX; i++) {
            const uint64_t *words = buffer + (size_t)i * SECTOR_WORDS;

            m->sectors[at + i].generation = sector_is_zero(words) ? 0 : (uint32_t)words[1];
            sector_judge(m, words, at + i);
        }
    }
    return 0;
}

static int model_open(struct model *m, const char *path)
{
    struct stat st;
    uint64_t round = (uint64_t)STRIPE_SECTORS * THREADS * SECTOR_BYTES;

    m->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (m->fd < 0 || fstat(m->fd, &st) < 0)
        return -errno;
    m->is_device = S_ISBLK(st.st_mode);

    off_t bytes = lseek(m->fd, 0, SEEK_END);

    if (bytes < (off_t)round)
        return bytes < 0 ? -errno : -ENOSPC;
    m->n_sectors = (uint64_t)bytes / round * round / SECTOR_BYTES;
    m->sectors = calloc(m->n_sectors, sizeof(*m->sectors));
    if (!m->sectors)
        return -ENOMEM;
    for (unsigned i = 0; i < THREADS; i++) {
        struct worker *w = &workers[i];

        *w = (struct worker){.model = m, .index = i, .random = 2463534242 + i};
        pthread_mutex_init(&w->busy, NULL); /* cannot fail with default attributes */
        w->buffer = aligned_alloc(4096, REQUEST_SECTORS_MAX * SECTOR_BYTES);
        if (!w->buffer)
            return -ENOMEM;
    }
    return learn(m, workers[0].buffer);
}

int main(int argc, char **argv)
{
    static struct line_server server;
    static struct model model;
    int pause_us = argc == 3 ? atoi(argv[2]) : PAUSE_US_DEFAULT;

    if (argc < 2 || argc > 3 || pause_us < 0 || pause_us > 1000000) {
        fprintf(stderr, "usage: diskmodel DEVICE [PAUSE_US]\n");
        return 2;
    }
    model.pause_us = (unsigned)pause_us;

    int err = model_open(&model, argv[1]);

    for (int i = 0; !err && i < THREADS; i++)
        err = -pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    if (err) {
        fprintf(stderr, "diskmodel: %s: %s\n", argv[1], strerror(-err));
        return 1;
    }
    err = line_server_open(&server, MODEL_PORT, answer_line, &model);
    if (err) {
        fprintf(stderr, "diskmodel: cannot listen on port %d: %s\n", MODEL_PORT, strerror(-err));
        return 1;
    }
    printf("diskmodel: listening on port %d\n", MODEL_PORT);
    fflush(stdout);
    while (!err)
        err = line_server_poll(&server, -1);
    fprintf(stderr, "diskmodel: poll: %s\n", strerror(-err));
    return 1;
}
