/* SPDX-License-Identifier: Apache-2.0 */
#include "direction.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/clock.h"

enum { BATCH = 64, REORDER_NS = 10 * NS_PER_MS };

int direction_init(struct direction *d, int from_fd, int to_fd, uint64_t seed)
{
    memset(d, 0, sizeof(*d));
    d->frames = mmap(NULL, DIRECTION_FRAMES * sizeof(*d->frames), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (d->frames == MAP_FAILED)
        return -ENOMEM;
    d->from_fd = from_fd;
    d->to_fd = to_fd;
    d->seed = seed * 0x9e3779b97f4a7c15 | 1; /* xorshift takes long to leave a small number */
    d->flipper.seed = seed * 0xd1342543de82ef95 | 1;
    for (uint32_t i = 0; i < DIRECTION_FRAMES; i++)
        d->queue[i] = i;
    params_init(&d->params);
    return 0;
}

void direction_set(struct direction *d, const struct params *p)
{
    if (p->rate_bps != d->params.rate_bps) {
        (void)direction_send(d, UINT64_MAX);
        d->wire_free_ns = d->in_order_ns = 0;
    }
    if (p->flip != d->params.flip || p->repair_checksum != d->params.repair_checksum)
        flip_set(&d->flipper, p->flip, p->repair_checksum);
    d->params = *p;
}

/* --- the heap -------------------------------------------------------------------------------- */

static bool before(const struct direction *d, uint32_t a, uint32_t b)
{
    const struct frame *x = &d->frames[d->queue[a]], *y = &d->frames[d->queue[b]];

    return x->due_ns != y->due_ns ? x->due_ns < y->due_ns : x->seq < y->seq;
}

static void swap(struct direction *d, uint32_t a, uint32_t b)
{
    uint32_t number = d->queue[a];

    d->queue[a] = d->queue[b];
    d->queue[b] = number;
}

/* Takes the first free frame, which has its due time now, into the heap. */
static void push(struct direction *d)
{
    uint32_t at = d->n_queued++;

    for (; at && before(d, at, (at - 1) / 2); at = (at - 1) / 2)
        swap(d, at, (at - 1) / 2);
}

/* The earliest frame becomes the first free one. */
static void pop(struct direction *d)
{
    uint32_t at = 0, child;

    swap(d, 0, --d->n_queued);
    while ((child = 2 * at + 1) < d->n_queued) {
        if (child + 1 < d->n_queued && before(d, child + 1, child))
            child++;
        if (!before(d, child, at))
            break;
        swap(d, child, at);
        at = child;
    }
}

/* --- in -------------------------------------------------------------------------------------- */

static bool chance(struct direction *d, double probability)
{
    return probability > 0 && flip_random(&d->seed) < probability;
}

/* When a frame has left the wire; false when the queue before the wire is full. */
static bool pass_wire(struct direction *d, size_t n_bytes, uint64_t now_ns, uint64_t *ret_ns)
{
    const struct params *p = &d->params;
    uint64_t start = d->wire_free_ns > now_ns ? d->wire_free_ns : now_ns;

    *ret_ns = now_ns;
    if (!p->rate_bps)
        return true;
    if ((double)(start - now_ns) / 1e9 * (double)p->rate_bps / 8 > (double)p->queue_bytes)
        return false;
    *ret_ns = d->wire_free_ns = start + (uint64_t)((double)n_bytes * 8 * 1e9 / (double)p->rate_bps);
    return true;
}

static uint64_t due_time(struct direction *d, uint64_t ns)
{
    const struct params *p = &d->params;

    ns += p->delay_ns;
    if (p->jitter_ns) {
        uint64_t early = p->jitter_ns < p->delay_ns ? p->jitter_ns : p->delay_ns;

        ns = ns - early + (uint64_t)(flip_random(&d->seed) * (double)(early + p->jitter_ns));
    }
    if (chance(d, p->reorder))
        return ns + (uint64_t)(flip_random(&d->seed) * REORDER_NS);
    if (ns < d->in_order_ns)
        ns = d->in_order_ns;
    return d->in_order_ns = ns;
}

/* Queues the first free frame, which is filled. False when there is no room for it before the wire:
 * it stays free. */
static bool enqueue(struct direction *d, uint64_t now_ns)
{
    struct frame *frame = &d->frames[d->queue[d->n_queued]];
    unsigned flips = flip_frame(&d->flipper, frame->bytes, frame->n_bytes);
    uint64_t left_wire_ns;

    d->counters.flipped_bits += flips;
    d->counters.flipped_frames += flips > 0;
    if (!pass_wire(d, frame->n_bytes, now_ns, &left_wire_ns)) {
        d->counters.overflowed++;
        return false;
    }
    frame->due_ns = due_time(d, left_wire_ns);
    push(d);
    return true;
}

static void take(struct direction *d, struct frame *frame, uint64_t now_ns)
{
    if (d->params.blackhole || chance(d, d->params.loss)) {
        d->counters.lost++;
        return;
    }
    frame->seq = ++d->next_seq;
    if (chance(d, d->params.duplicate) && d->n_queued + 1 < DIRECTION_FRAMES) {
        struct frame *twin = &d->frames[d->queue[d->n_queued + 1]];

        twin->seq = frame->seq;
        twin->n_bytes = frame->n_bytes;
        memcpy(twin->bytes, frame->bytes, frame->n_bytes);
        /* Once the frame is queued, its twin is the first free one. */
        if (!enqueue(d, now_ns))
            return;
        d->counters.duplicated++;
    }
    (void)enqueue(d, now_ns); /* counts what it drops */
}

void direction_receive(struct direction *d, uint64_t now_ns)
{
    for (int i = 0; i < BATCH; i++) {
        struct frame dropped, *frame = &dropped;
        ssize_t n;

        if (d->n_queued < DIRECTION_FRAMES)
            frame = &d->frames[d->queue[d->n_queued]];
        n = read(d->from_fd, frame->bytes, sizeof(frame->bytes));
        if (n <= 0)
            return; /* nothing more; the tap may also be down */
        frame->n_bytes = (uint32_t)n;
        if (frame == &dropped)
            d->counters.overflowed++;
        else
            take(d, frame, now_ns);
    }
}

/* --- out ------------------------------------------------------------------------------------- */

uint64_t direction_send(struct direction *d, uint64_t now_ns)
{
    while (d->n_queued) {
        const struct frame *frame = &d->frames[d->queue[0]];

        if (frame->due_ns > now_ns)
            return frame->due_ns;
        /* A tap that is down carries nothing, as a pulled cable. */
        if (write(d->to_fd, frame->bytes, frame->n_bytes) < 0) {
            d->counters.lost++;
        } else {
            d->counters.passed++;
            d->counters.bytes += frame->n_bytes;
            d->counters.reordered += frame->seq < d->sent_seq;
        }
        if (frame->seq > d->sent_seq)
            d->sent_seq = frame->seq;
        pop(d);
    }
    return UINT64_MAX;
}
