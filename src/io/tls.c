/* SPDX-License-Identifier: Apache-2.0 */
#include "io/tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fault.h"
#include "io/tls_internal.h"

/* Theory of operation. OpenSSL reads and writes the socket through a BIO of ours.
 *
 * Writing: the BIO only appends to `out`, and records are made only while one more fits; so OpenSSL
 * never has to be asked again with the same bytes, as it wants when a socket is full, and several
 * records go into one system call. What is in `out` has been taken from the caller, as if it were
 * in the socket's buffer; every later call sends it on, and wants_write() tells that it is there.
 *
 * Reading: exactly the records that are asked for leave the socket, as tls_detach() needs. That
 * takes two system calls for each, of its header and of the rest; to have one gained nothing that
 * could be measured (make bench-link): the time goes to AES and to the copies of the kernel. */

enum {
    RECORD_BYTES = SSL3_RT_MAX_PLAIN_LENGTH,
    RECORD_ROOM = RECORD_BYTES + 256, /* sealed, with a key update before it */
    RECORDS_PER_SEND = 8,
    HANDSHAKE_ROOM = 4096, /* before `ready`; our flights have about 1 KiB */
    /* A new key after so many records. AES-GCM allows 2^24.5 of them (RFC 8446, 5.5). */
    RECORDS_PER_KEY = 1 << 18,
};

static struct transport_tls *tls_of(struct transport *t)
{
    return (struct transport_tls *)t;
}

/* Sends what is in `out`. 0 when all is sent, -EAGAIN, or why it is lost. */
static int send_out(struct transport_tls *t, int flags)
{
    while (t->out_from < t->out_to) {
        ssize_t n = FAULTY("tls.write", send(t->fd, t->out + t->out_from, t->out_to - t->out_from,
                                             MSG_NOSIGNAL | flags));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == ENOTCONN))
            return -EAGAIN; /* ENOTCONN: still connecting */
        if (n < 0) {
            t->send_error = -errno;
            break;
        }
        t->out_from += (size_t)n;
    }
    t->out_from = t->out_to = 0;
    return t->send_error;
}

static int bio_write(BIO *bio, const char *bytes, size_t n, size_t *ret_done)
{
    struct transport_tls *t = BIO_get_data(bio);
    int r = t->out_room - t->out_to < n ? send_out(t, 0) : t->send_error;

    BIO_clear_retry_flags(bio);
    if (r < 0 && r != -EAGAIN) {
        t->bio_error = r;
        return 0;
    }
    if (n > t->out_room - t->out_to)
        n = t->out_room - t->out_to;
    if (!n) {
        BIO_set_retry_write(bio);
        return 0;
    }
    memcpy(t->out + t->out_to, bytes, n);
    t->out_to += n;
    *ret_done = n;
    return 1;
}

static int bio_read(BIO *bio, char *bytes, size_t n, size_t *ret_done)
{
    struct transport_tls *t = BIO_get_data(bio);
    ssize_t got;

    BIO_clear_retry_flags(bio);
    do {
        got = FAULTY("tls.read", read(t->fd, bytes, n));
    } while (got < 0 && errno == EINTR);
    if (got > 0) {
        *ret_done = (size_t)got;
        return 1;
    }
    if (got == 0)
        t->ended = true;
    else if (errno == EAGAIN || errno == ENOTCONN)
        BIO_set_retry_read(bio);
    else
        t->bio_error = -errno;
    return 0;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    struct transport_tls *t = BIO_get_data(bio);
    int r;

    if (command != BIO_CTRL_FLUSH)
        return 0;
    r = send_out(t, 0);
    t->bio_error = r;
    return r == 0 || r == -EAGAIN; /* what stays in `out` is as good as sent */
}

static BIO_METHOD *bio_method;

static void make_bio_method(void)
{
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "understudy socket");
    if (!bio_method)
        return;
    BIO_meth_set_write_ex(bio_method, bio_write); /* these cannot fail */
    BIO_meth_set_read_ex(bio_method, bio_read);
    BIO_meth_set_ctrl(bio_method, bio_ctrl);
}

