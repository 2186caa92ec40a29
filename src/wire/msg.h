/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_MSG_H
#define US_WIRE_MSG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* The replication and arbiter protocol (docs/protocol.md): every message's memory form, its
 * encoder and its one validating decoder. No I/O here.
 *
 * A connection opens with one hello of WIRE_HELLO_BYTES in each direction, whose layout is frozen
 * for all versions. After it come messages: a header of WIRE_HEADER_BYTES (type, payload length,
 * epoch or id, checksum of header and payload), then the payload. All integers little-endian.
 *
 * Channels of one session between a guard and a standby, each a connection of its own:
 *   control  both ways: heartbeats, offer/ready/refuse, acks, addresses, ranges of disks, bye, and
 *            frames at a planned switchover. Never bulk data.
 *   data     guard to standby only: epochs.
 * and between a guard or standby and the witness:
 *   arbiter  requests and replies. */

enum {
    WIRE_HELLO_BYTES = 256,
    WIRE_HEADER_BYTES = 32,
    WIRE_PAYLOAD_MAX = 2 * 1024 * 1024, /* bytes; a longer message is refused unread */
    WIRE_NAME_BYTES = 64,               /* names of VMs and hosts, NUL-padded, NUL-terminated */
    WIRE_TEXT_BYTES = 512,
    WIRE_HELLO_TEXT_BYTES = 64,
    WIRE_OFFER_BYTES_MAX = 256 * 1024,
    WIRE_VERSION_MIN = 3, /* versions that this program speaks */
    WIRE_VERSION_MAX = 3,
    WIRE_FORMAT_BYTES = 80,
    WIRE_SESSION_BYTES = 16,
    WIRE_DIGEST_BYTES = 16,
    WIRE_PAGE_BYTES = 4096,
    WIRE_PAGES_PER_MSG = 256,
    WIRE_BODY_MIN = 2, /* bytes of a page in the body of a message, with all that belongs to it */
    WIRE_BODY_MAX = 1 + 8 + WIRE_PAGE_BYTES,
    WIRE_STATE_PER_MSG = 1024 * 1024, /* bytes of device state before encoding, per message */
    WIRE_NICS_MAX = 8,
    WIRE_ADDRESSES_MAX = 32 * WIRE_NICS_MAX,
    WIRE_DISKS_MAX = 8,
    WIRE_RANGES_PER_MSG = 1024,
    WIRE_DISK_PIECES_PER_MSG = 256,
    WIRE_DISK_PIECE_BYTES = 1024 * 1024, /* data before encoding, per message and so per piece */
    WIRE_SYNC_ID_BYTES = 16,
    WIRE_ARB_REGISTERS_PER_MSG = 64,
    WIRE_FRAME_BYTES_MIN = 14, /* of one Ethernet frame, without its checksum */
    WIRE_FRAME_BYTES_MAX = 65550,
};

#define WIRE_STATE_MAX    (UINT64_C(256) * 1024 * 1024) /* bytes of device state per epoch */
#define WIRE_PAGE_NUMBERS (UINT64_C(1) << 52)           /* number * 4096 cannot overflow */

enum wire_channel { WIRE_CHANNEL_CONTROL = 1, WIRE_CHANNEL_DATA = 2, WIRE_CHANNEL_ARBITER = 3 };

/* First bytes of a connection, both ways. The answer carries the version both speak, or a refusal
 * (status != WIRE_OK) with its text; after a refusal the connection is closed. */
struct wire_hello {
    uint16_t version_min, version_max;   /* an answer has both equal: the version chosen */
    uint8_t channel;                     /* enum wire_channel */
    uint8_t status;                      /* enum wire_status; 0 in the opening hello */
    bool resume;                         /* control: the session existed before the link broke */
    uint64_t features;                   /* bits both must know; unknown bits are refused; now 0 */
    uint8_t session[WIRE_SESSION_BYTES]; /* random, chosen by the guard for one pairing */
    char vm[WIRE_NAME_BYTES];            /* "" on the arbiter channel */
    char from[WIRE_NAME_BYTES];          /* name of the sending host */
    char text[WIRE_HELLO_TEXT_BYTES];    /* refusal's reason, for people */
};

enum wire_status {
    WIRE_OK = 0,
    WIRE_REFUSED_VERSION = 1,
    WIRE_REFUSED_UNKNOWN_PEER = 2,
    WIRE_REFUSED_BUSY = 3,    /* this host already runs or backs that VM for somebody else */
    WIRE_REFUSED_SESSION = 4, /* resume or data channel of a session that is not there */
    WIRE_REFUSED_INTERNAL = 5,
};

