/* SPDX-License-Identifier: Apache-2.0 */
#include "controller_model.h"

/* Loads on a fast link. */
static const struct load idle = {
    .ns = 20 * S, .dirty_per_s = 100, .busy = 5, .carries = 800000000, .trip_ns = 200 * US};
static const struct load ping = {.ns = 20 * S,
                                 .dirty_per_s = 2000,
                                 .busy = 10,
                                 .clients = 1,
                                 .think_ns = 7 * MS,
                                 .service_ns = 300 * US,
                                 .carries = 800000000,
                                 .trip_ns = 200 * US};
static const struct load compile = {.ns = 20 * S,
                                    .dirty_per_s = 30000,
                                    .busy = PERMILLE,
                                    .clients = 1,
                                    .think_ns = 500 * US,
                                    .service_ns = 100 * US,
                                    .carries = 800000000,
                                    .trip_ns = 200 * US};
static const struct load server = {.ns = 20 * S,
                                   .dirty_per_s = 30000,
                                   .clients = 50,
                                   .think_ns = 300 * US,
                                   .service_ns = 200 * US,
                                   .carries = 800000000,
                                   .trip_ns = 200 * US};

/* Nobody talks: as few cuts as permitted. */
static void check_idle(struct model *m)
{
    go(m, &idle, S);
    report(m, "idle");
    assert_in_range(m->cuts, 36, 40);
    assert_int_equal(m->held_ns, 0);
}

/* One request after the other, from a guest with nothing else to do: one checkpoint each. */
static void check_ping(struct model *m)
{
    go(m, &ping, 0);
    report(m, "ping");
    assert_in_range(percentile(m->latency_us, m->answers, 50), 2000, 5000);
    assert_in_range(percentile(m->latency_us, m->answers, 99), 2000, 8000);
    assert_in_range(slowdown(m), 1, 50);
}

/* Busy, and something to say at any time: held to its bound, evenly. */
static void check_compile(struct model *m)
{
    uint32_t low, high;

    go(m, &compile, 5 * S);
    report(m, "compile");
    assert_in_range(slowdown(m), 230, 255);
    low = percentile(m->interval_us, m->n_intervals, 1);
    high = percentile(m->interval_us, m->n_intervals, 99);
    assert_true(high <= low + low / 4);
    assert_int_equal(m->held_ns, 0);
}

/* Clients that wait for their answers: three fifths of what they would get without protection. */
static void check_server(struct model *m)
{
    uint64_t alone = S / server.service_ns * (server.ns - 5 * S) / S;

    go(m, &server, 5 * S);
    report(m, "server");
    assert_true(m->answers >= alone * 6 / 10);
    assert_in_range(slowdown(m), 50, 255);
}

/* Much is written at once: the link is outrun for a second, but not for long. */
static void check_burst(struct model *m)
{
    struct load burst = compile;

    burst.ns = S;
    burst.dirty_per_s = 400000;
    go(m, &burst, 0);
    report(m, "burst");
    assert_true(m->held_ns > 0);
    assert_in_range(m->longest_stop_ns, 1, 250 * MS);
    assert_true(m->most_bytes <= UINT64_C(256) << 20);
    assert_false(m->outrun);
}

/* The link gets slow under a load that it used to carry. */
static void check_slow_link(struct model *m)
{
    struct load slow = compile;
    struct controller other;

    slow.ns = 30 * S;
    slow.carries = 40000000;
    go(m, &slow, 5 * S);
    report(m, "slow link");
    assert_true(m->held_ns > 5 * S);
    assert_in_range(m->longest_stop_ns, 1, 200 * MS);
    /* 4 MB are carried in 100 ms: so much may be there already when as much is cut. */
    assert_in_range(m->most_bytes, 1 << 20, 10 << 20);
    assert_in_range(percentile(m->latency_us, m->answers, 99), 1, 250000);
    assert_true(m->outrun);
    assert_true(controller_outrun(&m->c, m->now));
    other = m->c;
    controller_link(&other, MS, m->now);
    assert_false(controller_outrun(&other, m->now)); /* another link was not outrun */
}

