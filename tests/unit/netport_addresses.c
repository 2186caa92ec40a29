/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "io/announce.h"
#include "io/guest_addresses.h"
#include "unit.h"

static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
static const uint8_t v6[16] = {0x20, 0x01, 0x0d, 0xb8, [15] = 0x99};

/* An Ethernet header from the guest, with or without a VLAN tag; returns where the payload goes. */
static uint8_t *ethernet(uint8_t *frame, uint16_t vlan, uint16_t type)
{
    uint8_t *p = frame + 12;

    memset(frame, 0, 128);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, mac, 6);
    if (vlan) {
        *p++ = 0x81;
        *p++ = 0x00;
        *p++ = (uint8_t)(0xe0 | vlan >> 8); /* with a priority, which is no part of the id */
        *p++ = (uint8_t)vlan;
    }
    *p++ = (uint8_t)(type >> 8);
    *p++ = (uint8_t)type;
    return p;
}

static size_t ipv4(uint8_t *frame, uint16_t vlan, uint8_t hops, const uint8_t from[4])
{
    uint8_t *ip = ethernet(frame, vlan, 0x0800);

    ip[0] = 0x45;
    ip[8] = hops;
    memcpy(ip + 12, from, 4);
    return (size_t)(ip + 20 - frame);
}

static size_t ipv6(uint8_t *frame, uint8_t hops, uint8_t next, const uint8_t from[16])
{
    uint8_t *ip = ethernet(frame, 0, 0x86dd);

    ip[0] = 0x60;
    ip[6] = next;
    ip[7] = hops;
    memcpy(ip + 8, from, 16);
    return (size_t)(ip + 40 - frame);
}

static size_t learned(const struct guest_addresses *table, struct guest_address *out)
{
    return guest_addresses_export(table, 100, out);
}

static void arp_sender_is_learned(void **state)
{
    static const struct guest_address address = {.family = 4, .vlan = 9, .bytes = {192, 0, 2, 7}};
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    size_t n = announce_arp_request(mac, &address, frame);

    guest_addresses_learn(&table, mac, frame, n, 100);
    assert_int_equal(learned(&table, out), 1);
    assert_int_equal(out[0].family, 4);
    assert_int_equal(out[0].vlan, 9);
    assert_memory_equal(out[0].bytes, address.bytes, 16);
}

static void arp_for_others_is_not(void **state)
{
    static const struct guest_address address = {.family = 4, .bytes = {192, 0, 2, 7}};
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    size_t n = announce_arp_request(mac, &address, frame);

    frame[22 + 5] ^= 1; /* proxy: another hardware address inside */
    guest_addresses_learn(&table, mac, frame, n, 100);
    frame[22 + 5] ^= 1;
    frame[6 + 5] ^= 1; /* from a bridge in the guest */
    guest_addresses_learn(&table, mac, frame, n, 100);
    frame[6 + 5] ^= 1;
    frame[17] ^= 8; /* not IPv4 */
    guest_addresses_learn(&table, mac, frame, n, 100);
    assert_int_equal(learned(&table, out), 0);
}

static void probe_without_address_is_not(void **state)
{
    static const struct guest_address address = {.family = 4};
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    size_t n = announce_arp_request(mac, &address, frame);

    guest_addresses_learn(&table, mac, frame, n, 100);
    assert_int_equal(learned(&table, out), 0);
}

static void ipv4_source_is_learned(void **state)
{
    static const uint8_t initial[] = {64, 128, 255};

    for (size_t i = 0; i < N_OF(initial); i++) {
        struct guest_addresses table = {0};
        struct guest_address out[GUEST_ADDRESSES_MAX];
        uint8_t frame[128];
        size_t n = ipv4(frame, i == 1 ? 77 : 0, initial[i], (const uint8_t[]){10, 1, 2, 3});

        guest_addresses_learn(&table, mac, frame, n, 100);
        assert_int_equal(learned(&table, out), 1);
        assert_int_equal(out[0].vlan, i == 1 ? 77 : 0);
        assert_memory_equal(out[0].bytes, ((const uint8_t[16]){10, 1, 2, 3}), 16);
    }
}

