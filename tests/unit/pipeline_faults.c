/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "pipeline_stream.h"

/* The receiver against everything that a link or a peer can do to it: whatever happens, an epoch
 * that is not whole and right never gets staged, and the image stays as it was. */

static void prepare(struct rig *rig, struct stream *ret_second)
{
    struct stream first;

    rig_new(rig);
    first = stream_record(rig, 1);
    *ret_second = stream_record(rig, 2);
    assert_int_equal(stream_play(rig, first.bytes, first.n), 0);
    rig_apply(rig);
    rig_assert_applied(rig, 1);
    free(first.bytes);
}

static void finish(struct rig *rig, struct stream *second)
{
    rig_assert_applied(rig, 1);
    assert_int_equal(stream_play(rig, second->bytes, second->n), 0);
    rig_apply(rig);
    rig_assert_applied(rig, 2);
    free(second->bytes);
    rig_free(rig);
}

/* Every byte near the start and the end, where the small messages are; every 7th between. */
static size_t stride(size_t at, size_t n)
{
    return at < 200 || n - at < 200 ? 1 : 7;
}

static void cut_at_each_byte(void **state)
{
    struct stream second;
    struct rig rig;

    prepare(&rig, &second);
    for (size_t at = 0; at < second.n; at += stride(at, second.n)) {
        assert_int_equal(stream_play(&rig, second.bytes, at), -ECONNRESET);
        assert_true(memcmp(rig.image, rig.model, sizeof(rig.model)) == 0);
    }
    finish(&rig, &second);
}

static void damaged_at_each_byte(void **state)
{
    struct stream second;
    struct rig rig;
    uint64_t seed = 99;

    prepare(&rig, &second);
    for (size_t at = 0; at < second.n; at += stride(at, second.n)) {
        uint8_t flip = (uint8_t)(1 << rig_random(&seed) % 8);
        int rc;

        second.bytes[at] ^= flip;
        rc = stream_play(&rig, second.bytes, second.n);
        second.bytes[at] ^= flip;
        if (rc != -EPROTO && rc != -ECONNRESET) /* a longer length waits for what does not come */
            fail_msg("byte %zu: %d", at, rc);
        assert_true(memcmp(rig.image, rig.model, sizeof(rig.model)) == 0);
    }
    finish(&rig, &second);
}

/* Messages by hand, for what the sender never does. */

static void add_begin(struct stream *s, uint64_t epoch)
{
    stream_msg(s, &(struct wire_msg){.type = WIRE_EPOCH_BEGIN, .epoch = epoch});
}

static void add_page(struct stream *s, uint64_t epoch, uint64_t number, struct epoch_digest *digest)
{
    const struct page_hash hash = page_hash_zero();
    const struct page_item page = {.number = number, .kind = WIRE_PAGE_ZERO};

    stream_page(s, epoch, &page);
    epoch_digest_page(digest, number, &hash);
}

static void add_state(struct stream *s, uint64_t epoch, const char *format, uint64_t total,
                      uint64_t offset, uint32_t n, struct epoch_digest *digest)
{
    static const uint8_t bytes[100] = "the state of a device";
    struct wire_msg msg = {.type = WIRE_STATE, .epoch = epoch};
    struct wire_state *piece = &msg.u.state;

    *piece = (struct wire_state){.total = total,
                                 .offset = offset,
                                 .n_raw = n,
                                 .encoding = WIRE_ENC_RAW,
                                 .n_bytes = n,
                                 .bytes = bytes + offset};
    memcpy(piece->format, format, strlen(format));
    epoch_digest_state(digest, piece->bytes, n);
    stream_msg(s, &msg);
}

static void add_end(struct stream *s, uint64_t epoch, uint64_t n_pages, uint64_t n_state,
                    const struct epoch_digest *digest)
{
    struct wire_msg msg = {.type = WIRE_EPOCH_END,
                           .epoch = epoch,
                           .u.epoch_end = {.n_pages = n_pages, .n_state_bytes = n_state}};

    epoch_digest_get(digest, msg.u.epoch_end.digest);
    stream_msg(s, &msg);
}

/* One wrong thing per case, and what the receiver says; case 0 is right. */
static const struct {
    const char *what, *text;
} wrong[] = {
    {"nothing wrong", ""},
    {"pages without a begin", "no epoch begins where one should"},
    {"a begin inside of an epoch", "epoch 2: another epoch begins inside of it"},
    {"a page of another epoch", "epoch 2: another epoch begins inside of it"},
    {"a page that the VM does not have", "epoch 2: page 128 of a VM that has 128"},
    {"a page after the state", "epoch 2: pages after the disks' records or the device state"},
    {"a gap in the state", "epoch 2: pieces of device state that do not belong together"},
    {"a piece of state twice", "epoch 2: pieces of device state that do not belong together"},
    {"another format in the middle", "epoch 2: pieces of device state that do not belong together"},
    {"another total in the middle", "epoch 2: pieces of device state that do not belong together"},
    {"a state that ends early", "epoch 2: it is not whole"},
    {"one page too many in the end's count", "epoch 2: it is not whole"},
    {"another length of state in the end", "epoch 2: it is not whole"},
    {"a wrong digest", "epoch 2: its digest is wrong"},
    {"an epoch that is not new", "epoch 1 after epoch 1"},
};

