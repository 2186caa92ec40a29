/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_DIAL_H
#define US_IO_DIAL_H

#include <systemd/sd-event.h>

#include "io/config.h"
#include "io/tls.h"
#include "wire/msg.h"

/* Makes a connection to the process of a VM on a peer: TCP, the door (TLS with its understudyd,
 * which knows the way), the room (TLS with the process itself, on the same connection).
 * docs/security.md says why there are two. Everything runs in the event loop. */

struct dial;

/* Either t, now the caller's, in whose room nothing was said yet; or NULL and why not (borrowed).
 * Called once, from the loop; the dial is over then, and still has to be closed. */
typedef void dial_done_fn(void *user, struct transport *t, const char *why);

/* hello is what the VM's process will be told too; copied. peer, tls and user are borrowed. No
 * time-out of its own. 0, or -errno with the reason. */
int dial_new(sd_event *event, int64_t priority, struct tls_context *tls,
             const struct host_peer *peer, const struct wire_hello *hello, dial_done_fn *on_done,
             void *user, struct dial **ret_dial, struct err *err) US_MUST_CHECK;

void dial_close(struct dial *d); /* gives up where it is; NULL is allowed */

#endif
