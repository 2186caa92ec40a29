/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_DISK_RIG_H
#define US_TESTS_DISK_RIG_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk/image.h"
#include "disk/log.h"
#include "unit.h"

/* Two disks of a standby in a folder of their own, and epochs whose every byte follows from their
 * number, so that a model of the disks can follow at its own pace. */

enum { RIG_DISKS = 2, RIG_BIG_BYTES = 256 * 1024 + 512, RIG_SMALL_BYTES = 64 * 1024 };

static const uint64_t rig_sizes[RIG_DISKS] = {RIG_BIG_BYTES, RIG_SMALL_BYTES};

/* What the disks hold at the end of an epoch. */
struct rig_model {
    uint64_t epoch;
    uint8_t bytes[RIG_DISKS][RIG_BIG_BYTES];
};

static char rig_folder[] = "/tmp/us-disk-XXXXXX";
static struct image rig_images[RIG_DISKS];

static inline const char *rig_path(const char *name)
{
    static char path[64];

    (void)snprintf(path, sizeof(path), "%s/%s", rig_folder, name);
    return path;
}

static inline uint64_t rig_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static inline int rig_setup(void **state)
{
    return mkdtemp(rig_folder) ? 0 : -1;
}

static inline int rig_teardown(void **state)
{
    return rmdir(rig_folder);
}

static inline void rig_open_images(void)
{
    for (unsigned i = 0; i < RIG_DISKS; i++) {
        const struct image_open how = {
            .path = rig_path(i ? "disk1" : "disk0"), .size_bytes = rig_sizes[i], .create = true};
        bool created;

        assert_int_equal(image_open(&how, &rig_images[i], &created, NULL), 0);
    }
}

static inline void rig_close_images(void)
{
    for (unsigned i = 0; i < RIG_DISKS; i++)
        image_close(&rig_images[i]);
}

/* The teardown of a test: everything that it left in the folder. */
static inline int rig_clean(void **state)
{
    static const char *const names[] = {"disk0", "disk1", "redo", "redo.new"};

    for (size_t i = 0; i < N_OF(names); i++)
        (void)unlink(rig_path(names[i]));
    return 0;
}

/* Every seventh epoch is empty. */
static inline bool rig_is_empty(uint64_t epoch)
{
    return epoch % 7 == 0;
}

static inline void rig_do(const struct disk_record *rec, const uint8_t *data, struct disk_log *log,
                          struct rig_model *model)
{
    if (log)
        assert_int_equal(disk_log_add(log, rec, data), 0);
    if (model && rec->kind == DISK_WRITE)
        memcpy(model->bytes[rec->disk] + rec->offset, data, rec->n_bytes);
    if (model && rec->kind == DISK_ZERO)
        memset(model->bytes[rec->disk] + rec->offset, 0, rec->n_bytes);
}

/* A write, half of them within one block, or a zeroing. The first sector is not touched. */
static inline void rig_random_record(uint64_t *seed, struct disk_record *rec, uint8_t *data)
{
    uint64_t chance = rig_random(seed) % 8, room;

    *rec = (struct disk_record){.kind = DISK_WRITE, .offset = 8192 + rig_random(seed) % 8 * 512};
    rec->n_bytes = 1 + rig_random(seed) % 512;
    if (chance >= 4) {
        rec->disk = chance % RIG_DISKS;
        rec->offset = 512 + rig_random(seed) % (rig_sizes[rec->disk] - 512);
        room = rig_sizes[rec->disk] - rec->offset;
        rec->n_bytes = 1 + rig_random(seed) % 20000;
        if (rec->n_bytes > room)
            rec->n_bytes = room;
    }
    if (chance >= 6) {
        rec->kind = DISK_ZERO;
        rec->flags = rig_random(seed) % 2 ? DISK_PUNCH : 0;
        return;
    }
    rec->n_data = (uint32_t)rec->n_bytes;
    for (uint32_t i = 0; i < rec->n_data; i++)
        data[i] = (uint8_t)rig_random(seed);
}

/* Carries the epoch out on the log and on the model (either may be NULL). Its number is written to
 * the first sector somewhere in between, so that the disks tell where they stand. */
static inline void rig_epoch(uint64_t epoch, struct disk_log *log, struct rig_model *model)
{
    uint64_t seed = epoch * UINT64_C(0x9e3779b97f4a7c15) | 1;
    unsigned n = 1 + (unsigned)(rig_random(&seed) % 24), tag = (unsigned)(rig_random(&seed) % n);
    uint8_t data[20000];

    if (model)
        model->epoch = epoch;
    if (rig_is_empty(epoch))
        return;
    if (log)
        log->flushed = epoch % 4 == 0;
    for (unsigned i = 0; i < n; i++) {
        const struct disk_record at_tag = {
            .kind = DISK_WRITE, .n_data = sizeof(epoch), .n_bytes = sizeof(epoch)};
        struct disk_record rec;

        if (i == tag)
            rig_do(&at_tag, (const uint8_t *)&epoch, log, model);
        rig_random_record(&seed, &rec, data);
        rig_do(&rec, data, log, model);
    }
}

static inline void rig_model_to(struct rig_model *model, uint64_t epoch)
{
    while (model->epoch < epoch)
        rig_epoch(model->epoch + 1, NULL, model);
}

/* The newest epoch with records whose tag the disks carry. */
static inline uint64_t rig_tag(void)
{
    uint64_t epoch;

    assert_int_equal(image_read(&rig_images[0], &epoch, sizeof(epoch), 0), 0);
    return epoch;
}

/* The disks hold what the model does. */
static inline void rig_assert_same(const struct rig_model *model)
{
    uint8_t *bytes = malloc(RIG_BIG_BYTES);

    for (unsigned i = 0; i < RIG_DISKS; i++) {
        assert_int_equal(image_read(&rig_images[i], bytes, rig_sizes[i], 0), 0);
        if (memcmp(bytes, model->bytes[i], rig_sizes[i]) != 0)
            fail_msg("disk %u does not stand at the end of epoch %llu", i,
                     (unsigned long long)model->epoch);
    }
    free(bytes);
}

/* The disks stand at the end of that epoch. */
static inline void rig_assert_at(uint64_t epoch)
{
    struct rig_model *model = calloc(1, sizeof(*model));

    rig_model_to(model, epoch);
    rig_assert_same(model);
    free(model);
}

#endif
