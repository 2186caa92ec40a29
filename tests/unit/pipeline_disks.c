/* SPDX-License-Identifier: Apache-2.0 */
#include <xxhash.h>

#include "pipeline_disk_rig.h"

/* The disks' records on their way: whatever they are, and wherever the link breaks, the images hold
 * what the guest's disks did. */

static void add_mark(struct world *w, uint64_t number, bool sync)
{
    add(w, (struct disk_record){.kind = DISK_MARK, .flags = sync ? DISK_SYNC : 0, .offset = number},
        NULL);
}

/* Digests of all that the guest has on its disks now. */
static void add_digests(struct world *w)
{
    for (uint8_t disk = 0; disk < DISKS; disk++)
        for (uint64_t at = 0; at < sizes[disk]; at += DISK_DIGEST_UNIT) {
            uint64_t left = sizes[disk] - at;
            uint64_t n = left < DISK_DIGEST_UNIT ? left : DISK_DIGEST_UNIT;
            XXH128_canonical_t digest;

            XXH128_canonicalFromHash(&digest, XXH3_128bits(model_of(&w->model, disk) + at, n));
            add(w,
                (struct disk_record){.disk = disk,
                                     .kind = DISK_DIGEST,
                                     .n_data = sizeof(digest),
                                     .offset = at,
                                     .n_bytes = n},
                digest.digest);
        }
}

static void connect_both(struct world *w)
{
    int fd[2];

    tcp_pair(fd);
    rig_attach_sender(&w->rig, fd[0]);
    rig_attach_receiver(&w->rig, fd[1]);
}

/* Feeds one epoch and follows it to the images. */
static void run_epoch(struct world *w, uint64_t term, enum with with)
{
    feed(w, term, with);
    assert_int_equal(rig_wait_staged(&w->rig, w->epoch), 0);
    apply(w, w->epoch);
    journal_acked(w->journal, w->epoch);
}

static void epochs_of_all_kinds(void **state)
{
    struct world *w = *state;
    uint64_t seed = 11, flushed = 0, seeded = 12;

    connect_both(w);
    for (uint64_t i = 1; i <= 60; i++) {
        uint64_t n = i == 1 ? 0 : rig_random(&seed) % 40; /* of the first epochs, none */
        struct receiver_report report;

        while (n--)
            any_record(w, &seed, 20000);
        if (i > seeded + 5 && i % 4 == 0) {
            journal_flushed(w->journal);
            flushed = i;
        }
        feed(w, i > seeded ? TERM : 0, (enum with)(i % 4));
        assert_int_equal(rig_wait_staged(&w->rig, i), 0);
        if (flushed == i) /* before it can be acknowledged */
            assert_true(applier_news(w).durable_epoch >= i);
        assert_int_equal(w->n_seeding, i > 1);
        apply(w, i);
        journal_acked(w->journal, i);
        receiver_report_get(w->rig.receiver, &report);
        assert_int_equal(report.applied_epoch, i);
        assert_int_equal(report.applied_term, i > seeded ? TERM : 0);
        assert_int_equal(w->n_consistent, i > seeded);
    }
    assert_int_equal(flushed, 60);
    assert_int_equal(w->n_seeding, 1);
    assert_false(w->seeding_too_late);
    assert_int_equal(w->consistent_epoch, seeded + 1);
}

/* More than one message holds, in number and in bytes; each overwrites what came before. */
static void many_small_records(void **state)
{
    struct world *w = *state;
    uint64_t seed = 12;

    connect_both(w);
    for (unsigned i = 0; i < 5 * WIRE_DISK_PIECES_PER_MSG + 1; i++)
        write_random(w, &seed, (uint8_t)(i % DISKS), rig_random(&seed) % 1000,
                     (uint32_t)(rig_random(&seed) % 100) + 1);
    run_epoch(w, 0, BARE);
    for (unsigned i = 0; i < WIRE_DISK_PIECES_PER_MSG; i++) /* exactly one message */
        any_record(w, &seed, 10);
    run_epoch(w, TERM, ALL);
}

