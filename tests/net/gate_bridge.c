/* SPDX-License-Identifier: Apache-2.0 */
#include "gate_rig.h"
#include "io/announce.h"

/* The output gate holds, releases and drops what it should, at a real bridge (gate_rig.h). */

enum { ALL = NICS * KINDS }; /* frames of rig_send_all_kinds() */

static struct output_stats stats(void)
{
    struct output_stats s;

    output_stats_get(rig.output, &s);
    return s;
}

/* Whatever its kind, no frame leaves before its epoch is committed, whatever else happens. That all
 * of them are seen when they do leave shows that we would have seen them. */
static void nothing_leaves_while_holding(void **state)
{
    assert_false(output_waits(rig.output));
    for (unsigned i = 0; i < ALL; i++) {
        rig_send((i / KINDS + i) % NICS, i % KINDS);
        rig_expect_left(0);
        rig_hear();
        rig_expect_left(0);
    }
    assert_true(output_waits(rig.output));
    assert_false(output_full(rig.output));
    output_take(rig.output);
    rig_commit(0);
    rig_cut();
    assert_false(output_waits(rig.output)); /* none of the epoch that is open now */
    rig_commit(0);
    rig_hear();
    rig_expect_left(0);
    rig_expect_stats(ALL, 0, 0);
    rig_commit(1);
    rig_expect_left(ALL);
    rig_expect_stats(0, ALL, 0);
}

static void epochs_leave_on_commit(void **state)
{
    for (int epoch = 1; epoch <= 4; epoch++) {
        rig_send_all_kinds();
        rig_cut();
    }
    rig_send_all_kinds(); /* epoch 5, still open */
    rig_expect_left(0);
    rig_commit(1);
    rig_expect_left(ALL);
    rig_expect_stats(4 * ALL, ALL, 0);
    rig_commit(3); /* an acknowledgement may cover several */
    rig_expect_left(2 * ALL);
    rig_commit(4);
    rig_expect_left(ALL);
    rig_expect_stats(ALL, 4 * ALL, 0);
    rig_cut();
    rig_commit(5);
    rig_expect_left(ALL);
}

/* What counts is when a frame is read; output_take() reads all that was sent before. */
static void reading_decides_the_epoch(void **state)
{
    enum { BURST = 200 }; /* more than the gate reads at once */

    rig_send(0, IPV4); /* until the gate knows the hypervisor, few frames fit into a socket */
    rig_send(1, IPV4);
    for (unsigned i = 0; i < 2 * BURST; i++)
        assert_true(rig_try_send(i / BURST, SHORT));
    rig_expect_stats(2, 0, 0);
    output_take(rig.output);
    rig_expect_stats(2 + 2 * BURST, 0, 0);
    assert_true(rig_try_send(1, IPV6)); /* sent before the cut but not read: safe in the next */
    gate_cut(&rig.gate, 1);
    rig_run_loop();
    rig_send(0, IPV6);
    rig_expect_stats(2 + 2 * BURST + 2, 0, 0);
    rig_commit(1);
    rig_expect_left(2 + 2 * BURST);
    rig_cut();
    rig_commit(2);
    rig_expect_left(2);
}

static void flowing(void **state)
{
    rig_send_all_kinds();
    rig_cut();
    rig_send_all_kinds();
    assert_true(rig_try_send(0, SHORT)); /* not even read yet */
    rig_expect_left(0);
    rig_flow();
    rig_expect_left(2 * ALL);
    rig_run_loop();
    rig_expect_left(1);
    assert_false(output_waits(rig.output));
    for (unsigned i = 0; i < ALL; i++) {
        rig_send(i % NICS, i % KINDS);
        rig_expect_left(1);
    }
    rig.gate.holding = true; /* protected again */
    rig_send(0, SHORT);
    rig_expect_left(0);
    rig_expect_stats(1, 3 * ALL + 1, 0);
}

/* The first frames of a burst do not wait for its end, which may never come. */
static void flowing_burst(void **state)
{
    enum { BURST = NETPORT_BATCH + 1 };
    uint32_t released;

    rig_flow();
    rig_send(0, IPV4);
    rig_expect_left(1);
    for (int i = 0; i < BURST; i++)
        assert_true(rig_try_send(0, SHORT));
    assert_true(sd_event_run(rig.body.event, 0) > 0);
    released = (uint32_t)stats().released_frames - 1;
    assert_in_range(released, 1, BURST - 1);
    rig_expect_left(released);
    rig_run_loop();
    rig_expect_left(BURST - released);
}

