/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "golden/msg.h"
#include "unit.h"
#include "wire/msg.h"

enum { BUF_BYTES = WIRE_HEADER_BYTES + WIRE_PAYLOAD_MAX };

static const uint16_t all_types[] = {
    WIRE_HEARTBEAT, WIRE_OFFER,       WIRE_READY,       WIRE_REFUSE,      WIRE_ACK,   WIRE_BYE,
    WIRE_ADDRESSES, WIRE_DISK_RANGES, WIRE_FRAMES,      WIRE_EPOCH_BEGIN, WIRE_PAGES, WIRE_DISK,
    WIRE_STATE,     WIRE_EPOCH_END,   WIRE_ARB_REQUEST, WIRE_ARB_REPLY,
};

static uint8_t *buf; /* BUF_BYTES */
static uint8_t bulk[WIRE_STATE_PER_MSG];

static enum wire_channel channel_of(uint16_t type)
{
    return type < WIRE_EPOCH_BEGIN   ? WIRE_CHANNEL_CONTROL
           : type < WIRE_ARB_REQUEST ? WIRE_CHANNEL_DATA
                                     : WIRE_CHANNEL_ARBITER;
}

static void count_up(uint8_t *bytes, size_t n, uint8_t from)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(from + i);
}

static void sample_disk(struct wire_disk *disk, const uint8_t *piece)
{
    static uint8_t sum[WIRE_DIGEST_BYTES];

    count_up(sum, sizeof(sum), 0xd0);
    disk->n = 4;
    disk->piece[0] = (struct wire_disk_piece){.disk = 1,
                                              .kind = WIRE_DISK_WRITE,
                                              .encoding = WIRE_ENC_LZ4,
                                              .offset = 4096,
                                              .n_range = 260,
                                              .n_bytes = 3,
                                              .bytes = piece};
    disk->piece[1] = (struct wire_disk_piece){.disk = 7,
                                              .kind = WIRE_DISK_ZERO,
                                              .flags = WIRE_DISK_PUNCH,
                                              .offset = 0x020304050600,
                                              .n_range = UINT64_C(1) << 40};
    disk->piece[2] = (struct wire_disk_piece){.disk = 2,
                                              .kind = WIRE_DISK_DIGEST,
                                              .encoding = WIRE_ENC_RAW,
                                              .offset = 0x20000,
                                              .n_range = 0x10000,
                                              .n_bytes = sizeof(sum),
                                              .bytes = sum};
    disk->piece[3] =
        (struct wire_disk_piece){.kind = WIRE_DISK_MARK, .flags = WIRE_DISK_SYNC, .offset = 259};
}

/* A small message of each type, with every field set; what the golden bytes hold. */
static struct wire_msg sample(uint16_t type)
{
    static const uint8_t piece[] = {0xc1, 0xc2, 0xc3};
    static uint8_t frame[WIRE_FRAME_BYTES_MIN];
    static const struct arb_record solo = {6, ARB_SOLO, "hosta", ""};
    static const struct arb_record paired = {7, ARB_PAIRED, "hosta", "hostb"};
    struct wire_msg m = {.type = type, .epoch = 0x0102030405060708};