enum wire_type {
    /* control */
    WIRE_HEARTBEAT = 1,
    WIRE_OFFER = 2,
    WIRE_READY = 3,
    WIRE_REFUSE = 4,
    WIRE_ACK = 5,
    WIRE_BYE = 6,
    WIRE_ADDRESSES = 7,
    WIRE_DISK_RANGES = 8,
    WIRE_FRAMES = 9,
    /* data */
    WIRE_EPOCH_BEGIN = 16,
    WIRE_PAGES = 17,
    WIRE_STATE = 18,
    WIRE_EPOCH_END = 19,
    WIRE_DISK = 20,
    /* arbiter */
    WIRE_ARB_REQUEST = 32,
    WIRE_ARB_REPLY = 33,
    WIRE_ARB_LIST = 34,
    WIRE_ARB_REGISTERS = 35,
};

/* Header of every message. `epoch` is the epoch (control, data) or the request's id (arbiter); it
 * is not 0 in acknowledgements and on the data channel. */
struct wire_header {
    uint16_t type;
    uint32_t length; /* payload bytes */
    uint64_t epoch;
    uint64_t checksum; /* XXH3-64 of the header with this field 0, then the payload */
};

/* I am alive. */
struct wire_heartbeat {
    uint64_t seq;
    uint64_t term;  /* the sender's view */
    uint8_t paired; /* guard: 1 when the arbiter has confirmed the pairing */
};

/* Guard to standby: please back this VM. `json` is the definition, see docs/protocol.md. */
struct wire_offer {
    const char *json; /* borrowed from the payload; not NUL-terminated */
    uint32_t n_json;
};

/* What the standby has of a disk, before seeding. */
enum wire_copy_state {
    WIRE_COPY_EMPTY = 1,   /* all of it reads as zeros */
    WIRE_COPY_KNOWN = 2,   /* the full copy `sync`, but for the ranges that were told before */
    WIRE_COPY_UNKNOWN = 3, /* anything */
};

struct wire_disk_copy {
    uint8_t state;                    /* enum wire_copy_state */
    uint8_t sync[WIRE_SYNC_ID_BYTES]; /* KNOWN: id of the full copy, not 0; else 0 */
};

/* Standby to guard: the hypervisor waits. On a resumed session `epoch` (header) is the newest whole
 * epoch that is here, 0 if none. */
struct wire_ready {
    uint64_t term;   /* the term that this copy's right to take over is tied to; 0 = none */
    uint8_t n_disks; /* as many as were offered; 0 on a resumed session */
    struct wire_disk_copy disk[WIRE_DISKS_MAX];
};

/* Standby to guard: no, and why. */
struct wire_refuse {
    char text[WIRE_TEXT_BYTES]; /* not empty; the encoder makes it printable ASCII */
};

/* Standby to guard: every epoch up to and including the header's is whole, verified and here. */
struct wire_ack {
    uint64_t term;    /* the pair term that the epoch carried */
    uint64_t durable; /* newest epoch whose disk records survive a loss of power here; 0 = none, at
                       * most the header's epoch */
};

enum wire_bye_reason {
    WIRE_BYE_STOPPED = 1,    /* guard: the VM was stopped or unprotected; discard */
    WIRE_BYE_VM_DIED = 2,    /* guard: the hypervisor died; take over now */
    WIRE_BYE_TAKEN_OVER = 3, /* standby: I own the VM now */
    WIRE_BYE_DISCARDED = 4,  /* standby: my copy is worthless or too large to hold */
    WIRE_BYE_SWITCHOVER = 5, /* guard: the VM stands still at the newest epoch; take over */
};

struct wire_bye {
    uint16_t reason; /* enum wire_bye_reason */
};

struct wire_address {
    uint8_t nic;       /* its number at the VM, below WIRE_NICS_MAX */
    uint8_t family;    /* 4 or 6 */
    uint8_t router;    /* IPv6: 1 when the guest calls itself a router; IPv4: 0 */
    uint16_t vlan;     /* VLAN id, below 4096; 0 = untagged */
    uint16_t age_s;    /* seconds since the guest used it last */
    uint8_t bytes[16]; /* IPv4: the first 4, the rest 0 */
};

/* Guard to standby: the guest's addresses, all of them; they replace what was said before. A hint,
 * for telling the network after a takeover where the guest is now; not part of an epoch. */
