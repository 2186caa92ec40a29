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

/* READY: this, then n copy_forms. */
struct ready_form {
    struct le64 term;
    uint8_t n;
    uint8_t zero[7];
};
WIRE_FORM(ready_form, 16);

struct copy_form {
    uint8_t state;
    uint8_t zero[7];
    uint8_t sync[WIRE_SYNC_ID_BYTES];
};
WIRE_FORM(copy_form, 24);

struct ack_form {
    struct le64 term;
    struct le64 durable;
};
WIRE_FORM(ack_form, 16);

struct refuse_form {
    uint8_t text[WIRE_TEXT_BYTES];
};
WIRE_FORM(refuse_form, 512);

struct bye_form {
    struct le16 reason;
    uint8_t zero[6];
};
WIRE_FORM(bye_form, 8);

/* What ADDRESSES and DISK begin with: n of the forms that follow. */
struct list_form {
    struct le32 n;
    uint8_t zero[4];
};
WIRE_FORM(list_form, 8);

/* ADDRESSES: a list_form, then n of these. */
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

/* DISK_RANGES: this, then n range_forms. */
struct disk_ranges_form {
    uint8_t kind;
    uint8_t disk;
    uint8_t last;
    uint8_t zero[1];
    struct le32 n;
    struct le64 mark;
};
WIRE_FORM(disk_ranges_form, 16);

struct range_form {
    struct le64 offset;
    struct le64 n_bytes;
};
WIRE_FORM(range_form, 16);

/* FRAMES: this, then n_bytes bytes. */
struct frames_form {
    uint8_t nic;
    uint8_t zero[3];
    struct le32 n_bytes;
};
WIRE_FORM(frames_form, 8);

struct epoch_begin_form {
    struct le64 pair_term;
    uint8_t flushed;
    uint8_t zero[7];
};
WIRE_FORM(epoch_begin_form, 16);

/* PAGES: this, then n_bytes bytes. */
struct pages_form {
    struct le32 n;
    struct le32 n_body;
    struct le32 n_bytes;
    uint8_t encoding;
    uint8_t zero[3];
};
WIRE_FORM(pages_form, 16);

/* DISK: a list_form, then n of these, then the bytes of those pieces one after the other. */
struct disk_piece_form {
    uint8_t disk;
    uint8_t kind;
    uint8_t flags;
    uint8_t encoding;
    struct le32 n_bytes;
    struct le64 offset;
    struct le64 n_range;
};
WIRE_FORM(disk_piece_form, 24);

/* What the digest of an epoch covers of a piece, before its decoded bytes. */
struct disk_digest_form {
    uint8_t disk;
    uint8_t kind;
    uint8_t flags;
    uint8_t zero[5];
    struct le64 offset;
    struct le64 n_range;
};
WIRE_FORM(disk_digest_form, 24);

/* STATE: this, then n_bytes bytes. */
struct state_form {
    uint8_t format[WIRE_FORMAT_BYTES];
    struct le64 total;
    struct le64 offset;
    struct le32 n_raw;
    struct le32 n_bytes;
    uint8_t encoding;
    uint8_t delta;
    uint8_t zero[6];
};
WIRE_FORM(state_form, 112);

struct epoch_end_form {
    struct le64 n_pages;
    struct le64 n_disk_pieces;
    struct le64 n_state_bytes;
    uint8_t digest[WIRE_DIGEST_BYTES];
};
WIRE_FORM(epoch_end_form, 40);

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

struct arb_list_form {
    uint8_t after[WIRE_NAME_BYTES];
};
WIRE_FORM(arb_list_form, 64);

/* ARB_REGISTERS: this, then n arb_register_forms. */
struct arb_registers_form {
    struct le32 n;
    uint8_t more;
    uint8_t zero[3];
};
WIRE_FORM(arb_registers_form, 8);

struct arb_register_form {
    uint8_t vm[WIRE_NAME_BYTES];
    struct record_form record;
};
WIRE_FORM(arb_register_form, 208);

/* A record between memory and wire or disk. get: 0, or -EPROTO when it is malformed; what it gives
 * has passed arb_record_check(). */
void record_form_put(struct record_form *form, const struct arb_record *record);
int record_form_get(const struct record_form *form, struct arb_record *ret_record,
                    struct err *err) US_MUST_CHECK;

#endif
