/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "io/etcd.h"
#include "unit.h"

/* What is said to etcd, byte by byte, and what of its answers is believed. */

#define PREFIX "/p/"
#define KEY    "/p/registers/web"
#define VALUE  "{\"term\":7,\"owner\":\"hosta\",\"mode\":\"paired\",\"standby\":\"hostb\"}"
#define SOLO   "{\"term\":8,\"owner\":\"hosta\",\"mode\":\"solo\",\"standby\":\"\"}"

/* Parts of answers; lengths fit a byte. */
#define HEADER         "\x0a\x06\x08\x4d\x10\x01\x18\x05" /* cluster 77, member 1, revision 5 */
#define OLDER_HEADER   "\x0a\x02\x08\x4d"                 /* without a revision */
#define KV(key, value) "\x0a" key "\x10\x02\x2a" value    /* create revision 2 */
#define WEB_KV         "\x12\x52" KV("\x10" KEY, "\x3c" VALUE)
#define MORE           "\x18\x01"
#define SUCCEEDED      "\x10\x01"
#define PUT_DONE       "\x1a\x02\x12\x00"
#define FOUND_WEB      "\x1a\x56\x0a\x54" WEB_KV
#define FOUND_NOTHING  "\x1a\x02\x0a\x00"

static const struct arb_record none;
#define PAIRED_RECORD                                                                              \
    {                                                                                              \
        7, ARB_PAIRED, "hosta", "hostb"                                                            \
    }
#define SOLO_RECORD                                                                                \
    {                                                                                              \
        8, ARB_SOLO, "hosta", ""                                                                   \
    }
static const struct arb_record paired = PAIRED_RECORD;
static const struct arb_record solo = SOLO_RECORD;
static const struct wire_arb_request get = {.op = WIRE_ARB_GET, .vm = "web"};
static const struct wire_arb_request swap = {WIRE_ARB_CAS, "web", PAIRED_RECORD, SOLO_RECORD};

#define assert_message(m, method_is, bytes_are)                                                    \
    do {                                                                                           \
        assert_string_equal((m)->method, method_is);                                               \
        assert_int_equal((m)->n_bytes, sizeof(bytes_are) - 1);                                     \
        assert_memory_equal((m)->bytes, bytes_are, sizeof(bytes_are) - 1);                         \
    } while (0)

static void test_values(void **state)
{
    struct arb_record record, longest = {INT64_MAX, ARB_PAIRED, "", ""};
    char value[ETCD_VALUE_MAX];

    assert_int_equal(etcd_value_format(&paired, value), 0);
    assert_string_equal(value, VALUE);
    assert_int_equal(etcd_value_format(&solo, value), 0);
    assert_string_equal(value, SOLO);
    memset(longest.owner, 'a', WIRE_NAME_BYTES - 1);
    memset(longest.standby, 'b', WIRE_NAME_BYTES - 1);
    assert_int_equal(etcd_value_format(&longest, value), 0);
    assert_int_equal(etcd_value_parse(value, strlen(value), &record, NULL), 0);
    assert_true(arb_record_equal(&record, &longest));
    longest.term++;
    assert_int_equal(etcd_value_format(&longest, value), -ERANGE);
    for (size_t n = 0; n < sizeof(VALUE) - 1; n++)
        assert_int_equal(etcd_value_parse(VALUE, n, &record, NULL), -EBADMSG);
    assert_int_equal(etcd_value_parse(VALUE, sizeof(VALUE), &record, NULL), -EBADMSG); /* a NUL */
}

