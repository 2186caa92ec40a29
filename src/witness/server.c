/* SPDX-License-Identifier: Apache-2.0 */
#include "witness/server.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/channel.h"
#include "io/clock.h"
#include "io/keep_alive.h"
#include "io/log.h"

#define HELLO_MAX_NS (5 * NS_PER_S) /* from the connection until the hello is there */

enum {
    ACCEPT_PAUSE_US = 1000000, /* after accept() failed for want of memory or descriptors */
    OTHER_FILES = 64,          /* descriptors that are not connections */
    REFUSAL_LOG_MS = 60000,
    KEEP_ALIVE_IDLE_S = 60, /* hosts that died need not be noticed at once */
    KEEP_ALIVE_INTERVAL_S = 10,
    NETWORKS = 256,
};

/* Why a stranger was sent away: each kind is logged once a minute. */
enum refusal {
    REFUSED_KEY,   /* nobody's whom we know */
    REFUSED_TLS,   /* no TLS, or none that would do */
    REFUSED_HELLO, /* not what a host says to a witness */
    REFUSED_NAME,  /* not the name of the key's host */
    REFUSED_LATE,  /* took too long */
    REFUSED_CROWD, /* too many of them */
    REFUSALS,
};

TAILQ_HEAD(client_list, client);

/* One connection: in `strangers`, in the order of their coming, or, once its hello was accepted, in
 * `members`, longest silent first. */
struct client {
    TAILQ_ENTRY(client) link;
    struct server *server;
    struct channel *channel;
    bool member;
    uint32_t host;         /* member: whose connection, in server->hosts */
    bool unknown;          /* showed a key that is not allowed */
    uint64_t since_ns;     /* when it came */
    struct public_key key; /* once TLS is done */
    uint8_t network;       /* where from: see network_of() */
    char address[80];      /* for people */
};

struct server {
    sd_event *event;
    struct store *store;
    struct tls_context *tls;
    struct hosts *hosts;
    uint32_t n_clients[HOSTS_MAX]; /* of each host */
    int listen_fd;
    bool failed; /* the store is of no more use: nothing is answered any more */
    sd_event_source *listen_source, *pause_source;
    sd_event_source *late_source; /* the oldest stranger's time is up */
    struct client_list strangers, members;
    uint32_t n_strangers_of[NETWORKS];
    uint64_t network_seed;
    uint32_t n_strangers, n_members, members_max;
    struct log_limit log_refused[REFUSALS], log_broken, log_swap, log_error;
    char address[80];
};

/* ---- clients come and go ---- */

static void stranger_add(struct client *client)
{
    struct server *server = client->server;

    TAILQ_INSERT_TAIL(&server->strangers, client, link);
    server->n_strangers_of[client->network]++;
    server->n_strangers++;
}

static void stranger_remove(struct client *client)
{
    struct server *server = client->server;

    TAILQ_REMOVE(&server->strangers, client, link);
    server->n_strangers_of[client->network]--;
    server->n_strangers--;
}

static void client_drop(struct client *client)
{
    struct server *server = client->server;

    if (client->member) {
        TAILQ_REMOVE(&server->members, client, link);
        server->n_clients[client->host]--;
        server->n_members--;
    } else {
        stranger_remove(client);
    }
    channel_close(client->channel);
    free(client);
}

static void client_refuse(struct client *client, enum refusal kind, const char *why)
{
    log_limited(&client->server->log_refused[kind], LOG_WARNING, "refused %s: %s", client->address,
                why);
    client_drop(client);
}

static void set_late_timer(struct server *server)
{
    struct client *oldest = TAILQ_FIRST(&server->strangers);

    if (!oldest)
        return;
    /* Neither can fail for a source that exists. */
    (void)sd_event_source_set_time(server->late_source,
                                   (oldest->since_ns + HELLO_MAX_NS) / 1000 + 1);
    (void)sd_event_source_set_enabled(server->late_source, SD_EVENT_ONESHOT);
}

static int on_late(sd_event_source *source, uint64_t usec, void *user)
{
    struct server *server = user;
    struct client *oldest;

    while ((oldest = TAILQ_FIRST(&server->strangers)) != NULL &&
           clock_now_ns() - oldest->since_ns >= HELLO_MAX_NS)
        client_refuse(oldest, REFUSED_LATE, "no proper hello within 5 s");
    set_late_timer(server);
    return 0;
}

