/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HOST_PEER_H
#define US_TESTS_HOST_PEER_H

#include "host_run.h"
#include "io/tls.h"
#include "wire/msg.h"

/* A peer at understudyd's door, in steps. All of these fail the test that calls them when something
 * other than the outcome is wrong; whatever waits, waits 10 s at most. */

struct hello_order {
    const char *from, *vm; /* from NULL: hosta */
    uint8_t channel;       /* 0: control */
    uint16_t version;      /* 0: what we speak */
    bool resume;
};

/* A connection, nothing more. */
int peer_connect(const struct host_run *h);

/* TLS on it (fd is taken), with the key of `who`; the other side must show `host`, or any key when
 * that is NULL. The handshake happens with the first bytes. host is borrowed while it lives. */
struct transport *peer_tls(int fd, enum tls_purpose purpose, const struct identity *who,
                           const struct public_key *host);

/* False when the connection broke. */
bool peer_say(struct transport *t, const struct hello_order *order);

/* The status of the answer; -1 when the connection ended without one. text may be NULL. */
int peer_hear(struct transport *t, char text[64]);

/* Door and room as `who`. The status of what refused or of the room's answer; -1 as above. With
 * ret_room, WIRE_OK leaves the room there, for the caller to close. */
int peer_knock(const struct host_run *h, const struct identity *who, struct hello_order order,
               char text[64], struct transport **ret_room);

void peer_close(struct transport *t); /* NULL is allowed */

/* Until the connection has ended, at most for that long. False: it has not. */
bool peer_ended(struct transport *t, int ms);

#endif
