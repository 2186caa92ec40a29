/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_OUTPUT_H
#define US_GUARD_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/gate.h"
#include "guard/body.h"

/* The frames of a running VM: outbound ones wait in the gate's queue until it lets them go, inbound
 * ones are delivered at once. All Ethernet frames alike: nothing is let through by its kind.
 *
 * When the queue is full the guest's sockets are not read any more, so that its own queues fill and
 * nothing is lost. */

struct output;

struct output_stats {
    uint64_t held_frames, held_bytes; /* now in the queue */
    uint64_t released_frames;         /* gone to the bridge */
    uint64_t dropped_frames;          /* of either direction, for whatever reason */
};

/* gate: borrowed; decided on by the caller, who calls output_flush() when it opened further. */
int output_new(struct body *body, const struct gate *gate, struct output **ret_output,
               struct err *err) US_MUST_CHECK;

/* Takes every frame that the guest has sent so far, stamped with the gate's open epoch. */
void output_take(struct output *o);

/* Lets go what the gate lets go. */
void output_flush(struct output *o);

/* True when frames of the open epoch are held. */
bool output_waits(const struct output *o);

/* True while the queue is full and the guest's sockets are not read. */
bool output_full(const struct output *o);

/* Drops everything held and ends announcements: the VM is not ours any more. */
void output_drop(struct output *o);

/* What becomes of frames for the guest. */
enum output_inbound {
    INBOUND_DELIVER = 0, /* the guest gets them */
    INBOUND_KEEP,        /* they wait in the taps: the VM is about to go */
    INBOUND_DIVERT,      /* on_frame gets them: the VM has gone */
};

typedef void output_frame_fn(void *user, uint8_t nic, const uint8_t *bytes, uint32_t n_bytes);

/* on_frame: for INBOUND_DIVERT; not called from inside. */
void output_inbound(struct output *o, enum output_inbound what, output_frame_fn *on_frame,
                    void *user);

/* Tells the network where the VM is now, several times over the next second. */
void output_announce(struct output *o);

void output_stats_get(const struct output *o, struct output_stats *ret_stats);
void output_close(struct output *o); /* NULL is allowed */

#endif
