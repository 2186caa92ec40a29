/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "io/clock.h"
#include "random.h"
#include "wire/buf.h"
#include "wire/page_encoder.h"
#include "wire/pages.h"

/* bench-encoder RUNS [TRACE]: ways to encode the dirty pages of epochs, one beside the other: what
 * is left of their bytes, and what it costs. Prints a line of JSON for each way and run. The ways
 * that were not chosen are here only; the one that was is wire/page_encoder.h.
 *
 * TRACE is a recording: for each epoch the number of its pages and the bytes of its device state (8
 * bytes each, of this machine), the pages' numbers (8 bytes each), the pages, the state. The first
 * epoch is all memory, and is only what the others refer to. Without one, epochs are made up: pages
 * of which a few words change, some that do not change, new text, new noise. */

enum { MADE_UP_EPOCHS = 60, MADE_UP_PAGES = 16384, MADE_UP_DIRTY = 600, BLOCK_BYTES = 64 };

struct epoch {
    uint64_t n_pages;
    uint64_t *numbers;
    uint8_t *pages;
    struct epoch *next;
};

enum form {
    PAGE_ALONE, /* each compressed by itself, as in version 2 of the protocol */
    WHOLE,
    XOR,
    BLOCKS, /* the blocks of 64 bytes that changed, found by comparing with a copy */
    HASHES, /* likewise, found by hashes of the blocks: an eighth of the memory */
    WORDS,  /* page_diff() */
    ENCODER /* WORDS, with a cache, duplicates and the epoch's digest */
};

struct way {
    const char *name;
    enum form form;
    enum wire_encoding packing;
    uint64_t cache_mib; /* ENCODER */
};

static const struct way ways[] = {
    {"lz4_each", PAGE_ALONE, WIRE_ENC_LZ4, 0},
    {"whole_lz4", WHOLE, WIRE_ENC_LZ4, 0},
    {"whole_zstd", WHOLE, WIRE_ENC_ZSTD, 0},
    {"xor_lz4", XOR, WIRE_ENC_LZ4, 0},
    {"xor_zstd", XOR, WIRE_ENC_ZSTD, 0},
    {"blocks_lz4", BLOCKS, WIRE_ENC_LZ4, 0},
    {"blocks_zstd", BLOCKS, WIRE_ENC_ZSTD, 0},
    {"hashes_lz4", HASHES, WIRE_ENC_LZ4, 0},
    {"hashes_zstd", HASHES, WIRE_ENC_ZSTD, 0},
    {"words_raw", WORDS, WIRE_ENC_RAW, 0},
    {"words_lz4", WORDS, WIRE_ENC_LZ4, 0},
    {"words_zstd", WORDS, WIRE_ENC_ZSTD, 0},
    {"encoder_4mib", ENCODER, WIRE_ENC_ZSTD, 4},
    {"encoder_16mib", ENCODER, WIRE_ENC_ZSTD, 16},
    {"encoder_64mib", ENCODER, WIRE_ENC_ZSTD, 64},
    {"encoder_64mib_lz4", ENCODER, WIRE_ENC_LZ4, 64},
    {"encoder_64mib_raw", ENCODER, WIRE_ENC_RAW, 64},
};

/* What a way has, and what came of it. */
struct run {
    const struct way *way;
    uint8_t *before; /* all memory, as sent last */
    uint64_t *hashes;
    struct page_encoder *encoder;
    struct epoch_digest *digest;
    struct packer *packer;
    uint64_t out_bytes, form_ns, pack_ns, n_pages;
};

static void *get(size_t n)
{
    void *memory = calloc(n, 1);

    if (!memory) {
        fprintf(stderr, "bench-encoder: out of memory\n");
        exit(1);
    }
    return memory;
}

/* Epochs */

