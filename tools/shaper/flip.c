/* SPDX-License-Identifier: Apache-2.0 */
#include "flip.h"

#include <math.h>

enum {
    ETHER_BYTES = 14,
    ETHER_IPV4 = 0x0800,
    ETHER_IPV6 = 0x86dd,
    IPV4_BYTES = 20,
    IPV6_BYTES = 40,
    TCP_BYTES = 20,
    PROTOCOL_TCP = 6,
    TCP_CHECKSUM = 16, /* its offset in the header */
};

/* Where bits may flip: [start, end) of the frame; tcp: where the TCP header starts. */
struct area {
    size_t start, end, tcp;
};

double flip_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (double)(*seed >> 11) / 9007199254740992.0; /* 2^53 */
}

/* The distances between events that each have the same chance are geometrically distributed. */
static void next_distance(struct flipper *f)
{
    double distance = f->rate <= 0   ? INFINITY
                      : f->rate >= 1 ? 0
                                     : log1p(-flip_random(&f->seed)) / log1p(-f->rate);

    f->distance = distance < 1e18 ? (uint64_t)distance : UINT64_MAX;
}

void flip_set(struct flipper *f, double rate, bool repair)
{
    f->rate = rate;
    f->repair = repair;
    next_distance(f);
}

static unsigned get16(const uint8_t *bytes)
{
    return (unsigned)bytes[0] << 8 | bytes[1];
}

/* Finds where IP's payload lies; false when it is not all of one TCP segment. */
static bool find_tcp(const uint8_t *frame, size_t n, struct area *a)
{
    unsigned type = n >= ETHER_BYTES ? get16(frame + 12) : 0;
    const uint8_t *ip = frame + ETHER_BYTES;
    size_t room = n - ETHER_BYTES;

    if (type == ETHER_IPV4 && room >= IPV4_BYTES) {
        size_t header = (ip[0] & 0xfu) * 4;

        if (header < IPV4_BYTES || ip[9] != PROTOCOL_TCP || (get16(ip + 6) & 0x3fff) != 0)
            return false;
        a->tcp = ETHER_BYTES + header;
        a->end = ETHER_BYTES + get16(ip + 2);
    } else if (type == ETHER_IPV6 && room >= IPV6_BYTES && ip[6] == PROTOCOL_TCP) {
        a->tcp = ETHER_BYTES + IPV6_BYTES;
        a->end = a->tcp + get16(ip + 4);
    } else {
        return false;
    }
    if (a->end > n || a->tcp + TCP_BYTES > a->end)
        return false;
    a->start = a->tcp + (frame[a->tcp + 12] >> 4) * 4u;
    return a->start >= a->tcp + TCP_BYTES;
}

/* RFC 1624, equation 3, for the 16 bits of which one byte changed. */
static void repair(uint8_t *tcp, size_t at, uint8_t before)
{
    unsigned shift = at % 2 ? 0 : 8;
    uint32_t sum = ~get16(tcp + TCP_CHECKSUM) & 0xffff;

    sum += ~((uint32_t)before << shift) & 0xffff;
    sum += (uint32_t)tcp[at] << shift;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    tcp[TCP_CHECKSUM] = (uint8_t)(~sum >> 8);
    tcp[TCP_CHECKSUM + 1] = (uint8_t)~sum;
}

unsigned flip_frame(struct flipper *f, uint8_t *frame, size_t n_bytes)
{
    struct area a = {.start = ETHER_BYTES, .end = n_bytes};
    uint64_t at, n_bits;
    unsigned flips = 0;

    if (f->rate <= 0 || (f->repair && !find_tcp(frame, n_bytes, &a)) || a.start >= a.end)
        return 0;
    n_bits = (a.end - a.start) * 8;
    for (at = 0; f->distance < n_bits - at; flips++) {
        uint8_t *byte, before;

        at += f->distance;
        byte = &frame[a.start + at / 8];
        before = *byte;
        *byte = (uint8_t)(before ^ 1u << at % 8);
        if (f->repair)
            repair(frame + a.tcp, a.start + at / 8 - a.tcp, before);
        at++;
        next_distance(f);
    }
    if (f->distance != UINT64_MAX)
        f->distance -= n_bits - at;
    return flips;
}
