/* SPDX-License-Identifier: Apache-2.0 */
#include "standby/receiver.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "io/lock.h"
#include "io/thread.h"
#include "standby/pages.h"

/* Theory of operation. The thread does one of two things, outside the lock: it reads the next epoch
 * (while there is a transport and no epoch is staged), or it applies the staged one (once ordered);
 * `busy` says which. An epoch being read is the thread's own, in `in`; whole and verified, it moves
 * to `staged`, which belongs to the thread too, but outlives the transport. So detach has only the
 * reading to interrupt and wait for.
 *
 * No epoch is read before the one before it is applied. So while one is read, the image and the
 * applied device state are those of the epoch before, which is what the sender encodes against: a
 * page that is unchanged, or told by its changes, is the image's; a duplicate is another page of
 * the epoch, from the staging memory. All pages are staged whole, the unchanged ones as well: a
 * page may come more than once, and the last one counts.
 *
 * What a peer can send is bounded: messages by the protocol, pages by the staging pool, the device
 * state by WIRE_STATE_MAX. The pool's lock ranks below this one. */

struct device_state {
    char format[WIRE_FORMAT_BYTES]; /* "" = there is none */
    uint8_t *bytes;
    uint64_t n, room; /* bytes used and allocated */
};

/* An epoch on its way from the wire to the image. */
struct staged_epoch {
    uint64_t epoch, term;
    struct staged_pages pages;
    uint64_t n_state; /* received so far, of state.n */
    struct device_state state;
    struct disk_log disk; /* until it is the applier's */
    uint64_t n_disk_pieces;
};

enum work { WORK_NONE, WORK_READ, WORK_APPLY };

struct receiver {
    struct receiver_disks disks; /* n_disks 0: none */
    int notify_fd;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;         /* for the thread: there may be something to do */
    pthread_cond_t idle;         /* for detach and drain: the thread has done something */
    struct transport *transport; /* NULL = detached */
    bool active;                 /* there is a transport, without an error, not being detached */
    bool is_staged;              /* `staged` holds an epoch */
    bool apply_ordered, stop;
    enum work busy;
    struct receiver_report report;
    struct device_state applied; /* the thread's while it applies, else the main thread's */

    /* thread only */
    struct staged_epoch in, staged;
    struct ram_image image;
    struct packer *packer;
    uint8_t *payload, *piece;
    bool seeding_known; /* on_seeding was called */
    struct epoch_digest *digest;
    struct wire_msg msg;
};

/* Lets go of the lock: the main thread, which preempts this one, would only run into it. */
static void notify(struct receiver *r)
{
    uint64_t one = 1;

    pthread_mutex_unlock(&r->lock);
    (void)!write(r->notify_fd, &one, sizeof(one)); /* a full eventfd is readable as well */
    pthread_mutex_lock(&r->lock);
}

/* Empties an epoch; the state's memory is kept for the next. */
static void epoch_reset(struct receiver *r, struct staged_epoch *e)
{
    ram_image_clear(&r->image, &e->pages);
    e->n_state = e->n_disk_pieces = 0;
    disk_log_clear(&e->disk);
    e->state.format[0] = '\0';
    e->state.n = 0;
}

/* Reading. */

/* Reads the next message into r->msg, which borrows from r->payload. */
static int read_msg(struct receiver *r, uint64_t *wire_bytes, struct err *err)
{
    uint8_t raw[WIRE_HEADER_BYTES];
    struct wire_header header;
    int rc = fault_error("standby.receive") ?: transport_read_all(r->transport, raw, sizeof(raw));

    if (rc)
        return err_set(err, rc, "data channel: %s", transport_why(rc));
    rc = wire_header_decode(raw, WIRE_CHANNEL_DATA, &header, err);
    if (rc)
        return rc;
    rc = transport_read_all(r->transport, r->payload, header.length);
    if (rc)
        return err_set(err, rc, "data channel: %s", transport_why(rc));
    *wire_bytes += sizeof(raw) + header.length;
    return wire_msg_decode(raw, &header, r->payload, &r->msg, err);
}

