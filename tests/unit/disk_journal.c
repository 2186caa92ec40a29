/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "disk/journal.h"
#include "unit.h"

enum { DATA_BYTES = 1000, RECORD_BYTES = DISK_HEADER_BYTES + DATA_BYTES, WAIT_MS = 30000 };

/* Of the code under test. */
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);

static bool out_of_memory;

void *__wrap_malloc(size_t n)
{
    return out_of_memory ? NULL : __real_malloc(n);
}

struct rig {
    struct journal *j;
    int event;
};

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));

    rig->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_true(rig->event >= 0);
    assert_int_equal(journal_new(8 * RECORD_BYTES, rig->event, &rig->j), 0);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;

    journal_free(rig->j);
    close(rig->event);
    free(rig);
    return 0;
}

static bool notified(const struct rig *rig)
{
    eventfd_t count;

    return eventfd_read(rig->event, &count) == 0;
}

static void wait_event(const struct rig *rig)
{
    struct pollfd p = {.fd = rig->event, .events = POLLIN};

    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
    assert_true(notified(rig));
}

static int add(const struct rig *rig, uint64_t offset)
{
    uint8_t data[DATA_BYTES];
    struct disk_record rec = {
        .kind = DISK_WRITE, .n_data = DATA_BYTES, .offset = offset, .n_bytes = DATA_BYTES};

    memset(data, (int)offset, DATA_BYTES);
    return journal_add(rig->j, &rec, data);
}

static void add_mark(const struct rig *rig)
{
    struct disk_record rec = {.kind = DISK_MARK};

    assert_int_equal(journal_add(rig->j, &rec, NULL), 0);
}

/* The log holds exactly the writes from..from+n-1. */
static void expect_writes(const struct disk_log *log, uint64_t from, uint64_t n)
{
    struct disk_cursor cursor = {0};
    struct disk_record rec;
    const uint8_t *data;

    assert_non_null(log);
    for (uint64_t i = from; i < from + n; i++) {
        assert_true(disk_log_next(log, &cursor, &rec, &data));
        assert_int_equal(rec.kind, DISK_WRITE);
        assert_int_equal(rec.offset, i);
        assert_int_equal(data[DATA_BYTES - 1], (uint8_t)i);
    }
    assert_false(disk_log_next(log, &cursor, &rec, &data));
}

static uint64_t open_bytes(const struct rig *rig)
{
    bool waiting;

    return journal_open_bytes(rig->j, &waiting);
}

static void off_keeps_nothing(void **state)
{
    struct rig *rig = *state;

    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(add(rig, i), 0);
    journal_flushed(rig->j);
    assert_int_equal(open_bytes(rig), 0);
    assert_null(journal_cut(rig->j, 1));
    journal_start(rig->j);
    assert_null(journal_cut(rig->j, 2));
    assert_int_equal(add(rig, 3), 0);
    journal_stop(rig->j);
    assert_int_equal(open_bytes(rig), 0);
    assert_false(notified(rig));
}

static void cut_closes_an_epoch(void **state)
{
    struct rig *rig = *state;
    const struct disk_log *one, *two, *three;

    journal_start(rig->j);
    assert_int_equal(add(rig, 1), 0);
    assert_int_equal(open_bytes(rig), RECORD_BYTES);
    one = journal_cut(rig->j, 5);
    assert_false(one->flushed);
    assert_int_equal(open_bytes(rig), 0);
    assert_null(journal_cut(rig->j, 6));
    journal_flushed(rig->j);
    two = journal_cut(rig->j, 7);
    assert_int_equal(two->n_records, 0);
    assert_true(two->flushed);
    assert_null(journal_cut(rig->j, 8));
    assert_int_equal(add(rig, 2), 0);
    assert_int_equal(add(rig, 3), 0);
    three = journal_cut(rig->j, 9);
    assert_false(three->flushed);
    expect_writes(one, 1, 1);
    journal_acked(rig->j, 8);
    expect_writes(three, 2, 2);
    journal_acked(rig->j, 8);
    journal_acked(rig->j, 9);
}

