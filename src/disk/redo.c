/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include "disk/redo.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxh_x86dispatch.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/durable.h"
#include "wire/buf.h"
#include "wire/layout.h"

enum {
    BLOCK_BYTES = 4096,
    FIRST_EPOCH = 2 * BLOCK_BYTES, /* behind the header slots */
    KEEP_BYTES = 8 * 1024 * 1024,  /* of the file, in a reset: blocks that are there already are
                                      synced faster */
    VERSION = 1,
};

#define SLOT_MAGIC  "undrsrdo"
#define EPOCH_MAGIC "undrsepo"
#define START_MAX   (UINT64_C(1) << 62) /* no sum of it and a file's size overflows */
#define COUNT_MAX   (UINT64_C(1) << 62) /* of sequence and generation: neither ever wraps */

struct slot_form {
    uint8_t magic[8];
    struct le32 version;
    uint8_t zero1[4];
    struct le64 sequence;
    struct le64 generation;
    struct le64 start;
    uint8_t vm[WIRE_NAME_BYTES];
    uint8_t zero2[3984];
    struct le64 checksum;
};
WIRE_FORM(slot_form, BLOCK_BYTES);

struct epoch_form {
    uint8_t magic[8];
    struct le64 generation;
    struct le64 epoch;
    struct le64 term;
    struct le64 n_bytes;
    struct le64 n_records;
    uint8_t flushed;
    uint8_t zero[7];
    XXH128_canonical_t digest;
    struct le64 checksum;
};
WIRE_FORM(epoch_form, 80);

struct header {
    uint64_t sequence, generation, start;
};

struct redo {
    struct image file; /* for its descriptor, path and I/O */
    char vm[WIRE_NAME_BYTES];
    struct header header;
    bool slot_damaged; /* the one that does not count */
    bool recovered;
    uint64_t end;              /* where the next epoch goes */
    uint64_t longest;          /* the file may be that long */
    pthread_mutex_t sync_lock; /* no two syncs at once: only one of them would see an error */
    int sync_error;
};

