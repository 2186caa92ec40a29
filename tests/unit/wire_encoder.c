/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "unit.h"
#include "wire/page_encoder.h"
#include "wire/pages.h"

/* The encoder against a model of the standby: an image that an epoch's pages are decoded against,
 * and that they replace when the epoch is whole. */

enum { PAGES = 64, CACHE_PAGES = 24, EPOCH_MAX = 400 };

typedef uint8_t page_bytes[WIRE_PAGE_BYTES];

static uint64_t seed;
static struct page_encoder *enc;
static struct epoch_digest *digest, *standby_digest;
static page_bytes guest[PAGES], image[PAGES];
static page_bytes sent[EPOCH_MAX], decoded[EPOCH_MAX]; /* of this epoch */
static uint64_t numbers[EPOCH_MAX], epoch, kinds[WIRE_PAGE_KINDS];
static uint8_t decoded_kinds[EPOCH_MAX];
static unsigned n_sent;

static void start(uint64_t cache_pages)
{
    seed = 0x2545f4914f6cdd1d;
    enc = page_encoder_new(cache_pages * WIRE_PAGE_BYTES);
    digest = epoch_digest_new();
    standby_digest = epoch_digest_new();
    assert_true(enc && digest && standby_digest);
    memset(guest, 0, sizeof(guest));
    memset(image, 0, sizeof(image));
    memset(kinds, 0, sizeof(kinds));
    epoch = n_sent = 0;
}

static void end(void)
{
    page_encoder_free(enc);
    page_encoder_free(NULL);
    epoch_digest_free(digest);
    epoch_digest_free(standby_digest);
}

static void begin(bool keep)
{
    page_encoder_begin(enc, ++epoch, keep);
    epoch_digest_reset(digest);
    epoch_digest_reset(standby_digest);
    n_sent = 0;
}

static void decode(const struct page_item *item, unsigned place)
{
    uint8_t *out = decoded[place];
    struct page_hash hash;

    switch (item->kind) {
    case WIRE_PAGE_ZERO:
        memset(out, 0, WIRE_PAGE_BYTES);
        break;
    case WIRE_PAGE_DUPLICATE:
        assert_in_range(page_distance_get(item), 1, place);
        assert_int_not_equal(decoded_kinds[place - page_distance_get(item)], WIRE_PAGE_ZERO);
        memcpy(out, decoded[place - page_distance_get(item)], WIRE_PAGE_BYTES);
        break;
    case WIRE_PAGE_WHOLE:
        memcpy(out, item->bytes, WIRE_PAGE_BYTES);
        break;
    default:
        memcpy(out, image[item->number], WIRE_PAGE_BYTES);
        if (item->kind == WIRE_PAGE_CHANGES)
            page_patch(item, out);
        break;
    }
    decoded_kinds[place] = item->kind;
    hash = page_hash(out);
    epoch_digest_page(standby_digest, item->number, &hash);
}

/* Sends the guest's pages of those numbers as one message, and decodes it. */
static void message(const uint64_t *which, uint32_t n, bool delta)
{
    static uint8_t body[PAGE_BODY_BYTES];
    static struct page_table table;
    uint32_t n_body;

    for (uint32_t i = 0; i < n; i++) {
        numbers[n_sent + i] = which[i];
        memcpy(sent[n_sent + i], guest[which[i]], WIRE_PAGE_BYTES);
    }
    n_body = page_encoder_body(enc, which, sent[n_sent], n, delta, digest, body, kinds);
    assert_int_equal(page_table_unpack(body, n_body, n, &table, NULL), 0);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(table.page[i].number, which[i]);
        decode(&table.page[i], n_sent + i);
    }
    n_sent += n;
}

/* The epoch is whole: it is what was sent, and replaces the image, in order. */
static void apply(void)
{
    uint8_t a[WIRE_DIGEST_BYTES], b[WIRE_DIGEST_BYTES];

    for (unsigned i = 0; i < n_sent; i++) {
        assert_memory_equal(decoded[i], sent[i], WIRE_PAGE_BYTES);
        memcpy(image[numbers[i]], decoded[i], WIRE_PAGE_BYTES);
    }
    epoch_digest_get(digest, a);
    epoch_digest_get(standby_digest, b);
    assert_memory_equal(a, b, sizeof(a));
}

/* One page as an epoch of its own; how it was sent. */
static int send_one(uint64_t number, bool keep)
{
    begin(keep);
    message(&number, 1, true);
    apply();
    return decoded_kinds[0];
}

/* What guests do to pages. */
static void scribble(uint8_t *page)
{
    switch (test_random(&seed) % 8) {
    case 0:
        memset(page, 0, WIRE_PAGE_BYTES);
        break;
    case 1: /* one of a few contents */
        memset(page, (int)(1 + test_random(&seed) % 3), WIRE_PAGE_BYTES);
        break;
    case 2:
        memcpy(page, guest[test_random(&seed) % PAGES], WIRE_PAGE_BYTES);
        break;
    case 3:
        test_fill(&seed, page, WIRE_PAGE_BYTES);
        break;
    case 4: /* the same bytes */
        break;
    default:
        for (uint64_t n = test_random(&seed) % 30; n; n--)
            page[test_random(&seed) % WIRE_PAGE_BYTES] = (uint8_t)test_random(&seed);
        break;
    }
}

