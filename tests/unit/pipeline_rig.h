/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_PIPELINE_RIG_H
#define US_TESTS_PIPELINE_RIG_H

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guard/sender.h"
#include "plain_transport.h"
#include "standby/receiver.h"
#include "tcp_pair.h"
#include "unit.h"
#include "wire/page.h"
#include "wire/pages.h"

/* A sender, a receiver, a RAM image, and epochs whose every byte follows from their number, so that
 * the model of the image can follow at its own pace. */

enum {
    RIG_PAGES = 128,
    RIG_CHUNK_BYTES = STAGE_CHUNK_PAGES * STAGE_PAGE_BYTES,
    RIG_SEND_CHUNKS = 8,
    RIG_RECEIVE_CHUNKS = 4,
    RIG_MAX_EPOCHS = 4,
    RIG_STATE_MAX = 200000,
    RIG_WAIT_MS = 20000,
};

struct rig {
    struct stage_pool *send_pool, *receive_pool;
    struct sender *sender;
    struct receiver *receiver;
    int send_event, receive_event, image_fd;
    uint8_t *image;
    uint8_t model[RIG_PAGES][STAGE_PAGE_BYTES]; /* after epoch model_epoch */
    uint64_t model_epoch;
};

static inline uint64_t rig_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* A cache of fewer pages than there are. */
static const struct sender_options rig_options = {.delta_cache_bytes =
                                                      RIG_PAGES / 2 * STAGE_PAGE_BYTES};

/* disks: NULL = the VM has none. */
static inline void rig_new_with(struct rig *rig, const struct receiver_disks *disks,
                                const struct sender_options *options)
{
    memset(rig, 0, sizeof(*rig));
    rig->send_pool = stage_pool_new(RIG_SEND_CHUNKS * (uint64_t)RIG_CHUNK_BYTES);
    rig->receive_pool = stage_pool_new(RIG_RECEIVE_CHUNKS * (uint64_t)RIG_CHUNK_BYTES);
    rig->send_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rig->receive_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rig->image_fd = memfd_create("image", MFD_CLOEXEC);
    assert_int_equal(ftruncate(rig->image_fd, sizeof(rig->model)), 0);
    rig->image =
        mmap(NULL, sizeof(rig->model), PROT_READ | PROT_WRITE, MAP_SHARED, rig->image_fd, 0);
    assert_ptr_not_equal(rig->image, MAP_FAILED);
    assert_int_equal(
        sender_new(rig->send_pool, RIG_MAX_EPOCHS, rig->send_event, options, &rig->sender), 0);
    assert_int_equal(receiver_new(rig->receive_pool, rig->image, RIG_PAGES, disks,
                                  rig->receive_event, &rig->receiver),
                     0);
}

static inline void rig_new(struct rig *rig)
{
    rig_new_with(rig, NULL, &rig_options);
}

/* Closes everything, and with that checks that every chunk is back. */
static inline void rig_free(struct rig *rig)
{
    sender_close(rig->sender);
    receiver_close(rig->receiver);
    assert_int_equal(stage_pool_free_chunks(rig->send_pool), RIG_SEND_CHUNKS);
    assert_int_equal(stage_pool_free_chunks(rig->receive_pool), RIG_RECEIVE_CHUNKS);
    stage_pool_close(rig->send_pool);
    stage_pool_close(rig->receive_pool);
    munmap(rig->image, sizeof(rig->model));
    close(rig->image_fd);
    close(rig->send_event);
    close(rig->receive_event);
}

/* Content for a page: nothing, noise, or text. */
static inline void rig_fill(uint64_t *seed, uint8_t page[static STAGE_PAGE_BYTES])
{
    uint64_t kind = rig_random(seed) % 4;

    memset(page, 0, STAGE_PAGE_BYTES);
    for (size_t i = 0; kind && i < STAGE_PAGE_BYTES; i += sizeof(uint64_t)) {
        uint64_t value = kind == 1 ? rig_random(seed) : (*seed & 0xff) * 0x0101010101010101;

        memcpy(page + i, &value, sizeof(value));
    }
}

/* Epoch n: its number of pages, then each page. n_pages is above 256 now and then. */
static inline uint64_t rig_epoch_seed(uint64_t epoch, uint32_t *ret_n_pages)
{
    uint64_t seed = (epoch + 1) * 0x9e3779b97f4a7c15;

    *ret_n_pages = (uint32_t)(rig_random(&seed) % (epoch % 50 == 0 ? 600 : 30));
    return seed;
}

