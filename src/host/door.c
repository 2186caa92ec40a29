/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "host/host.h"
#include "wire/msg.h"

/* The door: connections of peers until the process of a VM has them (docs/security.md, "Links").
 * TLS comes first, which shows whose key the other side has; in it one hello (docs/protocol.md),
 * which says for which VM the connection is. Then the socket goes to the VM's process, and once
 * that has it, the hello is answered: come in. Both sides drop this TLS without a word, and the
 * peer makes it anew with the process, on the same socket. The process writes nothing before the
 * peer does, and the peer nothing before our answer, so nobody's bytes meet.
 *
 *   HELLO      TLS handshake, then the whole hello             exits: all of the below, closed
 *   STARTING   the VM's process is not ready yet               exits: ADOPTING, REFUSED, closed
 *   ADOPTING   offered to the VM's process, answer outstanding exits: closed (theirs), REFUSED
 *   REFUSED    answered; what still comes is drained until the exits: closed
 *              peer closes: closing with unread bytes would
 *              reset the connection and lose the answer
 *
 * Every connection is closed KNOCK_TIMEOUT after it came, whatever its state, unless it was handed
 * over. When too many wait, the oldest one goes of those that have not shown a key of a peer yet:
 * whoever fills the table does not keep peers out. */

#define KNOCK_TIMEOUT_US UINT64_C(5000000)
#define ADOPT_TIMEOUT_NS UINT64_C(4000000000)

enum {
    DRAIN_MAX = 64 * 1024, /* bytes taken from a refused peer */
    NOISE_PERIOD_MS = 60000,
};

enum knock_state { KNOCK_HELLO = 1, KNOCK_STARTING, KNOCK_ADOPTING, KNOCK_REFUSED };

/* What an outsider can have us log, each kind once in a while. */
enum noise {
    NOISE_KEY,     /* showed no key, or one that is no peer's */
    NOISE_TLS,     /* speaks something else */
    NOISE_SILENCE, /* said too little in time */
    NOISE_HELLO,   /* a peer's hello is wrong */
    NOISE_NAME,    /* a peer says that it is another one */
    NOISE_REFUSED, /* a peer is not let in */
    N_NOISES,
};

struct knock {
    struct knock *prev, *next; /* newest first */
    struct door *door;
    enum knock_state state;
    struct transport *t;
    sd_event_source *io, *timer;
    struct control_call *adopt;
    struct public_key shown; /* none: it has not got that far */
    uint8_t raw[WIRE_HELLO_BYTES];
    size_t n_raw;
    struct wire_hello hello; /* valid from STARTING on */
    char address[64];
    size_t drained;
};

struct door {
    struct host *host;
    int fd;
    sd_event_source *accepts;
    struct knock *newest, *oldest;
    unsigned n;
    struct log_limit noises[N_NOISES];
    struct {
        struct public_key key;
        time_t when;
    } seen[HOST_PEERS_MAX * HOST_PEER_KEYS]; /* as many as there can be keys */
};

static void knock_free(struct knock *k)
{
    struct door *d = k->door;

    *(k->prev ? &k->prev->next : &d->newest) = k->next;
    *(k->next ? &k->next->prev : &d->oldest) = k->prev;
    d->n--;
    sd_event_source_disable_unref(k->io);
    sd_event_source_disable_unref(k->timer);
    control_call_cancel(k->adopt);
    if (k->t)
        k->t->ops->close(k->t);
    free(k);
}

/* Logs something that the other side can bring about. */
static void noise(struct knock *k, enum noise kind, const char *fmt, ...) US_PRINTF(3, 4);

static void noise(struct knock *k, enum noise kind, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    log_limited(&k->door->noises[kind], LOG_WARNING, "connection from %s: %s", k->address, text);
}

/* Answers the hello. False: the connection broke. */
static bool knock_answer(struct knock *k, enum wire_status status, const char *text)
{
    uint8_t raw[WIRE_HELLO_BYTES];
    struct iovec iov = {raw, sizeof(raw)};
    struct wire_hello answer;

    wire_hello_answer(&k->hello, k->door->host->config.name, (uint8_t)status, text, &answer);
    wire_hello_encode(&answer, raw);
    return k->t->ops->writev(k->t, &iov, 1) == sizeof(raw);
}

