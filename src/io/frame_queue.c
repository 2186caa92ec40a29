/* SPDX-License-Identifier: Apache-2.0 */
#include "io/frame_queue.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"

/* The ring. Records (a header, the frame, padding to 8 bytes) lie one after the other, and each in
 * one piece, so that a frame can be written straight from here: a record that does not fit between
 * the tail and the end of the ring goes to its start, and `wrap` remembers where the records before
 * it end.
 *
 *   not wrapped:  0 .... [head ... tail) ........... size
 *   wrapped:      [0 ... tail) .... [head ... wrap)  size
 *
 * An empty queue starts over at 0, not wrapped, so that a gate under small load keeps using the
 * same, cached memory. */
struct frame_queue {
    uint8_t *ring;
    size_t size;
    size_t head, tail;
    size_t wrap; /* 0 = not wrapped */
    uint64_t n_frames, n_bytes;
};

struct record {
    uint64_t epoch;
    uint32_t n_bytes;
    uint8_t nic;
    uint8_t bytes[];
};

enum { QUEUE_BYTES_MIN = 128 * 1024 };

static size_t record_size(uint32_t n_bytes)
{
    return (offsetof(struct record, bytes) + n_bytes + 7) & ~(size_t)7;
}

static struct record *record_at(const struct frame_queue *q, size_t offset)
{
    return (struct record *)(void *)(q->ring + offset);
}

struct frame_queue *frame_queue_new(uint64_t bytes)
{
    CLEANUP_FREE struct frame_queue *q = calloc(1, sizeof(*q));
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    if (!q || bytes > SIZE_MAX / 2)
        return NULL;
    q->size = (bytes < QUEUE_BYTES_MIN ? QUEUE_BYTES_MIN : bytes) + page - 1;
    q->size -= q->size % page;
    q->ring = mmap(NULL, q->size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (q->ring == MAP_FAILED)
        return NULL;
    return take_ptr(q);
}

/* Where a record of n bytes can go; false when nowhere. */
static bool place(struct frame_queue *q, size_t n, size_t *ret_offset)
{
    if (q->wrap) {
        if (q->head - q->tail < n)
            return false;
    } else if (q->size - q->tail < n) {
        if (q->head < n)
            return false;
        q->wrap = q->tail;
        q->tail = 0;
    }
    *ret_offset = q->tail;
    return true;
}

int frame_queue_push(struct frame_queue *q, uint64_t epoch, uint8_t nic, const uint8_t *bytes,
                     uint32_t n_bytes)
{
    struct record *r;
    size_t offset;

    if (n_bytes < 1 || n_bytes > FRAME_QUEUE_FRAME_MAX)
        return -EMSGSIZE;
    if (!place(q, record_size(n_bytes), &offset))
        return -ENOSPC;
    r = record_at(q, offset);
    r->epoch = epoch;
    r->nic = nic;
    r->n_bytes = n_bytes;
    memcpy(r->bytes, bytes, n_bytes);
    q->tail = offset + record_size(n_bytes);
    q->n_frames++;
    q->n_bytes += n_bytes;
    return 0;
}

int frame_queue_peek(const struct frame_queue *q, struct queued_frame *ret_frame)
{
    const struct record *r = record_at(q, q->head);

    if (!q->n_frames)
        return -ENOENT;
    *ret_frame = (struct queued_frame){
        .epoch = r->epoch, .nic = r->nic, .n_bytes = r->n_bytes, .bytes = r->bytes};
    return 0;
}

void frame_queue_pop(struct frame_queue *q)
{
    uint32_t n_bytes;

    if (!q->n_frames)
        return;
    n_bytes = record_at(q, q->head)->n_bytes;
    q->n_frames--;
    q->n_bytes -= n_bytes;
    q->head += record_size(n_bytes);
    if (q->wrap && q->head == q->wrap)
        q->head = q->wrap = 0;
    if (!q->n_frames)
        q->head = q->tail = q->wrap = 0;
}

uint64_t frame_queue_drop_all(struct frame_queue *q)
{
    uint64_t n = q->n_frames;

    q->head = q->tail = q->wrap = 0;
    q->n_frames = q->n_bytes = 0;
    return n;
}

uint64_t frame_queue_frames(const struct frame_queue *q)
{
    return q->n_frames;
}

uint64_t frame_queue_bytes(const struct frame_queue *q)
{
    return q->n_bytes;
}

void frame_queue_close(struct frame_queue *q)
{
    if (!q)
        return;
    (void)munmap(q->ring, q->size); /* cannot fail: the range is ours */
    free(q);
}
