/* SPDX-License-Identifier: Apache-2.0 */
/* The driver against an emulator that misbehaves on order. This program is both: with QEMU's
 * arguments it plays QEMU (hyp_fake_qemu.h), misbehaving as the environment's FAKE_QEMU says. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "unit.h"

#include "base/cleanup.h"
#include "hyp/qemu/vm.h"
#include "hyp_fake_qemu.h"
#include "io/clock.h"

enum happening {
    NOTHING,
    CHECKPOINT,
    FLUSHES,
    RUNNING,
    FAILURE,
    EXIT,
};

struct fixture {
    char dir[32];
    sd_event *event;
    struct hyp_vm *vm;
    enum happening happened[8];
    size_t n_happened;
    size_t n_stopped;
    bool flushes_known;
    uint64_t flushes[2];
    char state[160];
    bool saved; /* the state came by the shorter way */
    bool failure_running;
    enum hyp_exit exit_how;
    char text[600];
    bool left_files; /* by the last one, who was not closed */
};

static char self_path[4096];

static void note(struct fixture *f, enum happening what)
{
    assert_true(f->n_happened < N_OF(f->happened));
    f->happened[f->n_happened++] = what;
}

static void on_checkpoint(void *user, const struct hyp_state *state,
                          const struct hyp_timing *timing)
{
    struct fixture *f = user;

    assert_true(timing->state_ns > 0);
    assert_string_equal(state->format, "qemu:pc-i440fx-7.2");
    (void)snprintf(f->state, sizeof(f->state), "%.*s", (int)state->n_bytes,
                   (const char *)state->bytes);
    f->saved = state->bytes == f->vm->save.bytes;
    note(f, CHECKPOINT);
}

static void on_stopped(void *user)
{
    struct fixture *f = user;

    assert_int_equal(f->n_happened, 0);
    f->n_stopped++;
}

static void on_guest_flushes(void *user, const uint64_t *flushes)
{
    struct fixture *f = user;

    f->flushes_known = flushes;
    if (flushes)
        memcpy(f->flushes, flushes, sizeof(f->flushes));
    note(f, FLUSHES);
}

static void on_running(void *user)
{
    note(user, RUNNING);
}

static void on_failure(void *user, const char *why, bool running)
{
    struct fixture *f = user;

    f->failure_running = running;
    (void)snprintf(f->text, sizeof(f->text), "%s", why);
    note(f, FAILURE);
}

static void on_exit_of_vm(void *user, enum hyp_exit how, const char *detail)
{
    struct fixture *f = user;

    f->exit_how = how;
    (void)snprintf(f->text, sizeof(f->text), "%s", detail);
    note(f, EXIT);
}

static const struct hyp_callbacks callbacks = {.on_stopped = on_stopped,
                                               .on_guest_flushes = on_guest_flushes,
                                               .on_checkpoint = on_checkpoint,
                                               .on_running = on_running,
                                               .on_failure = on_failure,
                                               .on_exit = on_exit_of_vm};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    strcpy(f->dir, "/tmp/us-hyp.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    assert_true(sd_event_new(&f->event) >= 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    static const char *const files[] = {"qemu.log", "qmp.sock", "stop.sock", "hypervisor.pid"};
    struct fixture *f = *state;
    char path[64];

    hyp_qemu.close(f->vm);
    if (!f->left_files) {
        (void)snprintf(path, sizeof(path), "%s/qmp.sock", f->dir);
        assert_int_not_equal(access(path, F_OK), 0); /* close() removed it */
    }
    for (size_t i = 0; i < (f->left_files ? N_OF(files) : 1); i++) {
        (void)snprintf(path, sizeof(path), "%s/%s", f->dir, files[i]);
        (void)unlink(path);
    }
    assert_int_equal(rmdir(f->dir), 0);
    sd_event_unref(f->event);
    free(f);
    return 0;
}

/* With two disks, of which the fake knows. */
static struct hyp_launch order_of(struct fixture *f, struct vm_spec *spec, bool incoming)
{
    static const char *const sockets[] = {"/disk0", "/disk1"};

    *spec = (struct vm_spec){
        .name = "fake",
        .memory_bytes = 1 << 20,
        .cpus = 1,
        .machine = "pc-i440fx-7.2",
        .accel = "tcg",
        .n_disks = 2,
    };
    return (struct hyp_launch){
        .spec = spec,
        .run_dir = f->dir,
        .ram_path = "/dev/null",
        .emulator = self_path,
        .disk_sockets = sockets,
        .incoming = incoming,
        .event = f->event,
        .callbacks = &callbacks,
        .user = f,
    };
}

static int launch(struct fixture *f, const char *misbehaviour, bool incoming, struct err *err)
{
    struct vm_spec spec;
    struct hyp_launch order = order_of(f, &spec, incoming);

    assert_int_equal(setenv("FAKE_QEMU", misbehaviour, 1), 0);
    return hyp_qemu.launch(&order, &f->vm, err);
}

static void launch_well(struct fixture *f, const char *misbehaviour, bool incoming)
{
    struct err err;

    if (launch(f, misbehaviour, incoming, &err) < 0)
        fail_msg("%s", err.text);
    f->vm->checkpoint_timeout_ms = 300;
    f->vm->answer_timeout_ms = 300;
}

/* Runs the loop until something is reported, which has to be `what`; a checkpoint after the news
 * that the VM stands still. */
static void expect(struct fixture *f, enum happening what)
{
    uint64_t deadline_ns = clock_now_ns() + 10 * NS_PER_S;

    while (f->n_happened == 0 && clock_now_ns() < deadline_ns)
        assert_true(sd_event_run(f->event, 100000) >= 0);
    assert_int_equal(f->n_happened, 1);
    if (f->happened[0] != what)
        fail_msg("%d instead of %d: %s", f->happened[0], what, f->text);
    assert_true(f->n_stopped <= 1);
    if (what == CHECKPOINT)
        assert_int_equal(f->n_stopped, 1);
    f->n_happened = f->n_stopped = 0;
}

/* Lets whatever else there is happen: nothing may. */
static void expect_nothing(struct fixture *f)
{
    while (sd_event_run(f->event, 50000) > 0)
        ;
    assert_int_equal(f->n_happened + f->n_stopped, 0);
}

static void start(struct fixture *f, const char *misbehaviour)
{
    launch_well(f, misbehaviour, false);
    assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
    assert_int_equal(f->n_happened, 0); /* never from inside an operation */
    expect(f, RUNNING);
}

static void order_checkpoint(struct fixture *f)
{
    assert_int_equal(hyp_qemu.checkpoint(f->vm, NULL), 0);
    assert_int_equal(f->n_happened, 0);
}

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
        cmocka_unit_test_setup_teardown(checkpoints_again_and_again, setup, teardown),
        cmocka_unit_test_setup_teardown(saves_what_a_migration_would_give, setup, teardown),
        cmocka_unit_test_setup_teardown(migrates_a_stopped_vm, setup, teardown),
        cmocka_unit_test_setup_teardown(resumes_when_saving_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(gives_up_when_saving_hangs, setup, teardown),
        cmocka_unit_test_setup_teardown(counts_flushes, setup, teardown),
        cmocka_unit_test_setup_teardown(gives_up_on_counting_flushes, setup, teardown),
        cmocka_unit_test_setup_teardown(says_nothing_of_a_stop_that_is_over, setup, teardown),
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

    if (argc > 1 && getenv("FAKE_QEMU"))
        return play_qemu(argc, argv);
    if (readlink("/proc/self/exe", self_path, sizeof(self_path) - 1) < 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
