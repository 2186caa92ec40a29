/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty tracking: exact to the page, from our own process and from outside of another one, and the
 * injection that makes the latter possible leaves the other process as it was. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"

#include "hyp/qemu/dirty.h"
#include "hyp/qemu/domain.h"
#include "hyp/qemu/spawn.h"
#include "hyp/qemu/uapi.h"
#include "hyp/qemu/uffd_inject.h"
#include "io/clock.h"

enum {
    PAGES = 4096,
    REGION_PAGES = 1024, /* as in dirty.c */
    AHEAD_PAGES = 32,    /* as in fault_watch.c */
    SIGNALS = 200,       /* fits an exit status */
    STRANGER = 64110,
};
#define RAM_BYTES (PAGES * VM_PAGE_BYTES)

/* A file in memory and our mapping of it. */
struct ram {
    char path[32];
    int fd;
    uint8_t *bytes;
};

static struct ram ram_new(void)
{
    struct ram ram = {.fd = memfd_create("us-dirty", MFD_CLOEXEC)};

    assert_true(ram.fd >= 0);
    (void)snprintf(ram.path, sizeof(ram.path), "/proc/self/fd/%d", ram.fd);
    assert_int_equal(ftruncate(ram.fd, (off_t)RAM_BYTES), 0);
    ram.bytes = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
    assert_true(ram.bytes != MAP_FAILED);
    return ram;
}

static void ram_free(struct ram *ram)
{
    (void)munmap(ram->bytes, RAM_BYTES);
    close(ram->fd);
}

/* Takes all dirty pages; page i's flag says whether it was. */
static uint64_t take(struct dirty *d, bool *flags)
{
    struct run_list list = {0};
    uint64_t total = 0, seen = 0;

    memset(flags, 0, PAGES);
    assert_int_equal(dirty_take(d, &list), 0);
    for (size_t i = 0; i < list.n; i++) {
        const struct page_run *run = &list.runs[i];

        assert_true(run->count >= 1 && run->first >= seen);
        seen = run->first + run->count;
        assert_true(seen <= PAGES);
        for (uint64_t page = run->first; page < seen; page++)
            flags[page] = true;
        total += run->count;
    }
    run_list_free(&list);
    return total;
}

static unsigned ways_here; /* what this kernel can do */

/* A way of tracking that is to be tried. False: there are no more. */
static bool next_way(unsigned *way)
{
    while (++*way <= DIRTY_BOTH)
        if ((*way & ways_here) == *way)
            return true;
    return false;
}

static struct dirty *start(pid_t pid, uint64_t base, int async_fd, int sync_fd)
{
    struct dirty_target target = {
        .pid = pid,
        .base = base,
        .n_bytes = RAM_BYTES,
        .async_fd = async_fd,
        .sync_fd = sync_fd,
        .n_threads = 2,
    };
    struct dirty *d;
    struct err err;

    if (dirty_start(&target, &d, &err) < 0)
        fail_msg("%s", err.text);
    return d;
}

static int own_uffd(int flags)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);

    assert_true(uffd >= 0);
    return uffd;
}

static struct dirty *track_self(const struct ram *ram, unsigned way)
{
    struct err err;
    uint64_t base;

    assert_int_equal(dirty_find_mapping(getpid(), ram->path, RAM_BYTES, &base, &err), 0);
    assert_true(base == (uintptr_t)ram->bytes);
    return start(getpid(), base, way & DIRTY_ASYNC ? own_uffd(UFFD_USER_MODE_ONLY) : -1,
                 way & DIRTY_SYNC ? own_uffd(0) : -1);
}

/* All that were written were taken. The synchronous way may have let writes go ahead: a page that
 * was taken and not written then comes after as many that were not, at most, and one that was. */
static void check_taken(const bool *taken, const bool *wrote, unsigned way)
{
    unsigned more = way == DIRTY_ASYNC ? 0 : AHEAD_PAGES, allowed = 0;

    for (size_t i = 0; i < PAGES; i++) {
        if (wrote[i])
            allowed = more;
        else if (taken[i])
            assert_true(allowed-- > 0);
        else
            allowed = 0;
        assert_true(taken[i] || !wrote[i]);
    }
}

