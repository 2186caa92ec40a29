/* SPDX-License-Identifier: Apache-2.0 */
#include "host_peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "unit.h"

int peer_connect(const struct host_run *h)
{
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                               .sin_port = htons((uint16_t)h->port)};
    struct timeval limit = {.tv_sec = 10};
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    assert_int_equal(connect(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return sock;
}

static bool is_host(void *user, const struct public_key *theirs)
{
    return !user || public_key_equal(user, theirs);
}

struct transport *peer_tls(int fd, enum tls_purpose purpose, const struct identity *who,
                           const struct public_key *host)
{
    struct tls_params params = {TLS_CLIENT, purpose, is_host, (void *)(uintptr_t)host};
    struct tls_context *context;
    struct transport *t;
    struct err err;

    assert_int_equal(tls_context_new(who, &context, &err), 0);
    t = transport_tls_new(context, fd, &params);
    assert_non_null(t);
    tls_context_free(context);
    return t;
}

bool peer_say(struct transport *t, const struct hello_order *o)
{
    struct wire_hello hello = {.version_min = o->version ? o->version : WIRE_VERSION_MIN,
                               .version_max = o->version ? o->version : WIRE_VERSION_MAX,
                               .channel = o->channel ? o->channel : WIRE_CHANNEL_CONTROL,
                               .resume = o->resume};
    uint8_t raw[WIRE_HELLO_BYTES];
    struct iovec iov = {raw, sizeof(raw)};

    if (hello.channel != WIRE_CHANNEL_ARBITER)
        hello.session[0] = 1;
    (void)snprintf(hello.vm, sizeof(hello.vm), "%s", o->vm);
    (void)snprintf(hello.from, sizeof(hello.from), "%s", o->from ? o->from : "hosta");
    wire_hello_encode(&hello, raw);
    return transport_write_all(t, &iov, 1) == 0;
}

int peer_hear(struct transport *t, char text[64])
{
    uint8_t raw[WIRE_HELLO_BYTES];
    struct wire_hello answer;
    int r = transport_read_all(t, raw, sizeof(raw));

    if (r < 0) {
        assert_int_not_equal(r, -EAGAIN); /* the time is up */
        return -1;
    }
    assert_int_equal(wire_hello_decode(raw, &answer, NULL), 0);
    assert_string_equal(answer.from, "hostb");
    if (text)
        memcpy(text, answer.text, sizeof(answer.text));
    return answer.status;
}

void peer_close(struct transport *t)
{
    if (t)
        t->ops->close(t);
}

bool peer_ended(struct transport *t, int ms)
{
    struct pollfd p = {.fd = t->ops->fd(t), .events = POLLRDHUP};

    return poll(&p, 1, ms) == 1;
}

int peer_knock(const struct host_run *h, const struct identity *who, struct hello_order order,
               char text[64], struct transport **ret_room)
{
    struct transport *t = peer_tls(peer_connect(h), TLS_DOOR, who, NULL);
    int status = peer_say(t, &order) ? peer_hear(t, text) : -1;

    if (status == WIRE_OK) {
        int fd = tls_detach(t);

        assert_true(fd >= 0);
        t = peer_tls(fd, TLS_ROOM, who, NULL);
        status = peer_say(t, &order) ? peer_hear(t, text) : -1;
    } else if (status > 0) {
        assert_true(peer_ended(t, 10000));
    }
    if (ret_room && status == WIRE_OK)
        *ret_room = t;
    else
        peer_close(t);
    return status;
}
