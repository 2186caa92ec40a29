/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline_stream.h"
#include "random.h"

/* Pages and device state that change little, as guests do it: what is told against the epoch before
 * arrives as it was, over links that break at any moment; and what a standby refuses. */

enum { STATE_BYTES = 9000, KEPT = 8, LATER_KINDS = 8 };

/* A guest, and what it was like at the end of its last epochs. */
struct guest {
    uint64_t seed, epoch;
    uint8_t page[RIG_PAGES][STAGE_PAGE_BYTES], state[STATE_BYTES];
    uint32_t n_state; /* 0: this epoch has none */
    struct {
        uint8_t page[RIG_PAGES][STAGE_PAGE_BYTES], state[STATE_BYTES];
        uint32_t n_state;
    } was[KEPT];
};

static struct rig rig;
static struct guest guest;

static int setup_with(const struct sender_options *options)
{
    memset(&guest, 0, sizeof(guest));
    guest.seed = 0x9fb21c651e98df25;
    rig_new_with(&rig, NULL, options);
    return 0;
}

static int setup(void **state)
{
    return setup_with(&rig_options);
}

static int teardown(void **state)
{
    rig_free(&rig);
    return 0;
}

static void scribble(uint8_t *bytes, uint64_t n_bytes, uint64_t n)
{
    while (n--)
        bytes[test_random(&guest.seed) % n_bytes] = (uint8_t)test_random(&guest.seed);
}

static void dirty_page(uint8_t *page)
{
    switch (test_random(&guest.seed) % LATER_KINDS) {
    case 0:
        memset(page, 0, STAGE_PAGE_BYTES);
        break;
    case 1:
        memcpy(page, guest.page[test_random(&guest.seed) % RIG_PAGES], STAGE_PAGE_BYTES);
        break;
    case 2:
        test_fill(&guest.seed, page, STAGE_PAGE_BYTES);
        break;
    case 3: /* written, with the same bytes */
        break;
    default:
        scribble(page, STAGE_PAGE_BYTES, 1 + test_random(&guest.seed) % 20);
        break;
    }
}

static void dirty_state(void)
{
    uint64_t what = test_random(&guest.seed) % 20;

    guest.n_state = what == 0 ? 0 : what == 1 ? STATE_BYTES / 2 : STATE_BYTES;
    scribble(guest.state, STATE_BYTES, 10);
}

static void add_page(struct stage_chunk *chunk, uint64_t number)
{
    chunk->number[chunk->n_pages] = number;
    memcpy(chunk->bytes + (size_t)chunk->n_pages++ * STAGE_PAGE_BYTES, guest.page[number],
           STAGE_PAGE_BYTES);
}

/* The guest's next epoch: some pages, or all. -EBUSY when the sender takes none now. */
static int feed(bool all)
{
    uint32_t n = all ? RIG_PAGES : (uint32_t)(test_random(&guest.seed) % 60);
    struct receiver_report report;
    struct stage_chunk *chunk;
    int rc = -EBUSY;

    receiver_report_get(rig.receiver, &report);
    /* All of them make up for what got lost, so nobody will ask for what was before. */
    if (stage_pool_free_chunks(rig.send_pool) &&
        (all || guest.epoch - report.applied_epoch < KEPT - 1))
        rc = sender_begin(rig.sender, guest.epoch + 1, 1, NULL);
    if (rc)
        return rc;
    guest.epoch++;
    chunk = stage_pool_get(rig.send_pool);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t number = all ? i : test_random(&guest.seed) % RIG_PAGES;

        if (!all)
            dirty_page(guest.page[number]);
        add_page(chunk, number);
    }
    sender_chunk(rig.sender, chunk);
    dirty_state();
    if (guest.n_state)
        assert_int_equal(sender_state(rig.sender, "test:1", guest.state, guest.n_state), 0);
    sender_end(rig.sender);
    memcpy(guest.was[guest.epoch % KEPT].page, guest.page, sizeof(guest.page));
    memcpy(guest.was[guest.epoch % KEPT].state, guest.state, sizeof(guest.state));
    guest.was[guest.epoch % KEPT].n_state = guest.n_state;
    return 0;
}