    switch (type) {
    case WIRE_HEARTBEAT:
        m.u.heartbeat = (struct wire_heartbeat){.seq = 258, .term = 7, .paired = 1};
        break;
    case WIRE_OFFER:
        m.u.offer = (struct wire_offer){"{}", 2};
        break;
    case WIRE_READY:
        m.u.ready =
            (struct wire_ready){.term = 7,
                                .n_disks = 2,
                                .disk = {{.state = WIRE_COPY_KNOWN}, {.state = WIRE_COPY_EMPTY}}};
        count_up(m.u.ready.disk[0].sync, WIRE_SYNC_ID_BYTES, 0xb0);
        break;
    case WIRE_REFUSE:
        strcpy(m.u.refuse.text, "no room");
        break;
    case WIRE_ACK:
        m.u.ack = (struct wire_ack){.term = 8, .durable = 258};
        break;
    case WIRE_BYE:
        m.u.bye.reason = WIRE_BYE_VM_DIED;
        break;
    case WIRE_ADDRESSES:
        m.u.addresses.n = 2;
        m.u.addresses.entry[0] = (struct wire_address){
            .nic = 1, .family = 4, .vlan = 258, .age_s = 260, .bytes = {192, 0, 2, 7}};
        m.u.addresses.entry[1] = (struct wire_address){
            .nic = 7, .family = 6, .router = 1, .bytes = {0xfe, 0x80, [14] = 0x12, 0x34}};
        break;
    case WIRE_DISK_RANGES:
        m.u.disk_ranges = (struct wire_disk_ranges){.kind = WIRE_RANGES_DIFFER,
                                                    .disk = 7,
                                                    .last = true,
                                                    .mark = 259,
                                                    .n = 2,
                                                    .range = {{4096, 8192}, {0x10000, 258}}};
        break;
    case WIRE_FRAMES:
        count_up(frame, sizeof(frame), 0xe0);
        m.u.frames = (struct wire_frames){.nic = 7, .n_bytes = sizeof(frame), .bytes = frame};
        break;
    case WIRE_EPOCH_BEGIN:
        m.u.epoch_begin = (struct wire_epoch_begin){.pair_term = 9, .flushed = true};
        break;
    case WIRE_PAGES:
        m.u.pages.n = 2;
        m.u.pages.page[0] = (struct wire_page){.number = 258, .encoding = WIRE_ENC_ZERO};
        m.u.pages.page[1] = (struct wire_page){.number = WIRE_PAGE_NUMBERS - 1,
                                               .encoding = WIRE_ENC_LZ4,
                                               .n_bytes = 3,
                                               .bytes = piece};
        break;
    case WIRE_DISK:
        sample_disk(&m.u.disk, piece);
        break;
    case WIRE_STATE:
        m.u.state = (struct wire_state){.format = "qemu/pc-q35-7.2",
                                        .total = 1000,
                                        .offset = 258,
                                        .n_raw = 260,
                                        .encoding = WIRE_ENC_LZ4,
                                        .n_bytes = 3,
                                        .bytes = piece};
        break;
    case WIRE_EPOCH_END:
        m.u.epoch_end =
            (struct wire_epoch_end){.n_pages = 2, .n_disk_pieces = 4, .n_state_bytes = 1000};
        count_up(m.u.epoch_end.digest, WIRE_DIGEST_BYTES, 0xd0);
        break;
    case WIRE_ARB_REQUEST:
        m.u.arb_request = (struct wire_arb_request){
            .op = WIRE_ARB_CAS, .vm = "web", .expected = solo, .wanted = paired};
        break;
    case WIRE_ARB_REPLY:
        m.u.arb_reply = (struct wire_arb_reply){.status = WIRE_ARB_CONFLICT, .current = paired};
        break;
    }
    return m;
}

static size_t encode(const struct wire_msg *m)
{
    int64_t n = wire_msg_encode(m, buf, BUF_BYTES);

    assert_true(n >= WIRE_HEADER_BYTES);
    return (size_t)n;
}

/* Decodes what lies in a buffer of its very own length, so that ASan sees each byte too far. */
static int decode(const uint8_t *raw, size_t n, enum wire_channel channel, struct wire_msg *ret_msg)
{
    struct wire_header header;
    int r = wire_header_decode(raw, channel, &header, NULL);

    if (r < 0)
        return r;
    if (header.length != n - WIRE_HEADER_BYTES)
        return -EMSGSIZE; /* a reader would wait for more, or see another message */
    return wire_msg_decode(raw, &header, raw + WIRE_HEADER_BYTES, ret_msg, NULL);
}

static int decode_copy(size_t n, enum wire_channel channel)
{
    struct wire_msg msg;
    uint8_t *copy = malloc(n);
    int r;

    assert_non_null(copy);
    memcpy(copy, buf, n);
    r = decode(copy, n, channel, &msg);
    free(copy);
    return r;
}

/* Sets length and checksum to fit, as a malicious peer would. */
static void reseal(uint8_t *raw, size_t n)
{
    uint64_t sum;

    for (int i = 0; i < 4; i++)
        raw[4 + i] = (uint8_t)((n - WIRE_HEADER_BYTES) >> (8 * i));
    memset(raw + 16, 0, 8);
    sum = XXH3_64bits(raw, n);
    for (int i = 0; i < 8; i++)
        raw[16 + i] = (uint8_t)(sum >> (8 * i));
}

static void assert_same_record(const struct arb_record *a, const struct arb_record *b)
{
    assert_true(arb_record_equal(a, b));
}

static void assert_same_addresses(const struct wire_addresses *a, const struct wire_addresses *b)
{
    assert_int_equal(a->n, b->n);
    for (uint32_t i = 0; i < a->n; i++) {
        assert_int_equal(a->entry[i].nic, b->entry[i].nic);
        assert_int_equal(a->entry[i].family, b->entry[i].family);
        assert_int_equal(a->entry[i].router, b->entry[i].router);
        assert_int_equal(a->entry[i].vlan, b->entry[i].vlan);
        assert_int_equal(a->entry[i].age_s, b->entry[i].age_s);
        assert_memory_equal(a->entry[i].bytes, b->entry[i].bytes, sizeof(a->entry[i].bytes));
    }
}

