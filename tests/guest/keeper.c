/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory keeper: dirties memory at a chosen rate in a pattern that shows, page by page,
 * whether a checkpoint was whole.
 *
 * Every page holds {its index, a generation, words derived from the two}, so that a page can be
 * judged on its own. A sweep goes over the pages in order and raises each from generation g-1 to
 * g; `next` says how far it is. At any instant, therefore, pages below `next` are of generation g
 * and the others of g-1. The sweep's own state lies in a page of its own, which is rewritten with
 * every page of the sweep: a copy of memory that mixes two instants, were it only by one page,
 * shows a page whose generation is not the one that `next` implies. Each page is checked before
 * it is rewritten.
 *
 *   keeper <MiB> [<MiB/s>]      rate 0 (the default): idle
 *
 *   STATUS       -> pages=N generation=N verified=N corrupt=N
 *   VERIFY       -> checks every page now, then the same line
 *   RATE <MiB/s> -> the same line
 *   otherwise    -> ERR <reason>
 *
 * verified and corrupt count checks of pages since the start. A corrupt page is counted each time
 * it is met, and is made good when the sweep rewrites it.
 */
#include "line_server.h"
#include "pattern.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    KEEPER_PORT = 7001,
    PAGE_BYTES = 4096,
    PAGE_WORDS = PAGE_BYTES / 8,
    PAGES_PER_MIB = (1 << 20) / PAGE_BYTES,
    MIB_MAX = 1 << 20,
    SLICE_PAGES = 64, /* between two looks at the clients */
    WAIT_MS = 10,     /* between two slices when the rate allows no more */
    REPORTS_MAX = 20, /* corrupt pages described on the console */
};

struct sweep {
    uint64_t generation; /* of the pages below next */
    uint64_t next;       /* page to rewrite next */
    uint64_t verified;
    uint64_t corrupt;
};

struct keeper {
    uint64_t (*pages)[PAGE_WORDS];
    uint64_t n_pages;
    struct sweep *sweep; /* in a page of its own */
    uint64_t rate_mib_s;
    uint64_t credit_bytes; /* that the rate allows to write now */
    uint64_t last_ns;
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t); /* cannot fail: the clock always exists */
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void page_write(uint64_t *page, uint64_t index, uint64_t generation)
{
    page[0] = index;
    page[1] = generation;
    pattern_write(page + 2, PAGE_WORDS - 2, index, generation);
}

static bool page_is(const uint64_t *page, uint64_t index, uint64_t generation)
{
    return page[0] == index && page[1] == generation &&
           pattern_is(page + 2, PAGE_WORDS - 2, index, generation);
}

static void verify_page(struct keeper *k, uint64_t index)
{
    struct sweep *s = k->sweep;
    const uint64_t *page = k->pages[index];
    uint64_t generation = index < s->next ? s->generation : s->generation - 1;

    s->verified++;
    if (page_is(page, index, generation))
        return;
    s->corrupt++;
    if (s->corrupt <= REPORTS_MAX)
        fprintf(stderr,
                "keeper: page %" PRIu64 " is corrupt: holds index %" PRIu64 " generation %" PRIu64
                ", expected generation %" PRIu64 "\n",
                index, page[0], page[1], generation);
}

static void sweep_page(struct keeper *k)
{
    struct sweep *s = k->sweep;

    if (s->next == k->n_pages) {
        s->next = 0;
        s->generation++;
    }
    verify_page(k, s->next);
    page_write(k->pages[s->next], s->next, s->generation);
    s->next++;
}