static void refuse(struct knock *k, enum wire_status status, const char *text)
{
    int fd = k->t->ops->fd(k->t);

    noise(k, NOISE_REFUSED, "%s: %s", k->hello.from, text);
    if (!knock_answer(k, status, text) || shutdown(fd, SHUT_WR) < 0 ||
        sd_event_source_set_io_events(k->io, EPOLLIN) < 0) {
        knock_free(k);
        return;
    }
    k->state = KNOCK_REFUSED;
}

/* The VM's process has the socket: lets the peer in, and drops our copy. */
static void knock_welcome(struct knock *k)
{
    int fd = -1;

    if (knock_answer(k, WIRE_OK, ""))
        fd = tls_detach(k->t);
    if (fd >= 0) {
        k->t = NULL;
        k->io = sd_event_source_disable_unref(k->io); /* before its descriptor is closed */
        close(fd);
    }
    knock_free(k);
}

/* The VM's process has answered: it has the connection, or wants it refused. */
static void on_adopted(void *user, const json_t *answer, const char *why)
{
    struct knock *k = user;
    const char *error = json_string_value(json_object_get(answer, "error"));

    k->adopt = NULL;
    fault_point("host.adopted");
    if (answer && json_is_true(json_object_get(answer, "ok")))
        knock_welcome(k);
    else if (answer)
        refuse(k, WIRE_REFUSED_BUSY, error ? error : "refused without a reason");
    else
        refuse(k, WIRE_REFUSED_INTERNAL, why);
}

static const struct control_callbacks adopt_callbacks = {.on_answer = on_adopted};

static void knock_adopt(struct knock *k)
{
    struct host *host = k->door->host;
    json_t *request = json_pack("{s:s}", "command", "adopt");
    char path[RECORD_PATH_MAX];
    struct err err = {"out of memory"};

    fault_point("host.adopt");
    k->state = KNOCK_ADOPTING;
    vm_socket_path(&host->config, k->hello.vm, path);
    if (!request || control_call_new(host->event, path, request, k->t->ops->fd(k->t),
                                     ADOPT_TIMEOUT_NS, &adopt_callbacks, k, &k->adopt, &err) < 0)
        refuse(k, WIRE_REFUSED_INTERNAL, err.text);
    json_decref(request);
}

/* A peer wants this host to back a VM. */
static void knock_back(struct knock *k)
{
    struct vm_order order = {.name = k->hello.vm, .conn_fd = k->t->ops->fd(k->t)};
    struct err err;

    if (vm_start(k->door->host, &order, &err) < 0)
        refuse(k, WIRE_REFUSED_INTERNAL, err.text);
    else
        knock_welcome(k);
}

/* Finds the owner of a connection. From here on its peer has nothing to say. */
static void knock_route(struct knock *k)
{
    struct host *host = k->door->host;
    const struct vm *vm = vm_get(host, k->hello.vm);
    char text[64];

    (void)sd_event_source_set_io_events(k->io, 0);
    if (vm && vm->state == VM_STARTING) {
        k->state = KNOCK_STARTING;
    } else if (vm) {
        knock_adopt(k);
    } else if (k->hello.channel == WIRE_CHANNEL_CONTROL && !k->hello.resume) {
        knock_back(k);
    } else {
        (void)snprintf(text, sizeof(text), "%.40s has no such session", host->config.name);
        refuse(k, WIRE_REFUSED_SESSION, text);
    }
}

/* Notes that a peer has used this key. */
static void note_seen(struct door *d, const struct public_key *key)
{
    const struct host_config *config = &d->host->config;
    size_t i = 0;

    /* There are as many places as keys, so one is free or belongs to a key that is gone. */
    while (!public_key_equal(&d->seen[i].key, key) &&
           host_config_peer_by_key(config, &d->seen[i].key))
        i++;
    d->seen[i].key = *key;
    d->seen[i].when = time(NULL);
}

