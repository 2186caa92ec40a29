/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "plain_transport.h"
#include "unit.h"

#include "io/clock.h"

static void wait_for(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};

    assert_int_equal(poll(&p, 1, 5000), 1);
}

/* A connected pair through the functions under test. */
static void tcp_pair(const char *listen_on, const char *format, struct transport *ret[2])
{
    struct sockaddr_storage where;
    socklen_t n = sizeof(where);
    struct err err = {""};
    char address[64];
    int listening, fd, error = -1;
    socklen_t n_error = sizeof(error);

    assert_int_equal(transport_tcp_listen(listen_on, &listening, &err), 0);
    assert_int_equal(getsockname(listening, (struct sockaddr *)&where, &n), 0);
    (void)snprintf(address, sizeof(address), format,
                   ntohs(where.ss_family == AF_INET ? ((struct sockaddr_in *)&where)->sin_port
                                                    : ((struct sockaddr_in6 *)&where)->sin6_port));
    assert_int_equal(transport_tcp_connect(address, &fd, &err), 0);
    wait_for(fd, POLLOUT);
    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n_error), 0);
    assert_int_equal(error, 0);
    ret[0] = transport_tcp_new(fd);
    wait_for(listening, POLLIN);
    ret[1] = transport_tcp_new(accept4(listening, NULL, NULL, SOCK_CLOEXEC));
    close(listening);
    assert_non_null(ret[0]);
    assert_non_null(ret[1]);
}

static void close_pair(struct transport *pair[2])
{
    pair[0]->ops->close(pair[0]);
    pair[1]->ops->close(pair[1]);
}

static void connects_over(const char *listen_on, const char *format)
{
    struct transport *pair[2];
    char in[6] = "";
    const struct iovec out = {.iov_base = (char[]){"hello"}, .iov_len = 6};

    tcp_pair(listen_on, format, pair);
    assert_string_equal(pair[0]->ops->name, "tcp");
    assert_int_equal(transport_set_blocking(pair[0], true), 0);
    assert_int_equal(transport_write_all(pair[0], &out, 1), 0);
    assert_int_equal(transport_read_all(pair[1], in, sizeof(in)), 0);
    assert_string_equal(in, "hello");
    close_pair(pair);
}

static void connects_over_ipv4(void **state)
{
    connects_over("127.0.0.1:0", "127.0.0.1:%u");
}

static void connects_over_ipv6(void **state)
{
    if (access("/proc/net/if_inet6", F_OK) != 0)
        skip();
    connects_over("[::1]:0", "[::1]:%u");
}

static void bad_addresses_are_refused(void **state)
{
    static const char *const bad[] = {
        "",      "127.0.0.1", "127.0.0.1:",     ":80",           "localhost:80", "::1:80", "[::1]",
        "[]:80", "[::1",      "127.0.0.1:http", "1.2.3.4:99999x"};

    for (size_t i = 0; i < N_OF(bad); i++) {
        struct err err = {""};
        int fd = -7;

        assert_int_equal(transport_tcp_connect(bad[i], &fd, &err), -EINVAL);
        assert_int_equal(transport_tcp_listen(bad[i], &fd, NULL), -EINVAL);
        assert_int_equal(fd, -7);
        assert_non_null(strstr(err.text, bad[i]));
    }
}

static void nobody_listens(void **state)
{
    struct sockaddr_in free_port = {.sin_family = AF_INET,
                                    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(free_port), n_error = sizeof(int);
    int holder = socket(AF_INET, SOCK_STREAM, 0), fd, rc, error = 0;
    char address[64];
    struct err err = {""};

    /* A bound socket that does not listen: its port refuses, and nobody else gets it. */
    assert_int_equal(bind(holder, (struct sockaddr *)&free_port, sizeof(free_port)), 0);
    assert_int_equal(getsockname(holder, (struct sockaddr *)&free_port, &n), 0);
    (void)snprintf(address, sizeof(address), "127.0.0.1:%u", ntohs(free_port.sin_port));
    rc = transport_tcp_connect(address, &fd, &err);
    if (rc == 0) {
        wait_for(fd, POLLOUT);
        assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n_error), 0);
        close(fd);
        rc = -error;
    }
    assert_int_equal(rc, -ECONNREFUSED);
    close(holder);
}