static int take_pages(struct receiver *r, struct err *err)
{
    int rc;

    if (r->in.state.n || r->in.n_disk_pieces)
        return err_set(err, -EPROTO, "pages after the disks' records or the device state");
    rc = ram_image_stage(&r->image, r->packer, &r->msg.u.pages, &r->in.pages, r->digest, err);
    if (rc == -E2BIG)
        return err_set(err, rc, "epoch %" PRIu64 " is larger than the staging memory", r->in.epoch);
    return rc;
}

static int take_disk_piece(struct receiver *r, const struct wire_disk_piece *piece, struct err *err)
{
    struct disk_record rec = {
        .disk = piece->disk,
        .kind = piece->kind,
        .flags = piece->flags,
        .offset = piece->offset,
        .n_bytes = piece->n_range,
    };
    const uint8_t *data = piece->bytes;
    int rc = 0;

    rec.n_data = wire_disk_piece_data(piece);
    if (piece->encoding == WIRE_ENC_LZ4) {
        data = r->piece;
        rc = disk_piece_decode(r->packer, piece, r->piece, err);
    }
    if (rc == 0)
        rc = disk_record_check(&rec, r->disks.sizes, r->disks.n_disks, err);
    if (rc)
        return rc;
    if (r->in.disk.n_bytes + rec.n_data > r->disks.limit_bytes)
        return err_set(err, -E2BIG, "epoch %" PRIu64 " has too many disk records", r->in.epoch);
    epoch_digest_disk(r->digest, piece, data, rec.n_data);
    rc = disk_log_add(&r->in.disk, &rec, data);
    return rc ? err_sys(err, rc, "disk records") : 0;
}

static int take_disk(struct receiver *r, struct err *err)
{
    const struct wire_disk *disk = &r->msg.u.disk;

    if (r->in.state.n)
        return err_set(err, -EPROTO, "disk records after the device state");
    for (uint32_t i = 0; i < disk->n; i++) {
        int rc = take_disk_piece(r, &disk->piece[i], err);

        if (rc)
            return rc;
    }
    r->in.n_disk_pieces += disk->n;
    return 0;
}

static int take_state(struct receiver *r, struct err *err)
{
    const struct wire_state *piece = &r->msg.u.state;
    struct device_state *state = &r->in.state;
    int rc;

    if (!r->in.n_state) {
        if (state->room < piece->total) {
            uint8_t *room = FAULTY_ALLOC("standby.state-room", realloc(state->bytes, piece->total));

            if (!room)
                return err_sys(err, -ENOMEM, "device state of %" PRIu64 " bytes", piece->total);
            state->bytes = room;
            state->room = piece->total;
        }
        memcpy(state->format, piece->format, sizeof(state->format));
        state->n = piece->total;
    }
    if (piece->total != state->n || strcmp(piece->format, state->format) != 0 ||
        piece->offset != r->in.n_state || piece->n_raw > state->n - r->in.n_state)
        return err_set(err, -EPROTO, "pieces of device state that do not belong together");
    if (piece->delta && (r->applied.n != state->n || strcmp(r->applied.format, state->format) != 0))
        return err_set(err, -EPROTO, "device state told against one that is not there");
    rc = state_piece_decode(r->packer, piece, state->bytes + piece->offset, err);
    if (rc)
        return rc;
    if (piece->delta)
        state_xor(state->bytes + piece->offset, state->bytes + piece->offset,
                  r->applied.bytes + piece->offset, piece->n_raw);
    epoch_digest_state(r->digest, state->bytes + piece->offset, piece->n_raw);
    r->in.n_state += piece->n_raw;
    return 0;
}

static int verify_epoch(struct receiver *r, struct err *err)
{
    const struct wire_epoch_end *end = &r->msg.u.epoch_end;
    uint8_t digest[WIRE_DIGEST_BYTES];

    if (end->n_pages != r->in.pages.n || end->n_state_bytes != r->in.n_state ||
        end->n_disk_pieces != r->in.n_disk_pieces || r->in.n_state != r->in.state.n)
        return err_set(err, -EPROTO, "it is not whole");
    epoch_digest_get(r->digest, digest);
    fault_point("standby.epoch-whole");
    if (memcmp(digest, end->digest, sizeof(digest)) != 0)
        return err_set(err, -EPROTO, "its digest is wrong");
    return 0;
}

