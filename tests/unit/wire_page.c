/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "random.h"
#include "unit.h"
#include "wire/page.h"

static uint64_t seed = 0x9e3779b97f4a7c15;

static void fill_text(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t) "the guest wrote this "[i % 21];
}

enum { BULK_MAX = WIRE_DISK_PIECE_BYTES };
static_assert((int)BULK_MAX == (int)WIRE_STATE_PER_MSG, "of disks and of device state alike");

/* Three buffers of that size. */
static uint8_t *bulk, *bulk_out, *bulk_back;
static struct packer *packer;

static int bulk_setup(void **state)
{
    bulk = malloc(BULK_MAX);
    bulk_out = malloc(BULK_MAX);
    bulk_back = malloc(BULK_MAX);
    packer = packer_new();
    return bulk && bulk_out && bulk_back && packer ? 0 : -1;
}

static int bulk_teardown(void **state)
{
    free(bulk);
    free(bulk_out);
    free(bulk_back);
    packer_free(packer);
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
        test_fill(&seed, bulk, n);
    return text && n >= 100 ? WIRE_ENC_LZ4 : WIRE_ENC_RAW;
}

static void test_state_pieces(void **state)
{
    static const enum wire_encoding ways[] = {WIRE_ENC_RAW, WIRE_ENC_LZ4, WIRE_ENC_ZSTD};

    for (size_t i = 0; i < 2 * N_OF(ways) * N_OF(bulk_sizes); i++) {
        uint32_t n = bulk_sizes[i / 2 % N_OF(bulk_sizes)];
        enum wire_encoding way = ways[i / 2 / N_OF(bulk_sizes)];
        uint8_t expected = bulk_fill(n, i % 2) == WIRE_ENC_RAW ? WIRE_ENC_RAW : (uint8_t)way;
        struct wire_state piece = {.total = n};

        state_piece_encode(packer, way, bulk, n, bulk_out, &piece);
        assert_int_equal(piece.n_raw, n);
        assert_int_equal(piece.encoding, expected);
        assert_int_equal(state_piece_decode(packer, &piece, bulk_back, NULL), 0);
        assert_memory_equal(bulk, bulk_back, n);
        piece.n_bytes--;
        assert_int_equal(state_piece_decode(packer, &piece, bulk_back, NULL), -EPROTO);
    }
}

static void test_state_deltas(void **state)
{
    test_fill(&seed, bulk, 1000);
    test_fill(&seed, bulk_back, 1000);
    bulk[999] = bulk_back[999];
    state_xor(bulk_out, bulk, bulk_back, 1000);
    assert_int_equal(bulk_out[999], 0);
    assert_memory_not_equal(bulk_out, bulk, 1000);
    state_xor(bulk_out, bulk_out, bulk_back, 1000);
    assert_memory_equal(bulk_out, bulk, 1000);
}

static void test_hash_of_zeros(void **state)
{
    static uint8_t page[WIRE_PAGE_BYTES];
    const struct page_hash zero = page_hash_zero();
    struct page_hash hash = page_hash(page);

    assert_memory_equal(&hash, &zero, sizeof(hash));
    page[WIRE_PAGE_BYTES - 1] = 1;
    hash = page_hash(page);
    assert_memory_not_equal(&hash, &zero, sizeof(hash));
}

static void test_disk_writes(void **state)
{
    for (size_t i = 0; i < 2 * N_OF(bulk_sizes); i++) {
        uint32_t n = bulk_sizes[i / 2];
        uint8_t expected = bulk_fill(n, i % 2);
        struct wire_disk_piece piece = {.kind = WIRE_DISK_WRITE, .n_range = n};

        disk_piece_encode(packer, bulk, n, bulk_out, &piece);
        assert_int_equal(piece.encoding, expected);
        assert_true(expected == WIRE_ENC_RAW ? piece.n_bytes == n : piece.n_bytes <= n - n / 16);
        assert_int_equal(disk_piece_decode(packer, &piece, bulk_back, NULL), 0);
        assert_memory_equal(bulk, bulk_back, n);
        piece.n_bytes--; /* less, and more, than it needs */
        assert_int_equal(disk_piece_decode(packer, &piece, bulk_back, NULL), -EPROTO);
        piece.n_bytes++;
        piece.n_range++;
        assert_int_equal(disk_piece_decode(packer, &piece, bulk_back, NULL), -EPROTO);
        piece.n_range = (UINT64_C(1) << 32) + n; /* as long, if it were cut to 32 bits */
        assert_int_equal(disk_piece_decode(packer, &piece, bulk_back, NULL), -EPROTO);
    }
}