/* Memory and state of the standby are those of the guest at that epoch. */
static void assert_standby(uint64_t epoch)
{
    uint32_t n_state = guest.was[epoch % KEPT].n_state;
    const char *format;
    const uint8_t *bytes;
    size_t n;

    assert_memory_equal(rig.image, guest.was[epoch % KEPT].page, sizeof(guest.page));
    assert_int_equal(receiver_state(rig.receiver, &format, &bytes, &n), n_state ? 0 : -ENOENT);
    if (n_state) {
        assert_int_equal(n, n_state);
        assert_memory_equal(bytes, guest.was[epoch % KEPT].state, n);
    }
}

static void link_up(void)
{
    int fd[2];

    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
}

static void run_to(uint64_t last)
{
    struct receiver_report report;

    for (;;) {
        while (guest.epoch < last && feed(false) == 0)
            ;
        receiver_report_get(rig.receiver, &report);
        assert_int_equal(report.error, 0);
        if (report.staged_epoch > report.applied_epoch) {
            rig_apply(&rig);
            assert_standby(report.staged_epoch);
        } else if (report.applied_epoch == last) {
            return;
        } else {
            rig_wait(&rig);
        }
    }
}

static struct sender_report sent(void)
{
    struct sender_report report;

    sender_report_get(rig.sender, &report);
    return report;
}

static void histories(void **state)
{
    struct sender_report report;

    link_up();
    assert_int_equal(feed(true), 0);
    run_to(1500);
    report = sent();
    for (int i = 0; i < WIRE_PAGE_KINDS; i++)
        assert_true(report.pages[i] > 500);
    assert_true(report.page_wire_bytes < report.page_bytes / 2);
    assert_true(report.state_wire_bytes < report.state_bytes / 8);
    assert_true(report.encode_ns > 0 && report.write_ns > 0);
    assert_true(report.raw_bytes == report.page_bytes + report.state_bytes);
}

/* The sender is cut off anywhere, with epochs under way that nobody will ever see. */
static void broken_links(void **state)
{
    struct receiver_report report;

    for (int link = 0; link < 150; link++) {
        link_up();
        assert_int_equal(feed(true), 0);
        run_to(guest.epoch + test_random(&guest.seed) % 5);
        while (feed(false) == 0)
            ;
        if (link % 2)
            receiver_detach(rig.receiver);
        sender_detach(rig.sender);
        receiver_detach(rig.receiver);
        receiver_report_get(rig.receiver, &report);
        if (report.staged_epoch > report.applied_epoch) {
            rig_apply(&rig);
            assert_standby(report.staged_epoch);
        }
    }
}

static void raw_pages_for_comparison(void **state)
{
    struct sender_report report;

    link_up();
    assert_int_equal(feed(true), 0);
    run_to(100);
    report = sent();
    assert_int_equal(report.level, EFFORT_RAW);
    assert_int_equal(report.pages[WIRE_PAGE_UNCHANGED] + report.pages[WIRE_PAGE_DUPLICATE] +
                         report.pages[WIRE_PAGE_CHANGES],
                     0);
    assert_true(report.page_wire_bytes >= report.pages[WIRE_PAGE_WHOLE] * STAGE_PAGE_BYTES);
    assert_int_equal(report.state_wire_bytes, report.state_bytes);
}

static int setup_raw(void **state)
{
    static const struct sender_options raw = {.delta_cache_bytes = 1 << 20, .raw = true};

    return setup_with(&raw);
}

/* ---- what a standby refuses ---- */

static void one_page(struct stream *s, struct page_item page)
{
    stream_page(s, 1, &page);
}

/* An epoch of a page that is whole, one that is zero, and then the one given. */
static int play_page(struct page_item page)
{
    static uint8_t bytes[WIRE_PAGE_BYTES] = "whole";
    struct stream s = {0};
    int rc;

    stream_msg(&s, &(struct wire_msg){.type = WIRE_EPOCH_BEGIN, .epoch = 1});
    one_page(&s, (struct page_item){1, WIRE_PAGE_WHOLE, WIRE_PAGE_BYTES, bytes});
    one_page(&s, (struct page_item){.number = 2, .kind = WIRE_PAGE_ZERO});
    one_page(&s, page);
    rc = stream_play(&rig, s.bytes, s.n);
    free(s.bytes);
    return rc;
}

