/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <xxhash.h>

#include "disk/copier.h"
#include "io/clock.h"
#include "unit.h"

/* The copier beside a guest that writes. The server is a fake: one lock for all ranges. What comes
 * out of the journal is replayed on a replica, where each digest must be right at its place and
 * which is like the image in the end. */

enum {
    KIB = 1024,
    MIB = 1024 * KIB,
    DISK_BYTES = 24 * MIB + 5 * 512,
    DATA_AT = 8 * MIB, /* data with zero blocks between, then allocated zeros */
    DATA_BYTES = 4 * MIB,
    WAIT_MS = 30000,
    DISK = 1, /* number of the disk under test */
};

struct disk_server { /* the fake */
    struct image image;
    pthread_mutex_t lock;
    void (*before_lock)(void *user); /* one time; as a guest that was quicker */
    void *user;
};

void disk_server_lock(struct disk_server *s, uint32_t disk, uint64_t offset, uint64_t n_bytes)
{
    assert_int_equal(disk, DISK);
    assert_true(n_bytes > 0 && offset + n_bytes <= s->image.size_bytes);
    if (s->before_lock) {
        void (*hook)(void *user) = s->before_lock;

        s->before_lock = NULL;
        hook(s->user);
    }
    pthread_mutex_lock(&s->lock);
}

void disk_server_unlock(struct disk_server *s, uint32_t disk, uint64_t offset, uint64_t n_bytes)
{
    pthread_mutex_unlock(&s->lock);
}

const struct image *disk_server_image(const struct disk_server *s, uint32_t disk)
{
    return &s->image;
}

struct rig {
    struct disk_server server;
    struct journal *journal;
    struct copier *copier;
    int event;
    uint64_t epoch;
    uint8_t *replica;
    /* of what was replayed */
    uint64_t n_write_bytes, n_zero_records, n_digests, mark;
    unsigned n_marks;
    bool mark_syncs;
    /* the guest */
    pthread_t guest;
    _Atomic bool guest_stop;
    atomic_uint n_guest_writes;
};

static void write_image(struct rig *rig, uint64_t offset, const void *bytes, size_t n)
{
    assert_int_equal(pwrite(rig->server.image.fd, bytes, n, (off_t)offset), n);
}

static void fill_image(struct rig *rig)
{
    uint8_t block[DISK_BLOCK_BYTES];

    for (uint64_t at = DATA_AT; at < DATA_AT + 2 * DATA_BYTES; at += sizeof(block)) {
        bool zero = at >= DATA_AT + DATA_BYTES || at / sizeof(block) % 3 == 0;

        memset(block, zero ? 0 : (int)(at / sizeof(block) % 255 + 1), sizeof(block));
        write_image(rig, at, block, sizeof(block));
    }
    write_image(rig, DISK_BYTES - 3, "end", 3);
}

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    char path[] = "/tmp/disk-copier-XXXXXX";

    rig->server.image = (struct image){.fd = mkstemp(path), .size_bytes = DISK_BYTES};
    assert_true(rig->server.image.fd >= 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(ftruncate(rig->server.image.fd, DISK_BYTES), 0);
    fill_image(rig);
    assert_int_equal(pthread_mutex_init(&rig->server.lock, NULL), 0);
    rig->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(journal_new(2 * MIB, rig->event, &rig->journal), 0);
    assert_int_equal(copier_new(&rig->server, rig->journal, rig->event, &rig->copier), 0);
    journal_start(rig->journal);
    rig->replica = malloc(DISK_BYTES);
    memset(rig->replica, 0xee, DISK_BYTES);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;

    journal_stop(rig->journal);
    copier_free(rig->copier);
    copier_free(NULL);
    journal_free(rig->journal);
    pthread_mutex_destroy(&rig->server.lock);
    close(rig->server.image.fd);
    close(rig->event);
    free(rig->replica);
    free(rig);
    return 0;
}

