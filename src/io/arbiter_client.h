/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_ARBITER_CLIENT_H
#define US_IO_ARBITER_CLIENT_H

#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "io/config.h"
#include "io/tls.h"
#include "wire/msg.h"

/* A client of the arbiter, whatever kind that is, for one VM: one request at a time. Whoever
 * decides what to ask is src/core; this only carries requests and answers. It connects on demand,
 * keeps the connection, and gives up a request after the time-out: then nobody knows whether it was
 * carried out, and on_answer says so with status 0. It never repeats a request by itself. */

struct arbiter_client;

/* status: enum wire_arb_status, or 0 = no answer (unreachable, timed out, broken connection, an
 * answer that cannot be true). With status 0, *current is all zero; with WIRE_ARB_ERROR (it was not
 * done, and why) it says nothing. `why` is "" or a text for people (borrowed). Asking again and
 * closing the client are allowed inside. */
typedef void arbiter_answer_fn(void *user, uint64_t id, uint8_t status,
                               const struct arb_record *current, const char *why);

/* Whom to ask is config's choice; it and tls are borrowed for the client's life. tls: our key, for
 * a witness; etcd needs none. host and vm are copied, event is referenced. timeout_ns bounds each
 * request, connecting included. 0; -EINVAL when a name is not valid; -ENOMEM. Connects to nothing
 * yet. */
int arbiter_client_new(sd_event *event, const struct arbiter_config *config,
                       struct tls_context *tls, const char *host, const char *vm,
                       uint64_t timeout_ns, arbiter_answer_fn *on_answer, void *user,
                       struct arbiter_client **ret_client) US_MUST_CHECK;

/* Sends a request; id comes back with the answer. A request that is still open is given up first
 * (no answer will come for it, though it may still be carried out). Failures to send are reported
 * by on_answer from the loop, never from inside this call. request->vm is filled in by the client.
 */
void arbiter_client_ask(struct arbiter_client *c, uint64_t id,
                        const struct wire_arb_request *request);

/* Connects ahead of need, so that the first request costs one round trip. */
void arbiter_client_warm(struct arbiter_client *c);

void arbiter_client_close(struct arbiter_client *c); /* NULL is allowed */

/* One blocking request with a connection of its own, for tools; bounded by timeout_ns. config and
 * tls as above. Returns 0 with *ret_reply, whatever its status (the reason of WIRE_ARB_ERROR
 * is in err then); -ECOMM without an answer, or another negative errno, with the reason. */
int arbiter_ask_once(const struct arbiter_config *config, struct tls_context *tls, const char *host,
                     const struct wire_arb_request *request, uint64_t timeout_ns,
                     struct wire_arb_reply *ret_reply, struct err *err) US_MUST_CHECK;

typedef void arbiter_each_fn(void *user, const char *vm, const struct arb_record *record);

/* Calls `each` for all registers that this host may see, in the order of their VMs' names. For
 * tools: blocks, bounded by timeout_ns. config and tls as above. 0, or -errno with the reason (some
 * registers may have been told by then). */
int arbiter_list(const struct arbiter_config *config, struct tls_context *tls, const char *host,
                 uint64_t timeout_ns, arbiter_each_fn *each, void *user,
                 struct err *err) US_MUST_CHECK;

#endif