static void refused_pages(void **state)
{
    static const uint8_t changes[] = {1,   0,   0,   0,   0,   0,   0,   0,  1,
                                      'c', 'h', 'a', 'n', 'g', 'e', 'd', '!'};
    uint8_t distance[PAGE_DISTANCE_BYTES];
    struct page_item duplicate = {3, WIRE_PAGE_DUPLICATE, sizeof(distance), distance};
    struct page_item far = {.number = RIG_PAGES, .kind = WIRE_PAGE_UNCHANGED};

    page_distance_put(distance, 2);
    assert_int_equal(play_page(duplicate), -ECONNRESET); /* as it should be; then the stream ends */
    page_distance_put(distance, 1);
    assert_int_equal(play_page(duplicate), -EPROTO); /* of the zero page */
    page_distance_put(distance, 3);
    assert_int_equal(play_page(duplicate), -EPROTO); /* from before the epoch */
    page_distance_put(distance, UINT32_MAX);
    assert_int_equal(play_page(duplicate), -EPROTO);
    assert_int_equal(play_page(far), -EPROTO);
    far = (struct page_item){RIG_PAGES, WIRE_PAGE_CHANGES, sizeof(changes), changes};
    assert_int_equal(play_page(far), -EPROTO);
    far.number = WIRE_PAGE_NUMBERS - 1;
    assert_int_equal(play_page(far), -EPROTO);
    far.number = RIG_PAGES - 1;
    assert_int_equal(play_page(far), -ECONNRESET);
}

static int play_state(uint64_t epoch, const char *format, uint32_t n, bool delta, bool whole)
{
    static const uint8_t bytes[64] = "the state of a device";
    static uint8_t before[sizeof(bytes)];
    struct wire_msg msg = {.type = WIRE_STATE, .epoch = epoch};
    struct wire_msg end = {.type = WIRE_EPOCH_END, .epoch = epoch, .u.epoch_end.n_state_bytes = n};
    struct epoch_digest *digest = epoch_digest_new();
    uint8_t decoded[sizeof(bytes)];
    struct stream s = {0};
    int rc;

    msg.u.state = (struct wire_state){.total = n, .n_raw = n, .n_bytes = n, .delta = delta};
    msg.u.state.encoding = WIRE_ENC_RAW;
    msg.u.state.bytes = bytes;
    strcpy(msg.u.state.format, format);
    memcpy(decoded, bytes, n);
    if (delta)
        state_xor(decoded, bytes, before, n);
    epoch_digest_state(digest, decoded, n);
    epoch_digest_get(digest, end.u.epoch_end.digest);
    epoch_digest_free(digest);
    stream_msg(&s, &(struct wire_msg){.type = WIRE_EPOCH_BEGIN, .epoch = epoch});
    stream_msg(&s, &msg);
    if (whole)
        stream_msg(&s, &end);
    rc = stream_play(&rig, s.bytes, s.n);
    free(s.bytes);
    if (rc == 0) {
        rig_apply(&rig);
        memcpy(before, decoded, n);
    }
    return rc;
}

static void refused_states(void **state)
{
    assert_int_equal(play_state(1, "a", 40, true, true), -EPROTO); /* there is none yet */
    assert_int_equal(play_state(1, "a", 40, false, true), 0);
    assert_int_equal(play_state(2, "a", 41, true, true), -EPROTO);
    assert_int_equal(play_state(2, "a", 39, true, true), -EPROTO);
    assert_int_equal(play_state(2, "b", 40, true, true), -EPROTO);
    assert_int_equal(play_state(2, "a", 40, true, false), -ECONNRESET); /* it leaves nothing */
    assert_int_equal(play_state(2, "a", 40, true, true), 0);
    assert_int_equal(play_state(3, "a", 40, true, true), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(histories, setup, teardown),
        cmocka_unit_test_setup_teardown(broken_links, setup, teardown),
        cmocka_unit_test_setup_teardown(raw_pages_for_comparison, setup_raw, teardown),
        cmocka_unit_test_setup_teardown(refused_pages, setup, teardown),
        cmocka_unit_test_setup_teardown(refused_states, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
