/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "golden/msg.h"
#include "wire_sample.h"

static void test_round_trip_small(void **state)
{
    for (size_t i = 0; i < N_OF(sample_types); i++) {
        struct wire_msg m = sample(sample_types[i]);

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
    m.u.pages.n_body = WIRE_BODY_MIN;
    m.u.pages.n_bytes = 1;
    m.u.pages.encoding = WIRE_ENC_LZ4;
    assert_round_trip(&m);
    m = sample(WIRE_STATE);
    m.u.state = (struct wire_state){.format = "f",
                                    .total = 1,
                                    .n_raw = 1,
                                    .encoding = WIRE_ENC_RAW,
                                    .n_bytes = 1,
                                    .bytes = sample_bulk};
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
    struct wire_msg m = {.type = WIRE_OFFER,
                         .u.offer = {(char *)sample_bulk, WIRE_OFFER_BYTES_MAX}};

    assert_round_trip(&m);
    m = (struct wire_msg){.type = WIRE_PAGES, .epoch = UINT64_MAX};
    m.u.pages = (struct wire_pages){.n = WIRE_PAGES_PER_MSG,
                                    .n_body = WIRE_PAGES_PER_MSG * WIRE_BODY_MAX,
                                    .encoding = WIRE_ENC_RAW,
                                    .n_bytes = WIRE_PAGES_PER_MSG * WIRE_BODY_MAX,
                                    .bytes = sample_bulk};
    assert_round_trip(&m);
    assert_int_equal(wire_msg_encode(&m, sample_buf, encode(&m) - 1), -ENOSPC);
    m = (struct wire_msg){.type = WIRE_ADDRESSES, .u.addresses.n = WIRE_ADDRESSES_MAX};
    for (uint32_t i = 0; i < WIRE_ADDRESSES_MAX; i++) {
        struct wire_address *a = &m.u.addresses.entry[i];

        *a = (struct wire_address){
            .nic = WIRE_NICS_MAX - 1, .family = 6, .router = 1, .vlan = 4095, .age_s = UINT16_MAX};
        memcpy(a->bytes, sample_bulk + i * sizeof(a->bytes), sizeof(a->bytes));
    }
    assert_round_trip(&m);
    m = sample(WIRE_STATE);
    memset(m.u.state.format, '~', WIRE_FORMAT_BYTES - 1);
    m.u.state.total = WIRE_STATE_MAX;
    m.u.state.offset = WIRE_STATE_MAX - WIRE_STATE_PER_MSG;
    m.u.state.n_raw = m.u.state.n_bytes = WIRE_STATE_PER_MSG;
    m.u.state.encoding = WIRE_ENC_RAW;
    m.u.state.bytes = sample_bulk;
    assert_round_trip(&m);
}

/* As many registers as fit, and one more. */
static void test_registers(void **state)
{
    struct wire_msg m = {.type = WIRE_ARB_REGISTERS};
    struct wire_arb_registers *registers = &m.u.arb_registers;

    assert_round_trip(&m);
    registers->more = true;
    assert_not_encoded(&m); /* more after nothing */
    registers->n = WIRE_ARB_REGISTERS_PER_MSG;
    for (uint32_t i = 0; i < registers->n; i++) {
        struct wire_arb_register *entry = &registers->entry[i];

        fill_name(entry->vm, 'v');
        entry->vm[0] = (char)('a' + i / 10);
        entry->vm[1] = (char)('0' + i % 10);
        entry->record = (struct arb_record){.term = UINT64_MAX, .mode = ARB_PAIRED};
        fill_name(entry->record.owner, 'x');
        fill_name(entry->record.standby, 'y');
    }
    assert_round_trip(&m);
    registers->entry[7] = registers->entry[6];
    assert_not_encoded(&m);
    registers->n = WIRE_ARB_REGISTERS_PER_MSG + 1;
    assert_not_encoded(&m);
    m = (struct wire_msg){.type = WIRE_ARB_LIST};
    assert_round_trip(&m);
    fill_name(m.u.arb_list.after, 'z');
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
    for (size_t i = 0; i < N_OF(sample_types); i++) {
        struct wire_msg m = sample(sample_types[i]), back;
        const struct golden_msg *g = &golden_msgs[i];
        size_t n = encode(&m);

        assert_int_equal(g->n, n);
        assert_memory_equal(g->bytes, sample_buf, n);
        assert_int_equal(decode(g->bytes, n, sample_channel(m.type), &back), 0);
        assert_same(&m, &back);
    }
}

static void test_every_damaged_byte_is_refused(void **state)
{
    static const uint8_t damage[] = {0x01, 0x80, 0xff};

    for (size_t i = 0; i < N_OF(sample_types); i++) {
        struct wire_msg m = sample(sample_types[i]);
        size_t n = encode(&m);

        for (size_t at = 0; at < n; at++) {
            for (size_t d = 0; d < N_OF(damage); d++) {
                sample_buf[at] ^= damage[d];
                assert_true(decode_copy(n, sample_channel(m.type)) < 0);
                sample_buf[at] ^= damage[d];
            }
        }
        assert_int_equal(decode_copy(n, sample_channel(m.type)), 0);
    }
}

static void test_every_other_length_is_refused(void **state)
{
    for (size_t i = 0; i < N_OF(sample_types); i++) {
        struct wire_msg m = sample(sample_types[i]);
        size_t n = encode(&m);

        memset(sample_buf + n, 0, 64);
        for (size_t other = WIRE_HEADER_BYTES; other <= n + 64; other++) {
            /* Any length but 0 is right for an offer, whose payload is one text. */
            bool right = other == n || (m.type == WIRE_OFFER && other > WIRE_HEADER_BYTES);

            reseal(sample_buf, other);
            assert_int_equal(decode_copy(other, sample_channel(m.type)), right ? 0 : -EPROTO);
        }
    }
}

static void test_header(void **state)
{
    struct wire_header header;
    struct wire_msg m = sample(WIRE_ACK);
    size_t n = encode(&m);

    assert_int_equal(wire_header_decode(sample_buf, WIRE_CHANNEL_CONTROL, &header, NULL), 0);
    assert_int_equal(header.type, WIRE_ACK);
    assert_int_equal(header.length, n - WIRE_HEADER_BYTES);
    assert_int_equal(header.epoch, m.epoch);
    for (unsigned type = 0; type < 300; type++) { /* no type on a channel that is not its own */
        bool known = false;

        sample_buf[0] = (uint8_t)type;
        sample_buf[1] = (uint8_t)(type >> 8);
        for (size_t i = 0; i < N_OF(sample_types); i++)
            known = known || sample_types[i] == type;
        for (int c = 0; c < 5; c++) {
            if (!known || c != (int)sample_channel((uint16_t)type))
                assert_int_equal(wire_header_decode(sample_buf, c, &header, NULL), -EPROTO);
        }
    }
}

static void test_longer_than_allowed_is_refused_unread(void **state)
{
    static const uint32_t too_long[] = {WIRE_PAYLOAD_MAX, WIRE_PAYLOAD_MAX + 1, 0x7fffffff,
                                        0xffffffff};
    struct wire_header header;

    for (size_t i = 0; i < N_OF(sample_types); i++) {
        struct wire_msg m = sample(sample_types[i]);

        (void)encode(&m);
        for (size_t l = 0; l < N_OF(too_long); l++) {
            for (int b = 0; b < 4; b++)
                sample_buf[4 + b] = (uint8_t)(too_long[l] >> (8 * b));
            assert_int_equal(wire_header_decode(sample_buf, sample_channel(m.type), &header, NULL),
                             -EPROTO);
        }
    }
}

/* Single bytes that make a well-sealed message invalid. */
static void test_malformed_with_right_checksum(void **state)
{
    enum {
        P = WIRE_HEADER_BYTES,
        ENTRY = P + 8,
        STATE = P + 80,
        RECORD = P + 8,
        COPY = P + 16,
        RANGE = P + 16
    };
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
        {WIRE_READY, P + 8, 0}, /* count */
        {WIRE_READY, P + 8, 1},
        {WIRE_READY, P + 8, 3},
        {WIRE_READY, P + 8, WIRE_DISKS_MAX + 1},
        {WIRE_READY, P + 8, 0xff},
        {WIRE_READY, P + 9, 1},
        {WIRE_READY, P + 15, 1},
        {WIRE_READY, COPY, 0}, /* state: none; empty or unknown with an id; unheard of */
        {WIRE_READY, COPY, 1},
        {WIRE_READY, COPY, 3},
        {WIRE_READY, COPY, 4},
        {WIRE_READY, COPY + 1, 1},
        {WIRE_READY, COPY + 7, 1},
        {WIRE_READY, COPY + 24, 2}, /* known without an id; empty with one */
        {WIRE_READY, COPY + 32, 1},
        {WIRE_READY, COPY + 47, 1},
        {WIRE_ACK, P + 15, 0xff}, /* durable what is not here */
        {WIRE_REFUSE, P, 0},      /* text: empty, bytes after its end, unterminated */
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
        {WIRE_DISK_RANGES, P, 0}, /* kind: none, dirty with a mark, unheard of */
        {WIRE_DISK_RANGES, P, 1},
        {WIRE_DISK_RANGES, P, 3},
        {WIRE_DISK_RANGES, P + 1, WIRE_DISKS_MAX},
        {WIRE_DISK_RANGES, P + 2, 2},
        {WIRE_DISK_RANGES, P + 3, 1},
        {WIRE_DISK_RANGES, P + 4, 0}, /* count */
        {WIRE_DISK_RANGES, P + 4, 1},
        {WIRE_DISK_RANGES, P + 4, 3},
        {WIRE_DISK_RANGES, P + 5, 4},
        {WIRE_DISK_RANGES, P + 7, 0xff},
        {WIRE_DISK_RANGES, RANGE + 1, 0xf0}, /* reaches into the next; empty; out of order */
        {WIRE_DISK_RANGES, RANGE + 9, 0},
        {WIRE_DISK_RANGES, RANGE + 18, 0},
        {WIRE_FRAMES, P, WIRE_NICS_MAX},
        {WIRE_FRAMES, P + 1, 1},
        {WIRE_FRAMES, P + 3, 1},
        {WIRE_FRAMES, P + 4, 13},
        {WIRE_FRAMES, P + 4, 15},
        {WIRE_FRAMES, P + 7, 0xff},
        {WIRE_EPOCH_BEGIN, P + 8, 2},
        {WIRE_EPOCH_BEGIN, P + 9, 1},
        {WIRE_EPOCH_BEGIN, P + 15, 1},
        {WIRE_DISK, P, 0}, /* count */
        {WIRE_DISK, P, 3},
        {WIRE_DISK, P, 5},
        {WIRE_DISK, P + 1, 1},
        {WIRE_DISK, P + 3, 0xff},
        {WIRE_DISK, P + 4, 1},
        {WIRE_DISK, P + 7, 1},
        {WIRE_PAGES, P, 0}, /* count: none, too many for the body, or for a message */
        {WIRE_PAGES, P, 25},
        {WIRE_PAGES, P + 1, 1},
        {WIRE_PAGES, P + 3, 0xff},
        {WIRE_PAGES, P + 4, 7}, /* body: too short, not as long as its bytes, too long */
        {WIRE_PAGES, P + 4, 34},
        {WIRE_PAGES, P + 5, 0x41},
        {WIRE_PAGES, P + 7, 0xff},
        {WIRE_PAGES, P + 8, 0}, /* encoded length: none, bytes left over, bytes missing */
        {WIRE_PAGES, P + 8, 47},
        {WIRE_PAGES, P + 8, 49},
        {WIRE_PAGES, P + 11, 0xff},
        {WIRE_PAGES, P + 12, 0}, /* encoding: zero, others not shorter than the body, none */
        {WIRE_PAGES, P + 12, 2},
        {WIRE_PAGES, P + 12, 3},
        {WIRE_PAGES, P + 12, 4},
        {WIRE_PAGES, P + 12, 5},
        {WIRE_PAGES, P + 13, 1},
        {WIRE_PAGES, P + 15, 1},
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
        {WIRE_STATE, STATE + 24, 0}, /* encoding: zero, raw of another length, none */
        {WIRE_STATE, STATE + 24, 1},
        {WIRE_STATE, STATE + 24, 3},
        {WIRE_STATE, STATE + 24, 5},
        {WIRE_STATE, STATE + 25, 2}, /* delta: neither yes nor no */
        {WIRE_STATE, STATE + 26, 1},
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
        {WIRE_ARB_REPLY, P, 5},
        {WIRE_ARB_REPLY, P + 7, 1},
        {WIRE_ARB_REPLY, RECORD, 0}, /* no term, and yet a record */
        {WIRE_ARB_REPLY, RECORD + 8, 1},
        {WIRE_ARB_REPLY, RECORD + 15, 1},
        {WIRE_ARB_REPLY, RECORD + 16, 'H'},
        {WIRE_ARB_REPLY, RECORD + 16 + 4, 'b'}, /* owner = standby */
        {WIRE_ARB_LIST, P, '-'},
        {WIRE_ARB_LIST, P, 0}, /* bytes after the end */
        {WIRE_ARB_LIST, P + 63, 'x'},
        {WIRE_ARB_REGISTERS, P, 0}, /* count */
        {WIRE_ARB_REGISTERS, P, 1},
        {WIRE_ARB_REGISTERS, P, 3},
        {WIRE_ARB_REGISTERS, P + 3, 0xff},
        {WIRE_ARB_REGISTERS, P + 4, 2}, /* more */
        {WIRE_ARB_REGISTERS, P + 5, 1},
        {WIRE_ARB_REGISTERS, P + 7, 1},
        {WIRE_ARB_REGISTERS, ENTRY, 'x'}, /* after "web" */
        {WIRE_ARB_REGISTERS, ENTRY, '/'},
        {WIRE_ARB_REGISTERS, ENTRY + 63, 'x'},
        {WIRE_ARB_REGISTERS, ENTRY + 64, 0}, /* a register without a record */
        {WIRE_ARB_REGISTERS, ENTRY + 72, 3},
        {WIRE_ARB_REGISTERS, ENTRY + 73, 1},
        {WIRE_ARB_REGISTERS, ENTRY + 208 + 72, 1}, /* solo with a standby */
    };
    uint8_t kept;

    for (size_t i = 0; i < N_OF(cases); i++) {
        struct wire_msg m = sample(cases[i].type);
        size_t n = encode(&m);
        bool harmless = cases[i].type == WIRE_STATE && cases[i].at == STATE;

        kept = sample_buf[cases[i].at];
        sample_buf[cases[i].at] = cases[i].value;
        assert_int_not_equal(kept, cases[i].value);
        reseal(sample_buf, n);
        if (decode_copy(n, sample_channel(m.type)) != (harmless ? 0 : -EPROTO))
            fail_msg("case %zu: type %u, byte %zu", i, cases[i].type, cases[i].at);
    }
}