static void reports_what_was_written(unsigned way)
{
    struct ram ram = ram_new();
    struct dirty *d = track_self(&ram, way);
    bool wrote[PAGES], flags[PAGES];
    uint64_t count;

    srand(1);
    assert_int_equal(take(d, flags), 0);
    for (size_t round = 0; round < 60; round++) {
        int density = (int)(round % 5) * 25; /* percent */

        for (size_t i = 0; i < PAGES; i++) {
            wrote[i] = rand() % 100 < density;
            if (wrote[i])
                ram.bytes[i * VM_PAGE_BYTES + (size_t)rand() % VM_PAGE_BYTES]++;
        }
        assert_int_equal(dirty_count(d, PAGES, &count), 0);
        assert_int_equal(take(d, flags), count);
        check_taken(flags, wrote, way);
        assert_int_equal(take(d, flags), 0);
        dirty_settle(d, round % 2 ? NS_PER_MS : 0);
    }
    dirty_free(d);
    ram_free(&ram);
}

static void counts_up_to_a_limit(void **state)
{
    for (unsigned way = 0; next_way(&way);) {
        struct ram ram = ram_new();
        struct dirty *d = track_self(&ram, way);
        uint64_t count;

        for (size_t i = 1; i <= 20; i++) {
            ram.bytes[i * 100 * VM_PAGE_BYTES]++;
            assert_int_equal(dirty_count(d, 10, &count), 0);
            assert_int_equal(count, i > 10 ? 11 : i);
        }
        dirty_free(d);
        ram_free(&ram);
    }
}

/* Writes that go on from page to page are stopped but now and then. */
static void lets_writes_go_ahead(void **state)
{
    struct ram ram = ram_new();
    bool flags[PAGES];
    struct dirty *d;
    uint64_t since, one_by_one_ns, in_order_ns;

    if (!(ways_here & DIRTY_SYNC)) {
        ram_free(&ram);
        skip();
    }
    d = track_self(&ram, DIRTY_SYNC);
    since = clock_now_ns();
    for (size_t i = PAGES; i-- > 0;) /* from the last to the first one */
        ram.bytes[i * VM_PAGE_BYTES]++;
    one_by_one_ns = clock_now_ns() - since;
    assert_int_equal(take(d, flags), PAGES);
    since = clock_now_ns();
    for (size_t i = 0; i < PAGES; i++)
        ram.bytes[i * VM_PAGE_BYTES]++;
    in_order_ns = clock_now_ns() - since;
    assert_int_equal(take(d, flags), PAGES);
    assert_true(in_order_ns < one_by_one_ns / 3);
    dirty_free(d);
    ram_free(&ram);
}

static void reports_all_that_was_written(void **state)
{
    for (unsigned way = 0; next_way(&way);)
        reports_what_was_written(way);
}

/* The pages that are cold when one of the first region is written before every nth take, in the
 * long run. */
static uint64_t cold_when_written_every(struct dirty *d, const struct ram *ram, unsigned nth)
{
    bool flags[PAGES];

    for (unsigned i = 0; i < 1000; i++) {
        if (i % nth == 0)
            ram->bytes[i % REGION_PAGES * VM_PAGE_BYTES]++;
        assert_int_equal(take(d, flags), i % nth == 0);
        dirty_settle(d, NS_PER_S);
    }
    return dirty_cold_pages(d);
}

/* A fault costs the guest as much as scanning many regions. */
static void seldom_written_is_cold(void **state)
{
    struct ram ram = ram_new();
    struct dirty *d;

    if ((ways_here & DIRTY_BOTH) != DIRTY_BOTH) {
        ram_free(&ram);
        skip();
    }
    d = track_self(&ram, DIRTY_BOTH);
    assert_int_equal(cold_when_written_every(d, &ram, 100), PAGES);
    assert_int_equal(cold_when_written_every(d, &ram, 4), PAGES - REGION_PAGES);
    assert_int_equal(cold_when_written_every(d, &ram, 100), PAGES);
    dirty_free(d);
    ram_free(&ram);
}

