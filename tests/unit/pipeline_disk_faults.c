/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline_disk_rig.h"

/* The receiver against what a link or a peer can do to the disks' records: an epoch that is not
 * whole and right never gets to the images. */

/* An epoch as the sender writes it. */
static struct stream record(struct world *w, uint64_t *seed, uint64_t term)
{
    int fd = stream_attach(&w->rig);

    for (unsigned i = 0; i < 20; i++)
        any_record(w, seed, 300);
    feed(w, term, ALL);
    return stream_collect(&w->rig, fd, w->epoch);
}

/* on_seeding, which has to say so on the disk before the copy is spoilt, fails. */
static void copy_cannot_be_given_up(void **state)
{
    struct world *w = *state;
    struct receiver_report report;
    uint64_t seed = 16, start, end;
    struct stream first = record(w, &seed, 0);

    w->seeding_result = -EIO;
    assert_int_equal(stream_play(&w->rig, first.bytes, first.n), -EIO);
    receiver_report_get(w->rig.receiver, &report);
    assert_string_equal(report.text, "disks: Input/output error");
    assert_int_equal(report.staged_epoch, 0);
    assert_int_equal(w->n_seeding, 1);
    for (unsigned i = 0; i < DISKS; i++)
        assert_int_equal(image_next_data(&w->images[i], 0, &start, &end), 0);
    assert_int_equal(applier_news(w).applied_epoch, 0);
    free(first.bytes);
}

/* Epoch 1 is on the images, epoch 2 is recorded. */
static struct stream prepare(struct world *w, uint64_t *seed)
{
    struct stream first = record(w, seed, TERM), second;

    assert_int_equal(stream_play(&w->rig, first.bytes, first.n), 0);
    apply(w, 1);
    free(first.bytes);
    second = record(w, seed, TERM);
    return second;
}

/* Whatever was refused: the images are those of epoch 1, and epoch 2 is taken. */
static void finish(struct world *w, struct stream *second)
{
    assert_int_equal(applier_news(w).applied_epoch, 1);
    assert_images(w, &w->cuts[1]);
    assert_int_equal(stream_play(&w->rig, second->bytes, second->n), 0);
    apply(w, 2);
    free(second->bytes);
}

static void damaged_or_cut_at_each_byte(void **state)
{
    struct world *w = *state;
    uint64_t seed = 17;
    struct stream second = prepare(w, &seed);

    for (size_t at = 0; at < second.n; at += 3) {
        uint8_t flip = (uint8_t)(1 << rig_random(&seed) % 8);
        int rc;

        second.bytes[at] ^= flip;
        rc = stream_play(&w->rig, second.bytes, second.n);
        second.bytes[at] ^= flip;
        if (rc != -EPROTO && rc != -ECONNRESET) /* a longer length waits for what does not come */
            fail_msg("byte %zu: %d", at, rc);
        assert_int_equal(stream_play(&w->rig, second.bytes, at), -ECONNRESET);
    }
    finish(w, &second);
}

/* One wrong thing per case, and what the receiver says; case 0 is right. */
enum wrong {
    NOTHING_WRONG,
    RECORDS_AFTER_STATE,
    PAGES_AFTER_RECORDS,
    WRONG_COUNT,
    WRONG_DIGEST,
    DIGEST_OF_OTHER_PLACE,
    BEYOND_THE_END,
    NO_SUCH_DISK,
    NO_UNIT,
    TOO_MANY_BYTES,
    DOES_NOT_DECODE,
    N_WRONG,
};

static const struct {
    int error;
    const char *text;
} refusals[N_WRONG] = {
    [RECORDS_AFTER_STATE] = {-EPROTO, "epoch 2: disk records after the device state"},
    [PAGES_AFTER_RECORDS] = {-EPROTO,
                             "epoch 2: pages after the disks' records or the device state"},
    [WRONG_COUNT] = {-EPROTO, "epoch 2: it is not whole"},
    [WRONG_DIGEST] = {-EPROTO, "epoch 2: its digest is wrong"},
    [DIGEST_OF_OTHER_PLACE] = {-EPROTO, "epoch 2: its digest is wrong"},
    [BEYOND_THE_END] = {-EPROTO, "epoch 2: disk record for 4096 bytes at 4190209 of disk 0 "
                                 "(4194304 bytes)"},
    [NO_SUCH_DISK] = {-EPROTO, "epoch 2: disk record for disk 2 of 2"},
    [NO_UNIT] = {-EPROTO, "epoch 2: digest of 4096 bytes at 0 is of no unit"},
    [TOO_MANY_BYTES] = {-E2BIG, "epoch 2 has too many disk records"},
    [DOES_NOT_DECODE] = {-EPROTO, "epoch 2: disk 0: 4096 bytes at 8192 with encoding 2 in 4 "
                                  "bytes do not decode"},
};

static void put_record(struct stream *s, struct wire_disk_piece piece, struct epoch_digest *digest)
{
    static const uint8_t zeros[WIRE_DISK_PIECE_BYTES];
    static struct wire_msg msg;

    msg.type = WIRE_DISK;
    msg.epoch = 2;
    msg.u.disk.n = 1;
    if (!piece.bytes && wire_disk_piece_data(&piece)) {
        piece.encoding = WIRE_ENC_RAW;
        piece.n_bytes = (uint32_t)wire_disk_piece_data(&piece);
        piece.bytes = zeros;
    }
    msg.u.disk.piece[0] = piece;
    epoch_digest_disk(digest, &piece, zeros, wire_disk_piece_data(&piece));
    stream_msg(s, &msg);
}

