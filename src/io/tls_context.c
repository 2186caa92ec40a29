/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "io/tls_internal.h"

/* An SSL_CTX is never changed once connections use it: another identity makes another one, and each
 * connection keeps (by OpenSSL's reference count) the one it began with. */

enum { CERTIFICATE_MAX = 4096 }; /* bytes that a peer may send; ours has about 250 */

struct tls_context {
    pthread_mutex_t lock;
    SSL_CTX *ctx; /* for new connections */
};

/* Names of the purposes, each with its length before it (RFC 7301). */
static const char *const alpn[] = {
    [TLS_DOOR] = "\x11understudy-door/1",
    [TLS_ROOM] = "\x11understudy-room/1",
    [TLS_ARBITER] = "\x14understudy-arbiter/1",
};

bool tls_purpose_agreed(const struct transport_tls *t)
{
    const char *ours = alpn[t->params.purpose];
    const unsigned char *agreed;
    unsigned n;

    SSL_get0_alpn_selected(t->ssl, &agreed, &n);
    return n && n == (unsigned char)ours[0] && memcmp(agreed, ours + 1, n) == 0;
}

/* The server chooses from what the client offers. Not called when that is nothing at all. */
static int choose_purpose(SSL *ssl, const unsigned char **out, unsigned char *n_out,
                          const unsigned char *in, unsigned n_in, void *unused)
{
    const struct transport_tls *t = SSL_get_app_data(ssl);
    const unsigned char *ours = (const unsigned char *)alpn[t->params.purpose];

    for (unsigned at = 0; at < n_in && at + in[at] < n_in; at += in[at] + 1u)
        if (in[at] == ours[0] && memcmp(in + at, ours, ours[0] + 1u) == 0) {
            *out = ours + 1;
            *n_out = ours[0];
            return SSL_TLSEXT_ERR_OK;
        }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* Takes the place of all that OpenSSL knows about certificates. That the peer has the private key
 * is proven later in the handshake. The alert follows from the error that is set. */
static int verify(X509_STORE_CTX *store, void *unused)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct transport_tls *t = SSL_get_app_data(ssl);
    const X509 *certificate = X509_STORE_CTX_get0_cert(store);
    const EVP_PKEY *key = X509_get0_pubkey(certificate);
    size_t n = sizeof(t->peer.bytes);

    if (!tls_purpose_agreed(t)) {
        X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
        return 0;
    }
    t->refused = true;
    if (X509_cmp_current_time(X509_get0_notAfter(certificate)) <= 0) {
        X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_HAS_EXPIRED);
        return 0;
    }
    if (!key || EVP_PKEY_get_base_id(key) != EVP_PKEY_ED25519 ||
        !EVP_PKEY_get_raw_public_key(key, t->peer.bytes, &n) || n != sizeof(t->peer.bytes) ||
        !t->params.trusted(t->params.user, &t->peer)) {
        X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
        return 0;
    }
    t->refused = false;
    return 1;
}

static void cleanup_certificate(X509 **certificate)
{
    X509_free(*certificate);
}

/* The envelope of the key. NULL when out of memory. */
static X509 *make_certificate(EVP_PKEY *key)
{
    CLEANUP(cleanup_certificate) X509 *certificate = X509_new();
    X509_NAME *name = certificate ? X509_get_subject_name(certificate) : NULL;

    if (!name || !X509_set_version(certificate, X509_VERSION_3) ||
        !ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1) ||
        !X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"understudy",
                                    -1, -1, 0) ||
        !X509_set_issuer_name(certificate, name) ||
        !ASN1_TIME_set_string_X509(X509_getm_notBefore(certificate), "19700101000000Z") ||
        !ASN1_TIME_set_string_X509(X509_getm_notAfter(certificate), "99991231235959Z") ||
        !X509_set_pubkey(certificate, key) || !X509_sign(certificate, key, NULL))
        return NULL;
    return take_ptr(certificate);
}

/* All the rules. False when out of memory, or OpenSSL was built without something. */
static bool set_rules(SSL_CTX *ctx)
{
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(ctx, verify, NULL);
    SSL_CTX_set_alpn_select_cb(ctx, choose_purpose, NULL);
    SSL_CTX_set_max_cert_list(ctx, CERTIFICATE_MAX);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    SSL_CTX_clear_options(ctx, SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
    SSL_CTX_set_mode(ctx, SSL_MODE_AUTO_RETRY);
    SSL_CTX_set_read_ahead(ctx, 0);
    /* The AES with the shorter key first: it is the fastest, and no weaker link than the rest. */
    return SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) &&
           SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) &&
           SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
                                         "TLS_CHACHA20_POLY1305_SHA256") &&
           SSL_CTX_set1_groups_list(ctx, "X25519:P-256") &&
           SSL_CTX_set1_sigalgs_list(ctx, "ed25519") &&
           SSL_CTX_set1_client_sigalgs_list(ctx, "ed25519") && SSL_CTX_set_num_tickets(ctx, 0);
}

static SSL_CTX *ctx_new(const struct identity *identity)
{
    EVP_PKEY *key = identity_key(identity);
    CLEANUP(cleanup_certificate) X509 *certificate = make_certificate(key);
    SSL_CTX *ctx = SSL_CTX_new(TLS_method());

    if (certificate && ctx && set_rules(ctx) && SSL_CTX_use_certificate(ctx, certificate) == 1 &&
        SSL_CTX_use_PrivateKey(ctx, key) == 1)
        return ctx;
    SSL_CTX_free(ctx);
    return NULL;
}

int tls_context_new(const struct identity *identity, struct tls_context **ret_context,
                    struct err *err)
{
    CLEANUP_FREE struct tls_context *context = calloc(1, sizeof(*context));

    if (context)
        context->ctx = ctx_new(identity);
    if (!context || !context->ctx)
        return err_set(err, -ENOMEM, "TLS: cannot be set up");
    pthread_mutex_init(&context->lock, NULL);
    *ret_context = take_ptr(context);
    return 0;
}

int tls_context_change(struct tls_context *context, const struct identity *identity,
                       struct err *err)
{
    SSL_CTX *ctx = ctx_new(identity), *old;

    if (!ctx)
        return err_set(err, -ENOMEM, "TLS: cannot be set up");
    pthread_mutex_lock(&context->lock);
    old = context->ctx;
    context->ctx = ctx;
    pthread_mutex_unlock(&context->lock);
    SSL_CTX_free(old);
    return 0;
}

void tls_context_free(struct tls_context *context)
{
    if (!context)
        return;
    SSL_CTX_free(context->ctx);
    pthread_mutex_destroy(&context->lock);
    free(context);
}

SSL *tls_context_ssl(struct tls_context *context, enum tls_role role, enum tls_purpose purpose)
{
    const char *name = alpn[purpose];
    SSL *ssl;

    pthread_mutex_lock(&context->lock);
    ssl = SSL_new(context->ctx);
    pthread_mutex_unlock(&context->lock);
    if (!ssl)
        return NULL;
    if (role == TLS_SERVER) {
        SSL_set_accept_state(ssl);
    } else {
        SSL_set_connect_state(ssl);
        if (SSL_set_alpn_protos(ssl, (const unsigned char *)name, (unsigned)strlen(name)) != 0) {
            SSL_free(ssl);
            return NULL;
        }
    }
    return ssl;
}
