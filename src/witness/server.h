/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WITNESS_SERVER_H
#define US_WITNESS_SERVER_H

#include <systemd/sd-event.h>

#include "base/err.h"
#include "io/tls.h"
#include "witness/hosts.h"
#include "witness/store.h"

/* Serves a store on the arbiter channel to the hosts that are allowed, each of which sees and
 * changes the registers of its own group. TLS with pinned keys on every connection; the name in the
 * hello must be that of the key's host.
 *
 * A stranger, who has not said a proper hello yet, has 5 seconds for that. Strangers have places of
 * their own, so that no number of them takes one from a host; when these are all taken, the network
 * address that holds most of them loses its oldest.
 *
 * The connection of a host may stay idle for ever. When a host has too many, or all hosts together,
 * the one that was silent longest is closed: it is most likely left over from a process that died,
 * and whoever it belongs to connects again when he has something to ask. */

enum {
    SERVER_STRANGERS_MAX = 1024,   /* after a restart, many hosts come at once */
    SERVER_HOST_CLIENTS_MAX = 256, /* connections of one host: two for each VM, and tools */
    SERVER_CLIENTS_MAX = 16384,    /* of all hosts; fewer if descriptors are */
};

struct server;

/* Listens on "ADDRESS:PORT" inside the loop. event, store and tls are borrowed; hosts is taken,
 * also on failure. When the store fails for good, the loop ends with the exit code EXIT_FAILURE. 0
 * or a negative errno. */
int server_new(sd_event *event, const char *address, struct store *store, struct tls_context *tls,
               struct hosts *hosts, struct server **ret_server, struct err *err) US_MUST_CHECK;

/* Other hosts are allowed from now on. Takes hosts. Connections by keys that are not allowed any
 * more are closed. */
void server_change_hosts(struct server *server, struct hosts *hosts);

/* The address as it is bound ("127.0.0.1:41234"; port 0 means any). Borrowed. */
const char *server_address(const struct server *server);

void server_free(struct server *server); /* NULL is allowed */

#endif
