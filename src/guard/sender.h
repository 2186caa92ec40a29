/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_SENDER_H
#define US_GUARD_SENDER_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/log.h"
#include "guard/effort.h"
#include "io/stage.h"
#include "io/transport.h"
#include "wire/msg.h"

/* The sender: a thread of the guard that encodes staged epochs and writes them to the data channel,
 * so that neither costs the VM's pause or the guard's loop anything. The guard's main thread feeds
 * it (begin, chunks, state, end, in this order for each epoch) and looks at its reports; chunks go
 * back to the pool as soon as they are on the wire.
 *
 * The feeding functions never block and never fail on a dead link: after an error, or without a
 * transport, the sender throws away what it is given (chunks go back to the pool) until attach().
 */

struct sender;

struct sender_report {
    uint64_t sent_epoch;    /* newest epoch whose end was written; 0 = none since attach */
    uint64_t encoded_epoch; /* newest one that is on the wire or about to be; acknowledging more is
                               a lie */
    uint64_t wire_bytes;    /* bytes written since the sender was made */
    uint64_t raw_bytes;     /* page and state bytes before encoding, likewise */
    int error;              /* negative errno that ended the transport; 0 = fine */

    /* Since the sender was made. */
    uint64_t page_bytes, page_wire_bytes;   /* of pages: before and after encoding */
    uint64_t state_bytes, state_wire_bytes; /* of device state */
    uint64_t pages[WIRE_PAGE_KINDS];        /* by enum wire_page_kind */
    uint64_t encode_ns; /* spent on encoding and digests of pages and device state */
    uint64_t write_ns;  /* spent on writing, which is waiting when the link is the bottleneck */
    enum effort_level level; /* the present one */
};

struct sender_options {
    uint64_t delta_cache_bytes; /* most memory for copies of pages as the standby has them; 0: none,
                                 * pages go whole. Taken as it is needed */
    bool raw; /* whole pages only, as the published algorithm sends them: EFFORT_RAW for good */
};

/* options: copied. notify_fd: an eventfd (borrowed) written when an epoch was sent, after an error,
 * and when chunks became free that somebody had asked for in vain. max_epochs: how many epochs may
 * be queued, at least 1; feeding more returns -EBUSY. */
int sender_new(struct stage_pool *pool, unsigned max_epochs, int notify_fd,
               const struct sender_options *options, struct sender **ret_sender) US_MUST_CHECK;

/* Gives the sender a transport after the hellos are done (taken; blocking mode is set here). The
 * previous one must have been detached: -EBUSY. Resets sent_epoch and error. On failure the
 * transport is still the caller's. An epoch that was begun before is not sent. */
int sender_attach(struct sender *s, struct transport *t) US_MUST_CHECK;

/* Ends the current transport (shutdown, close), throws away everything queued. Returns when the
 * thread has let go of it: bounded by one write that shutdown interrupts. Idempotent. */
void sender_detach(struct sender *s);

/* Feeding. begin: pair_term as in wire_epoch_begin; disk: the epoch's records (NULL: none),
 * borrowed and unchanged until the epoch is acknowledged or the sender detached. chunk: taken; the
 * thread copies what is still in memory (chunk->ram, borrowed until the same time) when its turn
 * comes, so those pages must not be part of a state of one moment.
 * state: copied (format is the state's tag); at most one per epoch, may be left out. end: counts
 * and digest are the sender's business. 0; -EBUSY (begin only: too many epochs are queued); state
 * only: -EINVAL for an empty state, or one or a tag that is too long for the protocol, -ENOMEM. */
int sender_begin(struct sender *s, uint64_t epoch, uint64_t pair_term,
                 const struct disk_log *disk) US_MUST_CHECK;
void sender_chunk(struct sender *s, struct stage_chunk *chunk);
int sender_state(struct sender *s, const char *format, const uint8_t *bytes,
                 uint64_t n_bytes) US_MUST_CHECK;
void sender_end(struct sender *s);

void sender_report_get(struct sender *s, struct sender_report *ret_report);

/* Detaches, ends the thread, frees. NULL is allowed. */
void sender_close(struct sender *s);

#endif