struct wire_addresses {
    uint32_t n; /* 0..WIRE_ADDRESSES_MAX */
    struct wire_address entry[WIRE_ADDRESSES_MAX];
};

enum wire_ranges_kind {
    WIRE_RANGES_DIRTY = 1,  /* before READY: where a KNOWN copy may differ from its full copy */
    WIRE_RANGES_DIFFER = 2, /* digests that did not match, up to the mark */
};

struct wire_range {
    uint64_t offset, n_bytes; /* n_bytes is not 0; their sum does not overflow */
};

/* Standby to guard: ranges of a disk, in ascending order, without overlap. For DIFFER: all of a
 * mark's answers for all disks have its number; the one with `last` ends it (its disk and n may be
 * 0). */
struct wire_disk_ranges {
    uint8_t kind;  /* enum wire_ranges_kind */
    uint8_t disk;  /* below WIRE_DISKS_MAX */
    bool last;     /* DIFFER: the mark was reached, this is all; DIRTY: false */
    uint64_t mark; /* DIFFER: its number; DIRTY: 0 */
    uint32_t n;    /* 0..WIRE_RANGES_PER_MSG */
    struct wire_range range[WIRE_RANGES_PER_MSG];
};

/* Guard to standby: a frame for the guest that came while it was being handed over. */
struct wire_frames {
    uint8_t nic;          /* below WIRE_NICS_MAX */
    uint32_t n_bytes;     /* WIRE_FRAME_BYTES_MIN..WIRE_FRAME_BYTES_MAX */
    const uint8_t *bytes; /* borrowed */
};

struct wire_epoch_begin {
    uint64_t pair_term; /* right to take over that this epoch gives; 0 while seeding */
    bool flushed;       /* the guest flushed a disk in it: durable before it is acknowledged */
};

/* How bytes are encoded: a message's pages, a disk piece's data, a piece of device state. */
enum wire_encoding {
    WIRE_ENC_ZERO = 0, /* disk pieces: no bytes */
    WIRE_ENC_RAW = 1,
    WIRE_ENC_LZ4 = 2,
    WIRE_ENC_ZSTD = 4, /* one frame that tells its length. 3 was reserved in version 2 */
};

/* What a message says of a page. All but WHOLE is against what the standby has: its image as it was
 * before the epoch, and the epoch's pages so far. */
enum wire_page_kind {
    WIRE_PAGE_ZERO = 0,      /* all zero */
    WIRE_PAGE_UNCHANGED = 1, /* as in the image */
    WIRE_PAGE_DUPLICATE = 2, /* the bytes of a page, not a zero one, some pages earlier */
    WIRE_PAGE_CHANGES = 3,   /* the image's, but for some words (page_diff()) */
    WIRE_PAGE_WHOLE = 4,
    WIRE_PAGE_KINDS,
};

/* Pages, all encoded as one. What `bytes` decode to is the body, which wire/pages.h takes apart. */
struct wire_pages {
    uint32_t n;           /* pages, 1..WIRE_PAGES_PER_MSG */
    uint32_t n_body;      /* bytes of the body, WIRE_BODY_MIN * n to WIRE_BODY_MAX * n */
    uint8_t encoding;     /* raw, lz4 or zstd */
    uint32_t n_bytes;     /* encoded length: n_body (raw), 1..n_body-1 (others) */
    const uint8_t *bytes; /* borrowed */
};

/* Records of what happened to the disks (disk/log.h has their meaning), in order. They come after
 * the epoch's pages and before its device state. */
enum wire_disk_kind {
    WIRE_DISK_WRITE = 1,
    WIRE_DISK_ZERO = 2,
    WIRE_DISK_DIGEST = 3,
    WIRE_DISK_MARK = 4,
};

enum { WIRE_DISK_PUNCH = 1, WIRE_DISK_SYNC = 2 };

struct wire_disk_piece {
    uint8_t disk;     /* below WIRE_DISKS_MAX; 0 for a mark */
    uint8_t kind;     /* enum wire_disk_kind */
    uint8_t flags;    /* PUNCH with ZERO only, SYNC with MARK only */
    uint8_t encoding; /* WRITE: raw or lz4; DIGEST: raw; else 0 */
    uint64_t offset;  /* bytes; MARK: its number */
    uint64_t n_range; /* bytes of the range, not 0, no overflow; WRITE, DIGEST: at most
                       * WIRE_DISK_PIECE_BYTES; MARK: 0 */
    uint32_t n_bytes; /* encoded data: n_range (raw write), 1..n_range-1 (lz4), 16 (digest), 0 */
    const uint8_t *bytes; /* borrowed */
};