static bool read_epoch(FILE *file, struct epoch *e)
{
    uint64_t head[2];

    if (fread(head, sizeof(head), 1, file) != 1)
        return false;
    e->n_pages = head[0];
    e->numbers = get(e->n_pages * sizeof(*e->numbers) + 1);
    e->pages = get(e->n_pages * WIRE_PAGE_BYTES + 1);
    return fread(e->numbers, sizeof(*e->numbers), e->n_pages, file) == e->n_pages &&
           fread(e->pages, WIRE_PAGE_BYTES, e->n_pages, file) == e->n_pages &&
           fseek(file, (long)head[1], SEEK_CUR) == 0;
}

static void dirty(uint64_t *seed, uint8_t *page)
{
    uint64_t what = test_random(seed) % 20;

    if (what < 2) {
        test_fill(seed, page, WIRE_PAGE_BYTES);
    } else if (what < 5) {
        for (size_t i = 0; i < WIRE_PAGE_BYTES; i++)
            page[i] = (uint8_t) "if (r->a > 17) r->b += 4 * r->a;\n"[(i + what * (i / 90)) % 33];
    } else if (what < 18) { /* else it is as it was */
        for (uint64_t n = 1 + test_random(seed) % 60; n; n--)
            page[test_random(seed) % WIRE_PAGE_BYTES & ~UINT64_C(7)] = (uint8_t)test_random(seed);
    }
}

static void make_up(struct epoch *e, uint8_t *memory, uint64_t *seed, bool all)
{
    e->n_pages = all ? MADE_UP_PAGES : MADE_UP_DIRTY;
    e->numbers = get(e->n_pages * sizeof(*e->numbers));
    e->pages = get(e->n_pages * WIRE_PAGE_BYTES);
    for (uint64_t i = 0; i < e->n_pages; i++) {
        e->numbers[i] = all ? i : (i * 7 + test_random(seed) % 7) % MADE_UP_PAGES;
        if (!all)
            dirty(seed, memory + e->numbers[i] * WIRE_PAGE_BYTES);
        memcpy(e->pages + i * WIRE_PAGE_BYTES, memory + e->numbers[i] * WIRE_PAGE_BYTES,
               WIRE_PAGE_BYTES);
    }
}

/* The first is all memory. */
static struct epoch *epochs(const char *path)
{
    struct epoch *first = NULL, **end = &first;
    uint8_t *memory = get((size_t)MADE_UP_PAGES * WIRE_PAGE_BYTES);
    FILE *file = path ? fopen(path, "re") : NULL;
    uint64_t seed = 0x9e3779b97f4a7c15;

    if (path && !file) {
        fprintf(stderr, "bench-encoder: %s: %s\n", path, strerror(errno));
        exit(1);
    }
    for (unsigned i = 0; path || i <= MADE_UP_EPOCHS; i++) {
        struct epoch *e = get(sizeof(*e));

        if (file && !read_epoch(file, e))
            break;
        if (!file)
            make_up(e, memory, &seed, i == 0);
        *end = e;
        end = &e->next;
    }
    free(memory);
    if (file)
        (void)fclose(file); /* only read */
    return first;
}

/* Forms */

static uint64_t block_hash(const uint8_t *block)
{
    return XXH3_64bits(block, BLOCK_BYTES);
}

/* Which blocks changed, and their bytes. Returns the length; 0: none. */
static uint32_t put_blocks(const struct run *run, uint64_t number, const uint8_t *page,
                           uint8_t *out)
{
    const uint8_t *before = run->before + number * WIRE_PAGE_BYTES;
    const uint64_t *hashes = run->hashes + number * (WIRE_PAGE_BYTES / BLOCK_BYTES);
    uint8_t *at = out + sizeof(uint64_t);
    uint64_t mask = 0;

    for (unsigned i = 0; i < WIRE_PAGE_BYTES / BLOCK_BYTES; i++) {
        const uint8_t *block = page + i * BLOCK_BYTES;

        if (run->way->form == HASHES ? hashes[i] == block_hash(block)
                                     : memcmp(before + i * BLOCK_BYTES, block, BLOCK_BYTES) == 0)
            continue;
        mask |= UINT64_C(1) << i;
        memcpy(at, block, BLOCK_BYTES);
        at += BLOCK_BYTES;
    }
    memcpy(out, &mask, sizeof(mask));
    return mask ? (uint32_t)(at - out) : 0;
}

