/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_ANNOUNCE_H
#define US_IO_ANNOUNCE_H

#include <stddef.h>
#include <stdint.h>

#include "io/guest_addresses.h"

/* Frames by which the new host of a VM tells the network that the VM's NIC is here now, so that
 * switches send its frames to this port and neighbours look at their tables again. Pure builders;
 * each returns the frame's length in bytes, padded to the shortest that Ethernet carries. */

enum { ANNOUNCE_FRAME_MAX = 96 };

/* A broadcast reverse-ARP request (RFC 903) from the MAC: needs no address. Hypervisors send it
 * after a migration. */
size_t announce_rarp(const uint8_t mac[6], uint8_t out[static ANNOUNCE_FRAME_MAX]);

/* Gratuitous ARP for an IPv4 address, as a request (RFC 5227, section 3) and as a reply, since
 * there are hosts that heed only the one or the other. */
size_t announce_arp_request(const uint8_t mac[6], const struct guest_address *address,
                            uint8_t out[static ANNOUNCE_FRAME_MAX]);
size_t announce_arp_reply(const uint8_t mac[6], const struct guest_address *address,
                          uint8_t out[static ANNOUNCE_FRAME_MAX]);

/* Unsolicited neighbour advertisement for an IPv6 address, override flag set (RFC 4861, 7.2.6). */
size_t announce_neighbour(const uint8_t mac[6], const struct guest_address *address,
                          uint8_t out[static ANNOUNCE_FRAME_MAX]);

#endif
