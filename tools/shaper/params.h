/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_SHAPER_PARAMS_H
#define US_SHAPER_PARAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* What a link does to the frames of one direction. All zero but queue_bytes: nothing. */
struct params {
    uint64_t delay_ns, jitter_ns;    /* a frame is late by delay +- jitter, evenly spread */
    uint64_t rate_bps;               /* bits per second; 0 = no limit */
    uint64_t queue_bytes;            /* that wait for the rate, at most; more is dropped */
    double loss, duplicate, reorder; /* probability for each frame */
    double flip;                     /* probability for each bit */
    bool repair_checksum;            /* bits flip in TCP's payload only, and its checksum agrees */
    bool blackhole;                  /* nothing passes */
};

/* Nothing is done to the frames. */
void params_init(struct params *p);

/* Takes one "key=value" over into *p: delay, jitter (us, ms, s), loss, duplicate, reorder, flip (a
 * number, or per cent), rate (bits/s; k, m, g), queue (bytes; k, m), repair, blackhole (on, off).
 * -EINVAL with a text when it is none of these. */
int params_set(struct params *p, const char *word, struct err *err) US_MUST_CHECK;

/* Writes what differs from "nothing" as "key=value ..." into text; at most n bytes with the 0. */
void params_show(const struct params *p, char *text, size_t n);

#endif
