/* SPDX-License-Identifier: Apache-2.0 */
/* Guards of one real VM that are killed one after the other, each at another point of its work: the
 * next one takes the VM in charge. The guest, hyp-guest.h's boot sector, counts in its memory and
 * on its disk, which each guard serves; it must notice nothing. Prints TAP.
 *
 *     hyp-attach EMULATOR MACHINE [GUARDS [SEED [USER]]]
 *
 * Needs root; works in a network namespace of its own, with a bridge br0. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "guard/body.h"
#include "guard/confine.h"
#include "hyp-guest.h"
#include "hyp-pattern.h"
#include "hyp-samples.h"
#include "hyp-tap.h"
#include "hyp-vm.h"
#include "io/clock.h"
#include "io/vm_process.h"

enum {
    PAGES = 64,
    DISK_BYTES = 16 << 20,
    SPREAD_US = 6000, /* how long after its order a guard is killed at the latest */
};

/* Where a guard is when it is killed. */
enum point {
    IDLE,
    CHECKPOINT_ORDERED, /* and up to SPREAD_US later */
    CHECKPOINT_DONE,
    FLUSHES_ASKED,
    RESUME_ORDERED, /* and up to SPREAD_US later */
    N_POINTS,
};

static const char *const point_names[N_POINTS] = {
    "while the VM runs",  "in a checkpoint", "after a checkpoint",
    "asking for flushes", "in a resume",
};

/* What a guard tells before it is killed. */
struct report {
    bool good;
    char text[300];
    uint64_t attach_ns, stall_ns;
};

static struct host_config config;
static struct vm_spec spec;
static char work_dir[64], shm_dir[64];
static struct vm vm;
static struct body *body;

static void must(int r, const char *what, const struct err *err)
{
    if (r < 0)
        bail_out("%s: %s", what, err->text);
}

/* ---- a guard ---- */

static struct report *report;

static void expect(bool good, const char *what)
{
    if (good || !report->good)
        return;
    report->good = false;
    (void)snprintf(report->text, sizeof(report->text), "%s", what);
}

static void checkpoint(void)
{
    struct err err;

    must(hyp_qemu.checkpoint(vm.hyp, &err), "checkpoint", &err);
    await(&vm, CHECKPOINT, "checkpoint");
}

static void resume(void)
{
    struct err err;

    must(hyp_qemu.resume(vm.hyp, &err), "resume", &err);
    await(&vm, RUNNING, "resume");
}

/* Copies the dirty pages of the stopped VM. */
static void take(uint8_t *to)
{
    static struct run_list list;

    list.n = 0;
    if (hyp_qemu.dirty_take(vm.hyp, &list) < 0)
        bail_out("dirty_take");
    for (size_t i = 0; i < list.n; i++)
        memcpy(to + list.runs[i].first * VM_PAGE_BYTES,
               body->ram + list.runs[i].first * VM_PAGE_BYTES, list.runs[i].count * VM_PAGE_BYTES);
}

static uint32_t counter(void)
{
    uint32_t newest;

    (void)hyp_pattern_memory(body->ram + HYP_BOOT_BASE, PAGES, &newest);
    return newest;
}

/* Until the guest has gone on, which takes its disk. */
static uint64_t await_progress(void)
{
    uint64_t start = clock_now_ns();
    uint32_t before = counter();

    while (counter() < before + 3) {
        if (clock_now_ns() > start + 60 * NS_PER_S)
            bail_out("the guest does not go on");
        run_loop_for(5);
    }
    return clock_now_ns() - start;
}

/* The VM is as it should be, and can be protected anew: its memory agrees with itself and with its
 * disk, and what is tracked is what changes. */
