/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/stat.h>

#include "pipeline_rig.h"

/* Sender and receiver together: everything arrives, in order, and what was cut off goes on. */

/* Runs epochs until the receiver has applied `last`, several of them in flight; checks the image
 * after each. */
static void run_epochs(struct rig *rig, uint64_t *next, uint64_t last)
{
    struct receiver_report report;

    for (;;) {
        while (*next <= last && rig_feed(rig, *next) == 0)
            ++*next;
        receiver_report_get(rig->receiver, &report);
        assert_int_equal(report.error, 0);
        if (report.staged_epoch > report.applied_epoch) {
            assert_int_equal(report.staged_term, report.staged_epoch / 10);
            rig_apply(rig);
            rig_assert_applied(rig, report.staged_epoch);
            continue;
        }
        if (report.applied_epoch == last)
            return;
        rig_wait(rig);
    }
}

static void many_epochs(void (*make_pair)(int fd[2]))
{
    struct sender_report sent;
    struct receiver_report received;
    struct rig rig;
    uint64_t next = 1;
    int fd[2];

    rig_new(&rig);
    make_pair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    run_epochs(&rig, &next, 1500);
    sender_report_get(rig.sender, &sent);
    receiver_report_get(rig.receiver, &received);
    assert_int_equal(sent.sent_epoch, 1500);
    assert_int_equal(sent.error, 0);
    assert_int_equal(sent.raw_bytes, received.raw_bytes);
    assert_int_equal(sent.wire_bytes, received.wire_bytes);
    assert_true(sent.wire_bytes < sent.raw_bytes);
    rig_free(&rig);
}

static void many_epochs_over_a_socketpair(void **state)
{
    many_epochs(rig_socketpair);
}

static void many_epochs_over_tcp(void **state)
{
    many_epochs(tcp_pair);
}

/* The link is cut at moments that nobody chose, again and again; after each, both sides attach a
 * new one and the guard goes on after the newest epoch that the standby has. */
static void cut_and_resumed(void **state)
{
    struct receiver_report report;
    struct sender_report sent;
    struct rig rig;
    uint64_t seed = 4711, next, cuts = 0;

    rig_new(&rig);
    do {
        int fd[2], cut_fd;
        uint64_t feed = rig_random(&seed) % 8 + 1;

        receiver_report_get(rig.receiver, &report);
        next = report.staged_epoch + 1;
        rig_socketpair(fd);
        cut_fd = dup(fd[cuts % 2]);
        rig_attach_sender(&rig, fd[0]);
        sender_report_get(rig.sender, &sent);
        assert_int_equal(sent.sent_epoch, 0);
        assert_int_equal(sent.error, 0);
        rig_attach_receiver(&rig, fd[1]);
        while (feed--) {
            if (rig_feed(&rig, next) == 0)
                next++;
            receiver_report_get(rig.receiver, &report);
            if (report.staged_epoch > report.applied_epoch)
                receiver_apply(rig.receiver);
        }
        shutdown(cut_fd, SHUT_RDWR);
        close(cut_fd);
        while (rig_feed(&rig, next) == 0 && next < 1000000) /* a dead link takes anything */
            next += 10000;
        if (cuts++ % 2)
            sender_detach(rig.sender);
        receiver_detach(rig.receiver);
        sender_detach(rig.sender);
        assert_int_equal(stage_pool_free_chunks(rig.send_pool), RIG_SEND_CHUNKS);
        rig_apply(&rig); /* what is staged outlives the link */
        receiver_report_get(rig.receiver, &report);
        assert_int_equal(report.applied_epoch, report.staged_epoch);
        rig_assert_applied(&rig, report.applied_epoch);
    } while (cuts < 300 || report.applied_epoch < 100);
    rig_free(&rig);
}

static void staged_epoch_outlives_the_link(void **state)
{
    struct rig rig;
    int fd[2];

    rig_new(&rig);
    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    assert_int_equal(rig_feed(&rig, 1), 0);
    assert_int_equal(rig_feed(&rig, 2), 0);
    assert_int_equal(rig_wait_staged(&rig, 1), 0);
    sender_detach(rig.sender);
    receiver_detach(rig.receiver);
    receiver_detach(rig.receiver);
    rig_assert_applied(&rig, 0);
    rig_apply(&rig);
    rig_assert_applied(&rig, 1);
    receiver_apply(rig.receiver); /* nothing is staged: nothing happens */
    receiver_drain(rig.receiver);
    rig_assert_applied(&rig, 1);
    rig_free(&rig);
}