static BIO *bio_new(struct transport_tls *t)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    BIO *bio;

    pthread_once(&once, make_bio_method);
    bio = bio_method ? BIO_new(bio_method) : NULL;
    if (bio) {
        BIO_set_data(bio, t);
        BIO_set_init(bio, 1);
    }
    return bio;
}

/* Whether the peer's alert says that it does not want us. */
static bool is_refusal(int reason)
{
    switch (reason - SSL_AD_REASON_OFFSET) {
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_EXPIRED:
    case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_UNKNOWN_CA:
    case SSL_AD_ACCESS_DENIED:
    case SSL_AD_CERTIFICATE_REQUIRED:
        return true;
    }
    return reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE;
}

/* What the return value of an SSL_... function means: -EAGAIN, or the end of the connection, kept
 * in t->error. */
static int explain(struct transport_tls *t, int returned)
{
    switch (SSL_get_error(t->ssl, returned)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        t->ended = true;
        t->error = -ECONNRESET;
        break;
    case SSL_ERROR_SYSCALL:
        t->error = t->ended || !t->bio_error ? -ECONNRESET : t->bio_error;
        break;
    default:
        t->error = t->refused || is_refusal(ERR_GET_REASON(ERR_peek_error())) ? -EACCES : -EPROTO;
    }
    return t->error;
}

/* Brings the handshake on. 0 when it is done, -EAGAIN, or the connection's error. */
static int handshake(struct transport_tls *t)
{
    uint8_t *out;
    size_t room;
    int r;

    if (t->ready || t->error)
        return t->error;
    t->started = true;
    ERR_clear_error();
    fault_point("tls.handshake");
    r = SSL_do_handshake(t->ssl);
    if (r != 1)
        return explain(t, r);
    if (!tls_purpose_agreed(t) || public_key_none(&t->peer))
        return t->error = -EPROTO;
    /* A witness has thousands of connections, for small messages. */
    room = (t->params.purpose == TLS_ARBITER ? 1 : RECORDS_PER_SEND) * (size_t)RECORD_ROOM;
    out = FAULTY_ALLOC("tls.out-room", realloc(t->out, room));
    if (!out)
        return t->error = -ENOMEM;
    t->out = out;
    t->out_room = room;
    t->ready = true;
    return 0;
}

static ssize_t tls_readv(struct transport *base, const struct iovec *iov, int n_iov)
{
    struct transport_tls *t = tls_of(base);
    size_t total = 0, got;
    int r;

    (void)send_out(t, 0); /* a failure is the next write's; there may still be something to read */
    r = handshake(t);
    for (int i = 0; i < n_iov && r == 0; i++) {
        if (!iov[i].iov_len)
            continue;
        if (total && !SSL_pending(t->ssl))
            break; /* more could block */
        ERR_clear_error();
        r = SSL_read_ex(t->ssl, iov[i].iov_base, iov[i].iov_len, &got);
        r = r == 1 ? 0 : explain(t, r);
        if (r == 0)
            total += got;
        if (r == 0 && got < iov[i].iov_len)
            break;
    }
    if (total)
        return (ssize_t)total;
    return t->ended ? 0 : r;
}

/* Where a writev is. */
struct source {
    const struct iovec *iov;
    int n_iov;
    size_t at; /* in the first one */
};

/* The bytes of the next record: in place when there are enough in one piece, or no more to come;
 * else gathered. 0 = all is taken. */
static size_t next_piece(struct source *from, uint8_t gathered[static RECORD_BYTES],
                         const uint8_t **ret_bytes)
{
    size_t n = 0;

    *ret_bytes = gathered;
    while (from->n_iov && n < RECORD_BYTES) {
        const uint8_t *bytes = (const uint8_t *)from->iov->iov_base + from->at;
        size_t left = from->iov->iov_len - from->at;
        size_t take = left < RECORD_BYTES - n ? left : RECORD_BYTES - n;

        if (!n && (take == RECORD_BYTES || from->n_iov == 1))
            *ret_bytes = bytes;
        else if (take)
            memcpy(gathered + n, bytes, take);
        n += take;
        from->at += take;
        if (from->at == from->iov->iov_len) {
            from->iov++;
            from->n_iov--;
            from->at = 0;
        }
    }
    return n;
}