static void address_in_use_is_named(void **state)
{
    struct sockaddr_in where;
    socklen_t n = sizeof(where);
    char address[64];
    struct err err = {""};
    int first, second = -1;

    assert_int_equal(transport_tcp_listen("127.0.0.1:0", &first, &err), 0);
    assert_int_equal(getsockname(first, (struct sockaddr *)&where, &n), 0);
    (void)snprintf(address, sizeof(address), "127.0.0.1:%u", ntohs(where.sin_port));
    assert_int_equal(transport_tcp_listen(address, &second, &err), -EADDRINUSE);
    assert_non_null(strstr(err.text, address));
    close(first);
}

/* A transport that moves at most 7 bytes a call, to see that all of them arrive. */
struct dribble {
    struct transport base;
    uint8_t seen[4096];
    size_t n_seen;
};

static ssize_t dribble_writev(struct transport *t, const struct iovec *iov, int n_iov)
{
    struct dribble *d = (struct dribble *)t;
    size_t room = 7, moved = 0;

    for (int i = 0; i < n_iov && room; i++) {
        size_t n = iov[i].iov_len < room ? iov[i].iov_len : room;

        memcpy(d->seen + d->n_seen, iov[i].iov_base, n);
        d->n_seen += n;
        moved += n;
        room -= n;
    }
    return (ssize_t)moved;
}

static void short_writes_go_on(void **state)
{
    static const struct transport_ops ops = {.name = "dribble", .writev = dribble_writev};
    static struct dribble d = {.base.ops = &ops};
    struct iovec iov[40];
    uint8_t bytes[1000];
    size_t at = 0;

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 31);
    for (size_t i = 0; i < N_OF(iov); i++) {
        iov[i] = (struct iovec){.iov_base = bytes + at, .iov_len = i % 4 == 3 ? 0 : i};
        at += iov[i].iov_len;
    }
    assert_int_equal(transport_write_all(&d.base, iov, (int)N_OF(iov)), 0);
    assert_int_equal(d.n_seen, at);
    assert_memory_equal(d.seen, bytes, at);
}

static void end_of_stream(void **state)
{
    const struct iovec out = {.iov_base = (char[]){"ab"}, .iov_len = 2};
    struct transport *pair[2];
    char in[3];
    int rc;

    tcp_pair("127.0.0.1:0", "127.0.0.1:%u", pair);
    assert_int_equal(transport_write_all(pair[1], &out, 1), 0);
    pair[1]->ops->shutdown(pair[1]);
    assert_int_equal(transport_set_blocking(pair[0], true), 0);
    assert_int_equal(transport_read_all(pair[0], in, sizeof(in)), -ECONNRESET);
    do { /* the first may still succeed; no SIGPIPE in any case */
        rc = transport_write_all(pair[0], &out, 1);
    } while (rc == 0);
    assert_true(rc == -EPIPE || rc == -ECONNRESET);
    close_pair(pair);
}

static void not_ready_is_eagain(void **state)
{
    struct transport *pair[2];
    char in[3];
    struct iovec iov = {.iov_base = in, .iov_len = sizeof(in)};

    tcp_pair("127.0.0.1:0", "127.0.0.1:%u", pair);
    assert_int_equal(transport_set_blocking(pair[1], false), 0);
    assert_int_equal(pair[1]->ops->readv(pair[1], &iov, 1), -EAGAIN);
    close_pair(pair);
}

static void *read_one(void *arg)
{
    char byte;

    return (void *)(intptr_t)transport_read_all(arg, &byte, 1);
}

static void shutdown_ends_a_blocked_read(void **state)
{
    struct transport *pair[2];
    pthread_t thread;
    void *rc;

    tcp_pair("127.0.0.1:0", "127.0.0.1:%u", pair);
    assert_int_equal(pthread_create(&thread, NULL, read_one, pair[1]), 0);
    pair[1]->ops->shutdown(pair[1]); /* before or in the read: both must end it */
    assert_int_equal(pthread_join(thread, &rc), 0);
    assert_int_equal((intptr_t)rc, -ECONNRESET);
    close_pair(pair);
}