static void replay_digest(struct rig *rig, const struct disk_record *rec, const uint8_t *data)
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(rig->replica + rec->offset, rec->n_bytes));
    assert_memory_equal(data, canonical.digest, DISK_DIGEST_BYTES);
    rig->n_digests++;
}

static void replay(struct rig *rig, const struct disk_log *log)
{
    static const uint64_t sizes[] = {0, DISK_BYTES};
    struct disk_cursor cursor = {0};
    struct disk_record rec;
    const uint8_t *data;

    while (disk_log_next(log, &cursor, &rec, &data)) {
        assert_int_equal(disk_record_check(&rec, sizes, N_OF(sizes), NULL), 0);
        if (rec.kind == DISK_WRITE) {
            memcpy(rig->replica + rec.offset, data, rec.n_bytes);
            rig->n_write_bytes += rec.n_bytes;
        } else if (rec.kind == DISK_ZERO) {
            memset(rig->replica + rec.offset, 0, rec.n_bytes);
            rig->n_zero_records++;
        } else if (rec.kind == DISK_DIGEST) {
            replay_digest(rig, &rec, data);
        } else {
            rig->n_marks++;
            rig->mark = rec.offset;
            rig->mark_syncs = rec.flags & DISK_SYNC;
        }
    }
}

static void drain(struct rig *rig)
{
    const struct disk_log *log = journal_cut(rig->journal, ++rig->epoch);

    if (log)
        replay(rig, log);
    journal_acked(rig->journal, rig->epoch);
}

static void wait_event(struct rig *rig)
{
    struct pollfd p = {.fd = rig->event, .events = POLLIN};
    eventfd_t count;

    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
    assert_int_equal(eventfd_read(rig->event, &count), 0);
}

/* Until the job has ended; what it put into the journal is replayed. */
static struct copier_progress finish(struct rig *rig)
{
    struct copier_progress progress;

    do {
        wait_event(rig);
        copier_progress_get(rig->copier, &progress);
        drain(rig);
    } while (progress.busy);
    return progress;
}

static void start(struct rig *rig, struct copier_order order, struct disk_range range)
{
    rig->n_write_bytes = rig->n_zero_records = rig->n_digests = 0;
    rig->n_marks = 0;
    order.ranges = &range;
    order.n_ranges = 1;
    assert_int_equal(copier_start(rig->copier, &order), 0);
}

static const struct disk_range whole = {DISK, 0, DISK_BYTES};

static void expect_done(struct rig *rig, uint64_t mark, uint64_t n_bytes)
{
    struct copier_progress progress = finish(rig);

    assert_int_equal(progress.error, 0);
    assert_int_equal(progress.done_bytes, n_bytes);
    assert_int_equal(progress.total_bytes, n_bytes);
    assert_int_equal(rig->n_marks, 1);
    assert_int_equal(rig->mark, mark);
}

static void expect_same(const struct rig *rig)
{
    uint8_t *bytes = malloc(DISK_BYTES);

    assert_int_equal(pread(rig->server.image.fd, bytes, DISK_BYTES, 0), DISK_BYTES);
    for (size_t at = 0; at < DISK_BYTES; at++)
        if (bytes[at] != rig->replica[at])
            fail_msg("byte %zu is %u and should be %u", at, rig->replica[at], bytes[at]);
    free(bytes);
}

static void copies_all(void **state)
{
    struct rig *rig = *state;

    start(rig, (struct copier_order){.job = COPIER_COPY, .mark = 7, .sync = true}, whole);
    expect_done(rig, 7, DISK_BYTES);
    expect_same(rig);
    assert_true(rig->mark_syncs);
    /* Only blocks with data; 3 of 4 KiB at the end are zeros, of a block cut off. */
    assert_in_range(rig->n_write_bytes, DATA_BYTES / 3 * 2, DATA_BYTES / 3 * 2 + 4 * KIB);
}

static void holes_are_joined(void **state)
{
    struct rig *rig = *state;

    start(rig, (struct copier_order){.job = COPIER_COPY}, (struct disk_range){DISK, 0, DATA_AT});
    expect_done(rig, 0, DATA_AT);
    assert_int_equal(rig->n_zero_records, 1);
    assert_false(rig->mark_syncs);
}

