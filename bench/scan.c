/* SPDX-License-Identifier: Apache-2.0 */
/* What it costs to find out which pages were written: bench-scan RUNS MIB [MIB...]. Prints a line
 * of JSON for each run of each configuration; they take turns. bench/scan reads them. */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hyp/qemu/dirty.h"
#include "hyp/qemu/uffd_inject.h"
#include "io/clock.h"
#include "io/thread.h"

enum {
    WRITTEN = 1000,     /* pages in a run */
    CANDIDATES = 16384, /* pages that are ever written: memory may be sparse */
    NEAR_PAGES = 16384, /* ... in so many, or in all there are */
    WARM_UP = 200,      /* runs, until regions are where they belong, in no hurry */
    SETTLE_NS = 200000, /* as in track.c */
};

static const struct config {
    const char *name;
    unsigned ways, n_threads;
} configs[] = {
    {"plain", DIRTY_ASYNC, 1},
    {"parallel", DIRTY_ASYNC, 0},
    {"both", DIRTY_BOTH, 0},
    {"sync", DIRTY_SYNC, 0},
};

enum { N_CONFIGS = sizeof(configs) / sizeof(configs[0]) };

/* The memory belongs to a process of its own, as a guest's does, which writes when it is told. */
struct memory {
    uint8_t *bytes;
    size_t pages[CANDIDATES];
    struct dirty *dirty;
    pid_t pid;
    int pidfd;
    int order[2], answer[2]; /* pipes */
};

static void __attribute__((noreturn)) fail(const char *what)
{
    (void)fprintf(stderr, "bench-scan: %s\n", what);
    exit(1);
}

/* Writes to pages. Returns what a first write took on average. */
static double write_pages(struct memory *m)
{
    size_t from = (size_t)random() % CANDIDATES;
    uint64_t since = clock_now_ns();

    for (size_t i = 0; i < WRITTEN; i++)
        m->bytes[m->pages[(from + i) % CANDIDATES] * VM_PAGE_BYTES]++;
    return (double)(clock_now_ns() - since) / WRITTEN;
}

static void __attribute__((noreturn)) guest(struct memory *m)
{
    char order;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t i = 0; i < CANDIDATES; i++)
        m->bytes[m->pages[i] * VM_PAGE_BYTES] = 1;
    do {
        double took = write_pages(m);

        if (write(m->answer[1], &took, sizeof(took)) != sizeof(took))
            break;
    } while (read(m->order[0], &order, 1) == 1);
    _exit(0);
}

static double ask_guest(struct memory *m, bool order)
{
    double took;

    if ((order && write(m->order[1], "w", 1) != 1) ||
        read(m->answer[0], &took, sizeof(took)) != sizeof(took))
        fail("the process that writes is gone");
    return took;
}

static void memory_new(struct memory *m, size_t n_pages, bool near, const struct config *config)
{
    struct dirty_target target = {
        .n_bytes = n_pages * VM_PAGE_BYTES,
        .async_fd = -1,
        .sync_fd = -1,
        .n_threads = config->n_threads,
    };
    int fd = memfd_create("bench-scan", MFD_CLOEXEC);
    struct err err;

    if (fd < 0 || ftruncate(fd, (off_t)target.n_bytes) < 0)
        fail("no memory");
    m->bytes = mmap(NULL, target.n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m->bytes == MAP_FAILED || pipe2(m->order, O_CLOEXEC) < 0 || pipe2(m->answer, O_CLOEXEC) < 0)
        fail("no memory, or no pipe");
    close(fd);
    for (size_t i = 0; i < CANDIDATES; i++)
        m->pages[i] = (size_t)random() % (near ? NEAR_PAGES : n_pages);
    m->pid = fork();
    if (m->pid == 0)
        guest(m);
    m->pidfd = (int)syscall(SYS_pidfd_open, m->pid, 0);
    (void)ask_guest(m, false);
    target.pid = m->pid;
    target.base = (uintptr_t)m->bytes; /* forked: the same there */
    if ((config->ways & DIRTY_ASYNC &&
         uffd_inject(m->pid, m->pidfd, UFFD_KIND_USER, &target.async_fd, &err) < 0) ||
        (config->ways & DIRTY_SYNC &&
         uffd_inject(m->pid, m->pidfd, UFFD_KIND_KERNEL, &target.sync_fd, &err) < 0) ||
        dirty_start(&target, &m->dirty, &err) < 0)
        fail(err.text);
}

static void memory_free(struct memory *m, size_t n_pages)
{
    dirty_free(m->dirty);
    (void)munmap(m->bytes, n_pages * VM_PAGE_BYTES);
    (void)kill(m->pid, SIGKILL);
    (void)waitpid(m->pid, NULL, 0);
    close(m->pidfd);
    for (int i = 0; i < 2; i++) {
        close(m->order[i]);
        close(m->answer[i]);
    }
}

static void run(struct memory *m, bool print, const struct config *config, unsigned mib, bool near)
{
    static struct run_list list;
    double write_ns = ask_guest(m, true), take_ns, settle_ns;
    uint64_t since = clock_now_ns();

    list.n = 0;
    if (dirty_take(m->dirty, &list) < 0)
        fail("dirty_take");
    take_ns = (double)(clock_now_ns() - since);
    since = clock_now_ns();
    dirty_settle(m->dirty, print ? SETTLE_NS : NS_PER_S);
    settle_ns = (double)(clock_now_ns() - since);
    if (print)
        printf("{\"mib\": %u, \"config\": \"%s\", \"near\": %s, \"scan_ms\": %.4f,"
               " \"settle_ms\": %.4f, \"write_us\": %.3f}\n",
               mib, config->name, near ? "true" : "false", take_ns / 1e6, settle_ns / 1e6,
               write_ns / 1e3);
}

int main(int argc, char **argv)
{
    static struct memory memory[N_CONFIGS];
    unsigned runs = argc > 2 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
    struct err err;
    unsigned ways;

    (void)thread_raise_priority(); /* as the guard does */
    if (runs == 0)
        fail("usage: bench-scan RUNS MIB [MIB...]");
    if (dirty_probe_kernel(&ways, &err) < 0)
        fail(err.text);
    if (ways != DIRTY_BOTH)
        fail("this kernel tracks in one way only: there is nothing to compare");
    for (int i = 2; i < 2 * argc - 2; i++) { /* each size twice */
        unsigned mib = (unsigned)strtoul(argv[2 + (i - 2) / 2], NULL, 10);
        size_t n_pages = ((size_t)mib << 20) / VM_PAGE_BYTES;
        bool near = i % 2;

        if (mib < 64)
            fail("less than 64 MiB");
        for (unsigned k = 0; k < N_CONFIGS; k++)
            memory_new(&memory[k], n_pages, near, &configs[k]);
        for (unsigned n = 0; n < WARM_UP + runs; n++)
            for (unsigned k = 0; k < N_CONFIGS; k++)
                run(&memory[k], n >= WARM_UP, &configs[k], mib, near);
        for (unsigned k = 0; k < N_CONFIGS; k++)
            memory_free(&memory[k], n_pages);
    }
    return 0;
}