static void forwarded_packets_are_not(void **state)
{
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[128];

    for (unsigned hops = 0; hops < 256; hops++) {
        size_t n;

        if (hops == 64 || hops == 128 || hops == 255)
            continue;
        n = ipv4(frame, 0, (uint8_t)hops, (const uint8_t[]){10, 1, 2, 3});
        guest_addresses_learn(&table, mac, frame, n, 100);
        n = ipv6(frame, (uint8_t)hops, 17, v6);
        guest_addresses_learn(&table, mac, frame, n, 100);
    }
    assert_int_equal(learned(&table, out), 0);
}

static void addresses_that_nobody_owns_are_not(void **state)
{
    static const uint8_t bad4[][4] = {
        {0, 0, 0, 0}, {127, 0, 0, 1}, {224, 0, 0, 5}, {255, 255, 255, 255}};
    static const uint8_t bad6[][16] = {{0}, {[15] = 1}, {0xff, 0x02, [15] = 1}};
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[128];

    for (size_t i = 0; i < N_OF(bad4); i++) {
        size_t n = ipv4(frame, 0, 64, bad4[i]);

        guest_addresses_learn(&table, mac, frame, n, 100);
    }
    for (size_t i = 0; i < N_OF(bad6); i++) {
        size_t n = ipv6(frame, 64, 17, bad6[i]);

        guest_addresses_learn(&table, mac, frame, n, 100);
    }
    assert_int_equal(learned(&table, out), 0);
}

static void neighbour_advertisement_gives_its_target(void **state)
{
    struct guest_address address = {.family = 6, .router = true};
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    size_t n;

    memcpy(address.bytes, v6, 16);
    n = announce_neighbour(mac, &address, frame);
    frame[14 + 8 + 15] = 0x11; /* sent from another address of the guest */
    guest_addresses_learn(&table, mac, frame, n, 100);
    assert_int_equal(learned(&table, out), 1);
    assert_int_equal(out[0].family, 6);
    assert_true(out[0].router);
    assert_memory_equal(out[0].bytes, v6, 16);
}

static void router_advertisement_marks_its_sender(void **state)
{
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[128];
    size_t n = ipv6(frame, 64, 17, v6);

    guest_addresses_learn(&table, mac, frame, n, 100);
    assert_int_equal(learned(&table, out), 1);
    assert_false(out[0].router);
    n = ipv6(frame, 255, 58, v6);
    frame[n] = 134;
    guest_addresses_learn(&table, mac, frame, n + 16, 100);
    assert_int_equal(learned(&table, out), 1);
    assert_true(out[0].router);
}

/* Each frame cut at each length, and with each of its bytes changed: under the sanitizers, this is
 * the test of the bounds. The copy has exactly the frame's size. */
static void damaged_frames_do_no_harm(void **state)
{
    struct guest_address address = {.family = 6, .vlan = 3};
    struct guest_addresses table = {0};
    uint8_t frame[3][128];
    size_t n[3];

    memcpy(address.bytes, v6, 16);
    n[0] = announce_neighbour(mac, &address, frame[0]);
    address.family = 4;
    n[1] = announce_arp_reply(mac, &address, frame[1]);
    n[2] = ipv4(frame[2], 4, 64, (const uint8_t[]){10, 1, 2, 3});
    for (int f = 0; f < 3; f++)
        for (size_t length = 0; length <= n[f]; length++) {
            uint8_t *copy = malloc(length ? length : 1);

            for (size_t i = 0; i <= length; i++) {
                memcpy(copy, frame[f], length);
                if (i < length)
                    copy[i] ^= 0xff;
                guest_addresses_learn(&table, mac, copy, length, 100);
            }
            free(copy);
        }
}