/* The link is fast again: epochs may be as large as memory permits. */
static void check_writer(struct model *m)
{
    struct load writer = compile;
    struct controller_figures f;

    writer.ns = 5 * S;
    writer.clients = 0;
    writer.dirty_per_s = 390000;
    writer.carries = UINT64_C(4000000000);
    go(m, &writer, S);
    report(m, "writer");
    controller_figures_get(&m->c, &f);
    assert_int_equal(f.epoch_pages, 8192);
    assert_in_range(m->largest_pages, 8192, 12500); /* looked at in time */
    assert_int_equal(m->held_ns, 0);
}

/* 100 ms to the standby and back: output is late by that and an interval, not by twice that. */
static void check_long_link(struct model *m)
{
    struct load far = ping;

    far.clients = 16;
    far.trip_ns = 100 * MS;
    controller_link(&m->c, far.trip_ns, m->now);
    go(m, &far, S);
    report(m, "long link");
    assert_in_range(percentile(m->latency_us, m->answers, 50), 100000, 112000);
    assert_in_range(percentile(m->latency_us, m->answers, 99), 100000, 120000);
    assert_true(m->most_in_flight >= 8);
    assert_int_equal(m->held_ns, 0);
}

/* The hosts take longer for an epoch than there is between two: cuts do not queue up for them. */
static void check_slow_hosts(struct model *m)
{
    struct load slow = server;

    slow.service_ns = 50 * US;
    slow.epoch_ns = 20 * MS;
    go(m, &slow, 5 * S);
    report(m, "slow hosts");
    assert_true(m->most_in_flight <= 3);
    assert_in_range(percentile(m->latency_us, m->answers, 99), 1, 70000);
}

static void test_trace(void **state)
{
    struct controller_params p = params();
    struct model *m = model_new(&p);

    check_idle(m);
    check_ping(m);
    check_compile(m);
    check_server(m);
    check_burst(m);
    check_ping(m);
    check_slow_hosts(m);
    check_slow_link(m);
    check_idle(m);
    assert_false(controller_outrun(&m->c, m->now));
    check_writer(m);
    check_compile(m);
    check_long_link(m);
    check_idle(m);
    free(m);
}

/* A bound that pauses alone would exceed: kept while the load lasts, whatever came before; what was
 * saved up is a second's worth and no more. */
static void test_slowdown(void **state)
{
    struct controller_params p = params();
    struct load busy = compile;
    struct model *m;

    p.slowdown_permille = 100;
    p.interval_min_ns = MS;
    m = model_new(&p);
    go(m, &idle, S);
    busy.ns = S;
    go(m, &busy, 0);
    report(m, "compile at 10 %, first second");
    assert_in_range(slowdown(m), 150, 210);
    busy.ns = 4 * S;
    go(m, &busy, 0);
    report(m, "compile at 10 %, then");
    assert_in_range(slowdown(m), 95, 105);
    check_ping(m);
    check_ping(m);
    free(m);
}

/* Pauses that cost more than is permitted, each interval_max: no debt is left over. */
static void test_debt(void **state)
{
    struct controller_params p = params();
    struct controller_input in = {.frames_wait = true};
    struct controller_epoch epoch = {.pause_ns = 300 * MS, .busy_permille = PERMILLE};
    struct controller_figures f;
    struct controller c;
    uint64_t now = S;

    p.slowdown_permille = 100;
    controller_init(&c, &p, now);
    for (int i = 0; i < 100; i++) {
        controller_cut(&c, &epoch, now);
        now = controller_deadline(&c, &in, now);
    }
    assert_int_equal(now, S + 100 * p.interval_max_ns);
    controller_figures_get(&c, &f);
    assert_int_equal(f.interval_ns, p.interval_max_ns);
    epoch.pause_ns = 0;
    controller_cut(&c, &epoch, now);
    assert_int_equal(controller_deadline(&c, &in, now), now + p.interval_min_ns);
}