static void verify(void)
{
    CLEANUP_FREE uint8_t *copy = malloc(spec.memory_bytes);
    struct err err;
    uint32_t newest;

    must(hyp_qemu.track(vm.hyp, &err), "track", &err);
    checkpoint();
    take(copy);
    memcpy(copy, body->ram, spec.memory_bytes);
    resume();
    (void)await_progress();
    checkpoint();
    take(copy);
    expect(memcmp(copy, body->ram, spec.memory_bytes) == 0, "dirty pages were missed");
    expect(hyp_pattern_memory(copy + HYP_BOOT_BASE, PAGES, &newest) == 0, "bad pages");
    expect(hyp_pattern_disk(spec.disks[0].path, PAGES, newest) == 0, "bad blocks on the disk");
    resume();
}

/* QEMU listens where it did, and the guard's end is there for it. */
static void check_nic(void)
{
    uint8_t frame[60] = {0x52, 0x54, 0, 0, 0, 1};
    struct netport_stats stats;

    netport_deliver(body->ports[0], frame, sizeof(frame));
    netport_stats_get(body->ports[0], &stats);
    expect(stats.inbound_frames == 1, "the hypervisor takes no frame");
}

/* QEMU is as it should be confined itself. */
static void check_qemu(void)
{
    unsigned long long uid = 0, caps = 1, no_new = 0, filter = 0;
    char path[64], line[256];
    FILE *file;

    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)hyp_qemu.pid(vm.hyp));
    file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file)) {
        (void)sscanf(line, "Uid: %llu", &uid);
        (void)sscanf(line, "CapPrm: %llx", &caps);
        (void)sscanf(line, "NoNewPrivs: %llu", &no_new);
        (void)sscanf(line, "Seccomp: %llu", &filter);
    }
    if (file)
        (void)fclose(file); /* only read */
    expect(uid == body->uid && filter == 2, "QEMU has a wrong user, or no sandbox");
    expect(uid == 0 || (caps == 0 && no_new == 1), "QEMU has or can get privileges");
}

/* The disk's socket has listened all the time: QEMU does not have to try again. */
static void check_kept(const struct timespec *since)
{
    struct stat st;

    if (stat(body->disks->sockets[0], &st) < 0)
        bail_out("%s: %s", body->disks->sockets[0], strerror(errno));
    expect(st.st_mtim.tv_sec < since->tv_sec ||
               (st.st_mtim.tv_sec == since->tv_sec && st.st_mtim.tv_nsec < since->tv_nsec),
           "the disk's socket was made anew");
}

/* Begins something that the guard will not see the end of. */
static void go_to(enum point point)
{
    struct err err;

    if (point == CHECKPOINT_ORDERED)
        must(hyp_qemu.checkpoint(vm.hyp, &err), "checkpoint", &err);
    if (point < CHECKPOINT_DONE)
        return;
    checkpoint();
    if (point == FLUSHES_ASKED)
        must(hyp_qemu.guest_flushes(vm.hyp, &err), "guest_flushes", &err);
    if (point == RESUME_ORDERED)
        must(hyp_qemu.resume(vm.hyp, &err), "resume", &err);
}

static void take_charge(bool first, enum point before)
{
    uint64_t start = clock_now_ns();
    bool running = false;
    struct err err;

    if (first)
        must(body_open(&config, &spec, &hyp_qemu, loop_get(), false, &vm_callbacks, &vm, &body,
                       &err),
             "open", &err);
    else
        must(body_attach(&config, &spec, &hyp_qemu, loop_get(), &vm_callbacks, &vm, &body, &running,
                         &err),
             "attach", &err);
    report->attach_ns = clock_now_ns() - start;
    vm.hyp = body->vm;
    vm.n_disks = spec.n_disks;
    if (first)
        disks_start(body->disks);
    else if (before == IDLE)
        expect(running, "a VM that ran does not run");
    else if (before == CHECKPOINT_DONE || before == FLUSHES_ASKED)
        expect(!running, "a VM that stood still runs");
    if (!running)
        resume();
    report->stall_ns = await_progress();
}