static void sees_writes_by_the_kernel(unsigned way)
{
    struct ram ram = ram_new();
    struct dirty *d = track_self(&ram, way);
    bool flags[PAGES];
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);

    assert_int_equal(read(fd, ram.bytes + 5 * VM_PAGE_BYTES - 1, 2), 2);
    assert_int_equal(take(d, flags), 2);
    assert_true(flags[4] && flags[5]);
    /* A hole punched into the file is not seen, which is why balloons are refused. */
    assert_int_equal(fallocate(ram.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               4 * VM_PAGE_BYTES, VM_PAGE_BYTES),
                     0);
    assert_int_equal(take(d, flags), 0);
    /* Giving memory back to the kernel without changing the file is no write. */
    assert_int_equal(madvise(ram.bytes, RAM_BYTES, MADV_DONTNEED), 0);
    assert_int_equal(take(d, flags), 0);
    close(fd);
    dirty_free(d);
    ram_free(&ram);
}

static void sees_writes_of_the_kernel(void **state)
{
    for (unsigned way = 0; next_way(&way);)
        sees_writes_by_the_kernel(way);
}

static void refuses_nonsense(void **state)
{
    struct ram ram = ram_new();
    struct err err;
    uint64_t base;
    void *twice;

    dirty_free(NULL);
    assert_int_equal(dirty_find_mapping(getpid(), ram.path, 2 * RAM_BYTES, &base, &err), -ENOTSUP);
    assert_int_equal(dirty_find_mapping(getpid(), "/nonexistent", RAM_BYTES, &base, &err), -ENOENT);
    twice = mmap(NULL, RAM_BYTES, PROT_READ, MAP_SHARED, ram.fd, 0);
    assert_true(twice != MAP_FAILED);
    assert_int_equal(dirty_find_mapping(getpid(), ram.path, RAM_BYTES, &base, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "more than once"));
    (void)munmap(twice, RAM_BYTES);
    ram_free(&ram);
}

static void finds_a_mapping_in_pieces(void **state)
{
    for (unsigned way = 0; next_way(&way);) {
        struct ram ram = ram_new();
        struct dirty *d;
        bool flags[PAGES];

        /* Different advice splits the mapping; the pieces stay contiguous. */
        assert_int_equal(madvise(ram.bytes + 16 * VM_PAGE_BYTES, 16 * VM_PAGE_BYTES, MADV_DONTDUMP),
                         0);
        d = track_self(&ram, way);
        ram.bytes[15 * VM_PAGE_BYTES] = ram.bytes[16 * VM_PAGE_BYTES] = 1;
        assert_int_equal(take(d, flags), 2);
        assert_true(flags[15] && flags[16]);
        dirty_free(d);
        ram_free(&ram);
    }
}

/* A process to look into. What it does between two orders through its socket depends on how. */
enum behaviour {
    WAITS,         /* in poll(), as QEMU's main thread does */
    SPINS,         /* in user code, with all it computes in registers */
    SLEEPS,        /* in a restartable system call */
    IS_A_STRANGER, /* waits; of another user, and has the kernel write for it */
};

struct child {
    pid_t pid;
    int pidfd;
    int orders[2]; /* read end, write end */
    int answers[2];
};

static volatile sig_atomic_t child_signals;

static void count_signal(int number)
{
    child_signals++;
}

/* Runs for a moment and checks that nothing was disturbed. */
static bool undisturbed(enum behaviour behaviour, int orders)
{
    if (behaviour == WAITS || behaviour == IS_A_STRANGER) {
        struct pollfd fd = {.fd = orders, .events = POLLIN};

        return poll(&fd, 1, -1) == 1 && fd.revents == POLLIN;
    }
    if (behaviour == SLEEPS) {
        const struct timespec pause = {.tv_nsec = 5000000};

        return nanosleep(&pause, NULL) == 0;
    }
    for (uint64_t i = 0, sum = 0; i <= 1000000; i++) {
        sum += i;
        __asm__ volatile("" : "+r"(sum)); /* do not calculate it at compile time */
        if (i == 1000000 && sum != UINT64_C(500000500000))
            return false;
    }
    return true;
}

/* Becomes a process as QEMU is: of another user, without privileges, in a domain of its own. */
static void become_stranger(void)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || domain_enter() < 0 ||
        syscall(SYS_setresgid, STRANGER, STRANGER, STRANGER) < 0 ||
        syscall(SYS_setresuid, STRANGER, STRANGER, STRANGER) < 0)
        _exit(6);
    (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* as after an exec */
}

/* Has the kernel write to a page, as it does for a disk's data. */
static void write_by_kernel(uint8_t *page)
{
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);

    if (read(fd, page, 512) != 512)
        _exit(7);
    close(fd);
}