/* Does what the rate allows, at most a slice. Returns how long to wait before the next, in ms. */
static int sweep_slice(struct keeper *k)
{
    uint64_t now = now_ns();
    uint64_t bytes_per_ms = (k->rate_mib_s << 20) / 1000;
    uint64_t elapsed_us = (now - k->last_ns) / 1000;
    uint64_t most = bytes_per_ms * WAIT_MS * 4 + PAGE_BYTES;

    if (k->rate_mib_s == 0) {
        k->last_ns = now;
        return -1;
    }
    /* A VM that stood still must not catch up afterwards: 10 s is far above any real wait. */
    if (elapsed_us > 10000000)
        elapsed_us = 0;
    k->last_ns = now;
    k->credit_bytes += bytes_per_ms * elapsed_us / 1000;
    if (k->credit_bytes > most)
        k->credit_bytes = most;

    for (int i = 0; i < SLICE_PAGES && k->credit_bytes >= PAGE_BYTES; i++) {
        k->credit_bytes -= PAGE_BYTES;
        sweep_page(k);
    }
    return k->credit_bytes >= PAGE_BYTES ? 0 : WAIT_MS;
}

/* A decimal number of MiB up to MIB_MAX, or -1. */
static long parse_mib(const char *text)
{
    char *end;
    long n = strtol(text, &end, 10);

    if (*text < '0' || *text > '9' || *end != '\0' || n > MIB_MAX)
        return -1;
    return n;
}

static void answer_line(void *ctx, const char *line, char *answer, size_t size)
{
    struct keeper *k = ctx;

    if (strcmp(line, "VERIFY") == 0) {
        for (uint64_t i = 0; i < k->n_pages; i++)
            verify_page(k, i);
    } else if (strncmp(line, "RATE ", 5) == 0) {
        long rate = parse_mib(line + 5);

        if (rate < 0) {
            snprintf(answer, size, "ERR not a rate in MiB/s");
            return;
        }
        k->rate_mib_s = (uint64_t)rate;
    } else if (strcmp(line, "STATUS") != 0) {
        snprintf(answer, size, "ERR unknown request");
        return;
    }
    snprintf(answer, size,
             "pages=%" PRIu64 " generation=%" PRIu64 " verified=%" PRIu64 " corrupt=%" PRIu64,
             k->n_pages, k->sweep->generation, k->sweep->verified, k->sweep->corrupt);
}

static int keeper_init(struct keeper *k, uint64_t mib)
{
    k->n_pages = mib * PAGES_PER_MIB;

    /* One page more than is swept, in front: the sweep's state. */
    void *mem = mmap(NULL, (k->n_pages + 1) * PAGE_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (mem == MAP_FAILED)
        return -errno;
    k->sweep = mem;
    k->pages = (void *)((char *)mem + PAGE_BYTES);
    for (uint64_t i = 0; i < k->n_pages; i++)
        page_write(k->pages[i], i, 1);
    *k->sweep = (struct sweep){.generation = 1, .next = k->n_pages};
    k->last_ns = now_ns();
    return 0;
}

int main(int argc, char **argv)
{
    static struct line_server server;
    struct keeper keeper = {0};
    long mib = argc > 1 ? parse_mib(argv[1]) : -1;
    long rate = argc > 2 ? parse_mib(argv[2]) : 0;

    if (argc > 3 || mib < 1 || rate < 0) {
        fprintf(stderr, "usage: keeper <MiB> [<MiB/s>]\n");
        return 2;
    }
    keeper.rate_mib_s = (uint64_t)rate;

    int err = keeper_init(&keeper, (uint64_t)mib);

    if (err) {
        fprintf(stderr, "keeper: cannot have %ld MiB: %s\n", mib, strerror(-err));
        return 1;
    }
    err = line_server_open(&server, KEEPER_PORT, answer_line, &keeper);
    if (err) {
        fprintf(stderr, "keeper: cannot listen on port %d: %s\n", KEEPER_PORT, strerror(-err));
        return 1;
    }
    printf("keeper: %ld MiB, listening on port %d\n", mib, KEEPER_PORT);
    fflush(stdout);
    while (!err)
        err = line_server_poll(&server, sweep_slice(&keeper));
    fprintf(stderr, "keeper: poll: %s\n", strerror(-err));
    return 1;
}
