/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_DIAL_H
#define US_IO_DIAL_H

#include <systemd/sd-event.h>

#include "io/channel.h"
#include "io/config.h"
#include "io/tls.h"

/* Makes a connection to the process of a VM on a peer: TCP, the door (TLS with its understudyd,
 * which knows the way), the room (TLS with the process itself, on the same connection).
 * docs/security.md says why there are two. Everything runs in the event loop.
 *
 *   TCP, door's handshake, hello -> answer "come in" -> room's handshake: with the first bytes that
 *   the new owner of the transport reads or writes */

struct dial;

/* Either t, now the caller's, in whose room nothing was said yet; or NULL and why not (borrowed).
 * Called once, from the loop; the dial is over then, and still has to be closed. */
typedef void dial_done_fn(void *user, struct transport *t, const char *why);

/* Who dials, and with what. */
struct dial_params {
    sd_event *event;
    int64_t priority;
    struct tls_context *tls;          /* borrowed for the life of the dial */
    const struct host_config *config; /* ... and of the transport; its peers may be reloaded */
};

/* hello is what the VM's process will be told too; copied, as is the peer. No time-out of its own.
 * 0, or -errno with the reason. */
int dial_new(const struct dial_params *params, const struct host_peer *peer,
             const struct wire_hello *hello, dial_done_fn *on_done, void *user,
             struct dial **ret_dial, struct err *err) US_MUST_CHECK;

void dial_close(struct dial *d); /* gives up where it is; NULL is allowed */

/* The rules of a room, for both sides: the key of some peer (struct tls_params.trusted; user is the
 * const struct host_config). Whose, is looked at when the hello is there: dial_peer_is(). */
bool dial_trusts(void *config, const struct public_key *theirs);

/* Whether the other side of a channel, whose hello has come, is the peer of that name. */
bool dial_peer_is(const struct host_config *config, const struct channel *c, const char *name);

#endif