static void put_page(struct stream *s, struct epoch_digest *digest)
{
    const struct page_hash hash = page_hash_zero();
    const struct page_item page = {.kind = WIRE_PAGE_ZERO};

    stream_page(s, 2, &page);
    epoch_digest_page(digest, 0, &hash);
}

static void put_state(struct stream *s, struct epoch_digest *digest)
{
    static const uint8_t bytes[4] = "abcd";
    struct wire_msg msg = {.type = WIRE_STATE, .epoch = 2};

    msg.u.state = (struct wire_state){.format = "test:1",
                                      .total = sizeof(bytes),
                                      .n_raw = sizeof(bytes),
                                      .encoding = WIRE_ENC_RAW,
                                      .n_bytes = sizeof(bytes),
                                      .bytes = bytes};
    epoch_digest_state(digest, bytes, sizeof(bytes));
    stream_msg(s, &msg);
}

static struct stream build(enum wrong wrong, struct epoch_digest *digest)
{
    struct wire_disk_piece write = {.kind = WIRE_DISK_WRITE, .offset = 8192, .n_range = 4096};
    struct wire_msg begin = {.type = WIRE_EPOCH_BEGIN, .epoch = 2, .u.epoch_begin.pair_term = TERM};
    struct wire_msg end = {.type = WIRE_EPOCH_END, .epoch = 2};
    struct stream s = {0}, elsewhere = {0};
    unsigned n = wrong == TOO_MANY_BYTES ? LIMIT_BYTES / WIRE_DISK_PIECE_BYTES + 1 : 1;

    epoch_digest_reset(digest);
    stream_msg(&s, &begin);
    put_page(&s, digest);
    if (wrong == RECORDS_AFTER_STATE)
        put_state(&s, digest);
    if (wrong == BEYOND_THE_END)
        write.offset = BIG_BYTES - 4095;
    if (wrong == NO_SUCH_DISK)
        write.disk = DISKS;
    if (wrong == NO_UNIT)
        write = (struct wire_disk_piece){.kind = WIRE_DISK_DIGEST, .n_range = 4096};
    if (wrong == TOO_MANY_BYTES)
        write = (struct wire_disk_piece){.kind = WIRE_DISK_WRITE, .n_range = WIRE_DISK_PIECE_BYTES};
    if (wrong == DOES_NOT_DECODE) {
        write.encoding = WIRE_ENC_LZ4;
        write.n_bytes = 4;
        write.bytes = (const uint8_t *)"\xff\xff\xff\xff";
    }
    for (unsigned i = 0; i < n; i++)
        put_record(&s, write, digest);
    if (wrong == PAGES_AFTER_RECORDS)
        put_page(&s, digest);
    if (wrong == WRONG_DIGEST)
        epoch_digest_reset(digest);
    if (wrong == DIGEST_OF_OTHER_PLACE) { /* the same bytes, elsewhere */
        write.offset++;
        epoch_digest_reset(digest);
        put_page(&elsewhere, digest);
        put_record(&elsewhere, write, digest);
        free(elsewhere.bytes);
    }
    if (wrong != RECORDS_AFTER_STATE)
        put_state(&s, digest);
    end.u.epoch_end = (struct wire_epoch_end){.n_pages = 1 + (wrong == PAGES_AFTER_RECORDS),
                                              .n_disk_pieces = n + (wrong == WRONG_COUNT),
                                              .n_state_bytes = 4};
    epoch_digest_get(digest, end.u.epoch_end.digest);
    stream_msg(&s, &end);
    return s;
}

static void peer_breaks_the_rules(void **state)
{
    struct epoch_digest *digest = epoch_digest_new();
    struct world *w = *state;
    struct receiver_report report;
    struct stream second, right;
    uint64_t seed = 18;

    second = prepare(w, &seed);
    for (unsigned wrong = 1; wrong < N_WRONG; wrong++) {
        struct stream s = build((enum wrong)wrong, digest);
        int rc = stream_play(&w->rig, s.bytes, s.n);

        receiver_report_get(w->rig.receiver, &report);
        if (rc != refusals[wrong].error || strcmp(report.text, refusals[wrong].text) != 0)
            fail_msg("%u: %d, \"%s\"", wrong, rc, report.text);
        free(s.bytes);
    }
    assert_images(w, &w->cuts[1]);
    free(second.bytes);

    /* And the same without the mistake is taken. */
    w->cuts[2] = w->cuts[1];
    memset(w->cuts[2].big + 8192, 0, 4096);
    right = build(NOTHING_WRONG, digest);
    finish(w, &right);
    epoch_digest_free(digest);
}

/* A VM without disks. */
static void records_without_disks(void **state)
{
    static const struct wire_disk_piece pieces[] = {
        {.kind = WIRE_DISK_WRITE, .n_range = 4096},
        {.kind = WIRE_DISK_ZERO, .n_range = 4096},
    };
    struct epoch_digest *digest = epoch_digest_new();
    struct wire_msg begin = {.type = WIRE_EPOCH_BEGIN, .epoch = 2};
    struct receiver_report report;
    struct rig rig;

    rig_new(&rig);
    for (size_t i = 0; i < N_OF(pieces); i++) {
        struct stream s = {0};

        epoch_digest_reset(digest);
        stream_msg(&s, &begin);
        put_record(&s, pieces[i], digest);
        assert_int_equal(stream_play(&rig, s.bytes, s.n), -EPROTO);
        receiver_report_get(rig.receiver, &report);
        assert_string_equal(report.text, "epoch 2: disk record for disk 0 of 0");
        free(s.bytes);
    }
    rig_free(&rig);
    epoch_digest_free(digest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(copy_cannot_be_given_up, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_or_cut_at_each_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(peer_breaks_the_rules, setup, teardown),
        cmocka_unit_test(records_without_disks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
