/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_LAYOUT_H
#define US_WIRE_LAYOUT_H

#include <assert.h>

#include "wire/endian.h"
#include "wire/msg.h"

/* How everything lies on the wire: the forms that the codecs of this directory read and write, and
 * nobody else does (but for the record, which the witness also keeps on disk). docs/protocol.md has
 * the same as tables. Every member named zero is reserved: written as zero, refused otherwise. */

#define WIRE_FORM(name, bytes)                                                                     \
    static_assert(sizeof(struct name) == (bytes) && _Alignof(struct name) == 1,                    \
                  "the layout of " #name " is part of the protocol")

/* Frozen: the same in all versions, past and future. */
struct hello_form {
    uint8_t magic[8]; /* HELLO_MAGIC */
    struct le16 version_min;
    struct le16 version_max;
    uint8_t channel;
    uint8_t status;
    uint8_t resume;
    uint8_t zero1[1];
    struct le64 features;
    uint8_t session[WIRE_SESSION_BYTES];
    uint8_t vm[WIRE_NAME_BYTES];
    uint8_t from[WIRE_NAME_BYTES];
    uint8_t text[WIRE_HELLO_TEXT_BYTES];
    uint8_t zero2[16];
    struct le64 checksum; /* XXH3-64 of the bytes before it */
};
WIRE_FORM(hello_form, WIRE_HELLO_BYTES);

#define HELLO_MAGIC "undrstdy"

struct header_form {
    struct le16 type;
    uint8_t zero1[2];
    struct le32 length;
    struct le64 epoch;
    struct le64 checksum;
    uint8_t zero2[8];
};
WIRE_FORM(header_form, WIRE_HEADER_BYTES);

struct heartbeat_form {
    struct le64 seq;
    struct le64 term;
    uint8_t paired;
    uint8_t zero[7];
};
WIRE_FORM(heartbeat_form, 24);

struct term_form { /* READY, ACK and EPOCH_BEGIN */
    struct le64 term;
};
WIRE_FORM(term_form, 8);

struct refuse_form {
    uint8_t text[WIRE_TEXT_BYTES];
};
WIRE_FORM(refuse_form, 512);

struct bye_form {
    struct le16 reason;
    uint8_t zero[6];
};
WIRE_FORM(bye_form, 8);

/* ADDRESSES: this, then n address_forms. */
struct addresses_form {
    struct le32 n;
    uint8_t zero[4];
};
WIRE_FORM(addresses_form, 8);

struct address_form {
    uint8_t nic;
    uint8_t family;
    uint8_t router;
    uint8_t zero[1];
    struct le16 vlan;
    struct le16 age_s;
    uint8_t bytes[16];
};
WIRE_FORM(address_form, 24);

/* PAGES: this, then n page_forms, then the bytes of those pages one after the other. */
struct pages_form {
    struct le32 n;
    uint8_t zero[4];
};
WIRE_FORM(pages_form, 8);

struct page_form {
    struct le64 number;
    uint8_t encoding;
    uint8_t zero1[1];
    struct le16 n_bytes;
    uint8_t zero2[4];
};
WIRE_FORM(page_form, 16);

/* STATE: this, then n_bytes bytes. */
struct state_form {
    uint8_t format[WIRE_FORMAT_BYTES];
    struct le64 total;
    struct le64 offset;
    struct le32 n_raw;
    struct le32 n_bytes;
    uint8_t encoding;
    uint8_t zero[7];
};
WIRE_FORM(state_form, 112);

struct epoch_end_form {
    struct le64 n_pages;
    struct le64 n_state_bytes;
    uint8_t digest[WIRE_DIGEST_BYTES];
};
WIRE_FORM(epoch_end_form, 32);

struct record_form {
    struct le64 term;
    uint8_t mode;
    uint8_t zero[7];
    uint8_t owner[WIRE_NAME_BYTES];
    uint8_t standby[WIRE_NAME_BYTES];
};
WIRE_FORM(record_form, 144);

struct arb_request_form {
    uint8_t op;
    uint8_t zero[7];
    uint8_t vm[WIRE_NAME_BYTES];
    struct record_form expected;
    struct record_form wanted;
};
WIRE_FORM(arb_request_form, 360);

struct arb_reply_form {
    uint8_t status;
    uint8_t zero[7];
    struct record_form current;
};
WIRE_FORM(arb_reply_form, 152);

/* A record between memory and wire or disk. get: 0, or -EPROTO when it is malformed; what it gives
 * has passed arb_record_check(). */
void record_form_put(struct record_form *form, const struct arb_record *record);
int record_form_get(const struct record_form *form, struct arb_record *ret_record,
                    struct err *err) US_MUST_CHECK;

#endif
