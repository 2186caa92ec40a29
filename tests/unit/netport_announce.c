/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "io/announce.h"
#include "unit.h"

static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

static void assert_frame(const uint8_t *out, size_t n, const uint8_t *expected, size_t n_expected,
                         size_t padded)
{
    assert_int_equal(n, padded);
    assert_memory_equal(out, expected, n_expected);
    for (size_t i = n_expected; i < padded; i++)
        assert_int_equal(out[i], 0);
}

static void rarp(void **state)
{
    static const uint8_t expected[] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x80, 0x35, /**/
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x03,                                     /**/
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x00, 0x00, 0x00, 0x00,                         /**/
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x00, 0x00, 0x00, 0x00,
    };
    uint8_t out[ANNOUNCE_FRAME_MAX];

    assert_frame(out, announce_rarp(mac, out), expected, sizeof(expected), 60);
}

static void arp_request(void **state)
{
    static const struct guest_address address = {.family = 4, .bytes = {192, 0, 2, 7}};
    static const uint8_t expected[] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x08, 0x06, /**/
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01,                                     /**/
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 192,  0,    2,    7,                            /**/
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 192,  0,    2,    7,
    };
    uint8_t out[ANNOUNCE_FRAME_MAX];

    assert_frame(out, announce_arp_request(mac, &address, out), expected, sizeof(expected), 60);
}

static void arp_reply_in_a_vlan(void **state)
{
    static const struct guest_address address = {
        .family = 4, .vlan = 0x123, .bytes = {192, 0, 2, 7}};
    static const uint8_t expected[] = {
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, /**/
        0x81, 0x00, 0x01, 0x23, 0x08, 0x06,                                     /**/
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x02,                         /**/
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 192,  0,    2,    7,                /**/
        0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 192,  0,    2,    7,
    };
    uint8_t out[ANNOUNCE_FRAME_MAX];

    assert_frame(out, announce_arp_reply(mac, &address, out), expected, sizeof(expected), 60);
}

/* The checksum was computed by hand: the one's complement of the sum of fe80 5054 00ff fe12 3456
 * (source), ff02 0001 (destination), 0020 003a (length, next header), 8800 2000 (type, flags), fe80
 * 5054 00ff fe12 3456 (target), 0201 5254 0012 3456 (option). */
static void neighbour(void **state)
{
    static const struct guest_address address = {
        .family = 6,
        .bytes = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0x00, 0xff, 0xfe, 0x12, 0x34, 0x56}};
    static const uint8_t expected[] = {
        0x33, 0x33, 0x00, 0x00, 0x00, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x86, 0xdd, /**/
        0x60, 0,    0,    0,    0,    32,   58,   255,                                      /**/
        0xfe, 0x80, 0,    0,    0,    0,    0,    0,                                        /**/
        0x50, 0x54, 0x00, 0xff, 0xfe, 0x12, 0x34, 0x56,                                     /**/
        0xff, 0x02, 0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
        0,    1,                                        /**/
        136,  0,    0xcb, 0x68, 0x20, 0,    0,    0,    /**/
        0xfe, 0x80, 0,    0,    0,    0,    0,    0,    /**/
        0x50, 0x54, 0x00, 0xff, 0xfe, 0x12, 0x34, 0x56, /**/
        2,    1,    0x52, 0x54, 0x00, 0x12, 0x34, 0x56,
    };
    uint8_t out[ANNOUNCE_FRAME_MAX];

    assert_frame(out, announce_neighbour(mac, &address, out), expected, sizeof(expected), 86);
}

/* RFC 1071's check: summed with its own checksum, everything comes to all ones. */
static void assert_checksum(const uint8_t *ip)
{
    uint32_t sum = 32 + 58;

    for (int i = 8; i < 40 + 32; i += 2)
        sum += (uint32_t)ip[i] << 8 | ip[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    assert_int_equal(sum, 0xffff);
}

static void neighbour_in_a_vlan(void **state)
{
    struct guest_address address = {.family = 6, .router = true, .vlan = 5};
    uint8_t out[ANNOUNCE_FRAME_MAX];

    for (unsigned i = 0; i < 3000; i++) {
        for (int k = 0; k < 16; k++)
            address.bytes[k] = (uint8_t)(i * 37 + (unsigned)k * i);
        assert_int_equal(announce_neighbour(mac, &address, out), 90);
        assert_checksum(out + 18);
    }
    assert_int_equal(out[15], 5);
    assert_int_equal(out[18 + 40 + 4], 0xa0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rarp),
        cmocka_unit_test(arp_request),
        cmocka_unit_test(arp_reply_in_a_vlan),
        cmocka_unit_test(neighbour),
        cmocka_unit_test(neighbour_in_a_vlan),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
