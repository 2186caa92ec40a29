/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/frame_queue.h"
#include "unit.h"

static uint64_t seed = 88172645463325252;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* Frame i of a run: everything about it follows from i. */
static uint32_t frame_length(uint64_t i)
{
    uint64_t h = i * 0x9e3779b97f4a7c15;

    h ^= h >> 29;
    return h % 8 == 0 ? (uint32_t)(h >> 8) % 65535 + 1 : (uint32_t)(h >> 8) % 1500 + 14;
}

static void frame_fill(uint64_t i, uint8_t *bytes)
{
    memset(bytes, (int)(i % 251), frame_length(i));
    memcpy(bytes, &i, frame_length(i) < sizeof(i) ? frame_length(i) : sizeof(i));
}

static void assert_frame(const struct frame_queue *q, uint64_t i)
{
    static uint8_t expected[FRAME_QUEUE_FRAME_MAX];
    struct queued_frame f;

    assert_int_equal(frame_queue_peek(q, &f), 0);
    assert_int_equal(f.epoch, i / 10);
    assert_int_equal(f.nic, i % 3);
    assert_int_equal(f.n_bytes, frame_length(i));
    frame_fill(i, expected);
    assert_memory_equal(f.bytes, expected, f.n_bytes);
}

static void empty_queue(void **state)
{
    struct frame_queue *q = frame_queue_new(1);
    struct queued_frame f;

    assert_int_equal(frame_queue_peek(q, &f), -ENOENT);
    frame_queue_pop(q);
    assert_int_equal(frame_queue_frames(q), 0);
    assert_int_equal(frame_queue_drop_all(q), 0);
    frame_queue_close(q);
    frame_queue_close(NULL);
}

static void bad_lengths_are_refused(void **state)
{
    static uint8_t bytes[FRAME_QUEUE_FRAME_MAX + 1];
    struct frame_queue *q = frame_queue_new(1);

    assert_int_equal(frame_queue_push(q, 1, 0, bytes, 0), -EMSGSIZE);
    assert_int_equal(frame_queue_push(q, 1, 0, bytes, FRAME_QUEUE_FRAME_MAX + 1), -EMSGSIZE);
    assert_int_equal(frame_queue_frames(q), 0);
    assert_int_equal(frame_queue_push(q, 1, 0, bytes, 1), 0);
    assert_int_equal(frame_queue_push(q, 1, 0, bytes, FRAME_QUEUE_FRAME_MAX), 0);
    assert_int_equal(frame_queue_bytes(q), FRAME_QUEUE_FRAME_MAX + 1);
    frame_queue_close(q);
}

/* Random pushes and pops against the plain rule "what went in comes out, in order", with a ring so
 * small that it wraps thousands of times. */
static void order_is_kept_around_the_ring(void **state)
{
    static uint8_t bytes[FRAME_QUEUE_FRAME_MAX];
    struct frame_queue *q = frame_queue_new(256 * 1024);
    uint64_t in = 0, out = 0, n_bytes = 0, full = 0;

    while (out < 60000) {
        unsigned pushes = rnd() % 200, pops = rnd() % 200;

        while (pushes-- && !full) {
            frame_fill(in, bytes);
            if (frame_queue_push(q, in / 10, (uint8_t)(in % 3), bytes, frame_length(in)) != 0) {
                full++;
                break;
            }
            n_bytes += frame_length(in++);
        }
        /* Full means full: more than the ring less two frames of the longest kind is used. */
        if (full) {
            assert_true(n_bytes + 20 * (in - out) > 256 * 1024 - 2 * 65556);
            full = 0;
        }
        while (pops-- && out < in) {
            assert_frame(q, out);
            n_bytes -= frame_length(out++);
            frame_queue_pop(q);
        }
        assert_int_equal(frame_queue_frames(q), in - out);
        assert_int_equal(frame_queue_bytes(q), n_bytes);
    }
    assert_int_equal(frame_queue_drop_all(q), in - out);
    assert_int_equal(frame_queue_bytes(q), 0);
    frame_queue_close(q);
}

/* Small frames, as many as fit, so that the tail comes as close to the head as it can at every
 * place of the ring. One byte too close spoils the oldest frame's stamp. */
static void tail_meets_head(void **state)
{
    static const uint8_t bytes[64];

    for (uint32_t spread = 1; spread < 64; spread += 12) {
        struct frame_queue *q = frame_queue_new(1);
        uint64_t in = 0, out = 0;

        for (int round = 0; round < 300; round++) {
            struct queued_frame f;

            while (frame_queue_push(q, in, 0, bytes, (uint32_t)(rnd() % spread) + 1) == 0)
                in++;
            assert_int_equal(frame_queue_frames(q), in - out);
            for (uint64_t n = rnd() % (in - out + 1); n; n--) {
                assert_int_equal(frame_queue_peek(q, &f), 0);
                assert_int_equal(f.epoch, out++);
                frame_queue_pop(q);
            }
        }
        frame_queue_close(q);
    }
}

static void full_queue_is_unchanged(void **state)
{
    static uint8_t bytes[FRAME_QUEUE_FRAME_MAX];
    struct frame_queue *q = frame_queue_new(1);
    uint64_t n = 0, n_bytes;

    while (frame_queue_push(q, 5, 1, bytes, 60000) == 0)
        n++;
    n_bytes = frame_queue_bytes(q);
    assert_in_range(n, 1, 3);
    assert_int_equal(frame_queue_push(q, 5, 1, bytes, 60000), -ENOSPC);
    assert_int_equal(frame_queue_frames(q), n);
    assert_int_equal(frame_queue_bytes(q), n_bytes);
    assert_int_equal(frame_queue_drop_all(q), n);
    assert_int_equal(frame_queue_push(q, 5, 1, bytes, 60000), 0);
    frame_queue_close(q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_queue),
        cmocka_unit_test(bad_lengths_are_refused),
        cmocka_unit_test(order_is_kept_around_the_ring),
        cmocka_unit_test(tail_meets_head),
        cmocka_unit_test(full_queue_is_unchanged),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
