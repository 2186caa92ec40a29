/* SPDX-License-Identifier: Apache-2.0 */
#include "witness/server.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/channel.h"
#include "io/clock.h"
#include "io/log.h"

enum {
    CLIENTS_MAX = 64,
    ACCEPT_PAUSE_US = 1000000, /* after accept() failed for want of memory or descriptors */
};

struct client {
    struct server *server;
    struct channel *channel; /* NULL: this place is free */
    bool greeted;            /* the hellos are done */
    uint64_t active_ns;      /* when it last said something */
    char name[WIRE_NAME_BYTES];
};

struct server {
    sd_event *event;
    struct store *store;
    int listen_fd;
    bool failed; /* the store is of no more use: nothing is answered any more */
    sd_event_source *listen_source;
    sd_event_source *pause_source;
    struct log_limit log_broken, log_swap, log_error;
    char address[128];
    struct client clients[CLIENTS_MAX];
};

static void client_drop(struct client *client)
{
    channel_close(take_ptr(client->channel));
    client->greeted = false;
    client->name[0] = '\0';
}

static void on_hello(void *user, const struct wire_hello *hello)
{
    struct client *client = user;
    bool right = hello->channel == WIRE_CHANNEL_ARBITER;
    struct wire_hello answer;

    wire_hello_answer(hello, "witness", right ? WIRE_OK : WIRE_REFUSED_INTERNAL,
                      right ? "" : "this is a witness, not a host", &answer);
    channel_send_hello(client->channel, &answer);
    if (answer.status != WIRE_OK) {
        client_drop(client);
        return;
    }
    client->greeted = true;
    client->active_ns = clock_now_ns();
    memcpy(client->name, hello->from, sizeof(client->name));
}

static void log_reply(struct server *server, const struct client *client,
                      const struct wire_arb_request *request, const struct wire_arb_reply *reply,
                      const struct err *err)
{
    const struct arb_record *record = &reply->current;
    unsigned long long n;

    if (reply->status == WIRE_ARB_ERROR) {
        if (log_limit_pass(&server->log_error, &n))
            log_error("%s asked: %s (%llu such lines left out)", client->name, err->text, n);
        return;
    }
    if (request->op != WIRE_ARB_CAS || !log_limit_pass(&server->log_swap, &n))
        return;
    log_info("%s: %s %s: term %llu, %s, owner \"%s\", standby \"%s\" (%llu such lines left out)",
             request->vm, client->name,
             reply->status == WIRE_ARB_DONE ? "swapped" : "came too late for a swap",
             (unsigned long long)record->term, record->mode == ARB_PAIRED ? "paired" : "solo",
             record->owner, record->standby, n);
}

static void on_message(void *user, const struct wire_msg *msg)
{
    struct client *client = user;
    struct server *server = client->server;
    struct wire_msg answer = {.type = WIRE_ARB_REPLY, .epoch = msg->epoch};
    struct err err = {""};

    if (server->failed || msg->type != WIRE_ARB_REQUEST) {
        client_drop(client);
        return;
    }
    client->active_ns = clock_now_ns();
    fault_point("witness.request");
    if (store_apply(server->store, &msg->u.arb_request, &answer.u.arb_reply, &err) < 0) {
        log_error("giving up, so that nothing wrong is answered: %s", err.text);
        server->failed = true;
        (void)sd_event_exit(server->event, EXIT_FAILURE); /* fails only when already exiting */
        client_drop(client);
        return;
    }
    fault_point("witness.answer");
    channel_send(client->channel, &answer);
    fault_point("witness.answered");
    log_reply(server, client, &msg->u.arb_request, &answer.u.arb_reply, &err);
}

static void on_broken(void *user, const char *why)
{
    struct client *client = user;
    unsigned long long n;

    if (log_limit_pass(&client->server->log_broken, &n))
        log_info("connection of %s ended: %s (%llu such lines left out)",
                 client->name[0] ? client->name : "a stranger", why, n);
    client_drop(client);
}

/* A free place, made free if need be: strangers go first, then who was silent longest. */
static struct client *client_place(struct server *server)
{
    struct client *oldest = &server->clients[0];

    for (int i = 0; i < CLIENTS_MAX; i++) {
        struct client *c = &server->clients[i];

        if (!c->channel)
            return c;
        if (c->greeted < oldest->greeted ||
            (c->greeted == oldest->greeted && c->active_ns < oldest->active_ns))
            oldest = c;
    }
    client_drop(oldest);
    return oldest;
}

static int on_pause_over(sd_event_source *source, uint64_t usec, void *user)
{
    struct server *server = user;

    return sd_event_source_set_enabled(server->listen_source, SD_EVENT_ON);
}

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user)
{
    static const struct channel_callbacks callbacks = {
        .on_hello = on_hello, .on_message = on_message, .on_broken = on_broken};
    struct server *server = user;
    int conn = FAULTY("witness.accept", accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
    const int on = 1;
    struct transport *transport;
    struct client *client;

    if (conn < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
        log_warning("accept: %s", strerror(errno));
        (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
        sd_event_source_disable_unref(take_ptr(server->pause_source));
        return sd_event_add_time_relative(server->event, &server->pause_source, CLOCK_MONOTONIC,
                                          ACCEPT_PAUSE_US, 0, on_pause_over, server);
    }
    if (conn < 0)
        return 0; /* gone again */
    transport = transport_tcp_new(conn);
    if (!transport)
        return 0;
    /* No heartbeats here: the kernel finds out about hosts that died. */
    (void)setsockopt(transport->ops->fd(transport), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    client = client_place(server);
    client->server = server;
    client->active_ns = clock_now_ns();
    if (channel_new(server->event, transport, WIRE_CHANNEL_ARBITER, SD_EVENT_PRIORITY_NORMAL,
                    &callbacks, client, &client->channel) < 0)
        client->channel = NULL;
    return 0;
}

static int server_listen(struct server *server, const char *address, struct err *err)
{
    struct sockaddr_storage bound;
    socklen_t n_bound = sizeof(bound);
    char host[80], port[8];
    int r = transport_tcp_listen(address, &server->listen_fd, err);

    if (r < 0)
        return r;
    if (getsockname(server->listen_fd, (struct sockaddr *)&bound, &n_bound) < 0)
        return err_sys(err, -errno, "%s", address);
    if (getnameinfo((struct sockaddr *)&bound, n_bound, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return err_set(err, -EINVAL, "%s: cannot be printed", address);
    (void)snprintf(server->address, sizeof(server->address),
                   bound.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    r = sd_event_add_io(server->event, &server->listen_source, server->listen_fd, EPOLLIN,
                        on_connection, server);
    return r < 0 ? err_sys(err, r, "event loop") : 0;
}

int server_new(sd_event *event, const char *address, struct store *store,
               struct server **ret_server, struct err *err)
{
    struct server *server = calloc(1, sizeof(*server));
    int r;

    if (!server)
        return err_sys(err, -ENOMEM, "%s", address);
    server->event = event;
    server->store = store;
    server->listen_fd = -1;
    r = server_listen(server, address, err);
    if (r < 0) {
        server_free(server);
        return r;
    }
    *ret_server = server;
    return 0;
}

const char *server_address(const struct server *server)
{
    return server->address;
}

void server_free(struct server *server)
{
    if (!server)
        return;
    for (int i = 0; i < CLIENTS_MAX; i++)
        client_drop(&server->clients[i]);
    sd_event_source_disable_unref(server->listen_source);
    sd_event_source_disable_unref(server->pause_source);
    if (server->listen_fd >= 0)
        close(server->listen_fd);
    free(server);
}