/* The whole hello is there. */
static void knock_hello(struct knock *k)
{
    const struct public_key *key = tls_peer_key(k->t);
    const struct host_peer *peer =
        key ? host_config_peer_by_key(&k->door->host->config, key) : NULL;
    struct err err;

    fault_point("host.hello");
    if (!peer || wire_hello_decode(k->raw, &k->hello, &err) < 0) {
        noise(k, NOISE_HELLO, "%s", peer ? err.text : "its key is no peer's any more");
        knock_free(k);
        return;
    }
    note_seen(k->door, key);
    if (wire_version_choose(&k->hello) == 0) {
        refuse(k, WIRE_REFUSED_VERSION, "no common version of the protocol");
    } else if (strcmp(k->hello.from, peer->name) != 0) {
        noise(k, NOISE_NAME, "says that it is %s, but has the key of %s", k->hello.from,
              peer->name);
        refuse(k, WIRE_REFUSED_UNKNOWN_PEER, "your key is known here by another name");
    } else if (k->hello.channel == WIRE_CHANNEL_ARBITER || !k->hello.vm[0]) {
        refuse(k, WIRE_REFUSED_SESSION, "this is understudyd, not an arbiter");
    } else {
        knock_route(k);
    }
}

/* TLS could not be made, or broke, or ended. */
static void knock_broke(struct knock *k, int r)
{
    char key[PUBLIC_KEY_TEXT];

    public_key_format(&k->shown, key);
    if (r == -EACCES && !public_key_none(&k->shown))
        noise(k, NOISE_KEY, "its key is no peer's: %s", key);
    else if (r == -EACCES)
        noise(k, NOISE_KEY, "it shows no valid key");
    else if (r == -EPROTO)
        noise(k, NOISE_TLS, "it does not speak TLS 1.3 as a peer does");
    else
        noise(k, NOISE_SILENCE, "it ended before its hello: %s", r == 0 ? "closed" : strerror(-r));
    knock_free(k);
}

/* Reads until nothing is there: TLS may hold bytes that the socket does not show any more. */
static void knock_read(struct knock *k)
{
    while (k->n_raw < sizeof(k->raw)) {
        struct iovec iov = {k->raw + k->n_raw, sizeof(k->raw) - k->n_raw};
        ssize_t n = k->t->ops->readv(k->t, &iov, 1);

        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            knock_broke(k, (int)n);
            return;
        }
        k->n_raw += (size_t)n;
    }
    knock_hello(k);
}

static void knock_drain(struct knock *k, int fd)
{
    char scrap[4096];
    ssize_t n = recv(fd, scrap, sizeof(scrap), MSG_DONTWAIT);

    k->drained += n > 0 ? (size_t)n : 0;
    if (n == 0 || (n < 0 && errno != EAGAIN) || k->drained > DRAIN_MAX)
        knock_free(k);
}

static int on_knock_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct knock *k = user;

    if (k->state == KNOCK_HELLO)
        knock_read(k);
    else if (k->state == KNOCK_REFUSED)
        knock_drain(k, fd);
    else /* EPOLLHUP or EPOLLERR only */
        knock_free(k);
    return 0;
}

static int on_knock_timeout(sd_event_source *source, uint64_t usec, void *user)
{
    struct knock *k = user;

    if (k->state == KNOCK_HELLO)
        noise(k, NOISE_SILENCE, "no hello in time");
    knock_free(k);
    return 0;
}

/* Whether whoever is at the door may be there. */
static bool trusted(void *user, const struct public_key *theirs)
{
    struct knock *k = user;

    k->shown = *theirs;
    return host_config_peer_by_key(&k->door->host->config, theirs) != NULL;
}

static void describe(const struct sockaddr_storage *addr, char out[64])
{
    char ip[INET6_ADDRSTRLEN] = "?";

    if (addr->ss_family == AF_INET)
        (void)inet_ntop(AF_INET, &((const struct sockaddr_in *)addr)->sin_addr, ip, sizeof(ip));
    else if (addr->ss_family == AF_INET6)
        (void)inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)addr)->sin6_addr, ip, sizeof(ip));
    (void)snprintf(out, 64, "%s", ip);
}