/* The published algorithm: one epoch each interval, when the one before is acknowledged. */
static void test_fixed(void **state)
{
    struct controller_params p = params();
    struct controller_input in = {.frames_wait = true, .disks_press = true, .dirty_pages = 1 << 20};
    struct controller_epoch epoch = {.epoch = 1,
                                     .pause_ns = 90 * MS,
                                     .busy_permille = PERMILLE,
                                     .bytes = 1 << 30,
                                     .in_flight = true};
    struct controller c;

    p.fixed = true;
    p.interval_max_ns = 25 * MS;
    controller_init(&c, &p, S);
    assert_int_equal(controller_deadline(&c, &in, S), S + 25 * MS);
    controller_cut(&c, &epoch, S + 30 * MS);
    assert_false(controller_holds(&c, S + 30 * MS));
    assert_int_equal(controller_deadline(&c, &in, S + 60 * MS), UINT64_MAX);
    controller_acked(&c, 1, S + 70 * MS);
    in = (struct controller_input){.dirty_pages = 0};
    assert_int_equal(controller_deadline(&c, &in, S + 40 * MS), S + 55 * MS);
}

/* Memory bounds what is in flight, before anything is known of the link; a link that is gone holds
 * nobody. */
static void test_hold(void **state)
{
    struct controller_params p = params();
    struct controller_input in = {.frames_wait = true};
    struct controller_epoch epoch = {.epoch = 1, .bytes = 8 << 20, .in_flight = true};
    struct controller_figures f;
    struct controller c;

    p.in_flight_bytes_max = 8 << 20;
    controller_init(&c, &p, S);
    controller_cut(&c, &epoch, S);
    assert_false(controller_holds(&c, S)); /* there was room when it was cut */
    assert_true(controller_full(&c));
    assert_int_equal(controller_deadline(&c, &in, S), UINT64_MAX);
    in.dirty_pages = p.epoch_pages_max;
    assert_int_equal(controller_deadline(&c, &in, S), S + p.interval_min_ns);
    epoch.epoch = 2;
    controller_cut(&c, &epoch, S + 5 * MS);
    assert_true(controller_holds(&c, S + 5 * MS));
    controller_acked(&c, 1, S + 10 * MS);
    assert_true(controller_holds(&c, S + 10 * MS));
    controller_acked(&c, 2, S + 15 * MS);
    assert_false(controller_holds(&c, S + 15 * MS));
    controller_figures_get(&c, &f);
    assert_int_equal(f.in_flight_bytes, 0);
    assert_in_range(f.held_permille, 600, 700);

    epoch.epoch = 3;
    controller_cut(&c, &epoch, S + 20 * MS);
    epoch.epoch = 4;
    controller_cut(&c, &epoch, S + 25 * MS);
    assert_true(controller_holds(&c, S + 25 * MS));
    controller_forget(&c, S + 30 * MS);
    assert_false(controller_holds(&c, S + 30 * MS));
    controller_acked(&c, 4, S + 35 * MS); /* of a former link: nothing */

    epoch = (struct controller_epoch){.epoch = 5, .bytes = 1 << 30};
    controller_cut(&c, &epoch, S + 40 * MS); /* lost before it was sent */
    controller_figures_get(&c, &f);
    assert_int_equal(f.in_flight, 0);
}

/* No more than the table holds, whatever happens; time that jumps. */
static void test_limits(void **state)
{
    struct controller_params p = params();
    struct controller_input in = {.frames_wait = true, .dirty_pages = 1 << 20};
    struct controller_epoch epoch = {.pause_ns = UINT64_MAX / 2,
                                     .busy_permille = PERMILLE,
                                     .bytes = UINT64_C(1) << 40,
                                     .in_flight = true};
    struct controller_figures f;
    struct controller c;
    uint64_t now = S;

    controller_init(&c, &p, now);
    for (epoch.epoch = 1; epoch.epoch < 100; epoch.epoch++) {
        controller_cut(&c, &epoch, now);
        now += epoch.epoch * S;
    }
    controller_figures_get(&c, &f);
    assert_int_equal(f.in_flight, CONTROLLER_IN_FLIGHT_MAX);
    assert_int_equal(controller_deadline(&c, &in, now), UINT64_MAX);
    controller_acked(&c, 99, now);
    now += 1000000 * S;
    assert_false(controller_outrun(&c, now));
    assert_true(controller_due(&c, &in, now));
    in = (struct controller_input){.frames_wait = true};
    assert_true(controller_due(&c, &in, now)); /* no debt lasts that long */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trace), cmocka_unit_test(test_slowdown),
        cmocka_unit_test(test_debt),  cmocka_unit_test(test_fixed),
        cmocka_unit_test(test_hold),  cmocka_unit_test(test_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
