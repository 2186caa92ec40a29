/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "unit.h"
#include "wire/pages.h"

static uint64_t seed = 0x853c49e6748fea9b;
static uint8_t body[PAGE_BODY_BYTES], again[PAGE_BODY_BYTES];
static struct page_table table, back;

/* Unpacks from memory of that very length, so that ASan sees each byte too far. */
static int unpack_copy(const uint8_t *bytes, uint32_t n_bytes, uint32_t n)
{
    uint8_t *copy = malloc(n_bytes + !n_bytes);
    int r;

    assert_non_null(copy);
    memcpy(copy, bytes, n_bytes);
    r = page_table_unpack(copy, n_bytes, n, &back, NULL);
    if (r == 0) {
        assert_int_equal(page_table_pack(&back, again), n_bytes);
        assert_memory_equal(again, bytes, n_bytes);
    }
    free(copy);
    return r;
}

static void any_item(struct page_item *item)
{
    static uint8_t data[WIRE_PAGES_PER_MSG][WIRE_PAGE_BYTES];
    static const uint8_t before[WIRE_PAGE_BYTES];
    uint8_t after[WIRE_PAGE_BYTES] = {0}, *out = data[item - table.page];

    item->number = test_random(&seed) >> (12 + test_random(&seed) % 52);
    item->kind = (uint8_t)(test_random(&seed) % WIRE_PAGE_KINDS);
    item->n_bytes = 0;
    item->bytes = out;
    if (item->kind == WIRE_PAGE_WHOLE) {
        item->n_bytes = WIRE_PAGE_BYTES;
    } else if (item->kind == WIRE_PAGE_DUPLICATE) {
        page_distance_put(out, (uint32_t)test_random(&seed) | 1);
        item->n_bytes = PAGE_DISTANCE_BYTES;
    } else if (item->kind == WIRE_PAGE_CHANGES) {
        for (uint64_t n = 1 + test_random(&seed) % 40; n; n--)
            after[test_random(&seed) % WIRE_PAGE_BYTES] = (uint8_t)(test_random(&seed) | 1);
        item->n_bytes = (uint16_t)page_diff(before, after, out);
    }
}

static void test_random_tables(void **state)
{
    for (int round = 0; round < 300; round++) {
        uint32_t n_body;

        table.n = 1 + (uint32_t)(test_random(&seed) % WIRE_PAGES_PER_MSG);
        for (uint32_t i = 0; i < table.n; i++)
            any_item(&table.page[i]);
        n_body = page_table_pack(&table, body);
        assert_in_range(n_body, table.n * WIRE_BODY_MIN, table.n * WIRE_BODY_MAX);
        assert_int_equal(unpack_copy(body, n_body, table.n), 0);
        for (uint32_t i = 0; i < table.n; i++) {
            const struct page_item *a = &table.page[i], *b = &back.page[i];

            assert_int_equal(a->number, b->number);
            assert_int_equal(a->kind, b->kind);
            assert_int_equal(a->n_bytes, b->n_bytes);
        }
        /* Cut, it is refused wherever that happens, and so is one byte more. */
        assert_int_equal(unpack_copy(body, (uint32_t)(test_random(&seed) % n_body), table.n),
                         -EPROTO);
        if (n_body < sizeof(body))
            assert_int_equal(unpack_copy(body, n_body + 1, table.n), -EPROTO);
    }
}

static void test_row_of_pages_is_short(void **state)
{
    table.n = WIRE_PAGES_PER_MSG;
    for (uint32_t i = 0; i < table.n; i++)
        table.page[i] = (struct page_item){.number = 1000000 + i, .kind = WIRE_PAGE_UNCHANGED};
    assert_int_equal(page_table_pack(&table, body), 2 * WIRE_PAGES_PER_MSG + 2);
    for (uint32_t i = 2; i < table.n; i++)
        assert_int_equal(body[i + WIRE_PAGES_PER_MSG + 2], 0);
}

#define CHANGES(...) 3, 0, __VA_ARGS__

