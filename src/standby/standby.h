/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STANDBY_STANDBY_H
#define US_STANDBY_STANDBY_H

#include <systemd/sd-event.h>

#include "guard/takeover.h"
#include "io/control.h"

/* The standby: the process of a host that backs one VM. A shell around the state machine of
 * src/core/standby.h, as the guard is one around the primary's. It keeps a hypervisor waiting on
 * the RAM image that the receiver (receiver.h) fills; taking over means: win the arbiter's swap,
 * give the hypervisor the newest device state, let it run, and become the VM's guard. */

struct standby_shell;

struct standby_params {
    sd_event *event;                  /* borrowed */
    const struct host_config *config; /* borrowed */
    struct tls_context *tls;          /* borrowed */
    const struct hyp_ops *hyp;
    const char *vm; /* copied */
    int conn_fd;    /* the primary's control connection, nothing of it read; taken */
    /* Checks that this host can run the VM, as at a start; fills in what is left open. */
    int (*preflight)(struct vm_spec *spec, const struct host_config *config, struct err *err);
    /* The VM is this host's, and about to run: what is needed to go on should this process die
     * from now on. Must not block. */
    void (*on_won)(void *user, struct vm_spec *spec, const char *primary);
    /* The VM runs here. Called once, from the loop, then the shell is to be freed; takeover->body
     * is the callee's. */
    void (*on_takeover)(void *user, const struct takeover *takeover);
    /* The copy of the VM's disks is complete: this host may have to start the VM from it one day.
     * In another thread than the loop's; may block. */
    int (*on_complete)(void *user, const struct vm_spec *spec, const char *primary,
                       struct err *err);
    void *user;
};

/* The loop ends with exit code 0 when the copy was discarded. */
int standby_new(const struct standby_params *params, struct standby_shell **ret_shell,
                struct err *err) US_MUST_CHECK;

/* Handles a request of the VM's control socket (taken). */
void standby_request(struct standby_shell *s, struct control_request *request);

/* The configuration's peers have changed. */
void standby_keys_changed(struct standby_shell *s);

/* Frees everything; the VM too, unless it was taken over. NULL is allowed. */
void standby_free(struct standby_shell *s);

#endif
