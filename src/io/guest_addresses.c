/* SPDX-License-Identifier: Apache-2.0 */
#include "io/guest_addresses.h"

#include <string.h>

enum {
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_ARP = 0x0806,
    ETHERTYPE_VLAN = 0x8100,
    ETHERTYPE_IPV6 = 0x86dd,
    IP_PROTOCOL_ICMPV6 = 58,
    ND_ROUTER_ADVERTISEMENT = 134,
    ND_NEIGHBOUR_SOLICITATION = 135,
    ND_NEIGHBOUR_ADVERTISEMENT = 136,
    ND_FLAG_ROUTER = 0x80,
    VLAN_RESERVED = 0xfff, /* no VLAN (IEEE 802.1Q, table 9-2) */
    ND_HOP_LIMIT = 255,    /* RFC 4861: others were forwarded, or are forged */
};

/* The rest of a frame. The only way to its bytes. */
struct view {
    const uint8_t *bytes;
    size_t n;
};

/* The n bytes at `offset`, or NULL when the frame is shorter. */
static const uint8_t *view_at(const struct view *v, size_t offset, size_t n)
{
    return offset <= v->n && n <= v->n - offset ? v->bytes + offset : NULL;
}

static uint16_t get_be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

/* False for addresses that no interface can own: unspecified, loopback, multicast, broadcast. */
static bool can_be_owned(uint8_t family, const uint8_t *a)
{
    static const uint8_t zero[15];

    if (family == 4)
        return a[0] != 0 && a[0] != 127 && a[0] < 224;
    return a[0] != 0xff && (memcmp(a, zero, 15) != 0 || a[15] > 1);
}

static bool initial_hop_count(uint8_t hops)
{
    return hops == 64 || hops == 128 || hops == 255;
}

static void table_add(struct guest_addresses *table, const struct guest_address *new)
{
    struct guest_address *to = &table->entry[0];

    if (!can_be_owned(new->family, new->bytes))
        return;
    for (int i = 0; i < GUEST_ADDRESSES_MAX; i++) {
        struct guest_address *e = &table->entry[i];

        if (e->family == new->family &&
            e->vlan == new->vlan &&memcmp(e->bytes, new->bytes, sizeof(e->bytes)) == 0) {
            e->seen_s = new->seen_s;
            e->router |= new->router;
            return;
        }
        if (to->family && (!e->family || e->seen_s < to->seen_s))
            to = e;
    }
    *to = *new;
}

static void learn_arp(struct guest_addresses *table, const uint8_t mac[6], const struct view *v,
                      struct guest_address *found)
{
    static const uint8_t ethernet_ipv4[] = {0, 1, 8, 0, 6, 4};
    const uint8_t *kind = view_at(v, 0, 6), *sender = view_at(v, 8, 10);

    if (!kind || !sender || memcmp(kind, ethernet_ipv4, 6) != 0 || memcmp(sender, mac, 6) != 0)
        return;
    found->family = 4;
    memcpy(found->bytes, sender + 6, 4);
    table_add(table, found);
}

static void learn_ipv4(struct guest_addresses *table, const struct view *v,
                       struct guest_address *found)
{
    const uint8_t *header = view_at(v, 0, 20);

    if (!header || header[0] >> 4 != 4 || !initial_hop_count(header[8]))
        return;
    found->family = 4;
    memcpy(found->bytes, header + 12, 4);
    table_add(table, found);
}

static void learn_ipv6(struct guest_addresses *table, const struct view *v,
                       struct guest_address *found)
{
    const uint8_t *header = view_at(v, 0, 40), *icmp = view_at(v, 40, 4), *from;

    if (!header || header[0] >> 4 != 6 || !initial_hop_count(header[7]))
        return;
    from = header + 8;
    if (header[6] == IP_PROTOCOL_ICMPV6 && icmp && header[7] == ND_HOP_LIMIT) {
        if (icmp[0] == ND_ROUTER_ADVERTISEMENT) {
            found->router = true;
        } else if (icmp[0] == ND_NEIGHBOUR_ADVERTISEMENT) {
            const uint8_t *advertised = view_at(v, 44, 20);

            if (!advertised)
                return;
            found->router = advertised[0] & ND_FLAG_ROUTER;
            from = advertised + 4;
        }
    }
    found->family = 6;
    memcpy(found->bytes, from, 16);
    table_add(table, found);
}

void guest_addresses_learn(struct guest_addresses *table, const uint8_t mac[6],
                           const uint8_t *frame, size_t n_bytes, uint64_t now_s)
{
    struct view v = {.bytes = frame, .n = n_bytes};
    struct guest_address found = {.seen_s = now_s};
    const uint8_t *ethernet = view_at(&v, 0, 14);
    size_t skip = 14;
    uint16_t type;

    if (!ethernet || memcmp(ethernet + 6, mac, 6) != 0)
        return;
    type = get_be16(ethernet + 12);
    if (type == ETHERTYPE_VLAN) {
        const uint8_t *tag = view_at(&v, 14, 4);

        if (!tag)
            return;
        found.vlan = get_be16(tag) & 0xfff;
        if (found.vlan == VLAN_RESERVED)
            return;
        type = get_be16(tag + 2);
        skip = 18;
    }
    v.bytes += skip;
    v.n -= skip;
    if (type == ETHERTYPE_ARP)
        learn_arp(table, mac, &v, &found);
    else if (type == ETHERTYPE_IPV4)
        learn_ipv4(table, &v, &found);
    else if (type == ETHERTYPE_IPV6)
        learn_ipv6(table, &v, &found);
}

size_t guest_addresses_export(const struct guest_addresses *table, uint64_t now_s,
                              struct guest_address out[static GUEST_ADDRESSES_MAX])
{
    size_t n = 0;

    for (int i = 0; i < GUEST_ADDRESSES_MAX; i++) {
        const struct guest_address *e = &table->entry[i];
        uint64_t age_s = now_s > e->seen_s ? now_s - e->seen_s : 0;

        if (!e->family || age_s > GUEST_ADDRESS_AGE_MAX_S)
            continue;
        out[n] = *e;
        out[n++].seen_s = age_s;
    }
    return n;
}

void guest_addresses_import(struct guest_addresses *table, uint64_t now_s,
                            const struct guest_address *in, size_t n)
{
    *table = (struct guest_addresses){0};
    for (size_t i = 0; i < n && i < GUEST_ADDRESSES_MAX; i++) {
        struct guest_address e = in[i];

        if ((e.family != 4 && e.family != 6) || e.vlan > 0xfff ||
            e.seen_s > GUEST_ADDRESS_AGE_MAX_S)
            continue;
        if (e.family == 4)
            memset(e.bytes + 4, 0, sizeof(e.bytes) - 4);
        e.seen_s = now_s > e.seen_s ? now_s - e.seen_s : 0;
        table_add(table, &e);
    }
}
