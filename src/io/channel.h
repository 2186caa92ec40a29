/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_CHANNEL_H
#define US_IO_CHANNEL_H

#include <systemd/sd-event.h>

#include "io/identity.h"
#include "io/transport.h"
#include "wire/msg.h"

/* A connection to a peer inside an event loop: hellos first, then small messages both ways. Used
 * for control channels for their whole life, and for data channels until their hellos are done.
 *
 * It reads exactly what belongs to the next message and no byte more, so that the transport can be
 * taken out after the hellos. What is not sent at once waits in a bounded buffer; a peer that
 * does not read until that is full counts as broken. */

struct channel;

struct channel_callbacks {
    /* The peer's hello came. May close or take the channel apart. */
    void (*on_hello)(void *user, const struct wire_hello *hello);
    /* A valid message came; borrowed. May close the channel. */
    void (*on_message)(void *user, const struct wire_msg *msg);
    /* The connection failed, ended or broke the protocol; `why` is borrowed. The channel is dead:
     * the only thing left is channel_close(), which may be called here. Called once, never from
     * inside another call on the channel. */
    void (*on_broken)(void *user, const char *why);
};

/* Takes the transport (which may still be connecting) also on failure. priority: of its event
 * source. callbacks are borrowed for the channel's life. */
int channel_new(sd_event *event, struct transport *t, enum wire_channel kind, int64_t priority,
                const struct channel_callbacks *callbacks, void *user,
                struct channel **ret_channel) US_MUST_CHECK;

/* Hands the channel to somebody else, e.g. once its hello told what it is for. */
void channel_set_callbacks(struct channel *c, const struct channel_callbacks *callbacks,
                           void *user);

/* Queue and send. Failures arrive by on_broken. */
void channel_send_hello(struct channel *c, const struct wire_hello *hello);
void channel_send(struct channel *c, const struct wire_msg *msg);

/* Whom the transport has authenticated (tls_peer_key()); NULL before the handshake is done, and for
 * a transport without. Borrowed from the channel. */
const struct public_key *channel_peer_key(const struct channel *c);

/* Frees the channel and returns its transport, once the hellos are done. Anything not yet sent is
 * written first (a hello fits every socket buffer). The caller owns it. */
struct transport *channel_take_transport(struct channel *c);

/* Closes the connection and frees the channel. NULL is allowed. No callback is made. */
void channel_close(struct channel *c);

#endif
