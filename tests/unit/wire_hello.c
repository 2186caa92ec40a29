/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "golden/hello.h"
#include "unit.h"
#include "wire/msg.h"

static struct wire_hello sample(void)
{
    struct wire_hello h = {
        .version_min = 1,
        .version_max = 3,
        .channel = WIRE_CHANNEL_CONTROL,
        .resume = true,
        .vm = "web",
        .from = "hosta",
    };

    for (int i = 0; i < WIRE_SESSION_BYTES; i++)
        h.session[i] = (uint8_t)(0xa0 + i);
    return h;
}

static struct wire_hello sample_arbiter(void)
{
    return (struct wire_hello){
        .version_min = 1, .version_max = 1, .channel = WIRE_CHANNEL_ARBITER, .from = "hosta"};
}

/* Makes the checksum right again, as a malicious peer would. */
static void reseal(uint8_t raw[WIRE_HELLO_BYTES])
{
    uint64_t sum = XXH3_64bits(raw, WIRE_HELLO_BYTES - 8);

    for (int i = 0; i < 8; i++)
        raw[WIRE_HELLO_BYTES - 8 + i] = (uint8_t)(sum >> (8 * i));
}

static int decode(const uint8_t raw[WIRE_HELLO_BYTES])
{
    struct wire_hello h;

    return wire_hello_decode(raw, &h, NULL);
}

static void assert_same(const struct wire_hello *a, const struct wire_hello *b)
{
    assert_int_equal(a->version_min, b->version_min);
    assert_int_equal(a->version_max, b->version_max);
    assert_int_equal(a->channel, b->channel);
    assert_int_equal(a->status, b->status);
    assert_int_equal(a->resume, b->resume);
    assert_int_equal(a->features, b->features);
    assert_memory_equal(a->session, b->session, WIRE_SESSION_BYTES);
    assert_string_equal(a->vm, b->vm);
    assert_string_equal(a->from, b->from);
    assert_string_equal(a->text, b->text);
}

static void assert_round_trip(const struct wire_hello *h)
{
    uint8_t raw[WIRE_HELLO_BYTES], again[WIRE_HELLO_BYTES];
    struct wire_hello back;

    wire_hello_encode(h, raw);
    assert_int_equal(wire_hello_decode(raw, &back, NULL), 0);
    assert_same(h, &back);
    wire_hello_encode(&back, again);
    assert_memory_equal(raw, again, sizeof(raw));
}

static void test_round_trip(void **state)
{
    struct wire_hello h = sample();

    assert_round_trip(&h);
    h.channel = WIRE_CHANNEL_DATA;
    h.resume = false;
    assert_round_trip(&h);
    h = sample_arbiter();
    assert_round_trip(&h);
}

static void test_round_trip_extremes(void **state)
{
    struct wire_hello h = sample();

    memset(h.vm, 'v', WIRE_NAME_BYTES - 1);
    memset(h.from, '9', WIRE_NAME_BYTES - 1);
    memset(h.text, '~', WIRE_HELLO_TEXT_BYTES - 1);
    h.version_max = UINT16_MAX;
    h.features = UINT64_MAX;
    h.status = UINT8_MAX; /* a refusal that a later version invents must be readable */
    assert_round_trip(&h);
    h = sample();
    strcpy(h.vm, "a");
    strcpy(h.from, "0");
    assert_round_trip(&h);
}

static void test_golden(void **state)
{
    struct wire_hello h = sample(), back;
    uint8_t raw[WIRE_HELLO_BYTES];

    h.status = WIRE_REFUSED_BUSY;
    h.features = 0x1122334455667788;
    strcpy(h.text, "busy with hostc");
    wire_hello_encode(&h, raw);
    assert_memory_equal(raw, golden_hello, sizeof(raw));
    assert_int_equal(wire_hello_decode(golden_hello, &back, NULL), 0);
    assert_same(&h, &back);
}

static void test_every_damaged_byte_is_refused(void **state)
{
    static const uint8_t damage[] = {0x01, 0x80, 0xff};
    struct wire_hello h = sample();
    uint8_t raw[WIRE_HELLO_BYTES];

    wire_hello_encode(&h, raw);
    for (size_t i = 0; i < sizeof(raw); i++) {
        for (size_t d = 0; d < N_OF(damage); d++) {
            raw[i] ^= damage[d];
            assert_int_equal(decode(raw), -EPROTO);
            raw[i] ^= damage[d];
        }
    }
    assert_int_equal(decode(raw), 0);
}

/* Every byte that a correct checksum does not protect against: reserved ones must be zero, texts
 * printable and padded with zeros. */