static void many_epochs_in_flight(void **state)
{
    const struct disk_log *log[JOURNAL_EPOCHS_MAX];
    struct rig *rig = *state;

    journal_start(rig->j);
    journal_pass(rig->j, true);
    for (uint64_t epoch = 1; epoch < 10 * JOURNAL_EPOCHS_MAX; epoch++) {
        if (epoch > JOURNAL_EPOCHS_MAX) {
            expect_writes(log[epoch % JOURNAL_EPOCHS_MAX], epoch - JOURNAL_EPOCHS_MAX, 1);
            journal_acked(rig->j, epoch - JOURNAL_EPOCHS_MAX);
        }
        assert_int_equal(add(rig, epoch), 0);
        log[epoch % JOURNAL_EPOCHS_MAX] = journal_cut(rig->j, epoch);
    }
}

static void rebase_puts_what_is_unsure_first(void **state)
{
    struct rig *rig = *state;
    const struct disk_log *log;

    journal_start(rig->j);
    for (uint64_t i = 1; i <= 3; i++) {
        add_mark(rig);
        assert_int_equal(add(rig, i), 0);
        if (i == 2)
            journal_flushed(rig->j);
        assert_non_null(journal_cut(rig->j, i));
    }
    assert_int_equal(add(rig, 4), 0);
    journal_acked(rig->j, 1);
    journal_rebase(rig->j);
    assert_int_equal(open_bytes(rig), 3 * RECORD_BYTES);
    assert_int_equal(add(rig, 5), 0);
    log = journal_cut(rig->j, 4);
    assert_true(log->flushed);
    expect_writes(log, 2, 4);

    add_mark(rig); /* in the open log it stays */
    journal_rebase(rig->j);
    assert_int_equal(open_bytes(rig), 4 * RECORD_BYTES + DISK_HEADER_BYTES);
    journal_acked(rig->j, 4); /* nothing is in flight */
    assert_int_equal(open_bytes(rig), 4 * RECORD_BYTES + DISK_HEADER_BYTES);
}

static void growth_is_told_once_an_epoch(void **state)
{
    struct rig *rig = *state;

    journal_start(rig->j);
    for (int epoch = 1; epoch <= 2; epoch++) {
        for (uint64_t i = 1; i <= 4; i++)
            assert_int_equal(add(rig, i), 0);
        assert_false(notified(rig));
        assert_int_equal(add(rig, 5), 0); /* more than half */
        assert_true(notified(rig));
        assert_int_equal(add(rig, 6), 0);
        assert_false(notified(rig));
        assert_non_null(journal_cut(rig->j, (uint64_t)epoch));
        journal_acked(rig->j, (uint64_t)epoch);
    }
}

struct adder {
    struct rig *rig;
    uint64_t from, n;
    pthread_t thread;
};

static void *adder_main(void *arg)
{
    struct adder *adder = arg;

    for (uint64_t i = adder->from; i < adder->from + adder->n; i++)
        if (add(adder->rig, i))
            return arg;
    return NULL;
}

/* Fills the journal in a cut and an open log, and has a thread that waits to add record 8. */
static void fill_and_wait(struct rig *rig, struct adder *adder)
{
    bool waiting;

    journal_start(rig->j);
    for (uint64_t i = 0; i < 8; i++) {
        assert_int_equal(add(rig, i), 0);
        if (i == 4)
            assert_non_null(journal_cut(rig->j, 1));
    }
    (void)notified(rig);
    (void)journal_open_bytes(rig->j, &waiting);
    assert_false(waiting);
    *adder = (struct adder){rig, 8, 1, 0};
    assert_int_equal(pthread_create(&adder->thread, NULL, adder_main, adder), 0);
    wait_event(rig);
    assert_int_equal(journal_open_bytes(rig->j, &waiting), 3 * RECORD_BYTES);
    assert_true(waiting);
}

static void join(struct adder *adder)
{
    void *failed;

    assert_int_equal(pthread_join(adder->thread, &failed), 0);
    assert_null(failed);
}

static void waits_for_an_ack(void **state)
{
    struct rig *rig = *state;
    struct adder adder;
    bool waiting;

    fill_and_wait(rig, &adder);
    journal_acked(rig->j, 1);
    join(&adder);
    (void)journal_open_bytes(rig->j, &waiting);
    assert_false(waiting);
    expect_writes(journal_cut(rig->j, 2), 5, 4);
}

static void does_not_wait_in_a_checkpoint(void **state)
{
    struct rig *rig = *state;
    struct adder adder;

    fill_and_wait(rig, &adder);
    journal_pass(rig->j, true);
    join(&adder);
    assert_int_equal(add(rig, 9), 0);
    expect_writes(journal_cut(rig->j, 2), 5, 5);
}

