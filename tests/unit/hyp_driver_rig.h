/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_DRIVER_RIG_H
#define US_TESTS_HYP_DRIVER_RIG_H

/* The driver against an emulator that misbehaves on order. A test program is both: with QEMU's
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

static inline void note(struct fixture *f, enum happening what)
{
    assert_true(f->n_happened < N_OF(f->happened));
    f->happened[f->n_happened++] = what;
}

static inline void on_checkpoint(void *user, const struct hyp_state *state,
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

static inline void on_stopped(void *user)
{
    struct fixture *f = user;

    assert_int_equal(f->n_happened, 0);
    f->n_stopped++;
}

static inline void on_guest_flushes(void *user, const uint64_t *flushes)
{
    struct fixture *f = user;

    f->flushes_known = flushes;
    if (flushes)
        memcpy(f->flushes, flushes, sizeof(f->flushes));
    note(f, FLUSHES);
}

static inline void on_running(void *user)
{
    note(user, RUNNING);
}

static inline void on_failure(void *user, const char *why, bool running)
{
    struct fixture *f = user;

    f->failure_running = running;
    (void)snprintf(f->text, sizeof(f->text), "%s", why);
    note(f, FAILURE);
}

static inline void on_exit_of_vm(void *user, enum hyp_exit how, const char *detail)
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

static inline int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    strcpy(f->dir, "/tmp/us-hyp.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    assert_true(sd_event_new(&f->event) >= 0);
    *state = f;
    return 0;
}

static inline int teardown(void **state)
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
static inline struct hyp_launch order_of(struct fixture *f, struct vm_spec *spec, bool incoming)
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

static inline int launch(struct fixture *f, const char *misbehaviour, bool incoming,
                         struct err *err)
{
    struct vm_spec spec;
    struct hyp_launch order = order_of(f, &spec, incoming);

    assert_int_equal(setenv("FAKE_QEMU", misbehaviour, 1), 0);
    return hyp_qemu.launch(&order, &f->vm, err);
}

static inline void launch_well(struct fixture *f, const char *misbehaviour, bool incoming)
{
    struct err err;

    if (launch(f, misbehaviour, incoming, &err) < 0)
        fail_msg("%s", err.text);
    f->vm->checkpoint_timeout_ms = 300;
    f->vm->answer_timeout_ms = 300;
}

/* Runs the loop until something is reported, which has to be `what`; a checkpoint after the news
 * that the VM stands still. */
static inline void expect(struct fixture *f, enum happening what)
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
static inline void expect_nothing(struct fixture *f)
{
    while (sd_event_run(f->event, 50000) > 0)
        ;
    assert_int_equal(f->n_happened + f->n_stopped, 0);
}

static inline void start(struct fixture *f, const char *misbehaviour)
{
    launch_well(f, misbehaviour, false);
    assert_int_equal(hyp_qemu.resume(f->vm, NULL), 0);
    assert_int_equal(f->n_happened, 0); /* never from inside an operation */
    expect(f, RUNNING);
}

static inline void order_checkpoint(struct fixture *f)
{
    assert_int_equal(hyp_qemu.checkpoint(f->vm, NULL), 0);
    assert_int_equal(f->n_happened, 0);
}

/* The whole program: plays QEMU, or runs the tests. */
static inline int run_driver_tests(int argc, char **argv, const struct CMUnitTest *tests, size_t n)
{
    if (argc > 1 && getenv("FAKE_QEMU"))
        return play_qemu(argc, argv);
    if (readlink("/proc/self/exe", self_path, sizeof(self_path) - 1) < 0)
        return 1;
    return _cmocka_run_group_tests("tests", tests, n, NULL, NULL);
}

#endif
