/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <stdatomic.h>

#include "map_rig.h"

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
        cmocka_unit_test_setup_teardown(nothing_that_differs_is_unmarked, setup, teardown),
        cmocka_unit_test_setup_teardown(threads_lose_no_mark, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