static void closing_with_an_epoch_staged(void **state)
{
    struct rig rig;
    int fd[2];

    rig_new(&rig);
    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    assert_int_equal(rig_feed(&rig, 50), 0);
    assert_int_equal(rig_wait_staged(&rig, 50), 0);
    rig_free(&rig);
    sender_close(NULL);
    receiver_close(NULL);
}

static void second_attach_is_refused(void **state)
{
    struct transport *t;
    struct rig rig;
    int fd[2];

    rig_new(&rig);
    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    rig_socketpair(fd);
    close(fd[1]);
    t = transport_tcp_new(fd[0]);
    assert_int_equal(sender_attach(rig.sender, t), -EBUSY);
    assert_int_equal(receiver_attach(rig.receiver, t), -EBUSY);
    t->ops->close(t);
    rig_free(&rig);
}

/* Seeding: epochs without a device state leave no state applied. */
static void epoch_without_state(void **state)
{
    struct rig rig;
    const char *format;
    const uint8_t *bytes;
    size_t n;
    int fd[2];

    rig_new(&rig);
    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    assert_int_equal(rig_feed(&rig, 1), 0);
    assert_int_equal(rig_wait_staged(&rig, 1), 0);
    rig_apply(&rig);
    assert_int_equal(receiver_state(rig.receiver, &format, &bytes, &n), 0);
    assert_int_equal(sender_begin(rig.sender, 2, 0, NULL), 0);
    sender_end(rig.sender);
    assert_int_equal(rig_wait_staged(&rig, 2), 0);
    rig_apply(&rig);
    assert_int_equal(receiver_state(rig.receiver, &format, &bytes, &n), -ENOENT);
    rig_free(&rig);
}

/* Seeding: pages that the sender is to copy itself. It takes them as they are when it sends them,
 * and a chunk that comes back is as any other. */
static void pages_left_in_memory(void **state)
{
    static uint8_t ram[RIG_PAGES][STAGE_PAGE_BYTES];
    struct stage_chunk *chunk;
    uint64_t seed = 1;
    struct rig rig;
    int fd[2];

    for (size_t i = 0; i < RIG_PAGES; i++)
        rig_fill(&seed, ram[i]);
    rig_new(&rig);
    assert_int_equal(sender_begin(rig.sender, 1, 0, NULL), 0); /* dropped: there is no link */
    chunk = stage_pool_get(rig.send_pool);
    chunk->ram = ram[0];
    sender_chunk(rig.sender, chunk);
    sender_end(rig.sender);
    chunk = stage_pool_get(rig.send_pool);
    assert_null(chunk->ram);
    stage_pool_put(rig.send_pool, chunk);

    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    assert_int_equal(sender_begin(rig.sender, 1, 0, NULL), 0);
    chunk = stage_pool_get(rig.send_pool);
    chunk->ram = ram[0];
    for (uint64_t i = 0; i < RIG_PAGES; i++) /* each once, in no order */
        chunk->number[chunk->n_pages++] = i * 5 % RIG_PAGES;
    sender_chunk(rig.sender, chunk);
    sender_end(rig.sender);
    assert_int_equal(rig_wait_staged(&rig, 1), 0);
    rig_apply(&rig);
    assert_memory_equal(rig.image, ram, sizeof(ram));
    rig_free(&rig);
}

static void sender_without_a_link_takes_anything(void **state)
{
    struct sender_report report;
    struct rig rig;

    rig_new(&rig);
    for (uint64_t epoch = 1; epoch < 4 * RIG_MAX_EPOCHS; epoch++)
        assert_int_equal(rig_feed(&rig, epoch), 0);
    assert_int_equal(stage_pool_free_chunks(rig.send_pool), RIG_SEND_CHUNKS);
    sender_report_get(rig.sender, &report);
    assert_int_equal(report.sent_epoch, 0);
    assert_int_equal(report.wire_bytes, 0);
    rig_free(&rig);
}

/* Nobody reads: the queue fills up to its bound, and detach frees the blocked thread. */
static void stuck_link_is_bounded(void **state)
{
    struct rig rig;
    uint64_t epoch = 0;
    int fd[2], rc;

    rig_new(&rig);
    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    do { /* epochs of two chunks of noise, until one more does not fit */
        struct stage_chunk *chunk = stage_pool_get(rig.send_pool);
        uint64_t seed = ++epoch;

        rc = chunk ? sender_begin(rig.sender, epoch, 0, NULL) : -EBUSY;
        if (rc && chunk) {
            stage_pool_put(rig.send_pool, chunk);
        } else if (rc == 0) {
            for (size_t i = 0; i < RIG_CHUNK_BYTES; i += 8) {
                uint64_t value = rig_random(&seed);

                memcpy(chunk->bytes + i, &value, 8);
            }
            for (uint64_t i = 0; i < STAGE_CHUNK_PAGES; i++)
                chunk->number[chunk->n_pages++] = i;
            sender_chunk(rig.sender, chunk);
            sender_end(rig.sender);
        }
    } while (rc == 0);
    assert_int_equal(rc, -EBUSY);
    assert_in_range(epoch, RIG_MAX_EPOCHS, RIG_MAX_EPOCHS + 3);
    sender_detach(rig.sender);
    assert_int_equal(stage_pool_free_chunks(rig.send_pool), RIG_SEND_CHUNKS);
    close(fd[1]);
    rig_free(&rig);
}

