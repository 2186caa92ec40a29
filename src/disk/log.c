/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/log.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "wire/endian.h"

struct packed_header {
    struct le64 offset;
    struct le64 n_bytes;
    struct le32 n_data;
    uint8_t disk, kind, flags, zero;
};

static_assert(sizeof(struct packed_header) == DISK_HEADER_BYTES, "as documented");

/* A record lies in one chunk; one that is larger than usual gets a chunk of its own size. */
struct disk_chunk {
    struct disk_chunk *next;
    size_t used, room; /* bytes; used is not 0 */
    uint8_t bytes[];
};

enum { CHUNK_BYTES = 256 * 1024 - sizeof(struct disk_chunk) };

static struct disk_chunk *chunk_with_room(struct disk_log *log, size_t n)
{
    size_t room = n > CHUNK_BYTES ? n : CHUNK_BYTES;
    struct disk_chunk *chunk = log->last;

    if (chunk && chunk->room - chunk->used >= n)
        return chunk;
    chunk = FAULTY_ALLOC("disk.log-room", malloc(sizeof(*chunk) + room));
    if (!chunk)
        return NULL;
    chunk->next = NULL;
    chunk->used = 0;
    chunk->room = room;
    if (log->last)
        log->last->next = chunk;
    else
        log->first = chunk;
    log->last = chunk;
    return chunk;
}

int disk_log_add(struct disk_log *log, const struct disk_record *rec, const void *data)
{
    size_t n = DISK_HEADER_BYTES + (size_t)rec->n_data;
    struct disk_chunk *chunk;
    struct packed_header header = {
        .offset = le64_of(rec->offset),
        .n_bytes = le64_of(rec->n_bytes),
        .n_data = le32_of(rec->n_data),
        .disk = rec->disk,
        .kind = rec->kind,
        .flags = rec->flags,
    };

    assert(rec->n_data <= DISK_DATA_MAX);
    chunk = chunk_with_room(log, n);
    if (!chunk)
        return -ENOMEM;
    memcpy(chunk->bytes + chunk->used, &header, DISK_HEADER_BYTES);
    if (rec->n_data)
        memcpy(chunk->bytes + chunk->used + DISK_HEADER_BYTES, data, rec->n_data);
    chunk->used += n;
    log->n_bytes += n;
    log->n_records++;
    return 0;
}

void disk_log_move(struct disk_log *to, struct disk_log *from)
{
    if (to->last)
        to->last->next = from->first;
    else
        to->first = from->first;
    if (from->last)
        to->last = from->last;
    to->n_bytes += from->n_bytes;
    to->n_records += from->n_records;
    to->flushed |= from->flushed;
    *from = (struct disk_log){0};
}

/* Closes the gaps within the chunk. */
static void strip_chunk(struct disk_chunk *chunk, struct disk_log *log)
{
    size_t at = 0, kept = 0;

    while (at < chunk->used) {
        struct packed_header header;
        size_t n;

        memcpy(&header, chunk->bytes + at, DISK_HEADER_BYTES);
        n = DISK_HEADER_BYTES + (size_t)le32_get(header.n_data);
        if (header.kind != DISK_DIGEST && header.kind != DISK_MARK) {
            if (kept != at)
                memmove(chunk->bytes + kept, chunk->bytes + at, n);
            kept += n;
        } else {
            log->n_bytes -= n;
            log->n_records--;
        }
        at += n;
    }
    chunk->used = kept;
}

void disk_log_strip(struct disk_log *log)
{
    struct disk_chunk **link = &log->first;

    log->last = NULL;
    while (*link) {
        struct disk_chunk *chunk = *link;

        strip_chunk(chunk, log);
        if (chunk->used) {
            log->last = chunk;
            link = &chunk->next;
        } else {
            *link = chunk->next;
            free(chunk);
        }
    }
}

bool disk_log_next(const struct disk_log *log, struct disk_cursor *cursor,
                   struct disk_record *ret_rec, const uint8_t **ret_data)
{
    if (!cursor->chunk)
        cursor->chunk = log->first;
    else if (cursor->at == cursor->chunk->used && cursor->chunk->next)
        *cursor = (struct disk_cursor){cursor->chunk->next, 0};
    return cursor->chunk && disk_record_unpack(cursor->chunk->bytes, cursor->chunk->used,
                                               &cursor->at, ret_rec, ret_data) == 0;
}

