/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/arbiter_backend.h"
#include "io/clock.h"
#include "io/etcd.h"
#include "io/grpc.h"

/* etcd as the arbiter. All members of a cluster give the same answers, so any endpoint will do: one
 * is in use until it fails.
 *
 * - It cannot be reached, nothing was sent: the next one is tried within the same request.
 * - The answer is lost, or makes no sense: nobody knows what became of the request. It is given up;
 *   the next request begins at the next endpoint. A request is never sent twice. */

struct etcd {
    struct arbiter_backend backend;
    sd_event *event;
    const struct arbiter_config *config;
    uint64_t connect_ms; /* of each endpoint, so that all get their turn in one request's time */
    struct grpc_client *grpc; /* NULL: nothing is connected */
    uint32_t endpoint;        /* number of the one in use */
    uint32_t n_failed;        /* endpoints that could not be reached for the present request */
    bool connected;
    struct etcd_header newest; /* what the cluster said last; zero: not known yet */

    bool asking; /* a request is open; else, if gRPC is busy, it is warming up */
    uint64_t sequence;
    struct wire_arb_request request;
    struct etcd_message message; /* its bytes, or those that warm up */
};

static struct etcd *of(struct arbiter_backend *b)
{
    return (struct etcd *)b; /* its first member */
}

static struct grpc_files files_of(const struct arbiter_config *config)
{
    return (struct grpc_files){config->ca, config->cert_file, config->key_file};
}

static void use_endpoint(struct etcd *e, uint32_t number)
{
    e->endpoint = number % e->config->n_etcd;
    strcpy(e->backend.where, e->config->etcd[e->endpoint]);
}

static void on_done(void *user, const struct grpc_result *result);

/* Sends the message to the endpoint in use. */
static int send_message(struct etcd *e, struct err *err)
{
    const struct grpc_files files = files_of(e->config);
    int r = 0;

    if (!e->grpc)
        r = grpc_client_new(e->event, &files, e->connect_ms, on_done, e, &e->grpc);
    if (r == 0)
        r = grpc_call(e->grpc, e->config->etcd[e->endpoint], e->message.method, e->message.bytes,
                      e->message.n_bytes);
    return r < 0 ? err_sys(err, r, "gRPC") : 0;
}

/* Errors after which the register is as it was: etcd does not even try. */
static bool is_refusal(int status)
{
    return status == GRPC_PERMISSION_DENIED || status == GRPC_UNAUTHENTICATED ||
           status == GRPC_RESOURCE_EXHAUSTED;
}

/* Another cluster, or one that was set back to an earlier state, decides nothing here. */
static bool continues(const struct etcd_header *before, const struct etcd_header *now)
{
    return before->cluster_id == 0 ||
           (now->cluster_id == before->cluster_id && now->revision >= before->revision);
}

/* The request got its answer. */
static void on_answer(struct etcd *e, const struct grpc_result *result)
{
    struct wire_arb_reply reply = {.status = WIRE_ARB_ERROR};
    struct err err = {""};
    struct etcd_header header;

    e->asking = false;
    if (is_refusal(result->status)) {
        arbiter_client_replied(e->backend.client, e->sequence, &reply, result->text);
        return;
    }
    if (etcd_decode(e->config->prefix, &e->request, result->message, result->n_message, &reply,
                    &header, &err) < 0) {
        arbiter_client_lost(e->backend.client, err.text);
        return;
    }
    if (!continues(&e->newest, &header)) {
        arbiter_client_lost(e->backend.client, "this is not the cluster that it was before");
        return;
    }
    e->newest = header;
    arbiter_client_replied(e->backend.client, e->sequence, &reply, err.text);
}

static void on_done(void *user, const struct grpc_result *result)
{
    struct etcd *e = user;
    struct err err = {""};

    if (result->status < 0 && !result->sent && ++e->n_failed < e->config->n_etcd) {
        use_endpoint(e, e->endpoint + 1);
        if (send_message(e, &err) < 0)
            arbiter_client_lost(e->backend.client, err.text);
        return;
    }
    if (result->status < 0 || (result->status > 0 && !is_refusal(result->status))) {
        arbiter_client_lost(e->backend.client, result->text);
        return;
    }
    e->connected = true;
    if (e->asking)
        on_answer(e, result);
    else
        arbiter_client_connected(e->backend.client);
}

static int etcd_warm(struct arbiter_backend *b, struct err *err)
{
    struct etcd *e = of(b);
    int r;

    if (e->connected || (e->grpc && grpc_busy(e->grpc)))
        return 0;
    e->n_failed = 0;
    etcd_encode_nothing(e->config->prefix, &e->message);
    r = send_message(e, err);
    return r < 0 ? r : 1;
}