static void test_malformed(void **state)
{
    static const struct {
        int expected;
        uint32_t n_bytes;
        uint8_t bytes[32];
    } cases[] = {
        {0, 2, {0, 0}},
        {0, 2, {1, 0x7f}},
        {0, 3, {1, 0x80, 1}},
        {-EPROTO, 0, {0}},    /* nothing */
        {-EPROTO, 1, {0}},    /* no number */
        {-EPROTO, 2, {5, 0}}, /* no such kind */
        {-EPROTO, 2, {255, 0}},
        {-EPROTO, 2, {0, 0x80}},    /* half a number */
        {-EPROTO, 3, {0, 0x80, 0}}, /* a number in more bytes than it takes */
        {-EPROTO, 4, {0, 0xff, 0x80, 0}},
        {0, 9, {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 7}},       /* 2^52 - 1 */
        {-EPROTO, 9, {0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 8}}, /* 2^52 */
        {-EPROTO, 10, {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x87, 1}},
        {0, 6, {2, 0, 1, 0, 0, 0}},
        {-EPROTO, 6, {2, 0, 0, 0, 0, 0}}, /* a duplicate of itself */
        {-EPROTO, 5, {2, 0, 1, 0, 0}},
        {0, 19, {CHANGES(1, 0, 0, 0, 0, 0, 0, 0, 0x80, 'a', 'b')}},
        {-EPROTO, 18, {CHANGES(1, 0, 0, 0, 0, 0, 0, 0, 0x80, 'a', 'b')}}, /* half a word */
        {-EPROTO, 10, {CHANGES(1)}},                                      /* no mask of words */
        {-EPROTO, 9, {CHANGES(1)}},
        {-EPROTO, 10, {CHANGES(0)}}, /* no block */
        {-EPROTO, 11, {CHANGES(1)}}, /* no word of a block */
        {-EPROTO, 28, {CHANGES(3, 0, 0, 0, 0, 0, 0, 0, 1, 0)}},
        {-EPROTO, 20, {4, 0}}, /* less than a page */
    };

    for (size_t i = 0; i < N_OF(cases); i++)
        if (unpack_copy(cases[i].bytes, cases[i].n_bytes, 1) != cases[i].expected)
            fail_msg("case %zu", i);
    assert_int_equal(unpack_copy(body, sizeof(body), WIRE_PAGES_PER_MSG + 1), -EPROTO);
    assert_int_equal(unpack_copy(body, 100, UINT32_MAX), -EPROTO);
}

/* Changes as long as a page would be another form of a whole one. */
static void test_changes_of_everything(void **state)
{
    enum { HEAD = 2, MASKS = 8 + 64, FIT = 502 }; /* words; one more makes it a page */
    uint8_t *words = body + HEAD + 8;

    memset(body, 0xff, sizeof(body));
    memcpy(body, (uint8_t[]){3, 0}, HEAD);
    for (int i = FIT; i < 512; i++)
        words[i % 64] &= (uint8_t) ~(1 << i / 64);
    assert_int_equal(unpack_copy(body, HEAD + MASKS + FIT * 8, 1), 0);
    words[511 % 64] |= (uint8_t)(1 << 511 / 64);
    assert_int_equal(unpack_copy(body, HEAD + MASKS + (FIT + 1) * 8, 1), -EPROTO);
    memset(words, 0xff, 64);
    assert_int_equal(unpack_copy(body, HEAD + MASKS + WIRE_PAGE_BYTES, 1), -EPROTO);
}

static void check_diff(const uint8_t *before, const uint8_t *after)
{
    struct page_item item = {.kind = WIRE_PAGE_CHANGES};
    uint8_t *out = malloc(WIRE_PAGE_BYTES), *page = malloc(WIRE_PAGE_BYTES);
    uint32_t n = page_diff(before, after, out);

    memcpy(page, before, WIRE_PAGE_BYTES);
    item.n_bytes = (uint16_t)n;
    item.bytes = out;
    assert_int_equal(n == 0, memcmp(before, after, WIRE_PAGE_BYTES) == 0);
    assert_true(n <= WIRE_PAGE_BYTES);
    if (n > 0 && n < WIRE_PAGE_BYTES) {
        page_patch(&item, page);
        assert_memory_equal(page, after, WIRE_PAGE_BYTES);
    }
    free(out);
    free(page);
}

static void test_diffs(void **state)
{
    static uint8_t memory[2 * WIRE_PAGE_BYTES + 2];
    uint8_t *before = memory + 1, *after = memory + WIRE_PAGE_BYTES + 2; /* not aligned */
    uint8_t out[WIRE_PAGE_BYTES];

    test_fill(&seed, before, WIRE_PAGE_BYTES);
    for (size_t at = 0; at < WIRE_PAGE_BYTES; at++) { /* each byte alone */
        memcpy(after, before, WIRE_PAGE_BYTES);
        after[at] ^= 0x10;
        assert_int_equal(page_diff(before, after, out), 8 + 1 + 8);
        check_diff(before, after);
    }
    for (uint64_t n = 0; n < 2000; n++) {
        memcpy(after, before, WIRE_PAGE_BYTES);
        for (uint64_t left = n; left; left--)
            after[test_random(&seed) % WIRE_PAGE_BYTES] ^= (uint8_t)test_random(&seed);
        check_diff(before, after);
    }
    test_fill(&seed, after, WIRE_PAGE_BYTES);
    assert_int_equal(page_diff(before, after, out), WIRE_PAGE_BYTES);
    assert_int_equal(page_diff(before, before, out), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_tables), cmocka_unit_test(test_row_of_pages_is_short),
        cmocka_unit_test(test_malformed),     cmocka_unit_test(test_changes_of_everything),
        cmocka_unit_test(test_diffs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
