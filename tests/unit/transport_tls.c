/* SPDX-License-Identifier: Apache-2.0 */
#include <malloc.h>
#include <openssl/ssl.h>

#include "tls_rig.h"

/* Who meets whom, and who is refused. The other side is another transport, OpenSSL set up by hand,
 * or bytes that are not TLS at all. transport_tls_data.c has what happens after the handshake. */

static void known_keys_meet(void **state)
{
    for (enum tls_purpose purpose = TLS_DOOR; purpose <= TLS_ARBITER; purpose++) {
        struct transport *t[2];

        tls_pair(&tls_hosts[0], &tls_hosts[1], purpose, t);
        assert_string_equal(t[0]->ops->name, "tls");
        assert_true(public_key_equal(tls_peer_key(t[0]), identity_public(tls_hosts[1].identity)));
        assert_true(public_key_equal(tls_peer_key(t[1]), identity_public(tls_hosts[0].identity)));
        tls_exchange(t);
        tls_pair_close(t);
    }
}

/* Both ends' errors when they must not meet. */
static void assert_refused(struct transport *t[2], int error)
{
    int ret[2];

    assert_null(tls_peer_key(t[0]));
    assert_false(tls_handshake(t, ret));
    for (int i = 0; i < 2; i++) {
        struct iovec iov = {.iov_base = (char[]){"x"}, .iov_len = 1};

        assert_int_equal(ret[i], error);
        assert_int_equal(t[i]->ops->writev(t[i], &iov, 1), error); /* and so it stays */
        assert_int_equal(t[i]->ops->readv(t[i], &iov, 1), error);
        assert_int_equal(tls_detach(t[i]), -EBUSY);
    }
    tls_pair_close(t);
}

static void unknown_keys_are_refused(void **state)
{
    struct transport *t[2];
    int fd[2];

    tcp_pair(fd); /* the server expects another client */
    t[0] = tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]);
    t[1] = tls_side(&tls_hosts[1], fd[1], TLS_SERVER, TLS_ROOM, &tls_hosts[2]);
    assert_refused(t, -EACCES);
    tcp_pair(fd); /* the client expects another server */
    t[0] = tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[2]);
    t[1] = tls_side(&tls_hosts[1], fd[1], TLS_SERVER, TLS_ROOM, &tls_hosts[0]);
    assert_refused(t, -EACCES);
}

static void purposes_do_not_mix(void **state)
{
    for (enum tls_purpose a = TLS_DOOR; a <= TLS_ARBITER; a++)
        for (enum tls_purpose b = TLS_DOOR; b <= TLS_ARBITER; b++) {
            struct transport *t[2];
            int fd[2];

            if (a == b)
                continue;
            tcp_pair(fd);
            t[0] = tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, a, &tls_hosts[1]);
            t[1] = tls_side(&tls_hosts[1], fd[1], TLS_SERVER, b, &tls_hosts[0]);
            assert_refused(t, -EPROTO);
        }
}

static void two_of_a_role(void **state)
{
    struct transport *t[2];
    int fd[2];

    tcp_pair(fd);
    t[0] = tls_side(&tls_hosts[0], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[1]);
    t[1] = tls_side(&tls_hosts[1], fd[1], TLS_CLIENT, TLS_ROOM, &tls_hosts[0]);
    assert_refused(t, -EPROTO);
}

/* A peer made of OpenSSL alone. */
struct peer {
    const char *name;
    bool server;
    int expected; /* of our side: 1 = they meet */
    int version;  /* 0: TLS 1.3 */
    bool no_certificate;
    const char *key;         /* NULL: ED25519 */
    const char *after;       /* end of the certificate; NULL: in 9999 */
    const char *alpn;        /* with its length before it; NULL: none */
    const char *alpn_answer; /* of a server, whatever it was offered */
};

#define ROOM "\x11understudy-room/1"

static bool anybody(void *user, const struct public_key *theirs)
{
    bool *asked = user;

    *asked = true;
    return true;
}

