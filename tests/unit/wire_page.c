/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <assert.h>
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "unit.h"
#include "wire/page.h"

/* A small generator of our own (xorshift), so that a failure repeats everywhere. */
static uint64_t seed;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void fill_random(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)rnd();
}

static void fill_text(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t) "the guest wrote this "[i % 21];
}

static int setup(void **state)
{
    seed = 0x9e3779b97f4a7c15;
    *state = page_encoder_lz4_new();
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    struct page_encoder *enc = *state;

    enc->ops->free(enc);
    return 0;
}

/* Encodes and decodes a page; returns the encoding chosen. */
static int round_trip(struct page_encoder *enc, const uint8_t *page)
{
    uint8_t out[WIRE_PAGE_BYTES], back[WIRE_PAGE_BYTES];
    struct wire_page encoded;

    memset(back, 0xee, sizeof(back));
    enc->ops->encode(enc, 77, page, out, &encoded);
    assert_int_equal(encoded.number, 77);
    assert_int_equal(page_decode(&encoded, back, NULL), 0);
    assert_memory_equal(page, back, WIRE_PAGE_BYTES);
    return encoded.encoding;
}

static void test_encodings(void **state)
{
    uint8_t page[WIRE_PAGE_BYTES] = {0};

    assert_int_equal(round_trip(*state, page), WIRE_ENC_ZERO);
    page[WIRE_PAGE_BYTES - 1] = 1; /* the last byte alone makes it another page */
    assert_int_equal(round_trip(*state, page), WIRE_ENC_LZ4);
    page[WIRE_PAGE_BYTES - 1] = 0;
    page[0] = 1;
    assert_int_equal(round_trip(*state, page), WIRE_ENC_LZ4);
    fill_text(page, sizeof(page));
    assert_int_equal(round_trip(*state, page), WIRE_ENC_LZ4);
    fill_random(page, sizeof(page));
    assert_int_equal(round_trip(*state, page), WIRE_ENC_RAW);
}

static void test_lz4_only_where_it_pays(void **state)
{
    struct page_encoder *enc = *state;
    uint8_t page[WIRE_PAGE_BYTES], out[WIRE_PAGE_BYTES];
    struct wire_page encoded;

    /* From all random to all text: whatever is chosen, lz4 saves an eighth or is not used. */
    for (size_t n_random = WIRE_PAGE_BYTES; n_random > 64; n_random -= 64) {
        fill_text(page, sizeof(page));
        fill_random(page, n_random);
        enc->ops->encode(enc, 0, page, out, &encoded);
        if (encoded.encoding == WIRE_ENC_LZ4)
            assert_in_range(encoded.n_bytes, 1, WIRE_PAGE_BYTES * 7 / 8);
        else
            assert_int_equal(encoded.n_bytes, WIRE_PAGE_BYTES);
    }
    assert_int_equal(encoded.encoding, WIRE_ENC_LZ4);
}

static void test_back_off_ends(void **state)
{
    uint8_t page[WIRE_PAGE_BYTES];
    int untried = 0;

    for (int i = 0; i < 1000; i++) {
        fill_random(page, sizeof(page));
        assert_int_equal(round_trip(*state, page), WIRE_ENC_RAW);
    }
    fill_text(page, sizeof(page));
    while (round_trip(*state, page) != WIRE_ENC_LZ4)
        assert_in_range(++untried, 1, 32);
    for (int i = 0; i < 10; i++)
        assert_int_equal(round_trip(*state, page), WIRE_ENC_LZ4);
}

static void test_zero_is_found_during_back_off(void **state)
{
    static const uint8_t zero[WIRE_PAGE_BYTES];
    uint8_t page[WIRE_PAGE_BYTES];

    for (int i = 0; i < 100; i++) {
        fill_random(page, sizeof(page));
        (void)round_trip(*state, page);
        assert_int_equal(round_trip(*state, zero), WIRE_ENC_ZERO);
    }
}

static void test_random_round_trips(void **state)
{
    uint8_t page[WIRE_PAGE_BYTES];

    for (int i = 0; i < 2000; i++) {
        size_t from = rnd() % WIRE_PAGE_BYTES, n = rnd() % (WIRE_PAGE_BYTES - from);

        if (rnd() % 3 == 0)
            memset(page, (int)(rnd() % 3), sizeof(page));
        else
            fill_text(page, sizeof(page));
        fill_random(page + from, n);
        (void)round_trip(*state, page);
    }
}

