/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <stdlib.h>

#include "disk/log.h"
#include "disk/range_list.h"
#include "unit.h"

enum { BLOCKS = 4096, DISKS = 2 };

static void add(struct range_list *list, uint32_t disk, uint64_t offset, uint64_t n_bytes)
{
    assert_int_equal(range_list_add(list, disk, offset, n_bytes), 0);
}

static void assert_ranges(const struct range_list *list, const struct disk_range *expected,
                          uint32_t n)
{
    assert_int_equal(list->n, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(list->v[i].disk, expected[i].disk);
        assert_int_equal(list->v[i].offset, expected[i].offset);
        assert_int_equal(list->v[i].n_bytes, expected[i].n_bytes);
    }
}

static void keeps_what_is_added(void **state)
{
    struct range_list list = {.n = 0};

    for (uint32_t i = 0; i < 1000; i++)
        add(&list, i % 3, i * 100, i + 1);
    assert_int_equal(list.n, 1000);
    for (uint32_t i = 0; i < 1000; i++) {
        assert_int_equal(list.v[i].disk, i % 3);
        assert_int_equal(list.v[i].offset, i * 100);
        assert_int_equal(list.v[i].n_bytes, i + 1);
    }
    assert_int_equal(range_list_bytes(&list), 1000 * 1001 / 2);
    range_list_free(&list);
    assert_null(list.v);
    add(&list, 0, 1, 2);
    assert_int_equal(list.n, 1);
    range_list_free(&list);
}

static void joins_what_touches(void **state)
{
    static const struct disk_range joined[] = {
        {0, 0, 300}, {0, 301, 9}, {0, 1000, 500}, {1, 300, 1}};
    struct range_list list = {.n = 0};

    range_list_join(&list, 0);
    assert_int_equal(list.n, 0);
    add(&list, 1, 300, 1); /* would touch, on the other disk */
    add(&list, 0, 1000, 500);
    add(&list, 0, 100, 200);
    add(&list, 0, 1100, 10); /* inside */
    add(&list, 0, 301, 9);   /* one byte away */
    add(&list, 0, 0, 100);
    add(&list, 0, 1200, 300); /* to the same end */
    range_list_join(&list, 0);
    assert_ranges(&list, joined, N_OF(joined));
    range_list_free(&list);
}

static void joins_over_gaps(void **state)
{
    const uint64_t last = UINT64_MAX - 10;
    const struct disk_range joined[] = {{0, 0, 310}, {0, 321, 1}, {0, last, 10}};
    struct range_list list = {.n = 0};

    add(&list, 0, 0, 100);
    add(&list, 0, 110, 200);
    add(&list, 0, 321, 1); /* one more than the gap */
    add(&list, 0, last, 10);
    range_list_join(&list, 10);
    assert_ranges(&list, joined, N_OF(joined));
    range_list_free(&list);
}

/* Whatever was in the list is in it still. */
static void coarsens_without_loss(void **state)
{
    static const uint32_t maxima[] = {5000, 1000, 100, 7, DISKS};
    static bool added[DISKS][BLOCKS];
    struct range_list list = {.n = 0};
    uint64_t seed = 3, bytes = 0;

    for (uint32_t i = 0; i < 3000; i++) {
        uint32_t disk, block;

        seed = seed * 6364136223846793005 + 1442695040888963407;
        disk = (uint32_t)(seed >> 60) % DISKS;
        block = (uint32_t)(seed >> 33) % BLOCKS;
        add(&list, disk, (uint64_t)block * DISK_BLOCK_BYTES, DISK_BLOCK_BYTES);
        added[disk][block] = true;
    }
    for (size_t i = 0; i < N_OF(maxima); i++) {
        uint64_t was = bytes;

        range_list_coarsen(&list, maxima[i]);
        assert_true(list.n <= maxima[i]);
        bytes = range_list_bytes(&list);
        assert_true(bytes >= was);
        for (uint32_t block = 0; block < BLOCKS * DISKS; block++) {
            uint64_t at = (uint64_t)(block / DISKS) * DISK_BLOCK_BYTES;
            bool found = false;

            for (uint32_t j = 0; j < list.n && !found; j++)
                found = list.v[j].disk == block % DISKS && list.v[j].offset <= at &&
                        at < list.v[j].offset + list.v[j].n_bytes;
            assert_true(found || !added[block % DISKS][block / DISKS]);
            if (i == 0) /* there was room for all: nothing was added */
                assert_true(!found || added[block % DISKS][block / DISKS]);
        }
    }
    range_list_free(&list);
}

/* As far apart as can be. */
static void coarsens_what_lies_far_apart(void **state)
{
    static const struct disk_range one[] = {{0, 0, UINT64_MAX}};
    struct range_list list = {.n = 0};

    add(&list, 0, UINT64_MAX - 1, 1);
    add(&list, 0, 0, 1);
    range_list_coarsen(&list, 1);
    assert_ranges(&list, one, 1);
    range_list_free(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_what_is_added),
        cmocka_unit_test(joins_what_touches),
        cmocka_unit_test(joins_over_gaps),
        cmocka_unit_test(coarsens_without_loss),
        cmocka_unit_test(coarsens_what_lies_far_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
