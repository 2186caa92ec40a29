/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fault.h"
#include "disk/applier.h"
#include "disk_rig.h"

/* A standby that dies. A child process stages, commits and applies epochs, and is killed: at a
 * fault point, or in the middle of its Nth access to the files. Then the power may fail too: every
 * page that was written since its file was synced may stand at any point in between. After
 * recovery, which may itself be killed, the disks must stand exactly at the end of an epoch that is
 * not older than what the child had reported.
 *
 * The functions below stand in for libc's of the same name. They remember what was there before
 * each change, so that the power can fail, and need not really sync. */

enum {
    TERM = 7,
    PAGE = 4096,
    N_FILES = 3,
    EPOCHS = 40, /* of a child */
    CHANGES_BYTES = 64 << 20,
};

static const char *const file_names[N_FILES] = {"redo", "disk0", "disk1"};

/* A change to a file; the bytes that were there before follow. */
struct change {
    uint64_t sequence, file, offset, n;
};

/* Shared with the children. */
struct world {
    /* What the child has reported. */
    _Atomic uint64_t attempted, staged, committed, durable;
    _Atomic bool valid;    /* the copy is consistent: it was when the child began, or is again */
    _Atomic bool draining; /* what is not committed may be gone */
    _Atomic bool drained;  /* it is gone, if the power does not fail */
    _Atomic bool finished;

    uint64_t calls, die_at; /* die_at: the number of the access that is the last one; 0 = none */
    uint64_t n_changes, n_bytes;
    uint64_t synced[N_FILES]; /* changes up to that one survive */
    uint8_t changes[CHANGES_BYTES];
};

static struct world *world;
static pthread_mutex_t world_lock = PTHREAD_MUTEX_INITIALIZER;
static struct rig_model model;

/* Which of the files it is, or -1. */
static int which(int fd)
{
    struct stat one, other;

    if (!world || fstat(fd, &one) < 0)
        return -1;
    for (int i = 0; i < N_FILES; i++) {
        char path[64];

        (void)snprintf(path, sizeof(path), "%s/%s", rig_folder, file_names[i]);
        if (stat(path, &other) == 0 && one.st_ino == other.st_ino)
            return i;
    }
    return -1;
}

static void remember(int fd, int file, uint64_t offset, uint64_t n)
{
    struct change change = {++world->n_changes, (uint64_t)file, offset, n};
    uint8_t *before = world->changes + world->n_bytes + sizeof(change);
    ssize_t got;

    if (world->n_bytes + sizeof(change) + n > CHANGES_BYTES)
        abort();
    memcpy(before - sizeof(change), &change, sizeof(change));
    got = syscall(SYS_pread64, fd, before, n, offset);
    got = got < 0 ? 0 : got;
    memset(before + got, 0, n - (uint64_t)got);
    world->n_bytes += sizeof(change) + n;
}

/* True when this access is the last one; it may be carried out in part. */
static bool is_last(void)
{
    return ++world->calls == world->die_at;
}

static void die(void)
{
    (void)kill(getpid(), SIGKILL);
    for (;;)
        (void)pause();
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset)
{
    int file = which(fd);
    ssize_t r;

    if (file < 0)
        return syscall(SYS_pwrite64, fd, bytes, n, offset);
    pthread_mutex_lock(&world_lock);
    remember(fd, file, (uint64_t)offset, n);
    if (is_last()) {
        (void)syscall(SYS_pwrite64, fd, bytes, world->n_changes * 7919 % (n + 1), offset);
        die();
    }
    r = syscall(SYS_pwrite64, fd, bytes, n, offset);
    pthread_mutex_unlock(&world_lock);
    return r;
}

int fallocate(int fd, int mode, off_t offset, off_t n)
{
    int file = which(fd), r;
    struct stat st;

    if (file < 0 || fstat(fd, &st) < 0 || offset + n > st.st_size)
        return (int)syscall(SYS_fallocate, fd, mode, offset, n); /* nothing is there */
    pthread_mutex_lock(&world_lock);
    remember(fd, file, (uint64_t)offset, (uint64_t)n);
    if (is_last())
        die();
    r = (int)syscall(SYS_fallocate, fd, mode, offset, n);
    pthread_mutex_unlock(&world_lock);
    return r;
}