static void test_disk_pieces_without_data(void **state)
{
    struct wire_disk_piece piece = {.kind = WIRE_DISK_ZERO, .n_range = UINT64_MAX, .encoding = 77};

    disk_piece_encode(packer, NULL, 0, NULL, &piece);
    assert_int_equal(piece.encoding, WIRE_ENC_ZERO);
    assert_int_equal(piece.n_bytes, 0);
    assert_int_equal(disk_piece_decode(packer, &piece, NULL, NULL), 0);
    piece.kind = WIRE_DISK_MARK;
    assert_int_equal(disk_piece_decode(packer, &piece, NULL, NULL), 0);
    piece.kind = WIRE_DISK_WRITE;
    assert_int_equal(disk_piece_decode(packer, &piece, NULL, NULL), -EPROTO);
    piece.n_range = 1;
    assert_int_equal(disk_piece_decode(packer, &piece, NULL, NULL), -EPROTO);
    piece.kind = WIRE_DISK_DIGEST;
    piece.n_range = 65536;
    assert_int_equal(disk_piece_decode(packer, &piece, NULL, NULL), -EPROTO);
}

static void test_disk_digests(void **state)
{
    struct wire_disk_piece piece = {.kind = WIRE_DISK_DIGEST, .n_range = 65536};

    memset(bulk, 'd', WIRE_DIGEST_BYTES); /* it would compress */
    disk_piece_encode(packer, bulk, WIRE_DIGEST_BYTES, bulk_out, &piece);
    assert_int_equal(piece.encoding, WIRE_ENC_RAW);
    assert_int_equal(piece.n_bytes, WIRE_DIGEST_BYTES);
    assert_int_equal(disk_piece_decode(packer, &piece, bulk_back, NULL), 0);
    assert_memory_equal(bulk, bulk_back, WIRE_DIGEST_BYTES);
    piece.n_bytes--;
    assert_int_equal(disk_piece_decode(packer, &piece, bulk_back, NULL), -EPROTO);
}

static void test_digest(void **state)
{
    static const uint8_t empty[] = {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
                                    0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f};
    static const uint8_t disk[2 * 24 + 4] = {
        5, 1, 0, [9] = 0x10,   [16] = 4, [24] = 'd', 'a', 't', 'a', /* 4 bytes at 4096 */
        0, 4, 2, [28 + 8] = 7,
    };
    enum { HASH = WIRE_DIGEST_BYTES };
    uint8_t flat[2 * (8 + HASH) + sizeof(disk) + 5] = {0}, digest[WIRE_DIGEST_BYTES];
    uint8_t pages[2][WIRE_PAGE_BYTES];
    struct page_hash hashes[2];
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
    test_fill(&seed, pages[0], WIRE_PAGE_BYTES);
    fill_text(pages[1], WIRE_PAGE_BYTES);
    for (int i = 0; i < 2; i++) {
        XXH128_canonicalFromHash(&want, XXH3_128bits(pages[i], WIRE_PAGE_BYTES));
        hashes[i] = page_hash(pages[i]);
        assert_memory_equal(hashes[i].bytes, want.digest, HASH);
    }
    flat[0] = 0x02;
    flat[1] = 0x01;
    memcpy(flat + 8, &hashes[0], HASH);
    flat[8 + HASH] = 3;
    memcpy(flat + 16 + HASH, &hashes[1], HASH);
    memcpy(flat + 16 + 2 * HASH, disk, sizeof(disk));
    memcpy(flat + sizeof(flat) - 5, "state", 5);
    XXH128_canonicalFromHash(&want, XXH3_128bits(flat, sizeof(flat)));
    epoch_digest_page(d, 0x0102, &hashes[0]);
    epoch_digest_page(d, 3, &hashes[1]);
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
        cmocka_unit_test(test_state_pieces),
        cmocka_unit_test(test_state_deltas),
        cmocka_unit_test(test_hash_of_zeros),
        cmocka_unit_test(test_disk_writes),
        cmocka_unit_test(test_disk_pieces_without_data),
        cmocka_unit_test(test_disk_digests),
        cmocka_unit_test(test_digest),
    };

    return cmocka_run_group_tests(tests, bulk_setup, bulk_teardown);
}
