/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "disk/log.h"
#include "disk/map.h"
#include "unit.h"

#define MIB (UINT64_C(1) << 20)

/* A page of a half covers 128 MiB; the last block is cut off. */
enum { BLOCKS = 3 * 32768 + 100, BLOCK = DISK_BLOCK_BYTES };
static const uint64_t disk_bytes = (uint64_t)BLOCKS * BLOCK - 512;

static const uint8_t id_a[DISK_SYNC_ID_BYTES] = "copy A", id_b[DISK_SYNC_ID_BYTES] = "copy B";
static const uint8_t none[DISK_SYNC_ID_BYTES];

struct rig {
    char folder[64], path[128];
};

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));

    (void)snprintf(rig->folder, sizeof(rig->folder), "/tmp/disk-map-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    (void)snprintf(rig->path, sizeof(rig->path), "%s/map", rig->folder);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;

    (void)unlink(rig->path);
    (void)rmdir(rig->folder);
    free(rig);
    return 0;
}

static struct disk_map *open_sized(const struct rig *rig, uint64_t size_bytes)
{
    struct disk_map *map;
    struct err err = {{0}};

    if (disk_map_open(rig->path, size_bytes, &map, &err))
        fail_msg("%s", err.text);
    return map;
}

static struct disk_map *open_map(const struct rig *rig)
{
    return open_sized(rig, disk_bytes);
}

/* Its copy is the id's, and exactly the range is marked (nothing when n_bytes is 0). */
static void expect(const struct disk_map *map, const uint8_t *id, uint64_t offset, uint64_t n_bytes)
{
    uint64_t got_offset, got_bytes;

    assert_int_equal(disk_map_trusted(map), id != none);
    assert_memory_equal(disk_map_sync(map), id, DISK_SYNC_ID_BYTES);
    assert_int_equal(disk_map_dirty_bytes(map), n_bytes);
    assert_int_equal(disk_map_next(map, 0, &got_offset, &got_bytes), n_bytes != 0);
    if (n_bytes) {
        assert_int_equal(got_offset, offset);
        assert_int_equal(got_bytes, n_bytes);
    }
}

/* The map as a standby's that was just completed, and then marked. */
static struct disk_map *map_with_mark(const struct rig *rig, uint64_t offset, uint64_t n_bytes)
{
    struct disk_map *map = open_map(rig);

    assert_int_equal(disk_map_reset(map, id_a, NULL), 0);
    disk_map_mark(map, offset, n_bytes);
    return map;
}

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

/* As map.c has it. */
enum { AT_CLEAN = 12, AT_BOOT = 40, AT_CHECKSUM = 80, HEADER_BYTES = 88 };

static void read_header(const struct rig *rig, uint8_t *ret_header)
{
    int fd = open(rig->path, O_RDONLY | O_CLOEXEC);

    assert_int_equal(pread(fd, ret_header, HEADER_BYTES, 0), HEADER_BYTES);
    close(fd);
}