static void holes_can_be_skipped(void **state)
{
    struct rig *rig = *state;

    memset(rig->replica, 0, DISK_BYTES);
    start(rig, (struct copier_order){.job = COPIER_COPY, .mark = 8, .skip_holes = true}, whole);
    expect_done(rig, 8, DISK_BYTES);
    expect_same(rig);
    assert_int_equal(rig->n_zero_records, 0);
}

static void only_ranges_are_copied(void **state)
{
    static const struct disk_range ranges[] = {
        {DISK, DATA_AT, 64 * KIB},
        {DISK, 0, 0},
        {DISK, DATA_AT + MIB + 512, 512},
        {DISK, DISK_BYTES - 1024, 1024},
    };
    struct copier_order order = {.job = COPIER_COPY, .ranges = ranges, .n_ranges = N_OF(ranges)};
    struct rig *rig = *state;
    uint8_t *expected = malloc(DISK_BYTES);

    memset(expected, 0xee, DISK_BYTES);
    for (size_t i = 0; i < N_OF(ranges); i++)
        assert_int_equal(pread(rig->server.image.fd, expected + ranges[i].offset, ranges[i].n_bytes,
                               (off_t)ranges[i].offset),
                         ranges[i].n_bytes);
    assert_int_equal(copier_start(rig->copier, &order), 0);
    expect_done(rig, 0, 64 * KIB + 512 + 1024);
    assert_memory_equal(rig->replica, expected, DISK_BYTES);
    free(expected);
}

static void digests_cover_units(void **state)
{
    static const struct {
        struct disk_range range;
        uint64_t n_bytes;
    } cases[] = {
        {{DISK, 0, DISK_BYTES}, DISK_BYTES},
        {{DISK, 512, 512}, 64 * KIB},
        {{DISK, 64 * KIB - 1, 2}, 128 * KIB},
        {{DISK, DATA_AT - 64 * KIB, 128 * KIB}, 128 * KIB},
        {{DISK, DATA_AT - 1, 1}, 64 * KIB},
        {{DISK, DISK_BYTES - 1, 1}, DISK_BYTES % (64 * KIB)},
        {{DISK, DISK_BYTES - 1024, 512}, DISK_BYTES % (64 * KIB)},
        {{DISK, DISK_BYTES - 4096, 1}, 64 * KIB},
        {{DISK, 64 * KIB, 0}, 0},
    };
    struct rig *rig = *state;

    assert_int_equal(pread(rig->server.image.fd, rig->replica, DISK_BYTES, 0), DISK_BYTES);
    for (size_t i = 0; i < N_OF(cases); i++) {
        start(rig, (struct copier_order){.job = COPIER_DIGEST, .mark = i}, cases[i].range);
        expect_done(rig, i, cases[i].n_bytes);
        assert_int_equal(rig->n_digests, (cases[i].n_bytes + 64 * KIB - 1) / (64 * KIB));
        assert_int_equal(rig->n_write_bytes + rig->n_zero_records, 0);
    }
}

static void no_range_is_a_mark(void **state)
{
    struct copier_order order = {.job = COPIER_DIGEST, .mark = 99};
    struct rig *rig = *state;

    assert_int_equal(copier_start(rig->copier, &order), 0);
    expect_done(rig, 99, 0);
}

static void bad_orders_are_refused(void **state)
{
    static const struct disk_range ranges[] = {
        {DISK, 0, DISK_BYTES + 1},
        {DISK, DISK_BYTES, 1},
        {DISK, UINT64_MAX, 2},
        {DISK, 4096, UINT64_MAX - 4095},
    };
    struct copier_progress progress;
    struct rig *rig = *state;

    for (size_t i = 0; i < N_OF(ranges); i++) {
        struct copier_order order = {.job = COPIER_COPY, .ranges = &ranges[i], .n_ranges = 1};

        assert_int_equal(copier_start(rig->copier, &order), -EINVAL);
        copier_progress_get(rig->copier, &progress);
        assert_false(progress.busy);
    }
    start(rig, (struct copier_order){.job = COPIER_COPY, .rate_bytes = 1}, whole);
    assert_int_equal(copier_start(rig->copier, &(struct copier_order){.job = COPIER_COPY}), -EBUSY);
}

