/* SPDX-License-Identifier: Apache-2.0 */
/* What fails, ends, hangs; and a VM whose former guard is gone. */
#include "hyp_driver_rig.h"

static void reports_a_refused_checkpoint(void **state)
{
    struct fixture *f = *state;

    start(f, "refuse");
    for (int i = 0; i < 3; i++) {
        order_checkpoint(f);
        expect(f, FAILURE);
        assert_true(f->failure_running);
        assert_non_null(strstr(f->text, "device x blocks it"));
    }
    expect_nothing(f);
}

static void resumes_after_a_failed_checkpoint(void **state)
{
    struct fixture *f = *state;

    start(f, "fail");
    for (int i = 0; i < 3; i++) {
        order_checkpoint(f);
        expect(f, FAILURE);
        assert_true(f->failure_running);
        assert_non_null(strstr(f->text, "no luck"));
    }
    expect_nothing(f);
}

/* QEMU is not interrupted; the VM goes on afterwards. */
static void drops_a_state_that_is_too_large(void **state)
{
    struct fixture *f = *state;

    start(f, "");
    for (int i = 0; i < 4; i++) {
        f->vm->stream.max_bytes = i % 2 ? VM_STATE_MAX_BYTES : 4;
        order_checkpoint(f);
        if (i % 2) {
            expect(f, CHECKPOINT);
            assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
            expect(f, RUNNING);
        } else {
            expect(f, FAILURE);
            assert_true(f->failure_running);
            assert_non_null(strstr(f->text, "too large"));
            assert_int_equal(f->vm->migration, VM_MIGRATION_NONE);
        }
    }
    expect_nothing(f);
}

static void gives_up_on_an_endless_stream(void **state)
{
    struct fixture *f = *state;

    start(f, "endless");
    order_checkpoint(f);
    expect(f, FAILURE);
    assert_true(f->failure_running);
    expect_nothing(f);
}

static void refuses_an_empty_state(void **state)
{
    struct fixture *f = *state;

    start(f, "empty");
    order_checkpoint(f);
    expect(f, FAILURE);
    assert_true(f->failure_running);
}

static void gives_up_on_a_hanging_emulator(void **state)
{
    struct fixture *f = *state;

    start(f, "hang");
    order_checkpoint(f);
    expect(f, FAILURE);
    assert_int_equal(hyp_qemu.checkpoint(f->vm, NULL), -EIO);
    assert_int_equal(hyp_qemu.resume(f->vm, NULL), -EIO);
    hyp_qemu.kill(f->vm);
    expect(f, EXIT);
    assert_int_equal(f->exit_how, HYP_EXIT_KILLED);
    expect_nothing(f);
}

static void reports_a_death(void **state)
{
    struct fixture *f = *state;

    start(f, "die");
    order_checkpoint(f);
    expect(f, EXIT);
    assert_int_equal(f->exit_how, HYP_EXIT_CRASH);
    assert_string_equal(f->text, "QEMU ended: exit status 3: fake: ?[1mout of order");
    assert_true(hyp_qemu.checkpoint(f->vm, NULL) < 0);
    hyp_qemu.kill(f->vm);
    expect_nothing(f);
}

static void reports_a_shutdown(void **state)
{
    struct fixture *f = *state;

    start(f, "shutdown");
    order_checkpoint(f);
    expect(f, EXIT);
    assert_int_equal(f->exit_how, HYP_EXIT_GUEST_SHUTDOWN);
    expect_nothing(f);
}

static void ends_what_speaks_no_qmp(void **state)
{
    struct fixture *f = *state;

    start(f, "garbage");
    order_checkpoint(f);
    expect(f, EXIT);
    assert_int_equal(f->exit_how, HYP_EXIT_CRASH);
    assert_non_null(strstr(f->text, "no JSON object"));
    expect_nothing(f);
}

