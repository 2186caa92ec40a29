/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_ARBITER_BACKEND_H
#define US_IO_ARBITER_BACKEND_H

#include "io/arbiter_client.h"

/* Between arbiter_client.c, which has the rules that hold for every arbiter, and the ways to reach
 * one. The client bounds requests in time, checks that answers can be true, and tells the user; a
 * backend carries one request at a time and reports what became of it, always from the loop. */

struct arbiter_backend {
    const struct arbiter_backend_ops *ops;
    struct arbiter_client *client; /* whom to report to */
    char where[ARBITER_URL_MAX];   /* the address in use, for people */
};

struct arbiter_backend_ops {
    /* As arbiter_client_new(), whose arguments they are. Sets all of arbiter_backend but client. */
    int (*open)(sd_event *event, const struct arbiter_config *config, struct tls_context *tls,
                const char *host, uint64_t timeout_ns,
                struct arbiter_backend **ret_backend) US_MUST_CHECK;
    void (*close)(struct arbiter_backend *b);

    /* Connects ahead of need. 1; 0 when it is connected or connecting already. */
    int (*warm)(struct arbiter_backend *b, struct err *err) US_MUST_CHECK;

    /* Sends a valid request, connecting first if need be. It takes the place of one that is still
     * open, which is not sent any more if it has not been yet. Sent at most once, whatever happens.
     */
    int (*ask)(struct arbiter_backend *b, uint64_t sequence, const struct wire_arb_request *request,
               struct err *err) US_MUST_CHECK;

    /* Forgets the open request, and the connection, which is of no use. Reports nothing. */
    void (*drop)(struct arbiter_backend *b);

    /* arbiter_list() itself. */
    int (*list)(const struct arbiter_config *config, struct tls_context *tls, const char *host,
                uint64_t timeout_ns, arbiter_each_fn *each, void *user,
                struct err *err) US_MUST_CHECK;
};

extern const struct arbiter_backend_ops arbiter_witness_ops;
extern const struct arbiter_backend_ops arbiter_etcd_ops;

/* Reports, from the loop and never from inside a call of the ops. Each of them is the last thing
 * that a backend does: the user may close everything inside. */

void arbiter_client_connected(struct arbiter_client *c); /* the harmless one: closes nothing */

/* A reply came to the request of that number; one to an earlier request is ignored. `why` is for
 * people, "" unless there is something to say. */
void arbiter_client_replied(struct arbiter_client *c, uint64_t sequence,
                            const struct wire_arb_reply *reply, const char *why);

/* The connection is gone, or of no use, and with it the request that may be open. */
void arbiter_client_lost(struct arbiter_client *c, const char *why);

#endif
