/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "disk/copier.h"
#include "disk/redo.h"
#include "nbd_rig.h"
#include "unit.h"

/* The standby is away for an hour, in which a guest writes: what is copied when it is back is not
 * much more than what differs, however often the guest wrote it. */

#define KIB        UINT64_C(1024)
#define MIB        (1024 * KIB)
#define SIZE_BYTES (1024 * MIB)

enum {
    SECTOR = 512,
    WRITE_MAX = 64 * 1024,
    MINUTES = 60,
    JOURNAL_BYTES = 16 << 20, /* holds a minute's writes */
};

/* What the guest writes: n_min bytes or a multiple of it, to a multiple of the grain; or each write
 * behind the one before, as long as there is room, and then from the start again. */
static const struct habit {
    uint64_t at, room, grain;
    uint32_t n_min, n_max;
    unsigned per_minute;
    bool sequential;
} habits[] = {
    {64 * MIB, 16 * MIB, 4 * KIB, 4 * KIB, WRITE_MAX, 12, true},     /* ext4's journal */
    {0, SIZE_BYTES, 8 * MIB, 4 * KIB, 4 * KIB, 300, false},          /* its inodes and bitmaps */
    {128 * MIB, 32 * MIB, 16 * KIB, 16 * KIB, 16 * KIB, 120, false}, /* a database's pages */
    {192 * MIB, 4 * MIB, SECTOR, SECTOR, 4 * KIB, 60, true},         /* its log */
    {256 * MIB, 256 * MIB, 4 * KIB, 4 * KIB, WRITE_MAX, 12, false},  /* files */
    {512 * MIB, 256 * MIB, SECTOR, SECTOR, WRITE_MAX, 6, false},     /* anything anywhere */
    {768 * MIB, 256 * MIB, SECTOR, SECTOR, SECTOR, 60, false},       /* the map's worst case */
};

struct world {
    struct nbd_rig *rig;
    struct copier *copier;
    struct image replica;
    char replica_path[64];
    uint64_t seed, version;
    uint64_t next[N_OF(habits)]; /* of the sequential ones: where to go on */
    uint8_t *differs;            /* for each sector: it may, since the standby is away */
    uint64_t n_wrote_bytes, n_differing_bytes, n_copied_bytes;
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    struct image_open how = {.path = w->replica_path, .size_bytes = SIZE_BYTES, .create = true};
    bool created;

    w->seed = 20240609;
    w->differs = calloc(SIZE_BYTES / SECTOR, 1);
    w->rig = rig_new(SIZE_BYTES, JOURNAL_BYTES);
    (void)snprintf(w->replica_path, sizeof(w->replica_path), "%s/replica.raw", w->rig->folder);
    assert_int_equal(image_open(&how, &w->replica, &created, NULL), 0);
    assert_int_equal(copier_new(w->rig->server, w->rig->journal, w->rig->journal_event, &w->copier),
                     0);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    void *rig = w->rig;

    journal_stop(w->rig->journal);
    copier_free(w->copier);
    image_close(&w->replica);
    assert_int_equal(unlink(w->replica_path), 0);
    free(w->differs);
    free(w);
    return rig_teardown(&rig);
}

static void guest_write(struct world *w, uint64_t offset, uint32_t n)
{
    static uint8_t data[WRITE_MAX];

    memset(data, (int)(++w->version % 255) + 1, n);
    memcpy(data, &w->version, sizeof(w->version));
    succeeds(nbd_pwrite(w->rig->client[0], data, n, offset, 0));
    w->n_wrote_bytes += n;
    for (uint64_t i = offset / SECTOR; i < (offset + n) / SECTOR; i++) {
        w->n_differing_bytes += w->differs[i] ? 0 : SECTOR;
        w->differs[i] = 1;
    }
}

static void guest_follows(struct world *w, size_t i)
{
    const struct habit *h = &habits[i];
    uint32_t n = h->n_min * (1 + (uint32_t)random_below(&w->seed, h->n_max / h->n_min));
    uint64_t at = random_below(&w->seed, h->room / h->grain) * h->grain;

    if (h->sequential) {
        at = w->next[i] + n <= h->room ? w->next[i] : 0;
        w->next[i] = at + n;
    }
    if (n > h->room - at)
        n = (uint32_t)(h->room - at);
    guest_write(w, h->at + at, n);
}