/* Sends frames until the gate is full: of the kinds from `first` on, in an order that follows from
 * the numbers of the frames and looks random. */
static void fill(unsigned first)
{
    while (!output_full(rig.output)) {
        uint64_t hash = rig.n_sent * UINT64_C(0x9e3779b97f4a7c15);

        rig_send(0, first + (unsigned)((hash ^ hash >> 29) >> 8) % (KINDS - first));
    }
}

/* Full again and again, with two epochs in it: frames of all lengths lie everywhere in the ring
 * that is its memory, and leave the largest gaps there. */
static void refill(unsigned first)
{
    uint32_t old = 5, new;

    for (unsigned i = 0; i < old; i++)
        rig_send(0, GIANT);
    for (uint64_t epoch = 1; epoch < 100; epoch++) {
        rig_cut();
        fill(first);
        new = (uint32_t)stats().held_frames - old;
        assert_true(new > 0);
        assert_int_equal(rig.n_left + old + new, rig.n_sent);
        rig_expect_left(0);
        rig_commit(epoch);
        rig_expect_left(old);
        assert_false(output_full(rig.output));
        rig_expect_stats(new, rig.n_left, 0);
        old = new;
    }
    rig_flow();
    rig_expect_left(old);
}

static void full_of_all_kinds(void **state)
{
    refill(0);
}

static void full_of_long_frames(void **state)
{
    refill(GIANT - 2);
}

/* Where the book-keeping takes more room than the frames. */
static void full_of_short_frames(void **state)
{
    while (!output_full(rig.output))
        rig_send(rig.n_sent % NICS, SHORT);
    assert_in_range(rig.n_sent, 10000, LOG_FRAMES);
    rig_expect_left(0);
    rig_expect_stats(rig.n_sent, 0, 0);
    rig_cut();
    rig_commit(1);
    rig_expect_left(rig.n_sent);
    rig_expect_stats(0, rig.n_left, 0);
}

/* Sends until the NIC's socket is full too. Returns how many frames wait there. */
static uint32_t send_until_blocked(unsigned nic)
{
    uint32_t before = rig.n_sent;

    while (rig_try_send(nic, rig.n_sent % KINDS))
        rig_run_loop();
    rig_run_loop();
    assert_false(rig_try_send(nic, GIANT)); /* and not for lack of patience */
    return rig.n_sent - before;
}

/* A full gate does not read: the guest has to wait, and nothing is lost. */
static void full_gate_blocks_the_guest(void **state)
{
    uint32_t held, waiting;

    rig_send(1, IPV4);
    fill(0);
    held = rig.n_sent;
    waiting = send_until_blocked(1);
    assert_true(waiting > 0);
    rig_cut(); /* reads nothing either */
    rig_hear();
    rig_expect_left(0);
    assert_true(output_full(rig.output));
    rig_expect_stats(held, 0, 0);

    rig_commit(1);
    assert_false(output_full(rig.output));
    rig_expect_left(held);
    rig_run_loop(); /* what has waited belongs to the epoch that is open now */
    rig_expect_left(0);
    rig_expect_stats(waiting, held, 0);
    rig_send(1, SHORT); /* the guest goes on */
    rig_cut();
    rig_commit(2);
    rig_expect_left(waiting + 1);
    rig_expect_stats(0, rig.n_sent, 0);
}

static void full_gate_opens(void **state)
{
    uint32_t held;

    fill(0);
    held = rig.n_sent;
    (void)send_until_blocked(0);
    rig_flow();
    rig_expect_left(held);
    rig_run_loop();
    rig_expect_left(rig.n_sent - held);
    assert_false(output_full(rig.output));
    rig_expect_stats(0, rig.n_sent, 0);
}