unsigned disk_log_iov(const struct disk_log *log, const struct disk_chunk **chunk,
                      struct iovec *iov, unsigned n_iov)
{
    const struct disk_chunk *at = *chunk ? *chunk : log->first;
    unsigned n;

    for (n = 0; at && n < n_iov; at = at->next) {
        /* An iovec has no const; who writes to a file does not write here. */
        iov[n++] = (struct iovec){(void *)(uintptr_t)at->bytes, at->used};
    }
    *chunk = at;
    return n;
}

void disk_log_clear(struct disk_log *log)
{
    struct disk_chunk *chunk = log->first;

    while (chunk) {
        struct disk_chunk *next = chunk->next;

        free(chunk);
        chunk = next;
    }
    *log = (struct disk_log){0};
}

/* What of a record depends on its kind alone. */
static bool form_is_valid(const struct disk_record *rec)
{
    switch (rec->kind) {
    case DISK_WRITE:
        return !rec->flags && rec->n_data == rec->n_bytes && rec->n_data <= DISK_DATA_MAX;
    case DISK_ZERO:
        return !(rec->flags & ~DISK_PUNCH) && !rec->n_data;
    case DISK_DIGEST:
        return !rec->flags && rec->n_data == DISK_DIGEST_BYTES;
    case DISK_MARK:
        return !(rec->flags & ~DISK_SYNC) && !rec->n_data && !rec->n_bytes && !rec->disk;
    default:
        return false;
    }
}

int disk_record_check(const struct disk_record *rec, const uint64_t *sizes, uint32_t n_disks,
                      struct err *err)
{
    uint64_t left;

    if (!form_is_valid(rec))
        return err_set(err, -EPROTO, "disk record of kind %u: flags %u, range %" PRIu64 ", data %u",
                       rec->kind, rec->flags, rec->n_bytes, rec->n_data);
    if (rec->kind == DISK_MARK)
        return 0;
    if (rec->disk >= n_disks)
        return err_set(err, -EPROTO, "disk record for disk %u of %u", rec->disk, n_disks);
    left = rec->offset < sizes[rec->disk] ? sizes[rec->disk] - rec->offset : 0;
    if (!rec->n_bytes || rec->n_bytes > left)
        return err_set(err, -EPROTO,
                       "disk record for %" PRIu64 " bytes at %" PRIu64 " of disk %u (%" PRIu64
                       " bytes)",
                       rec->n_bytes, rec->offset, rec->disk, sizes[rec->disk]);
    if (rec->kind == DISK_DIGEST &&
        (rec->offset % DISK_DIGEST_UNIT ||
         rec->n_bytes != (left < DISK_DIGEST_UNIT ? left : DISK_DIGEST_UNIT)))
        return err_set(err, -EPROTO, "digest of %" PRIu64 " bytes at %" PRIu64 " is of no unit",
                       rec->n_bytes, rec->offset);
    return 0;
}

int disk_record_unpack(const uint8_t *bytes, size_t n, size_t *at, struct disk_record *ret_rec,
                       const uint8_t **ret_data)
{
    size_t left = n - *at;
    struct packed_header header;
    uint32_t n_data;

    if (left < DISK_HEADER_BYTES)
        return -EPROTO;
    memcpy(&header, bytes + *at, DISK_HEADER_BYTES);
    n_data = le32_get(header.n_data);
    if (n_data > left - DISK_HEADER_BYTES || header.zero)
        return -EPROTO;
    *ret_rec = (struct disk_record){
        .disk = header.disk,
        .kind = header.kind,
        .flags = header.flags,
        .n_data = n_data,
        .offset = le64_get(header.offset),
        .n_bytes = le64_get(header.n_bytes),
    };
    *ret_data = bytes + *at + DISK_HEADER_BYTES;
    *at += DISK_HEADER_BYTES + n_data;
    return 0;
}