static void assert_same_pages(const struct wire_pages *a, const struct wire_pages *b)
{
    assert_int_equal(a->n, b->n);
    for (uint32_t i = 0; i < a->n; i++) {
        assert_int_equal(a->page[i].number, b->page[i].number);
        assert_int_equal(a->page[i].encoding, b->page[i].encoding);
        assert_int_equal(a->page[i].n_bytes, b->page[i].n_bytes);
        if (a->page[i].n_bytes)
            assert_memory_equal(a->page[i].bytes, b->page[i].bytes, a->page[i].n_bytes);
    }
}

static void assert_same_ready(const struct wire_ready *a, const struct wire_ready *b)
{
    assert_int_equal(a->term, b->term);
    assert_int_equal(a->n_disks, b->n_disks);
    for (uint32_t i = 0; i < a->n_disks; i++) {
        assert_int_equal(a->disk[i].state, b->disk[i].state);
        assert_memory_equal(a->disk[i].sync, b->disk[i].sync, WIRE_SYNC_ID_BYTES);
    }
}

static void assert_same_ranges(const struct wire_disk_ranges *a, const struct wire_disk_ranges *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->disk, b->disk);
    assert_int_equal(a->last, b->last);
    assert_int_equal(a->mark, b->mark);
    assert_int_equal(a->n, b->n);
    for (uint32_t i = 0; i < a->n; i++) {
        assert_int_equal(a->range[i].offset, b->range[i].offset);
        assert_int_equal(a->range[i].n_bytes, b->range[i].n_bytes);
    }
}

static void assert_same_disk(const struct wire_disk *a, const struct wire_disk *b)
{
    assert_int_equal(a->n, b->n);
    for (uint32_t i = 0; i < a->n; i++) {
        const struct wire_disk_piece *p = &a->piece[i], *q = &b->piece[i];

        assert_int_equal(p->disk, q->disk);
        assert_int_equal(p->kind, q->kind);
        assert_int_equal(p->flags, q->flags);
        assert_int_equal(p->encoding, q->encoding);
        assert_int_equal(p->offset, q->offset);
        assert_int_equal(p->n_range, q->n_range);
        assert_int_equal(p->n_bytes, q->n_bytes);
        if (p->n_bytes)
            assert_memory_equal(p->bytes, q->bytes, p->n_bytes);
    }
}

static void assert_same_state(const struct wire_state *a, const struct wire_state *b)
{
    assert_string_equal(a->format, b->format);
    assert_int_equal(a->total, b->total);
    assert_int_equal(a->offset, b->offset);
    assert_int_equal(a->n_raw, b->n_raw);
    assert_int_equal(a->encoding, b->encoding);
    assert_int_equal(a->n_bytes, b->n_bytes);
    assert_memory_equal(a->bytes, b->bytes, a->n_bytes);
}

