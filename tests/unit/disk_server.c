/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "nbd_rig.h"
#include "unit.h"

/* What the disk server does with requests. */

/* Any place, any length, but blocks and their neighbours more often than others. */
static void random_range(uint64_t *seed, uint64_t *ret_offset, uint64_t *ret_n, uint64_t max)
{
    uint64_t unit = random_below(seed, 2) ? 4096 : 1;

    *ret_n = (1 + random_below(seed, max / unit)) * unit;
    *ret_offset = random_below(seed, (DISK_BYTES - *ret_n) / unit + 1) * unit;
}

/* One random request, on the model too. */
static void random_request(struct nbd_rig *rig, uint64_t *seed, uint8_t *model, uint8_t *buf)
{
    struct nbd_handle *h = rig->client[random_below(seed, CLIENTS)];
    uint32_t fua = random_below(seed, 8) ? 0 : LIBNBD_CMD_FLAG_FUA;
    uint64_t offset, n;

    random_range(seed, &offset, &n, random_below(seed, 20) ? 65536 : DISK_BYTES);
    switch (random_below(seed, 5)) {
    case 0:
        succeeds(nbd_pread(h, buf, n, offset, 0));
        assert_memory_equal(buf, model + offset, n);
        break;
    case 1:
        fill_random(seed, model + offset, n);
        succeeds(nbd_pwrite(h, model + offset, n, offset, fua));
        break;
    case 2:
        memset(model + offset, 0, n);
        succeeds(
            nbd_zero(h, n, offset, fua | (random_below(seed, 2) ? LIBNBD_CMD_FLAG_NO_HOLE : 0)));
        break;
    case 3:
        if (image_can_punch(&rig->image)) /* else it is ignored */
            memset(model + offset, 0, n);
        succeeds(nbd_trim(h, n, offset, fua));
        break;
    default:
        succeeds(nbd_flush(h, 0));
    }
}

static void test_random_requests(void **state)
{
    struct nbd_rig *rig = *state;
    uint8_t *model = calloc(1, DISK_BYTES), *copy = calloc(1, DISK_BYTES);
    uint8_t *buf = malloc(DISK_BYTES);
    uint64_t seed = 20240607, at = 0, n;

    for (int i = 0; i < 600; i++) {
        random_request(rig, &seed, model, buf);
        if (i % 50 == 0)
            (void)rig_replay(rig, copy);
    }
    (void)rig_replay(rig, copy);
    rig_compare(rig, model);
    rig_compare(rig, copy);
    /* What was never marked is as it was made. */
    for (uint64_t end = 0; end < DISK_BYTES; end = at + n) {
        if (!disk_map_next(rig->map, end, &at, &n)) {
            at = DISK_BYTES;
            n = 0;
        }
        for (uint64_t i = end; i < at; i++)
            assert_int_equal(model[i], 0);
    }
    free(model);
    free(copy);
    free(buf);
}

enum { CONTENDED_BYTES = 256 * 1024 };

static atomic_bool copying;

/* As the copier does it, but with a long time between reading and recording. */
static void *copy_ranges(void *user)
{
    struct nbd_rig *rig = user;
    uint8_t *buf = malloc(CONTENDED_BYTES);
    uint64_t seed = 7;

    while (atomic_load(&copying)) {
        uint64_t n = 1 + random_below(&seed, CONTENDED_BYTES);
        struct disk_record rec = {
            .kind = DISK_WRITE,
            .n_data = (uint32_t)n,
            .offset = random_below(&seed, CONTENDED_BYTES - n + 1),
            .n_bytes = n,
        };

        disk_server_lock(rig->server, 0, rec.offset, rec.n_bytes);
        assert_int_equal(
            image_read(disk_server_image(rig->server, 0), buf, rec.n_bytes, rec.offset), 0);
        for (int i = 0; i < 20; i++)
            sched_yield();
        assert_int_equal(journal_add(rig->journal, &rec, buf), 0);
        disk_server_unlock(rig->server, 0, rec.offset, rec.n_bytes);
    }
    free(buf);
    return NULL;
}

/* Requests that overlap, at once, on several connections, while ranges are copied: whatever order
 * they get, the journal's is the image's. */