static void asks_again_to_continue(void **state)
{
    struct fixture *f = *state;

    start(f, "cont-late");
    hyp_qemu.close(f->vm);
    launch_well(f, "cont-never", false);
    assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
    expect(f, FAILURE);
    assert_false(f->failure_running);
    assert_non_null(strstr(f->text, "refused to continue: never"));
}

/* A loop that was held up for longer than any time-out must not take QEMU for dead. */
static void forgives_its_own_delay(void **state)
{
    const struct timespec pause = {.tv_nsec = 600000000}; /* twice the time-outs */
    struct fixture *f = *state;

    start(f, "");
    order_checkpoint(f);
    assert_int_equal(nanosleep(&pause, NULL), 0);
    expect(f, CHECKPOINT);
    assert_int_equal(nanosleep(&pause, NULL), 0);
    assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
    expect(f, RUNNING);
}

static void restores(void **state)
{
    const struct hyp_state good = {
        .format = "qemu:pc-i440fx-7.2", .bytes = (const uint8_t *)"state", .n_bytes = 5};
    struct hyp_state other = good;
    struct fixture *f = *state;
    struct err err;

    for (int paused = 0; paused < 2; paused++) {
        launch_well(f, paused ? "paused" : "", true);
        assert_int_equal(hyp_qemu.checkpoint(f->vm, NULL), -EINVAL);
        assert_int_equal(hyp_qemu.resume(f->vm, NULL), -EINVAL);
        strcpy(other.format, "qemu:pc-q35-7.2");
        assert_int_equal(hyp_qemu.restore(f->vm, &other, &err), -EINVAL);
        assert_non_null(strstr(err.text, "pc-q35-7.2"));
        assert_int_equal(hyp_qemu.restore(f->vm, &good, NULL), 0);
        assert_int_equal(f->n_happened, 0);
        expect(f, RUNNING);
        assert_int_equal(hyp_qemu.restore(f->vm, &good, NULL), -EINVAL);
        order_checkpoint(f);
        expect(f, CHECKPOINT);
        hyp_qemu.close(f->vm);
        f->vm = NULL;
    }
}

static void reports_a_state_that_does_not_load(void **state)
{
    const struct hyp_state bad = {
        .format = "qemu:pc-i440fx-7.2", .bytes = (const uint8_t *)"stat", .n_bytes = 4};
    struct fixture *f = *state;

    launch_well(f, "", true);
    assert_int_equal(hyp_qemu.restore(f->vm, &bad, NULL), 0);
    expect(f, EXIT);
    assert_int_equal(f->exit_how, HYP_EXIT_CRASH);
    assert_non_null(strstr(f->text, "load of migration failed"));
}