static void assert_same(const struct wire_msg *a, const struct wire_msg *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->epoch, b->epoch);
    switch (a->type) {
    case WIRE_HEARTBEAT:
        assert_int_equal(a->u.heartbeat.seq, b->u.heartbeat.seq);
        assert_int_equal(a->u.heartbeat.term, b->u.heartbeat.term);
        assert_int_equal(a->u.heartbeat.paired, b->u.heartbeat.paired);
        break;
    case WIRE_OFFER:
        assert_int_equal(a->u.offer.n_json, b->u.offer.n_json);
        assert_memory_equal(a->u.offer.json, b->u.offer.json, a->u.offer.n_json);
        break;
    case WIRE_READY:
        assert_same_ready(&a->u.ready, &b->u.ready);
        break;
    case WIRE_REFUSE:
        assert_string_equal(a->u.refuse.text, b->u.refuse.text);
        break;
    case WIRE_ACK:
        assert_int_equal(a->u.ack.term, b->u.ack.term);
        assert_int_equal(a->u.ack.durable, b->u.ack.durable);
        break;
    case WIRE_BYE:
        assert_int_equal(a->u.bye.reason, b->u.bye.reason);
        break;
    case WIRE_ADDRESSES:
        assert_same_addresses(&a->u.addresses, &b->u.addresses);
        break;
    case WIRE_DISK_RANGES:
        assert_same_ranges(&a->u.disk_ranges, &b->u.disk_ranges);
        break;
    case WIRE_FRAMES:
        assert_int_equal(a->u.frames.nic, b->u.frames.nic);
        assert_int_equal(a->u.frames.n_bytes, b->u.frames.n_bytes);
        assert_memory_equal(a->u.frames.bytes, b->u.frames.bytes, a->u.frames.n_bytes);
        break;
    case WIRE_EPOCH_BEGIN:
        assert_int_equal(a->u.epoch_begin.pair_term, b->u.epoch_begin.pair_term);
        assert_int_equal(a->u.epoch_begin.flushed, b->u.epoch_begin.flushed);
        break;
    case WIRE_PAGES:
        assert_same_pages(&a->u.pages, &b->u.pages);
        break;
    case WIRE_DISK:
        assert_same_disk(&a->u.disk, &b->u.disk);
        break;
    case WIRE_STATE:
        assert_same_state(&a->u.state, &b->u.state);
        break;
    case WIRE_EPOCH_END:
        assert_int_equal(a->u.epoch_end.n_pages, b->u.epoch_end.n_pages);
        assert_int_equal(a->u.epoch_end.n_disk_pieces, b->u.epoch_end.n_disk_pieces);
        assert_int_equal(a->u.epoch_end.n_state_bytes, b->u.epoch_end.n_state_bytes);
        assert_memory_equal(a->u.epoch_end.digest, b->u.epoch_end.digest, WIRE_DIGEST_BYTES);
        break;
    case WIRE_ARB_REQUEST:
        assert_int_equal(a->u.arb_request.op, b->u.arb_request.op);
        assert_string_equal(a->u.arb_request.vm, b->u.arb_request.vm);
        assert_same_record(&a->u.arb_request.expected, &b->u.arb_request.expected);
        assert_same_record(&a->u.arb_request.wanted, &b->u.arb_request.wanted);
        break;
    case WIRE_ARB_REPLY:
        assert_int_equal(a->u.arb_reply.status, b->u.arb_reply.status);
        assert_same_record(&a->u.arb_reply.current, &b->u.arb_reply.current);
        break;
    default:
        fail();
    }
}

static void assert_round_trip(const struct wire_msg *m)
{
    size_t n = encode(m);
    uint8_t *copy = malloc(n);
    struct wire_msg back;

    assert_non_null(copy);
    memcpy(copy, buf, n);
    assert_int_equal(decode(copy, n, channel_of(m->type), &back), 0);
    assert_same(m, &back);
    assert_int_equal(encode(&back), n);
    assert_memory_equal(copy, buf, n);
    free(copy);
}

static int setup(void **state)
{
    buf = malloc(BUF_BYTES);
    for (size_t i = 0; i < sizeof(bulk); i++)
        bulk[i] = (uint8_t)(i * 2654435761u >> 13);
    return buf ? 0 : -1;
}

static int teardown(void **state)
{
    free(buf);
    return 0;
}

static void test_round_trip_small(void **state)
{
    for (size_t i = 0; i < N_OF(all_types); i++) {
        struct wire_msg m = sample(all_types[i]);

        assert_round_trip(&m);
    }
}

static void test_round_trip_smallest(void **state)
{
    struct wire_msg m = {.type = WIRE_OFFER, .u.offer = {"x", 1}};

    assert_round_trip(&m);
    m = sample(WIRE_REFUSE);
    strcpy(m.u.refuse.text, "-");
    assert_round_trip(&m);
    m = sample(WIRE_PAGES);
    m.u.pages.n = 1;
    m.u.pages.page[0].number = 0;
    assert_round_trip(&m);
    m = sample(WIRE_STATE);
    m.u.state = (struct wire_state){.format = "f",
                                    .total = 1,
                                    .n_raw = 1,
                                    .encoding = WIRE_ENC_RAW,
                                    .n_bytes = 1,
                                    .bytes = bulk};
    assert_round_trip(&m);
    m = (struct wire_msg){.type = WIRE_HEARTBEAT};
    assert_round_trip(&m);
    m = (struct wire_msg){.type = WIRE_ADDRESSES};
    assert_round_trip(&m);
    m = (struct wire_msg){.type = WIRE_EPOCH_END, .epoch = 1};
    assert_round_trip(&m);
    m = (struct wire_msg){.type = WIRE_ARB_REQUEST,
                          .u.arb_request = {.op = WIRE_ARB_GET, .vm = "a"}};
    assert_round_trip(&m);
    m = (struct wire_msg){.type = WIRE_ARB_REPLY, .u.arb_reply.status = WIRE_ARB_DONE};
    assert_round_trip(&m);
}

static void fill_name(char name[WIRE_NAME_BYTES], char c)
{
    memset(name, c, WIRE_NAME_BYTES - 1);
    name[WIRE_NAME_BYTES - 1] = '\0';
}

