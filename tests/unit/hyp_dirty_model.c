/* SPDX-License-Identifier: Apache-2.0 */
/* No write is missed: a process writes to random pages, itself and by way of the kernel, while what
 * is dirty is taken and copied and regions move between the ways of tracking. Whenever it stands
 * still, the copy must be equal. And it never hangs, whatever becomes of who tracks it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fault.h"
#include "hyp/qemu/dirty.h"
#include "hyp/qemu/uffd_inject.h"
#include "io/clock.h"
#include "unit.h"

enum {
    PAGES = 16384,
    REGION_PAGES = 1024, /* as in dirty.c */
    WRITERS = 3,
    STOPS = 60,
    LIMIT_S = 100, /* a process that hangs is ended */
};
#define RAM_BYTES (PAGES * VM_PAGE_BYTES)

/* What the processes share beside the memory. */
struct control {
    pthread_barrier_t barrier; /* who writes and who stops them meet there, twice for each stop */
    _Atomic bool stop;
    _Atomic bool failed; /* a write by the kernel */
    _Atomic unsigned hot_region;
    _Atomic uint64_t n_writes;
};

struct world {
    uint8_t *ram; /* the writers' memory; ours is another mapping of it */
    struct control *control;
    pid_t pid;
    int pidfd;
};

static unsigned ways_here;
static unsigned seed;

static uint64_t any(unsigned *state, uint64_t below)
{
    return ((uint64_t)rand_r(state) << 16 ^ (uint64_t)rand_r(state)) % below;
}

/* Where to write next: mostly in a few regions, so that some become hot and others cold. */
static size_t any_place(struct world *w, unsigned *state)
{
    uint64_t page = any(state, 100) < 95
                        ? w->control->hot_region * REGION_PAGES + any(state, 2 * REGION_PAGES)
                        : any(state, PAGES);

    return page % PAGES * VM_PAGE_BYTES + any(state, VM_PAGE_BYTES / 64) * 64;
}

static bool write_by_kernel(uint8_t *at, const int *sockets, unsigned *state)
{
    uint64_t bytes[8] = {any(state, UINT64_MAX)};
    struct iovec to = {at, sizeof(bytes)};
    struct msghdr message = {.msg_iov = &to, .msg_iovlen = 1};

    if (write(sockets[0], bytes, sizeof(bytes)) != sizeof(bytes))
        return false;
    if (any(state, 2))
        return read(sockets[1], at, sizeof(bytes)) == sizeof(bytes);
    return recvmsg(sockets[1], &message, 0) == sizeof(bytes);
}

static void *writer(void *user)
{
    struct world *w = user;
    unsigned state = (unsigned)syscall(SYS_gettid) + seed;
    int sockets[2];

    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sockets) < 0)
        _exit(2);
    for (;;) {
        uint8_t *at = w->ram + any_place(w, &state);

        if (any(&state, 3))
            *(volatile uint64_t *)at = any(&state, UINT64_MAX);
        else if (!write_by_kernel(at, sockets, &state))
            w->control->failed = true;
        w->control->n_writes++;
        if (w->control->stop) {
            pthread_barrier_wait(&w->control->barrier);
            pthread_barrier_wait(&w->control->barrier);
        }
    }
    return NULL;
}

static void __attribute__((noreturn)) write_forever(struct world *w)
{
    pthread_t thread;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < WRITERS; i++)
        if (pthread_create(&thread, NULL, writer, w) != 0)
            _exit(3);
    for (;;)
        pause();
}

static struct world world_new(void)
{
    int fd = memfd_create("us-dirty-model", MFD_CLOEXEC);
    pthread_barrierattr_t shared;
    struct world w;
    void *theirs;