static void large_records(void **state)
{
    static const uint32_t lengths[] = {
        DISK_DATA_MAX,        1, DISK_DATA_MAX - 1, 1, DISK_DATA_MAX, DISK_DATA_MAX / 2,
        DISK_DATA_MAX / 2 + 1};
    struct world *w = *state;
    uint64_t seed = 13;

    connect_both(w);
    for (unsigned round = 0; round < 3; round++) {
        for (size_t i = 0; i < N_OF(lengths); i++)
            write_random(w, &seed, 0, rig_random(&seed) % (BIG_BYTES - lengths[i] + 1), lengths[i]);
        add(w, (struct disk_record){.kind = DISK_ZERO, .offset = 1, .n_bytes = BIG_BYTES - 3},
            NULL); /* longer than the data of any record */
        write_random(w, &seed, 0, 4096, 300000);
        run_epoch(w, round ? TERM : 0, round == 2 ? BARE : ALL);
    }
}

static void space_is_given_back(void **state)
{
    struct disk_record zero = {.kind = DISK_ZERO, .flags = DISK_PUNCH, .n_bytes = BIG_BYTES};
    struct world *w = *state;
    struct stat st;
    uint64_t seed = 19, start, end;

    if (!image_can_punch(&w->images[0]))
        skip();
    connect_both(w);
    write_random(w, &seed, 0, 0, DISK_DATA_MAX);
    run_epoch(w, TERM, ALL);
    assert_int_equal(fstat(w->images[0].fd, &st), 0);
    assert_true(st.st_blocks > 0);
    add(w, zero, NULL);
    run_epoch(w, TERM, ALL);
    assert_int_equal(fstat(w->images[0].fd, &st), 0);
    assert_int_equal(st.st_blocks, 0);
    assert_int_equal(image_next_data(&w->images[0], 0, &start, &end), 0);
}

/* ---- marks ---- */

static struct applier_mark next_mark(struct world *w)
{
    struct applier_mark mark;

    while (!applier_mark_get(w->applier, &mark)) {
        (void)applier_news(w);
        wait_applier(w);
    }
    return mark;
}

static void assert_mark(struct world *w, uint64_t number, const struct disk_range *expected,
                        uint32_t n)
{
    struct applier_mark mark = next_mark(w);

    assert_int_equal(mark.number, number);
    assert_false(mark.more);
    assert_int_equal(mark.differing.n, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(mark.differing.v[i].disk, expected[i].disk);
        assert_int_equal(mark.differing.v[i].offset, expected[i].offset);
        assert_int_equal(mark.differing.v[i].n_bytes, expected[i].n_bytes);
    }
    range_list_free(&mark.differing);
}

static void marks_tell_what_differs(void **state)
{
    enum { UNIT = DISK_DIGEST_UNIT };
    static const struct disk_range planted[] = {
        {0, 0, UNIT}, {0, 5 * UNIT, 2 * UNIT}, {0, BIG_BYTES - UNIT, UNIT}, {1, 3 * UNIT, 512}};
    static const struct {
        uint8_t disk;
        uint64_t at;
    } flips[] = {{0, 0}, {0, 6 * UNIT - 1}, {0, 6 * UNIT}, {0, BIG_BYTES - 1}, {1, 3 * UNIT + 100}};
    struct world *w = *state;
    uint64_t seed = 14;

    connect_both(w);
    for (unsigned i = 0; i < 200; i++)
        any_record(w, &seed, 60000);
    add_mark(w, 1, false);
    add_digests(w);
    add_mark(w, 2, true);
    run_epoch(w, 0, BARE);
    assert_mark(w, 1, NULL, 0);
    assert_mark(w, 2, NULL, 0);
    for (size_t i = 0; i < N_OF(flips); i++) {
        uint8_t byte = (uint8_t)~model_of(&w->model, flips[i].disk)[flips[i].at];

        assert_int_equal(image_write(&w->images[flips[i].disk], &byte, 1, flips[i].at), 0);
    }

    /* Compared, and again after it was copied; what the guest writes in between changes nothing. */
    add_digests(w);
    write_random(w, &seed, 0, UNIT + 5, 3 * UNIT);
    add_mark(w, UINT64_MAX, true);
    for (size_t i = 0; i < N_OF(planted); i++)
        for (uint64_t at = 0; at < planted[i].n_bytes; at += UNIT) {
            uint64_t left = planted[i].n_bytes - at, n = left < UNIT ? left : UNIT;
            const struct disk_range *p = &planted[i];

            add(w,
                (struct disk_record){.disk = p->disk,
                                     .kind = DISK_WRITE,
                                     .n_data = (uint32_t)n,
                                     .offset = p->offset + at,
                                     .n_bytes = n},
                model_of(&w->model, p->disk) + p->offset + at);
        }
    add_digests(w);
    add_mark(w, 4, true);
    run_epoch(w, 0, PAGES);
    assert_mark(w, UINT64_MAX, planted, N_OF(planted));
    assert_mark(w, 4, NULL, 0);

    /* A comparison of a copy that is followed already. */
    any_record(w, &seed, 1000);
    run_epoch(w, TERM, ALL);
    add_digests(w);
    add_mark(w, 5, false);
    run_epoch(w, TERM, ALL);
    assert_mark(w, 5, NULL, 0);
}