static void bad_state_is_refused(void **state)
{
    char format[WIRE_FORMAT_BYTES + 1];
    uint8_t byte = 0;
    struct rig rig;

    rig_new(&rig);
    memset(format, 'x', sizeof(format));
    format[WIRE_FORMAT_BYTES] = '\0';
    assert_int_equal(sender_state(rig.sender, "x", &byte, 0), -EINVAL);
    assert_int_equal(sender_state(rig.sender, "x", &byte, WIRE_STATE_MAX + 1), -EINVAL);
    assert_int_equal(sender_state(rig.sender, "", &byte, 1), -EINVAL);
    assert_int_equal(sender_state(rig.sender, format, &byte, 1), -EINVAL);
    rig_free(&rig);
}

static uint64_t blocks_used(const struct rig *rig)
{
    struct stat st;

    assert_int_equal(fstat(rig->image_fd, &st), 0);
    return (uint64_t)st.st_blocks * 512 / STAGE_PAGE_BYTES;
}

static void send_pages(struct rig *rig, uint64_t epoch, uint64_t n, uint8_t value)
{
    struct stage_chunk *chunk = NULL;

    assert_int_equal(sender_begin(rig->sender, epoch, 0, NULL), 0);
    for (uint64_t i = 0; i < n; i++) {
        if (!chunk)
            chunk = stage_pool_get(rig->send_pool);
        memset(chunk->bytes + (size_t)chunk->n_pages * STAGE_PAGE_BYTES, value, STAGE_PAGE_BYTES);
        chunk->number[chunk->n_pages++] = i;
        if (chunk->n_pages == STAGE_CHUNK_PAGES || i == n - 1) {
            sender_chunk(rig->sender, chunk);
            chunk = NULL;
        }
    }
    sender_end(rig->sender);
    assert_int_equal(rig_wait_staged(rig, epoch), 0);
    rig_apply(rig);
}

static void assert_image_is(const struct rig *rig, uint64_t n, uint8_t value)
{
    for (uint64_t i = 0; i < n * STAGE_PAGE_BYTES; i++)
        if (rig->image[i] != value)
            fail_msg("byte %llu of the image is %u", (unsigned long long)i, rig->image[i]);
}

static void zero_pages_leave_holes(void **state)
{
    struct rig rig;
    int fd[2];

    rig_new(&rig);
    rig_socketpair(fd);
    rig_attach_sender(&rig, fd[0]);
    rig_attach_receiver(&rig, fd[1]);
    send_pages(&rig, 1, RIG_PAGES, 0);
    assert_int_equal(blocks_used(&rig), 0);
    send_pages(&rig, 2, 10, 0xaa);
    assert_int_equal(blocks_used(&rig), 10);
    assert_image_is(&rig, 10, 0xaa);
    send_pages(&rig, 3, RIG_PAGES, 0);
    assert_int_equal(blocks_used(&rig), 10);
    /* A page that somebody else has written is no hole. */
    memset(rig.image + 20 * STAGE_PAGE_BYTES, 0xbb, STAGE_PAGE_BYTES);
    send_pages(&rig, 4, RIG_PAGES, 0);
    assert_int_equal(blocks_used(&rig), 11);
    assert_image_is(&rig, RIG_PAGES, 0);
    rig_free(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_epochs_over_a_socketpair),
        cmocka_unit_test(many_epochs_over_tcp),
        cmocka_unit_test(cut_and_resumed),
        cmocka_unit_test(staged_epoch_outlives_the_link),
        cmocka_unit_test(closing_with_an_epoch_staged),
        cmocka_unit_test(second_attach_is_refused),
        cmocka_unit_test(epoch_without_state),
        cmocka_unit_test(pages_left_in_memory),
        cmocka_unit_test(sender_without_a_link_takes_anything),
        cmocka_unit_test(stuck_link_is_bounded),
        cmocka_unit_test(bad_state_is_refused),
        cmocka_unit_test(zero_pages_leave_holes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
