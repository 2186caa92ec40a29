/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "disk/log.h"
#include "unit.h"

static uint8_t data[DISK_DATA_MAX];

static struct disk_record write_at(uint64_t offset, uint32_t n)
{
    return (struct disk_record){
        .disk = 1, .kind = DISK_WRITE, .n_data = n, .offset = offset, .n_bytes = n};
}

static const struct disk_record zero = {
    .disk = 2, .kind = DISK_ZERO, .flags = DISK_PUNCH, .offset = 4096, .n_bytes = 1 << 30};
static const struct disk_record digest = {
    .kind = DISK_DIGEST, .n_data = DISK_DIGEST_BYTES, .n_bytes = DISK_DIGEST_UNIT};
static const struct disk_record mark = {
    .kind = DISK_MARK, .flags = DISK_SYNC, .offset = UINT64_MAX};

static void add(struct disk_log *log, struct disk_record rec, uint8_t fill)
{
    memset(data, fill, rec.n_data);
    assert_int_equal(disk_log_add(log, &rec, data), 0);
}

static void expect(const struct disk_log *log, struct disk_cursor *cursor, struct disk_record rec,
                   uint8_t fill)
{
    struct disk_record got;
    const uint8_t *bytes;

    assert_true(disk_log_next(log, cursor, &got, &bytes));
    assert_int_equal(got.disk, rec.disk);
    assert_int_equal(got.kind, rec.kind);
    assert_int_equal(got.flags, rec.flags);
    assert_int_equal(got.n_data, rec.n_data);
    assert_int_equal(got.offset, rec.offset);
    assert_int_equal(got.n_bytes, rec.n_bytes);
    for (uint32_t i = 0; i < got.n_data; i++)
        assert_int_equal(bytes[i], fill);
}

static void expect_end(const struct disk_log *log, struct disk_cursor *cursor)
{
    struct disk_record got;
    const uint8_t *bytes;

    assert_false(disk_log_next(log, cursor, &got, &bytes));
    assert_false(disk_log_next(log, cursor, &got, &bytes)); /* and it stays there */
}

static void layout_is_as_documented(void **state)
{
    static const uint8_t golden[] = {
        8, 7, 6, 5, 4, 3, 2, 1,    2,    0,    0,    0,    0,    0,    0,    0,    2,
        0, 0, 0, 3, 1, 0, 0, 0xaa, 0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0, 0, 0, 0, 0, 0, 0, 0,    0,    0,    0,    0,    0,    4,    2,    0,
    };
    struct disk_record rec = {
        .disk = 3, .kind = DISK_WRITE, .n_data = 2, .offset = 0x0102030405060708, .n_bytes = 2};
    const struct disk_chunk *chunk = NULL;
    struct disk_log log = {0};
    struct iovec iov[2];

    assert_int_equal(disk_log_iov(&log, &chunk, iov, 2), 0);
    assert_int_equal(disk_log_add(&log, &rec, "\xaa\xbb"), 0);
    assert_int_equal(disk_log_add(&log, &mark, NULL), 0);
    assert_int_equal(disk_log_iov(&log, &chunk, iov, 2), 1);
    assert_null(chunk);
    assert_int_equal(iov[0].iov_len, sizeof(golden));
    assert_int_equal(log.n_bytes, sizeof(golden));
    assert_memory_equal(iov[0].iov_base, golden, sizeof(golden));
    disk_log_clear(&log);
}

/* Sizes from nothing to the largest, over many chunks. */
static uint32_t some_size(unsigned i)
{
    return i % 7 == 6 ? DISK_DATA_MAX - i : i * 997;
}

static void order_is_kept(void **state)
{
    const struct disk_chunk *chunk = NULL;
    struct disk_cursor cursor = {0};
    struct disk_log log = {0};
    uint64_t n_bytes = 0, n_iov_bytes = 0;
    struct iovec iov[3];
    unsigned n;

    expect_end(&log, &cursor);
    for (unsigned i = 0; i < 50; i++) {
        add(&log, write_at(i, some_size(i)), (uint8_t)i);
        n_bytes += DISK_HEADER_BYTES + some_size(i);
        if (i < 2)
            expect(&log, &cursor, write_at(i, some_size(i)), (uint8_t)i); /* reading goes along */
    }
    assert_int_equal(log.n_records, 50);
    assert_int_equal(log.n_bytes, n_bytes);
    for (unsigned i = 2; i < 50; i++)
        expect(&log, &cursor, write_at(i, some_size(i)), (uint8_t)i);
    expect_end(&log, &cursor);
    do {
        n = disk_log_iov(&log, &chunk, iov, 3);
        assert_true(n >= 1 && n <= 3);
        for (unsigned i = 0; i < n; i++)
            n_iov_bytes += iov[i].iov_len;
    } while (chunk);
    assert_int_equal(n_iov_bytes, n_bytes);
    disk_log_clear(&log);
    assert_int_equal(log.n_bytes, 0);
    cursor = (struct disk_cursor){0};
    expect_end(&log, &cursor);
}