static inline size_t rig_epoch_state(uint64_t epoch, uint8_t bytes[static RIG_STATE_MAX])
{
    uint64_t seed = epoch * 0xd1342543de82ef95 + 1;
    size_t n = epoch % 5 == 0 ? 1 : rig_random(&seed) % 3000 + 1;

    if (epoch % 97 == 0)
        n = RIG_STATE_MAX;
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(i % 100 < 50 ? 0 : rig_random(&seed));
    return n;
}

/* Gives the sender epoch n, whole. -EBUSY when it takes none now, or the pool has too few chunks.
 */
static inline int rig_feed(struct rig *rig, uint64_t epoch)
{
    static uint8_t state[RIG_STATE_MAX];
    struct stage_chunk *chunk = NULL;
    uint32_t n_pages;
    uint64_t seed = rig_epoch_seed(epoch, &n_pages);
    int rc;

    if (stage_pool_free_chunks(rig->send_pool) < 3)
        return -EBUSY;
    rc = sender_begin(rig->sender, epoch, epoch / 10, NULL);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < n_pages; i++) {
        if (!chunk)
            chunk = stage_pool_get(rig->send_pool);
        assert_non_null(chunk);
        chunk->number[chunk->n_pages] = rig_random(&seed) % RIG_PAGES;
        rig_fill(&seed, chunk->bytes + (size_t)chunk->n_pages++ * STAGE_PAGE_BYTES);
        if (chunk->n_pages == STAGE_CHUNK_PAGES || i == n_pages - 1) {
            sender_chunk(rig->sender, chunk);
            chunk = NULL;
        }
    }
    rc = sender_state(rig->sender, "test:1", state, rig_epoch_state(epoch, state));
    assert_int_equal(rc, 0);
    sender_end(rig->sender);
    return 0;
}

/* Brings the model up to an epoch. */
static inline void rig_model(struct rig *rig, uint64_t epoch)
{
    while (rig->model_epoch < epoch) {
        uint32_t n_pages;
        uint64_t seed = rig_epoch_seed(++rig->model_epoch, &n_pages);

        for (uint32_t i = 0; i < n_pages; i++) {
            uint64_t number = rig_random(&seed) % RIG_PAGES;

            rig_fill(&seed, rig->model[number]);
        }
    }
}

/* The image and the state are those of the epoch. */
static inline void rig_assert_applied(struct rig *rig, uint64_t epoch)
{
    static uint8_t expected[RIG_STATE_MAX];
    struct receiver_report report;
    const char *format;
    const uint8_t *bytes;
    size_t n;

    receiver_report_get(rig->receiver, &report);
    assert_int_equal(report.applied_epoch, epoch);
    rig_model(rig, epoch);
    assert_true(memcmp(rig->image, rig->model, sizeof(rig->model)) == 0);
    if (epoch == 0) {
        assert_int_equal(receiver_state(rig->receiver, &format, &bytes, &n), -ENOENT);
        return;
    }
    assert_int_equal(report.applied_term, epoch / 10);
    assert_int_equal(receiver_state(rig->receiver, &format, &bytes, &n), 0);
    assert_string_equal(format, "test:1");
    assert_int_equal(n, rig_epoch_state(epoch, expected));
    assert_memory_equal(bytes, expected, n);
}

/* Waits until either side has news, and takes the notice. */
static inline void rig_wait(struct rig *rig)
{
    struct pollfd p[2] = {{.fd = rig->send_event, .events = POLLIN},
                          {.fd = rig->receive_event, .events = POLLIN}};
    uint64_t count;

    assert_true(poll(p, 2, RIG_WAIT_MS) > 0);
    (void)!read(rig->send_event, &count, sizeof(count));
    (void)!read(rig->receive_event, &count, sizeof(count));
}

/* Waits until the receiver has staged the epoch, or has an error; returns that error. */
static inline int rig_wait_staged(struct rig *rig, uint64_t epoch)
{
    for (;;) {
        struct receiver_report report;

        receiver_report_get(rig->receiver, &report);
        if (report.error || report.staged_epoch >= epoch)
            return report.error;
        rig_wait(rig);
    }
}

static inline void rig_apply(struct rig *rig)
{
    receiver_apply(rig->receiver);
    receiver_drain(rig->receiver);
}

static inline void rig_socketpair(int fd[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
}

static inline void rig_attach_sender(struct rig *rig, int fd)
{
    struct transport *t = transport_tcp_new(fd);

    assert_non_null(t);
    assert_int_equal(sender_attach(rig->sender, t), 0);
}

static inline void rig_attach_receiver(struct rig *rig, int fd)
{
    struct transport *t = transport_tcp_new(fd);

    assert_non_null(t);
    assert_int_equal(receiver_attach(rig->receiver, t), 0);
}

#endif