static void keep(struct run *run, uint64_t number, const uint8_t *page)
{
    memcpy(run->before + number * WIRE_PAGE_BYTES, page, WIRE_PAGE_BYTES);
    if (run->way->form != HASHES)
        return;
    for (unsigned i = 0; i < WIRE_PAGE_BYTES / BLOCK_BYTES; i++)
        run->hashes[number * (WIRE_PAGE_BYTES / BLOCK_BYTES) + i] =
            block_hash(page + i * BLOCK_BYTES);
}

/* The data of a page into out; returns its length. */
static uint32_t put_page(struct run *run, uint64_t number, const uint8_t *page, uint8_t *out)
{
    const uint8_t *before = run->before + number * WIRE_PAGE_BYTES;
    uint32_t n = WIRE_PAGE_BYTES;

    if (wire_all_zero(page, WIRE_PAGE_BYTES))
        return 0;
    if (run->way->form == XOR)
        state_xor(out, before, page, WIRE_PAGE_BYTES);
    else if (run->way->form == BLOCKS || run->way->form == HASHES)
        n = put_blocks(run, number, page, out);
    else if (run->way->form == WORDS)
        n = page_diff(before, page, out);
    if ((run->way->form != XOR && n == WIRE_PAGE_BYTES) || n > WIRE_PAGE_BYTES) {
        memcpy(out, page, WIRE_PAGE_BYTES);
        n = WIRE_PAGE_BYTES;
    }
    return n;
}

/* Kind, number (a byte each; more are the exception), data: as long as the body would be. */
static uint32_t put_body(struct run *run, const uint64_t *numbers, const uint8_t *pages, uint32_t n,
                         uint8_t *body)
{
    uint64_t kinds[WIRE_PAGE_KINDS] = {0};
    uint8_t *at = body + 2 * (size_t)n;

    if (run->way->form == ENCODER)
        return page_encoder_body(run->encoder, numbers, pages, n, true, run->digest, body, kinds);
    memset(body, 0, 2 * (size_t)n);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *page = pages + (size_t)i * WIRE_PAGE_BYTES;

        at += put_page(run, numbers[i], page, at);
        if (run->way->form > WHOLE)
            keep(run, numbers[i], page);
    }
    return (uint32_t)(at - body);
}

/* Runs */

static uint64_t packed_length(struct run *run, const uint8_t *bytes, uint32_t n)
{
    static uint8_t out[PAGE_BODY_BYTES + WIRE_PAGE_BYTES];
    uint32_t length = run->way->packing == WIRE_ENC_RAW || n == 0
                          ? 0
                          : pack(run->packer, run->way->packing, bytes, n, out);

    return length ? length : n;
}

static void run_message(struct run *run, const uint64_t *numbers, const uint8_t *pages, uint32_t n)
{
    static uint8_t body[PAGE_BODY_BYTES + WIRE_PAGE_BYTES];
    uint64_t start = clock_now_ns(), formed;
    uint32_t n_body = 0;

    if (run->way->form != PAGE_ALONE)
        n_body = put_body(run, numbers, pages, n, body);
    formed = clock_now_ns();
    if (run->way->form != PAGE_ALONE)
        run->out_bytes += packed_length(run, body, n_body);
    for (uint32_t i = 0; run->way->form == PAGE_ALONE && i < n; i++)
        run->out_bytes += 16 + packed_length(run, body,
                                             put_page(run, numbers[i],
                                                      pages + (size_t)i * WIRE_PAGE_BYTES, body));
    run->form_ns += formed - start;
    run->pack_ns += clock_now_ns() - formed;
    run->out_bytes += WIRE_HEADER_BYTES + 16;
    run->n_pages += n;
}