static void does_not_wait_when_stopped(void **state)
{
    struct rig *rig = *state;
    struct adder adder;

    fill_and_wait(rig, &adder);
    journal_stop(rig->j);
    join(&adder);
    assert_int_equal(open_bytes(rig), 0);
}

static void rebase_makes_room_of_digests(void **state)
{
    uint8_t data[DISK_DIGEST_BYTES] = {0};
    struct disk_record digest = {
        .kind = DISK_DIGEST, .n_data = sizeof(data), .n_bytes = DISK_DIGEST_UNIT};
    struct rig *rig = *state;
    struct adder adder = {rig, 0, 1, 0};

    journal_start(rig->j);
    for (int i = 0; i < 8 * RECORD_BYTES; i += (int)sizeof(data) + DISK_HEADER_BYTES)
        assert_int_equal(journal_add(rig->j, &digest, data), 0);
    assert_non_null(journal_cut(rig->j, 1));
    (void)notified(rig);
    assert_int_equal(pthread_create(&adder.thread, NULL, adder_main, &adder), 0);
    wait_event(rig);
    journal_rebase(rig->j);
    join(&adder);
    assert_int_equal(open_bytes(rig), RECORD_BYTES);
}

static void missing_memory_poisons(void **state)
{
    struct rig *rig = *state;
    const struct disk_log *log;

    journal_start(rig->j);
    assert_false(journal_poisoned(rig->j));
    out_of_memory = true;
    assert_int_equal(add(rig, 1), -ENOMEM);
    out_of_memory = false;
    assert_true(journal_poisoned(rig->j));
    assert_true(notified(rig));
    assert_int_equal(open_bytes(rig), 0);
    journal_start(rig->j);
    assert_false(journal_poisoned(rig->j));
    assert_int_equal(add(rig, 2), 0);
    log = journal_cut(rig->j, 1);
    expect_writes(log, 2, 1);
}

/* Threads add without end; meanwhile cuts, acknowledgements, a rebase. Each thread's records arrive
 * once and in its order. */
static void threads_lose_nothing(void **state)
{
    enum { THREADS = 3, RECORDS = 5000 };
    struct rig *rig = *state;
    struct adder adder[THREADS];
    uint64_t next[THREADS], left = THREADS * RECORDS;

    journal_start(rig->j);
    for (unsigned i = 0; i < THREADS; i++) {
        next[i] = i * RECORDS;
        adder[i] = (struct adder){rig, i * RECORDS, RECORDS, 0};
        assert_int_equal(pthread_create(&adder[i].thread, NULL, adder_main, &adder[i]), 0);
    }
    for (uint64_t epoch = 1; left; epoch++) {
        const struct disk_log *log = journal_cut(rig->j, epoch);
        struct disk_cursor cursor = {0};
        struct disk_record rec;
        const uint8_t *data;

        if (!log) {
            sched_yield();
            continue;
        }
        if (epoch % 3 == 0) {
            journal_rebase(rig->j);
            continue;
        }
        while (disk_log_next(log, &cursor, &rec, &data)) {
            assert_int_equal(rec.offset, next[rec.offset / RECORDS]++);
            left--;
        }
        journal_acked(rig->j, epoch);
    }
    for (unsigned i = 0; i < THREADS; i++)
        join(&adder[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(off_keeps_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(cut_closes_an_epoch, setup, teardown),
        cmocka_unit_test_setup_teardown(many_epochs_in_flight, setup, teardown),
        cmocka_unit_test_setup_teardown(rebase_puts_what_is_unsure_first, setup, teardown),
        cmocka_unit_test_setup_teardown(growth_is_told_once_an_epoch, setup, teardown),
        cmocka_unit_test_setup_teardown(waits_for_an_ack, setup, teardown),
        cmocka_unit_test_setup_teardown(does_not_wait_in_a_checkpoint, setup, teardown),
        cmocka_unit_test_setup_teardown(does_not_wait_when_stopped, setup, teardown),
        cmocka_unit_test_setup_teardown(rebase_makes_room_of_digests, setup, teardown),
        cmocka_unit_test_setup_teardown(missing_memory_poisons, setup, teardown),
        cmocka_unit_test_setup_teardown(threads_lose_nothing, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