static void oldest_gives_way(void **state)
{
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[128];
    size_t n;

    for (unsigned i = 0; i < GUEST_ADDRESSES_MAX; i++) {
        n = ipv4(frame, 0, 64, (const uint8_t[]){10, 0, 0, (uint8_t)(i + 1)});
        guest_addresses_learn(&table, mac, frame, n, 50 + i % 7);
    }
    n = ipv4(frame, 0, 64, (const uint8_t[]){10, 0, 0, 1}); /* seen again: no longer the oldest */
    guest_addresses_learn(&table, mac, frame, n, 90);
    n = ipv4(frame, 0, 64, (const uint8_t[]){10, 0, 1, 1});
    guest_addresses_learn(&table, mac, frame, n, 91);
    assert_int_equal(learned(&table, out), GUEST_ADDRESSES_MAX);
    for (unsigned i = 0; i < GUEST_ADDRESSES_MAX; i++)
        assert_false(out[i].bytes[2] == 0 &&
                     out[i].bytes[3] == 8); /* the first of time 50 but .1 */
}

static void old_addresses_are_not_announced(void **state)
{
    struct guest_addresses table = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX];
    uint8_t frame[128];
    size_t n = ipv4(frame, 0, 64, (const uint8_t[]){10, 0, 0, 1});

    guest_addresses_learn(&table, mac, frame, n, 1000);
    n = guest_addresses_export(&table, 1000 + GUEST_ADDRESS_AGE_MAX_S, out);
    assert_int_equal(n, 1);
    assert_int_equal(out[0].seen_s, GUEST_ADDRESS_AGE_MAX_S);
    n = guest_addresses_export(&table, 1001 + GUEST_ADDRESS_AGE_MAX_S, out);
    assert_int_equal(n, 0);
}

static void export_makes_sense_elsewhere(void **state)
{
    struct guest_addresses here = {0}, there = {0};
    struct guest_address out[GUEST_ADDRESSES_MAX], again[GUEST_ADDRESSES_MAX];
    uint8_t frame[128];
    size_t n = ipv4(frame, 6, 64, (const uint8_t[]){10, 0, 0, 1});

    guest_addresses_learn(&here, mac, frame, n, 1000);
    n = ipv6(frame, 64, 17, v6);
    guest_addresses_learn(&here, mac, frame, n, 1100);
    n = guest_addresses_export(&here, 1120, out);
    assert_int_equal(n, 2);
    guest_addresses_import(&there, 500000, out, n);
    assert_int_equal(guest_addresses_export(&there, 500000, again), 2);
    assert_memory_equal(out, again, 2 * sizeof(out[0]));
    /* A host that is up for less time than the addresses are old: they only look younger. */
    guest_addresses_import(&there, 10, out, n);
    assert_int_equal(guest_addresses_export(&there, 10, again), 2);
    assert_in_range(again[0].seen_s, 0, 10);
}

static void nonsense_is_not_imported(void **state)
{
    struct guest_address in[GUEST_ADDRESSES_MAX + 4];
    struct guest_address out[GUEST_ADDRESSES_MAX];
    struct guest_addresses table = {0};

    memset(in, 0xff, sizeof(in));
    guest_addresses_import(&table, 100, in, N_OF(in));
    assert_int_equal(learned(&table, out), 0);
    for (size_t i = 0; i < N_OF(in); i++)
        in[i] = (struct guest_address){.family = 4, .bytes = {10, 0, 0, (uint8_t)(i + 1), 5}};
    guest_addresses_import(&table, 100, in, N_OF(in));
    assert_int_equal(learned(&table, out), GUEST_ADDRESSES_MAX);
    assert_int_equal(out[3].bytes[4], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arp_sender_is_learned),
        cmocka_unit_test(arp_for_others_is_not),
        cmocka_unit_test(probe_without_address_is_not),
        cmocka_unit_test(ipv4_source_is_learned),
        cmocka_unit_test(forwarded_packets_are_not),
        cmocka_unit_test(addresses_that_nobody_owns_are_not),
        cmocka_unit_test(neighbour_advertisement_gives_its_target),
        cmocka_unit_test(router_advertisement_marks_its_sender),
        cmocka_unit_test(damaged_frames_do_no_harm),
        cmocka_unit_test(oldest_gives_way),
        cmocka_unit_test(old_addresses_are_not_announced),
        cmocka_unit_test(export_makes_sense_elsewhere),
        cmocka_unit_test(nonsense_is_not_imported),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
