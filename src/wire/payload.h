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

/* One per type: payload_control.c, payload_data.c, payload_arbiter.c. */
extern const struct payload_codec heartbeat_codec, offer_codec, ready_codec, refuse_codec,
    ack_codec, bye_codec, addresses_codec, disk_ranges_codec, frames_codec;
extern const struct payload_codec epoch_begin_codec, pages_codec, disk_codec, state_codec,
    epoch_end_codec;
extern const struct payload_codec arb_request_codec, arb_reply_codec, arb_list_codec,
    arb_registers_codec;

/* Bounds of a payload that is one form; of one form and a list of others. */
#define PAYLOAD_FORM(form)           .min = sizeof(struct form), .max = sizeof(struct form)
#define PAYLOAD_LIST(form, entry, n) (sizeof(struct form) + (n) * sizeof(struct entry))

/* For codecs: what is wrong, as -EPROTO. */
int payload_too_short(struct err *err);
int payload_malformed(struct err *err);

/* Lists. get and take: *ret_list borrows n forms of n_form bytes each; `max` is the most that there
 * may be, which keeps n * n_form, and the list in memory, within their bounds. 0; -EPROTO, naming
 * `what` they are. put and get: a list_form and the list behind it; take: the list alone. put: the
 * room for the list, zeroed, or NULL when it does not fit. */
void *payload_put_list(struct wire_writer *w, uint32_t n, size_t n_form);
int payload_get_list(struct wire_reader *r, uint32_t max, size_t n_form, const char *what,
                     uint32_t *ret_n, const void **ret_list, struct err *err) US_MUST_CHECK;
int payload_take_list(struct wire_reader *r, uint32_t n, uint32_t max, size_t n_form,
                      const char *what, const void **ret_list, struct err *err) US_MUST_CHECK;

#endif
