/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "random.h"
#include "unit.h"
#include "wire/pack.h"

enum { BYTES_MAX = 1 << 20, PACKED_MAX = BYTES_MAX + 1000 };

static const enum wire_encoding ways[] = {WIRE_ENC_LZ4, WIRE_ENC_ZSTD};

static struct packer *packer;
static uint64_t seed = 0xda3e39cb94b95bdb;
static uint8_t bytes[BYTES_MAX], packed[PACKED_MAX];

static int setup(void **state)
{
    packer = packer_new();
    return packer ? 0 : -1;
}

static int teardown(void **state)
{
    packer_free(packer);
    packer_free(NULL);
    return 0;
}

/* Text for `of` of 16 bytes, noise for the others. */
static void fill(uint32_t n, uint32_t of)
{
    test_fill(&seed, bytes, n);
    for (uint32_t i = 0; i < n; i++)
        if (i / 64 % 16 < of)
            bytes[i] = (uint8_t) "the guest wrote this "[i % 21];
}

/* From and into memory of that very length, so that ASan sees each byte too far. */
static bool unpacks(uint8_t encoding, const uint8_t *from, uint32_t n, uint32_t n_out)
{
    uint8_t *in = malloc(n + !n), *out = malloc(n_out + !n_out);
    bool ok;

    memcpy(in, from, n);
    ok = unpack(packer, encoding, in, n, out, n_out);
    if (ok)
        assert_memory_equal(out, bytes, n_out);
    free(in);
    free(out);
    return ok;
}

static void test_round_trips(void **state)
{
    static const uint32_t sizes[] = {1, 15, 16, 17, 100, 4096, 65537, BYTES_MAX};
    unsigned raw = 0;

    for (size_t i = 0; i < N_OF(ways) * N_OF(sizes); i++)
        for (uint32_t of = 0; of <= 16; of += 4) {
            uint32_t size = sizes[i / 2], n;

            fill(size, of);
            n = pack(packer, ways[i % 2], bytes, size, packed);
            raw += n == 0;
            if (size >= 4096)
                assert_int_equal(n == 0, of == 0);
            if (n == 0)
                continue;
            assert_true(n <= size - size / 16);
            assert_true(unpacks((uint8_t)ways[i % 2], packed, n, size));
            assert_false(unpacks((uint8_t)ways[i % 2], packed, n, size + 1));
            assert_false(unpacks((uint8_t)ways[i % 2], packed, n, size - 1));
        }
    assert_in_range(raw, 8, 50);
}

static void test_cut_and_longer(void **state)
{
    for (size_t i = 0; i < N_OF(ways); i++) {
        uint32_t n;

        fill(4096, 12);
        n = pack(packer, ways[i], bytes, 4096, packed);
        packed[n] = 0;
        for (uint32_t cut = 0; cut < n; cut++)
            assert_false(unpacks((uint8_t)ways[i], packed, cut, 4096));
        assert_false(unpacks((uint8_t)ways[i], packed, n + 1, 4096));
        assert_false(unpacks((uint8_t)ways[1 - i], packed, n, 4096));
        assert_false(unpacks(WIRE_ENC_ZERO, packed, n, 4096));
        assert_false(unpacks(3, packed, n, 4096));
    }
    fill(100, 0);
    assert_true(unpacks(WIRE_ENC_RAW, bytes, 100, 100));
    assert_false(unpacks(WIRE_ENC_RAW, bytes, 100, 99));
    assert_false(unpacks(WIRE_ENC_RAW, bytes, 99, 100));
}

/* What the library reads and we do not: bytes that mean nothing, other formats, several frames. */
static void test_odd_frames(void **state)
{
    static const uint8_t skippable[12] = {0x50, 0x2a, 0x4d, 0x18, 4};
    ZSTD_CCtx *c = ZSTD_createCCtx();
    uint32_t n;

    memset(bytes, 'a', 4096);
    n = pack(packer, WIRE_ENC_ZSTD, bytes, 4096, packed);
    assert_true(unpacks(WIRE_ENC_ZSTD, packed, n, 4096));
    memcpy(packed + n, skippable, sizeof(skippable));
    assert_false(unpacks(WIRE_ENC_ZSTD, packed, n + (uint32_t)sizeof(skippable), 4096));
    memmove(packed + sizeof(skippable), packed, n);
    memcpy(packed, skippable, sizeof(skippable));
    assert_false(unpacks(WIRE_ENC_ZSTD, packed, n + (uint32_t)sizeof(skippable), 4096));

    n = pack(packer, WIRE_ENC_ZSTD, bytes, 2048, packed);
    memcpy(packed + n, packed, n); /* two frames, together as long */
    assert_false(unpacks(WIRE_ENC_ZSTD, packed, 2 * n, 4096));

    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, 0);
    n = (uint32_t)ZSTD_compress2(c, packed, sizeof(packed), bytes, 4096);
    assert_false(unpacks(WIRE_ENC_ZSTD, packed, n, 4096)); /* it does not tell its length */
    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, 1);
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
    n = (uint32_t)ZSTD_compress2(c, packed, sizeof(packed), bytes, 4096);
    packed[n - 1] ^= 1; /* its own checksum is wrong */
    assert_false(unpacks(WIRE_ENC_ZSTD, packed, n, 4096));
    ZSTD_freeCCtx(c);
}

static void test_bombs(void **state)
{
    /* A literal run and a match that claim far more than there is. */
    static const uint8_t lz4_bomb[] = {0x1f, 'A',  0x01, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff,
                                       0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                       0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00};
    static const uint8_t long_literals[] = {0xf0, 0xff, 0xff, 0xff};
    static const uint8_t before_start[] = {0x1f, 'A', 0xff, 0xff, 0x10, 0x50,
                                           'A',  'A', 'A',  'A',  'A'};
    uint32_t n;

    assert_false(unpacks(WIRE_ENC_LZ4, lz4_bomb, sizeof(lz4_bomb), 4096));
    assert_false(unpacks(WIRE_ENC_LZ4, long_literals, sizeof(long_literals), 4096));
    assert_false(unpacks(WIRE_ENC_LZ4, before_start, sizeof(before_start), 4096));
    memset(bytes, 0, sizeof(bytes));
    n = pack(packer, WIRE_ENC_ZSTD, bytes, BYTES_MAX, packed);
    assert_in_range(n, 1, 200);
    assert_false(unpacks(WIRE_ENC_ZSTD, packed, n, 4096)); /* of a mebibyte, it says */
    for (size_t at = 4; at < 9; at++) { /* and whatever it says: window, length */
        uint8_t kept = packed[at];

        for (unsigned value = 0; value < 256; value++) {
            packed[at] = (uint8_t)value;
            if (value != kept)
                assert_false(unpacks(WIRE_ENC_ZSTD, packed, n, 4096));
        }
        packed[at] = kept;
    }
    for (int i = 0; i < 20000; i++) { /* must not crash; whether it decodes is another matter */
        uint8_t noise[64] = {0x28, 0xb5, 0x2f, 0xfd}, out[4096];

        test_fill(&seed, noise + 4, sizeof(noise) - 4);
        (void)!unpack(packer, (uint8_t)ways[i % 2], noise, (uint32_t)(test_random(&seed) % 64), out,
                      (uint32_t)(test_random(&seed) % sizeof(out)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_cut_and_longer),
        cmocka_unit_test(test_odd_frames),
        cmocka_unit_test(test_bombs),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