static void moving_keeps_both(void **state)
{
    struct disk_log a = {0}, b = {0};
    struct disk_cursor cursor = {0};

    disk_log_move(&a, &b);
    assert_null(a.first);
    add(&b, zero, 0);
    b.flushed = true;
    disk_log_move(&a, &b);
    assert_true(a.flushed);
    assert_false(b.flushed);
    add(&b, write_at(1, DISK_DATA_MAX), 1);
    add(&b, mark, 0);
    disk_log_move(&a, &b);
    disk_log_move(&a, &b);
    add(&a, write_at(2, 100), 2);
    expect(&a, &cursor, zero, 0);
    expect(&a, &cursor, write_at(1, DISK_DATA_MAX), 1);
    expect(&a, &cursor, mark, 0);
    expect(&a, &cursor, write_at(2, 100), 2);
    expect_end(&a, &cursor);
    assert_int_equal(a.n_records, 4);
    assert_null(b.first);
    assert_null(b.last);
    disk_log_clear(&a);
}

static void strip_drops_what_has_its_place(void **state)
{
    struct disk_log log = {0};
    struct disk_cursor cursor = {0};
    uint64_t n_bytes;

    for (int i = 0; i < 20000; i++) /* chunks of nothing else */
        add(&log, digest, 9);
    disk_log_strip(&log);
    assert_null(log.first);
    assert_null(log.last);
    assert_int_equal(log.n_bytes, 0);

    add(&log, zero, 0);
    add(&log, write_at(7, 4096), 7);
    add(&log, write_at(8, DISK_DATA_MAX), 8);
    n_bytes = log.n_bytes;
    disk_log_strip(&log);
    assert_int_equal(log.n_bytes, n_bytes);
    disk_log_clear(&log);

    log.flushed = true;
    add(&log, digest, 1);
    add(&log, write_at(7, 4096), 7);
    add(&log, mark, 0);
    add(&log, zero, 0);
    add(&log, write_at(8, DISK_DATA_MAX), 8);
    for (int i = 0; i < 20000; i++)
        add(&log, digest, 9);
    disk_log_strip(&log);
    assert_true(log.flushed);
    assert_int_equal(log.n_bytes, n_bytes);
    assert_int_equal(log.n_records, 3);
    add(&log, write_at(9, 1), 9);
    expect(&log, &cursor, write_at(7, 4096), 7);
    expect(&log, &cursor, zero, 0);
    expect(&log, &cursor, write_at(8, DISK_DATA_MAX), 8);
    expect(&log, &cursor, write_at(9, 1), 9);
    expect_end(&log, &cursor);
    disk_log_clear(&log);
}

enum { DISK_SIZE = 3 * DISK_DIGEST_UNIT + 512 };