int ftruncate(int fd, off_t length)
{
    int file = which(fd), r;
    struct stat st;

    if (file < 0 || fstat(fd, &st) < 0 || st.st_size <= length)
        return (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&world_lock);
    remember(fd, file, (uint64_t)length, (uint64_t)(st.st_size - length));
    if (is_last())
        die();
    r = (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_unlock(&world_lock);
    return r;
}

int fdatasync(int fd)
{
    int file = which(fd);
    uint64_t before;

    if (file < 0)
        return (int)syscall(SYS_fdatasync, fd);
    pthread_mutex_lock(&world_lock);
    before = world->n_changes;
    if (is_last())
        die();
    pthread_mutex_unlock(&world_lock);
    (void)sched_yield(); /* others may write meanwhile */
    pthread_mutex_lock(&world_lock);
    if (before > world->synced[file])
        world->synced[file] = before;
    pthread_mutex_unlock(&world_lock);
    return 0;
}

int fsync(int fd)
{
    return fdatasync(fd);
}

/* The child. */

static int on_consistent(void *user, uint64_t epoch, uint64_t term)
{
    world->valid = true;
    return 0;
}

static struct redo *open_and_recover(uint64_t *ret_epoch)
{
    struct redo *redo;
    struct err err = {""};
    uint64_t term;

    rig_open_images();
    if (redo_open(rig_path("redo"), "web", &redo, &err) < 0 ||
        redo_recover(redo, rig_images, RIG_DISKS, ret_epoch, &term, &err) < 0)
        fail_msg("%s", err.text);
    return redo;
}

static void note_report(struct applier *applier)
{
    struct applier_report report;

    applier_report_get(applier, &report);
    assert_int_equal(report.error, 0);
    world->durable = report.durable_epoch;
}

static void wait_applied(struct applier *applier, int event, uint64_t epoch)
{
    struct applier_report report;
    uint64_t n;

    for (;;) {
        applier_report_get(applier, &report);
        if (report.applied_epoch >= epoch)
            return;
        assert_int_equal(read(event, &n, sizeof(n)), sizeof(n)); /* waits */
    }
}

/* What a child is to do. */
struct life {
    uint64_t base, seed; /* the disks stand at base */
    unsigned n_seeding;  /* that many epochs without a term come first */
    unsigned n_epochs;
    bool no_finish;
    const char *fault; /* NULL: dies at world->die_at */
    bool recovery_only;
};

/* Stages the epoch, and commits it or one of the three before it. */
static void one_epoch(struct applier *applier, int event, const struct life *life, uint64_t epoch,
                      uint64_t *seed)
{
    uint64_t term = epoch <= life->base + life->n_seeding ? 0 : TERM;
    uint64_t committed = epoch - rig_random(seed) % 4;
    struct disk_log log = {0};

    rig_epoch(epoch, &log, NULL);
    world->attempted = epoch;
    assert_int_equal(applier_stage(applier, epoch, term, &log), 0);
    world->staged = epoch;
    if (committed > life->base && committed <= epoch) {
        applier_commit(applier, committed);
        if (world->committed < committed)
            world->committed = committed;
        if (rig_random(seed) % 4 == 0)
            wait_applied(applier, event, committed);
    }
    note_report(applier);
}

static void live(const struct life *life)
{
    const struct applier_callbacks callbacks = {.on_consistent = on_consistent};
    uint64_t seed = life->seed, found, n;
    struct redo *redo = open_and_recover(&found);
    struct applier *applier;
    int event = eventfd(0, EFD_CLOEXEC);

    if (life->recovery_only)
        return;
    assert_int_equal(
        applier_new(rig_images, RIG_DISKS, redo, 256 * 1024, event, &callbacks, &applier), 0);
    for (unsigned i = 1; i <= life->n_epochs; i++)
        one_epoch(applier, event, life, life->base + i, &seed);
    if (!life->no_finish) {
        world->draining = true;
        applier_drain(applier);
        world->drained = true;
        applier_finish(applier);
        while (!applier_finished(applier))
            assert_int_equal(read(event, &n, sizeof(n)), sizeof(n));
        world->finished = true;
    }
    applier_close(applier);
}

/* Runs a child to its end, which is where life says, or that it has lived to the end. */
static void run_child(const struct life *life)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        (void)setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failed assertion ends the child */
        if (life->fault)
            fault_arm(life->fault);
        live(life);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    if (WIFSTOPPED(status)) {
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
    } else if (life->fault && !life->recovery_only) {
        fail_msg("the child never came to %s", life->fault);
    }
    if (WIFSIGNALED(status) ? WTERMSIG(status) != SIGKILL : WEXITSTATUS(status) != 0)
        fail_msg("the child ended with status 0x%x", (unsigned)status);
}

