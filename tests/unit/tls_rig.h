/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_TLS_RIG_H
#define US_TESTS_TLS_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/tls.h"
#include "tcp_pair.h"
#include "unit.h"

/* Hosts with keys, and TLS between them over the loopback. */

enum { TLS_WAIT_MS = 20000 };

struct tls_host {
    struct identity *identity;
    struct tls_context *tls;
};

/* A new key, by way of a file that is gone again. */
static inline struct identity *tls_identity(void)
{
    char folder[] = "/tmp/tls-rig-XXXXXX", path[sizeof(folder) + 8];
    struct identity *identity = NULL;

    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof(path), "%s/key", folder);
    assert_int_equal(identity_load(path, true, &identity, NULL), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
    return identity;
}

static inline void tls_host_new(struct tls_host *host)
{
    host->identity = tls_identity();
    assert_int_equal(tls_context_new(host->identity, &host->tls, NULL), 0);
}

static inline void tls_host_free(struct tls_host *host)
{
    tls_context_free(host->tls);
    identity_free(host->identity);
}

/* Hosts for all tests of a program: its group setup and teardown. */
static struct tls_host tls_hosts[3];

static inline int tls_setup(void **state)
{
    for (size_t i = 0; i < N_OF(tls_hosts); i++)
        tls_host_new(&tls_hosts[i]);
    return 0;
}

static inline int tls_teardown(void **state)
{
    for (size_t i = 0; i < N_OF(tls_hosts); i++)
        tls_host_free(&tls_hosts[i]);
    return 0;
}

/* For tls_params.trusted: user is the one key that is. */
static inline bool tls_trusts(void *user, const struct public_key *theirs)
{
    const struct public_key *key = user;

    return public_key_equal(key, theirs);
}

/* A transport that trusts nobody but the host `peer`. */
static inline struct transport *tls_side(const struct tls_host *host, int fd, enum tls_role role,
                                         enum tls_purpose purpose, const struct tls_host *peer)
{
    struct tls_params params = {
        .role = role,
        .purpose = purpose,
        .trusted = tls_trusts,
        .user = (void *)(uintptr_t)identity_public(peer->identity),
    };
    struct transport *t = transport_tls_new(host->tls, fd, &params);

    assert_non_null(t);
    return t;
}

/* One step of a handshake, non-blocking: 1 = it is done, 0 = not yet, or the error. */
static inline int tls_step(struct transport *t)
{
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    ssize_t n;

    if (tls_peer_key(t))
        return 1;
    n = t->ops->readv(t, &iov, 1);
    assert_true(n <= 0); /* nothing comes before it is done */
    if (n == -EAGAIN)
        return tls_peer_key(t) ? 1 : 0;
    return n ? (int)n : -ECONNRESET;
}

/* The handshake between both ends (t[0] is the client), which are non-blocking then. True when it
 * succeeds, else ret holds the error of each; an end that fails closes. */
static inline bool tls_handshake(struct transport *t[2], int ret[2])
{
    struct pollfd p[2];

    for (int i = 0; i < 2; i++) {
        assert_int_equal(transport_set_blocking(t[i], false), 0);
        ret[i] = 0;
    }
    for (;;) {
        for (int i = 0; i < 2; i++) {
            /* A client is done before the server has judged it: it has to look again. */
            if (ret[i] == 1 && ret[!i] < 0) {
                char byte;
                struct iovec iov = {.iov_base = &byte, .iov_len = 1};
                ssize_t n = t[i]->ops->readv(t[i], &iov, 1);

                assert_true(n <= 0);
                ret[i] = n ? (int)(n == -EAGAIN ? 1 : n) : -ECONNRESET;
            } else if (ret[i] == 0) {
                ret[i] = tls_step(t[i]);
                if (ret[i] < 0)
                    t[i]->ops->shutdown(t[i]);
            }
            p[i] = (struct pollfd){.fd = ret[i] < 0 ? -1 : t[i]->ops->fd(t[i]), .events = POLLIN};
            if (t[i]->ops->wants_write(t[i]))
                p[i].events |= POLLOUT;
        }
        if (ret[0] == 1 && ret[1] == 1)
            return true;
        if (ret[0] < 0 && ret[1] < 0)
            return false;
        assert_true(poll(p, 2, TLS_WAIT_MS) > 0);
    }
}

/* A pair of transports whose handshake is done, still non-blocking. */
static inline void tls_pair(const struct tls_host *client, const struct tls_host *server,
                            enum tls_purpose purpose, struct transport *t[2])
{
    int fd[2], ret[2];

    tcp_pair(fd);
    t[0] = tls_side(client, fd[0], TLS_CLIENT, purpose, server);
    t[1] = tls_side(server, fd[1], TLS_SERVER, purpose, client);
    if (!tls_handshake(t, ret))
        fail_msg("client: %s; server: %s", strerror(-ret[0]), strerror(-ret[1]));
}

/* Both ends send a little, and both get it. They are blocking then. */
static inline void tls_exchange(struct transport *t[2])
{
    for (int i = 0; i < 2; i++) {
        struct iovec out[2] = {{.iov_base = (char[]){"hel"}, .iov_len = 3},
                               {.iov_base = (char[]){"lo"}, .iov_len = 3}};
        char in[6] = "";

        assert_int_equal(transport_set_blocking(t[i], true), 0);
        assert_int_equal(transport_set_blocking(t[!i], true), 0);
        assert_int_equal(transport_write_all(t[i], out, 2), 0);
        assert_int_equal(transport_read_all(t[!i], in, sizeof(in)), 0);
        assert_string_equal(in, "hello");
    }
}

static inline void tls_pair_close(struct transport *t[2])
{
    t[0]->ops->close(t[0]);
    t[1]->ops->close(t[1]);
}

#endif