/* Makes room among the strangers: where most of them come from, the oldest goes. */
static void drop_one_stranger(struct server *server)
{
    struct client *victim;
    int most = 0;

    for (int i = 1; i < NETWORKS; i++) {
        if (server->n_strangers_of[i] > server->n_strangers_of[most])
            most = i;
    }
    TAILQ_FOREACH(victim, &server->strangers, link)
    {
        if (victim->network == most)
            break;
    }
    client_refuse(victim, REFUSED_CROWD, "too many who have said no hello yet");
}

/* A host's connection is one too many: of its own, or, with NULL, of all. */
static void drop_one_member(struct server *server, const uint32_t *host)
{
    struct client *client;

    TAILQ_FOREACH(client, &server->members, link)
    {
        if (!host || client->host == *host) {
            client_drop(client);
            return;
        }
    }
}

/* The hello was accepted. */
static void client_admit(struct client *client, uint32_t host)
{
    struct server *server = client->server;

    if (server->n_clients[host] == SERVER_HOST_CLIENTS_MAX)
        drop_one_member(server, &host);
    if (server->n_members == server->members_max)
        drop_one_member(server, NULL);
    stranger_remove(client);
    client->member = true;
    client->host = host;
    TAILQ_INSERT_TAIL(&server->members, client, link);
    server->n_clients[host]++;
    server->n_members++;
}

/* ---- what they say ---- */

static bool on_key(void *user, const struct public_key *theirs)
{
    struct client *client = user;

    client->key = *theirs;
    client->unknown = !hosts_find(client->server->hosts, theirs);
    return !client->unknown;
}

static void on_hello(void *user, const struct wire_hello *hello)
{
    struct client *client = user;
    struct server *server = client->server;
    const struct host *host = hosts_find(server->hosts, &client->key); /* may be forbidden by now */
    enum refusal kind = REFUSED_HELLO;
    uint8_t status = WIRE_OK;
    struct wire_hello answer;
    const char *why = "";

    if (hello->channel != WIRE_CHANNEL_ARBITER) {
        status = WIRE_REFUSED_INTERNAL;
        why = "this is a witness, not a host";
    } else if (!host || strcmp(host->name, hello->from) != 0) {
        kind = REFUSED_NAME;
        status = WIRE_REFUSED_UNKNOWN_PEER;
        why = "this key is not allowed under that name";
    }
    wire_hello_answer(hello, "witness", status, why, &answer);
    channel_send_hello(client->channel, &answer);
    if (answer.status != WIRE_OK)
        client_refuse(client, kind, why[0] ? why : "no common version of the protocol");
    else
        client_admit(client, (uint32_t)(host - server->hosts->host));
}

static void log_reply(struct server *server, const char *host,
                      const struct wire_arb_request *request, const struct wire_arb_reply *reply,
                      const struct err *err)
{
    const struct arb_record *record = &reply->current;

    if (reply->status == WIRE_ARB_ERROR || reply->status == WIRE_ARB_REFUSED)
        log_limited(&server->log_error, LOG_ERR, "%s asked: %s", host, err->text);
    else if (request->op == WIRE_ARB_CAS)
        log_limited(&server->log_swap, LOG_INFO,
                    "%s: %s %s: term %llu, %s, owner \"%s\", standby \"%s\"", request->vm, host,
                    reply->status == WIRE_ARB_DONE ? "swapped" : "came too late for a swap",
                    (unsigned long long)record->term,
                    record->mode == ARB_PAIRED ? "paired" : "solo", record->owner, record->standby);
}

/* Fills in the answer to a message. 0; or -errno: there is none. */
static int answer_message(struct server *server, const struct host *host,
                          const struct wire_msg *msg, struct wire_msg *answer, struct err *err)
{
    const struct store_asker asker = {.group = host->group, .host = host->name};
    int r;

    switch (msg->type) {
    case WIRE_ARB_REQUEST:
        answer->type = WIRE_ARB_REPLY;
        r = store_apply(server->store, &asker, &msg->u.arb_request, &answer->u.arb_reply, err);
        if (r == 0)
            log_reply(server, host->name, &msg->u.arb_request, &answer->u.arb_reply, err);
        return r;
    case WIRE_ARB_LIST:
        answer->type = WIRE_ARB_REGISTERS;
        return store_list(server->store, host->group, msg->u.arb_list.after,
                          &answer->u.arb_registers, err);
    default:
        return err_set(err, -EPROTO, "that is not for a host to say");
    }
}

