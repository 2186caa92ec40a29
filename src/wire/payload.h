/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_PAYLOAD_H
#define US_WIRE_PAYLOAD_H

#include "wire/buf.h"
#include "wire/msg.h"

/* How the payload of one type of message is encoded and decoded. Inside src/wire only.
 *
 * get turns bytes into memory form and refuses what has none (too short, reserved bytes, malformed
 * texts); check then says whether the values make sense. put writes only what check has passed, so
 * that one function decides for both directions what is valid. */
struct payload_codec {
    const char *name;
    uint8_t channel;   /* enum wire_channel */
    bool needs_epoch;  /* the header's epoch must not be 0 */
    uint32_t min, max; /* payload bytes */
    int (*check)(const struct wire_msg *msg, struct err *err);                /* 0 or -EPROTO */
    int (*put)(const struct wire_msg *msg, struct wire_writer *w);            /* 0 or -ENOSPC */
    int (*get)(struct wire_reader *r, struct wire_msg *msg, struct err *err); /* 0 or -EPROTO */
};

/* The codec of a type, or NULL when there is no such type. */
const struct payload_codec *payload_codec(uint16_t type);

#endif
