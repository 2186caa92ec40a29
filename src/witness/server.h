/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WITNESS_SERVER_H
#define US_WITNESS_SERVER_H

#include <systemd/sd-event.h>

#include "base/err.h"
#include "witness/store.h"

/* Serves a store on the arbiter channel to a bounded number of hosts. A connection may stay idle
 * for ever; when all are taken, the one that was silent longest makes room for a new one, since it
 * is most likely left over from a host that died, and its owner would connect again when it asks.
 */

struct server;

/* Listens on "ADDRESS:PORT" inside the loop. event and store are borrowed. When the store fails for
 * good, the loop ends with the exit code EXIT_FAILURE. 0 or a negative errno. */
int server_new(sd_event *event, const char *address, struct store *store,
               struct server **ret_server, struct err *err) US_MUST_CHECK;

/* The address as it is bound ("127.0.0.1:41234"; port 0 means any). Borrowed. */
const char *server_address(const struct server *server);

void server_free(struct server *server); /* NULL is allowed */

#endif