static void __attribute__((noreturn))
be_guard(int fd, bool first, enum point before, enum point point, bool last)
{
    struct report own = {.good = true};
    struct timespec started;
    struct err err;

    report = &own;
    clock_gettime(CLOCK_REALTIME, &started);
    must(confine_early(&err), "confine", &err);
    loop_start();
    take_charge(first, before);
    must(confine_late(&err), "confine", &err);
    check_qemu();
    if (!first)
        check_kept(&started);
    check_nic();
    verify();
    if (last)
        body_close(body);
    if (write(fd, &own, sizeof(own)) != sizeof(own))
        bail_out("report: %s", strerror(errno));
    if (last)
        exit(0);
    go_to(point);
    if (write(fd, "", 1) != 1)
        bail_out("report: %s", strerror(errno));
    for (;;) /* the orders are given: nothing more is done */
        pause();
}

/* ---- the one who kills them ---- */

static void read_all(int fd, void *to, size_t n, const char *what)
{
    ssize_t got = read(fd, to, n);

    if (got != (ssize_t)n)
        bail_out("a guard ended before its %s", what);
}

static pid_t start_guard(bool first, enum point before, enum point point, bool last, int *ret_fd)
{
    int fds[2];
    pid_t pid;

    fflush(stdout);
    if (pipe2(fds, O_CLOEXEC) < 0 || (pid = fork()) < 0)
        bail_out("fork: %s", strerror(errno));
    if (pid == 0) {
        close(fds[0]);
        be_guard(fds[1], first, before, point, last);
    }
    close(fds[1]);
    *ret_fd = fds[0];
    return pid;
}

static void sleep_us(unsigned int us)
{
    const struct timespec pause = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};

    (void)nanosleep(&pause, NULL);
}

static void run_guards(unsigned int n)
{
    static struct hyp_samples attach = {.name = "attach"}, stall = {.name = "stall"};
    enum point before = IDLE;

    for (unsigned int i = 0; i < n; i++) {
        enum point point = i < N_POINTS ? (enum point)i : (enum point)(rand() % N_POINTS);
        bool last = i + 1 == n;
        unsigned int us = (unsigned int)rand() % SPREAD_US;
        CLEANUP_FD int fd = -1;
        struct report told;
        char byte;
        pid_t pid = start_guard(i == 0, before, point, last, &fd);

        read_all(fd, &told, sizeof(told), "report");
        check(told.good, "guard %u, after one killed %s: %s", i, point_names[before],
              told.good ? "all well" : told.text);
        if (i > 0) {
            hyp_samples_add(&attach, told.attach_ns);
            hyp_samples_add(&stall, told.stall_ns);
        }
        if (!last) {
            read_all(fd, &byte, 1, "point");
            if (point == CHECKPOINT_ORDERED || point == RESUME_ORDERED)
                sleep_us(us); /* the moment is what is random here */
            (void)kill(pid, SIGKILL);
        }
        (void)waitpid(pid, NULL, 0);
        before = point;
    }
    hyp_samples_print(&attach);
    hyp_samples_print(&stall);
}

/* One that is killed before its VM has ever run leaves nothing to attach to. */
static void kill_early(void)
{
    bool running;
    struct err err;
    int r = 0;

    for (int i = 0; i < 12 && (r == 0 || r == -ESRCH); i++) {
        pid_t pid;

        fflush(stdout);
        pid = fork();
        if (pid == 0) {
            loop_start();
            must(body_open(&config, &spec, &hyp_qemu, loop_get(), false, &vm_callbacks, &vm, &body,
                           &err),
                 "open", &err);
            for (;;)
                pause();
        }
        sleep_us((unsigned int)i * 15000);
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        /* The child that becomes QEMU may hold the lock for a moment. */
        do
            r = body_attach(&config, &spec, &hyp_qemu, loop_get(), &vm_callbacks, &vm, &body,
                            &running, &err);
        while (r == -EBUSY);
    }
    check(r == -ESRCH, "a VM that has never run is not attached to: %s", err.text);
}