static void write_header(const struct rig *rig, const uint8_t *header)
{
    int fd = open(rig->path, O_WRONLY | O_CLOEXEC);

    assert_int_equal(pwrite(fd, header, HEADER_BYTES, 0), HEADER_BYTES);
    close(fd);
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

/* The model: a version for each block of the primary, of the standby's durable copy, and at each
 * cut that may become it. Whatever happens, a block that differs from the standby's is marked. */
enum { EPOCHS = 8 };

struct model {
    struct rig *rig;
    struct disk_map *map;
    unsigned seed;
    uint32_t version, ours[BLOCKS], theirs[BLOCKS];
    uint32_t cut[EPOCHS][BLOCKS]; /* of the epochs durable..epoch, at epoch % EPOCHS */
    uint64_t epoch, durable;
    bool followed, syncing;
    uint64_t sync_epoch;
    uint8_t sync[DISK_SYNC_ID_BYTES], new_sync[DISK_SYNC_ID_BYTES];
};

static uint64_t pick(struct model *m, uint64_t n)
{
    return (uint64_t)rand_r(&m->seed) % n;
}

static void check(const struct model *m)
{
    uint64_t offset = 0, n_bytes, block = 0, marked = 0;

    assert_memory_equal(disk_map_sync(m->map), m->sync, sizeof(m->sync));
    for (uint64_t from = 0; disk_map_next(m->map, from, &offset, &n_bytes);
         from = offset + n_bytes) {
        assert_true(n_bytes > 0 && offset % BLOCK == 0 && offset + n_bytes <= disk_bytes);
        assert_true(from == 0 || offset > from); /* runs do not touch */
        for (; block < offset / BLOCK; block++)
            assert_int_equal(m->ours[block], m->theirs[block]);
        block = (offset + n_bytes + BLOCK - 1) / BLOCK;
        marked += n_bytes;
    }
    for (; block < BLOCKS; block++)
        assert_int_equal(m->ours[block], m->theirs[block]);
    assert_int_equal(marked, disk_map_dirty_bytes(m->map));
}

static void model_write(struct model *m)
{
    static const uint64_t around[] = {0, 64, 32768, 65536, 80000, BLOCKS - 40};
    uint64_t first = around[pick(m, N_OF(around))] + pick(m, 40);
    uint64_t end = first + 1 + (pick(m, 20) ? pick(m, 70) : pick(m, 50000));

    if (end > BLOCKS)
        end = BLOCKS;
    disk_map_mark(m->map, first * BLOCK, (end - first) * BLOCK);
    m->version++;
    for (uint64_t i = first; i < end; i++)
        m->ours[i] = m->version;
}

static void model_cut(struct model *m)
{
    if (m->epoch - m->durable == EPOCHS - 1)
        return;
    m->epoch++;
    memcpy(m->cut[m->epoch % EPOCHS], m->ours, sizeof(m->ours));
    if (!m->followed && !m->syncing && pick(m, 3) == 0) {
        m->syncing = true;
        m->sync_epoch = m->epoch;
        memcpy(m->new_sync, &m->epoch, sizeof(m->epoch));
        disk_map_begin_sync(m->map, m->epoch, m->new_sync);
    } else {
        disk_map_cut(m->map, m->epoch);
    }
}

static void model_durable(struct model *m)
{
    m->durable += pick(m, m->epoch - m->durable + 1);
    disk_map_durable(m->map, m->durable);
    if (m->syncing && m->durable >= m->sync_epoch) {
        m->syncing = false;
        m->followed = true;
        memcpy(m->sync, m->new_sync, sizeof(m->sync));
    }
    if (m->followed)
        memcpy(m->theirs, m->cut[m->durable % EPOCHS], sizeof(m->theirs));
}

static void model_lose_standby(struct model *m)
{
    m->followed = m->syncing = false;
    disk_map_abort_sync(m->map);
}

/* By a proper end, or by what a killed process leaves: the header says that it is open. */
static void model_reopen(struct model *m)
{
    uint8_t header[HEADER_BYTES];
    bool killed = pick(m, 2);

    if (killed)
        read_header(m->rig, header);
    disk_map_close(m->map);
    if (killed)
        write_header(m->rig, header);
    m->map = open_map(m->rig);
    m->followed = m->syncing = false;
}

/* When the guest does not write, nothing stays marked for long. */
static void model_settle(struct model *m)
{
    if (!m->followed)
        return;
    for (int i = 0; i < 2; i++) {
        m->durable = m->epoch;
        disk_map_durable(m->map, m->durable);
        model_cut(m);
    }
    m->durable = m->epoch;
    disk_map_durable(m->map, m->durable);
    memcpy(m->theirs, m->ours, sizeof(m->theirs));
    assert_int_equal(disk_map_dirty_bytes(m->map), 0);
}

static void nothing_that_differs_is_unmarked(void **state)
{
    struct model *m = calloc(1, sizeof(*m));

    m->rig = *state;
    m->seed = 20240607;
    m->map = open_map(m->rig);
    assert_int_equal(disk_map_reset(m->map, id_a, NULL), 0);
    memcpy(m->sync, id_a, sizeof(m->sync));
    for (int i = 0; i < 4000; i++) {
        uint64_t what = pick(m, 200);

        if (what < 100)
            model_write(m);
        else if (what < 150)
            model_cut(m);
        else if (what < 195)
            model_durable(m);
        else if (what < 197)
            model_lose_standby(m);
        else if (what < 199)
            model_settle(m);
        else
            model_reopen(m);
        check(m);
    }
    disk_map_close(m->map);
    free(m);
}

/* Two threads write while the main thread looks; at a barrier they stand still for a cut. */
enum { ROUNDS = 100, WRITES = 40000 };

struct writer {
    struct disk_map *map;
    pthread_barrier_t *barrier;
    atomic_uint *ready;
    unsigned odd; /* they share words, not blocks */
    pthread_t thread;
};

static void *writer_main(void *arg)
{
    struct writer *writer = arg;

    for (unsigned round = 1; round <= ROUNDS; round++) {
        atomic_fetch_add(writer->ready, 1);
        while (atomic_load(writer->ready) < 2 * round) /* a barrier's threads do not go at once */
            ;
        for (int i = 0; i < WRITES; i++) {
            disk_map_mark(writer->map, ((uint64_t)i * 2 + writer->odd) * BLOCK, BLOCK);
        }
        pthread_barrier_wait(writer->barrier);
        pthread_barrier_wait(writer->barrier);
    }
    return NULL;
}

static void threads_lose_no_mark(void **state)
{
    struct disk_map *map = map_with_mark(*state, 0, 1);
    struct writer *writer = calloc(2, sizeof(*writer));
    pthread_barrier_t barrier;
    atomic_uint ready = 0;

    assert_int_equal(pthread_barrier_init(&barrier, NULL, 3), 0);
    disk_map_begin_sync(map, 1, id_b);
    disk_map_durable(map, 1);
    for (unsigned i = 0; i < 2; i++) {
        writer[i] = (struct writer){.map = map, .barrier = &barrier, .ready = &ready, .odd = i};
        assert_int_equal(pthread_create(&writer[i].thread, NULL, writer_main, &writer[i]), 0);
    }
    for (uint64_t epoch = 2; epoch < 2 + ROUNDS; epoch++) {
        disk_map_durable(map, epoch - 1);
        (void)disk_map_dirty_bytes(map);
        pthread_barrier_wait(&barrier);
        expect(map, id_b, 0, 2 * WRITES * (uint64_t)BLOCK);
        disk_map_cut(map, epoch);
        pthread_barrier_wait(&barrier);
    }
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_join(writer[i].thread, NULL), 0);
    disk_map_durable(map, ROUNDS + 1);
    expect(map, id_b, 0, 0);
    disk_map_close(map);
    pthread_barrier_destroy(&barrier);
    free(writer);
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
        cmocka_unit_test_setup_teardown(nothing_that_differs_is_unmarked, setup, teardown),
        cmocka_unit_test_setup_teardown(threads_lose_no_mark, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