static void test_epoch_required(void **state)
{
    static const uint16_t with_epoch[] = {WIRE_ACK,  WIRE_EPOCH_BEGIN, WIRE_PAGES,
                                          WIRE_DISK, WIRE_STATE,       WIRE_EPOCH_END};

    for (size_t i = 0; i < N_OF(with_epoch); i++) {
        struct wire_msg m = sample(with_epoch[i]);
        size_t n = encode(&m);

        memset(sample_buf + 8, 0, 8);
        reseal(sample_buf, n);
        assert_int_equal(decode_copy(n, sample_channel(m.type)), -EPROTO);
        m.epoch = 0;
        assert_not_encoded(&m);
    }
}

static void test_encoder_refuses_invalid(void **state)
{
    struct wire_msg m = {.type = 99};

    assert_not_encoded(&m);
    m = sample(WIRE_PAGES);
    m.u.pages.n = WIRE_PAGES_PER_MSG + 1;
    assert_not_encoded(&m);
    m = sample(WIRE_ADDRESSES);
    m.u.addresses.n = WIRE_ADDRESSES_MAX + 1;
    assert_not_encoded(&m);
    m = sample(WIRE_ADDRESSES);
    m.u.addresses.entry[1].family = 4;
    assert_not_encoded(&m);
    m = sample(WIRE_OFFER);
    m.u.offer.n_json = WIRE_OFFER_BYTES_MAX + 1;
    assert_not_encoded(&m);
    m = sample(WIRE_ARB_REQUEST);
    m.u.arb_request.wanted.term = 1;
    assert_not_encoded(&m);
    for (size_t i = 0; i < N_OF(sample_types); i++) {
        m = sample(sample_types[i]);
        for (size_t room = encode(&m); room-- > 0;)
            assert_int_equal(wire_msg_encode(&m, sample_buf, room), -ENOSPC);
    }
}

static void test_text_is_made_printable(void **state)
{
    struct wire_msg m = sample(WIRE_REFUSE), back;
    size_t n;

    strcpy(m.u.refuse.text, "a\tb\xc3\xa4");
    n = encode(&m);
    assert_int_equal(decode(sample_buf, n, WIRE_CHANNEL_CONTROL, &back), 0);
    assert_string_equal(back.u.refuse.text, "a?b??");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_small),
        cmocka_unit_test(test_round_trip_smallest),
        cmocka_unit_test(test_round_trip_largest_bulk),
        cmocka_unit_test(test_registers),
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
    };

    return cmocka_run_group_tests(tests, sample_setup, sample_teardown);
}
