/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <xxhash.h>

#include "map_rig.h"

#define MIB (UINT64_C(1) << 20)

static void marks_whole_blocks(void **state)
{
    static const struct {
        uint64_t offset, n_bytes, first, end; /* marked blocks */
    } cases[] = {
        {0, 1, 0, 1},
        {BLOCK - 1, 2, 0, 2},
        {BLOCK, BLOCK, 1, 2},
        {63 * BLOCK, 2 * BLOCK, 63, 65},
        {32767 * (uint64_t)BLOCK, 2 * BLOCK, 32767, 32769},
        {32768 * (uint64_t)BLOCK + 512, 200 * (uint64_t)MIB, 32768, 32768 + 200 * 256 + 1},
        {(uint64_t)BLOCKS * BLOCK - 1024, 512, BLOCKS - 1, BLOCKS},
        {0, (uint64_t)BLOCKS * BLOCK - 512, 0, BLOCKS},
        {BLOCK, UINT64_MAX, 1, BLOCKS},
        {UINT64_MAX, UINT64_MAX, 0, 0},
        {(uint64_t)BLOCKS * BLOCK - 512, 1, 0, 0},
        {BLOCK, 0, 0, 0},
    };
    struct disk_map *map = open_map(*state);

    for (size_t i = 0; i < N_OF(cases); i++) {
        uint64_t start = cases[i].first * BLOCK, end = cases[i].end * BLOCK, offset, n_bytes;

        if (end > disk_bytes)
            end = disk_bytes;
        assert_int_equal(disk_map_reset(map, id_a, NULL), 0);
        expect(map, id_a, 0, 0);
        disk_map_mark(map, cases[i].offset, cases[i].n_bytes);
        expect(map, id_a, start, end - start);
        assert_false(disk_map_next(map, end, &offset, &n_bytes));
        if (end - start > BLOCK) {
            assert_true(disk_map_next(map, start + 1, &offset, &n_bytes));
            assert_int_equal(offset, start + BLOCK);
            assert_int_equal(n_bytes, end - start - BLOCK);
        }
    }
    disk_map_close(map);
    disk_map_close(NULL);
}

static void small_disks(void **state)
{
    static const uint64_t sizes[] = {512, BLOCK, BLOCK + 512, 128 * MIB, 128 * MIB + 512};

    for (size_t i = 0; i < N_OF(sizes); i++) {
        struct disk_map *map = open_sized(*state, sizes[i]);

        expect(map, none, 0, 0); /* of another size before */
        disk_map_mark(map, 0, UINT64_MAX);
        expect(map, none, 0, sizes[i]);
        disk_map_close(map);
    }
}

static void closed_properly_is_trusted(void **state)
{
    struct disk_map *map = open_map(*state);

    expect(map, none, 0, 0);
    disk_map_close(map);
    map = map_with_mark(*state, 5 * BLOCK, BLOCK);
    disk_map_close(map);
    map = open_map(*state);
    expect(map, id_a, 5 * BLOCK, BLOCK);
    disk_map_close(map);
}

/* A process that marks a block of a copy and is killed. */
static void mark_and_die(const struct rig *rig)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        (void)map_with_mark(rig, 300 * MIB, BLOCK);
        (void)raise(SIGKILL);
        _exit(1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
}

static void end_boot(const struct rig *rig)
{
    uint8_t header[HEADER_BYTES];
    uint64_t checksum;

    read_header(rig, header);
    header[AT_BOOT] ^= 1;
    checksum = XXH3_64bits(header, AT_CHECKSUM);
    for (int i = 0; i < 8; i++)
        header[AT_CHECKSUM + i] = (uint8_t)(checksum >> 8 * i);
    write_header(rig, header);
}

static void killed_process_is_trusted(void **state)
{
    struct disk_map *map;

    mark_and_die(*state);
    for (int i = 0; i < 2; i++) {
        map = open_map(*state);
        expect(map, id_a, 300 * MIB, BLOCK);
        disk_map_close(map);
    }
}

static void crashed_host_is_not_trusted(void **state)
{
    struct disk_map *map;

    mark_and_die(*state);
    end_boot(*state);
    map = open_map(*state);
    expect(map, none, 0, 0);
    disk_map_close(map);

    mark_and_die(*state);
    disk_map_close(open_map(*state));
    end_boot(*state); /* with a proper end */
    map = open_map(*state);
    expect(map, id_a, 300 * MIB, BLOCK);
    disk_map_close(map);
}

/* Opening ends what an earlier proper end meant, before anything is written. */
static void open_is_not_clean(void **state)
{
    uint8_t header[HEADER_BYTES];
    struct disk_map *map = map_with_mark(*state, 0, 1);

    disk_map_close(map);
    read_header(*state, header);
    assert_int_equal(header[AT_CLEAN], 1);
    map = open_map(*state);
    read_header(*state, header);
    assert_int_equal(header[AT_CLEAN], 0);
    disk_map_close(map);
}