static uint64_t block_up(uint64_t offset)
{
    return (offset + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
}

/* Headers. */

static uint64_t slot_checksum(const struct slot_form *form)
{
    return XXH3_64bits(form, offsetof(struct slot_form, checksum));
}

static void slot_put(struct slot_form *form, const struct header *header, const char *vm)
{
    *form = (struct slot_form){
        .version = le32_of(VERSION),
        .sequence = le64_of(header->sequence),
        .generation = le64_of(header->generation),
        .start = le64_of(header->start),
    };
    memcpy(form->magic, SLOT_MAGIC, sizeof(form->magic));
    wire_text_put(form->vm, sizeof(form->vm), vm);
    form->checksum = le64_of(slot_checksum(form));
}

/* 1 = a valid header; 0 = it is torn or damaged; -EBADMSG = whole, but not what we write. */
static int slot_get(const struct slot_form *form, unsigned slot, const char *vm,
                    struct header *ret_header, struct err *err)
{
    struct header header = {le64_get(form->sequence), le64_get(form->generation),
                            le64_get(form->start)};
    char name[WIRE_NAME_BYTES];

    if (memcmp(form->magic, SLOT_MAGIC, sizeof(form->magic)) != 0 ||
        le64_get(form->checksum) != slot_checksum(form))
        return 0;
    if (le32_get(form->version) != VERSION)
        return err_set(err, -EBADMSG, "unknown version %u", le32_get(form->version));
    if (!wire_text_get(form->vm, sizeof(form->vm), name) || strcmp(name, vm) != 0)
        return err_set(err, -EBADMSG, "belongs to another VM");
    if (!wire_all_zero(form->zero1, sizeof(form->zero1)) ||
        !wire_all_zero(form->zero2, sizeof(form->zero2)) || header.sequence % 2 != slot ||
        header.start < FIRST_EPOCH || header.start % BLOCK_BYTES || header.start > START_MAX ||
        header.sequence > COUNT_MAX || header.generation > COUNT_MAX)
        return err_set(err, -EBADMSG, "header slot %u makes no sense", slot);
    *ret_header = header;
    return 1;
}

static int read_header(struct redo *redo, struct err *err)
{
    struct slot_form slots[2];
    struct header header;
    unsigned n_valid = 0;
    int r;

    if (redo->longest < sizeof(slots))
        return err_set(err, -EBADMSG, "too short to have a header");
    r = image_read(&redo->file, slots, sizeof(slots), 0);
    if (r < 0)
        return err_sys(err, r, "header");
    for (unsigned i = 0; i < 2; i++) {
        r = slot_get(&slots[i], i, redo->vm, &header, err);
        if (r < 0)
            return r;
        if (r > 0 && (n_valid++ == 0 || header.sequence > redo->header.sequence))
            redo->header = header;
    }
    redo->slot_damaged = n_valid == 1;
    return n_valid ? 0 : err_set(err, -EBADMSG, "both headers are damaged");
}

/* Writes the next header. The generation in memory is the caller's to change: while a trim is on
 * its way here, an append may be reading it. */
static int write_header(struct redo *redo, uint64_t generation, uint64_t start)
{
    struct header header = {redo->header.sequence + 1, generation, start};
    struct slot_form form;
    int r;

    fault_point("redo.reset");
    slot_put(&form, &header, redo->vm);
    r = fault_error("redo.write-header")
            ?: image_write(&redo->file, &form, sizeof(form), header.sequence % 2 * BLOCK_BYTES);
    if (r == 0)
        r = redo_sync(redo);
    if (r < 0)
        return r;
    redo->header.sequence = header.sequence;
    redo->header.start = header.start;
    fault_point("redo.was-reset");
    return 0;
}

/* Opening. */

static int make_file(const char *path, const char *vm, struct err *err)
{
    struct slot_form slots[2];

    for (unsigned i = 0; i < 2; i++)
        slot_put(&slots[i], &(struct header){.sequence = i, .generation = 1, .start = FIRST_EPOCH},
                 vm);
    return durable_replace(path, slots, sizeof(slots), err);
}

static int open_file(struct redo *redo, struct err *err)
{
    struct stat st;

    redo->file.fd = open(redo->file.path, O_RDWR | O_CLOEXEC);
    if (redo->file.fd < 0 && errno == ENOENT) {
        int r = make_file(redo->file.path, redo->vm, err);

        if (r < 0)
            return r;
        redo->file.fd = open(redo->file.path, O_RDWR | O_CLOEXEC);
    }
    if (redo->file.fd < 0 || fstat(redo->file.fd, &st) < 0)
        return err_sys(err, -errno, "%s", redo->file.path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "%s: not a file", redo->file.path);
    if (flock(redo->file.fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK
                   ? err_set(err, -EBUSY, "%s: another process uses it", redo->file.path)
                   : err_sys(err, -errno, "%s: cannot be locked", redo->file.path);
    redo->longest = (uint64_t)st.st_size;
    return 0;
}

int redo_open(const char *path, const char *vm, struct redo **ret_redo, struct err *err)
{
    struct redo *redo = calloc(1, sizeof(*redo));
    int r;

    if (!redo)
        return err_sys(err, -ENOMEM, "%s", path);
    redo->file.fd = -1;
    pthread_mutex_init(&redo->sync_lock, NULL);
    if ((size_t)snprintf(redo->file.path, sizeof(redo->file.path), "%s", path) >=
            sizeof(redo->file.path) ||
        (size_t)snprintf(redo->vm, sizeof(redo->vm), "%s", vm) >= sizeof(redo->vm)) {
        redo_close(redo);
        return err_sys(err, -ENAMETOOLONG, "%.64s...", path);
    }
    r = open_file(redo, err);
    if (r == 0) {
        r = read_header(redo, err);
        if (r < 0)
            err_prefix(err,
                       "%s: not a redo log of %s (it may be removed when the disks are to be "
                       "copied anew)",
                       path, vm);
    }
    if (r < 0) {
        redo_close(redo);
        return r;
    }
    *ret_redo = redo;
    return 0;
}

void redo_close(struct redo *redo)
{
    if (!redo)
        return;
    if (redo->file.fd >= 0)
        close(redo->file.fd);
    pthread_mutex_destroy(&redo->sync_lock);
    free(redo);
}

const char *redo_path(const struct redo *redo)
{
    return redo->file.path;
}

/* Recovery. */

static uint64_t epoch_checksum(const struct epoch_form *form)
{
    return XXH3_64bits(form, offsetof(struct epoch_form, checksum));
}

static uint64_t epoch_end(uint64_t place, uint64_t n_bytes)
{
    return block_up(place + sizeof(struct epoch_form) + n_bytes);
}

/* Reads the epoch at that place. 1 = it is whole, *ret_body is the caller's; 0 = the log's end. */
static int read_epoch(const struct redo *redo, uint64_t place, struct epoch_form *ret_form,
                      uint8_t **ret_body, struct err *err)
{
    CLEANUP_FREE uint8_t *body = NULL;
    XXH128_canonical_t digest;
    uint64_t n, left;
    int r;

    if (place > redo->longest || redo->longest - place < sizeof(*ret_form))
        return 0;
    r = fault_error("redo.read") ?: image_read(&redo->file, ret_form, sizeof(*ret_form), place);
    if (r < 0)
        return err_sys(err, r, "at %" PRIu64, place);
    if (memcmp(ret_form->magic, EPOCH_MAGIC, sizeof(ret_form->magic)) != 0 ||
        le64_get(ret_form->checksum) != epoch_checksum(ret_form) ||
        le64_get(ret_form->generation) < redo->header.generation)
        return 0;
    if (le64_get(ret_form->generation) > redo->header.generation)
        return err_set(err, -EBADMSG, "damaged: the newest header is missing");
    n = le64_get(ret_form->n_bytes);
    left = redo->longest - place - sizeof(*ret_form);
    if (n > left)
        return 0;
    body = FAULTY_ALLOC("redo.read-room", malloc(n + 1));
    if (!body)
        return err_sys(err, -ENOMEM, "%" PRIu64 " bytes of disk records", n);
    r = image_read(&redo->file, body, n, place + sizeof(*ret_form));
    if (r < 0)
        return err_sys(err, r, "at %" PRIu64, place);
    XXH128_canonicalFromHash(&digest, XXH3_128bits(body, n));
    if (memcmp(&digest, &ret_form->digest, sizeof(digest)) != 0)
        return 0;
    *ret_body = take_ptr(body);
    return 1;
}

static int check_body(const struct epoch_form *form, const uint8_t *body, const uint64_t *sizes,
                      uint32_t n_images, struct err *err)
{
    size_t n = le64_get(form->n_bytes);
    uint64_t n_records = 0;

    for (size_t at = 0; at < n; n_records++) {
        struct disk_record rec;
        const uint8_t *data;
        int r = disk_record_unpack(body, n, &at, &rec, &data);

        if (r < 0)
            return err_set(err, -EBADMSG, "a record is not whole");
        if (disk_record_check(&rec, sizes, n_images, err) < 0)
            return -EBADMSG;
    }
    if (n_records != le64_get(form->n_records) || form->flushed > 1 ||
        !wire_all_zero(form->zero, sizeof(form->zero)))
        return err_set(err, -EBADMSG, "the header does not fit the records");
    return 0;
}

int redo_apply(const struct image *images, const struct disk_record *rec, const uint8_t *data)
{
    fault_point("redo.apply");
    switch (rec->kind) {
    case DISK_WRITE:
        return image_write(&images[rec->disk], data, rec->n_bytes, rec->offset);
    case DISK_ZERO:
        return image_zero(&images[rec->disk], rec->offset, rec->n_bytes, rec->flags & DISK_PUNCH);
    default:
        return 0;
    }
}

static int apply_body(const uint8_t *body, size_t n, const struct image *images, struct err *err)
{
    struct disk_record rec;
    const uint8_t *data;

    for (size_t at = 0; at < n && disk_record_unpack(body, n, &at, &rec, &data) == 0;) {
        int r = redo_apply(images, &rec, data);

        if (r < 0)
            return err_sys(err, r, "%s", images[rec.disk].path);
    }
    return 0;
}

/* What a pass through the log has found. */
struct found {
    uint64_t epoch, term, end;
};

/* One pass: the first only checks, the second applies. */
static int pass(const struct redo *redo, const struct image *images, uint32_t n_images, bool apply,
                struct found *ret_found, struct err *err)
{
    struct found found = {.end = redo->header.start};
    uint64_t sizes[UINT8_MAX + 1];
    int r;

    for (uint32_t i = 0; i < n_images; i++)
        sizes[i] = images[i].size_bytes;
    for (;;) {
        CLEANUP_FREE uint8_t *body = NULL;
        struct epoch_form form;
        uint64_t epoch, n_bytes;

        r = read_epoch(redo, found.end, &form, &body, err);
        if (r <= 0)
            break;
        epoch = le64_get(form.epoch);
        n_bytes = le64_get(form.n_bytes);
        if (epoch <= found.epoch)
            return err_set(err, -EBADMSG, "epoch %" PRIu64 " comes after epoch %" PRIu64, epoch,
                           found.epoch);
        r = check_body(&form, body, sizes, n_images, err);
        if (r == 0 && apply)
            r = apply_body(body, n_bytes, images, err);
        if (r < 0) {
            err_prefix(err, "epoch %" PRIu64, epoch);
            return r;
        }
        found = (struct found){epoch, le64_get(form.term), epoch_end(found.end, n_bytes)};
    }
    if (r == 0)
        *ret_found = found;
    return r;
}

/* Nothing of what is torn may be taken for an epoch once others were appended in front of it. */
static int cut_end(struct redo *redo, struct err *err)
{
    if (redo->slot_damaged)
        return err_set(err, -EBADMSG, "damaged: a header and its epochs are missing");
    if (redo->longest <= redo->header.start)
        return 0;
    if (FAULTY("redo.cut", ftruncate(redo->file.fd, (off_t)redo->header.start)) < 0 ||
        fsync(redo->file.fd) < 0)
        return err_sys(err, -errno, "cannot be cut down");
    redo->longest = redo->header.start;
    return 0;
}

static int replay(struct redo *redo, const struct image *images, uint32_t n_images,
                  const struct found *checked, struct err *err)
{
    struct found found;
    int r = redo_sync(redo); /* what a process left that died may be in the page cache only */

    if (r < 0)
        return err_sys(err, r, "sync");
    fault_point("redo.replay");
    r = pass(redo, images, n_images, true, &found, err);
    if (r < 0)
        return r;
    if (found.end != checked->end)
        return err_set(err, -EIO, "read differently the second time");
    for (uint32_t i = 0; i < n_images; i++) {
        r = image_sync(&images[i]);
        if (r < 0)
            return err_sys(err, r, "%s", images[i].path);
    }
    fault_point("redo.replayed");
    redo->end = found.end;
    r = redo_reset(redo);
    return r < 0 ? err_sys(err, r, "starting anew") : 0;
}

int redo_recover(struct redo *redo, const struct image *images, uint32_t n_images,
                 uint64_t *ret_epoch, uint64_t *ret_term, struct err *err)
{
    struct found found;
    int r;

    assert(n_images <= UINT8_MAX + 1);
    r = pass(redo, images, n_images, false, &found, err);
    if (r == 0)
        r = found.epoch ? replay(redo, images, n_images, &found, err) : cut_end(redo, err);
    if (r < 0) {
        err_prefix(err, "%s", redo->file.path);
        return r;
    }
    redo->end = redo->header.start;
    redo->recovered = true;
    *ret_epoch = found.epoch;
    *ret_term = found.term;
    return 0;
}

/* Writing. */

/* Writes the body, and what of its header follows from it. */
static int write_body(struct redo *redo, const struct disk_log *log, struct epoch_form *form)
{
    const struct disk_chunk *chunk = NULL;
    uint64_t at = redo->end + sizeof(*form);
    XXH3_state_t state;
    int r = 0;

    XXH3_128bits_reset(&state);
    do {
        struct iovec iov[16];
        unsigned n = disk_log_iov(log, &chunk, iov, sizeof(iov) / sizeof(iov[0]));

        for (unsigned i = 0; i < n && r == 0; i++) {
            XXH3_128bits_update(&state, iov[i].iov_base, iov[i].iov_len);
            r = image_write(&redo->file, iov[i].iov_base, iov[i].iov_len, at);
            at += iov[i].iov_len;
        }
    } while (chunk && r == 0);
    XXH128_canonicalFromHash(&form->digest, XXH3_128bits_digest(&state));
    form->n_bytes = le64_of(log->n_bytes);
    form->n_records = le64_of(log->n_records);
    form->flushed = log->flushed;
    return r;
}

int redo_append(struct redo *redo, uint64_t epoch, uint64_t term, const struct disk_log *log)
{
    uint64_t end = epoch_end(redo->end, log->n_bytes);
    struct epoch_form form = {.generation = le64_of(redo->header.generation),
                              .epoch = le64_of(epoch),
                              .term = le64_of(term)};
    int r;

    assert(redo->recovered);
    if (end > redo->longest)
        redo->longest = end;
    fault_point("redo.append");
    r = fault_error("redo.write-body") ?: write_body(redo, log, &form);
    if (r < 0)
        return r;
    fault_point("redo.appending");
    memcpy(form.magic, EPOCH_MAGIC, sizeof(form.magic));
    form.checksum = le64_of(epoch_checksum(&form));
    r = fault_error("redo.write-epoch") ?: image_write(&redo->file, &form, sizeof(form), redo->end);
    if (r < 0)
        return r;
    redo->end = end;
    fault_point("redo.appended");
    return 0;
}

uint64_t redo_end(const struct redo *redo)
{
    return redo->end;
}

int redo_sync(struct redo *redo)
{
    int r;

    pthread_mutex_lock(&redo->sync_lock);
    if (redo->sync_error == 0)
        redo->sync_error = fault_error("redo.sync") ?: image_sync(&redo->file);
    r = redo->sync_error;
    if (r == 0)
        fault_point("redo.synced");
    pthread_mutex_unlock(&redo->sync_lock);
    return r;
}

int redo_drop(struct redo *redo, uint64_t place)
{
    static const struct epoch_form none;

    if (place < redo->end)
        redo->end = place;
    return fault_error("redo.drop") ?: image_write(&redo->file, &none, sizeof(none), place);
}

int redo_trim(struct redo *redo, uint64_t place)
{
    uint64_t start = redo->header.start;
    int r;

    if (place == start)
        return 0;
    r = write_header(redo, redo->header.generation, place);
    /* Where holes cannot be made the space comes back with the next reset. */
    if (r == 0)
        (void)fallocate(redo->file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start,
                        (off_t)(place - start));
    return r;
}

int redo_reset(struct redo *redo)
{
    int r;

    if (redo->end == redo->header.start)
        return redo_sync(redo); /* nothing was appended but what was dropped */
    r = write_header(redo, redo->header.generation + 1, FIRST_EPOCH);
    if (r < 0)
        return r;
    redo->header.generation++;
    redo->end = FIRST_EPOCH;
    if (redo->longest > KEEP_BYTES) {
        if (ftruncate(redo->file.fd, KEEP_BYTES) < 0)
            return -errno;
        redo->longest = KEEP_BYTES;
    }
    return 0;
}
