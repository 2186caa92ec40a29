/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_IDENTITY_H
#define US_IO_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* Who a daemon is: an Ed25519 key pair. Peers know each other by public keys alone, which people
 * carry from host to host (docs/security.md); names and addresses prove nothing. */

enum {
    PUBLIC_KEY_BYTES = 32,
    PUBLIC_KEY_TEXT = 64, /* "ed25519:" and 44 characters of Base64, with the NUL */
};

struct public_key {
    uint8_t bytes[PUBLIC_KEY_BYTES]; /* all zero: none */
};

bool public_key_equal(const struct public_key *a, const struct public_key *b);
bool public_key_none(const struct public_key *key);

/* Reads "ed25519:BASE64", in the one way that public_key_format() writes it. 0, or -EINVAL with the
 * reason. */
int public_key_parse(const char *text, struct public_key *ret_key, struct err *err) US_MUST_CHECK;
void public_key_format(const struct public_key *key, char out[static PUBLIC_KEY_TEXT]);

struct identity;

/* Reads the private key from a file (PEM, PKCS#8, RFC 8410). make: a missing file is made first,
 * mode 0600, durably. A file that others may read or write, or that is not ours, is refused
 * (-EPERM); one that is damaged or holds anything else too (-EBADMSG). Blocks on the disk. The
 * caller owns *ret_identity. */
int identity_load(const char *path, bool make, struct identity **ret_identity,
                  struct err *err) US_MUST_CHECK;

const struct public_key *identity_public(const struct identity *identity); /* borrowed */
struct evp_pkey_st *identity_key(const struct identity *identity); /* for tls.c; borrowed */
void identity_free(struct identity *identity); /* wipes the key; NULL is allowed */

#endif