static int etcd_ask(struct arbiter_backend *b, uint64_t sequence,
                    const struct wire_arb_request *request, struct err *err)
{
    struct etcd *e = of(b);
    int r = etcd_encode(e->config->prefix, request, &e->message, err);

    if (r < 0)
        return r;
    e->n_failed = 0;
    e->asking = true;
    e->sequence = sequence;
    e->request = *request;
    return send_message(e, err);
}

static void etcd_drop(struct arbiter_backend *b)
{
    struct etcd *e = of(b);

    grpc_client_free(e->grpc);
    e->grpc = NULL;
    e->connected = e->asking = false;
    use_endpoint(e, e->endpoint + 1);
}

static void etcd_close(struct arbiter_backend *b)
{
    struct etcd *e = of(b);

    grpc_client_free(e->grpc);
    sd_event_unref(e->event);
    free(e);
}

static int etcd_open(sd_event *event, const struct arbiter_config *config, struct tls_context *tls,
                     const char *host, uint64_t timeout_ns, struct arbiter_backend **ret_backend)
{
    struct etcd *e;

    if (config->n_etcd == 0)
        return -EINVAL;
    e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    e->backend.ops = &arbiter_etcd_ops;
    e->event = sd_event_ref(event);
    e->config = config;
    e->connect_ms = timeout_ns / NS_PER_MS / config->n_etcd + 1;
    use_endpoint(e, 0);
    *ret_backend = &e->backend;
    return 0;
}

/* A list under way: pages are asked for one after the other, each at the first endpoint that
 * answers; reading is harmless, so a page may be asked for twice. */
struct list {
    sd_event *event;
    const struct arbiter_config *config;
    struct grpc_client *grpc;
    uint32_t endpoint;
    char last_vm[WIRE_NAME_BYTES];
    arbiter_each_fn *each;
    void *user;
    struct err *err;
};

static int list_ask(struct list *l)
{
    struct etcd_message message;
    int r;

    etcd_encode_list(l->config->prefix, l->last_vm, &message);
    r = grpc_call(l->grpc, l->config->etcd[l->endpoint], message.method, message.bytes,
                  message.n_bytes);
    return r < 0 ? err_sys(l->err, r, "gRPC") : 0;
}

static void on_page(void *user, const struct grpc_result *result)
{
    struct list *l = user;
    int r;

    if (result->status == GRPC_OK)
        r = etcd_decode_list(l->config->prefix, result->message, result->n_message, l->each,
                             l->user, l->last_vm, l->err);
    else if (++l->endpoint < l->config->n_etcd)
        r = 1;
    else
        r = err_set(l->err, -ECOMM, "%s", result->text);
    if (r > 0) {
        r = list_ask(l);
        if (r == 0)
            return; /* the next page is on its way */
    }
    (void)sd_event_exit(l->event, r); /* cannot fail inside the loop */
}

static int on_list_timeout(sd_event_source *source, uint64_t usec, void *user)
{
    struct list *l = user;

    return sd_event_exit(l->event, err_set(l->err, -ETIMEDOUT, "no answer in time"));
}

static int etcd_list(const struct arbiter_config *config, struct tls_context *tls, const char *host,
                     uint64_t timeout_ns, arbiter_each_fn *each, void *user, struct err *err)
{
    struct list l = {.config = config, .each = each, .user = user, .err = err};
    const struct grpc_files files = files_of(config);
    int r = sd_event_new(&l.event);

    if (r >= 0)
        r = sd_event_add_time_relative(l.event, NULL, CLOCK_MONOTONIC, timeout_ns / 1000, 1000,
                                       on_list_timeout, &l);
    if (r >= 0)
        r = grpc_client_new(l.event, &files, timeout_ns / NS_PER_MS / config->n_etcd + 1, on_page,
                            &l, &l.grpc);
    if (r < 0)
        (void)err_sys(err, r, "list");
    if (r >= 0)
        r = list_ask(&l);
    if (r >= 0)
        r = sd_event_loop(l.event); /* ends with what was given to sd_event_exit() */
    if (r < 0)
        err_prefix(err, "arbiter etcd");
    grpc_client_free(l.grpc);
    sd_event_unref(l.event);
    return r;
}

const struct arbiter_backend_ops arbiter_etcd_ops = {
    .open = etcd_open,
    .close = etcd_close,
    .warm = etcd_warm,
    .ask = etcd_ask,
    .drop = etcd_drop,
    .list = etcd_list,
};
