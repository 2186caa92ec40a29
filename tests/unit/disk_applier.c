/* SPDX-License-Identifier: Apache-2.0 */
#include <xxhash.h>

#include "applier_rig.h"
#include "io/clock.h"

static void epochs_are_applied_when_committed(void **state)
{
    stage_all(1, 6, TERM);
    assert_int_equal(report().applied_epoch, 0);
    rig_assert_at(0);
    commit(4);
    rig_assert_at(4);
    assert_true(report().durable_epoch >= 4);
    assert_true(report().applied_bytes > 0);
    stage_all(7, 14, TERM);
    applier_commit(rig.applier, 100); /* no more than what is staged */
    wait_applied(14);
    rig_assert_at(14);
    stage_all(15, 15, TERM);
    applier_drain(rig.applier);
    rig_assert_at(14);
}

static void what_is_staged_is_in_the_log(void **state)
{
    stage_all(1, 9, TERM);
    assert_int_equal(restart(), 9);
    rig_assert_at(9);
}

static void drain_drops_what_is_not_committed(void **state)
{
    stage_all(1, 9, TERM);
    applier_commit(rig.applier, 5);
    applier_drain(rig.applier);
    rig_assert_at(5);
    assert_int_equal(report().durable_epoch, 5);
    restart_finds(5);
}

static void flushed_epochs_are_durable_when_staged(void **state)
{
    stage_all(1, 4, TERM); /* 4 is flushed, but nothing is consistent yet */
    assert_int_equal(report().durable_epoch, 0);
    commit(1);
    assert_int_equal(report().durable_epoch, 4);
    stage_all(5, 6, TERM);
    assert_int_equal(report().durable_epoch, 4);
    stage_all(7, 7, TERM); /* empty, but what comes before it is not durable */
    assert_int_equal(report().durable_epoch, 4);
    stage_all(8, 8, TERM);
    assert_int_equal(report().durable_epoch, 8);
    stage_all(9, 13, TERM);
    assert_int_equal(report().durable_epoch, 12);
    commit(13);
    assert_int_equal(report().durable_epoch, 13);
    stage_all(14, 14, TERM); /* empty, and there is nothing to lose */
    assert_int_equal(report().durable_epoch, 14);
}

static void seeding_bypasses_the_log(void **state)
{
    stage_all(1, 10, 0);
    commit(10);
    rig_assert_at(10);
    assert_int_equal(rig.n_consistent, 0);
    stage_all(11, 13, TERM);
    commit(11);
    assert_int_equal(rig.n_consistent, 1);
    assert_int_equal(rig.consistent_epoch, 11);
    assert_int_equal(rig.consistent_term, TERM);
    assert_int_equal(rig.tag_then, 10);
    assert_true(rig.durable_then < 11);
    commit(13);
    assert_int_equal(rig.n_consistent, 1);
    restart_finds(13);
}

static void seeding_alone_leaves_no_log(void **state)
{
    stage_all(1, 5, 0);
    commit(5);
    assert_int_equal(restart(), 0);
    rig_assert_at(5);
}

/* An empty epoch makes a copy consistent as well. */
static void an_empty_epoch_can_be_the_first(void **state)
{
    stage_all(1, 6, 0);
    stage_all(7, 7, TERM);
    assert_int_equal(report().durable_epoch, 0);
    commit(7);
    assert_int_equal(rig.consistent_epoch, 7);
    assert_int_equal(rig.tag_then, 6);
    assert_int_equal(report().durable_epoch, 7);
}

static void add_digest(struct disk_log *log, uint8_t of, uint64_t offset, const uint8_t *bytes)
{
    uint64_t left = rig_sizes[of] - offset;
    struct disk_record rec = {.disk = of,
                              .kind = DISK_DIGEST,
                              .n_data = DISK_DIGEST_BYTES,
                              .offset = offset,
                              .n_bytes = left < DISK_DIGEST_UNIT ? left : DISK_DIGEST_UNIT};
    XXH128_canonical_t digest;

    XXH128_canonicalFromHash(&digest, XXH3_128bits(bytes, rec.n_bytes));
    assert_int_equal(disk_log_add(log, &rec, digest.digest), 0);
}

/* Digests of the whole of what the model holds. */
static void add_digests(struct disk_log *log, const struct rig_model *model)
{
    for (uint8_t i = 0; i < RIG_DISKS; i++)
        for (uint64_t at = 0; at < rig_sizes[i]; at += DISK_DIGEST_UNIT)
            add_digest(log, i, at, model->bytes[i] + at);
}

static struct applier_mark next_mark(void)
{
    struct applier_mark mark;

    while (!applier_mark_get(rig.applier, &mark)) {
        assert_int_equal(report().error, 0);
        wait_event();
    }
    return mark;
}

