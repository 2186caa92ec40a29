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

/* Reads "ed25519:BASE64". 0, or -EINVAL with the reason. */
int public_key_parse(const char *text, struct public_key *ret_key, struct err *err) US_MUST_CHECK;
void public_key_format(const struct public_key *key, char out[static PUBLIC_KEY_TEXT]);

struct identity;

/* Reads the private key from a file (PEM). make: a missing file is made first, mode 0600, durably.
 * A file that others than its owner may read is refused (-EPERM), a damaged one too (-EBADMSG).
 * Blocks on the disk. The caller owns *ret_identity. */
int identity_load(const char *path, bool make, struct identity **ret_identity,
                  struct err *err) US_MUST_CHECK;

const struct public_key *identity_public(const struct identity *identity); /* borrowed */
void identity_free(struct identity *identity); /* wipes the key; NULL is allowed */

#endif