static void test_round_trip_largest_bulk(void **state)
{
    struct wire_msg m = {.type = WIRE_OFFER, .u.offer = {(char *)bulk, WIRE_OFFER_BYTES_MAX}};

    assert_round_trip(&m);
    m = (struct wire_msg){.type = WIRE_PAGES, .epoch = UINT64_MAX};
    m.u.pages.n = WIRE_PAGES_PER_MSG;
    for (uint32_t i = 0; i < WIRE_PAGES_PER_MSG; i++)
        m.u.pages.page[i] = (struct wire_page){.number = WIRE_PAGE_NUMBERS - 1 - i,
                                               .encoding = WIRE_ENC_RAW,
                                               .n_bytes = WIRE_PAGE_BYTES,
                                               .bytes = bulk + i * WIRE_PAGE_BYTES};
    assert_round_trip(&m);
    assert_int_equal(wire_msg_encode(&m, buf, encode(&m) - 1), -ENOSPC);
    m = (struct wire_msg){.type = WIRE_ADDRESSES, .u.addresses.n = WIRE_ADDRESSES_MAX};
    for (uint32_t i = 0; i < WIRE_ADDRESSES_MAX; i++) {
        struct wire_address *a = &m.u.addresses.entry[i];

        *a = (struct wire_address){
            .nic = WIRE_NICS_MAX - 1, .family = 6, .router = 1, .vlan = 4095, .age_s = UINT16_MAX};
        memcpy(a->bytes, bulk + i * sizeof(a->bytes), sizeof(a->bytes));
    }
    assert_round_trip(&m);
    m = sample(WIRE_STATE);
    memset(m.u.state.format, '~', WIRE_FORMAT_BYTES - 1);
    m.u.state.total = WIRE_STATE_MAX;
    m.u.state.offset = WIRE_STATE_MAX - WIRE_STATE_PER_MSG;
    m.u.state.n_raw = m.u.state.n_bytes = WIRE_STATE_PER_MSG;
    m.u.state.encoding = WIRE_ENC_RAW;
    m.u.state.bytes = bulk;
    assert_round_trip(&m);
}

static void test_round_trip_largest_values(void **state)
{
    struct wire_msg m = sample(WIRE_HEARTBEAT);

    m.epoch = m.u.heartbeat.seq = m.u.heartbeat.term = UINT64_MAX;
    assert_round_trip(&m);
    m = sample(WIRE_REFUSE);
    memset(m.u.refuse.text, ' ', WIRE_TEXT_BYTES - 1);
    assert_round_trip(&m);
    m = sample(WIRE_ARB_REQUEST);
    m.epoch = UINT64_MAX;
    m.u.arb_request.expected.term = UINT64_MAX - 1;
    m.u.arb_request.wanted.term = UINT64_MAX;
    fill_name(m.u.arb_request.vm, 'v');
    fill_name(m.u.arb_request.expected.owner, 'x');
    fill_name(m.u.arb_request.wanted.owner, 'y');
    fill_name(m.u.arb_request.wanted.standby, 'z');
    assert_round_trip(&m);
}

static void test_golden(void **state)
{
    for (size_t i = 0; i < N_OF(all_types); i++) {
        struct wire_msg m = sample(all_types[i]), back;
        const struct golden_msg *g = &golden_msgs[i];
        size_t n = encode(&m);

        assert_int_equal(g->n, n);
        assert_memory_equal(g->bytes, buf, n);
        assert_int_equal(decode(g->bytes, n, channel_of(m.type), &back), 0);
        assert_same(&m, &back);
    }
}

static void test_every_damaged_byte_is_refused(void **state)
{
    static const uint8_t damage[] = {0x01, 0x80, 0xff};

    for (size_t i = 0; i < N_OF(all_types); i++) {
        struct wire_msg m = sample(all_types[i]);
        size_t n = encode(&m);

        for (size_t at = 0; at < n; at++) {
            for (size_t d = 0; d < N_OF(damage); d++) {
                buf[at] ^= damage[d];
                assert_true(decode_copy(n, channel_of(m.type)) < 0);
                buf[at] ^= damage[d];
            }
        }
        assert_int_equal(decode_copy(n, channel_of(m.type)), 0);
    }
}

