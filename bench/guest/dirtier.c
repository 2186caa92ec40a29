/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirties memory at a set pace: over and over, all pages of a ring, each once in a round, in an
 * order that jumps about. When a round takes as long as the time between two checkpoints, each
 * checkpoint finds the whole ring dirty, whatever their phase.
 *
 *   dirtier <MiB>     largest ring
 *
 *   RUN <pages> <pages/s> <bytes> -> ring, pace (0: idle), bytes that change in each page
 *   STATUS                        -> written=N, pages so far
 *   otherwise                     -> ERR <reason>
 *
 * What is written does not compress and differs from what was there. The pace is by the guest's
 * clock, which stands still in pauses; who wants to know the real one looks at N twice.
 */
#include "line_server.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    DIRTIER_PORT = 7005,
    PAGE_BYTES = 4096,
    PAGES_PER_MIB = (1 << 20) / PAGE_BYTES,
    MIB_MAX = 1 << 16,
    SLICE_PAGES = 64, /* between two looks at the clients */
    WAIT_MS = 1,      /* when the pace allows no more */
    STRIDE = 7919,    /* a prime; ring sizes are no multiples of it */
};

struct dirtier {
    uint64_t *mem;
    uint64_t n_pages; /* that there are */
    uint64_t ring;    /* pages in use */
    uint64_t rate;    /* pages a second */
    uint64_t words;   /* written in each page */
    uint64_t at;      /* page to write next */
    uint64_t written;
    uint64_t random;
    uint64_t start_ns, base; /* pace: from then on, and `written` then */
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail: the clock always exists */
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void write_page(struct dirtier *d)
{
    uint64_t *page = d->mem + d->at * (PAGE_BYTES / 8);

    for (uint64_t i = 0; i < d->words; i++) {
        /* xorshift64: Marsaglia, "Xorshift RNGs", 2003 */
        d->random ^= d->random << 13;
        d->random ^= d->random >> 7;
        d->random ^= d->random << 17;
        page[i] = d->random;
    }
    d->at = (d->at + STRIDE) % d->ring;
    d->written++;
}

/* Writes what is due, at most a slice. Returns how long to wait before the next, in ms. */
static int write_slice(struct dirtier *d)
{
    if (d->rate == 0)
        return -1;

    uint64_t due = d->base + (now_ns() - d->start_ns) / 1000 * d->rate / 1000000;
    uint64_t n = due > d->written ? due - d->written : 0;

    for (uint64_t i = 0; i < n && i < SLICE_PAGES; i++)
        write_page(d);
    if (n > d->rate) { /* a second behind: it cannot be kept, and shall not be made up for */
        d->base = d->written;
        d->start_ns = now_ns();
    }
    return n > SLICE_PAGES ? 0 : WAIT_MS;
}

static void answer_line(void *ctx, const char *line, char *answer, size_t size)
{
    struct dirtier *d = ctx;
    uint64_t ring, rate, bytes;

    if (sscanf(line, "RUN %" SCNu64 " %" SCNu64 " %" SCNu64, &ring, &rate, &bytes) == 3) {
        if (ring < 1 || ring > d->n_pages || ring % STRIDE == 0 || rate > UINT32_MAX ||
            bytes < 8 || bytes > PAGE_BYTES) {
            snprintf(answer, size, "ERR out of range");
            return;
        }
        d->ring = ring;
        d->rate = rate;
        d->words = bytes / 8;
        d->at = 0;
        d->base = d->written;
        d->start_ns = now_ns();
    } else if (strcmp(line, "STATUS") != 0) {
        snprintf(answer, size, "ERR unknown request");
        return;
    }
    snprintf(answer, size, "written=%" PRIu64, d->written);
}

int main(int argc, char **argv)
{
    static struct line_server server;
    struct dirtier d = {.random = 88172645463325252, .ring = 1};
    long mib = argc == 2 ? strtol(argv[1], NULL, 10) : 0;

    if (mib < 1 || mib > MIB_MAX) {
        fprintf(stderr, "usage: dirtier <MiB>\n");
        return 2;
    }
    d.n_pages = (uint64_t)mib * PAGES_PER_MIB;
    d.mem = mmap(NULL, d.n_pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (d.mem == MAP_FAILED) {
        fprintf(stderr, "dirtier: cannot have %ld MiB: %s\n", mib, strerror(errno));
        return 1;
    }

    int err = line_server_open(&server, DIRTIER_PORT, answer_line, &d);

    if (err) {
        fprintf(stderr, "dirtier: cannot listen on port %d: %s\n", DIRTIER_PORT, strerror(-err));
        return 1;
    }
    while (!err)
        err = line_server_poll(&server, write_slice(&d));
    fprintf(stderr, "dirtier: poll: %s\n", strerror(-err));
    return 1;
}