/* ---- the world ---- */

static pid_t main_pid;

static void clean_up(void)
{
    char command[200];
    CLEANUP_FD int pidfd = -1;
    pid_t pid;

    if (getpid() != main_pid)
        return; /* a guard */
    if (vm_process_find(&config, spec.name, &pid, &pidfd) == 0)
        (void)kill(pid, SIGKILL);
    (void)snprintf(command, sizeof(command), "rm -rf '%s' '%s'", work_dir, shm_dir);
    if (system(command) != 0)
        fprintf(stderr, "cannot remove %s and %s\n", work_dir, shm_dir);
}

static void make_world(const char *emulator, const char *machine, const char *user)
{
    CLEANUP_FD int fd = -1;
    struct err err;
    char path[200];

    if (unshare(CLONE_NEWNET) < 0 || system("ip link set lo up && ip link add br0 type bridge"
                                            " && ip link set br0 up") != 0)
        bail_out("a network namespace of our own: %s", strerror(errno));
    strcpy(work_dir, "/tmp/hyp-attach.XXXXXX");
    strcpy(shm_dir, "/dev/shm/hyp-attach.XXXXXX");
    if (!mkdtemp(work_dir) || !mkdtemp(shm_dir))
        bail_out("mkdtemp: %s", strerror(errno));
    main_pid = getpid();
    (void)atexit(clean_up);
    config = (struct host_config){.name = "hosta", .disk_journal_mib = 64};
    (void)snprintf(config.run_dir, sizeof(config.run_dir), "%s", work_dir);
    (void)snprintf(config.state_dir, sizeof(config.state_dir), "%s", work_dir);
    (void)snprintf(config.memory_dir, sizeof(config.memory_dir), "%s", shm_dir);
    (void)snprintf(config.emulator, sizeof(config.emulator), "%s", emulator);
    (void)snprintf(path, sizeof(path), "%s/vms", work_dir);
    if (mkdir(path, 0700) < 0)
        bail_out("%s: %s", path, strerror(errno));
    spec = (struct vm_spec){
        .name = "web", .memory_bytes = 64 << 20, .cpus = 1, .n_nics = 1, .n_disks = 1};
    (void)snprintf(spec.machine, sizeof(spec.machine), "%s", machine);
    memcpy(spec.nics[0].mac, (uint8_t[]){0x52, 0x54, 0, 0, 0, 1}, 6);
    strcpy(spec.nics[0].bridge, "br0");
    spec.disks[0] = (struct vm_disk){.size_bytes = DISK_BYTES, .cache = VM_CACHE_WRITEBACK};
    (void)snprintf(spec.disks[0].path, sizeof(spec.disks[0].path), "%s/disk.img", work_dir);
    fd = open(spec.disks[0].path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, DISK_BYTES) < 0 ||
        write(fd, hyp_boot_guest(PAGES), HYP_BOOT_BYTES) != HYP_BOOT_BYTES)
        bail_out("%s: %s", spec.disks[0].path, strerror(errno));
    (void)snprintf(config.emulator_user, sizeof(config.emulator_user), "%s", user);
    must(hyp_qemu.preflight(&spec, emulator, &err), "preflight", &err);
}

int main(int argc, char **argv)
{
    unsigned int n = argc > 3 ? (unsigned int)atoi(argv[3]) : 12;
    unsigned int seed = argc > 4 ? (unsigned int)atoi(argv[4]) : (unsigned int)time(NULL);

    if (argc < 3 || n < 2) {
        fprintf(stderr, "usage: hyp-attach EMULATOR MACHINE [GUARDS [SEED [USER]]]\n");
        return 2;
    }
    printf("# seed %u\n", seed);
    srand(seed);
    make_world(argv[1], argv[2], argc > 5 ? argv[5] : "64110:64110");
    loop_start();
    run_guards(n);
    kill_early();
    loop_end();
    return tap_end();
}