static void test_every_other_length_is_refused(void **state)
{
    for (size_t i = 0; i < N_OF(all_types); i++) {
        struct wire_msg m = sample(all_types[i]);
        size_t n = encode(&m);

        memset(buf + n, 0, 64);
        for (size_t other = WIRE_HEADER_BYTES; other <= n + 64; other++) {
            /* Any length but 0 is right for an offer, whose payload is one text. */
            bool right = other == n || (m.type == WIRE_OFFER && other > WIRE_HEADER_BYTES);

            reseal(buf, other);
            assert_int_equal(decode_copy(other, channel_of(m.type)), right ? 0 : -EPROTO);
        }
    }
}

static void test_header(void **state)
{
    struct wire_header header;
    struct wire_msg m = sample(WIRE_ACK);
    size_t n = encode(&m);

    assert_int_equal(wire_header_decode(buf, WIRE_CHANNEL_CONTROL, &header, NULL), 0);
    assert_int_equal(header.type, WIRE_ACK);
    assert_int_equal(header.length, n - WIRE_HEADER_BYTES);
    assert_int_equal(header.epoch, m.epoch);
    for (unsigned type = 0; type < 300; type++) { /* no type on a channel that is not its own */
        bool known = false;

        buf[0] = (uint8_t)type;
        buf[1] = (uint8_t)(type >> 8);
        for (size_t i = 0; i < N_OF(all_types); i++)
            known = known || all_types[i] == type;
        for (int c = 0; c < 5; c++) {
            if (!known || c != (int)channel_of((uint16_t)type))
                assert_int_equal(wire_header_decode(buf, c, &header, NULL), -EPROTO);
        }
    }
}

static void test_longer_than_allowed_is_refused_unread(void **state)
{
    static const uint32_t too_long[] = {WIRE_PAYLOAD_MAX, WIRE_PAYLOAD_MAX + 1, 0x7fffffff,
                                        0xffffffff};
    struct wire_header header;

    for (size_t i = 0; i < N_OF(all_types); i++) {
        struct wire_msg m = sample(all_types[i]);

        (void)encode(&m);
        for (size_t l = 0; l < N_OF(too_long); l++) {
            for (int b = 0; b < 4; b++)
                buf[4 + b] = (uint8_t)(too_long[l] >> (8 * b));
            assert_int_equal(wire_header_decode(buf, channel_of(m.type), &header, NULL), -EPROTO);
        }
    }
}

