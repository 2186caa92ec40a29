/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "core/copy.h"
#include "unit.h"

/* "we" are hosta. The rule as a whole is checked against histories by the simulation. */

#define SELF "hosta"

static struct arb_record reg(uint64_t term, const char *owner, const char *standby)
{
    struct arb_record r = {.term = term, .mode = standby[0] ? ARB_PAIRED : ARB_SOLO};

    if (!term)
        r.mode = 0;
    strcpy(r.owner, owner);
    strcpy(r.standby, standby);
    return r;
}

struct judged {
    enum copy_role role;
    uint64_t term;
    enum copy_verdict verdict;
};

static void check(const struct arb_record *r, const struct judged *rows, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        struct copy_record copy = {.role = rows[i].role, .term = rows[i].term};

        if (copy_judge(&copy, r, SELF) != rows[i].verdict)
            fail_msg("row %zu: verdict %d", i, (int)copy_judge(&copy, r, SELF));
    }
}

static void test_first_start(void **state)
{
    static const struct judged rows[] = {
        {COPY_NONE, 0, COPY_NEWEST},
        {COPY_PRIMARY, 5, COPY_NEWEST}, /* an arbiter that was set up anew */
        {COPY_STANDBY, 5, COPY_OLDER},
        {COPY_SYNCING, 0, COPY_INCOMPLETE},
    };
    struct arb_record r = reg(0, "", "");

    check(&r, rows, N_OF(rows));
}

static void test_stopped(void **state)
{
    static const struct judged rows[] = {
        {COPY_PRIMARY, 9, COPY_NEWEST}, /* stopped here, and written down */
        {COPY_PRIMARY, 8, COPY_NEWEST}, /* ... or not */
        {COPY_PRIMARY, 7, COPY_OLDER},  /* another host took it over, then stopped it */
        {COPY_PRIMARY, 10, COPY_OLDER}, /* of an earlier register */
        {COPY_STANDBY, 8, COPY_OLDER},      {COPY_STANDBY, 9, COPY_OLDER},
        {COPY_SYNCING, 0, COPY_INCOMPLETE}, {COPY_NONE, 0, COPY_UNKNOWN},
    };
    struct arb_record r = reg(9, "", "");

    check(&r, rows, N_OF(rows));
}

static void test_ours(void **state)
{
    static const struct judged rows[] = {
        {COPY_PRIMARY, 9, COPY_NEWEST},
        {COPY_PRIMARY, 1, COPY_NEWEST},
        {COPY_PRIMARY, 10, COPY_OLDER},
        {COPY_STANDBY, 8, COPY_NEWEST}, /* taken over, not run */
        {COPY_STANDBY, 9, COPY_OLDER},
        {COPY_STANDBY, 7, COPY_OLDER},
        {COPY_SYNCING, 0, COPY_INCOMPLETE},
        {COPY_NONE, 0, COPY_UNKNOWN},
    };
    static const struct judged first[] = {
        {COPY_NONE, 0, COPY_NEWEST}, /* the very first start was cut short */
        {COPY_SYNCING, 0, COPY_INCOMPLETE},
    };
    struct arb_record r = reg(9, SELF, ""), paired = reg(9, SELF, "hostb"), one = reg(1, SELF, "");

    check(&r, rows, N_OF(rows));
    check(&paired, rows, N_OF(rows));
    check(&one, first, N_OF(first));
}

static void test_anothers(void **state)
{
    static const struct judged rows[] = {
        {COPY_PRIMARY, 9, COPY_OLDER},      {COPY_PRIMARY, 8, COPY_OLDER},
        {COPY_STANDBY, 9, COPY_OLDER},      {COPY_STANDBY, 8, COPY_OLDER},
        {COPY_SYNCING, 0, COPY_INCOMPLETE}, {COPY_NONE, 0, COPY_UNKNOWN},
    };
    struct arb_record r = reg(9, "hostb", ""), paired = reg(9, "hostb", SELF);

    check(&r, rows, N_OF(rows));
    check(&paired, rows, N_OF(rows));
}

static void assert_refused(const struct start_order *order, const struct arb_record *r,
                           const char *with)
{
    const char *why = start_refusal(order, r, SELF);

    if (!with)
        assert_null(why);
    else if (!why || !strstr(why, with))
        fail_msg("'%s' does not say '%s'", why, with);
}

static void test_refusals(void **state)
{
    struct arb_record none = reg(0, "", ""), ours = reg(9, SELF, ""),
                      paired = reg(9, SELF, "hostb"), theirs = reg(9, "hostb", SELF),
                      stopped = reg(9, "", "");
    struct start_order order = {.has_disks = false};

    assert_refused(&order, &none, NULL);
    assert_refused(&order, &ours, NULL);
    assert_refused(&order, &stopped, NULL);
    assert_refused(&order, &theirs, "another host owns it");
    assert_refused(&order, &paired, "understudy recover");
    order.recover = true;
    assert_refused(&order, &paired, NULL);
    assert_refused(&order, &theirs, "--seize");

    order = (struct start_order){.has_disks = true};
    assert_refused(&order, &none, NULL);
    assert_refused(&order, &ours, "nothing is known");
    order.copy = (struct copy_record){.role = COPY_PRIMARY, .term = 7};
    assert_refused(&order, &ours, NULL);
    assert_refused(&order, &paired, "understudy recover");
    assert_refused(&order, &stopped, "older");
    order.recover = true;
    assert_refused(&order, &paired, NULL);
    assert_refused(&order, &stopped, "older");
    order.copy.role = COPY_SYNCING;
    assert_refused(&order, &paired, "not complete");
    order.seize = true;
    assert_refused(&order, &paired, NULL);
    assert_refused(&order, &theirs, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_start), cmocka_unit_test(test_stopped),
        cmocka_unit_test(test_ours),        cmocka_unit_test(test_anothers),
        cmocka_unit_test(test_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