static void __attribute__((noreturn))
child_main(const struct child *c, uint8_t *bytes, enum behaviour behaviour)
{
    char order = 0;

    if (behaviour == IS_A_STRANGER)
        become_stranger();
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nobody behind */
    (void)signal(SIGRTMIN, count_signal);
    (void)fcntl(c->orders[0], F_SETFL, O_NONBLOCK);
    if (write(c->answers[1], "r", 1) != 1)
        _exit(2);
    for (;;) {
        ssize_t n;

        if (!undisturbed(behaviour, c->orders[0]))
            _exit(3);
        n = read(c->orders[0], &order, 1);
        if (n < 0 && errno == EAGAIN)
            continue;
        if (n != 1)
            _exit(4);
        if (order == 'q')
            _exit(child_signals);
        for (size_t i = 0; i < PAGES; i += 100) {
            if (behaviour == IS_A_STRANGER)
                write_by_kernel(bytes + i * VM_PAGE_BYTES);
            else
                bytes[i * VM_PAGE_BYTES]++;
        }
        if (write(c->answers[1], "d", 1) != 1)
            _exit(5);
    }
}

static struct child child_new(const struct ram *ram, enum behaviour behaviour)
{
    struct child c;
    char ready;

    assert_int_equal(pipe2(c.orders, O_CLOEXEC), 0);
    assert_int_equal(pipe2(c.answers, O_CLOEXEC), 0);
    c.pid = fork();
    assert_true(c.pid >= 0);
    if (c.pid == 0)
        child_main(&c, ram->bytes, behaviour);
    c.pidfd = (int)syscall(SYS_pidfd_open, c.pid, 0);
    assert_true(c.pidfd >= 0);
    assert_int_equal(read(c.answers[0], &ready, 1), 1);
    return c;
}

static void child_order(struct child *c, char order)
{
    assert_int_equal(write(c->orders[1], &order, 1), 1);
    if (order != 'q')
        assert_int_equal(read(c->answers[0], &order, 1), 1);
}

/* Returns its exit status. */
static int child_end(struct child *c)
{
    int status;

    if (spawn_wait(c->pidfd, clock_now_ns() + 5 * NS_PER_S, &status) < 0) {
        spawn_kill(c->pidfd);
        fail_msg("the process hangs");
    }
    for (int i = 0; i < 2; i++) {
        close(c->orders[i]);
        close(c->answers[i]);
    }
    close(c->pidfd);
    return status;
}

