/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_SHAPER_FLIP_H
#define US_SHAPER_FLIP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Turns bits of Ethernet frames over, each with the same probability.
 *
 * Plain, any bit behind the Ethernet header can be hit (the cable's own checksum guards the
 * addresses): the receiver's IP or TCP drops such a frame. With repair, only the payload of TCP
 * segments is hit, and their checksum is made to agree (RFC 1624): what a broken switch or network
 * card does that computes checksums anew. Such a flip reaches the application. */

struct flipper {
    double rate; /* probability for each bit */
    bool repair;
    uint64_t distance; /* eligible bits that stay as they are until the next flip */
    uint64_t seed;     /* not 0 */
};

/* A number from 0 to 1, without 1. *seed is not 0. */
double flip_random(uint64_t *seed);

/* From now on with this rate. */
void flip_set(struct flipper *f, double rate, bool repair);

/* Returns how many bits of the frame were turned. */
unsigned flip_frame(struct flipper *f, uint8_t *frame, size_t n_bytes);

#endif
