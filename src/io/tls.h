/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_TLS_H
#define US_IO_TLS_H

#include "io/identity.h"
#include "io/transport.h"

/* TLS 1.3 with both sides known by pinned public keys, behind the operations of a transport.
 *
 * Each side shows a self-signed certificate, which is only the envelope of its key: made anew when
 * the process starts, valid from 1970 to 9999 so that no clock matters. Of the other side's
 * certificate the key counts, and that it has not expired. No names, no authorities, no session
 * tickets, no early data, no renegotiation; AES-GCM or ChaCha20, X25519 or P-256.
 *
 * The handshake happens inside the first reads and writes, on blocking and non-blocking sockets
 * alike. Until it is done a connection costs OpenSSL's state (80 KiB; 240 at most, when the other
 * side announces a long hello), and nothing that it sent is handed out. A side that is refused gets
 * an alert; both get -EACCES (unknown key, no key, expired), or -EPROTO (plain text, another
 * version, another purpose, damage), or what the socket says. Later damage is -EPROTO too. An error
 * stays: no byte comes after it.
 *
 * There is no closing alert, and the end of the socket's stream is the end of this one: whoever has
 * to know whether that is all says so in his own protocol. */

struct tls_context;

/* Which kind of conversation: both sides must mean the same, so that no connection can be passed
 * off as another kind (ALPN). */
enum tls_purpose {
    TLS_DOOR = 1, /* guard -> understudyd: which VM's process, and may I? */
    TLS_ROOM,     /* guard -> standby: control and data channels */
    TLS_ARBITER,  /* guard, standby, tools -> witness */
};

enum tls_role { TLS_CLIENT = 1, TLS_SERVER };

struct tls_params {
    enum tls_role role;
    enum tls_purpose purpose;
    /* Is this the key of somebody who may be there? Called once, in the handshake, by whoever reads
     * or writes; that they have the private key is proven after it. `user` is borrowed for as long
     * as the transport lives. */
    bool (*trusted)(void *user, const struct public_key *theirs);
    void *user;
};

/* What all TLS transports of a process share: keys and rules. `identity` is borrowed during the
 * call only. */
int tls_context_new(const struct identity *identity, struct tls_context **ret_context,
                    struct err *err) US_MUST_CHECK;
/* Connections from now on use this identity; those that are there keep theirs. */
int tls_context_change(struct tls_context *context, const struct identity *identity,
                       struct err *err) US_MUST_CHECK;
void tls_context_free(struct tls_context *context); /* transports may outlive it; NULL is allowed */

/* Wraps a connected, or connecting, TCP socket, and sets it up. Takes fd also on failure. NULL when
 * out of memory. */
struct transport *transport_tls_new(struct tls_context *context, int fd,
                                    const struct tls_params *params);

/* The other side's key; NULL before the handshake is done, or when `t` is no TLS transport.
 * Borrowed from the transport. */
const struct public_key *tls_peer_key(const struct transport *t);

/* Ends TLS without a word and returns the socket, which the caller owns; the transport is freed.
 * Only when both sides have agreed to, with nothing under way: -EBUSY (and nothing happens) before
 * the handshake is done, and while bytes are buffered here, of the other side's or for it; -EINVAL
 * when `t` is no TLS transport. */
int tls_detach(struct transport *t) US_MUST_CHECK;

#endif
