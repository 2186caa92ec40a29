/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_PIPELINE_DISK_RIG_H
#define US_TESTS_PIPELINE_DISK_RIG_H

#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>

#include "disk/journal.h"
#include "pipeline_stream.h"

/* The way of the disks' records: journal -> sender -> socket -> receiver -> applier -> images. A
 * model takes the same records at once, and is remembered at each cut: so what the images must hold
 * after each epoch is known. */

enum {
    DISKS = 2,
    BIG_BYTES = 4 << 20,
    SMALL_BYTES = 3 * DISK_DIGEST_UNIT + 512,
    LIMIT_BYTES = 8 << 20, /* of one epoch's records */
    CUTS = 8,              /* that are remembered */
    TERM = 3,
};

static const uint64_t sizes[DISKS] = {BIG_BYTES, SMALL_BYTES};

struct disk_state {
    uint8_t big[BIG_BYTES], small[SMALL_BYTES];
};

struct world {
    struct rig rig;
    char folder[32], paths[DISKS][64], redo_path[64];
    struct image images[DISKS];
    struct redo *redo; /* the applier's, once that is made */
    struct applier *applier;
    struct journal *journal;
    int disk_event, journal_event;
    uint64_t epoch;                 /* last one cut */
    struct disk_state model, *cuts; /* CUTS of them: after epoch n at n % CUTS */
    atomic_uint n_seeding, n_consistent;
    atomic_bool seeding_too_late; /* something was on the images already */
    atomic_ullong consistent_epoch;
    int seeding_result; /* what on_seeding returns */
};

static inline uint8_t *model_of(struct disk_state *s, unsigned disk)
{
    return disk ? s->small : s->big;
}

static inline int on_seeding(void *user)
{
    struct world *w = user;
    uint64_t start, end;

    for (unsigned i = 0; i < DISKS; i++)
        if (image_next_data(&w->images[i], 0, &start, &end) != 0)
            w->seeding_too_late = true;
    w->n_seeding++;
    return w->seeding_result;
}

static inline int on_consistent(void *user, uint64_t epoch, uint64_t term)
{
    struct world *w = user;

    w->n_consistent++;
    w->consistent_epoch = term == TERM ? epoch : 0;
    return 0;
}

static inline int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    const struct applier_callbacks callbacks = {.on_consistent = on_consistent, .user = w};
    struct receiver_disks disks = {
        .sizes = sizes,
        .n_disks = DISKS,
        .limit_bytes = LIMIT_BYTES,
        .on_seeding = on_seeding,
        .user = w,
    };
    uint64_t epoch, term;
    bool created;

    w->cuts = calloc(CUTS, sizeof(*w->cuts));
    strcpy(w->folder, "/tmp/pipeline_disks.XXXXXX");
    assert_non_null(mkdtemp(w->folder));
    for (unsigned i = 0; i < DISKS; i++) {
        struct image_open how = {.path = w->paths[i], .size_bytes = sizes[i], .create = true};

        (void)snprintf(w->paths[i], sizeof(w->paths[i]), "%s/disk%u", w->folder, i);
        assert_int_equal(image_open(&how, &w->images[i], &created, NULL), 0);
    }
    (void)snprintf(w->redo_path, sizeof(w->redo_path), "%s/redo", w->folder);
    assert_int_equal(redo_open(w->redo_path, "vm", &w->redo, NULL), 0);
    assert_int_equal(redo_recover(w->redo, w->images, DISKS, &epoch, &term, NULL), 0);
    w->disk_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->journal_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(
        applier_new(w->images, DISKS, w->redo, LIMIT_BYTES, w->disk_event, &callbacks, &w->applier),
        0);
    assert_int_equal(journal_new(UINT64_C(1) << 30, w->journal_event, &w->journal), 0);
    journal_start(w->journal);
    disks.applier = w->applier;
    rig_new_with(&w->rig, &disks, &rig_options);
    *state = w;
    return 0;
}

static inline int teardown(void **state)
{
    struct world *w = *state;

    rig_free(&w->rig); /* the receiver and the sender end before what they use */
    applier_close(w->applier);
    journal_free(w->journal);
    for (unsigned i = 0; i < DISKS; i++) {
        image_close(&w->images[i]);
        (void)unlink(w->paths[i]);
    }
    (void)unlink(w->redo_path);
    assert_int_equal(rmdir(w->folder), 0);
    close(w->disk_event);
    close(w->journal_event);
    free(w->cuts);
    free(w);
    return 0;
}

/* ---- the guest ---- */