/* Decoded together at most WIRE_DISK_PIECE_BYTES of data. */
struct wire_disk {
    uint32_t n; /* 1..WIRE_DISK_PIECES_PER_MSG */
    struct wire_disk_piece piece[WIRE_DISK_PIECES_PER_MSG];
};

/* Bytes of a piece's data when decoded. */
static inline uint64_t wire_disk_piece_data(const struct wire_disk_piece *piece)
{
    return piece->kind == WIRE_DISK_WRITE    ? piece->n_range
           : piece->kind == WIRE_DISK_DIGEST ? WIRE_DIGEST_BYTES
                                             : 0;
}

/* A piece of the device state; pieces come in order and without gaps. */
struct wire_state {
    char format[WIRE_FORMAT_BYTES]; /* tag: 1 to 79 printable ASCII characters */
    uint64_t total;                 /* bytes of the whole state, at most WIRE_STATE_MAX */
    uint64_t offset;                /* of this piece */
    uint32_t n_raw;                 /* decoded length, 1..WIRE_STATE_PER_MSG */
    uint8_t encoding;               /* raw, lz4 or zstd */
    bool delta; /* XORed with the same place of the state of the epoch before, of the same format
                 * and total */
    uint32_t n_bytes;     /* encoded length: n_raw (raw), 1..n_raw-1 (others) */
    const uint8_t *bytes; /* borrowed */
};

/* Closes an epoch. The digest covers, in order of sending: each page's number and the hash of its
 * decoded bytes, then the disk pieces, decoded, then the device state (docs/protocol.md, "Digest").
 */
struct wire_epoch_end {
    uint64_t n_pages; /* at most WIRE_PAGE_NUMBERS */
    uint64_t n_disk_pieces;
    uint64_t n_state_bytes;            /* at most WIRE_STATE_MAX */
    uint8_t digest[WIRE_DIGEST_BYTES]; /* XXH3-128, canonical (big-endian) form */
};

/* The arbiter's register for one VM (docs/design.md, Arbitration). All zero = the VM is unknown. */
enum arb_mode { ARB_SOLO = 1, ARB_PAIRED = 2 };

struct arb_record {
    uint64_t term;                 /* 0 = no record; every change adds one */
    uint8_t mode;                  /* enum arb_mode; 0 when term is 0 */
    char owner[WIRE_NAME_BYTES];   /* "" = nobody: the VM is stopped */
    char standby[WIRE_NAME_BYTES]; /* "" unless paired */
};

enum wire_arb_op { WIRE_ARB_GET = 1, WIRE_ARB_CAS = 2 };

struct wire_arb_request {
    uint8_t op; /* enum wire_arb_op */
    char vm[WIRE_NAME_BYTES];
    struct arb_record expected; /* CAS: the whole record that must be there; all zero on GET */
    struct arb_record wanted;   /* CAS: its term is expected.term + 1; all zero on GET */
};

enum wire_arb_status {
    WIRE_ARB_DONE = 1,     /* GET answered, or CAS carried out */
    WIRE_ARB_CONFLICT = 2, /* CAS: another record is there */
    WIRE_ARB_ERROR = 3,    /* the witness could not store it, and has not changed it */
    WIRE_ARB_REFUSED = 4,  /* this swap is not the asker's to make (arb_request_allowed()) */
};

struct wire_arb_reply {
    uint8_t status;            /* enum wire_arb_status */
    struct arb_record current; /* the record after the request; with ERROR or REFUSED a hint */
};

/* Which registers are there, of VMs whose names come after `after` ("" = from the first)? */
struct wire_arb_list {
    char after[WIRE_NAME_BYTES];
};

struct wire_arb_register {
    char vm[WIRE_NAME_BYTES];
    struct arb_record record; /* with a term */
};

/* The answer: the next ones, in ascending order of their names. */
struct wire_arb_registers {
    bool more;  /* there are others after these, of which there is at least one then */
    uint32_t n; /* 0..WIRE_ARB_REGISTERS_PER_MSG */
    struct wire_arb_register entry[WIRE_ARB_REGISTERS_PER_MSG];
};