static void test_requests(void **state)
{
    struct wire_arb_request start = {WIRE_ARB_CAS, "web", none, {1, ARB_SOLO, "hosta", ""}};
    struct wire_arb_request beyond = {.op = WIRE_ARB_CAS, .vm = "web"};
    struct etcd_message m;

    assert_int_equal(etcd_encode(PREFIX, &get, &m, NULL), 0);
    assert_message(&m, "/etcdserverpb.KV/Range", "\x0a\x10" KEY);
    assert_int_equal(etcd_encode(PREFIX, &swap, &m, NULL), 0);
    assert_message(&m, "/etcdserverpb.KV/Txn",
                   "\x0a\x54\x08\x00\x10\x03\x1a\x10" KEY "\x3a\x3c" VALUE /* the value equals */
                   "\x12\x4b\x12\x49\x0a\x10" KEY "\x12\x35" SOLO          /* put */
                   "\x1a\x14\x0a\x12\x0a\x10" KEY);                        /* else range */
    assert_int_equal(etcd_encode(PREFIX, &start, &m, NULL), 0);
    assert_memory_equal(m.bytes, "\x0a\x18\x08\x00\x10\x01\x1a\x10" KEY "\x28\x00", 26);
    etcd_encode_list(PREFIX, "", &m);
    assert_message(&m, "/etcdserverpb.KV/Range",
                   "\x0a\x0d/p/registers/\x12\x0d/p/registers0\x18\x40");
    etcd_encode_list(PREFIX, "web", &m);
    assert_message(&m, "/etcdserverpb.KV/Range", "\x0a\x11" KEY "\0\x12\x0d/p/registers0\x18\x40");
    beyond.expected.term = INT64_MAX;
    beyond.expected.mode = beyond.wanted.mode = ARB_SOLO;
    beyond.wanted.term = (uint64_t)INT64_MAX + 1;
    assert_int_equal(etcd_encode(PREFIX, &beyond, &m, NULL), -ERANGE);
}

struct decode_case {
    const char *what;
    const struct wire_arb_request *request;
    const char *bytes;
    size_t n;
    int status; /* of the reply, or -EPROTO */
    const struct arb_record *current;
};

#define ANSWER(bytes) bytes, sizeof(bytes) - 1