/* Reads one whole epoch into r->in. */
static int read_epoch(struct receiver *r, uint64_t newest, uint64_t *wire_bytes, struct err *err)
{
    int rc = read_msg(r, wire_bytes, err);

    if (rc)
        return rc;
    if (r->msg.type != WIRE_EPOCH_BEGIN)
        return err_set(err, -EPROTO, "no epoch begins where one should");
    if (r->msg.epoch <= newest)
        return err_set(err, -EPROTO, "epoch %" PRIu64 " after epoch %" PRIu64, r->msg.epoch,
                       newest);
    r->in.epoch = r->msg.epoch;
    r->in.term = r->msg.u.epoch_begin.pair_term;
    r->in.disk.flushed = r->msg.u.epoch_begin.flushed;
    epoch_digest_reset(r->digest);
    fault_point("standby.epoch-begins");
    do {
        rc = read_msg(r, wire_bytes, err);
        if (rc == 0 && (r->msg.epoch != r->in.epoch || r->msg.type == WIRE_EPOCH_BEGIN))
            rc = err_set(err, -EPROTO, "another epoch begins inside of it");
        else if (rc == 0 && r->msg.type == WIRE_PAGES)
            rc = take_pages(r, err);
        else if (rc == 0 && r->msg.type == WIRE_DISK)
            rc = take_disk(r, err);
        else if (rc == 0 && r->msg.type == WIRE_STATE)
            rc = take_state(r, err);
        else if (rc == 0)
            rc = verify_epoch(r, err);
    } while (rc == 0 && r->msg.type != WIRE_EPOCH_END);
    if (rc && rc != -E2BIG)
        err_prefix(err, "epoch %" PRIu64, r->in.epoch);
    return rc;
}

/* The epoch is whole: its disk records go to the applier, which keeps them until they are ordered.
 */
static int stage_disk(struct receiver *r, struct err *err)
{
    int rc = 0;

    if (!r->disks.n_disks)
        return 0;
    if (!r->in.term && r->in.disk.n_records && !r->seeding_known) {
        fault_point("standby.copy-begins");
        rc = r->disks.on_seeding(r->disks.user);
        r->seeding_known = true;
    }
    if (rc == 0)
        rc = applier_stage(r->disks.applier, r->in.epoch, r->in.term, &r->in.disk);
    return rc ? err_sys(err, rc, "disks") : 0;
}

static void work_read(struct receiver *r)
{
    uint64_t newest = r->report.staged_epoch, wire_bytes = 0;
    struct err err = {""};
    int rc;

    pthread_mutex_unlock(&r->lock);
    rc = read_epoch(r, newest, &wire_bytes, &err);
    if (rc == 0)
        rc = stage_disk(r, &err);
    if (rc == 0) {
        struct staged_epoch was = r->staged;

        r->staged = r->in;
        r->in = was;
    } else {
        epoch_reset(r, &r->in);
    }
    pthread_mutex_lock(&r->lock);

    r->report.wire_bytes += wire_bytes;
    if (rc == 0) {
        r->is_staged = true;
        r->report.staged_epoch = r->staged.epoch;
        r->report.staged_term = r->staged.term;
        r->report.raw_bytes += r->staged.pages.n * WIRE_PAGE_BYTES + r->staged.n_state;
    } else if (r->active) { /* else detach has caused it */
        r->active = false;
        r->report.error = rc;
        (void)snprintf(r->report.text, sizeof(r->report.text), "%.255s", err.text);
    }
}

/* Applying. */

static void work_apply(struct receiver *r)
{
    struct device_state was = r->applied;

    pthread_mutex_unlock(&r->lock);
    fault_point("standby.apply");
    ram_image_apply(&r->image, &r->staged.pages);
    fault_point("standby.memory-applied");
    if (r->disks.n_disks)
        applier_commit(r->disks.applier, r->staged.epoch);
    pthread_mutex_lock(&r->lock);

    /* An epoch without a device state leaves none: the older one does not fit this memory. */
    r->applied = r->staged.state;
    r->staged.state = was;
    r->report.applied_epoch = r->staged.epoch;
    r->report.applied_term = r->staged.term;
    epoch_reset(r, &r->staged);
    r->is_staged = r->apply_ordered = false;
}

static enum work next_work(const struct receiver *r)
{
    if (r->is_staged)
        return r->apply_ordered ? WORK_APPLY : WORK_NONE;
    return r->active ? WORK_READ : WORK_NONE;
}