static void digests_are_compared_in_their_place(void **state)
{
    struct rig_model *model = calloc(1, sizeof(*model));
    struct disk_log log = {0};
    struct applier_mark mark;

    add_digests(&log, model); /* all holes */
    add_mark(&log, 5, 0);
    rig_epoch(1, &log, model);
    add_digests(&log, model);
    add_mark(&log, UINT64_MAX, DISK_SYNC);
    rig_epoch(2, &log, NULL); /* as if the model had not seen it, and then it has */
    memcpy(model->bytes[1], "?", 1);
    add_digest(&log, 1, 0, model->bytes[1]);
    model->bytes[0][DISK_DIGEST_UNIT] ^= 1;
    model->bytes[0][2 * DISK_DIGEST_UNIT] ^= 1;
    model->bytes[0][4 * DISK_DIGEST_UNIT] ^= 1;
    for (unsigned i = 1; i <= 4; i++)
        add_digest(&log, 0, i * DISK_DIGEST_UNIT, model->bytes[0] + i * DISK_DIGEST_UNIT);
    add_mark(&log, 7, 0);
    assert_int_equal(applier_stage(rig.applier, 1, TERM, &log), 0);
    commit(1);

    mark = next_mark();
    assert_int_equal(mark.number, 5);
    assert_int_equal(mark.differing.n, 0);
    mark = next_mark();
    assert_true(mark.number == UINT64_MAX);
    assert_int_equal(mark.differing.n, 0);
    mark = next_mark();
    assert_int_equal(mark.number, 7);
    assert_true(mark.differing.n >= 2);
    assert_int_equal(mark.differing.v[0].disk, 1);
    assert_int_equal(mark.differing.v[0].n_bytes, RIG_SMALL_BYTES);
    assert_int_equal(mark.differing.v[1].disk, 0);
    assert_int_equal(mark.differing.v[1].offset, DISK_DIGEST_UNIT);
    assert_true(mark.differing.v[1].n_bytes >= 2 * DISK_DIGEST_UNIT);
    assert_int_equal(mark.differing.v[mark.differing.n - 1].offset +
                         mark.differing.v[mark.differing.n - 1].n_bytes,
                     RIG_BIG_BYTES);
    range_list_free(&mark.differing);
    assert_false(applier_mark_get(rig.applier, &mark));
    free(model);
}

/* What is known of holes is forgotten where something is written. */
static void digests_see_what_was_a_hole(void **state)
{
    const struct disk_record write = {
        .kind = DISK_WRITE, .n_data = 1, .offset = DISK_DIGEST_UNIT, .n_bytes = 1};
    struct rig_model *zeros = calloc(1, sizeof(*zeros));
    struct disk_log log = {0};
    struct applier_mark mark;

    add_digest(&log, 0, 0, zeros->bytes[0]);
    assert_int_equal(disk_log_add(&log, &write, "x"), 0);
    add_digest(&log, 0, DISK_DIGEST_UNIT, zeros->bytes[0]);
    add_digest(&log, 0, 2 * DISK_DIGEST_UNIT, zeros->bytes[0]);
    add_mark(&log, 1, 0);
    assert_int_equal(applier_stage(rig.applier, 1, 0, &log), 0);
    commit(1);
    mark = next_mark();
    assert_int_equal(mark.differing.n, 1);
    assert_int_equal(mark.differing.v[0].offset, DISK_DIGEST_UNIT);
    assert_int_equal(mark.differing.v[0].n_bytes, DISK_DIGEST_UNIT);
    range_list_free(&mark.differing);
    free(zeros);
}

static void differences_are_bounded(void **state)
{
    struct disk_log log = {0};
    struct applier_mark mark;

    for (int i = 0; i <= APPLIER_DIFFERENCES_MAX; i++) /* none is the neighbour of another */
        add_digest(&log, 0, 4 * DISK_DIGEST_UNIT, (const uint8_t[512]){1});
    add_mark(&log, 1, 0);
    assert_int_equal(applier_stage(rig.applier, 1, 0, &log), 0);
    commit(1);
    mark = next_mark();
    assert_int_equal(mark.differing.n, APPLIER_DIFFERENCES_MAX);
    assert_true(mark.more);
    range_list_free(&mark.differing);
}

static void staging_waits_only_for_committed_epochs(void **state)
{
    applier_close(rig.applier);
    open_applier(1);
    stage_all(1, 20, TERM); /* far above the limit, and nobody would ever commit them */
    applier_commit(rig.applier, 20);
    assert_int_equal(stage(22, TERM), 0);
    assert_int_equal(report().applied_epoch, 20);
    rig_assert_at(20);
}