/* The power. */

/* Everything is on stable storage. */
static void settle(void)
{
    world->n_bytes = 0;
    for (int i = 0; i < N_FILES; i++)
        world->synced[i] = world->n_changes;
}

/* How far the page's changes have come. */
static uint64_t page_survives(uint64_t seed, unsigned file, uint64_t page)
{
    uint64_t synced = world->synced[file];

    seed = (seed ^ (page * N_FILES + file + 1) * UINT64_C(0x9e3779b97f4a7c15)) | 1;
    switch (rig_random(&seed) % 3) {
    case 0:
        return synced;
    case 1:
        return world->n_changes;
    default:
        return synced + rig_random(&seed) % (world->n_changes - synced + 1);
    }
}

static void undo(const struct change *change, const uint8_t *before, const int *fds, uint64_t seed)
{
    for (uint64_t at = change->offset; at < change->offset + change->n;) {
        uint64_t page = at / PAGE, end = (page + 1) * PAGE;

        if (end > change->offset + change->n)
            end = change->offset + change->n;
        if (change->sequence > page_survives(seed, (unsigned)change->file, page))
            assert_int_equal(syscall(SYS_pwrite64, fds[change->file],
                                     before + (at - change->offset), end - at, at),
                             end - at);
        at = end;
    }
}

static void power_fails(uint64_t seed)
{
    const uint8_t **places = calloc(world->n_changes + 1, sizeof(*places));
    int fds[N_FILES];
    size_t n = 0;

    for (int i = 0; i < N_FILES; i++)
        fds[i] = open(rig_path(file_names[i]), O_RDWR | O_CLOEXEC);
    for (uint64_t at = 0; at < world->n_bytes; n++) {
        struct change change;

        places[n] = world->changes + at;
        memcpy(&change, places[n], sizeof(change));
        at += sizeof(change) + change.n;
    }
    while (n-- > 0) {
        struct change change;

        memcpy(&change, places[n], sizeof(change));
        if (change.sequence > world->synced[change.file])
            undo(&change, places[n] + sizeof(change), fds, seed);
    }
    for (int i = 0; i < N_FILES; i++)
        close(fds[i]);
    free(places);
    settle();
}

/* What is left. */

static uint64_t newest_with_records(uint64_t epoch)
{
    while (rig_is_empty(epoch) && epoch > 0)
        epoch--;
    return epoch;
}

static void start_over(void)
{
    (void)rig_clean(NULL);
    memset(&model, 0, sizeof(model));
}

/* Recovers; the disks stand at the end of a whole epoch within bounds. Returns that. */
static uint64_t check(const struct life *life, bool power_failed)
{
    uint64_t least = power_failed ? world->durable : world->staged, most = world->attempted;
    uint64_t found, stands_at;

    world->die_at = 0;
    if (world->draining && least > world->committed)
        least = world->committed;
    if (power_failed ? world->finished : world->drained)
        most = world->committed;
    if (least < life->base + life->n_seeding)
        least = life->base + life->n_seeding;
    if (most < least)
        most = least;
    redo_close(open_and_recover(&found));
    if (!world->valid) { /* half a copy: it is made anew */
        rig_close_images();
        start_over();
        return 0;
    }
    stands_at = rig_tag();
    if (found)
        assert_int_equal(found, stands_at);
    if (stands_at < newest_with_records(least) || stands_at > most)
        fail_msg("at %llu, and should be at %llu to %llu", (unsigned long long)stands_at,
                 (unsigned long long)least, (unsigned long long)most);
    rig_model_to(&model, stands_at);
    rig_assert_same(&model);
    rig_close_images();
    settle();
    return stands_at;
}