static struct stream build(unsigned what, struct epoch_digest *digest)
{
    uint64_t epoch = what == 14 ? 1 : 2;
    struct stream s = {0};

    epoch_digest_reset(digest);
    if (what != 1)
        add_begin(&s, epoch);
    add_page(&s, epoch, 3, digest);
    if (what == 2)
        add_begin(&s, 3);
    add_page(&s, what == 3 ? 5 : epoch, what == 4 ? RIG_PAGES : RIG_PAGES - 1, digest);
    add_state(&s, epoch, "fmt", 60, 0, 40, digest);
    if (what == 5)
        add_page(&s, epoch, 1, digest);
    if (what == 6)
        add_state(&s, epoch, "fmt", 60, 41, 19, digest);
    else if (what == 7)
        add_state(&s, epoch, "fmt", 60, 0, 40, digest);
    else if (what == 8)
        add_state(&s, epoch, "fmt2", 60, 40, 20, digest);
    else if (what == 9)
        add_state(&s, epoch, "fmt", 61, 40, 20, digest);
    else if (what == 10)
        add_state(&s, epoch, "fmt", 60, 40, 19, digest);
    else
        add_state(&s, epoch, "fmt", 60, 40, 20, digest);
    if (what == 13)
        epoch_digest_reset(digest);
    add_end(&s, epoch, what == 11 ? 3 : 2, what == 12 ? 61 : what == 10 ? 59 : 60, digest);
    return s;
}

static void peer_breaks_the_rules(void **state)
{
    struct epoch_digest *digest = epoch_digest_new();
    struct receiver_report report;
    struct stream second;
    struct rig rig;

    prepare(&rig, &second);
    for (unsigned what = 1; what < N_OF(wrong); what++) {
        struct stream s = build(what, digest);
        int rc = stream_play(&rig, s.bytes, s.n);

        receiver_report_get(rig.receiver, &report);
        if (rc != -EPROTO || strcmp(report.text, wrong[what].text) != 0)
            fail_msg("%s: %d, \"%s\"", wrong[what].what, rc, report.text);
        assert_true(memcmp(rig.image, rig.model, sizeof(rig.model)) == 0);
        free(s.bytes);
    }
    finish(&rig, &second);

    /* And the same without the mistake is taken. */
    rig_new(&rig);
    second = build(0, digest);
    assert_int_equal(stream_play(&rig, second.bytes, second.n), 0);
    free(second.bytes);
    rig_free(&rig);
    epoch_digest_free(digest);
}

static void message_of_another_channel(void **state)
{
    struct wire_msg beat = {.type = WIRE_HEARTBEAT, .u.heartbeat.seq = 1};
    struct stream s = {0};
    struct rig rig;

    rig_new(&rig);
    stream_msg(&s, &beat);
    assert_int_equal(stream_play(&rig, s.bytes, s.n), -EPROTO);
    rig_assert_applied(&rig, 0);
    free(s.bytes);
    rig_free(&rig);
}

static void too_large_an_epoch(void **state)
{
    struct receiver_report report;
    struct rig rig;
    uint64_t n = (uint64_t)RIG_RECEIVE_CHUNKS * STAGE_CHUNK_PAGES + 1;
    int fd[2];

    rig_new(&rig);
    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    assert_int_equal(sender_begin(rig.sender, 7, 0, NULL), 0);
    while (n) {
        struct stage_chunk *chunk = stage_pool_get(rig.send_pool);

        assert_non_null(chunk);
        for (; n && chunk->n_pages < STAGE_CHUNK_PAGES; n--) {
            memset(chunk->bytes + (size_t)chunk->n_pages * STAGE_PAGE_BYTES, 1, STAGE_PAGE_BYTES);
            chunk->number[chunk->n_pages++] = n % RIG_PAGES;
        }
        sender_chunk(rig.sender, chunk);
    }
    sender_end(rig.sender);
    assert_int_equal(rig_wait_staged(&rig, 7), -E2BIG);
    receiver_report_get(rig.receiver, &report);
    assert_string_equal(report.text, "epoch 7 is larger than the staging memory");
    assert_int_equal(stage_pool_free_chunks(rig.receive_pool), RIG_RECEIVE_CHUNKS);
    rig_assert_applied(&rig, 0);

    /* It is the epoch that was too large, not the end of the receiver. */
    sender_detach(rig.sender);
    receiver_detach(rig.receiver);
    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    receiver_report_get(rig.receiver, &report);
    assert_int_equal(report.error, 0);
    assert_string_equal(report.text, "");
    assert_int_equal(rig_feed(&rig, 1), 0);
    assert_int_equal(rig_wait_staged(&rig, 1), 0);
    rig_apply(&rig);
    rig_assert_applied(&rig, 1);
    rig_free(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cut_at_each_byte),      cmocka_unit_test(damaged_at_each_byte),
        cmocka_unit_test(peer_breaks_the_rules), cmocka_unit_test(message_of_another_channel),
        cmocka_unit_test(too_large_an_epoch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
