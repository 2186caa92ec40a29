/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_TLS_INTERNAL_H
#define US_IO_TLS_INTERNAL_H

#include <openssl/ssl.h>

#include "io/tls.h"

/* What tls.c (the transport) and tls_context.c (keys and rules) share. */

struct transport_tls {
    struct transport base;
    int fd;
    SSL *ssl; /* its app data is this structure */
    struct tls_params params;
    struct public_key peer; /* whom the certificate names; proven once `ready` */
    bool started, ready;    /* the handshake is begun, done */
    bool refused;           /* we do not want this peer: its key, or none, or expired */
    bool ended;             /* the peer has closed */
    int error;              /* negative: the connection is over, for reads and writes */
    int send_error;         /* negative: writes fail; what the peer said before can be read */
    int bio_error;          /* why OpenSSL's last read or write of the socket failed */
    uint8_t *out; /* sealed records on their way to the socket */
    size_t out_from, out_to, out_room;
    uint64_t n_sealed; /* records */
};

/* A connection under the context's present identity. NULL when out of memory. */
SSL *tls_context_ssl(struct tls_context *context, enum tls_role role, enum tls_purpose purpose);

/* Whether both sides agreed on the purpose. */
bool tls_purpose_agreed(const struct transport_tls *t);

#endif