static int decode(uint8_t encoding, const uint8_t *bytes, uint16_t n)
{
    struct wire_page page = {.encoding = encoding, .n_bytes = n, .bytes = bytes};
    uint8_t *out = malloc(WIRE_PAGE_BYTES); /* on the heap, so that ASan sees a write past it */
    int r;

    assert_non_null(out);
    r = page_decode(&page, out, NULL);
    free(out);
    return r;
}

static void test_malicious_pages(void **state)
{
    static uint8_t raw[2 * WIRE_PAGE_BYTES], lz4[LZ4_COMPRESSBOUND(2 * WIRE_PAGE_BYTES)];
    /* A literal run and a match that claim far more than there is. */
    static const uint8_t bomb[] = {0x1f, 'A',  0x01, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff,
                                   0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                   0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00};
    static const uint8_t long_literals[] = {0xf0, 0xff, 0xff, 0xff};
    static const uint8_t offset_before_start[] = {0x1f, 'A', 0xff, 0xff, 0x10, 0x50,
                                                  'A',  'A', 'A',  'A',  'A'};
    static const uint8_t offset_zero[] = {0x1f, 'A', 0x00, 0x00, 0x10, 0x50,
                                          'A',  'A', 'A',  'A',  'A'};
    int n;

    assert_int_equal(decode(WIRE_ENC_LZ4, bomb, sizeof(bomb)), -EPROTO);
    assert_int_equal(decode(WIRE_ENC_LZ4, long_literals, sizeof(long_literals)), -EPROTO);
    assert_int_equal(decode(WIRE_ENC_LZ4, offset_before_start, sizeof(offset_before_start)),
                     -EPROTO);
    assert_int_equal(decode(WIRE_ENC_LZ4, offset_zero, sizeof(offset_zero)), -EPROTO);
    fill_text(raw, sizeof(raw));
    for (int size = WIRE_PAGE_BYTES - 1; size <= WIRE_PAGE_BYTES + 1; size++) {
        n = LZ4_compress_default((char *)raw, (char *)lz4, size, sizeof(lz4));
        assert_int_equal(decode(WIRE_ENC_LZ4, lz4, (uint16_t)n),
                         size == WIRE_PAGE_BYTES ? 0 : -EPROTO);
    }
    n = LZ4_compress_default((char *)raw, (char *)lz4, WIRE_PAGE_BYTES, sizeof(lz4));
    for (int cut = 0; cut < n; cut++)
        assert_int_equal(decode(WIRE_ENC_LZ4, lz4, (uint16_t)cut), -EPROTO);
    assert_int_equal(decode(WIRE_ENC_LZ4, lz4, (uint16_t)(n + 1)), -EPROTO);
    for (int i = 0; i < 20000; i++) { /* must not crash; whether it decodes is another matter */
        uint8_t bytes[64];

        fill_random(bytes, sizeof(bytes));
        (void)!decode(WIRE_ENC_LZ4, bytes, (uint16_t)(rnd() % sizeof(bytes)));
    }
}

static void test_wrong_lengths_and_encodings(void **state)
{
    static const uint8_t raw[WIRE_PAGE_BYTES + 1];

    assert_int_equal(decode(WIRE_ENC_ZERO, raw, 0), 0);
    assert_int_equal(decode(WIRE_ENC_ZERO, raw, 1), -EPROTO);
    assert_int_equal(decode(WIRE_ENC_RAW, raw, WIRE_PAGE_BYTES), 0);
    assert_int_equal(decode(WIRE_ENC_RAW, raw, WIRE_PAGE_BYTES - 1), -EPROTO);
    assert_int_equal(decode(WIRE_ENC_RAW, raw, WIRE_PAGE_BYTES + 1), -EPROTO);
    assert_int_equal(decode(WIRE_ENC_DELTA, raw, 16), -EPROTO);
    assert_int_equal(decode(0xff, raw, 16), -EPROTO);
}

enum { BULK_MAX = WIRE_DISK_PIECE_BYTES };
static_assert((int)BULK_MAX == (int)WIRE_STATE_PER_MSG, "of disks and of device state alike");

