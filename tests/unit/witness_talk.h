/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_WITNESS_TALK_H
#define US_TESTS_WITNESS_TALK_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "io/tls.h"
#include "plain_transport.h"
#include "unit.h"
#include "wire/msg.h"
#include "witness_run.h"

/* Conversations with a witness, byte by byte: blocking, bounded in time. */

enum { TALK_S = 20 };

static inline bool talk_trusts(void *user, const struct public_key *theirs)
{
    const struct witness_run *w = user;

    return public_key_equal(&w->config.key, theirs);
}

/* A connected socket, blocking. */
static inline int talk_socket(const struct witness_run *w)
{
    struct timeval bound = {.tv_sec = TALK_S};
    struct pollfd p = {.events = POLLOUT};
    int fd;

    assert_int_equal(transport_tcp_connect(w->config.address, &fd, NULL), 0);
    p.fd = fd;
    assert_int_equal(poll(&p, 1, TALK_S * 1000), 1);
    assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound)), 0);
    return fd;
}

/* A connection by a host's key, or, with NULL, without TLS. Nothing was said yet. */
static inline struct transport *talk_connect(struct witness_run *w, struct tls_context *tls)
{
    const struct tls_params params = {
        .role = TLS_CLIENT, .purpose = TLS_ARBITER, .trusted = talk_trusts, .user = w};
    int fd = talk_socket(w);
    struct transport *t = tls ? transport_tls_new(tls, fd, &params) : transport_tcp_new(fd);

    assert_non_null(t);
    return t;
}

static inline int talk_send(struct transport *t, const void *bytes, size_t n)
{
    const struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = n};

    return transport_write_all(t, &iov, 1);
}

static inline struct wire_hello talk_hello(const char *from)
{
    struct wire_hello hello = {.version_min = WIRE_VERSION_MIN,
                               .version_max = WIRE_VERSION_MAX,
                               .channel = WIRE_CHANNEL_ARBITER};

    strcpy(hello.from, from);
    return hello;
}

/* Says hello; returns the answer. */
static inline struct wire_hello talk_greet(struct transport *t, const struct wire_hello *hello)
{
    uint8_t raw[WIRE_HELLO_BYTES];
    struct wire_hello answer;

    wire_hello_encode(hello, raw);
    assert_int_equal(talk_send(t, raw, sizeof(raw)), 0);
    assert_int_equal(transport_read_all(t, raw, sizeof(raw)), 0);
    assert_int_equal(wire_hello_decode(raw, &answer, NULL), 0);
    return answer;
}

/* A connection of a host whose hello was accepted. */
static inline struct transport *talk_start(struct witness_run *w, const char *name)
{
    struct wire_hello hello = talk_hello(name), answer;
    struct transport *t = talk_connect(w, witness_run_tls(w, name));

    answer = talk_greet(t, &hello);
    assert_int_equal(wire_hello_check_answer(&hello, &answer, NULL), 0);
    return t;
}

static inline void talk_send_msg(struct transport *t, const struct wire_msg *msg)
{
    uint8_t raw[1024];
    int64_t n = wire_msg_encode(msg, raw, sizeof(raw));

    assert_true(n > 0);
    assert_int_equal(talk_send(t, raw, (size_t)n), 0);
}

static inline void talk_read_msg(struct transport *t, struct wire_msg *ret_msg)
{
    static uint8_t raw[WIRE_HEADER_BYTES + 16384];
    struct wire_header header;

    assert_int_equal(transport_read_all(t, raw, WIRE_HEADER_BYTES), 0);
    assert_int_equal(wire_header_decode(raw, WIRE_CHANNEL_ARBITER, &header, NULL), 0);
    assert_true(header.length <= sizeof(raw) - WIRE_HEADER_BYTES);
    assert_int_equal(transport_read_all(t, raw + WIRE_HEADER_BYTES, header.length), 0);
    assert_int_equal(wire_msg_decode(raw, &header, raw + WIRE_HEADER_BYTES, ret_msg, NULL), 0);
}

/* A question that is always right, of the VM "web". */
static inline struct wire_msg talk_get(uint64_t id)
{
    return (struct wire_msg){
        .type = WIRE_ARB_REQUEST, .epoch = id, .u.arb_request = {.op = WIRE_ARB_GET, .vm = "web"}};
}

/* Asks it and reads the answer: the connection works. */
static inline void talk_ask(struct transport *t, uint64_t id)
{
    struct wire_msg msg = talk_get(id);

    talk_send_msg(t, &msg);
    talk_read_msg(t, &msg);
    assert_int_equal(msg.type, WIRE_ARB_REPLY);
    assert_int_equal(msg.epoch, id);
}

static inline void talk_end(struct transport *t)
{
    t->ops->close(t);
}

/* Expects the other side to end it, whatever it says before; returns how: 0 or -errno. */
static inline int talk_ended(struct transport *t)
{
    uint8_t byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    ssize_t n;

    do
        n = t->ops->readv(t, &iov, 1);
    while (n > 0);
    assert_int_not_equal(n, -EAGAIN); /* nothing within TALK_S */
    t->ops->close(t);
    return (int)n;
}

#endif
