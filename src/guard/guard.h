/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_GUARD_H
#define US_GUARD_GUARD_H

#include <systemd/sd-event.h>

#include "core/primary.h"
#include "guard/takeover.h"
#include "io/control.h"

/* The guard: the process of a host that is primary for one VM. It is a shell around the state
 * machine of src/core/primary.h: it turns descriptors and timers into events and carries out the
 * actions. One event loop; the sender (sender.h) is the only other thread.
 *
 *   guard.c      the loop: events in, actions out, timers, the end
 *   capture.c    one epoch: pause, device state, dirty pages, resume
 *   pace.c       when to cut
 *   seed.c       the first full copy
 *   link.c       the session with the standby
 *   addresses.c  what the standby is told of the guest's addresses
 *   output.c     the VM's frames and the gate
 *   status.c     what an operator asks and orders
 */

struct guard;

enum guard_end {
    GUARD_STOPPED = 0, /* stopped on purpose, or the start was refused */
    GUARD_LOST = 1,    /* another host has the VM, or it died */
};

struct guard_params {
    sd_event *event;                  /* borrowed */
    const struct host_config *config; /* borrowed */
    struct tls_context *tls;          /* borrowed */
    struct body *body;                /* taken, on success only */
    bool seize;                       /* start: take the record from another owner */
    bool recover;                     /* start: both hosts went down; this host's disks are to be
                                       * the VM's, if they are the newest */
    const struct takeover *takeover;  /* the VM was taken over and runs. Copied; NULL: not so */
    bool attached;                    /* the body is that of a guard that died; NULL takeover */
    bool running;                     /* attached: the VM's vCPUs run */
    /* start: called once, when the VM runs (refused NULL) or why it must not. */
    void (*on_started)(void *user, const char *refused);
    void *user;
};

/* Makes a guard. start: it asks the arbiter, then lets the VM run; takeover: the VM runs already,
 * the gate flows; attached: the VM is mute until the arbiter has confirmed that it is this host's.
 * The loop's exit code becomes enum guard_end when it is over. */
int guard_new(const struct guard_params *params, struct guard **ret_guard,
              struct err *err) US_MUST_CHECK;

/* Handles a request of the VM's control socket (taken). */
void guard_request(struct guard *g, struct control_request *request);

/* The configuration's peers have changed, or (own) this host's key. */
void guard_keys_changed(struct guard *g, bool own);

/* Ends the VM, if it still exists, and frees everything, the body included. NULL is allowed. */
void guard_free(struct guard *g);

#endif
