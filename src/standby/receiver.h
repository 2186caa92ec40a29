/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STANDBY_RECEIVER_H
#define US_STANDBY_RECEIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "disk/applier.h"
#include "io/stage.h"
#include "io/transport.h"
#include "wire/msg.h"

/* The receiver: a thread of the standby that reads epochs from the data channel, decodes and stages
 * each one whole, verifies its digest, and only then reports it. The standby's main thread
 * acknowledges it and orders it applied; the receiver then copies the pages into the RAM image,
 * makes the device state the newest, and reads on. An epoch that is not whole when the link ends is
 * thrown away; nothing of it has touched the image (I3).
 *
 * Disk records are staged with the rest, and given to the applier (disk/applier.h) once verified.
 *
 *   receiver thread:  read, decode, stage -> verify -> STAGED ... -> apply -> APPLIED -> read ...
 *   main thread:                                 ack, receiver_apply()
 *
 * Errors (report): -ECONNRESET and other codes of the transport; -EPROTO for what does not decode,
 * verify or belong; -E2BIG for an epoch that does not fit the staging pool. After any of them the
 * transport is dead, and waits for detach. */

struct receiver;

/* Where the disks' records go. */
struct receiver_disks {
    struct applier *applier; /* borrowed */
    const uint64_t *sizes;   /* bytes, n_disks of them; borrowed */
    uint32_t n_disks;
    uint64_t limit_bytes; /* of one epoch's records: a larger one is refused */
    /* The first records of a full copy are about to be applied: from now on the copies have no
     * valid state. In the receiver's thread; may block. A negative errno ends the transport. */
    int (*on_seeding)(void *user);
    void *user;
};

struct receiver_report {
    uint64_t staged_epoch;  /* newest epoch that is whole and verified; 0 = none */
    uint64_t staged_term;   /* its pair_term */
    uint64_t applied_epoch; /* newest epoch that the image and the state hold; 0 = none */
    uint64_t applied_term;
    uint64_t wire_bytes; /* received since the receiver was made */
    uint64_t raw_bytes;
    int error;      /* negative errno that ended the transport; 0 = fine, or detached */
    char text[256]; /* why, for people */
};

/* image: the RAM image, n_pages pages, writable, borrowed. It starts as zeros, best as holes in a
 * tmpfs: those stay holes until a page with something in it comes. pool: for the receiver alone;
 * its size is the largest epoch. disks: NULL when the VM has none;
 * copied. notify_fd: an eventfd (borrowed) written whenever the report
 * changes. */
int receiver_new(struct stage_pool *pool, uint8_t *image, uint64_t n_pages,
                 const struct receiver_disks *disks, int notify_fd,
                 struct receiver **ret_receiver) US_MUST_CHECK;

/* Starts to read from a transport after its hellos are done (taken; blocking mode is set here).
 * Epoch numbers must grow from the newest staged one on; the first may be any. -EBUSY when the
 * previous transport was not detached; on failure the transport is still the caller's. */
int receiver_attach(struct receiver *r, struct transport *t) US_MUST_CHECK;

/* Ends the transport and throws away a half-received epoch. An epoch that is staged stays, and can
 * still be applied. Returns when the thread has let go of the transport. Idempotent. */
void receiver_detach(struct receiver *r);

/* Orders the staged epoch applied (after it was acknowledged). Asynchronous: see the report. */
void receiver_apply(struct receiver *r);

/* Waits until the staged epoch, if any was ordered, is applied: bounded by copying one epoch. */
void receiver_drain(struct receiver *r);

/* The device state of the newest applied epoch. Borrowed: valid while nothing is applied (detached
 * and drained). -ENOENT when that epoch had none (as in seeding), or there is no epoch. */
int receiver_state(struct receiver *r, const char **ret_format, const uint8_t **ret_bytes,
                   size_t *ret_n) US_MUST_CHECK;

void receiver_report_get(struct receiver *r, struct receiver_report *ret_report);

/* Ends the thread, frees. NULL is allowed. */
void receiver_close(struct receiver *r);

#endif
