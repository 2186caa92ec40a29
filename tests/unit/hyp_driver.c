/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints: by migration, by saving, and the flushes of the guest. */
#include "hyp_driver_rig.h"

static void checkpoints_again_and_again(void **state)
{
    struct fixture *f = *state;

    start(f, "");
    for (int i = 0; i < 20; i++) {
        order_checkpoint(f);
        assert_int_equal(hyp_qemu.checkpoint(f->vm, NULL), -EBUSY);
        assert_int_equal(hyp_qemu.resume(f->vm, NULL), -EBUSY);
        expect(f, CHECKPOINT);
        assert_string_equal(f->state, "state");
        if (i % 3 == 0) /* a stopped VM can be checkpointed too */
            continue;
        assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
        expect(f, RUNNING);
    }
    expect_nothing(f);
}

/* The n-th checkpoint has to have the state that a migration gives, in whatever way it came. */
static void expect_state(struct fixture *f, unsigned int n, bool saved)
{
    char devices[FAKE_DEVICES_MAX], text[FAKE_DEVICES_MAX + sizeof(FAKE_BASE)];

    (void)fake_devices(n, devices);
    (void)snprintf(text, sizeof(text), "%s%s", FAKE_BASE, devices);
    expect(f, CHECKPOINT);
    assert_string_equal(f->state, text);
    if (f->saved != saved)
        fail_msg("checkpoint %u %s", n, saved ? "is a migration" : "was saved");
}

static void saves_what_a_migration_would_give(void **state)
{
    /* Of the checkpoints 1 to 5, which are saved. */
    static const struct {
        const char *how;
        bool saved[5];
    } cases[] = {
        {"save", {false, true, true, true, true}},
        {"save-vga", {false}},                              /* it has other memory */
        {"save-never", {false}},                            /* QEMU refuses */
        {"save-clock", {false}},                            /* it is never the same */
        {"save-tick", {false, false, true, true, true}},    /* a clock ticked in between */
        {"save-reset", {false, true, false, false, true}},  /* before the third */
        {"save-tables", {false, true, true, false, false}}, /* change after the third */
        {"save-asleep", {false, true, false, true, true}},  /* at the third */
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < N_OF(cases); i++) {
        start(f, cases[i].how);
        for (unsigned int n = 1; n <= N_OF(cases[i].saved); n++) {
            order_checkpoint(f);
            expect_state(f, n, cases[i].saved[n - 1]);
            if (n % 2) {
                assert_int_equal(hyp_qemu.guest_flushes(f->vm, NULL), 0);
                expect(f, FLUSHES);
                assert_int_equal(f->flushes[0], 42);
            }
            assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
            expect(f, RUNNING);
        }
        if (strcmp(cases[i].how, "save-clock") == 0) { /* it is not tried forever */
            for (unsigned int n = 6; n < 30; n++) {
                order_checkpoint(f);
                expect_state(f, n, false);
                assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
                expect(f, RUNNING);
            }
            assert_int_equal(f->vm->save.fd, -1);
        }
        expect_nothing(f);
        hyp_qemu.close(take_ptr(f->vm));
    }
}

/* A VM that stands still already has a state that says so, which is not what is saved. */
static void migrates_a_stopped_vm(void **state)
{
    struct fixture *f = *state;

    start(f, "save");
    for (unsigned int n = 1; n <= 3; n++) {
        order_checkpoint(f);
        expect_state(f, n, n > 1);
        order_checkpoint(f);
        expect_state(f, n, false);
        assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
        expect(f, RUNNING);
    }
    expect_nothing(f);
}

static void resumes_when_saving_fails(void **state)
{
    struct fixture *f = *state;

    start(f, "save-fail");
    for (unsigned int n = 1; n <= 5; n++) {
        order_checkpoint(f);
        if (n == 3) {
            expect(f, FAILURE);
            assert_true(f->failure_running);
            assert_non_null(strstr(f->text, "no space"));
            continue;
        }
        expect_state(f, n, n != 1 && n != 4);
        assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
        expect(f, RUNNING);
    }
    expect_nothing(f);
}

