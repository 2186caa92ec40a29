/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "host/host.h"
#include "io/transport.h"
#include "wire/msg.h"

/* Connections of peers. Each opens with a hello (docs/protocol.md), which says for which VM it is.
 * understudyd only looks at it (MSG_PEEK) and passes the connection on, so that the VM's process
 * reads it from its first byte. A connection that is refused gets the answer from here.
 *
 *   HELLO      waits for the whole hello                       exits: all of the below, closed
 *   STARTING   the VM's process is not ready yet               exits: ADOPTING, REFUSED, closed
 *   ADOPTING   offered to the VM's process, answer outstanding exits: closed (theirs), REFUSED
 *   REFUSED    answered; hello and what follows is drained     exits: closed
 *              until the peer closes: closing with unread bytes
 *              would reset the connection and lose the answer
 *
 * Every connection is closed KNOCK_TIMEOUT after it came, whatever its state, unless it was handed
 * over. When too many wait, the oldest one goes: whoever fills the table does not keep peers out.
 */

#define KNOCK_TIMEOUT_US UINT64_C(5000000)
#define ADOPT_TIMEOUT_NS UINT64_C(4000000000)

enum { DRAIN_MAX = 64 * 1024 }; /* bytes taken from a refused peer */

enum knock_state { KNOCK_HELLO = 1, KNOCK_STARTING, KNOCK_ADOPTING, KNOCK_REFUSED };

struct knock {
    struct knock *prev, *next; /* newest first */
    struct peers *peers;
    enum knock_state state;
    int fd;
    sd_event_source *io, *timer;
    struct control_call *adopt;
    struct wire_hello hello; /* valid from STARTING on */
    char address[64];
    size_t drained;
};

struct peers {
    struct host *host;
    int fd;
    sd_event_source *accepts;
    struct knock *newest, *oldest;
    unsigned n;
    struct log_limit noise;
};

static void knock_free(struct knock *k)
{
    struct peers *p = k->peers;

    *(k->prev ? &k->prev->next : &p->newest) = k->next;
    *(k->next ? &k->next->prev : &p->oldest) = k->prev;
    p->n--;
    sd_event_source_disable_unref(k->io);
    sd_event_source_disable_unref(k->timer);
    control_call_cancel(k->adopt);
    close(k->fd);
    free(k);
}

/* Logs something that a peer can bring about. */
static void noise(struct knock *k, const char *what)
{
    unsigned long long suppressed;

    if (log_limit_pass(&k->peers->noise, &suppressed))
        log_warning("connection from %s: %s (%llu such lines left out)", k->address, what,
                    suppressed);
}

/* Answers the hello with a refusal. */
static void refuse(struct knock *k, enum wire_status status, const char *text)
{
    uint8_t raw[WIRE_HELLO_BYTES];
    struct wire_hello answer;

    noise(k, text);
    wire_hello_answer(&k->hello, k->peers->host->config.name, (uint8_t)status, text, &answer);
    wire_hello_encode(&answer, raw);
    if (send(k->fd, raw, sizeof(raw), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(raw) ||
        shutdown(k->fd, SHUT_WR) < 0 || sd_event_source_set_io_events(k->io, EPOLLIN) < 0) {
        knock_free(k);
        return;
    }
    k->state = KNOCK_REFUSED;
}

/* The VM's process has answered: it has the connection, or wants it refused. */
static void on_adopted(void *user, const json_t *answer, const char *why)
{
    struct knock *k = user;
    const char *error = json_string_value(json_object_get(answer, "error"));

    k->adopt = NULL;
    fault_point("host.adopted");
    if (answer && json_is_true(json_object_get(answer, "ok")))
        knock_free(k); /* closes our copy of the descriptor */
    else if (answer)
        refuse(k, WIRE_REFUSED_BUSY, error ? error : "refused without a reason");
    else
        refuse(k, WIRE_REFUSED_INTERNAL, why);
}

static const struct control_callbacks adopt_callbacks = {.on_answer = on_adopted};

/* Readies the connection for its new owner: low-water mark as usual. */
static void knock_release(struct knock *k)
{
    int low = 1;

    (void)sd_event_source_set_io_events(k->io, 0);
    (void)setsockopt(k->fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low)); /* 1 always fits */
}

static void knock_adopt(struct knock *k)
{
    struct host *host = k->peers->host;
    json_t *request = json_pack("{s:s}", "command", "adopt");
    char path[RECORD_PATH_MAX];
    struct err err = {"out of memory"};

    knock_release(k);
    fault_point("host.adopt");
    k->state = KNOCK_ADOPTING;
    vm_socket_path(&host->config, k->hello.vm, path);
    if (!request || control_call_new(host->event, path, request, k->fd, ADOPT_TIMEOUT_NS,
                                     &adopt_callbacks, k, &k->adopt, &err) < 0)
        refuse(k, WIRE_REFUSED_INTERNAL, err.text);
    json_decref(request);
}

/* A peer wants this host to back a VM. */
static void knock_back(struct knock *k)
{
    struct vm_order order = {.name = k->hello.vm, .conn_fd = k->fd};
    struct err err;

    knock_release(k);
    if (vm_start(k->peers->host, &order, &err) < 0)
        refuse(k, WIRE_REFUSED_INTERNAL, err.text);
    else
        knock_free(k);
}

