/* SPDX-License-Identifier: Apache-2.0 */
/* What it costs to find out which pages were written: bench-scan RUNS MIB [MIB...]. Prints a line of
 * JSON for each run of each configuration; they take turns. bench/scan reads them. */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hyp/qemu/dirty.h"
#include "hyp/qemu/uapi.h"
#include "io/clock.h"

enum {
    WRITTEN = 1000,      /* pages in a run */
    CANDIDATES = 16384,  /* pages that are ever written: memory may be sparse */
    NEAR_PAGES = 16384,  /* ... in so many, or in all there are */
    WARM_UP = 80,        /* runs, until regions are where they belong */
    SETTLE_NS = 200000,  /* as in track.c */
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

struct memory {
    uint8_t *bytes;
    struct dirty *dirty;
    size_t pages[CANDIDATES];
};

static void fail(const char *what)
{
    (void)fprintf(stderr, "bench-scan: %s\n", what);
    exit(1);
}

static int uffd(bool wanted, int flags)
{
    return wanted ? (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags) : -1;
}

static void memory_new(struct memory *m, size_t n_pages, bool near, const struct config *config)
{
    struct dirty_target target = {
        .pid = getpid(),
        .n_bytes = n_pages * VM_PAGE_BYTES,
        .async_fd = uffd(config->ways & DIRTY_ASYNC, UFFD_USER_MODE_ONLY),
        .sync_fd = uffd(config->ways & DIRTY_SYNC, 0),
        .n_threads = config->n_threads,
    };
    int fd = memfd_create("bench-scan", MFD_CLOEXEC);
    struct err err;

    if (fd < 0 || ftruncate(fd, (off_t)target.n_bytes) < 0)
        fail("no memory");
    m->bytes = mmap(NULL, target.n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m->bytes == MAP_FAILED)
        fail("no memory");
    close(fd);
    for (size_t i = 0; i < CANDIDATES; i++) {
        m->pages[i] = (size_t)random() % (near ? NEAR_PAGES : n_pages);
        m->bytes[m->pages[i] * VM_PAGE_BYTES] = 1;
    }
    target.base = (uintptr_t)m->bytes;
    if (dirty_start(&target, &m->dirty, &err) < 0)
        fail(err.text);
}

static void memory_free(struct memory *m, size_t n_pages)
{
    dirty_free(m->dirty);
    (void)munmap(m->bytes, n_pages * VM_PAGE_BYTES);
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

static void run(struct memory *m, bool print, const struct config *config, unsigned mib, bool near)
{
    static struct run_list list;
    double write_ns = write_pages(m), take_ns, settle_ns;
    uint64_t since = clock_now_ns();

    list.n = 0;
    if (dirty_take(m->dirty, &list) < 0)
        fail("dirty_take");
    take_ns = (double)(clock_now_ns() - since);
    since = clock_now_ns();
    dirty_settle(m->dirty, SETTLE_NS);
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