static void drop(void **state)
{
    rig_send_all_kinds();
    rig_cut();
    rig_send_all_kinds();
    rig_commit(1);
    rig_expect_left(ALL);
    output_drop(rig.output);
    rig_expect_stats(0, ALL, ALL);
    assert_false(output_waits(rig.output));
    rig_cut();
    rig_commit(2);
    rig_flow();
    rig_run_loop();
    rig_expect_left(0);
    rig.n_left = rig.n_sent;
    rig_send(0, SHORT);
    rig_expect_left(1);
    rig_expect_stats(0, ALL + 1, ALL);
}

static void drop_of_a_full_gate(void **state)
{
    uint32_t dropped;

    fill(0);
    dropped = rig.n_sent;
    assert_true(rig_try_send(0, SHORT));
    output_drop(rig.output);
    rig.n_left = dropped;
    assert_false(output_full(rig.output));
    rig_expect_stats(0, 0, dropped);
    rig_run_loop(); /* it reads again */
    rig_expect_stats(1, 0, dropped);
    rig_expect_left(0);
    rig_flow();
    rig_expect_left(1);
    rig_expect_stats(0, 1, dropped);
}

static void what_is_no_frame_is_dropped(void **state)
{
    static const uint8_t bytes[NETPORT_FRAME_MAX + 1];

    rig_flow();
    assert_true(rig_try_send_bytes(0, bytes, NETPORT_FRAME_MIN - 1));
    assert_true(rig_try_send_bytes(0, bytes, sizeof(bytes)));
    rig_send(0, IPV4);
    rig_expect_left(1);
    rig_expect_stats(0, 1, 2);
}

/* The addresses of the first NIC are known, of the second NIC none. */
static void expect_announcement(void)
{
    static const struct guest_address ip4 = {.family = 4, .bytes = {192, 0, 2, 7}};
    static const struct guest_address ip6 = {.family = 6, .bytes = {0xfe, 0x80, [15] = 7}};
    const uint8_t *mac = guest_mac[0];
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    rig_expect_frame(0, true, frame, announce_rarp(mac, frame), "RARP");
    rig_expect_frame(0, true, frame, announce_arp_request(mac, &ip4, frame), "ARP request");
    rig_expect_frame(0, true, frame, announce_arp_reply(mac, &ip4, frame), "ARP reply");
    rig_expect_frame(0, true, frame, announce_neighbour(mac, &ip6, frame), "advertisement");
    rig_expect_frame(1, true, frame, announce_rarp(guest_mac[1], frame), "RARP");
}

/* The gate learns the addresses of the first NIC, and none of the second. */
static void begin_announcing(void)
{
    rig_send(0, IPV4);
    rig_send(0, IPV6);
    rig_flow();
    rig_expect_left(2);
    output_announce(rig.output);
}

/* Runs the loop until it has been quiet for longer than there ever is between announcements. */
static void run_for_announcements(void)
{
    for (int i = 0; i < 1000 && sd_event_run(rig.body.event, 800 * 1000) > 0; i++)
        ;
}

static void announce(void **state)
{
    begin_announcing();
    run_for_announcements();
    for (int i = 0; i < 5; i++)
        expect_announcement();
    rig_expect_left(0);
    rig_expect_stats(0, 2, 0);
}

/* The VM is not ours any more: we must not call its frames here. */
static void drop_ends_announcements(void **state)
{
    begin_announcing();
    output_drop(rig.output);
    run_for_announcements();
    rig_expect_left(0);
}

int main(void)
{
#define GATE_TEST(name) cmocka_unit_test_setup_teardown(name, rig_open, rig_close)
    const struct CMUnitTest tests[] = {
        GATE_TEST(nothing_leaves_while_holding),
        GATE_TEST(epochs_leave_on_commit),
        GATE_TEST(reading_decides_the_epoch),
        GATE_TEST(flowing),
        GATE_TEST(flowing_burst),
        GATE_TEST(full_of_all_kinds),
        GATE_TEST(full_of_long_frames),
        GATE_TEST(full_of_short_frames),
        GATE_TEST(full_gate_blocks_the_guest),
        GATE_TEST(full_gate_opens),
        GATE_TEST(drop),
        GATE_TEST(drop_of_a_full_gate),
        GATE_TEST(what_is_no_frame_is_dropped),
        GATE_TEST(announce),
        GATE_TEST(drop_ends_announcements),
    };

    return cmocka_run_group_tests(tests, rig_make_network, rig_remove_network);
}