static void test_answers(void **state)
{
    static const struct decode_case cases[] = {
        {"a record", &get, ANSWER(HEADER WEB_KV), WIRE_ARB_DONE, &paired},
        {"no record", &get, ANSWER(HEADER), WIRE_ARB_DONE, &none},
        {"an unknown field", &get, ANSWER(HEADER "\x7d\1\2\3\4\x79\1\2\3\4\5\6\7\x8"),
         WIRE_ARB_DONE, &none},
        {"nothing", &get, ANSWER(""), -EPROTO, NULL},
        {"no header", &get, ANSWER(WEB_KV), -EPROTO, NULL},
        {"no revision", &get, ANSWER(OLDER_HEADER WEB_KV), -EPROTO, NULL},
        {"two records", &get, ANSWER(HEADER WEB_KV WEB_KV), -EPROTO, NULL},
        {"more records", &get, ANSWER(HEADER WEB_KV MORE), -EPROTO, NULL},
        {"another key", &get, ANSWER(HEADER "\x12\x52" KV("\x10/p/registers/wec", "\x3c" VALUE)),
         -EPROTO, NULL},
        {"a key's beginning", &get,
         ANSWER(HEADER "\x12\x51" KV("\x0f/p/registers/we", "\x3c" VALUE)), -EPROTO, NULL},
        {"no value", &get, ANSWER(HEADER "\x12\x12\x0a\x10" KEY), WIRE_ARB_ERROR, &none},
        {"another's value", &get, ANSWER(HEADER "\x12\x18" KV("\x10" KEY, "\x02{}")),
         WIRE_ARB_ERROR, &none},
        {"a swap's answer", &get, ANSWER(HEADER SUCCEEDED PUT_DONE), -EPROTO, NULL},
        {"number 0", &get, ANSWER(HEADER "\x02\x00"), -EPROTO, NULL},
        {"an endless number", &get,
         ANSWER(HEADER "\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), -EPROTO, NULL},
        {"a group", &get, ANSWER(HEADER "\x1b"), -EPROTO, NULL},
        {"a length beyond the end", &get,
         ANSWER(HEADER "\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), -EPROTO, NULL},

        {"done", &swap, ANSWER(HEADER SUCCEEDED PUT_DONE), WIRE_ARB_DONE, &solo},
        {"conflict", &swap, ANSWER(HEADER FOUND_WEB), WIRE_ARB_CONFLICT, &paired},
        {"conflict, empty", &swap, ANSWER(HEADER FOUND_NOTHING), WIRE_ARB_CONFLICT, &none},
        {"neither", &swap, ANSWER(HEADER), -EPROTO, NULL},
        {"done, not put", &swap, ANSWER(HEADER SUCCEEDED), -EPROTO, NULL},
        {"done, and found", &swap, ANSWER(HEADER SUCCEEDED FOUND_WEB), -EPROTO, NULL},
        {"conflict, and put", &swap, ANSWER(HEADER PUT_DONE), -EPROTO, NULL},
        {"conflict, twice", &swap, ANSWER(HEADER FOUND_WEB FOUND_WEB), -EPROTO, NULL},
        {"a range's answer", &swap, ANSWER(HEADER WEB_KV), -EPROTO, NULL},
    };

    for (size_t i = 0; i < N_OF(cases); i++) {
        const struct decode_case *c = &cases[i];
        struct wire_arb_reply reply;
        struct etcd_header header;
        struct err err = {"before"};
        int r =
            etcd_decode(PREFIX, c->request, (const uint8_t *)c->bytes, c->n, &reply, &header, &err);

        if (r != (c->status < 0 ? c->status : 0) || (r == 0 && reply.status != c->status))
            fail_msg("%s: %d, status %u", c->what, r, reply.status);
        if (r == 0) {
            assert_int_equal(header.cluster_id, 77);
            assert_int_equal(header.revision, 5);
            assert_true(arb_record_equal(&reply.current, c->current));
        }
        assert_int_equal(err.text[0] != '\0', r < 0 || reply.status == WIRE_ARB_ERROR);
    }
}

/* Cut off anywhere, an answer is none, unless what is left has another meaning; which is why the
 * length that gRPC tells counts. */
static void test_cut_answers(void **state)
{
    static const uint8_t range[] = HEADER WEB_KV, txn[] = HEADER FOUND_WEB;
    struct wire_arb_reply reply;
    struct etcd_header header;

    for (size_t n = 0; n < sizeof(range) - 1; n++)
        assert_int_equal(etcd_decode(PREFIX, &get, range, n, &reply, &header, NULL),
                         n == sizeof(HEADER) - 1 ? 0 : -EPROTO);
    for (size_t n = 0; n < sizeof(txn) - 1; n++)
        assert_int_equal(etcd_decode(PREFIX, &swap, txn, n, &reply, &header, NULL), -EPROTO);
}

static void count(void *user, const char *vm, const struct arb_record *record)
{
    assert_string_equal(vm, "web");
    assert_true(arb_record_equal(record, &paired));
    ++*(unsigned *)user;
}

static void test_lists(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        int result;
        unsigned n_told;
    } cases[] = {
        {ANSWER(HEADER), 0, 0},
        {ANSWER(HEADER WEB_KV), 0, 1},
        {ANSWER(HEADER WEB_KV MORE), 1, 1},
        {ANSWER(HEADER MORE), -EPROTO, 0}, /* would be asked for ever */
        {ANSWER(WEB_KV), -EPROTO, 0},
        {ANSWER(HEADER "\x12\x18" KV("\x10" KEY, "\x02{}")), -EBADMSG, 0},
        {ANSWER(HEADER "\x12\x4f" KV("\x0d/p/registers/", "\x3c" VALUE)), -EBADMSG, 0},
        {ANSWER(HEADER "\x12\x52" KV("\x10/p/registers/Web", "\x3c" VALUE)), -EBADMSG, 0},
        {ANSWER(HEADER "\x12\x52" KV("\x10/q/registers/web", "\x3c" VALUE)), -EBADMSG, 0},
    };

    for (size_t i = 0; i < N_OF(cases); i++) {
        char last[WIRE_NAME_BYTES] = "";
        unsigned n = 0;

        assert_int_equal(etcd_decode_list(PREFIX, (const uint8_t *)cases[i].bytes, cases[i].n,
                                          count, &n, last, NULL),
                         cases[i].result);
        assert_int_equal(n, cases[i].n_told);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),  cmocka_unit_test(test_requests),
        cmocka_unit_test(test_answers), cmocka_unit_test(test_cut_answers),
        cmocka_unit_test(test_lists),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
