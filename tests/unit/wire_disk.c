/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "wire_sample.h"

/* The messages of replicated disks: which values each field may have, and which not. (What holds
 * for all messages, as damaged bytes, other lengths and golden bytes, is in wire_msg.c.) */

enum { MIB = 1024 * 1024, DISK_END = WIRE_DISKS_MAX, LZ4 = WIRE_ENC_LZ4, RAW = WIRE_ENC_RAW };

static const uint64_t top = UINT64_MAX;

static void put_le(uint8_t *at, uint64_t value, int n)
{
    for (int i = 0; i < n; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

/* What a malicious peer sends: the piece as it is, with n_bytes bytes, under a right checksum. */
static int decode_forged(const struct wire_disk_piece *p)
{
    enum { PAYLOAD = WIRE_HEADER_BYTES, ENTRY = PAYLOAD + 8, BYTES = ENTRY + 24 };
    struct wire_msg m = sample(WIRE_DISK);
    uint8_t *entry = sample_buf + ENTRY;
    size_t n_bytes = p->n_bytes < sizeof(sample_bulk) ? p->n_bytes : sizeof(sample_bulk);

    (void)encode(&m); /* for its header */
    put_le(sample_buf + PAYLOAD, 1, 8);
    entry[0] = p->disk;
    entry[1] = p->kind;
    entry[2] = p->flags;
    entry[3] = p->encoding;
    put_le(entry + 4, p->n_bytes, 4);
    put_le(entry + 8, p->offset, 8);
    put_le(entry + 16, p->n_range, 8);
    memcpy(sample_buf + BYTES, sample_bulk, n_bytes);
    reseal(sample_buf, BYTES + n_bytes);
    return decode_copy(BYTES + n_bytes, WIRE_CHANNEL_DATA);
}

static void test_pieces(void **state)
{
    enum { W = WIRE_DISK_WRITE, Z = WIRE_DISK_ZERO, D = WIRE_DISK_DIGEST, M = WIRE_DISK_MARK };
    static const struct {
        bool valid;
        struct wire_disk_piece piece; /* disk, kind, flags, encoding, offset, n_range, n_bytes */
    } cases[] = {
        {true, {0, W, 0, RAW, 0, 1, 1, sample_bulk}},
        {true, {DISK_END - 1, W, 0, RAW, 0, MIB, MIB, sample_bulk}},
        {true, {0, W, 0, RAW, top - 1, 1, 1, sample_bulk}},
        {true, {0, W, 0, LZ4, 0, 2, 1, sample_bulk}},
        {true, {0, W, 0, LZ4, 0, MIB, MIB - 1, sample_bulk}},
        {true, {0, Z, 0, 0, 0, 1, 0, NULL}},
        {true, {DISK_END - 1, Z, WIRE_DISK_PUNCH, 0, 0, top, 0, NULL}},
        {true, {0, Z, 0, 0, top - 1, 1, 0, NULL}},
        {true, {0, D, 0, RAW, 0, 1, 16, sample_bulk}},
        {true, {DISK_END - 1, D, 0, RAW, top - MIB, MIB, 16, sample_bulk}},
        {true, {0, M, 0, 0, 0, 0, 0, NULL}},
        {true, {0, M, WIRE_DISK_SYNC, 0, top, 0, 0, NULL}},

        {false, {DISK_END, W, 0, RAW, 0, 1, 1, sample_bulk}},
        {false, {0xff, W, 0, RAW, 0, 1, 1, sample_bulk}},
        {false, {0, 0, 0, RAW, 0, 1, 1, sample_bulk}},
        {false, {0, 0, 0, 0, 0, 1, 0, NULL}},
        {false, {0, 5, 0, 0, 0, 1, 0, NULL}},
        {false, {0, 0xff, 0, 0, 0, 1, 0, NULL}},
        {false, {0, W, WIRE_DISK_PUNCH, RAW, 0, 1, 1, sample_bulk}},
        {false, {0, W, 0x80, RAW, 0, 1, 1, sample_bulk}},
        {false, {0, W, 0, RAW, 0, 0, 0, NULL}}, /* an empty range */
        {false, {0, W, 0, RAW, 0, 0, 1, sample_bulk}},
        {false, {0, W, 0, 0, 0, 1, 0, NULL}}, /* without its data */
        {false, {0, W, 0, RAW, 0, 2, 1, sample_bulk}},
        {false, {0, W, 0, RAW, 0, 1, 2, sample_bulk}},
        {false, {0, W, 0, RAW, 0, (UINT64_C(1) << 32) + 1, 1, sample_bulk}},
        {false, {0, W, 0, RAW, 0, MIB + 1, MIB + 1, sample_bulk}},
        {false, {0, W, 0, RAW, top, 1, 1, sample_bulk}}, /* overflows */
        {false, {0, W, 0, LZ4, 0, 1, 1, sample_bulk}},
        {false, {0, W, 0, LZ4, 0, 2, 2, sample_bulk}},
        {false, {0, W, 0, LZ4, 0, 2, 0, NULL}},
        {false,
         {0, W, 0, LZ4, 0, MIB + 1, 1, sample_bulk}}, /* unpacks to more than there is room */
        {false, {0, W, 0, LZ4, 0, top, 1, sample_bulk}},
        {false, {0, W, 0, WIRE_ENC_ZSTD, 0, 2, 1, sample_bulk}},
        {false, {0, W, 0, 0xff, 0, 1, 1, sample_bulk}},

        {false, {DISK_END, Z, 0, 0, 0, 1, 0, NULL}},
        {false, {0, Z, WIRE_DISK_SYNC, 0, 0, 1, 0, NULL}},
        {false, {0, Z, 3, 0, 0, 1, 0, NULL}},
        {false, {0, Z, 0, 0, 0, 0, 0, NULL}},
        {false, {0, Z, 0, 0, 1, top, 0, NULL}},
        {false, {0, Z, 0, 0, 0, 1, 1, sample_bulk}}, /* with data */
        {false, {0, Z, 0, RAW, 0, 1, 0, NULL}},
        {false, {0, Z, 0, RAW, 0, 1, 1, sample_bulk}},
        {false, {0, Z, 0, LZ4, 0, 2, 1, sample_bulk}},

        {false, {DISK_END, D, 0, RAW, 0, 1, 16, sample_bulk}},
        {false, {0, D, 1, RAW, 0, 1, 16, sample_bulk}},
        {false, {0, D, 2, RAW, 0, 1, 16, sample_bulk}},
        {false, {0, D, 0, RAW, 0, 0, 16, sample_bulk}},
        {false, {0, D, 0, RAW, 0, MIB + 1, 16, sample_bulk}},
        {false, {0, D, 0, RAW, top, 1, 16, sample_bulk}},
        {false, {0, D, 0, RAW, 0, 1, 15, sample_bulk}},
        {false, {0, D, 0, RAW, 0, 1, 17, sample_bulk}},
        {false, {0, D, 0, RAW, 0, 1, 0, NULL}},
        {false, {0, D, 0, 0, 0, 1, 0, NULL}},
        {false, {0, D, 0, LZ4, 0, 32, 16, sample_bulk}},

        {false, {1, M, 0, 0, 0, 0, 0, NULL}},
        {false, {0, M, WIRE_DISK_PUNCH, 0, 0, 0, 0, NULL}},
        {false, {0, M, 0, 0, 0, 1, 0, NULL}},
        {false, {0, M, 0, RAW, 0, 0, 0, NULL}},
        {false, {0, M, 0, 0, 0, 0, 1, sample_bulk}},
        {false, {0, M, 0, LZ4, 0, 0, 1, sample_bulk}},
    };

    for (size_t i = 0; i < N_OF(cases); i++) {
        struct wire_msg m = {.type = WIRE_DISK, .epoch = 1};

        m.u.disk.n = 1;
        m.u.disk.piece[0] = cases[i].piece;
        if (cases[i].valid)
            assert_round_trip(&m);
        else
            assert_not_encoded(&m);
        if (decode_forged(&cases[i].piece) != (cases[i].valid ? 0 : -EPROTO))
            fail_msg("case %zu", i);
    }
}

/* As many pieces as fit; together no more data than one buffer holds. */
static void test_full_message(void **state)
{
    enum { N = WIRE_DISK_PIECES_PER_MSG, EACH = WIRE_DISK_PIECE_BYTES / N };
    struct wire_msg m = {.type = WIRE_DISK, .epoch = 1};
    struct wire_disk *disk = &m.u.disk;

    assert_not_encoded(&m); /* none */
    disk->n = N;
    for (uint32_t i = 0; i < N; i++)
        disk->piece[i] = (struct wire_disk_piece){.disk = (uint8_t)(i % WIRE_DISKS_MAX),
                                                  .kind = WIRE_DISK_WRITE,
                                                  .encoding = WIRE_ENC_RAW,
                                                  .offset = (uint64_t)i * EACH,
                                                  .n_range = EACH,
                                                  .n_bytes = EACH,
                                                  .bytes = sample_bulk + (size_t)i * EACH};
    assert_round_trip(&m);
    disk->piece[7].n_range++; /* small on the wire, but one byte too long when decoded */
    disk->piece[7].encoding = WIRE_ENC_LZ4;
    assert_not_encoded(&m);
    disk->piece[7].n_range--;
    disk->piece[7].n_bytes--;
    assert_round_trip(&m);
    disk->n = N + 1;
    assert_not_encoded(&m);
}

/* Each piece is there and right, but there are more than the reader's list holds. */
static void test_too_many_pieces(void **state)
{
    enum { FORM = 8, ENTRY = 24, MOST = (WIRE_DISK_PIECE_BYTES + 256 * ENTRY) / ENTRY };
    static const struct {
        uint32_t n;
        int result;
    } cases[] = {
        {WIRE_DISK_PIECES_PER_MSG, 0},
        {WIRE_DISK_PIECES_PER_MSG + 1, -EPROTO},
        {MOST, -EPROTO}, /* the longest message that is read at all */
    };

    for (size_t i = 0; i < N_OF(cases); i++) {
        struct wire_msg m = sample(WIRE_DISK);
        size_t n = WIRE_HEADER_BYTES + FORM + (size_t)cases[i].n * ENTRY;

        (void)encode(&m); /* for its header */
        memset(sample_buf + WIRE_HEADER_BYTES, 0, n - WIRE_HEADER_BYTES);
        put_le(sample_buf + WIRE_HEADER_BYTES, cases[i].n, 4);
        for (uint32_t p = 0; p < cases[i].n; p++)
            sample_buf[WIRE_HEADER_BYTES + FORM + p * ENTRY + 1] = WIRE_DISK_MARK;
        reseal(sample_buf, n);
        assert_int_equal(decode_copy(n, WIRE_CHANNEL_DATA), cases[i].result);
    }
}

static void test_ready(void **state)
{
    struct wire_msg m = {.type = WIRE_READY};
    struct wire_ready *ready = &m.u.ready;

    assert_round_trip(&m);
    ready->term = top;
    ready->n_disks = WIRE_DISKS_MAX;
    for (uint32_t i = 0; i < WIRE_DISKS_MAX; i++)
        ready->disk[i].state = i % 2 ? WIRE_COPY_EMPTY : WIRE_COPY_UNKNOWN;
    assert_round_trip(&m);
    ready->disk[7].state = WIRE_COPY_KNOWN; /* without an id */
    assert_not_encoded(&m);
    ready->disk[7].sync[WIRE_SYNC_ID_BYTES - 1] = 1;
    assert_round_trip(&m);
    ready->disk[7].state = WIRE_COPY_EMPTY;
    assert_not_encoded(&m);
    ready->disk[7] = (struct wire_disk_copy){.state = 0};
    assert_not_encoded(&m);
    ready->n_disks = WIRE_DISKS_MAX - 1; /* then it does not count */
    assert_round_trip(&m);
    ready->n_disks = WIRE_DISKS_MAX + 1;
    assert_not_encoded(&m);
}

static void test_ack(void **state)
{
    struct wire_msg m = {.type = WIRE_ACK, .epoch = 5};

    assert_round_trip(&m);
    m.u.ack = (struct wire_ack){.term = top, .durable = 5};
    assert_round_trip(&m);
    m.u.ack.durable = 6;
    assert_not_encoded(&m);
}

static void test_ranges(void **state)
{
    static const struct {
        bool valid;
        struct wire_disk_ranges ranges; /* kind, disk, last, mark, n, range */
    } cases[] = {
        {true, {WIRE_RANGES_DIRTY, 0, false, 0, 0, {{0, 0}}}},
        {true, {WIRE_RANGES_DIRTY, 0, false, 0, 1, {{0, 1}}}},
        {true, {WIRE_RANGES_DIRTY, DISK_END - 1, false, 0, 1, {{0, top}}}},
        {true, {WIRE_RANGES_DIRTY, 0, false, 0, 1, {{top - 1, 1}}}},
        {true, {WIRE_RANGES_DIFFER, 0, false, top, 2, {{8, 4}, {12, 1}}}}, /* they touch */
        {true, {WIRE_RANGES_DIFFER, 0, true, 1, 0, {{0, 0}}}},

        {false, {0, 0, false, 0, 1, {{0, 1}}}},
        {false, {3, 0, false, 0, 1, {{0, 1}}}},
        {false, {WIRE_RANGES_DIRTY, 0, true, 0, 1, {{0, 1}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 1, 1, {{0, 1}}}},
        {false, {WIRE_RANGES_DIRTY, DISK_END, false, 0, 1, {{0, 1}}}},
        {false, {WIRE_RANGES_DIFFER, DISK_END, true, 1, 0, {{0, 1}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 0, 1, {{0, 0}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 0, 1, {{top, 1}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 0, 1, {{1, top}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 0, 2, {{8, 4}, {11, 1}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 0, 2, {{8, 4}, {8, 4}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 0, 2, {{8, 4}, {0, 1}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 0, WIRE_RANGES_PER_MSG + 1, {{0, 1}}}},
        {false, {WIRE_RANGES_DIRTY, 0, false, 0, UINT32_MAX, {{0, 1}}}},
    };
    struct wire_msg m = {.type = WIRE_DISK_RANGES};

    for (size_t i = 0; i < N_OF(cases); i++) {
        m.u.disk_ranges = cases[i].ranges;
        if (cases[i].valid)
            assert_round_trip(&m);
        else
            assert_not_encoded(&m);
    }
    m.u.disk_ranges = cases[0].ranges;
    m.u.disk_ranges.n = WIRE_RANGES_PER_MSG;
    for (uint32_t i = 0; i < WIRE_RANGES_PER_MSG; i++)
        m.u.disk_ranges.range[i] = (struct wire_range){i * UINT64_C(8192), 4096};
    assert_round_trip(&m);
}

static void test_frames(void **state)
{
    struct wire_msg m = {.type = WIRE_FRAMES, .u.frames = {.bytes = sample_bulk}};
    struct wire_frames *frames = &m.u.frames;

    frames->n_bytes = WIRE_FRAME_BYTES_MIN;
    assert_round_trip(&m);
    frames->nic = WIRE_NICS_MAX - 1;
    frames->n_bytes = WIRE_FRAME_BYTES_MAX;
    assert_round_trip(&m);
    frames->nic = WIRE_NICS_MAX;
    assert_not_encoded(&m);
    frames->nic = 0;
    frames->n_bytes = WIRE_FRAME_BYTES_MIN - 1;
    assert_not_encoded(&m);
    frames->n_bytes = WIRE_FRAME_BYTES_MAX + 1;
    assert_not_encoded(&m);
}

static void test_begin_and_end(void **state)
{
    struct wire_msg m = {.type = WIRE_EPOCH_BEGIN, .epoch = top, .u.epoch_begin = {top, false}};

    assert_round_trip(&m);
    m.u.epoch_begin.flushed = true;
    assert_round_trip(&m);
    m = (struct wire_msg){.type = WIRE_EPOCH_END,
                          .epoch = 1,
                          .u.epoch_end = {.n_pages = WIRE_PAGE_NUMBERS,
                                          .n_disk_pieces = top,
                                          .n_state_bytes = WIRE_STATE_MAX}};
    assert_round_trip(&m);
    m.u.epoch_end.n_pages++;
    assert_not_encoded(&m);
    m.u.epoch_end.n_pages = 0;
    m.u.epoch_end.n_state_bytes++;
    assert_not_encoded(&m);
}

static void test_bye_reasons(void **state)
{
    struct wire_msg m = {.type = WIRE_BYE};

    for (uint16_t reason = 0; reason < 300; reason++) {
        m.u.bye.reason = reason;
        if (reason >= WIRE_BYE_STOPPED && reason <= WIRE_BYE_SWITCHOVER)
            assert_round_trip(&m);
        else
            assert_not_encoded(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_full_message),
        cmocka_unit_test(test_too_many_pieces),
        cmocka_unit_test(test_ready),
        cmocka_unit_test(test_ack),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_begin_and_end),
        cmocka_unit_test(test_bye_reasons),
    };

    return cmocka_run_group_tests(tests, sample_setup, sample_teardown);
}