/* Finds the owner of a connection. */
static void knock_route(struct knock *k)
{
    struct host *host = k->peers->host;
    const struct vm *vm = vm_get(host, k->hello.vm);
    char text[64];

    if (vm && vm->state == VM_STARTING) {
        k->state = KNOCK_STARTING;
        (void)sd_event_source_set_io_events(k->io, 0);
    } else if (vm) {
        knock_adopt(k);
    } else if (k->hello.channel == WIRE_CHANNEL_CONTROL && !k->hello.resume) {
        knock_back(k);
    } else {
        (void)snprintf(text, sizeof(text), "%.40s has no such session", host->config.name);
        refuse(k, WIRE_REFUSED_SESSION, text);
    }
}

/* The whole hello is there. */
static void knock_hello(struct knock *k, const uint8_t raw[static WIRE_HELLO_BYTES])
{
    const struct host_config *config = &k->peers->host->config;
    struct err err;

    fault_point("host.hello");
    if (wire_hello_decode(raw, &k->hello, &err) < 0) {
        noise(k, err.text);
        knock_free(k);
    } else if (wire_version_choose(&k->hello) == 0) {
        refuse(k, WIRE_REFUSED_VERSION, "no common version of the protocol");
    } else if (!host_config_peer(config, k->hello.from)) {
        refuse(k, WIRE_REFUSED_UNKNOWN_PEER, "you are not among my peers");
    } else if (k->hello.channel == WIRE_CHANNEL_ARBITER || !k->hello.vm[0]) {
        refuse(k, WIRE_REFUSED_SESSION, "this is understudyd, not an arbiter");
    } else {
        knock_route(k);
    }
}

static void knock_drain(struct knock *k)
{
    char scrap[4096];
    ssize_t n = recv(k->fd, scrap, sizeof(scrap), MSG_DONTWAIT);

    k->drained += n > 0 ? (size_t)n : 0;
    if (n == 0 || (n < 0 && errno != EAGAIN) || k->drained > DRAIN_MAX)
        knock_free(k);
}

static int on_knock_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct knock *k = user;
    uint8_t raw[WIRE_HELLO_BYTES];
    ssize_t n;

    if (k->state == KNOCK_REFUSED) {
        knock_drain(k);
        return 0;
    }
    if (k->state != KNOCK_HELLO) { /* EPOLLHUP or EPOLLERR only */
        knock_free(k);
        return 0;
    }
    n = recv(fd, raw, sizeof(raw), MSG_PEEK | MSG_DONTWAIT);
    if (n == WIRE_HELLO_BYTES)
        knock_hello(k, raw);
    else if (n >= 0 || errno != EAGAIN)
        knock_free(k); /* ended before its hello was whole */
    return 0;
}

static int on_knock_timeout(sd_event_source *source, uint64_t usec, void *user)
{
    struct knock *k = user;

    if (k->state == KNOCK_HELLO)
        noise(k, "no hello in time");
    knock_free(k);
    return 0;
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

/* Adds a connection; fd is taken on success. */
static int knock_new(struct peers *p, int fd, const struct sockaddr_storage *addr)
{
    struct knock *k = FAULTY_ALLOC("host.knock-room", calloc(1, sizeof(*k)));
    int low = WIRE_HELLO_BYTES; /* wake up for the whole hello, not for each of its bytes */
    int r;

    if (!k)
        return -ENOMEM;
    *k = (struct knock){.peers = p, .state = KNOCK_HELLO, .fd = fd, .next = p->newest};
    describe(addr, k->address);
    r = setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low)) < 0 ? -errno : 0;
    if (r == 0)
        r = sd_event_add_io(p->host->event, &k->io, fd, EPOLLIN, on_knock_io, k);
    if (r >= 0)
        r = sd_event_add_time_relative(p->host->event, &k->timer, CLOCK_MONOTONIC, KNOCK_TIMEOUT_US,
                                       1000, on_knock_timeout, k);
    if (r < 0) {
        sd_event_source_disable_unref(k->io);
        free(k);
        return r;
    }
    *(p->newest ? &p->newest->prev : &p->oldest) = k;
    p->newest = k;
    p->n++;
    return 0;
}

static int on_accept(sd_event_source *source, int listener, uint32_t events, void *user)
{
    struct peers *p = user;
    struct sockaddr_storage addr = {0};
    socklen_t n = sizeof(addr);
    CLEANUP_FD int fd = FAULTY("host.accept", accept4(listener, (struct sockaddr *)&addr, &n,
                                                      SOCK_CLOEXEC | SOCK_NONBLOCK));

    if (fd < 0)
        return 0;
    if (p->n == HOST_KNOCKS_MAX)
        knock_free(p->oldest);
    if (knock_new(p, fd, &addr) == 0)
        (void)take_fd(&fd);
    return 0;
}

void peers_vm_changed(struct host *host, const char *vm)
{
    if (!host->peers)
        return;
    for (struct knock *k = host->peers->newest, *next; k; k = next) {
        next = k->next;
        if (k->state == KNOCK_STARTING && strcmp(k->hello.vm, vm) == 0)
            knock_route(k);
    }
}

int peers_open(struct host *host, struct err *err)
{
    CLEANUP_FREE struct peers *p = calloc(1, sizeof(*p));
    int r;

    if (!p)
        return err_set(err, -ENOMEM, "out of memory");
    p->host = host;
    r = transport_tcp_listen(host->config.listen, &p->fd, err);
    if (r < 0)
        return r;
    r = sd_event_add_io(host->event, &p->accepts, p->fd, EPOLLIN, on_accept, p);
    if (r < 0) {
        close(p->fd);
        return err_sys(err, r, "listen %s", host->config.listen);
    }
    host->peers = take_ptr(p);
    return 0;
}

void peers_close(struct host *host)
{
    struct peers *p = take_ptr(host->peers);

    if (!p)
        return;
    while (p->newest)
        knock_free(p->newest);
    sd_event_source_disable_unref(p->accepts);
    close(p->fd);
    free(p);
}