static void test_order_of_overlapping_requests(void **state)
{
    enum { DEPTH = 8, ROUNDS = 150, BYTES = 65536 };
    static uint8_t data[CLIENTS][DEPTH][BYTES];
    struct nbd_rig *rig = *state;
    uint8_t *copy = calloc(1, DISK_BYTES);
    uint64_t seed = 99, offset, n;
    pthread_t copier;

    atomic_store(&copying, true);
    assert_int_equal(pthread_create(&copier, NULL, copy_ranges, rig), 0);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < CLIENTS * DEPTH; i++) {
            uint8_t *bytes = data[i % CLIENTS][i / CLIENTS];
            struct nbd_handle *h = rig->client[i % CLIENTS];

            n = 1 + random_below(&seed, BYTES);
            offset = random_below(&seed, CONTENDED_BYTES - n + 1);
            memset(bytes, (int)random_below(&seed, 256), n);
            if (random_below(&seed, 3))
                succeeds((int)nbd_aio_pwrite(h, bytes, n, offset, NBD_NULL_COMPLETION, 0));
            else
                succeeds((int)nbd_aio_zero(h, n, offset, NBD_NULL_COMPLETION, 0));
        }
        rig_finish(rig);
        (void)rig_replay(rig, copy); /* however fast the copier is, the journal has room */
    }
    atomic_store(&copying, false);
    pthread_join(copier, NULL);
    (void)rig_replay(rig, copy);
    rig_compare(rig, copy);
    free(copy);
}

static void test_long_write_is_split(void **state)
{
    struct nbd_rig *rig = *state;
    uint8_t *bytes = malloc(DISK_BYTES), *copy = calloc(1, DISK_BYTES);

    memset(bytes, 5, DISK_BYTES);
    succeeds(nbd_pwrite(rig->client[0], bytes, DISK_BYTES - 1, 1, 0));
    assert_int_equal(rig_replay(rig, copy), DISK_BYTES / DISK_DATA_MAX);
    rig_compare(rig, copy);
    free(bytes);
    free(copy);
}

static void test_discard_is_a_hole_of_zeroes(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    struct disk_cursor cursor = {0};
    const struct disk_log *log;
    struct disk_record rec;
    const uint8_t *data;

    if (!image_can_punch(&rig->image))
        skip();
    succeeds(nbd_trim(h, 4096, 8192, 0));
    succeeds(nbd_zero(h, 4096, 8192, 0));
    succeeds(nbd_zero(h, 4096, 8192, LIBNBD_CMD_FLAG_NO_HOLE));
    log = rig_cut(rig);
    for (int i = 0; i < 3; i++) {
        assert_true(disk_log_next(log, &cursor, &rec, &data));
        assert_int_equal(rec.kind, DISK_ZERO);
        assert_int_equal(rec.flags, i < 2 ? DISK_PUNCH : 0);
    }
    assert_false(disk_log_next(log, &cursor, &rec, &data));

    rig->image.can_punch = false;
    succeeds(nbd_trim(h, 4096, 8192, LIBNBD_CMD_FLAG_FUA));
    assert_null(rig_cut(rig));
}

static bool flushed(struct nbd_rig *rig)
{
    const struct disk_log *log = rig_cut(rig);

    return log && log->flushed;
}

static struct disk_flushes flushes(struct nbd_rig *rig)
{
    struct disk_flushes found;

    disk_server_flushes(rig->server, 0, &found);
    return found;
}

static void test_flush_marks_the_epoch(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    char block[512] = {1};

    succeeds(nbd_pwrite(h, block, sizeof(block), 0, 0));
    assert_false(flushed(rig));
    succeeds(nbd_flush(h, 0));
    assert_true(flushed(rig));
    succeeds(nbd_flush(h, 0)); /* with nothing to sync */
    assert_int_equal(flushes(rig).synced, 2);
    assert_true(flushed(rig));
    succeeds(nbd_pwrite(h, block, sizeof(block), 0, LIBNBD_CMD_FLAG_FUA));
    assert_true(flushed(rig));
    succeeds(nbd_zero(h, sizeof(block), 0, LIBNBD_CMD_FLAG_FUA));
    assert_true(flushed(rig));
    assert_int_equal(flushes(rig).synced, 2);
    assert_int_equal(flushes(rig).deferred, 0);
}

static int64_t begin_flush(struct nbd_handle *h)
{
    int64_t cookie = nbd_aio_flush(h, NBD_NULL_COMPLETION, 0);

    assert_true(cookie >= 0);
    return cookie;
}

/* The server has read what h sent before: it has answered a read which came after. Only what h
 * itself sent is still open then. */
static void not_answered(struct nbd_handle *h, int64_t cookie)
{
    char byte;

    succeeds(nbd_pread(h, &byte, 1, 0, 0));
    assert_int_equal(nbd_aio_command_completed(h, (uint64_t)cookie), 0);
}