/* Makes records in `out`, as many as fit. Returns how many bytes went into them, or -errno. */
static ssize_t seal(struct transport_tls *t, struct source *from)
{
    uint8_t gathered[RECORD_BYTES];
    size_t total = 0, n, done;
    const uint8_t *bytes;
    int r;

    while (t->out_room - t->out_to >= RECORD_ROOM && (n = next_piece(from, gathered, &bytes))) {
        if (++t->n_sealed % RECORDS_PER_KEY == 0)
            (void)SSL_key_update(t->ssl, SSL_KEY_UPDATE_NOT_REQUESTED); /* sent with the next */
        ERR_clear_error();
        r = SSL_write_ex(t->ssl, bytes, n, &done);
        if (r != 1)
            return explain(t, r);
        total += n;
    }
    return (ssize_t)total;
}

static ssize_t tls_writev(struct transport *base, const struct iovec *iov, int n_iov)
{
    struct transport_tls *t = tls_of(base);
    struct source from = {.iov = iov, .n_iov = n_iov};
    ssize_t total = 0, n = handshake(t);

    if (n < 0)
        return n;
    do {
        int r = send_out(t, 0);

        if (r < 0)
            return total ? total : r;
        n = seal(t, &from);
        if (n < 0)
            return n;
        total += n;
    } while (n);
    return total;
}

static int tls_fd(const struct transport *t)
{
    return ((const struct transport_tls *)t)->fd;
}

static bool tls_pending(const struct transport *t)
{
    return SSL_pending(((const struct transport_tls *)t)->ssl) > 0;
}

static bool tls_wants_write(const struct transport *base)
{
    const struct transport_tls *t = (const struct transport_tls *)base;

    return t->out_from < t->out_to || (t->params.role == TLS_CLIENT && !t->started);
}

static void tls_shutdown(struct transport *t)
{
    (void)shutdown(tls_of(t)->fd, SHUT_RDWR); /* fails only when nothing is connected any more */
}

static void tls_free(struct transport_tls *t)
{
    SSL_free(t->ssl);
    free(t->out);
    free(t);
}

static void tls_close(struct transport *base)
{
    struct transport_tls *t = tls_of(base);

    if (!t)
        return;
    (void)send_out(t, MSG_DONTWAIT); /* as a closed socket would still try */
    close(t->fd);
    tls_free(t);
}

static const struct transport_ops tls_ops = {
    .name = "tls",
    .readv = tls_readv,
    .writev = tls_writev,
    .fd = tls_fd,
    .pending = tls_pending,
    .wants_write = tls_wants_write,
    .shutdown = tls_shutdown,
    .close = tls_close,
};

struct transport *transport_tls_new(struct tls_context *context, int fd,
                                    const struct tls_params *params)
{
    struct transport_tls *t = FAULTY_ALLOC("tls.room", calloc(1, sizeof(*t)));
    BIO *bio = NULL;

    if (t) {
        t->base.ops = &tls_ops;
        t->fd = fd;
        t->params = *params;
        t->out_room = HANDSHAKE_ROOM;
        t->out = malloc(t->out_room);
        t->ssl = tls_context_ssl(context, params->role, params->purpose);
        bio = bio_new(t);
    }
    if (!bio || !t->out || !t->ssl || !SSL_set_app_data(t->ssl, t)) {
        BIO_free(bio);
        if (t)
            tls_free(t);
        close(fd);
        return NULL;
    }
    SSL_set_bio(t->ssl, bio, bio);
    if (params->purpose == TLS_ARBITER) /* a witness has thousands, most of them idle */
        (void)SSL_set_mode(t->ssl, SSL_MODE_RELEASE_BUFFERS);
    transport_tune(fd);
    return &t->base;
}

const struct public_key *tls_peer_key(const struct transport *base)
{
    const struct transport_tls *t = (const struct transport_tls *)base;

    return base->ops == &tls_ops && t->ready ? &t->peer : NULL;
}

int tls_detach(struct transport *base)
{
    struct transport_tls *t = tls_of(base);
    int fd;

    if (base->ops != &tls_ops)
        return -EINVAL;
    if (!t->ready || t->error || SSL_has_pending(t->ssl) || send_out(t, 0) < 0)
        return -EBUSY;
    fd = t->fd;
    tls_free(t);
    return fd;
}