/* A listening socket on the loopback, and a connection to it whose client keeps its part of the
 * handshake, the last acknowledgement, until it has something to say. */
static void connect_quietly(int *ret_listening, int *ret_fd)
{
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(where);
    int off = 0;

    *ret_listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *ret_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(*ret_listening, (struct sockaddr *)&where, n), 0);
    assert_int_equal(getsockname(*ret_listening, (struct sockaddr *)&where, &n), 0);
    assert_int_equal(listen(*ret_listening, 1), 0);
    assert_int_equal(setsockopt(*ret_fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off)), 0);
    assert_int_equal(transport_round_trip_ns(*ret_fd), 0);
    assert_int_equal(connect(*ret_fd, (struct sockaddr *)&where, n), 0);
}

/* One byte there, and one back. Returns the ns that it took. */
static uint64_t ping(const int fd[2])
{
    uint64_t since = clock_now_ns();
    char byte = 'x';

    for (int i = 0; i < 2; i++) {
        assert_int_equal(write(fd[i], &byte, 1), 1);
        assert_int_equal(read(fd[1 - i], &byte, 1), 1);
    }
    return clock_now_ns() - since;
}

static void round_trip_is_the_shortest(void **state)
{
    const uint64_t quiet_ns = 20 * NS_PER_MS; /* much less than the kernel has patience for */
    const struct timespec quiet = {.tv_nsec = (long)quiet_ns};
    uint64_t since = clock_now_ns(), connected_ns, took_ns;
    int listening, fd[2];
    char byte;

    connect_quietly(&listening, &fd[1]);
    connected_ns = clock_now_ns() - since;
    assert_in_range(transport_round_trip_ns(fd[1]), 1, connected_ns);

    assert_int_equal(nanosleep(&quiet, NULL), 0);
    assert_int_equal(write(fd[1], "x", 1), 1);
    fd[0] = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd[0] >= 0);
    assert_int_equal(read(fd[0], &byte, 1), 1);
    assert_in_range(transport_round_trip_ns(fd[0]), quiet_ns, clock_now_ns() - since);

    took_ns = ping(fd);
    assert_in_range(transport_round_trip_ns(fd[0]), 1, took_ns);
    for (int i = 0; i < 2; i++)
        close(fd[i]);
    close(listening);
}

static void round_trip_of_no_network(void **state)
{
    int fd[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    assert_int_equal(transport_round_trip_ns(fd[0]), 0);
    for (int i = 0; i < 2; i++)
        close(fd[i]);
}

/* What is lost is sent again within the patience of a standby, and what is not is answered sooner
 * than that. */
static void retransmits_soon(void **state)
{
    enum { RTO_MIN_US = 45, DELACK_MAX_US = 46 }; /* Linux 6.15, uapi/linux/tcp.h */
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), retry_us = 0, answer_us = 0;
    socklen_t n = sizeof(int);

    if (getsockopt(fd, IPPROTO_TCP, RTO_MIN_US, &retry_us, &n) < 0) {
        close(fd);
        skip();
    }
    transport_tune(fd);
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, RTO_MIN_US, &retry_us, &n), 0);
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, DELACK_MAX_US, &answer_us, &n), 0);
    assert_in_range(retry_us, 1, 50000);
    assert_in_range(answer_us, 1, retry_us / 2);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(connects_over_ipv4),
        cmocka_unit_test(connects_over_ipv6),
        cmocka_unit_test(bad_addresses_are_refused),
        cmocka_unit_test(nobody_listens),
        cmocka_unit_test(address_in_use_is_named),
        cmocka_unit_test(short_writes_go_on),
        cmocka_unit_test(end_of_stream),
        cmocka_unit_test(not_ready_is_eagain),
        cmocka_unit_test(shutdown_ends_a_blocked_read),
        cmocka_unit_test(round_trip_is_the_shortest),
        cmocka_unit_test(round_trip_of_no_network),
        cmocka_unit_test(retransmits_soon),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
