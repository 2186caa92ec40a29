/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_SHAPER_DIRECTION_H
#define US_SHAPER_DIRECTION_H

#include "flip.h"
#include "params.h"

/* One direction of a link: frames are read from one tap, and written to the other when they are
 * due.
 *
 * A frame's way: black hole, loss, duplication, flipped bits; then the wire, one frame after the
 * other at the wire's rate, with a bounded queue before it; then the delay. Frames stay in order
 * whatever the jitter, but for those that `reorder` picks: each of them has a delay of its own, up
 * to REORDER_NS longer, and the others do not wait for it. What is queued lies in a heap by its
 * due time, in a fixed pool; when that is full, frames are dropped. */

enum { FRAME_MAX_BYTES = 2048 - 32, DIRECTION_FRAMES = 8192 };

struct counters {
    uint64_t passed, bytes; /* written to the other side */
    uint64_t lost;          /* by chance, or in the black hole */
    uint64_t overflowed;    /* no room in the queue */
    uint64_t duplicated, reordered;
    uint64_t flipped_frames, flipped_bits;
};

struct frame {
    uint64_t due_ns, seq; /* equal for duplicates */
    uint32_t n_bytes;
    uint8_t bytes[FRAME_MAX_BYTES];
};

struct direction {
    int from_fd, to_fd; /* borrowed; non-blocking */
    struct params params;
    struct counters counters;
    struct flipper flipper;
    uint64_t seed;                    /* not 0 */
    struct frame *frames;             /* DIRECTION_FRAMES; memory is used as it is needed */
    uint32_t queue[DIRECTION_FRAMES]; /* numbers of frames: n_queued of them are the heap, */
    uint32_t n_queued;                /* the others are free */
    uint64_t next_seq, sent_seq;
    uint64_t wire_free_ns; /* when the wire has carried what it has to carry */
    uint64_t in_order_ns;  /* due time of the last frame that keeps the order */
};

/* Makes a direction that does nothing to frames; the same seed makes the same choices.
 * -ENOMEM. */
int direction_init(struct direction *d, int from_fd, int to_fd, uint64_t seed) US_MUST_CHECK;

/* Changes what is done to the frames that come. Those that are queued keep their due times, but
 * when the rate changes they leave at once, since they would hold up the others at the old one. */
void direction_set(struct direction *d, const struct params *p);

/* Takes frames from the tap, at most a batch, so that nobody starves. */
void direction_receive(struct direction *d, uint64_t now_ns);

/* Sends what is due by `now_ns`. Returns when the next one is due; UINT64_MAX when there is none.
 * UINT64_MAX as now_ns sends everything. */
uint64_t direction_send(struct direction *d, uint64_t now_ns);

#endif