    assert_int_equal(ftruncate(fd, (off_t)RAM_BYTES), 0);
    theirs = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    w.ram = theirs;
    w.control =
        mmap(NULL, sizeof(*w.control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(theirs != MAP_FAILED && w.control != MAP_FAILED);
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&w.control->barrier, &shared, WRITERS + 1);
    w.pid = fork();
    assert_true(w.pid >= 0);
    if (w.pid == 0)
        write_forever(&w);
    w.pidfd = (int)syscall(SYS_pidfd_open, w.pid, 0);
    assert_true(w.pidfd >= 0);
    close(fd);
    return w;
}

/* Skips the test where that cannot be tracked in this way. */
static struct world world_for(unsigned way)
{
    if ((ways_here & way) != way)
        skip();
    return world_new();
}

static void world_free(struct world *w)
{
    assert_int_equal(kill(w->pid, SIGKILL), 0);
    assert_int_equal(waitpid(w->pid, NULL, 0), w->pid);
    close(w->pidfd);
    (void)munmap(w->ram, RAM_BYTES);
    (void)munmap(w->control, sizeof(*w->control));
}

static void stop(struct world *w)
{
    w->control->stop = true;
    pthread_barrier_wait(&w->control->barrier);
}

static void go(struct world *w)
{
    w->control->stop = false;
    pthread_barrier_wait(&w->control->barrier);
}

static void await_writes(struct world *w, uint64_t n)
{
    const struct timespec moment = {.tv_nsec = 100000};
    uint64_t from = w->control->n_writes;

    while (w->control->n_writes < from + n)
        (void)nanosleep(&moment, NULL);
}

static struct dirty *track(struct world *w, unsigned way)
{
    struct dirty_target target = {
        .pid = w->pid,
        .base = (uintptr_t)w->ram, /* forked: the same there */
        .n_bytes = RAM_BYTES,
        .async_fd = -1,
        .sync_fd = -1,
        .n_threads = 2,
    };
    struct dirty *d = NULL;
    struct err err;

    if ((way & DIRTY_ASYNC &&
         uffd_inject(w->pid, w->pidfd, UFFD_KIND_USER, &target.async_fd, &err) < 0) ||
        (way & DIRTY_SYNC &&
         uffd_inject(w->pid, w->pidfd, UFFD_KIND_KERNEL, &target.sync_fd, &err) < 0) ||
        dirty_start(&target, &d, &err) < 0)
        fail_msg("%s", err.text);
    return d;
}

/* Takes what is dirty and copies it, as the guard does. Returns the number of pages. */
static uint64_t take_and_copy(struct world *w, struct dirty *d, uint8_t *copy)
{
    struct run_list list = {0};
    uint64_t pages = 0;

    assert_int_equal(dirty_take(d, &list), 0);
    for (size_t i = 0; i < list.n; i++) {
        size_t at = list.runs[i].first * VM_PAGE_BYTES, n = list.runs[i].count * VM_PAGE_BYTES;

        memcpy(copy + at, w->ram + at, n);
        pages += list.runs[i].count;
    }
    run_list_free(&list);
    return pages;
}

static void misses_nothing(unsigned way)
{
    struct world w = world_new();
    uint8_t *copy = malloc(RAM_BYTES);
    struct dirty *d = track(&w, way);
    uint64_t cold = dirty_cold_pages(d), warmed = 0, cooled = 0;

    assert_non_null(copy);
    memcpy(copy, w.ram, RAM_BYTES); /* the first full copy, while they write */
    for (unsigned i = 0; i < STOPS; i++) {
        uint64_t before = cold;

        if (i % 10 == 0)
            w.control->hot_region = (unsigned)any(&seed, PAGES / REGION_PAGES);
        for (unsigned takes = 0; takes < i % 5; takes++) {
            await_writes(&w, any(&seed, 3000));
            take_and_copy(&w, d, copy);
        }
        stop(&w);
        take_and_copy(&w, d, copy);
        assert_false(w.control->failed);
        if (memcmp(copy, w.ram, RAM_BYTES) != 0)
            fail_msg("a write was missed, way %u, stop %u", way, i);
        /* Takes without a write let regions cool down. */
        for (unsigned takes = 0; i % 4 == 0 && takes < 150; takes++)
            assert_int_equal(take_and_copy(&w, d, copy), 0);
        dirty_settle(d, any(&seed, 2) * NS_PER_MS);
        assert_false(dirty_broken(d));
        cold = dirty_cold_pages(d);
        warmed += cold < before ? before - cold : 0;
        cooled += cold > before ? cold - before : 0;
        go(&w);
    }
    if (way == DIRTY_BOTH)
        assert_true(warmed > 10 * REGION_PAGES && cooled > 10 * REGION_PAGES);
    dirty_free(d);
    free(copy);
    world_free(&w);
}

static void no_write_is_missed(void **state)
{
    for (unsigned way = DIRTY_ASYNC; way <= DIRTY_BOTH; way++)
        if ((way & ways_here) == way)
            misses_nothing(way);
}

/* A take after which regions may move. Returns how many pages are cold. */
static uint64_t take_and_settle(struct world *w, struct dirty *d, uint8_t *copy, uint64_t written)
{
    assert_int_equal(take_and_copy(w, d, copy), written);
    dirty_settle(d, NS_PER_S);
    return dirty_cold_pages(d);
}

/* A region goes where it costs less: hot when it is written to a lot, cold when it is not. */
static void regions_move(void **state)
{
    struct world w = world_for(DIRTY_BOTH);
    uint8_t *copy = malloc(RAM_BYTES);
    unsigned takes = 0;
    struct dirty *d;

    assert_non_null(copy);
    stop(&w);
    d = track(&w, DIRTY_BOTH);
    assert_int_equal(dirty_cold_pages(d), 0);
    while (take_and_settle(&w, d, copy, 0) < PAGES && takes < 400)
        takes++;
    assert_in_range(takes, 30, 100);
    go(&w);
    await_writes(&w, 20000);
    stop(&w);
    assert_true(take_and_copy(&w, d, copy) > 1000);
    dirty_settle(d, 0); /* always one */
    assert_int_equal(dirty_cold_pages(d), PAGES - REGION_PAGES);
    dirty_settle(d, NS_PER_S);
    assert_int_equal(dirty_cold_pages(d), 0);
    go(&w);
    dirty_free(d);
    free(copy);
    world_free(&w);
}

/* A process that tracks the writers, and is then killed. */
static void dies_while_tracking(struct world *w, unsigned way)
{
    int ready[2], status;
    char byte = 0;
    pid_t pid;

    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct dirty *d = track(w, way);
        struct run_list list = {0};

        while (dirty_take(d, &list) == 0 && write(ready[1], &byte, 1) == 1)
            list.n = 0;
        _exit(1);
    }
    for (int i = 0; i < 20; i++)
        assert_int_equal(read(ready[0], &byte, 1), 1);
    await_writes(w, 1000);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    await_writes(w, 20000);
    close(ready[0]);
    close(ready[1]);
}