/* The habits take turns at random. */
static void guest_minute(struct world *w)
{
    unsigned left[N_OF(habits)], sum = 0;

    for (size_t i = 0; i < N_OF(habits); i++)
        sum += left[i] = habits[i].per_minute;
    for (; sum; sum--) {
        uint64_t at = random_below(&w->seed, sum);
        size_t i = 0;

        for (; at >= left[i]; i++)
            at -= left[i];
        left[i]--;
        guest_follows(w, i);
    }
}

/* Carries the open epoch out on the replica. */
static void replay(struct world *w)
{
    const struct disk_log *log = rig_cut(w->rig);
    struct disk_cursor cursor = {0};
    struct disk_record rec;
    const uint8_t *data;

    while (log && disk_log_next(log, &cursor, &rec, &data)) {
        assert_int_equal(redo_apply(&w->replica, &rec, data), 0);
        w->n_copied_bytes += rec.n_data;
    }
}

/* The VM is protected for some epochs; the last one does not reach the standby any more. */
static void be_protected(struct world *w)
{
    static const uint8_t sync[DISK_SYNC_ID_BYTES] = "a full copy";

    disk_map_begin_sync(w->rig->map, w->rig->epoch, sync);
    disk_map_durable(w->rig->map, w->rig->epoch);
    for (int i = 0; i < 4; i++) {
        memset(w->differs, 0, SIZE_BYTES / SECTOR);
        w->n_differing_bytes = 0;
        guest_minute(w);
        disk_map_cut(w->rig->map, w->rig->epoch + 1);
        if (i < 3)
            replay(w);
        else
            (void)rig_cut(w->rig);
        disk_map_durable(w->rig->map, i < 3 ? w->rig->epoch : w->rig->epoch - 1);
    }
    journal_stop(w->rig->journal);
    disk_map_abort_sync(w->rig->map);
}

static void wait_event(const struct world *w)
{
    struct pollfd p = {.fd = w->rig->journal_event, .events = POLLIN};
    eventfd_t count;

    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
    assert_int_equal(eventfd_read(p.fd, &count), 0);
}

/* As guard/resync.c does when both copies' maps are trusted and the standby's has no marks. */
static void resync(struct world *w)
{
    struct copier_order order = {.job = COPIER_COPY};
    struct range_list ranges = {0};
    struct copier_progress progress;
    uint64_t n_bytes;

    for (uint64_t at = 0; disk_map_next(w->rig->map, at, &at, &n_bytes); at += n_bytes)
        assert_int_equal(range_list_add(&ranges, 0, at, n_bytes), 0);
    w->n_copied_bytes = 0;
    journal_start(w->rig->journal);
    order.ranges = ranges.v;
    order.n_ranges = ranges.n;
    assert_int_equal(copier_start(w->copier, &order), 0);
    do {
        wait_event(w);
        copier_progress_get(w->copier, &progress);
        replay(w);
    } while (progress.busy);
    assert_int_equal(progress.error, 0);
    range_list_free(&ranges);
}

/* Wherever one image has data, the other has the same. */
static void expect_same(const struct image *one, const struct image *other)
{
    static uint8_t a[MIB], b[MIB];
    uint64_t start, end;

    for (uint64_t at = 0; image_next_data(one, at, &start, &end) == 1;) {
        uint64_t n = end - start < sizeof(a) ? end - start : sizeof(a);

        assert_int_equal(image_read(one, a, n, start), 0);
        assert_int_equal(image_read(other, b, n, start), 0);
        if (memcmp(a, b, n) != 0)
            fail_msg("the copies differ behind %llu", (unsigned long long)start);
        at = start + n;
    }
}

static void an_hours_writes(void **state)
{
    struct world *w = *state;

    be_protected(w);
    for (int minute = 0; minute < MINUTES; minute++)
        guest_minute(w);
    resync(w);
    expect_same(&w->rig->image, &w->replica);
    expect_same(&w->replica, &w->rig->image);
    print_message("# %llu MiB written, %llu MiB differ, %llu MiB copied\n",
                  (unsigned long long)(w->n_wrote_bytes / MIB),
                  (unsigned long long)(w->n_differing_bytes / MIB),
                  (unsigned long long)(w->n_copied_bytes / MIB));
    assert_true(w->n_wrote_bytes > 2 * w->n_differing_bytes); /* else the next says little */
    assert_true(w->n_copied_bytes <= 2 * w->n_differing_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_hours_writes, setup, teardown),
    };

    return cmocka_run_group_tests_name("disk_resync", tests, NULL, NULL);
}