/* Three buffers of that size. */
static uint8_t *bulk, *bulk_out, *bulk_back;

static int bulk_setup(void **state)
{
    bulk = malloc(BULK_MAX);
    bulk_out = malloc(BULK_MAX);
    bulk_back = malloc(BULK_MAX);
    return bulk && bulk_out && bulk_back ? 0 : -1;
}

static int bulk_teardown(void **state)
{
    free(bulk);
    free(bulk_out);
    free(bulk_back);
    return 0;
}

static const uint32_t bulk_sizes[] = {1, 2, 7, 8, 9, 100, 512, 4096, 65537, BULK_MAX};

/* Fills n bytes of bulk: with what LZ4 is worth trying on, or not. Returns the encoding expected.
 */
static uint8_t bulk_fill(uint32_t n, bool text)
{
    if (text)
        fill_text(bulk, n);
    else
        fill_random(bulk, n);
    return text && n >= 100 ? WIRE_ENC_LZ4 : WIRE_ENC_RAW;
}

static void test_state_pieces(void **state)
{
    for (size_t i = 0; i < 2 * N_OF(bulk_sizes); i++) {
        uint32_t n = bulk_sizes[i / 2];
        uint8_t expected = bulk_fill(n, i % 2);
        struct wire_state piece = {.total = n};

        state_piece_encode(bulk, n, bulk_out, &piece);
        assert_int_equal(piece.n_raw, n);
        assert_int_equal(piece.encoding, expected);
        assert_int_equal(state_piece_decode(&piece, bulk_back, NULL), 0);
        assert_memory_equal(bulk, bulk_back, n);
        piece.n_bytes--;
        assert_int_equal(state_piece_decode(&piece, bulk_back, NULL), -EPROTO);
    }
}

static void test_disk_writes(void **state)
{
    for (size_t i = 0; i < 2 * N_OF(bulk_sizes); i++) {
        uint32_t n = bulk_sizes[i / 2];
        uint8_t expected = bulk_fill(n, i % 2);
        struct wire_disk_piece piece = {.kind = WIRE_DISK_WRITE, .n_range = n};

        disk_piece_encode(bulk, n, bulk_out, &piece);
        assert_int_equal(piece.encoding, expected);
        assert_true(expected == WIRE_ENC_RAW ? piece.n_bytes == n : piece.n_bytes <= n - n / 8);
        assert_int_equal(disk_piece_decode(&piece, bulk_back, NULL), 0);
        assert_memory_equal(bulk, bulk_back, n);
        piece.n_bytes--; /* less, and more, than it needs */
        assert_int_equal(disk_piece_decode(&piece, bulk_back, NULL), -EPROTO);
        piece.n_bytes++;
        piece.n_range++;
        assert_int_equal(disk_piece_decode(&piece, bulk_back, NULL), -EPROTO);
        piece.n_range = (UINT64_C(1) << 32) + n; /* as long, if it were cut to 32 bits */
        assert_int_equal(disk_piece_decode(&piece, bulk_back, NULL), -EPROTO);
    }
}

static void test_disk_pieces_without_data(void **state)
{
    struct wire_disk_piece piece = {.kind = WIRE_DISK_ZERO, .n_range = UINT64_MAX, .encoding = 77};

    disk_piece_encode(NULL, 0, NULL, &piece);
    assert_int_equal(piece.encoding, WIRE_ENC_ZERO);
    assert_int_equal(piece.n_bytes, 0);
    assert_int_equal(disk_piece_decode(&piece, NULL, NULL), 0);
    piece.kind = WIRE_DISK_MARK;
    assert_int_equal(disk_piece_decode(&piece, NULL, NULL), 0);
    piece.kind = WIRE_DISK_WRITE;
    assert_int_equal(disk_piece_decode(&piece, NULL, NULL), -EPROTO);
    piece.n_range = 1;
    assert_int_equal(disk_piece_decode(&piece, NULL, NULL), -EPROTO);
    piece.kind = WIRE_DISK_DIGEST;
    piece.n_range = 65536;
    assert_int_equal(disk_piece_decode(&piece, NULL, NULL), -EPROTO);
}