static void test_malformed_with_right_checksum(void **state)
{
    static const struct {
        size_t at;
        uint8_t value;
    } cases[] = {
        {0, 'U'},   {8, 0},    {12, 0},    {12, 4},    {14, 2},    {15, 1},  {40, 0},
        {40, '-'},  {40, 'W'}, {43, '_'},  {45, 'x'},  {103, 1},   {104, 0}, {104, '.'},
        {167, 'a'}, {168, 7},  {168, 127}, {168, 200}, {231, 'a'}, {232, 1}, {247, 1},
    };
    struct wire_hello h = sample();
    uint8_t raw[WIRE_HELLO_BYTES], bad[WIRE_HELLO_BYTES];

    wire_hello_encode(&h, raw);
    for (size_t i = 0; i < N_OF(cases); i++) {
        memcpy(bad, raw, sizeof(bad));
        bad[cases[i].at] = cases[i].value;
        reseal(bad);
        assert_int_equal(decode(bad), -EPROTO);
    }
    memcpy(bad, raw, sizeof(bad));
    memset(bad + 168, 'x', WIRE_HELLO_TEXT_BYTES); /* no end */
    reseal(bad);
    assert_int_equal(decode(bad), -EPROTO);
    reseal(raw);
    assert_int_equal(decode(raw), 0);
}

static void assert_refused(const struct wire_hello *h)
{
    uint8_t raw[WIRE_HELLO_BYTES];

    wire_hello_encode(h, raw);
    assert_int_equal(decode(raw), -EPROTO);
}

static void test_what_channels_require(void **state)
{
    struct wire_hello h = sample();

    memset(h.session, 0, sizeof(h.session));
    assert_refused(&h);
    h = sample();
    h.channel = WIRE_CHANNEL_DATA; /* resume is a matter of the control channel */
    assert_refused(&h);
    h = sample();
    h.version_min = 4;
    assert_refused(&h);
    h = sample_arbiter();
    h.session[3] = 1;
    assert_refused(&h);
    h = sample_arbiter();
    strcpy(h.vm, "web");
    assert_refused(&h);
}

static void test_versions(void **state)
{
    static const struct {
        uint16_t min, max, chosen;
    } cases[] = {
        {1, 3, 3}, {3, 3, 3}, {3, 9, 3}, {1, UINT16_MAX, 3}, {1, 2, 0}, {4, 4, 0}, {4, 9, 0},
    };

    for (size_t i = 0; i < N_OF(cases); i++) {
        struct wire_hello h = {.version_min = cases[i].min, .version_max = cases[i].max};

        assert_int_equal(wire_version_choose(&h), cases[i].chosen);
        h.features = UINT64_C(1) << 63;
        assert_int_equal(wire_version_choose(&h), 0);
    }
}

static void test_answer(void **state)
{
    struct wire_hello sent = sample(), answer;
    struct err err;

    wire_hello_answer(&sent, "hostb", WIRE_OK, "", &answer);
    assert_int_equal(answer.version_min, 3);
    assert_int_equal(answer.version_max, 3);
    assert_string_equal(answer.from, "hostb");
    assert_round_trip(&answer);
    assert_int_equal(wire_hello_check_answer(&sent, &answer, NULL), 0);

    wire_hello_answer(&sent, "hostb", WIRE_REFUSED_BUSY, "busy with hostc", &answer);
    assert_round_trip(&answer);
    assert_int_equal(wire_hello_check_answer(&sent, &answer, &err), -ECONNREFUSED);
    assert_string_equal(err.text, "refused by hostb: busy with hostc");

    sent.version_min = sent.version_max = 4;
    wire_hello_answer(&sent, "hostb", WIRE_OK, "", &answer);
    assert_int_equal(answer.status, WIRE_REFUSED_VERSION);
    assert_round_trip(&answer);
}

static void test_answer_to_another_hello(void **state)
{
    struct wire_hello sent = sample(), answer, bad;

    wire_hello_answer(&sent, "hostb", WIRE_OK, "", &answer);
    bad = answer;
    bad.session[0] ^= 1;
    assert_int_equal(wire_hello_check_answer(&sent, &bad, NULL), -EPROTO);
    bad = answer;
    bad.channel = WIRE_CHANNEL_DATA;
    assert_int_equal(wire_hello_check_answer(&sent, &bad, NULL), -EPROTO);
    bad = answer;
    strcpy(bad.vm, "db");
    assert_int_equal(wire_hello_check_answer(&sent, &bad, NULL), -EPROTO);
    bad = answer;
    bad.resume = !bad.resume;
    assert_int_equal(wire_hello_check_answer(&sent, &bad, NULL), -EPROTO);
    bad = answer;
    bad.version_min = bad.version_max = 4;
    assert_int_equal(wire_hello_check_answer(&sent, &bad, NULL), -EPROTO);
    bad = answer;
    bad.version_min = 2; /* it must choose one */
    assert_int_equal(wire_hello_check_answer(&sent, &bad, NULL), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_round_trip_extremes),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_every_damaged_byte_is_refused),
        cmocka_unit_test(test_malformed_with_right_checksum),
        cmocka_unit_test(test_what_channels_require),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_answer),
        cmocka_unit_test(test_answer_to_another_hello),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
