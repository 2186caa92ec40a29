/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_FRAME_QUEUE_H
#define US_IO_FRAME_QUEUE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* The memory of the output gate: a bounded first-in-first-out queue of Ethernet frames, each
 * stamped with the epoch and the NIC that it belongs to. One ring of bytes, reserved at creation
 * and touched on first use; the order of pushing is kept across epochs and NICs. Belongs to one
 * thread. */

enum { FRAME_QUEUE_FRAME_MAX = 65535 };

#define FRAME_QUEUE_DEFAULT_BYTES (UINT64_C(64) * 1024 * 1024)

struct frame_queue;

struct queued_frame {
    uint64_t epoch;
    uint8_t nic;
    uint32_t n_bytes;
    const uint8_t *bytes; /* borrowed: valid until the frame is popped or dropped */
};

/* A queue whose frames, with up to 20 bytes each of book-keeping, fill at most `bytes` (at least
 * 128 KiB; rounded up to whole pages). Returns NULL when out of memory. */
struct frame_queue *frame_queue_new(uint64_t bytes);

/* Appends a copy of a frame of 1..FRAME_QUEUE_FRAME_MAX bytes. 0, -ENOSPC when it does not fit (the
 * queue is unchanged), -EMSGSIZE for another length. */
int frame_queue_push(struct frame_queue *q, uint64_t epoch, uint8_t nic, const uint8_t *bytes,
                     uint32_t n_bytes) US_MUST_CHECK;

/* The oldest frame. 0, or -ENOENT when the queue is empty. */
int frame_queue_peek(const struct frame_queue *q, struct queued_frame *ret_frame) US_MUST_CHECK;

/* Drops the oldest frame, if there is one. */
void frame_queue_pop(struct frame_queue *q);

/* Drops every frame; returns how many those were. */
uint64_t frame_queue_drop_all(struct frame_queue *q);

/* Frames in the queue, and the bytes of those frames without the book-keeping. */
uint64_t frame_queue_frames(const struct frame_queue *q);
uint64_t frame_queue_bytes(const struct frame_queue *q);

void frame_queue_close(struct frame_queue *q); /* NULL is allowed */

#endif