/* One child's life and what comes after it. Returns where the disks stand. */
static uint64_t one_life(const struct life *life)
{
    static const char *const faults[] = {"redo.apply 9 stop", "redo.synced 1 stop",
                                         "redo.reset 1 stop", "redo.was-reset 1 stop"};
    uint64_t seed = life->seed, die_at = world->die_at;
    bool power_failed = false;

    (void)rig_random(&seed);
    world->attempted = world->staged = world->committed = world->durable = 0;
    world->draining = world->drained = world->finished = false;
    world->valid = life->n_seeding == 0;
    world->calls = 0;
    run_child(life);
    for (unsigned again = (unsigned)(rig_random(&seed) % 3);; again--) {
        struct life recovery = {.seed = life->seed, .recovery_only = true};

        if (rig_random(&seed) % 2) {
            power_fails(rig_random(&seed));
            power_failed = true;
        }
        if (again == 0)
            break;
        world->calls = 0;
        world->die_at = 1 + rig_random(&seed) % 60;
        recovery.fault = rig_random(&seed) % 2 ? faults[rig_random(&seed) % N_OF(faults)] : NULL;
        run_child(&recovery);
    }
    world->die_at = die_at;
    return check(life, power_failed);
}

static int setup(void **state)
{
    world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return world == MAP_FAILED ? -1 : rig_setup(state);
}

static int teardown(void **state)
{
    return rig_teardown(state);
}

static int begin(void **state)
{
    start_over();
    settle();
    return 0;
}

static void killed_anywhere(void **state)
{
    uint64_t seed = 12345, base = 0;

    for (int i = 0; i < 150; i++) {
        struct life life = {.base = base,
                            .seed = rig_random(&seed),
                            .n_seeding = i % 4 ? 0 : 1 + i % 5,
                            .n_epochs = EPOCHS};

        world->die_at = 1 + rig_random(&seed) % (i % 2 ? 40 : 900);
        base = one_life(&life);
    }
    assert_true(base > 0);
}

#ifdef US_FAULT_POINTS
static void killed_at_each_step(void **state)
{
    static const struct {
        const char *fault;
        unsigned n_seeding;
    } points[] = {
        {"redo.append 1 stop", 0}, /* before its body, before its header, after it */
        {"redo.appending 1 stop", 0},
        {"redo.appended 1 stop", 0},
        {"redo.append 11 stop", 2},
        {"redo.appending 11 stop", 0},
        {"redo.appended 20 stop", 0},
        {"redo.synced 1 stop", 0},
        {"redo.synced 1 stop", 3},
        {"redo.synced 6 stop", 0},
        {"redo.apply 1 stop", 0},
        {"redo.apply 2 stop", 0},
        {"redo.apply 77 stop", 0},
        {"redo.apply 78 stop", 3},
        {"redo.apply 150 stop", 0},
        {"applier.applied 1 stop", 0},
        {"applier.applied 20 stop", 0},
        {"applier.images-synced 1 stop", 0},
        {"applier.images-synced 1 stop", 4},
        {"applier.images-synced 2 stop", 0},
        {"applier.finish 1 stop", 0},
        {"redo.reset 1 stop", 0}, /* before the header, after it */
        {"redo.was-reset 1 stop", 0},
        {"applier.finished 1 stop", 0},
    };
    uint64_t seed = 54321, base = 0;

    for (int i = 0; i < 4; i++)
        for (size_t at = 0; at < N_OF(points); at++) {
            struct life life = {.base = base,
                                .seed = rig_random(&seed),
                                .n_seeding = points[at].n_seeding,
                                .n_epochs = EPOCHS,
                                .fault = points[at].fault};

            world->die_at = 0;
            base = one_life(&life);
        }
    assert_true(base > 0);
}
#endif

static void ended_in_good_order(void **state)
{
    uint64_t base = 0;

    world->die_at = 0;
    for (int i = 0; i < 10; i++) {
        struct life life = {.base = base,
                            .seed = (uint64_t)i + 1,
                            .n_seeding = i % 3,
                            .n_epochs = EPOCHS,
                            .no_finish = i % 2};

        base = one_life(&life);
        assert_true(base >= (uint64_t)(i + 1) * (EPOCHS - 4));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(ended_in_good_order, begin, rig_clean),
        cmocka_unit_test_setup_teardown(killed_anywhere, begin, rig_clean),
#ifdef US_FAULT_POINTS
        cmocka_unit_test_setup_teardown(killed_at_each_step, begin, rig_clean),
#endif
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