static void on_message(void *user, const struct wire_msg *msg)
{
    struct client *client = user;
    struct server *server = client->server;
    struct wire_msg answer = {.epoch = msg->epoch};
    struct err err = {""};
    int r;

    if (server->failed || !client->member) {
        client_drop(client);
        return;
    }
    TAILQ_REMOVE(&server->members, client, link);
    TAILQ_INSERT_TAIL(&server->members, client, link);
    fault_point("witness.request");
    r = answer_message(server, &server->hosts->host[client->host], msg, &answer, &err);
    if (r == 0) {
        fault_point("witness.answer");
        channel_send(client->channel, &answer);
        fault_point("witness.answered");
        return;
    }
    if (r == -ENOTRECOVERABLE) {
        log_error("giving up, so that nothing wrong is answered: %s", err.text);
        server->failed = true;
        (void)sd_event_exit(server->event, EXIT_FAILURE); /* fails only when already exiting */
    } else {
        log_limited(&server->log_error, LOG_ERR, "%s asked: %s", client->address, err.text);
    }
    client_drop(client);
}

static void on_broken(void *user, const char *why)
{
    struct client *client = user;
    struct server *server = client->server;

    if (!client->member) {
        client_refuse(client, client->unknown ? REFUSED_KEY : REFUSED_TLS,
                      client->unknown ? "its key is not allowed" : why);
        return;
    }
    log_limited(&server->log_broken, LOG_INFO, "connection of %s ended: %s",
                server->hosts->host[client->host].name, why);
    client_drop(client);
}

void server_change_hosts(struct server *server, struct hosts *hosts)
{
    struct hosts *old = server->hosts;
    struct client *client, *next;

    server->hosts = hosts;
    for (client = TAILQ_FIRST(&server->members); client; client = next) {
        const struct host *was = &old->host[client->host];
        const struct host *is = hosts_find(hosts, &client->key);

        next = TAILQ_NEXT(client, link);
        if (!is || strcmp(is->group, was->group) != 0 || strcmp(is->name, was->name) != 0) {
            log_info("closing a connection of %s, whose key is not allowed any more", was->name);
            client_drop(client);
        } else {
            client->host = (uint32_t)(is - hosts->host);
        }
    }
    memset(server->n_clients, 0, sizeof(server->n_clients));
    TAILQ_FOREACH(client, &server->members, link)
    server->n_clients[client->host]++;
    free(old);
}

/* ---- they connect ---- */

static int on_pause_over(sd_event_source *source, uint64_t usec, void *user)
{
    struct server *server = user;

    return sd_event_source_set_enabled(server->listen_source, SD_EVENT_ON);
}

/* A number for the network that a connection comes from: of IPv6, one owner has at least 64 bits.
 * Others may have the same number, but nobody knows who. */
static uint8_t network_of(const struct server *server, const struct sockaddr_storage *from)
{
    const struct in6_addr *ip6 = &((const struct sockaddr_in6 *)from)->sin6_addr;
    const struct in_addr *ip4 = &((const struct sockaddr_in *)from)->sin_addr;

    if (from->ss_family == AF_INET)
        return XXH64(ip4, sizeof(*ip4), server->network_seed) % NETWORKS;
    return XXH64(ip6, IN6_IS_ADDR_V4MAPPED(ip6) ? 16 : 8, server->network_seed) % NETWORKS;
}