static void run_way(const struct way *way, const struct epoch *first)
{
    struct run run = {.way = way, .before = get(first->n_pages * WIRE_PAGE_BYTES)};
    uint64_t number = 0;

    run.hashes = get(first->n_pages * WIRE_PAGE_BYTES / BLOCK_BYTES * sizeof(*run.hashes));
    run.encoder = page_encoder_new(way->cache_mib << 20);
    run.digest = epoch_digest_new();
    run.packer = packer_new();
    if (!run.encoder || !run.digest || !run.packer)
        exit(1);
    /* Nothing is known of memory before its first page is sent: it is as new to all ways. */
    for (const struct epoch *e = first->next; e; e = e->next) {
        page_encoder_begin(run.encoder, ++number, true);
        for (uint64_t at = 0; at < e->n_pages; at += WIRE_PAGES_PER_MSG) {
            uint64_t n = e->n_pages - at;

            run_message(&run, e->numbers + at, e->pages + at * WIRE_PAGE_BYTES,
                        n < WIRE_PAGES_PER_MSG ? (uint32_t)n : (uint32_t)WIRE_PAGES_PER_MSG);
        }
    }
    printf("{\"way\": \"%s\", \"ratio\": %.5f, \"form_ns\": %.1f, \"pack_ns\": %.1f}\n", way->name,
           (double)run.out_bytes / (double)(run.n_pages * WIRE_PAGE_BYTES),
           (double)run.form_ns / (double)run.n_pages, (double)run.pack_ns / (double)run.n_pages);
    free(run.before);
    free(run.hashes);
    page_encoder_free(run.encoder);
    epoch_digest_free(run.digest);
    packer_free(run.packer);
}

/* How fast pages go through that were written with the same bytes, as most of them were. */
static void run_unchanged(void)
{
    enum { N_PAGES = 8192, ROUNDS = 20 };
    static uint8_t body[PAGE_BODY_BYTES];
    struct page_encoder *encoder = page_encoder_new((uint64_t)N_PAGES * WIRE_PAGE_BYTES);
    struct epoch_digest *digest = epoch_digest_new();
    uint8_t *pages = get((size_t)N_PAGES * WIRE_PAGE_BYTES);
    uint64_t *numbers = get(N_PAGES * sizeof(*numbers)), kinds[WIRE_PAGE_KINDS] = {0};
    uint64_t seed = 1, ns = 0;

    if (!encoder || !digest)
        exit(1);
    test_fill(&seed, pages, (size_t)N_PAGES * WIRE_PAGE_BYTES);
    for (uint64_t round = 0; round <= ROUNDS; round++) {
        uint64_t start = clock_now_ns();

        page_encoder_begin(encoder, round + 1, true);
        for (uint64_t at = 0; at < N_PAGES; at += WIRE_PAGES_PER_MSG) {
            for (uint64_t i = 0; i < WIRE_PAGES_PER_MSG; i++)
                numbers[at + i] = at + i;
            (void)page_encoder_body(encoder, numbers + at, pages + at * WIRE_PAGE_BYTES,
                                    WIRE_PAGES_PER_MSG, true, digest, body, kinds);
        }
        ns += round ? clock_now_ns() - start : 0; /* the first one fills the cache */
    }
    printf("{\"way\": \"unchanged\", \"gib_s\": %.2f}\n",
           (double)N_PAGES * ROUNDS * WIRE_PAGE_BYTES / (1 << 30) / ((double)ns / 1e9));
    page_encoder_free(encoder);
    epoch_digest_free(digest);
    free(pages);
    free(numbers);
}

int main(int argc, char **argv)
{
    unsigned runs = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
    const struct epoch *first;

    if (runs == 0 || argc > 3) {
        fprintf(stderr, "usage: bench-encoder RUNS [TRACE]\n");
        return 2;
    }
    first = epochs(argv[2]);
    if (!first || !first->next) {
        fprintf(stderr, "bench-encoder: no epochs\n");
        return 1;
    }
    for (unsigned i = 0; i < runs; i++) {
        for (size_t w = 0; w < sizeof(ways) / sizeof(ways[0]); w++)
            run_way(&ways[w], first);
        run_unchanged();
        (void)fflush(stdout); /* for whoever watches */
    }
    return 0;
}
