/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include "wire_sample.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

const uint16_t sample_types[SAMPLE_TYPES] = {
    WIRE_HEARTBEAT, WIRE_OFFER,     WIRE_READY,         WIRE_REFUSE,    WIRE_ACK,
    WIRE_BYE,       WIRE_ADDRESSES, WIRE_DISK_RANGES,   WIRE_FRAMES,    WIRE_EPOCH_BEGIN,
    WIRE_PAGES,     WIRE_DISK,      WIRE_STATE,         WIRE_EPOCH_END, WIRE_ARB_REQUEST,
    WIRE_ARB_REPLY, WIRE_ARB_LIST,  WIRE_ARB_REGISTERS,
};

uint8_t *sample_buf;
uint8_t sample_bulk[PAGE_BODY_BYTES];

enum wire_channel sample_channel(uint16_t type)
{
    return type < WIRE_EPOCH_BEGIN   ? WIRE_CHANNEL_CONTROL
           : type < WIRE_ARB_REQUEST ? WIRE_CHANNEL_DATA
                                     : WIRE_CHANNEL_ARBITER;
}

void count_up(uint8_t *bytes, size_t n, uint8_t from)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(from + i);
}

/* A page of each kind but the one that is longest. */
static void sample_pages(struct wire_pages *pages)
{
    static uint8_t body[5 * WIRE_BODY_MAX], distance[PAGE_DISTANCE_BYTES], changes[WIRE_PAGE_BYTES];
    static const uint8_t before[WIRE_PAGE_BYTES] = {[200] = 1};
    uint8_t after[WIRE_PAGE_BYTES] = {[200] = 2, [4095] = 3};
    uint32_t n_changes = page_diff(before, after, changes);
    const struct page_table table = {
        .n = 4,
        .page = {{.number = 258, .kind = WIRE_PAGE_ZERO},
                 {.number = 260, .kind = WIRE_PAGE_UNCHANGED},
                 {65536, WIRE_PAGE_CHANGES, (uint16_t)n_changes, changes},
                 {WIRE_PAGE_NUMBERS - 1, WIRE_PAGE_DUPLICATE, sizeof(distance), distance}}};

    page_distance_put(distance, 258);
    *pages = (struct wire_pages){.n = table.n, .encoding = WIRE_ENC_RAW, .bytes = body};
    pages->n_body = pages->n_bytes = page_table_pack(&table, body);
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

struct wire_msg sample(uint16_t type)
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
        sample_pages(&m.u.pages);
        break;
    case WIRE_DISK:
        sample_disk(&m.u.disk, piece);
        break;
    case WIRE_STATE:
        m.u.state = (struct wire_state){.format = "qemu/pc-q35-7.2",
                                        .total = 1000,
                                        .offset = 258,
                                        .n_raw = 260,
                                        .encoding = WIRE_ENC_ZSTD,
                                        .delta = true,
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
    case WIRE_ARB_LIST:
        strcpy(m.u.arb_list.after, "db");
        break;
    case WIRE_ARB_REGISTERS:
        m.u.arb_registers = (struct wire_arb_registers){
            .more = true, .n = 2, .entry = {{"mail", solo}, {"web", paired}}};
        break;
    }
    return m;
}

size_t encode(const struct wire_msg *m)
{
    int64_t n = wire_msg_encode(m, sample_buf, SAMPLE_BUF_BYTES);

    assert_true(n >= WIRE_HEADER_BYTES);
    return (size_t)n;
}

int decode(const uint8_t *raw, size_t n, enum wire_channel channel, struct wire_msg *ret_msg)
{
    struct wire_header header;
    int r = wire_header_decode(raw, channel, &header, NULL);

    if (r < 0)
        return r;
    if (header.length != n - WIRE_HEADER_BYTES)
        return -EMSGSIZE; /* a reader would wait for more, or see another message */
    return wire_msg_decode(raw, &header, raw + WIRE_HEADER_BYTES, ret_msg, NULL);
}

int decode_copy(size_t n, enum wire_channel channel)
{
    struct wire_msg msg;
    uint8_t *copy = malloc(n);
    int r;

    assert_non_null(copy);
    memcpy(copy, sample_buf, n);
    r = decode(copy, n, channel, &msg);
    free(copy);
    return r;
}

void reseal(uint8_t *raw, size_t n)
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
    assert_int_equal(a->n_body, b->n_body);
    assert_int_equal(a->encoding, b->encoding);
    assert_int_equal(a->n_bytes, b->n_bytes);
    assert_memory_equal(a->bytes, b->bytes, a->n_bytes);
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
    assert_int_equal(a->delta, b->delta);
    assert_int_equal(a->n_bytes, b->n_bytes);
    assert_memory_equal(a->bytes, b->bytes, a->n_bytes);
}

static void assert_same_registers(const struct wire_arb_registers *a,
                                  const struct wire_arb_registers *b)
{
    assert_int_equal(a->more, b->more);
    assert_int_equal(a->n, b->n);
    for (uint32_t i = 0; i < a->n; i++) {
        assert_string_equal(a->entry[i].vm, b->entry[i].vm);
        assert_same_record(&a->entry[i].record, &b->entry[i].record);
    }
}

void assert_same(const struct wire_msg *a, const struct wire_msg *b)
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
    case WIRE_ARB_LIST:
        assert_string_equal(a->u.arb_list.after, b->u.arb_list.after);
        break;
    case WIRE_ARB_REGISTERS:
        assert_same_registers(&a->u.arb_registers, &b->u.arb_registers);
        break;
    default:
        fail();
    }
}

void assert_round_trip(const struct wire_msg *m)
{
    size_t n = encode(m);
    uint8_t *copy = malloc(n);
    struct wire_msg back;

    assert_non_null(copy);
    memcpy(copy, sample_buf, n);
    assert_int_equal(decode(copy, n, sample_channel(m->type), &back), 0);
    assert_same(m, &back);
    assert_int_equal(encode(&back), n);
    assert_memory_equal(copy, sample_buf, n);
    free(copy);
}

void assert_not_encoded(const struct wire_msg *m)
{
    assert_int_equal(wire_msg_encode(m, sample_buf, SAMPLE_BUF_BYTES), -EINVAL);
}

int sample_setup(void **state)
{
    sample_buf = malloc(SAMPLE_BUF_BYTES);
    for (size_t i = 0; i < sizeof(sample_bulk); i++)
        sample_bulk[i] = (uint8_t)(i * 2654435761u >> 13);
    return sample_buf ? 0 : -1;
}

int sample_teardown(void **state)
{
    free(sample_buf);
    return 0;
}
