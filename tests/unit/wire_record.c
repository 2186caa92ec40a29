/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "unit.h"
#include "wire/msg.h"

static const struct arb_record none;
static const struct arb_record solo = {1, ARB_SOLO, "hosta", ""};
static const struct arb_record paired = {2, ARB_PAIRED, "hosta", "hostb"};
static const struct arb_record taken = {3, ARB_SOLO, "hostb", ""};
static const struct arb_record stopped = {4, ARB_SOLO, "", ""};

static struct wire_arb_request cas(const struct arb_record *expected,
                                   const struct arb_record *wanted)
{
    return (struct wire_arb_request){
        .op = WIRE_ARB_CAS, .vm = "web", .expected = *expected, .wanted = *wanted};
}

static void test_names(void **state)
{
    char longest[WIRE_NAME_BYTES + 1] = "";

    assert_true(wire_name_valid("a"));
    assert_true(wire_name_valid("0-"));
    assert_true(wire_name_valid("web-1"));
    assert_false(wire_name_valid(""));
    assert_false(wire_name_valid("-a"));
    assert_false(wire_name_valid("A"));
    assert_false(wire_name_valid("a.b"));
    assert_false(wire_name_valid("a/b"));
    assert_false(wire_name_valid("a\xc3\xa4"));
    memset(longest, 'a', WIRE_NAME_BYTES);
    assert_false(wire_name_valid(longest));
    longest[WIRE_NAME_BYTES - 1] = '\0';
    assert_true(wire_name_valid(longest));
}

static void test_equal_looks_at_every_field(void **state)
{
    struct arb_record other = paired;

    assert_true(arb_record_equal(&paired, &other));
    memset(other.owner + 6, 'x', 3); /* behind the NUL */
    assert_true(arb_record_equal(&paired, &other));
    other = paired;
    other.term++;
    assert_false(arb_record_equal(&paired, &other));
    other = paired;
    other.mode = ARB_SOLO;
    assert_false(arb_record_equal(&paired, &other));
    other = paired;
    other.owner[4] = 'c';
    assert_false(arb_record_equal(&paired, &other));
    other = paired;
    other.standby[4] = 'c';
    assert_false(arb_record_equal(&paired, &other));
}

static void test_record_check(void **state)
{
    static const struct arb_record bad[] = {
        {0, ARB_SOLO, "", ""},       {0, 0, "hosta", ""},          {0, 0, "", "hosta"},
        {1, 0, "hosta", ""},         {1, 3, "hosta", ""},          {1, ARB_SOLO, "Host", ""},
        {1, ARB_SOLO, "hosta", "b"}, {1, ARB_PAIRED, "hosta", ""}, {1, ARB_PAIRED, "", "hostb"},
        {1, ARB_PAIRED, "a", "-b"},  {1, ARB_PAIRED, "a", "a"},
    };
    const struct arb_record *good[] = {&none, &solo, &paired, &taken, &stopped};

    for (size_t i = 0; i < N_OF(bad); i++)
        assert_int_equal(arb_record_check(&bad[i], NULL), -EPROTO);
    for (size_t i = 0; i < N_OF(good); i++)
        assert_int_equal(arb_record_check(good[i], NULL), 0);
}

static void test_request_check(void **state)
{
    struct wire_arb_request r = cas(&solo, &paired);

    assert_int_equal(arb_request_check(&r, NULL), 0);
    r.vm[0] = '\0';
    assert_int_equal(arb_request_check(&r, NULL), -EPROTO);
    r = cas(&none, &solo);
    assert_int_equal(arb_request_check(&r, NULL), 0);
    r = cas(&solo, &taken); /* skips a term */
    assert_int_equal(arb_request_check(&r, NULL), -EPROTO);
    r = cas(&paired, &solo); /* goes back */
    assert_int_equal(arb_request_check(&r, NULL), -EPROTO);
    r = cas(&solo, &none);
    r.expected.term = UINT64_MAX; /* the term after the last one is not 0 */
    assert_int_equal(arb_request_check(&r, NULL), -EPROTO);
    r = cas(&none, &none);
    assert_int_equal(arb_request_check(&r, NULL), -EPROTO);
    r.op = WIRE_ARB_GET;
    assert_int_equal(arb_request_check(&r, NULL), 0);
    r.wanted = solo;
    assert_int_equal(arb_request_check(&r, NULL), -EPROTO);
    r.op = 3;
    assert_int_equal(arb_request_check(&r, NULL), -EPROTO);
}