/* ---- a link that breaks ---- */

/* Carries n bytes from the sender to the receiver, or fewer when an end comes first. */
static void carry(struct world *w, int from, int to, uint64_t n)
{
    uint8_t buffer[8192];

    while (n) {
        struct pollfd p[2] = {{.fd = from, .events = POLLIN},
                              {.fd = w->rig.send_event, .events = POLLIN}};
        struct sender_report report;
        ssize_t got;
        eventfd_t count;

        sender_report_get(w->rig.sender, &report);
        got = recv(from, buffer, n < sizeof(buffer) ? n : sizeof(buffer), MSG_DONTWAIT);
        if (got <= 0 && report.sent_epoch == w->epoch)
            return; /* that was all */
        if (got <= 0) {
            assert_true(poll(p, 2, RIG_WAIT_MS) > 0);
            (void)eventfd_read(w->rig.send_event, &count);
            continue;
        }
        assert_int_equal(send(to, buffer, (size_t)got, MSG_NOSIGNAL), got);
        n -= (uint64_t)got;
    }
}

/* Three epochs are under way when the link breaks anywhere. Those that had arrived whole are
 * acknowledged when it resumes, the records of the others go into the next epoch. */
static void a_broken_link_resumes(void **state)
{
    struct world *w = *state;
    uint64_t seed = 15, n_lost = 0, n_kept = 0;

    for (unsigned round = 0; round < 60; round++) {
        int left[2], right[2];
        struct receiver_report report;
        uint64_t first = w->epoch + 1, most = UINT64_C(200) << rig_random(&seed) % 14;

        rig_socketpair(left);
        rig_socketpair(right);
        rig_attach_sender(&w->rig, left[0]);
        rig_attach_receiver(&w->rig, right[1]);
        for (unsigned i = 0; i < 3; i++) {
            for (uint64_t n = rig_random(&seed) % 6; n; n--)
                any_record(w, &seed, 12000);
            if (rig_random(&seed) % 4 == 0)
                add_digests(w); /* must not be resumed: what they tell of has gone on */
            if (rig_random(&seed) % 3 == 0)
                journal_flushed(w->journal);
            feed(w, w->epoch > 20 ? TERM : 0, i == 1 ? BARE : ALL);
        }
        /* The receiver reads the second epoch when the first is applied, and so on. */
        carry(w, left[1], right[0], rig_random(&seed) % most);
        shutdown(right[0], SHUT_WR);
        for (;;) {
            receiver_report_get(w->rig.receiver, &report);
            if (report.staged_epoch > report.applied_epoch)
                apply(w, report.staged_epoch);
            else if (report.error)
                break;
            else
                rig_wait(&w->rig);
        }
        assert_int_equal(report.error, -ECONNRESET);
        sender_detach(w->rig.sender);
        receiver_detach(w->rig.receiver);
        close(left[1]);
        close(right[0]);
        any_record(w, &seed, 5000); /* the guest goes on meanwhile */
        journal_acked(w->journal, report.staged_epoch);
        journal_rebase(w->journal);
        n_kept += report.staged_epoch >= first;
        n_lost += report.staged_epoch < w->epoch;
    }
    assert_true(n_lost > 10 && n_kept > 10);
    connect_both(w);
    add_digests(w);
    add_mark(w, 9, true);
    run_epoch(w, TERM, ALL);
    assert_mark(w, 9, NULL, 0); /* nor was anything else found to differ on the way */
    assert_int_equal(w->n_seeding, 1);
    assert_false(w->seeding_too_late);
    assert_int_equal(w->n_consistent, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(epochs_of_all_kinds, setup, teardown),
        cmocka_unit_test_setup_teardown(many_small_records, setup, teardown),
        cmocka_unit_test_setup_teardown(large_records, setup, teardown),
        cmocka_unit_test_setup_teardown(space_is_given_back, setup, teardown),
        cmocka_unit_test_setup_teardown(marks_tell_what_differs, setup, teardown),
        cmocka_unit_test_setup_teardown(a_broken_link_resumes, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