static void damaged_is_not_trusted(void **state)
{
    struct rig *rig = *state;
    uint8_t header[HEADER_BYTES];
    struct disk_map *map;

    for (int i = 0; i < HEADER_BYTES; i++) {
        disk_map_close(map_with_mark(rig, 7 * BLOCK, BLOCK));
        read_header(rig, header);
        header[i] ^= 0x10;
        write_header(rig, header);
        map = open_map(rig);
        expect(map, none, 0, 0);
        disk_map_close(map);
    }
    for (int longer = 0; longer < 2; longer++) {
        struct stat st;

        disk_map_close(map_with_mark(rig, 7 * BLOCK, BLOCK));
        assert_int_equal(stat(rig->path, &st), 0);
        assert_int_equal(truncate(rig->path, longer ? st.st_size + 1 : st.st_size - 4096), 0);
        map = open_map(rig);
        expect(map, none, 0, 0);
        disk_map_close(map);
    }
    disk_map_close(map_with_mark(rig, 7 * BLOCK, BLOCK));
    map = open_sized(rig, disk_bytes - 4096);
    expect(map, none, 0, 0);
    disk_map_close(map);
}

static void bad_path_is_named(void **state)
{
    struct disk_map *map;
    struct err err;

    assert_int_equal(disk_map_open("/nowhere/map", disk_bytes, &map, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nowhere/map"));
}

static void durable_drops_what_was_cut(void **state)
{
    struct disk_map *map = map_with_mark(*state, 0, BLOCK);

    disk_map_cut(map, 1); /* nobody follows yet */
    disk_map_durable(map, 1);
    expect(map, id_a, 0, BLOCK);

    disk_map_begin_sync(map, 10, id_b);
    disk_map_mark(map, 2 * BLOCK, BLOCK);
    disk_map_cut(map, 11); /* waits for the copy */
    disk_map_durable(map, 9);
    assert_int_equal(disk_map_dirty_bytes(map), 2 * BLOCK);
    assert_memory_equal(disk_map_sync(map), id_a, DISK_SYNC_ID_BYTES);
    disk_map_durable(map, 10);
    expect(map, id_b, 2 * BLOCK, BLOCK);

    disk_map_cut(map, 12);
    disk_map_mark(map, BLOCK, BLOCK);
    disk_map_cut(map, 13); /* `before` is not empty */
    disk_map_durable(map, 11);
    expect(map, id_b, BLOCK, 2 * BLOCK);
    disk_map_durable(map, 13);
    expect(map, id_b, BLOCK, BLOCK);
    disk_map_durable(map, 14); /* what was not cut is not dropped */
    expect(map, id_b, BLOCK, BLOCK);
    disk_map_cut(map, 15);
    disk_map_durable(map, 16);
    expect(map, id_b, 0, 0);

    disk_map_mark(map, 4 * BLOCK, BLOCK);
    disk_map_cut(map, 17);
    disk_map_abort_sync(map); /* the standby is lost */
    disk_map_durable(map, 17);
    disk_map_cut(map, 18);
    disk_map_durable(map, 18);
    expect(map, id_b, 4 * BLOCK, BLOCK);
    disk_map_close(map);
}

static void aborted_sync_keeps_all(void **state)
{
    struct disk_map *map = map_with_mark(*state, 0, BLOCK);

    disk_map_begin_sync(map, 10, id_b);
    disk_map_mark(map, BLOCK, BLOCK);
    disk_map_abort_sync(map);
    disk_map_durable(map, 10);
    expect(map, id_a, 0, 2 * BLOCK);
    disk_map_close(map);
    map = open_map(*state);
    expect(map, id_a, 0, 2 * BLOCK);
    disk_map_begin_sync(map, 20, id_b); /* `before` has marks of the session before */
    disk_map_mark(map, 2 * BLOCK, BLOCK);
    expect(map, id_a, 0, 3 * BLOCK);
    disk_map_durable(map, 20);
    expect(map, id_b, 2 * BLOCK, BLOCK);
    disk_map_close(map);
}

static void sync_of_a_clean_copy(void **state)
{
    struct disk_map *map = open_map(*state);

    disk_map_begin_sync(map, 10, id_a);
    disk_map_mark(map, BLOCK, BLOCK);
    disk_map_cut(map, 11);
    expect(map, none, BLOCK, BLOCK);
    disk_map_durable(map, 10);
    expect(map, id_a, BLOCK, BLOCK);
    disk_map_close(map);
}

static void reset_forgets_all(void **state)
{
    struct disk_map *map = map_with_mark(*state, 0, BLOCK);

    disk_map_begin_sync(map, 1, id_b);
    disk_map_mark(map, BLOCK, BLOCK);
    assert_int_equal(disk_map_reset(map, none, NULL), 0);
    expect(map, none, 0, 0);
    disk_map_mark(map, BLOCK, BLOCK);
    disk_map_cut(map, 2);
    disk_map_durable(map, 2);
    expect(map, none, BLOCK, BLOCK);
    disk_map_close(map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(marks_whole_blocks, setup, teardown),
        cmocka_unit_test_setup_teardown(small_disks, setup, teardown),
        cmocka_unit_test_setup_teardown(closed_properly_is_trusted, setup, teardown),
        cmocka_unit_test_setup_teardown(killed_process_is_trusted, setup, teardown),
        cmocka_unit_test_setup_teardown(crashed_host_is_not_trusted, setup, teardown),
        cmocka_unit_test_setup_teardown(open_is_not_clean, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_is_not_trusted, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_path_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(durable_drops_what_was_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(aborted_sync_keeps_all, setup, teardown),
        cmocka_unit_test_setup_teardown(sync_of_a_clean_copy, setup, teardown),
        cmocka_unit_test_setup_teardown(reset_forgets_all, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