static void answered(struct nbd_handle *h, int64_t cookie)
{
    int r;

    while ((r = nbd_aio_command_completed(h, (uint64_t)cookie)) == 0)
        assert_int_equal(nbd_poll(h, WAIT_MS), 1);
    succeeds(r);
}

static void test_flush_in_a_checkpoint(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    char block[512] = {1};
    int64_t first, second;

    succeeds(nbd_pwrite(h, block, sizeof(block), 0, 0));
    succeeds(nbd_flush(h, 0));
    assert_true(flushed(rig));
    succeeds(nbd_pwrite(h, block, sizeof(block), 0, 0));
    disk_server_phase(rig->server, DISK_STOPPING);
    first = begin_flush(h);
    not_answered(h, first);
    succeeds(nbd_pwrite(h, block, sizeof(block), 0, LIBNBD_CMD_FLAG_FUA)); /* is no flush */
    assert_true(flushed(rig));
    disk_server_phase(rig->server, DISK_STOPPED);
    answered(h, first);
    succeeds(nbd_flush(h, 0));
    assert_int_equal(flushes(rig).synced, 1);
    assert_int_equal(flushes(rig).deferred, 2);
    assert_false(flushed(rig));

    disk_server_phase(rig->server, DISK_RUNNING);
    assert_int_equal(flushes(rig).synced, 0);
    assert_int_equal(flushes(rig).deferred, 0);

    /* A checkpoint that is given up. */
    disk_server_phase(rig->server, DISK_STOPPING);
    first = begin_flush(h);
    second = begin_flush(rig->client[1]);
    not_answered(h, first);
    not_answered(rig->client[1], second);
    disk_server_phase(rig->server, DISK_RUNNING);
    answered(h, first);
    answered(rig->client[1], second);
    assert_int_equal(flushes(rig).synced, 2);
    assert_true(flushed(rig));
}

static void test_modes(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    char block[512] = {1}, found[512];
    int64_t write, zero, trim, flush;

    disk_server_mode(rig->server, DISK_WAITING);
    fails(nbd_pwrite(h, block, sizeof(block), 0, 0), EPERM);
    fails(nbd_zero(h, sizeof(block), 0, 0), EPERM);
    fails(nbd_trim(h, sizeof(block), 0, 0), EPERM);
    succeeds(nbd_pread(h, found, sizeof(found), 0, 0));
    succeeds(nbd_flush(h, 0));
    (void)rig_cut(rig);

    disk_server_mode(rig->server, DISK_HELD);
    write = nbd_aio_pwrite(h, block, sizeof(block), 0, NBD_NULL_COMPLETION, 0);
    zero = nbd_aio_zero(h, sizeof(block), 4096, NBD_NULL_COMPLETION, 0);
    trim = nbd_aio_trim(h, sizeof(block), 8192, NBD_NULL_COMPLETION, 0);
    flush = begin_flush(h);
    not_answered(h, write);
    not_answered(h, zero);
    not_answered(h, trim);
    not_answered(h, flush);
    succeeds(nbd_pread(h, found, sizeof(found), 0, 0));
    assert_int_equal(found[0], 0);
    assert_null(rig_cut(rig));

    disk_server_mode(rig->server, DISK_OPEN);
    answered(h, write);
    answered(h, zero);
    answered(h, trim);
    answered(h, flush);
    succeeds(nbd_pread(h, found, sizeof(found), 0, 0));
    assert_memory_equal(found, block, sizeof(block));
    assert_true(flushed(rig));
}

static void test_read_only(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h;
    char block[512] = {0};

    rig_stop(rig);
    rig_serve(rig, true);
    disk_server_mode(rig->server, DISK_OPEN);
    h = rig->client[0];
    assert_int_equal(nbd_is_read_only(h), 1);
    fails(nbd_pwrite(h, block, sizeof(block), 0, 0), EPERM);
    fails(nbd_zero(h, sizeof(block), 0, 0), EPERM);
    succeeds(nbd_pread(h, block, sizeof(block), 0, 0));
    succeeds(nbd_flush(h, 0));
}

/* The guest sees the error that its disk would have had; the standby sees nothing. */
static void test_errors_of_the_image(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    struct rlimit before, half;
    static char block[8192] = {1};

    assert_true(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    half = before;
    half.rlim_cur = DISK_BYTES / 2;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &half), 0);
    fails(nbd_pwrite(h, block, sizeof(block), DISK_BYTES / 2 + 4096, 0), ENOSPC);
    fails(nbd_pwrite(h, block, sizeof(block), DISK_BYTES / 2 - 4096, LIBNBD_CMD_FLAG_FUA), ENOSPC);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_null(rig_cut(rig));

    assert_int_equal(truncate(rig->image_path, DISK_BYTES / 2), 0);
    fails(nbd_pread(h, block, sizeof(block), DISK_BYTES / 2, 0), EIO);
    succeeds(nbd_pread(h, block, sizeof(block), 0, 0));
}