static void *receiver_thread(void *arg)
{
    struct receiver *r = arg;

    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        r->busy = next_work(r);
        if (r->busy == WORK_NONE) {
            pthread_cond_wait(&r->wake, &r->lock);
            continue;
        }
        if (r->busy == WORK_READ)
            work_read(r);
        else
            work_apply(r);
        r->busy = WORK_NONE;
        pthread_cond_broadcast(&r->idle);
        notify(r);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* The main thread's half. */

int receiver_attach(struct receiver *r, struct transport *t)
{
    int rc;

    if (r->transport)
        return -EBUSY;
    rc = transport_set_blocking(t, true);
    if (rc)
        return rc;
    pthread_mutex_lock(&r->lock);
    r->transport = t;
    r->report.error = 0;
    r->report.text[0] = '\0';
    r->active = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

void receiver_detach(struct receiver *r)
{
    struct transport *t;

    pthread_mutex_lock(&r->lock);
    r->active = false;
    if (r->transport)
        r->transport->ops->shutdown(r->transport);
    while (r->busy == WORK_READ)
        pthread_cond_wait(&r->idle, &r->lock);
    t = r->transport;
    r->transport = NULL;
    r->report.error = 0;
    pthread_mutex_unlock(&r->lock);
    if (t)
        t->ops->close(t);
}

void receiver_apply(struct receiver *r)
{
    pthread_mutex_lock(&r->lock);
    r->apply_ordered = r->is_staged;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

void receiver_drain(struct receiver *r)
{
    pthread_mutex_lock(&r->lock);
    while (r->apply_ordered)
        pthread_cond_wait(&r->idle, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

int receiver_state(struct receiver *r, const char **ret_format, const uint8_t **ret_bytes,
                   size_t *ret_n)
{
    int rc = -ENOENT;

    pthread_mutex_lock(&r->lock);
    if (r->applied.format[0]) {
        *ret_format = r->applied.format;
        *ret_bytes = r->applied.bytes;
        *ret_n = r->applied.n;
        rc = 0;
    }
    pthread_mutex_unlock(&r->lock);
    return rc;
}

void receiver_report_get(struct receiver *r, struct receiver_report *ret_report)
{
    pthread_mutex_lock(&r->lock);
    *ret_report = r->report;
    pthread_mutex_unlock(&r->lock);
}

static void receiver_free(struct receiver *r)
{
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->wake);
    pthread_cond_destroy(&r->idle);
    ram_image_clear(&r->image, &r->staged.pages); /* staged, but never applied */
    ram_image_done(&r->image);
    free(r->in.state.bytes);
    free(r->staged.state.bytes);
    free(r->applied.bytes);
    epoch_digest_free(r->digest);
    packer_free(r->packer);
    free(r->payload);
    free(r->piece);
    disk_log_clear(&r->in.disk);
    disk_log_clear(&r->staged.disk);
    free(r);
}

int receiver_new(struct stage_pool *pool, uint8_t *image, uint64_t n_pages,
                 const struct receiver_disks *disks, int notify_fd, struct receiver **ret_receiver)
{
    struct receiver *r = calloc(1, sizeof(*r));
    int rc = -ENOMEM;

    if (!r)
        return -ENOMEM;
    lock_init(&r->lock);
    pthread_cond_init(&r->wake, NULL);
    pthread_cond_init(&r->idle, NULL);
    r->notify_fd = notify_fd;
    if (disks)
        r->disks = *disks;
    r->payload = malloc(WIRE_PAYLOAD_MAX);
    r->piece = malloc(WIRE_DISK_PIECE_BYTES);
    r->packer = packer_new();
    r->digest = epoch_digest_new();
    if (r->payload && r->piece && r->packer && r->digest)
        rc = ram_image_init(&r->image, pool, image, n_pages);
    if (rc == 0)
        rc = thread_start(&r->thread, "us-receive", receiver_thread, r);
    if (rc)
        receiver_free(r);
    else
        *ret_receiver = r;
    return rc;
}

void receiver_close(struct receiver *r)
{
    if (!r)
        return;
    receiver_detach(r);
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    (void)pthread_join(r->thread, NULL); /* cannot fail: it is ours and joined once */
    receiver_free(r);
}