static void finish_empties_the_log(void **state)
{
    stage_all(1, 9, TERM);
    applier_commit(rig.applier, 8);
    applier_drain(rig.applier);
    assert_false(applier_finished(rig.applier));
    applier_finish(rig.applier);
    while (!applier_finished(rig.applier))
        wait_event();
    assert_int_equal(report().error, 0);
    assert_int_equal(restart(), 0);
    rig_assert_at(8);
}

/* The generation in the header that counts, see disk/redo.h. */
static uint64_t log_generation(void)
{
    uint64_t slots[2][512];
    FILE *file = fopen(rig_path("redo"), "re");

    assert_non_null(file);
    assert_int_equal(fread(slots, sizeof(slots), 1, file), 1);
    (void)fclose(file);
    return slots[slots[1][2] > slots[0][2]][3];
}

static void wait_reset(uint64_t generation)
{
    uint64_t deadline = clock_now_ns() + WAIT_MS * NS_PER_MS;

    while (log_generation() == generation) {
        assert_true(clock_now_ns() < deadline);
        (void)poll(NULL, 0, 20);
    }
}

static void an_idle_log_is_emptied(void **state)
{
    uint64_t generation = log_generation();

    stage_all(1, 9, TERM);
    commit(9);
    wait_reset(generation);
    stage_all(10, 11, TERM);
    assert_int_equal(restart(), 11);
    rig_assert_at(11);
}

/* One epoch is always staged, so the log never runs empty. */
static void a_busy_log_is_bounded(void **state)
{
    struct disk_record write = {
        .kind = DISK_WRITE, .n_data = 128 * 1024, .n_bytes = 128 * 1024, .offset = 4096};
    uint8_t *data = malloc(write.n_data);
    uint64_t epoch = 0, most = 0;
    struct stat st;

    applier_close(rig.applier);
    open_applier(4 << 20);
    while (epoch < 400) {
        struct disk_log log = {0};

        memset(data, (int)++epoch, write.n_data);
        for (int i = 0; i < 4; i++)
            assert_int_equal(disk_log_add(&log, &write, data), 0);
        assert_int_equal(applier_stage(rig.applier, epoch, TERM, &log), 0);
        applier_commit(rig.applier, epoch - 1);
        assert_int_equal(stat(rig_path("redo"), &st), 0);
        if ((uint64_t)st.st_blocks * 512 > most)
            most = (uint64_t)st.st_blocks * 512;
    }
    assert_true(most < 100 << 20); /* of 200 MiB */
    assert_int_equal(restart(), 400);
    assert_int_equal(image_read(&rig_images[0], data, write.n_data, write.offset), 0);
    for (uint32_t i = 0; i < write.n_data; i++)
        assert_int_equal(data[i], 400 & 0xff);
    free(data);
}

static void a_very_long_log_is_reset(void **state)
{
    struct redo *redo;
    uint64_t epoch, generation;
    struct disk_log log = {0};
    struct stat st;

    applier_close(rig.applier);
    redo = open_redo(&epoch);
    rig_epoch(1, &log, NULL);
    assert_int_equal(redo_append(redo, 1, TERM, &log), 0);
    assert_int_equal(redo_trim(redo, REDO_LONG_BYTES), 0);
    redo_close(redo);
    disk_log_clear(&log);

    open_applier(1 << 20);
    generation = log_generation();
    for (epoch = 2; epoch <= 12; epoch++) {
        stage_all(epoch, epoch, TERM);
        applier_commit(rig.applier, epoch);
    }
    assert_true(log_generation() > generation);
    assert_int_equal(stat(rig_path("redo"), &st), 0);
    assert_true(st.st_size < 1 << 30);
    wait_applied(12);
    (void)restart();
    assert_int_equal(rig_tag(), 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(epochs_are_applied_when_committed, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_staged_is_in_the_log, setup, teardown),
        cmocka_unit_test_setup_teardown(drain_drops_what_is_not_committed, setup, teardown),
        cmocka_unit_test_setup_teardown(flushed_epochs_are_durable_when_staged, setup, teardown),
        cmocka_unit_test_setup_teardown(seeding_bypasses_the_log, setup, teardown),
        cmocka_unit_test_setup_teardown(seeding_alone_leaves_no_log, setup, teardown),
        cmocka_unit_test_setup_teardown(an_empty_epoch_can_be_the_first, setup, teardown),
        cmocka_unit_test_setup_teardown(digests_are_compared_in_their_place, setup, teardown),
        cmocka_unit_test_setup_teardown(digests_see_what_was_a_hole, setup, teardown),
        cmocka_unit_test_setup_teardown(differences_are_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(staging_waits_only_for_committed_epochs, setup, teardown),
        cmocka_unit_test_setup_teardown(finish_empties_the_log, setup, teardown),
        cmocka_unit_test_setup_teardown(an_idle_log_is_emptied, setup, teardown),
        cmocka_unit_test_setup_teardown(a_busy_log_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(a_very_long_log_is_reset, setup, teardown),
    };

    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