static void test_register(void **state)
{
    struct arb_record reg = none;
    struct wire_arb_request get = {.op = WIRE_ARB_GET, .vm = "web"};
    struct wire_arb_request start = cas(&none, &solo), pair = cas(&solo, &paired);
    struct wire_arb_reply reply;

    arb_register_apply(&reg, &get, &reply);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(&reply.current, &none));

    arb_register_apply(&reg, &pair, &reply); /* too early */
    assert_int_equal(reply.status, WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&reply.current, &none));
    assert_true(arb_record_equal(&reg, &none));

    arb_register_apply(&reg, &start, &reply);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(&reply.current, &solo));
    assert_true(arb_record_equal(&reg, &solo));

    arb_register_apply(&reg, &start, &reply); /* it is there already: still a conflict */
    assert_int_equal(reply.status, WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&reply.current, &solo));

    arb_register_apply(&reg, &pair, &reply);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    arb_register_apply(&reg, &get, &reply);
    assert_true(arb_record_equal(&reply.current, &paired));
}

/* The two ways out of a pairing exclude each other: the race that design.md's safety rests on. */
static void test_only_one_of_two_swaps_wins(void **state)
{
    const struct arb_record alone = {3, ARB_SOLO, "hosta", ""};
    struct wire_arb_request primary = cas(&paired, &alone), standby = cas(&paired, &taken);
    struct wire_arb_reply first, second;

    for (int order = 0; order < 2; order++) {
        struct arb_record reg = paired;

        arb_register_apply(&reg, order ? &primary : &standby, &first);
        arb_register_apply(&reg, order ? &standby : &primary, &second);
        assert_int_equal(first.status, WIRE_ARB_DONE);
        assert_int_equal(second.status, WIRE_ARB_CONFLICT);
        assert_true(arb_record_equal(&second.current, order ? &alone : &taken));
    }
}

/* docs/protocol.md, "Who may swap": every change that core makes, and what nobody may. */
static void test_who_may_swap(void **state)
{
    static const struct arb_record solo_b = {2, ARB_SOLO, "hostb", ""};
    static const struct arb_record none_2 = {2, ARB_SOLO, "", ""};
    static const struct arb_record alone = {3, ARB_SOLO, "hosta", ""};
    static const struct arb_record none_3 = {3, ARB_SOLO, "", ""};
    static const struct arb_record paired_b = {3, ARB_PAIRED, "hostb", "hosta"};
    static const struct {
        const struct arb_record *expected, *wanted;
        const char *asker;
        bool allowed;
    } cases[] = {
        {&none, &solo, "hosta", true},        /* start */
        {&none, &solo, "hostb", false},       /* for another */
        {&solo, &paired, "hosta", true},      /* pair */
        {&solo, &paired, "hostb", false},     /* make oneself its standby */
        {&paired, &alone, "hosta", true},     /* the standby is lost */
        {&paired, &alone, "hostb", false},    /* its last right taken by itself */
        {&paired, &taken, "hostb", true},     /* take over */
        {&paired, &taken, "hosta", false},    /* thrust upon it */
        {&paired, &taken, "hostc", false},    /* by a third */
        {&paired, &paired_b, "hostb", false}, /* a pair is made by its owner only */
        {&solo, &solo_b, "hostb", true},      /* seize */
        {&solo, &none_2, "hosta", true},      /* stop */
        {&solo, &none_2, "hostb", false},     /* stop another's */
        {&paired, &none_3, "hosta", true},    {&paired, &none_3, "hostb", false},
    };

    for (size_t i = 0; i < N_OF(cases); i++) {
        struct wire_arb_request r = cas(cases[i].expected, cases[i].wanted);

        assert_int_equal(arb_request_check(&r, NULL), 0);
        if (arb_request_allowed(&r, cases[i].asker) != cases[i].allowed)
            fail_msg("case %zu", i);
        r = (struct wire_arb_request){.op = WIRE_ARB_GET, .vm = "web"};
        assert_true(arb_request_allowed(&r, cases[i].asker));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),        cmocka_unit_test(test_equal_looks_at_every_field),
        cmocka_unit_test(test_record_check), cmocka_unit_test(test_request_check),
        cmocka_unit_test(test_register),     cmocka_unit_test(test_only_one_of_two_swaps_wins),
        cmocka_unit_test(test_who_may_swap),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