/* One decoded message. */
struct wire_msg {
    uint16_t type;
    uint64_t epoch; /* or request id */
    union {
        struct wire_heartbeat heartbeat;
        struct wire_offer offer;
        struct wire_ready ready;
        struct wire_refuse refuse;
        struct wire_ack ack;
        struct wire_bye bye;
        struct wire_addresses addresses;
        struct wire_disk_ranges disk_ranges;
        struct wire_frames frames;
        struct wire_epoch_begin epoch_begin;
        struct wire_pages pages;
        struct wire_disk disk;
        struct wire_state state;
        struct wire_epoch_end epoch_end;
        struct wire_arb_request arb_request;
        struct wire_arb_reply arb_reply;
        struct wire_arb_list arb_list;
        struct wire_arb_registers arb_registers;
    } u;
};

/* Encodes a hello. Names and text must be terminated; what is not printable ASCII becomes '?'. */
void wire_hello_encode(const struct wire_hello *hello, uint8_t out[static WIRE_HELLO_BYTES]);

/* Decodes and validates a hello: magic, checksum, names, known channel and what it asks for, zero
 * reserved bytes. 0, or -EPROTO with the reason. Versions, features and a status that is unknown
 * here (a refusal like the others) are left to the caller, so that he can answer or report them. */
int wire_hello_decode(const uint8_t in[static WIRE_HELLO_BYTES], struct wire_hello *ret_hello,
                      struct err *err) US_MUST_CHECK;

/* The highest version that both sides speak, or 0 when there is none (also when their hello asks
 * for features that are unknown here). */
uint16_t wire_version_choose(const struct wire_hello *theirs);

/* Fills in the answer to a decoded hello: their channel, VM and session, our name, the version
 * chosen, and status with its text. Without a common version the answer is WIRE_REFUSED_VERSION and
 * carries the versions that we speak. Send it, then close the connection unless status is OK. */
void wire_hello_answer(const struct wire_hello *theirs, const char *from, uint8_t status,
                       const char *text, struct wire_hello *ret_answer);

/* Checks a decoded answer against the hello that was sent. 0; -ECONNREFUSED with the peer's reason;
 * -EPROTO when it does not fit our hello. */
int wire_hello_check_answer(const struct wire_hello *sent, const struct wire_hello *answer,
                            struct err *err) US_MUST_CHECK;

/* Encodes a message into `out`: header and payload. Returns its length in bytes, or -ENOSPC when it
 * does not fit n_out, or -EINVAL when a field is out of its range (our own bug). */
int64_t wire_msg_encode(const struct wire_msg *msg, uint8_t *out, size_t n_out) US_MUST_CHECK;

/* Decodes a header: type known on that channel, length within the type's bounds. 0 or -EPROTO. */
int wire_header_decode(const uint8_t in[static WIRE_HEADER_BYTES], enum wire_channel channel,
                       struct wire_header *ret_header, struct err *err) US_MUST_CHECK;

/* Checks the checksum, then decodes and validates the payload (header->length bytes). Every count,
 * length and reserved byte is checked before anything is stored; no partial result. What it returns
 * borrows from `payload`. `raw_header` is the header's bytes. 0 or -EPROTO. */
int wire_msg_decode(const uint8_t raw_header[static WIRE_HEADER_BYTES],
                    const struct wire_header *header, const uint8_t *payload,
                    struct wire_msg *ret_msg, struct err *err) US_MUST_CHECK;

/* True for a well-formed name: 1 to 63 bytes of [a-z0-9-], the first one a letter or digit. */
bool wire_name_valid(const char *name);

/* True when two records are the same in every field. */
bool arb_record_equal(const struct arb_record *a, const struct arb_record *b);

/* Checks that a record is one that may be in a register: empty without a term; solo: a valid owner
 * or none, no standby; paired: two different valid names. 0 or -EPROTO. */
int arb_record_check(const struct arb_record *record, struct err *err) US_MUST_CHECK;

/* Checks a request: its VM's name, its records, and that a swap raises the term by one. 0 or
 * -EPROTO. Decoded requests have passed it. */
int arb_request_check(const struct wire_arb_request *request, struct err *err) US_MUST_CHECK;

/* Whether a valid request may come from that host (docs/protocol.md, "Who may swap"): it makes
 * nobody the owner but itself; only the owner lets the VM have none, or a standby. */
bool arb_request_allowed(const struct wire_arb_request *request, const char *asker);

/* The arbiter itself: carries out a valid request on a VM's register and fills in the reply (never
 * WIRE_ARB_ERROR or REFUSED). A swap whose wanted record is there already is a conflict like any
 * other: the asker sees its own record in the reply and knows. The witness and the simulator both
 * use this. */
void arb_register_apply(struct arb_record *reg, const struct wire_arb_request *request,
                        struct wire_arb_reply *ret_reply);

#endif