/* Single bytes that make a well-sealed message invalid. */
static void test_malformed_with_right_checksum(void **state)
{
    enum { P = WIRE_HEADER_BYTES, ENTRY = P + 8, STATE = P + 80, RECORD = P + 8 };
    static const struct {
        uint16_t type;
        size_t at;
        uint8_t value;
    } cases[] = {
        {WIRE_ACK, 2, 1}, /* reserved bytes of the header */
        {WIRE_ACK, 24, 1},
        {WIRE_ACK, 31, 1},
        {WIRE_HEARTBEAT, P + 16, 2}, /* paired */
        {WIRE_HEARTBEAT, P + 17, 1},
        {WIRE_HEARTBEAT, P + 23, 1},
        {WIRE_REFUSE, P, 0}, /* text: empty, bytes after its end, unterminated */
        {WIRE_REFUSE, P, '\n'},
        {WIRE_REFUSE, P + 511, 'x'},
        {WIRE_BYE, P, 0},
        {WIRE_BYE, P, 6},
        {WIRE_BYE, P + 1, 1},
        {WIRE_BYE, P + 7, 1},
        {WIRE_ADDRESSES, P, 0}, /* count */
        {WIRE_ADDRESSES, P, 1},
        {WIRE_ADDRESSES, P, 3},
        {WIRE_ADDRESSES, P + 1, 1},
        {WIRE_ADDRESSES, P + 3, 0xff},
        {WIRE_ADDRESSES, P + 4, 1},
        {WIRE_ADDRESSES, P + 7, 1},
        {WIRE_ADDRESSES, ENTRY, WIRE_NICS_MAX},
        {WIRE_ADDRESSES, ENTRY + 1, 0}, /* family */
        {WIRE_ADDRESSES, ENTRY + 1, 5},
        {WIRE_ADDRESSES, ENTRY + 2, 1}, /* router: of IPv4; neither 0 nor 1 */
        {WIRE_ADDRESSES, ENTRY + 24 + 2, 2},
        {WIRE_ADDRESSES, ENTRY + 3, 1},
        {WIRE_ADDRESSES, ENTRY + 5, 0x10}, /* VLAN */
        {WIRE_ADDRESSES, ENTRY + 12, 1},   /* IPv4 of more than 4 bytes */
        {WIRE_ADDRESSES, ENTRY + 23, 1},
        {WIRE_PAGES, P, 0}, /* count */
        {WIRE_PAGES, P, 1},
        {WIRE_PAGES, P, 3},
        {WIRE_PAGES, P + 1, 2},
        {WIRE_PAGES, P + 3, 0xff},
        {WIRE_PAGES, P + 7, 1},
        {WIRE_PAGES, ENTRY + 6, 0x10}, /* number */
        {WIRE_PAGES, ENTRY + 7, 0x80},
        {WIRE_PAGES, ENTRY + 8, 1}, /* encoding: raw of no bytes, lz4 of none, delta, none */
        {WIRE_PAGES, ENTRY + 8, 2},
        {WIRE_PAGES, ENTRY + 8, 3},
        {WIRE_PAGES, ENTRY + 8, 4},
        {WIRE_PAGES, ENTRY + 9, 1},
        {WIRE_PAGES, ENTRY + 10, 1}, /* a zero page with bytes */
        {WIRE_PAGES, ENTRY + 12, 1},
        {WIRE_PAGES, ENTRY + 15, 1},
        {WIRE_PAGES, ENTRY + 24, 1}, /* raw of three bytes */
        {WIRE_PAGES, ENTRY + 26, 2}, /* bytes left over, bytes missing */
        {WIRE_PAGES, ENTRY + 26, 4},
        {WIRE_PAGES, ENTRY + 27, 0xff},
        {WIRE_STATE, P, 0}, /* format */
        {WIRE_STATE, P, 200},
        {WIRE_STATE, P + 79, 'x'},
        {WIRE_STATE, STATE, 0}, /* total: 768, still enough; then less than offset + n_raw */
        {WIRE_STATE, STATE + 1, 1},
        {WIRE_STATE, STATE + 3, 0x11},  /* more than WIRE_STATE_MAX */
        {WIRE_STATE, STATE + 9, 0xff},  /* offset */
        {WIRE_STATE, STATE + 15, 0xff}, /* offset + n_raw would overflow */
        {WIRE_STATE, STATE + 17, 0xff}, /* n_raw beyond the end */
        {WIRE_STATE, STATE + 19, 0xff},
        {WIRE_STATE, STATE + 20, 0}, /* n_bytes */
        {WIRE_STATE, STATE + 20, 2},
        {WIRE_STATE, STATE + 23, 0xff},
        {WIRE_STATE, STATE + 24, 0}, /* encoding: zero, raw of another length, delta */
        {WIRE_STATE, STATE + 24, 1},
        {WIRE_STATE, STATE + 24, 3},
        {WIRE_STATE, STATE + 25, 1},
        {WIRE_STATE, STATE + 31, 1},
        {WIRE_EPOCH_END, P + 7, 0x80},
        {WIRE_EPOCH_END, P + 19, 0x20},
        {WIRE_ARB_REQUEST, P, 0}, /* operation */
        {WIRE_ARB_REQUEST, P, 1},
        {WIRE_ARB_REQUEST, P, 3},
        {WIRE_ARB_REQUEST, P + 1, 1},
        {WIRE_ARB_REQUEST, P + 8, 0}, /* name */
        {WIRE_ARB_REQUEST, P + 8, '/'},
        {WIRE_ARB_REQUEST, P + 71, 'x'},
        {WIRE_ARB_REQUEST, P + 72, 7}, /* expected term */
        {WIRE_ARB_REQUEST, P + 80, 2}, /* expected mode */
        {WIRE_ARB_REQUEST, P + 81, 1},
        {WIRE_ARB_REQUEST, P + 216, 8}, /* wanted term */
        {WIRE_ARB_REQUEST, P + 224, 1}, /* wanted mode */
        {WIRE_ARB_REPLY, P, 0},
        {WIRE_ARB_REPLY, P, 4},
        {WIRE_ARB_REPLY, P + 7, 1},
        {WIRE_ARB_REPLY, RECORD, 0}, /* no term, and yet a record */
        {WIRE_ARB_REPLY, RECORD + 8, 1},
        {WIRE_ARB_REPLY, RECORD + 15, 1},
        {WIRE_ARB_REPLY, RECORD + 16, 'H'},
        {WIRE_ARB_REPLY, RECORD + 16 + 4, 'b'}, /* owner = standby */
    };
    uint8_t kept;

    for (size_t i = 0; i < N_OF(cases); i++) {
        struct wire_msg m = sample(cases[i].type);
        size_t n = encode(&m);
        bool harmless = cases[i].type == WIRE_STATE && cases[i].at == STATE;

        kept = buf[cases[i].at];
        buf[cases[i].at] = cases[i].value;
        assert_int_not_equal(kept, cases[i].value);
        reseal(buf, n);
        if (decode_copy(n, channel_of(m.type)) != (harmless ? 0 : -EPROTO))
            fail_msg("case %zu: type %u, byte %zu", i, cases[i].type, cases[i].at);
    }
}