/* After the first read the rate does not let it go on within this test. */
static void stop_ends_a_job(void **state)
{
    const struct disk_range ranges[] = {{DISK, DATA_AT, MIB}, {DISK, DATA_AT, 4096}};
    struct rig *rig = *state;
    struct copier_progress progress;

    for (size_t i = 0; i < N_OF(ranges); i++) {
        start(rig, (struct copier_order){.job = COPIER_COPY, .rate_bytes = 1}, ranges[i]);
        do
            copier_progress_get(rig->copier, &progress);
        while (progress.done_bytes == 0);
        assert_true(progress.busy);
        copier_stop(rig->copier);
        progress = finish(rig);
        assert_false(progress.busy);
        assert_int_equal(progress.error, 0);
        assert_true(progress.done_bytes < MIB);
        assert_int_equal(rig->n_marks, 0);
    }
    copier_stop(rig->copier); /* nothing to stop */
    start(rig, (struct copier_order){.job = COPIER_COPY, .mark = 1}, whole);
    expect_done(rig, 1, DISK_BYTES);
    expect_same(rig);
}

static void stop_ends_a_wait_for_room(void **state)
{
    struct rig *rig = *state;
    bool waiting = false;

    start(rig, (struct copier_order){.job = COPIER_COPY}, whole);
    while (!waiting) {
        wait_event(rig);
        (void)journal_open_bytes(rig->journal, &waiting);
    }
    journal_pass(rig->journal, true);
    copier_stop(rig->copier);
}

static void rate_is_kept(void **state)
{
    struct rig *rig = *state;
    uint64_t started_ns = clock_now_ns();

    /* 2 MiB at 4 MiB/s, less what a rest of 100 ms gives at once and the last read: 337 ms. */
    start(rig, (struct copier_order){.job = COPIER_DIGEST, .rate_bytes = 4 * MIB},
          (struct disk_range){DISK, DATA_AT + DATA_BYTES, 2 * MIB});
    memset(rig->replica, 0, DISK_BYTES);
    expect_done(rig, 0, 2 * MIB);
    assert_true(clock_now_ns() - started_ns > 300 * NS_PER_MS);
}

static void read_error_ends_a_job(void **state)
{
    struct rig *rig = *state;
    struct copier_progress progress;
    int fd = rig->server.image.fd;
    char path[64];

    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    rig->server.image.fd = open(path, O_WRONLY | O_CLOEXEC); /* cannot be read */
    assert_true(rig->server.image.fd >= 0);
    start(rig, (struct copier_order){.job = COPIER_COPY, .mark = 1}, whole);
    progress = finish(rig);
    assert_int_equal(progress.error, -EBADF);
    assert_int_equal(progress.done_bytes, DATA_AT);
    assert_int_equal(rig->n_marks, 0);
    close(rig->server.image.fd);
    rig->server.image.fd = fd;
    start(rig, (struct copier_order){.job = COPIER_COPY, .mark = 1}, whole);
    expect_done(rig, 1, DISK_BYTES);
}

static void guest_write(struct rig *rig, uint64_t offset, uint32_t n, int fill)
{
    struct disk_record rec = {
        .disk = DISK, .kind = DISK_WRITE, .n_data = n, .offset = offset, .n_bytes = n};
    uint8_t data[64 * KIB];

    memset(data, fill, n);
    pthread_mutex_lock(&rig->server.lock);
    write_image(rig, offset, data, n);
    assert_int_equal(journal_add(rig->journal, &rec, data), 0);
    pthread_mutex_unlock(&rig->server.lock);
}