static void goes_on_when_its_tracker_dies(void **state)
{
    struct world w = world_new();

    for (unsigned i = 0; i < 10; i++)
        for (unsigned way = DIRTY_ASYNC; way <= DIRTY_BOTH; way++)
            if ((way & ways_here) == way)
                dies_while_tracking(&w, way);
    assert_false(w.control->failed);
    world_free(&w);
}

#ifdef US_FAULT_POINTS
/* Nobody waits for a thread that cannot lift a protection; and what it missed is not passed over.
 */
static void failure_frees_everybody(void **state)
{
    struct world w = world_for(DIRTY_SYNC);
    struct run_list list = {0};
    struct dirty *d;

    d = track(&w, DIRTY_SYNC);
    await_writes(&w, 100);
    fault_arm("hyp.lift 5 error ENOMEM");
    await_writes(&w, 20000);
    assert_true(dirty_broken(d));
    assert_int_equal(dirty_take(d, &list), -ENOMEM);
    fault_arm(NULL);
    dirty_free(d);
    d = track(&w, DIRTY_SYNC);
    await_writes(&w, 1000);
    assert_int_equal(dirty_take(d, &list), 0);
    assert_true(list.n > 0);
    run_list_free(&list);
    dirty_free(d);
    world_free(&w);
}

/* A region that cannot become cold stays hot, and so do all others from then on. */
static void a_failed_move_is_the_last(void **state)
{
    struct world w = world_for(DIRTY_BOTH);
    uint8_t *copy = malloc(RAM_BYTES);
    struct dirty *d;

    assert_non_null(copy);
    stop(&w);
    d = track(&w, DIRTY_BOTH);
    memcpy(copy, w.ram, RAM_BYTES);
    for (unsigned takes = 0; takes < 200; takes++)
        assert_int_equal(take_and_copy(&w, d, copy), 0);
    dirty_settle(d, 0);
    assert_int_equal(dirty_cold_pages(d), REGION_PAGES);
    fault_arm("hyp.watch 1 error ENOMEM");
    dirty_settle(d, NS_PER_S);
    fault_arm(NULL);
    dirty_settle(d, NS_PER_S);
    assert_int_equal(dirty_cold_pages(d), REGION_PAGES);
    assert_false(dirty_broken(d));
    go(&w);
    await_writes(&w, 20000);
    stop(&w);
    assert_true(take_and_copy(&w, d, copy) > 1000);
    assert_memory_equal(copy, w.ram, RAM_BYTES);
    go(&w);
    dirty_free(d);
    free(copy);
    world_free(&w);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_write_is_missed),
        cmocka_unit_test(regions_move),
        cmocka_unit_test(goes_on_when_its_tracker_dies),
#ifdef US_FAULT_POINTS
        cmocka_unit_test(failure_frees_everybody),
        cmocka_unit_test(a_failed_move_is_the_last),
#endif
    };
    const char *given = getenv("DIRTY_SEED");
    struct err err;

    if (dirty_probe_kernel(&ways_here, &err) < 0) {
        printf("1..0 # SKIP %s\n", err.text);
        return 0;
    }
    seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)clock_now_ns();
    printf("# DIRTY_SEED=%u\n", seed);
    (void)alarm(LIMIT_S);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