static void test_a_failed_sync_fails_for_good(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    int pipes[2], kept = dup(rig->image.fd);
    char block[512] = {1};

    succeeds(nbd_pwrite(h, block, sizeof(block), 0, 0));
    assert_int_equal(pipe(pipes), 0);
    assert_true(dup2(pipes[0], rig->image.fd) >= 0); /* cannot be synced */
    fails(nbd_flush(h, 0), EINVAL);
    assert_true(dup2(kept, rig->image.fd) >= 0);
    fails(nbd_flush(h, 0), EINVAL);
    fails(nbd_pwrite(h, block, sizeof(block), 0, LIBNBD_CMD_FLAG_FUA), EINVAL);
    assert_int_equal(flushes(rig).synced, 0);
    assert_false(flushed(rig));
    close(pipes[0]);
    close(pipes[1]);
    close(kept);
}

/* What a connection that breaks had sent either happened before a new one is served, or never
 * will: here, that a zero of the old one does not overtake a write of the new one. */
static void test_broken_connection(void **state)
{
    struct nbd_rig *rig = *state;
    static char block[4096];

    memset(block, 7, sizeof(block));
    for (int round = 0; round < 100; round++) {
        struct nbd_handle *old = rig_connect(rig), *new;

        for (int i = 0; i < 40; i++)
            succeeds((int)nbd_aio_zero(old, sizeof(block) + (uint64_t)i * 65536, 0,
                                       NBD_NULL_COMPLETION, 0));
        nbd_close(old);
        new = rig_connect(rig);
        succeeds(nbd_pwrite(new, block, sizeof(block), 0, 0));
        succeeds(nbd_flush(new, 0));
        memset(block, 0, sizeof(block));
        succeeds(nbd_pread(new, block, sizeof(block), 0, 0));
        assert_int_equal(block[0], 7);
        nbd_close(new);
    }
}

static int setup_small_journal(void **state)
{
    *state = rig_new(DISK_BYTES, 1 << 20);
    return 0;
}

/* A guest that is faster than the link waits in its writes, without an error; the main thread does
 * not wait. */
static void test_full_journal(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    uint8_t *data = calloc(1, 1 << 20);
    struct pollfd event = {.fd = rig->journal_event, .events = POLLIN};
    int64_t cookie;
    eventfd_t n;
    bool waiting;

    succeeds(nbd_pwrite(h, data, 1 << 20, 0, 0));
    assert_int_equal(eventfd_read(rig->journal_event, &n), 0);
    cookie = nbd_aio_pwrite(h, data, 4096, 0, NBD_NULL_COMPLETION, 0);
    assert_int_equal(poll(&event, 1, WAIT_MS), 1);
    assert_true(journal_open_bytes(rig->journal, &waiting) > 0);
    assert_true(waiting);
    disk_server_phase(rig->server, DISK_STOPPING);
    disk_server_phase(rig->server, DISK_RUNNING);
    assert_int_equal(nbd_aio_command_completed(h, (uint64_t)cookie), 0);
    (void)rig_cut(rig);
    journal_acked(rig->journal, rig->epoch);
    answered(h, cookie);

    succeeds(nbd_pwrite(h, data, 1 << 20, 0, 0));
    assert_int_equal(eventfd_read(rig->journal_event, &n), 0);
    cookie = nbd_aio_zero(h, 4096, 0, NBD_NULL_COMPLETION, 0);
    assert_int_equal(poll(&event, 1, WAIT_MS), 1);
    journal_pass(rig->journal, true);
    answered(h, cookie);
    free(data);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_random_requests),
        TEST(test_order_of_overlapping_requests),
        TEST(test_long_write_is_split),
        TEST(test_discard_is_a_hole_of_zeroes),
        TEST(test_flush_marks_the_epoch),
        TEST(test_flush_in_a_checkpoint),
        TEST(test_modes),
        TEST(test_read_only),
        TEST(test_errors_of_the_image),
        TEST(test_a_failed_sync_fails_for_good),
        TEST(test_broken_connection),
        cmocka_unit_test_setup_teardown(test_full_journal, setup_small_journal, rig_teardown),
    };

    return cmocka_run_group_tests_name("disk_server", tests, NULL, NULL);
}