static void records_are_checked(void **state)
{
    static const uint64_t sizes[] = {UINT64_C(1) << 40, DISK_SIZE};
    static const struct {
        struct disk_record rec;
        int ret;
    } cases[] = {
        {{0, DISK_WRITE, 0, 512, 0, 512}, 0},
        {{1, DISK_WRITE, 0, 512, DISK_SIZE - 512, 512}, 0},
        {{0, DISK_WRITE, 0, DISK_DATA_MAX, 4096, DISK_DATA_MAX}, 0},
        {{0, DISK_WRITE, 0, DISK_DATA_MAX + 1, 4096, DISK_DATA_MAX + 1}, -EPROTO},
        {{0, DISK_WRITE, 0, 512, 0, 513}, -EPROTO},
        {{0, DISK_WRITE, 0, 0, 0, UINT64_C(1) << 32}, -EPROTO},
        {{0, DISK_WRITE, DISK_PUNCH, 512, 0, 512}, -EPROTO},
        {{0, DISK_WRITE, 0, 0, 0, 0}, -EPROTO},
        {{2, DISK_WRITE, 0, 512, 0, 512}, -EPROTO},
        {{255, DISK_WRITE, 0, 512, 0, 512}, -EPROTO},
        {{1, DISK_WRITE, 0, 512, DISK_SIZE - 511, 512}, -EPROTO},
        {{1, DISK_WRITE, 0, 512, DISK_SIZE, 512}, -EPROTO},
        {{1, DISK_WRITE, 0, 512, UINT64_MAX - 511, 512}, -EPROTO},
        {{1, DISK_ZERO, 0, 0, 0, DISK_SIZE}, 0},
        {{1, DISK_ZERO, DISK_PUNCH, 0, 0, DISK_SIZE}, 0},
        {{0, DISK_ZERO, DISK_PUNCH, 0, 0, UINT64_C(1) << 40}, 0},
        {{1, DISK_ZERO, 0, 0, 1, DISK_SIZE}, -EPROTO},
        {{1, DISK_ZERO, 0, 0, 1, UINT64_MAX}, -EPROTO},
        {{1, DISK_ZERO, 0, 0, 0, 0}, -EPROTO},
        {{1, DISK_ZERO, DISK_SYNC, 0, 0, 512}, -EPROTO},
        {{1, DISK_ZERO, 0, 512, 0, 512}, -EPROTO},
        {{1, DISK_DIGEST, 0, 16, DISK_DIGEST_UNIT, DISK_DIGEST_UNIT}, 0},
        {{1, DISK_DIGEST, 0, 16, 3 * DISK_DIGEST_UNIT, 512}, 0},
        {{1, DISK_DIGEST, 0, 16, 3 * DISK_DIGEST_UNIT, 256}, -EPROTO},
        {{1, DISK_DIGEST, 0, 16, 0, 512}, -EPROTO},
        {{1, DISK_DIGEST, 0, 16, 512, DISK_DIGEST_UNIT}, -EPROTO},
        {{1, DISK_DIGEST, 0, 15, 0, DISK_DIGEST_UNIT}, -EPROTO},
        {{1, DISK_DIGEST, 1, 16, 0, DISK_DIGEST_UNIT}, -EPROTO},
        {{0, DISK_DIGEST, 0, 16, 0, 2 * DISK_DIGEST_UNIT}, -EPROTO},
        {{0, DISK_MARK, 0, 0, 0, 0}, 0},
        {{0, DISK_MARK, DISK_SYNC, 0, UINT64_MAX, 0}, 0},
        {{1, DISK_MARK, 0, 0, 0, 0}, -EPROTO},
        {{0, DISK_MARK, DISK_PUNCH, 0, 0, 0}, -EPROTO},
        {{0, DISK_MARK, 0, 1, 0, 0}, -EPROTO},
        {{0, DISK_MARK, 0, 0, 0, 1}, -EPROTO},
        {{0, 0, 0, 0, 0, 512}, -EPROTO},
        {{0, 5, 0, 0, 0, 512}, -EPROTO},
    };

    for (size_t i = 0; i < N_OF(cases); i++) {
        struct err err = {{0}};
        int ret = disk_record_check(&cases[i].rec, sizes, N_OF(sizes), &err);

        if (ret != cases[i].ret)
            fail_msg("case %zu: %d instead of %d (%s)", i, ret, cases[i].ret, err.text);
        assert_int_equal(!ret, !err.text[0]);
    }
}

static void torn_records_are_refused(void **state)
{
    const struct disk_chunk *chunk = NULL;
    struct disk_log log = {0};
    struct disk_record rec;
    const uint8_t *bytes;
    struct iovec iov;
    uint8_t *packed;
    size_t at;

    add(&log, zero, 0);
    add(&log, write_at(9, 100), 9);
    assert_int_equal(disk_log_iov(&log, &chunk, &iov, 1), 1);
    for (size_t n = 0; n <= iov.iov_len; n++) {
        packed = malloc(n + 1); /* its end is where a sanitizer sees it */
        memcpy(packed, iov.iov_base, n);
        at = 0;
        assert_int_equal(disk_record_unpack(packed, n, &at, &rec, &bytes),
                         n >= DISK_HEADER_BYTES ? 0 : -EPROTO);
        if (n >= DISK_HEADER_BYTES) {
            assert_int_equal(at, DISK_HEADER_BYTES);
            assert_int_equal(disk_record_unpack(packed, n, &at, &rec, &bytes),
                             n == iov.iov_len ? 0 : -EPROTO);
        }
        if (n == iov.iov_len) {
            assert_int_equal(at, n);
            assert_int_equal(disk_record_unpack(packed, n, &at, &rec, &bytes), -EPROTO);
            packed[23] = 1;
            at = 0;
            assert_int_equal(disk_record_unpack(packed, n, &at, &rec, &bytes), -EPROTO);
        }
        free(packed);
    }
    disk_log_clear(&log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_is_as_documented), cmocka_unit_test(order_is_kept),
        cmocka_unit_test(moving_keeps_both),       cmocka_unit_test(strip_drops_what_has_its_place),
        cmocka_unit_test(records_are_checked),     cmocka_unit_test(torn_records_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