static int answer_alpn(SSL *ssl, const unsigned char **out, unsigned char *n_out,
                       const unsigned char *in, unsigned n_in, void *user)
{
    const struct peer *peer = user;

    if (!peer->alpn_answer)
        return SSL_TLSEXT_ERR_NOACK;
    *out = (const unsigned char *)peer->alpn_answer + 1;
    *n_out = (unsigned char)peer->alpn_answer[0];
    return SSL_TLSEXT_ERR_OK;
}

static void give_certificate(SSL_CTX *ctx, const struct peer *peer)
{
    X509 *certificate = X509_new();
    EVP_PKEY *key = peer->key ? EVP_EC_gen(peer->key) : EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");

    assert_true(key && certificate);
    X509_set_version(certificate, X509_VERSION_3);
    ASN1_TIME_set_string_X509(X509_getm_notBefore(certificate), "20010101000000Z");
    ASN1_TIME_set_string_X509(X509_getm_notAfter(certificate),
                              peer->after ? peer->after : "99991231235959Z");
    X509_set_pubkey(certificate, key);
    assert_true(X509_sign(certificate, key, peer->key ? EVP_sha256() : NULL) > 0);
    assert_int_equal(SSL_CTX_use_certificate(ctx, certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(ctx, key), 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

static int take_any(int ok, X509_STORE_CTX *store)
{
    return 1;
}

static SSL *peer_new(const struct peer *peer, int fd)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());
    SSL *ssl;

    if (!peer->no_certificate)
        give_certificate(ctx, peer);
    if (peer->version)
        SSL_CTX_set_max_proto_version(ctx, peer->version);
    SSL_CTX_set_verify(ctx, peer->server ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, take_any);
    SSL_CTX_set_alpn_select_cb(ctx, answer_alpn, (void *)(uintptr_t)peer);
    ssl = SSL_new(ctx);
    SSL_CTX_free(ctx);
    if (peer->alpn)
        SSL_set_alpn_protos(ssl, (const unsigned char *)peer->alpn, (unsigned)strlen(peer->alpn));
    if (peer->server)
        SSL_set_accept_state(ssl);
    else
        SSL_set_connect_state(ssl);
    SSL_set_fd(ssl, fd);
    return ssl;
}

/* Our side's part of a handshake with an OpenSSL on the other socket: 1, or the error. */
static int meet(struct transport *t, SSL *ssl, int fd)
{
    bool theirs = true; /* has something to do */

    assert_int_equal(transport_set_blocking(t, false), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    for (;;) {
        struct pollfd p[2] = {{.fd = t->ops->fd(t), .events = POLLIN},
                              {.fd = fd, .events = POLLIN}};
        int r;

        if (theirs && SSL_do_handshake(ssl) == 1) {
            theirs = false; /* what it says now is more than a handshake */
            assert_int_equal(SSL_write(ssl, "early?", 6), 6);
        }
        r = tls_step(t);
        if (r)
            return r;
        assert_true(poll(p, theirs ? 2 : 1, TLS_WAIT_MS) > 0);
    }
}

static void other_peers(void **state)
{
    static const struct peer peers[] = {
        {.name = "a good client", .expected = 1, .alpn = ROOM},
        {.name = "a good server", .server = true, .expected = 1, .alpn_answer = ROOM},
        {.name = "valid for long", .expected = 1, .alpn = ROOM, .after = "22000101000000Z"},
        {.name = "no certificate", .expected = -EACCES, .no_certificate = true, .alpn = ROOM},
        {.name = "an expired client",
         .expected = -EACCES,
         .alpn = ROOM,
         .after = "20200101000000Z"},
        {.name = "an expired server",
         .server = true,
         .expected = -EACCES,
         .alpn_answer = ROOM,
         .after = "20200101000000Z"},
        {.name = "another kind of key, client", .expected = -EACCES, .key = "P-256", .alpn = ROOM},
        {.name = "another kind of key, server",
         .server = true,
         .expected = -EPROTO,
         .key = "P-256",
         .alpn_answer = ROOM},
        {.name = "an old client", .expected = -EPROTO, .version = TLS1_2_VERSION, .alpn = ROOM},
        {.name = "an old server",
         .server = true,
         .expected = -EPROTO,
         .version = TLS1_2_VERSION,
         .alpn_answer = ROOM},
        {.name = "a client without a purpose", .expected = -EPROTO},
        {.name = "a server without a purpose", .server = true, .expected = -EPROTO},
        {.name = "a client of another kind", .expected = -EPROTO, .alpn = "\x08http/1.1"},
        {.name = "a server of another kind",
         .server = true,
         .expected = -EPROTO,
         .alpn_answer = "\x11understudy-door/1"},
        {.name = "a purpose cut short", .expected = -EPROTO, .alpn = "\x0funderstudy-room"},
        {.name = "a client of many kinds", .expected = 1, .alpn = "\x08http/1.1" ROOM},
    };

    for (size_t i = 0; i < N_OF(peers); i++) {
        const struct peer *peer = &peers[i];
        bool asked = false;
        struct tls_params params = {.role = peer->server ? TLS_CLIENT : TLS_SERVER,
                                    .purpose = TLS_ROOM,
                                    .trusted = anybody,
                                    .user = &asked};
        struct transport *t;
        SSL *ssl;
        int fd[2], r;

        tcp_pair(fd);
        t = transport_tls_new(tls_hosts[0].tls, fd[0], &params);
        assert_non_null(t);
        ssl = peer_new(peer, fd[1]);
        r = meet(t, ssl, fd[1]);
        if (r != peer->expected)
            fail_msg("%s: %d", peer->name, r);
        assert_int_equal(asked, r == 1); /* nobody is asked about the others */
        assert_int_equal(tls_peer_key(t) != NULL, r == 1);
        if (r == 1 && !peer->server)
            assert_false(SSL_SESSION_is_resumable(SSL_get_session(ssl)));
        SSL_free(ssl);
        close(fd[1]);
        t->ops->close(t);
    }
}

/* Says these bytes, then nothing more, to a transport. Its error: 0 = it still waits. */
static int told(enum tls_role role, const void *bytes, size_t n, bool end)
{
    struct transport *t;
    int fd[2], r;

    tcp_pair(fd);
    t = tls_side(&tls_hosts[0], fd[0], role, TLS_ROOM, &tls_hosts[1]);
    assert_int_equal(transport_set_blocking(t, false), 0);
    assert_int_equal(send(fd[1], bytes, n, 0), n);
    if (end)
        assert_int_equal(shutdown(fd[1], SHUT_WR), 0);
    do { /* until all is read */
        struct pollfd p = {.fd = fd[0], .events = POLLIN};

        r = poll(&p, 1, end ? TLS_WAIT_MS : 0) > 0 ? tls_step(t) : 0;
        if (r == 0 && !end) {
            char byte;

            if (recv(fd[0], &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0)
                break;
        }
    } while (r == 0);
    assert_null(tls_peer_key(t));
    t->ops->close(t);
    close(fd[1]);
    return r;
}

static void no_tls_at_all(void **state)
{
    static const char *const texts[] = {"GET / HTTP/1.1\r\n\r\n", "undrstdy and then some more",
                                        "SSH-2.0-OpenSSH_9.2p1\r\n"};
    uint64_t seed = 1;
    uint8_t noise[600];

    for (size_t i = 0; i < N_OF(texts); i++) {
        assert_int_equal(told(TLS_SERVER, texts[i], strlen(texts[i]), false), -EPROTO);
        assert_int_equal(told(TLS_CLIENT, texts[i], strlen(texts[i]), false), -EPROTO);
    }
    for (int i = 0; i < 500; i++) {
        for (size_t b = 0; b < sizeof(noise); b++) {
            seed = seed * 6364136223846793005 + 1442695040888963407;
            noise[b] = (uint8_t)(seed >> 56);
        }
        if (i % 2) /* what looks like a record, at least */
            memcpy(noise, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11);
        assert_true(told(i % 3 ? TLS_SERVER : TLS_CLIENT, noise, sizeof(noise), true) < 0);
    }
}

/* A client's real first flight, cut at every length. */
static void truncated_handshakes(void **state)
{
    struct transport *t;
    uint8_t flight[2048];
    ssize_t n;
    int fd[2];

    tcp_pair(fd);
    t = tls_side(&tls_hosts[1], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[0]);
    assert_int_equal(transport_set_blocking(t, false), 0);
    assert_int_equal(tls_step(t), 0);
    n = recv(fd[1], flight, sizeof(flight), 0);
    assert_true(n > 100);
    for (ssize_t i = 0; i <= n; i++) {
        assert_int_equal(told(TLS_SERVER, flight, (size_t)i, true), -ECONNRESET);
        assert_int_equal(told(TLS_SERVER, flight, (size_t)i, false), 0);
    }
    t->ops->close(t);
    close(fd[1]);
}

/* Connections whose handshake stands still, at the worst for us: nothing came yet, the first flight
 * came and was answered, or somebody promises the longest message that OpenSSL lets him. */
static void strangers_cost_little(void **state)
{
    enum { STRANGERS = 64, BYTES_MAX = 256 * 1024 };
    static const uint8_t promise[] = {0x16, 3, 1, 0, 6, 1, 1, 0xff, 0xfc, 3, 3};
    struct transport *t[STRANGERS], *client;
    uint8_t flight[2048];
    int fd[2], other[STRANGERS];
    ssize_t n;

    tcp_pair(fd);
    client = tls_side(&tls_hosts[1], fd[0], TLS_CLIENT, TLS_ROOM, &tls_hosts[0]);
    assert_int_equal(transport_set_blocking(client, false), 0);
    assert_int_equal(tls_step(client), 0);
    n = recv(fd[1], flight, sizeof(flight), 0);
    client->ops->close(client);
    close(fd[1]);
    for (int kind = 0; kind < 3; kind++) {
        size_t before = mallinfo2().uordblks + mallinfo2().hblkhd, each;

        for (int i = 0; i < STRANGERS; i++) {
            struct pollfd p;

            tcp_pair(fd);
            other[i] = fd[1];
            t[i] = tls_side(&tls_hosts[0], fd[0], TLS_SERVER, TLS_ROOM, &tls_hosts[1]);
            assert_int_equal(transport_set_blocking(t[i], false), 0);
            if (kind == 1)
                assert_int_equal(send(other[i], flight, (size_t)n, 0), n);
            else if (kind == 2)
                assert_int_equal(send(other[i], promise, sizeof(promise), 0), sizeof(promise));
            p = (struct pollfd){.fd = fd[0], .events = POLLIN};
            assert_int_equal(poll(&p, 1, kind ? TLS_WAIT_MS : 0), kind != 0);
            assert_int_equal(tls_step(t[i]), 0);
        }
        each = (mallinfo2().uordblks + mallinfo2().hblkhd - before) / STRANGERS;
        print_message("# %zu bytes for each connection of kind %d\n", each, kind);
        assert_true(each < BYTES_MAX);
        for (int i = 0; i < STRANGERS; i++) {
            t[i]->ops->close(t[i]);
            close(other[i]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_keys_meet),      cmocka_unit_test(unknown_keys_are_refused),
        cmocka_unit_test(purposes_do_not_mix),  cmocka_unit_test(two_of_a_role),
        cmocka_unit_test(other_peers),          cmocka_unit_test(no_tls_at_all),
        cmocka_unit_test(truncated_handshakes), cmocka_unit_test(strangers_cost_little),
    };

    return cmocka_run_group_tests(tests, tls_setup, tls_teardown);
}
