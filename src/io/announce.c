/* SPDX-License-Identifier: Apache-2.0 */
#include "io/announce.h"

#include <string.h>

enum { FRAME_BYTES_MIN = 60 }; /* without the checksum, which the hardware adds */

/* Appends to a frame that is known to fit. */
static size_t add(uint8_t *out, size_t at, const void *bytes, size_t n)
{
    memcpy(out + at, bytes, n);
    return at + n;
}

static size_t add_be16(uint8_t *out, size_t at, uint16_t value)
{
    out[at] = (uint8_t)(value >> 8);
    out[at + 1] = (uint8_t)value;
    return at + 2;
}

static size_t ethernet(uint8_t *out, const uint8_t *to, const uint8_t *from, uint16_t vlan,
                       uint16_t type)
{
    size_t n;

    memset(out, 0, ANNOUNCE_FRAME_MAX);
    n = add(out, 0, to, 6);
    n = add(out, n, from, 6);
    if (vlan) {
        n = add_be16(out, n, 0x8100);
        n = add_be16(out, n, vlan);
    }
    return add_be16(out, n, type);
}

static size_t arp(const uint8_t mac[6], uint16_t vlan, uint16_t type, uint16_t operation,
                  const uint8_t target_mac[6], const uint8_t ip[4], uint8_t *out)
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    static const uint8_t ethernet_ipv4[] = {0, 1, 8, 0, 6, 4};
    size_t n = ethernet(out, broadcast, mac, vlan, type);

    n = add(out, n, ethernet_ipv4, sizeof(ethernet_ipv4));
    n = add_be16(out, n, operation);
    n = add(out, n, mac, 6);
    n = add(out, n, ip, 4);
    n = add(out, n, target_mac, 6);
    n = add(out, n, ip, 4);
    return n < FRAME_BYTES_MIN ? FRAME_BYTES_MIN : n;
}

size_t announce_rarp(const uint8_t mac[6], uint8_t out[static ANNOUNCE_FRAME_MAX])
{
    static const uint8_t no_ip[4];

    return arp(mac, 0, 0x8035, 3, mac, no_ip, out);
}

size_t announce_arp_request(const uint8_t mac[6], const struct guest_address *address,
                            uint8_t out[static ANNOUNCE_FRAME_MAX])
{
    static const uint8_t no_mac[6];

    return arp(mac, address->vlan, 0x0806, 1, no_mac, address->bytes, out);
}

size_t announce_arp_reply(const uint8_t mac[6], const struct guest_address *address,
                          uint8_t out[static ANNOUNCE_FRAME_MAX])
{
    return arp(mac, address->vlan, 0x0806, 2, mac, address->bytes, out);
}

/* The Internet checksum (RFC 1071) of the ICMPv6 message and its pseudo-header (RFC 8200, 8.1).
 * n is even. */
static uint16_t icmpv6_checksum(const uint8_t addresses[32], const uint8_t *icmp, size_t n)
{
    uint32_t sum = (uint32_t)n + 58;

    for (size_t i = 0; i < 32; i += 2)
        sum += (uint32_t)(addresses[i] << 8 | addresses[i + 1]);
    for (size_t i = 0; i < n; i += 2)
        sum += (uint32_t)(icmp[i] << 8 | icmp[i + 1]);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

size_t announce_neighbour(const uint8_t mac[6], const struct guest_address *address,
                          uint8_t out[static ANNOUNCE_FRAME_MAX])
{
    static const uint8_t all_nodes_mac[6] = {0x33, 0x33, 0, 0, 0, 1};
    static const uint8_t all_nodes[16] = {[0] = 0xff, [1] = 0x02, [15] = 1};
    /* version 6; 32 bytes of payload; ICMPv6; hop limit 255 */
    static const uint8_t ip_start[8] = {[0] = 0x60, [5] = 32, [6] = 58, [7] = 255};
    const uint8_t icmp_start[8] = {[0] = 136, [4] = address->router ? 0xa0 : 0x20};
    static const uint8_t link_layer_option[2] = {2, 1};
    size_t ip = ethernet(out, all_nodes_mac, mac, address->vlan, 0x86dd);
    size_t icmp = ip + 40, n;

    n = add(out, ip, ip_start, 8);
    n = add(out, n, address->bytes, 16);
    n = add(out, n, all_nodes, 16);
    n = add(out, n, icmp_start, 8);
    n = add(out, n, address->bytes, 16);
    n = add(out, n, link_layer_option, 2);
    n = add(out, n, mac, 6);
    (void)add_be16(out, icmp + 2, icmpv6_checksum(out + ip + 8, out + icmp, n - icmp));
    return n;
}