static void test_disk_digests(void **state)
{
    struct wire_disk_piece piece = {.kind = WIRE_DISK_DIGEST, .n_range = 65536};

    memset(bulk, 'd', WIRE_DIGEST_BYTES); /* it would compress */
    disk_piece_encode(bulk, WIRE_DIGEST_BYTES, bulk_out, &piece);
    assert_int_equal(piece.encoding, WIRE_ENC_RAW);
    assert_int_equal(piece.n_bytes, WIRE_DIGEST_BYTES);
    assert_int_equal(disk_piece_decode(&piece, bulk_back, NULL), 0);
    assert_memory_equal(bulk, bulk_back, WIRE_DIGEST_BYTES);
    piece.n_bytes--;
    assert_int_equal(disk_piece_decode(&piece, bulk_back, NULL), -EPROTO);
}

static void test_digest(void **state)
{
    static const uint8_t empty[] = {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
                                    0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f};
    static const uint8_t disk[2 * 24 + 4] = {
        5, 1, 0, [9] = 0x10,   [16] = 4, [24] = 'd', 'a', 't', 'a', /* 4 bytes at 4096 */
        0, 4, 2, [28 + 8] = 7,
    };
    uint8_t flat[2 * (8 + WIRE_PAGE_BYTES) + sizeof(disk) + 5] = {0}, digest[WIRE_DIGEST_BYTES];
    const struct wire_disk_piece write = {.disk = 5,
                                          .kind = WIRE_DISK_WRITE,
                                          .encoding = WIRE_ENC_RAW, /* no matter */
                                          .offset = 4096,
                                          .n_range = 4,
                                          .n_bytes = 4};
    const struct wire_disk_piece mark = {
        .kind = WIRE_DISK_MARK, .flags = WIRE_DISK_SYNC, .offset = 7};
    struct epoch_digest *d = epoch_digest_new();
    XXH128_canonical_t want;

    assert_non_null(d);
    epoch_digest_get(d, digest);
    assert_memory_equal(digest, empty,
                        sizeof(digest)); /* XXH3-128 of nothing, its published value */

    /* Page 0x0102, page 3, a write and a mark, state "state": the same bytes as a whole. */
    flat[0] = 0x02;
    flat[1] = 0x01;
    fill_random(flat + 8, WIRE_PAGE_BYTES);
    flat[8 + WIRE_PAGE_BYTES] = 3;
    fill_text(flat + 16 + WIRE_PAGE_BYTES, WIRE_PAGE_BYTES);
    memcpy(flat + 16 + 2 * WIRE_PAGE_BYTES, disk, sizeof(disk));
    memcpy(flat + sizeof(flat) - 5, "state", 5);
    XXH128_canonicalFromHash(&want, XXH3_128bits(flat, sizeof(flat)));
    epoch_digest_page(d, 0x0102, flat + 8);
    epoch_digest_page(d, 3, flat + 16 + WIRE_PAGE_BYTES);
    epoch_digest_disk(d, &write, (const uint8_t *)"data", 4);
    epoch_digest_disk(d, &mark, NULL, 0);
    epoch_digest_state(d, (const uint8_t *)"sta", 3);
    epoch_digest_state(d, NULL, 0);
    epoch_digest_state(d, (const uint8_t *)"te", 2);
    epoch_digest_get(d, digest);
    assert_memory_equal(digest, want.digest, sizeof(digest));

    epoch_digest_reset(d);
    epoch_digest_get(d, digest);
    assert_memory_equal(digest, empty, sizeof(digest));
    epoch_digest_free(d);
    epoch_digest_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_encodings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lz4_only_where_it_pays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_back_off_ends, setup, teardown),
        cmocka_unit_test_setup_teardown(test_zero_is_found_during_back_off, setup, teardown),
        cmocka_unit_test_setup_teardown(test_random_round_trips, setup, teardown),
        cmocka_unit_test_setup_teardown(test_malicious_pages, setup, teardown),
        cmocka_unit_test(test_wrong_lengths_and_encodings),
        cmocka_unit_test_setup_teardown(test_state_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_disk_writes, setup, teardown),
        cmocka_unit_test(test_disk_pieces_without_data),
        cmocka_unit_test(test_disk_digests),
        cmocka_unit_test(test_digest),
    };

    return cmocka_run_group_tests(tests, bulk_setup, bulk_teardown);
}