static void write_into_hole(void *user)
{
    guest_write(user, 4 * MIB, 8192, 0x77);
}

static void a_hole_can_vanish(void **state)
{
    enum copier_job jobs[] = {COPIER_COPY, COPIER_DIGEST};
    struct rig *rig = *state;

    for (size_t i = 0; i < N_OF(jobs); i++) {
        assert_int_equal(
            fallocate(rig->server.image.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, DATA_AT),
            0);
        assert_int_equal(pread(rig->server.image.fd, rig->replica, DISK_BYTES, 0), DISK_BYTES);
        rig->server.user = rig;
        rig->server.before_lock = write_into_hole;
        start(rig, (struct copier_order){.job = jobs[i]}, (struct disk_range){DISK, 0, DATA_AT});
        expect_done(rig, 0, DATA_AT);
        assert_null(rig->server.before_lock);
        expect_same(rig);
    }
}

static void *guest_main(void *arg)
{
    struct rig *rig = arg;
    unsigned seed = 5;

    while (!atomic_load(&rig->guest_stop)) {
        uint32_t n = 512 * (1 + (uint32_t)rand_r(&seed) % 64);
        uint64_t offset = (uint64_t)rand_r(&seed) % ((DISK_BYTES - n) / 512 + 1) * 512;

        guest_write(rig, offset, n, rand_r(&seed) % 4);
        atomic_fetch_add(&rig->n_guest_writes, 1);
    }
    return NULL;
}

static void stop_guest(struct rig *rig)
{
    atomic_store(&rig->guest_stop, true);
    journal_pass(rig->journal, true);
    assert_int_equal(pthread_join(rig->guest, NULL), 0);
    drain(rig);
}

/* Copy, then digests, as when seeding: one ordered stream with the guest's writes. */
static void guest_goes_on_writing(void **state)
{
    struct rig *rig = *state;

    for (int skip = 0; skip < 2; skip++) {
        atomic_store(&rig->guest_stop, false);
        atomic_store(&rig->n_guest_writes, 0);
        journal_pass(rig->journal, false);
        if (skip) { /* the other copy is all holes when the guest begins */
            assert_int_equal(ftruncate(rig->server.image.fd, 0), 0);
            assert_int_equal(ftruncate(rig->server.image.fd, DISK_BYTES), 0);
            fill_image(rig);
            memset(rig->replica, 0, DISK_BYTES);
        }
        assert_int_equal(pthread_create(&rig->guest, NULL, guest_main, rig), 0);
        while (atomic_load(&rig->n_guest_writes) == 0)
            ;
        start(rig, (struct copier_order){.job = COPIER_COPY, .mark = 1, .skip_holes = skip}, whole);
        expect_done(rig, 1, DISK_BYTES);
        start(rig, (struct copier_order){.job = COPIER_DIGEST, .mark = 2}, whole);
        expect_done(rig, 2, DISK_BYTES);
        assert_int_equal(rig->n_digests, (DISK_BYTES + 64 * KIB - 1) / (64 * KIB));
        stop_guest(rig);
        expect_same(rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(copies_all, setup, teardown),
        cmocka_unit_test_setup_teardown(holes_are_joined, setup, teardown),
        cmocka_unit_test_setup_teardown(holes_can_be_skipped, setup, teardown),
        cmocka_unit_test_setup_teardown(only_ranges_are_copied, setup, teardown),
        cmocka_unit_test_setup_teardown(digests_cover_units, setup, teardown),
        cmocka_unit_test_setup_teardown(no_range_is_a_mark, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_orders_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(stop_ends_a_job, setup, teardown),
        cmocka_unit_test_setup_teardown(stop_ends_a_wait_for_room, setup, teardown),
        cmocka_unit_test_setup_teardown(rate_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(read_error_ends_a_job, setup, teardown),
        cmocka_unit_test_setup_teardown(a_hole_can_vanish, setup, teardown),
        cmocka_unit_test_setup_teardown(guest_goes_on_writing, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
