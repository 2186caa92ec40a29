/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <string.h>

#include "io/stage.h"
#include "unit.h"

enum { CHUNK_BYTES = STAGE_CHUNK_PAGES * STAGE_PAGE_BYTES };

static void size_is_rounded_up(void **state)
{
    struct stage_pool *pool = stage_pool_new(2 * CHUNK_BYTES + 1);

    assert_non_null(pool);
    assert_int_equal(stage_pool_total_chunks(pool), 3);
    assert_int_equal(stage_pool_free_chunks(pool), 3);
    stage_pool_close(pool);
    stage_pool_close(NULL);
}

static void chunks_are_distinct_and_bounded(void **state)
{
    struct stage_pool *pool = stage_pool_new(3 * CHUNK_BYTES);
    struct stage_chunk *got[3];

    for (int i = 0; i < 3; i++) {
        got[i] = stage_pool_get(pool);
        assert_non_null(got[i]);
        assert_null(got[i]->next);
        assert_int_equal(got[i]->n_pages, 0);
        got[i]->n_pages = STAGE_CHUNK_PAGES;
        memset(got[i]->bytes, i + 1, CHUNK_BYTES);
    }
    assert_null(stage_pool_get(pool));
    assert_int_equal(stage_pool_free_chunks(pool), 0);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < CHUNK_BYTES; k += 511)
            assert_int_equal(got[i]->bytes[k], i + 1);
    got[1]->next = got[2];
    assert_false(stage_pool_put(pool, NULL));
    assert_true(stage_pool_put(pool, got[0])); /* one was asked for in vain */
    assert_false(stage_pool_put(pool, got[1]));
    assert_int_equal(stage_pool_free_chunks(pool), 3);
    stage_pool_close(pool);
}

static void last_in_is_first_out(void **state)
{
    struct stage_pool *pool = stage_pool_new(8 * CHUNK_BYTES);
    struct stage_chunk *a = stage_pool_get(pool), *b = stage_pool_get(pool);

    b->n_pages = 7;
    stage_pool_put(pool, a);
    stage_pool_put(pool, b);
    assert_ptr_equal(stage_pool_get(pool), b);
    assert_int_equal(b->n_pages, 0);
    assert_ptr_equal(stage_pool_get(pool), a);
    stage_pool_put(pool, a);
    stage_pool_put(pool, b);
    stage_pool_close(pool);
}

static void *get_and_put(void *arg)
{
    struct stage_pool *pool = arg;

    for (int i = 0; i < 20000; i++) {
        struct stage_chunk *a = stage_pool_get(pool), *b = stage_pool_get(pool);

        if (a)
            a->bytes[i % CHUNK_BYTES]++;
        if (b)
            b->next = a;
        stage_pool_put(pool, b ? b : a);
    }
    return NULL;
}

static void threads_share_it(void **state)
{
    struct stage_pool *pool = stage_pool_new(3 * CHUNK_BYTES);
    pthread_t thread[2];

    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, get_and_put, pool), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_join(thread[i], NULL), 0);
    assert_int_equal(stage_pool_free_chunks(pool), 3);
    stage_pool_close(pool);
}

static void too_large_is_refused(void **state)
{
    assert_null(stage_pool_new(UINT64_MAX));
    assert_null(stage_pool_new(UINT64_C(1) << 60));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(size_is_rounded_up),   cmocka_unit_test(chunks_are_distinct_and_bounded),
        cmocka_unit_test(last_in_is_first_out), cmocka_unit_test(threads_share_it),
        cmocka_unit_test(too_large_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