static unsigned int count_fds(pid_t pid)
{
    unsigned int n = 0;
    char path[32];
    DIR *dir;

    (void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static int injected(const struct child *c, enum uffd_kind kind)
{
    struct err err;
    int uffd;

    if (uffd_inject(c->pid, c->pidfd, kind, &uffd, &err) < 0)
        fail_msg("%s", err.text);
    return uffd;
}

static struct dirty *track_child(const struct ram *ram, const struct child *c, unsigned way)
{
    struct err err;
    uint64_t base;

    if (dirty_find_mapping(c->pid, ram->path, RAM_BYTES, &base, &err) < 0)
        fail_msg("%s", err.text);
    return start(c->pid, base, way & DIRTY_ASYNC ? injected(c, UFFD_KIND_USER) : -1,
                 way & DIRTY_SYNC ? injected(c, UFFD_KIND_KERNEL) : -1);
}

static void tracks_a_process(enum behaviour behaviour, unsigned way)
{
    struct ram ram = ram_new();
    struct child c = child_new(&ram, behaviour);
    unsigned int fds = count_fds(c.pid);
    bool flags[PAGES];

    for (int round = 0; round < 50; round++) {
        struct dirty *d = track_child(&ram, &c, way);

        assert_int_equal(count_fds(c.pid), fds);
        assert_int_equal(take(d, flags), 0);
        child_order(&c, 'w');
        assert_int_equal(take(d, flags), (PAGES + 99) / 100);
        for (size_t i = 0; i < PAGES; i++)
            assert_int_equal(flags[i], i % 100 == 0);
        dirty_free(d);
    }
    child_order(&c, 'q');
    assert_int_equal(child_end(&c), 0);
    ram_free(&ram);
}

static void tracks_another_process(void **state)
{
    /* Only root can make a stranger. */
    enum behaviour last = geteuid() == 0 ? IS_A_STRANGER : SLEEPS;

    for (enum behaviour behaviour = WAITS; behaviour <= last; behaviour++)
        for (unsigned way = 0; next_way(&way);)
            tracks_a_process(behaviour, way);
}

/* Signals that come while the process is stopped are delivered afterwards, none is lost. */
static void loses_no_signal(void **state)
{
    struct ram ram = ram_new();
    struct child c = child_new(&ram, SPINS);
    struct err err;
    int uffd;

    for (int i = 0; i < SIGNALS; i++) {
        assert_int_equal(kill(c.pid, SIGRTMIN), 0); /* queued, so that each one counts */
        if (uffd_inject(c.pid, c.pidfd, UFFD_KIND_USER, &uffd, &err) < 0)
            fail_msg("%s", err.text);
        close(uffd);
    }
    child_order(&c, 'q');
    assert_int_equal(WEXITSTATUS(child_end(&c)), SIGNALS);
    ram_free(&ram);
}

/* Waits until /proc/PID/stat shows a state. */
static bool gets_into_state(pid_t pid, char state)
{
    uint64_t deadline_ns = clock_now_ns() + 5 * NS_PER_S;
    char path[32], found = 0;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    do {
        FILE *file = fopen(path, "re");

        assert_non_null(file);
        assert_int_equal(fscanf(file, "%*d (%*[^)]) %c", &found), 1);
        (void)fclose(file);
    } while (found != state && clock_now_ns() < deadline_ns);
    return found == state;
}

/* A frozen process can be tracked, and stays frozen. */
static void leaves_a_stopped_process_stopped(void **state)
{
    struct ram ram = ram_new();
    struct child c = child_new(&ram, SPINS);
    siginfo_t info;
    struct err err;
    int uffd;

    assert_int_equal(kill(c.pid, SIGSTOP), 0);
    assert_int_equal(waitid(P_PID, (id_t)c.pid, &info, WSTOPPED), 0);
    if (uffd_inject(c.pid, c.pidfd, UFFD_KIND_USER, &uffd, &err) < 0)
        fail_msg("%s", err.text);
    close(uffd);
    assert_true(gets_into_state(c.pid, 'T'));
    assert_int_equal(kill(c.pid, SIGCONT), 0);
    child_order(&c, 'q');
    assert_int_equal(child_end(&c), 0);
    ram_free(&ram);
}

/* The memory of a dead process must not pass for memory that nobody wrote to. */
static void a_dead_process_is_not_clean(void **state)
{
    for (unsigned way = 0; next_way(&way);) {
        struct ram ram = ram_new();
        struct child c = child_new(&ram, WAITS);
        struct dirty *d = track_child(&ram, &c, way);
        struct run_list list = {0};
        struct err err;
        uint64_t count;
        siginfo_t info;
        int uffd;

        if (way == DIRTY_ASYNC)
            child_order(&c, 'w');
        assert_int_equal(kill(c.pid, SIGKILL), 0);
        assert_int_equal(waitid(P_PID, (id_t)c.pid, &info, WEXITED | WNOWAIT), 0);
        assert_int_equal(dirty_take(d, &list), -ESRCH);
        assert_int_equal(dirty_count(d, PAGES, &count), -ESRCH);
        assert_true(uffd_inject(c.pid, c.pidfd, UFFD_KIND_USER, &uffd, &err) < 0);
        dirty_free(d);
        (void)child_end(&c);
        ram_free(&ram);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reports_all_that_was_written),
        cmocka_unit_test(counts_up_to_a_limit),
        cmocka_unit_test(lets_writes_go_ahead),
        cmocka_unit_test(seldom_written_is_cold),
        cmocka_unit_test(sees_writes_of_the_kernel),
        cmocka_unit_test(refuses_nonsense),
        cmocka_unit_test(finds_a_mapping_in_pieces),
        cmocka_unit_test(tracks_another_process),
        cmocka_unit_test(loses_no_signal),
        cmocka_unit_test(leaves_a_stopped_process_stopped),
        cmocka_unit_test(a_dead_process_is_not_clean),
    };
    struct err err;

    if (dirty_probe_kernel(&ways_here, &err) < 0) {
        printf("1..0 # SKIP %s\n", err.text);
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