static inline void add(struct world *w, struct disk_record rec, const uint8_t *data)
{
    uint8_t *disk = model_of(&w->model, rec.disk);

    if (rec.kind == DISK_WRITE)
        memcpy(disk + rec.offset, data, rec.n_bytes);
    else if (rec.kind == DISK_ZERO)
        memset(disk + rec.offset, 0, rec.n_bytes);
    assert_int_equal(journal_add(w->journal, &rec, data), 0);
}

/* Noise, or what can be compressed. */
static inline void write_random(struct world *w, uint64_t *seed, uint8_t disk, uint64_t offset,
                                uint32_t n)
{
    static uint8_t data[DISK_DATA_MAX];
    bool noise = rig_random(seed) % 2;

    for (uint32_t i = 0; i < n; i++)
        data[i] = (uint8_t)(noise ? rig_random(seed) : 'a' + *seed % 20);
    add(w,
        (struct disk_record){
            .disk = disk, .kind = DISK_WRITE, .n_data = n, .offset = offset, .n_bytes = n},
        data);
}

static inline void any_record(struct world *w, uint64_t *seed, uint32_t max_bytes)
{
    uint8_t disk = (uint8_t)(rig_random(seed) % DISKS);
    uint64_t offset = rig_random(seed) % sizes[disk], left = sizes[disk] - offset;
    uint32_t n = (uint32_t)(rig_random(seed) % max_bytes) + 1;
    uint64_t chance = rig_random(seed) % 6;

    if (n > left)
        n = (uint32_t)left;
    if (chance > 1)
        write_random(w, seed, disk, offset, n);
    else
        add(w,
            (struct disk_record){.disk = disk,
                                 .kind = DISK_ZERO,
                                 .flags = chance ? DISK_PUNCH : 0,
                                 .offset = offset,
                                 .n_bytes = n},
            NULL);
}

/* ---- epochs ---- */

enum with { BARE = 0, PAGES = 1, STATE = 2, ALL = PAGES | STATE };

/* Cuts, and gives the sender what was cut. */
static inline void feed(struct world *w, uint64_t term, enum with with)
{
    uint64_t epoch = ++w->epoch;
    const struct disk_log *log = journal_cut(w->journal, epoch);

    w->cuts[epoch % CUTS] = w->model;
    assert_int_equal(sender_begin(w->rig.sender, epoch, term, log), 0);
    if (with & PAGES) {
        struct stage_chunk *chunk = stage_pool_get(w->rig.send_pool);

        assert_non_null(chunk);
        chunk->n_pages = 1;
        chunk->number[0] = epoch % RIG_PAGES;
        memset(chunk->bytes, (int)epoch, STAGE_PAGE_BYTES);
        sender_chunk(w->rig.sender, chunk);
    }
    if (with & STATE)
        assert_int_equal(
            sender_state(w->rig.sender, "test:1", (const uint8_t *)&epoch, sizeof(epoch)), 0);
    sender_end(w->rig.sender);
}

static inline void assert_images(struct world *w, struct disk_state *expected)
{
    static uint8_t found[BIG_BYTES];

    for (unsigned disk = 0; disk < DISKS; disk++) {
        const uint8_t *model = model_of(expected, disk);

        assert_int_equal(image_read(&w->images[disk], found, sizes[disk], 0), 0);
        for (uint64_t i = 0; i < sizes[disk]; i++)
            if (found[i] != model[i])
                fail_msg("epoch %llu: byte %llu of disk %u is %u instead of %u",
                         (unsigned long long)w->epoch, (unsigned long long)i, disk, found[i],
                         model[i]);
    }
}

static inline struct applier_report applier_news(struct world *w)
{
    struct applier_report report;

    applier_report_get(w->applier, &report);
    if (report.error)
        fail_msg("%s", report.text);
    return report;
}

/* Waits until the applier has something to tell. */
static inline void wait_applier(struct world *w)
{
    struct pollfd p = {.fd = w->disk_event, .events = POLLIN};
    eventfd_t count;

    assert_int_equal(poll(&p, 1, RIG_WAIT_MS), 1);
    (void)eventfd_read(w->disk_event, &count);
}

/* What the standby's loop does with the epoch that is staged; the images then hold what the guest's
 * disks held when it was cut. */
static inline void apply(struct world *w, uint64_t epoch)
{
    rig_apply(&w->rig);
    while (applier_news(w).applied_epoch < epoch)
        wait_applier(w);
    assert_images(w, &w->cuts[epoch % CUTS]);
}

#endif