static void test_epoch_required(void **state)
{
    static const uint16_t with_epoch[] = {WIRE_ACK, WIRE_EPOCH_BEGIN, WIRE_PAGES, WIRE_STATE,
                                          WIRE_EPOCH_END};

    for (size_t i = 0; i < N_OF(with_epoch); i++) {
        struct wire_msg m = sample(with_epoch[i]);
        size_t n = encode(&m);

        memset(buf + 8, 0, 8);
        reseal(buf, n);
        assert_int_equal(decode_copy(n, channel_of(m.type)), -EPROTO);
        m.epoch = 0;
        assert_int_equal(wire_msg_encode(&m, buf, BUF_BYTES), -EINVAL);
    }
}

static void test_encoder_refuses_invalid(void **state)
{
    struct wire_msg m = {.type = 99};

    assert_int_equal(wire_msg_encode(&m, buf, BUF_BYTES), -EINVAL);
    m = sample(WIRE_PAGES);
    m.u.pages.n = WIRE_PAGES_PER_MSG + 1;
    assert_int_equal(wire_msg_encode(&m, buf, BUF_BYTES), -EINVAL);
    m = sample(WIRE_ADDRESSES);
    m.u.addresses.n = WIRE_ADDRESSES_MAX + 1;
    assert_int_equal(wire_msg_encode(&m, buf, BUF_BYTES), -EINVAL);
    m = sample(WIRE_ADDRESSES);
    m.u.addresses.entry[1].family = 4;
    assert_int_equal(wire_msg_encode(&m, buf, BUF_BYTES), -EINVAL);
    m = sample(WIRE_OFFER);
    m.u.offer.n_json = WIRE_OFFER_BYTES_MAX + 1;
    assert_int_equal(wire_msg_encode(&m, buf, BUF_BYTES), -EINVAL);
    m = sample(WIRE_ARB_REQUEST);
    m.u.arb_request.wanted.term = 1;
    assert_int_equal(wire_msg_encode(&m, buf, BUF_BYTES), -EINVAL);
    for (size_t i = 0; i < N_OF(all_types); i++) {
        m = sample(all_types[i]);
        for (size_t room = encode(&m); room-- > 0;)
            assert_int_equal(wire_msg_encode(&m, buf, room), -ENOSPC);
    }
}

static void test_text_is_made_printable(void **state)
{
    struct wire_msg m = sample(WIRE_REFUSE), back;
    size_t n;

    strcpy(m.u.refuse.text, "a\tb\xc3\xa4");
    n = encode(&m);
    assert_int_equal(decode(buf, n, WIRE_CHANNEL_CONTROL, &back), 0);
    assert_string_equal(back.u.refuse.text, "a?b??");
}

/* Random messages of pages: any mix of encodings and lengths comes back as it was. */
static void test_random_pages(void **state)
{
    uint64_t x = 88172645463325252;

    for (int round = 0; round < 300; round++) {
        struct wire_msg m = {.type = WIRE_PAGES, .epoch = 1 + (uint64_t)round};

        m.u.pages.n = 1 + (uint32_t)(x % WIRE_PAGES_PER_MSG);
        for (uint32_t i = 0; i < m.u.pages.n; i++) {
            struct wire_page *p = &m.u.pages.page[i];

            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            p->number = x % WIRE_PAGE_NUMBERS;
            p->encoding = (uint8_t)(x % 3);
            p->bytes = bulk + x % (sizeof(bulk) - WIRE_PAGE_BYTES);
            p->n_bytes = p->encoding == WIRE_ENC_ZERO  ? 0
                         : p->encoding == WIRE_ENC_RAW ? WIRE_PAGE_BYTES
                                                       : 1 + (uint16_t)(x % 4095);
        }
        assert_round_trip(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_small),
        cmocka_unit_test(test_round_trip_smallest),
        cmocka_unit_test(test_round_trip_largest_bulk),
        cmocka_unit_test(test_round_trip_largest_values),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_every_damaged_byte_is_refused),
        cmocka_unit_test(test_every_other_length_is_refused),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_longer_than_allowed_is_refused_unread),
        cmocka_unit_test(test_malformed_with_right_checksum),
        cmocka_unit_test(test_epoch_required),
        cmocka_unit_test(test_encoder_refuses_invalid),
        cmocka_unit_test(test_text_is_made_printable),
        cmocka_unit_test(test_random_pages),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
