/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "guard/copy_set.h"

/* The set of pages of an epoch, against a memory that is written while it is copied: whatever is
 * sent must be the memory as it was at the end, each page once. */

enum { PAGES = 4096, POOL_CHUNKS = 10, ROUNDS = 300 };

static struct {
    uint8_t *ram;   /* PAGES; of each page the first and the last word are used */
    uint8_t *dirty; /* of each page */
    uint8_t *sent;  /* the copies that were taken, by page */
    unsigned n_sent[PAGES];
    struct stage_pool *pool;
    struct parallel *parallel;
    struct copy_set set;
    unsigned seed;
} t;

static unsigned dice(unsigned sides)
{
    t.seed = t.seed * 1103515245 + 12345;
    return (t.seed >> 16) % sides;
}

static int open_set(void **state)
{
    t.ram = calloc(PAGES, STAGE_PAGE_BYTES);
    t.sent = calloc(PAGES, STAGE_PAGE_BYTES);
    t.dirty = calloc(PAGES, 1);
    t.pool = stage_pool_new((uint64_t)POOL_CHUNKS * STAGE_CHUNK_PAGES * STAGE_PAGE_BYTES);
    t.seed = 1;
    assert_int_equal(parallel_new(3, &t.parallel), 0);
    return copy_set_init(&t.set, t.pool, t.parallel, t.ram, PAGES);
}

static int close_set(void **state)
{
    copy_set_free(&t.set);
    parallel_free(t.parallel);
    assert_int_equal(stage_pool_free_chunks(t.pool), POOL_CHUNKS);
    stage_pool_close(t.pool);
    free(t.ram);
    free(t.sent);
    free(t.dirty);
    return 0;
}

static void write_page(unsigned page)
{
    uint8_t *at = t.ram + (size_t)page * STAGE_PAGE_BYTES;

    at[0]++;
    at[STAGE_PAGE_BYTES - 1] = (uint8_t)(at[0] ^ page);
    t.dirty[page] = 1;
}

/* The guest's writes: some here and there, some in a row. */
static void write_some(unsigned n)
{
    unsigned row = dice(PAGES - 64);

    for (unsigned i = 0; i < n; i++)
        write_page(i % 3 ? row + i % 64 : dice(PAGES));
}

/* As hyp_ops.dirty_take. */
static void take(void)
{
    for (unsigned page = 0; page < PAGES; page++) {
        if (!t.dirty[page])
            continue;
        assert_int_equal(run_list_add(&t.set.list, (struct page_run){page, 1}), 0);
        t.dirty[page] = 0;
    }
}

/* What the sender does with the chunks. */
static void send_all(void)
{
    struct stage_chunk *chunk;

    while ((chunk = copy_set_take(&t.set))) {
        for (uint32_t i = 0; i < chunk->n_pages; i++) {
            memcpy(t.sent + chunk->number[i] * STAGE_PAGE_BYTES,
                   chunk->bytes + (size_t)i * STAGE_PAGE_BYTES, STAGE_PAGE_BYTES);
            t.n_sent[chunk->number[i]]++;
        }
        chunk->next = NULL;
        stage_pool_put(t.pool, chunk);
    }
}

/* The last pass, with as little staging memory as there is. */
static void last_pass(void)
{
    take();
    while (!copy_set_copy(&t.set, UINT64_MAX)) {
        assert_true(copy_set_full(&t.set));
        copy_set_refresh(&t.set);
        send_all();
    }
    send_all();
}

static void each_page_once_and_as_it_is_last(void **state)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct run_list list = {0};
        uint64_t n = 0;

        memset(t.n_sent, 0, sizeof(t.n_sent));
        for (unsigned pass = dice(4); pass > 0; pass--) {
            write_some(dice(3000));
            take();
            for (unsigned piece = dice(20); piece > 0; piece--) {
                if (copy_set_copy(&t.set, dice(100)) || copy_set_full(&t.set))
                    break;
                write_some(dice(20));
            }
        }
        write_some(dice(4000));
        last_pass();
        for (unsigned page = 0; page < PAGES; page++) {
            assert_in_range(t.n_sent[page], 0, 1);
            n += t.n_sent[page];
        }
        assert_int_equal(copy_set_pages(&t.set), n);
        assert_memory_equal(t.sent, t.ram, (size_t)PAGES * STAGE_PAGE_BYTES);
        copy_set_finish(&t.set, &list);
        assert_int_equal(stage_pool_free_chunks(t.pool), POOL_CHUNKS);
        run_list_free(&list);
    }
}

/* The list survives for the next epoch, the copies do not. */
static void what_is_given_up_is_listed(void **state)
{
    struct run_list list = {0};

    write_page(7);
    write_page(8);
    take();
    assert_true(copy_set_copy(&t.set, 2));
    copy_set_finish(&t.set, &list);
    assert_int_equal(list.n, 1);
    assert_int_equal(list.runs[0].first, 7);
    assert_int_equal(list.runs[0].count, 2);
    assert_int_equal(copy_set_pages(&t.set), 0);
    assert_null(copy_set_take(&t.set));
    assert_true(copy_set_copy(&t.set, UINT64_MAX)); /* nothing */
    write_page(7);
    assert_int_equal(run_list_append(&t.set.list, &list), 0);
    last_pass();
    assert_memory_equal(t.sent, t.ram, (size_t)PAGES * STAGE_PAGE_BYTES);
    run_list_free(&list);
}

/* A run that was copied to its end may grow by what is found next. */
static void a_run_grows(void **state)
{
    write_page(10);
    take();
    assert_true(copy_set_copy(&t.set, UINT64_MAX));
    write_page(11);
    last_pass();
    assert_int_equal(copy_set_pages(&t.set), 2);
    assert_memory_equal(t.sent, t.ram, (size_t)PAGES * STAGE_PAGE_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(each_page_once_and_as_it_is_last, open_set, close_set),
        cmocka_unit_test_setup_teardown(what_is_given_up_is_listed, open_set, close_set),
        cmocka_unit_test_setup_teardown(a_run_grows, open_set, close_set),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