static void format_address(const struct sockaddr_storage *from, socklen_t n, char out[static 80])
{
    char host[64], port[8];

    if (getnameinfo((const struct sockaddr *)from, n, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        (void)snprintf(out, 80, "?");
    else
        (void)snprintf(out, 80, from->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

static void stranger_new(struct server *server, int fd, const struct sockaddr_storage *from,
                         socklen_t n_from)
{
    static const struct channel_callbacks callbacks = {
        .on_hello = on_hello, .on_message = on_message, .on_broken = on_broken};
    struct client *client = calloc(1, sizeof(*client));
    const struct tls_params params = {
        .role = TLS_SERVER, .purpose = TLS_ARBITER, .trusted = on_key, .user = client};
    struct transport *transport;

    if (!client) {
        close(fd);
        return;
    }
    transport = transport_tls_new(server->tls, fd, &params);
    if (transport)
        keep_alive(transport->ops->fd(transport), KEEP_ALIVE_IDLE_S, KEEP_ALIVE_INTERVAL_S);
    if (!transport ||
        channel_new(server->event, transport, WIRE_CHANNEL_ARBITER, SD_EVENT_PRIORITY_NORMAL,
                    &callbacks, client, &client->channel) < 0) {
        free(client);
        return;
    }
    client->server = server;
    client->since_ns = clock_now_ns();
    client->network = network_of(server, from);
    format_address(from, n_from, client->address);
    stranger_add(client);
    if (server->n_strangers > SERVER_STRANGERS_MAX)
        drop_one_stranger(server);
    set_late_timer(server);
}

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct server *server = user;
    struct sockaddr_storage from = {0};
    socklen_t n_from = sizeof(from);
    int conn = FAULTY("witness.accept",
                      accept4(fd, (struct sockaddr *)&from, &n_from, SOCK_CLOEXEC | SOCK_NONBLOCK));

    if (conn < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
        log_warning("accept: %s", strerror(errno));
        (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
        sd_event_source_disable_unref(take_ptr(server->pause_source));
        return sd_event_add_time_relative(server->event, &server->pause_source, CLOCK_MONOTONIC,
                                          ACCEPT_PAUSE_US, 0, on_pause_over, server);
    }
    if (conn >= 0) /* else gone again */
        stranger_new(server, conn, &from, n_from);
    return 0;
}

static int server_listen(struct server *server, const char *address, struct err *err)
{
    struct sockaddr_storage bound;
    socklen_t n_bound = sizeof(bound);
    int r = transport_tcp_listen(address, &server->listen_fd, err);

    if (r < 0)
        return r;
    if (getsockname(server->listen_fd, (struct sockaddr *)&bound, &n_bound) < 0)
        return err_sys(err, -errno, "%s", address);
    format_address(&bound, n_bound, server->address);
    r = sd_event_add_io(server->event, &server->listen_source, server->listen_fd, EPOLLIN,
                        on_connection, server);
    if (r >= 0)
        r = sd_event_add_time(server->event, &server->late_source, CLOCK_MONOTONIC, 0, 0, on_late,
                              server);
    if (r >= 0)
        r = sd_event_source_set_enabled(server->late_source, SD_EVENT_OFF);
    return r < 0 ? err_sys(err, r, "event loop") : 0;
}

/* How many connections of hosts the process's descriptors allow. */
static uint32_t clients_max(void)
{
    struct rlimit limit;
    const rlim_t others = SERVER_STRANGERS_MAX + OTHER_FILES;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur <= others)
        return 1;
    limit.rlim_cur -= others;
    return limit.rlim_cur < SERVER_CLIENTS_MAX ? (uint32_t)limit.rlim_cur : SERVER_CLIENTS_MAX;
}

int server_new(sd_event *event, const char *address, struct store *store, struct tls_context *tls,
               struct hosts *hosts, struct server **ret_server, struct err *err)
{
    struct server *server = calloc(1, sizeof(*server));
    int r;

    if (!server) {
        free(hosts);
        return err_sys(err, -ENOMEM, "%s", address);
    }
    server->event = event;
    server->store = store;
    server->tls = tls;
    server->hosts = hosts;
    server->listen_fd = -1;
    server->members_max = clients_max();
    (void)getrandom(&server->network_seed, sizeof(server->network_seed), 0); /* cannot fail now */
    for (int i = 0; i < REFUSALS; i++)
        server->log_refused[i].period_ms = REFUSAL_LOG_MS;
    TAILQ_INIT(&server->strangers);
    TAILQ_INIT(&server->members);
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
    struct client *client;

    if (!server)
        return;
    while ((client = TAILQ_FIRST(&server->members)) != NULL)
        client_drop(client);
    while ((client = TAILQ_FIRST(&server->strangers)) != NULL)
        client_drop(client);
    sd_event_source_disable_unref(server->listen_source);
    sd_event_source_disable_unref(server->pause_source);
    sd_event_source_disable_unref(server->late_source);
    if (server->listen_fd >= 0)
        close(server->listen_fd);
    free(server->hosts);
    free(server);
}