static void gives_up_when_saving_hangs(void **state)
{
    struct fixture *f = *state;

    start(f, "save-hang");
    for (unsigned int n = 1; n < 3; n++) {
        order_checkpoint(f);
        expect_state(f, n, n > 1);
        assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
        expect(f, RUNNING);
    }
    order_checkpoint(f);
    expect(f, FAILURE);
    assert_int_equal(hyp_qemu.resume(f->vm, NULL), -EIO);
    expect_nothing(f);
}

static void counts_flushes(void **state)
{
    static const char *const unknown[] = {"no-stats", "lost-disk", "odd-stats"};
    struct fixture *f = *state;

    start(f, "");
    for (int i = 0; i < 20; i++) {
        order_checkpoint(f);
        assert_int_equal(hyp_qemu.guest_flushes(f->vm, NULL), -EBUSY);
        expect(f, CHECKPOINT);
        if (i % 3 == 0) { /* nobody has to ask */
            assert_int_equal(hyp_qemu.guest_flushes(f->vm, NULL), 0);
            assert_int_equal(f->n_happened, 0);
            assert_int_equal(hyp_qemu.resume(f->vm, NULL), -EBUSY);
            expect(f, FLUSHES);
            assert_true(f->flushes_known);
            assert_int_equal(f->flushes[0], 42);
            assert_int_equal(f->flushes[1], 7);
        }
        assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
        expect(f, RUNNING);
    }
    expect_nothing(f);
    for (size_t i = 0; i < N_OF(unknown); i++) {
        hyp_qemu.close(f->vm);
        start(f, unknown[i]);
        assert_int_equal(hyp_qemu.guest_flushes(f->vm, NULL), 0);
        expect(f, FLUSHES);
        assert_false(f->flushes_known);
        order_checkpoint(f);
        expect(f, CHECKPOINT);
    }
}

static void gives_up_on_counting_flushes(void **state)
{
    struct fixture *f = *state;

    start(f, "mute");
    order_checkpoint(f);
    expect(f, CHECKPOINT);
    assert_int_equal(hyp_qemu.guest_flushes(f->vm, NULL), 0);
    expect(f, FLUSHES);
    assert_false(f->flushes_known);
    assert_int_equal(hyp_qemu.resume(f->vm, NULL), -EIO);
    expect_nothing(f);
}

/* QEMU resumes a VM by itself when its migration fails: to say then that it stands still is wrong.
 */
static void says_nothing_of_a_stop_that_is_over(void **state)
{
    struct pollfd stream = {.events = POLLIN};
    struct fixture *f = *state;

    start(f, "fail");
    order_checkpoint(f);
    stream.fd = f->vm->stream.fd;
    assert_int_equal(poll(&stream, 1, 10000), 1); /* its end is the last that the fake does */
    while (f->n_happened == 0)
        assert_true(sd_event_run(f->event, 10000000) > 0);
    assert_int_equal(f->n_stopped, 0);
    expect(f, FAILURE);
    assert_true(f->failure_running);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(checkpoints_again_and_again, setup, teardown),
        cmocka_unit_test_setup_teardown(saves_what_a_migration_would_give, setup, teardown),
        cmocka_unit_test_setup_teardown(migrates_a_stopped_vm, setup, teardown),
        cmocka_unit_test_setup_teardown(resumes_when_saving_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(gives_up_when_saving_hangs, setup, teardown),
        cmocka_unit_test_setup_teardown(counts_flushes, setup, teardown),
        cmocka_unit_test_setup_teardown(gives_up_on_counting_flushes, setup, teardown),
        cmocka_unit_test_setup_teardown(says_nothing_of_a_stop_that_is_over, setup, teardown),
    };

    return run_driver_tests(argc, argv, tests, N_OF(tests));
}
