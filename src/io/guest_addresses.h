/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_GUEST_ADDRESSES_H
#define US_IO_GUEST_ADDRESSES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the addresses of a NIC's guest are, learned from the frames that the guest sends: the new
 * host of a VM announces them (io/announce.h). Pure: no I/O and no clock.
 *
 * Counted are the sender of an ARP packet, the source of a neighbour solicitation or router
 * advertisement, the target of a neighbour advertisement, and the source of any other IPv4 or IPv6
 * packet whose hop count is one that hosts start with (64, 128, 255): a guest that forwards other
 * hosts' packets sends them with a smaller one, and must not be announced as their owner. Frames
 * from another MAC than the NIC's (a bridge in the guest) do not count. One VLAN tag is understood.
 *
 * The frames are untrusted. What a guest can reach with false ones is to have them announced, which
 * it can do by itself. */

enum { GUEST_ADDRESSES_MAX = 32 };

/* An address that was not seen for so long is not announced: it may be another host's by now. */
enum { GUEST_ADDRESS_AGE_MAX_S = 600 };

struct guest_address {
    uint8_t family;    /* 4 or 6; 0 = this entry is not used */
    bool router;       /* IPv6: the guest calls itself a router */
    uint16_t vlan;     /* VLAN id; 0 = untagged */
    uint8_t bytes[16]; /* IPv4: the first 4, the rest 0 */
    uint64_t seen_s;   /* when it was seen last; in an export: seconds ago */
};

/* Zero-initialise. When all entries are used, a new address replaces the one unseen for longest. */
struct guest_addresses {
    struct guest_address entry[GUEST_ADDRESSES_MAX];
};

/* Learns from one frame of the guest. now_s: seconds on a monotonic clock. */
void guest_addresses_learn(struct guest_addresses *table, const uint8_t mac[6],
                           const uint8_t *frame, size_t n_bytes, uint64_t now_s);

/* Copies the addresses that are fresh, with their ages in place of the times: a form that makes
 * sense on another host. Returns how many there are. */
size_t guest_addresses_export(const struct guest_addresses *table, uint64_t now_s,
                              struct guest_address out[static GUEST_ADDRESSES_MAX]);

/* Replaces the table by an exported one, e.g. a peer's: entries that make no sense are left out,
 * and no more than GUEST_ADDRESSES_MAX are taken. */
void guest_addresses_import(struct guest_addresses *table, uint64_t now_s,
                            const struct guest_address *in, size_t n);

#endif