/* Adds a connection; fd is taken. */
static void knock_new(struct door *d, int fd, const struct sockaddr_storage *addr)
{
    struct knock *k = FAULTY_ALLOC("host.knock-room", calloc(1, sizeof(*k)));
    struct tls_params params = {TLS_SERVER, TLS_DOOR, trusted, k};

    if (!k) {
        close(fd);
        return;
    }
    *k = (struct knock){.door = d, .state = KNOCK_HELLO, .next = d->newest};
    describe(addr, k->address);
    *(d->newest ? &d->newest->prev : &d->oldest) = k;
    d->newest = k;
    d->n++;
    k->t = transport_tls_new(d->host->tls, fd, &params);
    if (!k->t || sd_event_add_io(d->host->event, &k->io, fd, EPOLLIN, on_knock_io, k) < 0 ||
        sd_event_add_time_relative(d->host->event, &k->timer, CLOCK_MONOTONIC, KNOCK_TIMEOUT_US,
                                   1000, on_knock_timeout, k) < 0)
        knock_free(k);
}

/* Makes room for one more connection. */
static void make_room(struct door *d)
{
    struct knock *k = d->oldest;

    while (k && tls_peer_key(k->t))
        k = k->prev;
    knock_free(k ? k : d->oldest);
}

static int on_accept(sd_event_source *source, int listener, uint32_t events, void *user)
{
    struct door *d = user;
    struct sockaddr_storage addr = {0};
    socklen_t n = sizeof(addr);
    int fd = FAULTY("host.accept",
                    accept4(listener, (struct sockaddr *)&addr, &n, SOCK_CLOEXEC | SOCK_NONBLOCK));

    if (fd < 0)
        return 0;
    if (d->n == HOST_KNOCKS_MAX)
        make_room(d);
    knock_new(d, fd, &addr);
    return 0;
}

void door_vm_changed(struct host *host, const char *vm)
{
    if (!host->door)
        return;
    for (struct knock *k = host->door->newest, *next; k; k = next) {
        next = k->next;
        if (k->state == KNOCK_STARTING && strcmp(k->hello.vm, vm) == 0)
            knock_route(k);
    }
}

void door_peers_changed(struct host *host)
{
    if (!host->door)
        return;
    for (struct knock *k = host->door->newest, *next; k; k = next) {
        const struct public_key *key = tls_peer_key(k->t);

        next = k->next;
        if (key && !host_config_peer_by_key(&host->config, key))
            knock_free(k);
    }
}

time_t door_seen(const struct host *host, const struct public_key *key)
{
    const struct door *d = host->door;

    for (size_t i = 0; i < sizeof(d->seen) / sizeof(d->seen[0]); i++) {
        if (public_key_equal(&d->seen[i].key, key))
            return d->seen[i].when;
    }
    return 0;
}

int door_open(struct host *host, struct err *err)
{
    CLEANUP_FREE struct door *d = calloc(1, sizeof(*d));
    int r;

    if (!d)
        return err_set(err, -ENOMEM, "out of memory");
    d->host = host;
    for (size_t i = 0; i < N_NOISES; i++)
        d->noises[i].period_ms = NOISE_PERIOD_MS;
    r = transport_tcp_listen(host->config.listen, &d->fd, err);
    if (r < 0)
        return r;
    r = sd_event_add_io(host->event, &d->accepts, d->fd, EPOLLIN, on_accept, d);
    if (r < 0) {
        close(d->fd);
        return err_sys(err, r, "listen %s", host->config.listen);
    }
    host->door = take_ptr(d);
    return 0;
}

void door_close(struct host *host)
{
    struct door *d = take_ptr(host->door);

    if (!d)
        return;
    while (d->newest)
        knock_free(d->newest);
    sd_event_source_disable_unref(d->accepts);
    close(d->fd);
    free(d);
}