static void explains_a_launch_that_fails(void **state)
{
    struct fixture *f = *state;
    struct err err;

    assert_true(launch(f, "stillborn", false, &err) < 0);
    assert_string_equal(err.text, "QEMU: fake: Property 'pc.ram' not found");
    assert_int_equal(launch(f, "blocked", false, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.text, "device y"));
    strcpy(self_path, "/nonexistent/qemu");
    assert_int_equal(launch(f, "", false, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/qemu"));
    assert_true(readlink("/proc/self/exe", self_path, sizeof(self_path)) > 0);
}

/* Its guard dies: what it had typed ahead stays half a command. */
static pid_t orphan(struct fixture *f)
{
    pid_t pid = hyp_qemu.pid(f->vm);

    vm_let_go(f->vm);
    f->vm = NULL;
    return pid;
}

static int attach(struct fixture *f, pid_t pid, const char *ram_path, bool *ret_running,
                  struct err *err)
{
    struct vm_spec spec;
    struct hyp_launch order = order_of(f, &spec, false);

    order.ram_path = ram_path;
    return hyp_qemu.attach(&order, pid, &f->vm, ret_running, err);
}

static void attaches(void **state)
{
    static const char *const how[] = {"", "late-end", "save", "save-stale"};
    struct fixture *f = *state;
    bool running;
    struct err err;

    for (size_t i = 0; i < N_OF(how) * 2; i++) {
        bool stopped = i % 2;

        start(f, how[i / 2]);
        if (stopped) {
            order_checkpoint(f);
            expect(f, CHECKPOINT);
        }
        if (attach(f, orphan(f), "/dev/null", &running, &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(running, !stopped);
        if (stopped) {
            assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
            expect(f, RUNNING);
        }
        order_checkpoint(f);
        expect(f, CHECKPOINT);
        assert_false(f->saved); /* it learns anew */
        assert_int_equal(kill(hyp_qemu.pid(f->vm), SIGTERM), 0);
        expect(f, EXIT);
        assert_int_equal(f->exit_how, HYP_EXIT_CRASH);
        hyp_qemu.close(f->vm);
        f->vm = NULL;
    }
}

static void refuses_to_attach(void **state)
{
    static const struct {
        const char *misbehaviour;
        const char *ram_path;
        bool incoming, resume;
        int code;
    } cases[] = {
        {"", "/dev/null", false, false, -ESRCH},          /* it never ran */
        {"", "/dev/null", true, false, -ESRCH},           /* it waits for a state */
        {"ends", "/dev/null", false, true, -ESRCH},       /* it ended with its guard */
        {"", "/dev/zero", false, true, -ESRCH},           /* the pid is another VM's now */
        {"no-status", "/dev/null", false, true, -EPROTO}, /* it makes no sense */
    };
    struct fixture *f = *state;
    bool running;
    struct err err;

    for (size_t i = 0; i < N_OF(cases); i++) {
        pid_t pid;

        launch_well(f, cases[i].misbehaviour, cases[i].incoming);
        if (cases[i].resume) {
            assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
            expect(f, RUNNING);
        }
        pid = orphan(f);
        assert_int_equal(attach(f, pid, cases[i].ram_path, &running, &err), cases[i].code);
        assert_int_equal(kill(pid, 0), 0); /* left as it was */
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
    }
    f->left_files = true;
}

static void kills(void **state)
{
    struct fixture *f = *state;
    pid_t pid;

    start(f, "");
    pid = hyp_qemu.pid(f->vm);
    hyp_qemu.kill(f->vm);
    hyp_qemu.kill(f->vm);
    expect(f, EXIT);
    assert_int_equal(f->exit_how, HYP_EXIT_KILLED);
    assert_int_equal(kill(pid, 0), -1);
    expect_nothing(f);
    hyp_qemu.close(NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reports_a_refused_checkpoint, setup, teardown),
        cmocka_unit_test_setup_teardown(resumes_after_a_failed_checkpoint, setup, teardown),
        cmocka_unit_test_setup_teardown(drops_a_state_that_is_too_large, setup, teardown),
        cmocka_unit_test_setup_teardown(gives_up_on_an_endless_stream, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_an_empty_state, setup, teardown),
        cmocka_unit_test_setup_teardown(gives_up_on_a_hanging_emulator, setup, teardown),
        cmocka_unit_test_setup_teardown(reports_a_death, setup, teardown),
        cmocka_unit_test_setup_teardown(reports_a_shutdown, setup, teardown),
        cmocka_unit_test_setup_teardown(ends_what_speaks_no_qmp, setup, teardown),
        cmocka_unit_test_setup_teardown(asks_again_to_continue, setup, teardown),
        cmocka_unit_test_setup_teardown(forgives_its_own_delay, setup, teardown),
        cmocka_unit_test_setup_teardown(restores, setup, teardown),
        cmocka_unit_test_setup_teardown(reports_a_state_that_does_not_load, setup, teardown),
        cmocka_unit_test_setup_teardown(explains_a_launch_that_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(attaches, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_to_attach, setup, teardown),
        cmocka_unit_test_setup_teardown(kills, setup, teardown),
    };

    return run_driver_tests(argc, argv, tests, N_OF(tests));
}