/* An epoch of some messages; pages come in any order, and some of them twice. */
static void any_epoch(bool keep, bool delta)
{
    begin(keep);
    for (uint64_t left = 1 + test_random(&seed) % 3; left; left--) {
        uint64_t which[60];
        uint32_t n = 1 + (uint32_t)(test_random(&seed) % 60);

        for (uint32_t i = 0; i < n; i++) {
            /* Not all alike, so that some stay in the cache. */
            which[i] = test_random(&seed) % (test_random(&seed) % 2 ? PAGES : CACHE_PAGES / 2);
            scribble(guest[which[i]]);
        }
        message(which, n, delta);
    }
}

static void random_histories(void **state)
{
    unsigned lost = 0;

    start(CACHE_PAGES);
    for (int round = 0; round < 3000; round++) {
        bool delta = round / 100 % 4 != 3;

        if (round % 100 == 0 && !delta)
            page_encoder_forget(enc); /* nothing is kept up from here on */
        any_epoch(round % 500 > 20, delta);
        if (test_random(&seed) % 40 == 0) { /* the link breaks before it is whole */
            lost++;
            page_encoder_forget(enc);
            continue;
        }
        apply();
    }
    assert_in_range(lost, 30, 200);
    for (int i = 0; i < WIRE_PAGE_KINDS; i++) {
        print_message("# kind %d: %llu\n", i, (unsigned long long)kinds[i]);
        assert_true(kinds[i] > 1000);
    }
    end();
}

static void the_least_used_copy_goes(void **state)
{
    start(2);
    for (int i = 0; i < 3; i++)
        test_fill(&seed, guest[i], WIRE_PAGE_BYTES);
    assert_int_equal(send_one(0, true), WIRE_PAGE_WHOLE);
    assert_int_equal(send_one(1, true), WIRE_PAGE_WHOLE);
    assert_int_equal(send_one(0, true), WIRE_PAGE_UNCHANGED); /* used: 1 is the older one now */
    assert_int_equal(send_one(2, true), WIRE_PAGE_WHOLE);
    guest[0][17]++;
    assert_int_equal(send_one(0, true), WIRE_PAGE_CHANGES);
    assert_int_equal(send_one(1, true), WIRE_PAGE_WHOLE);
    assert_int_equal(send_one(2, true), WIRE_PAGE_WHOLE);
    assert_int_equal(send_one(1, true), WIRE_PAGE_UNCHANGED);
    end();
}

static void without_a_cache(void **state)
{
    start(0);
    test_fill(&seed, guest[0], WIRE_PAGE_BYTES);
    for (int i = 0; i < 3; i++)
        assert_int_equal(send_one(0, true), WIRE_PAGE_WHOLE);
    end();
}

static void seeding_keeps_nothing_new(void **state)
{
    start(8);
    test_fill(&seed, guest[0], WIRE_PAGE_BYTES);
    assert_int_equal(send_one(0, false), WIRE_PAGE_WHOLE);
    assert_int_equal(send_one(0, false), WIRE_PAGE_WHOLE);
    assert_int_equal(send_one(0, true), WIRE_PAGE_WHOLE);
    guest[0][0]++;
    assert_int_equal(send_one(0, false), WIRE_PAGE_CHANGES); /* what there is, is kept up */
    assert_int_equal(send_one(0, false), WIRE_PAGE_UNCHANGED);
    end();
}

static void a_new_connection(void **state)
{
    start(8);
    test_fill(&seed, guest[0], WIRE_PAGE_BYTES);
    assert_int_equal(send_one(0, true), WIRE_PAGE_WHOLE);
    page_encoder_forget(enc);
    assert_int_equal(send_one(0, true), WIRE_PAGE_WHOLE);
    assert_int_equal(send_one(0, true), WIRE_PAGE_UNCHANGED);
    end();
}

/* Within an epoch the image is the one before it, and bytes are sent once. */
static void within_an_epoch(void **state)
{
    const uint64_t which[] = {0, 1, 2, 0}, zero[] = {3, 4, 5};

    start(8);
    test_fill(&seed, guest[0], WIRE_PAGE_BYTES);
    assert_int_equal(send_one(0, true), WIRE_PAGE_WHOLE);
    test_fill(&seed, guest[1], WIRE_PAGE_BYTES);
    memcpy(guest[2], guest[1], WIRE_PAGE_BYTES);
    guest[0][9]++;
    begin(true);
    message(which, 2, true);
    message(which + 2, 1, true); /* another message, the same epoch */
    guest[0][9]++;
    message(which, 1, true);
    message(zero, 3, true);
    apply();
    assert_int_equal(decoded_kinds[0], WIRE_PAGE_CHANGES);
    assert_int_equal(decoded_kinds[1], WIRE_PAGE_WHOLE);
    assert_int_equal(decoded_kinds[2], WIRE_PAGE_DUPLICATE);
    assert_int_equal(decoded_kinds[3], WIRE_PAGE_WHOLE); /* not against what is not there yet */
    for (int i = 4; i < 7; i++)
        assert_int_equal(decoded_kinds[i], WIRE_PAGE_ZERO);
    memcpy(guest[3], guest[1], WIRE_PAGE_BYTES); /* sent before, but in another epoch */
    assert_int_equal(send_one(3, true), WIRE_PAGE_WHOLE);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_histories), cmocka_unit_test(the_least_used_copy_goes),
        cmocka_unit_test(without_a_cache),  cmocka_unit_test(seeding_keeps_nothing_new),
        cmocka_unit_test(a_new_connection), cmocka_unit_test(within_an_epoch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
