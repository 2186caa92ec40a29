/* SPDX-License-Identifier: Apache-2.0 */
#include "io/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "io/durable.h"

enum {
    FILE_MAX = 4096,        /* bytes; a key has about 120 */
    BASE64_CHARACTERS = 44, /* of a public key, the last one '=' */
};

static const char PREFIX[] = "ed25519:";

struct identity {
    EVP_PKEY *key;
    struct public_key public;
};

bool public_key_equal(const struct public_key *a, const struct public_key *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

bool public_key_none(const struct public_key *key)
{
    static const struct public_key none;

    return public_key_equal(key, &none);
}

void public_key_format(const struct public_key *key, char out[static PUBLIC_KEY_TEXT])
{
    memcpy(out, PREFIX, sizeof(PREFIX));
    (void)EVP_EncodeBlock((unsigned char *)out + strlen(PREFIX), key->bytes, PUBLIC_KEY_BYTES);
}

int public_key_parse(const char *text, struct public_key *ret_key, struct err *err)
{
    unsigned char bytes[BASE64_CHARACTERS / 4 * 3];
    char again[PUBLIC_KEY_TEXT];
    struct public_key key;

    if (strncmp(text, PREFIX, strlen(PREFIX)) != 0)
        return err_set(err, -EINVAL, "'%.100s' is no public key: expected ed25519:...", text);
    if (strlen(text) != strlen(PREFIX) + BASE64_CHARACTERS ||
        EVP_DecodeBlock(bytes, (const unsigned char *)text + strlen(PREFIX), BASE64_CHARACTERS) < 0)
        return err_set(err, -EINVAL, "'%.100s' is no public key: %d characters of Base64 follow %s",
                       text, BASE64_CHARACTERS, PREFIX);
    memcpy(key.bytes, bytes, sizeof(key.bytes));
    public_key_format(&key, again);
    if (strcmp(text, again) != 0) /* padding, white space, bits that nobody reads */
        return err_set(err, -EINVAL, "'%s' is no public key: it is not in the usual form", text);
    if (public_key_none(&key))
        return err_set(err, -EINVAL, "'%s' is nobody's public key", text);
    *ret_key = key;
    return 0;
}

static void cleanup_bio(BIO **bio)
{
    BIO_free(*bio); /* a memory BIO wipes what it held */
}

static void cleanup_identity(struct identity **identity)
{
    identity_free(*identity);
}

static int make_file(const char *path, struct err *err)
{
    CLEANUP(cleanup_identity) struct identity *identity = calloc(1, sizeof(*identity));
    CLEANUP(cleanup_bio) BIO *bio = BIO_new(BIO_s_mem());
    char *pem = NULL;
    long n;

    if (!identity || !bio)
        return err_sys(err, -ENOMEM, "%s", path);
    identity->key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    if (!identity->key ||
        !PEM_write_bio_PKCS8PrivateKey(bio, identity->key, NULL, NULL, 0, NULL, NULL))
        return err_set(err, -EIO, "%s: cannot make a key", path);
    n = BIO_get_mem_data(bio, &pem);
    return durable_replace(path, pem, (size_t)n, err);
}

/* Reads a file that only its owner can have read or written. Bytes, or -errno. */
static ssize_t read_private(int fd, char buf[static FILE_MAX], const char *path, struct err *err)
{
    struct stat st;
    ssize_t n;

    if (fstat(fd, &st) < 0)
        return err_sys(err, -errno, "%s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, -EBADMSG, "%s: not a file", path);
    if (st.st_uid != geteuid() || st.st_mode & (S_IRWXG | S_IRWXO))
        return err_set(err, -EPERM, "%s: others may know this key: make a new one, mode 0600",
                       path);
    do {
        n = read(fd, buf, FILE_MAX); /* a longer one is no key: it will not be whole */
    } while (n < 0 && errno == EINTR);
    return n < 0 ? err_sys(err, -errno, "%s", path) : n;
}

static int no_passphrase(char *buf, int size, int writing, void *user)
{
    return -1; /* never ask at a terminal */
}

static int decode(const char *pem, size_t n, struct identity *identity)
{
    CLEANUP(cleanup_bio) BIO *bio = BIO_new_mem_buf(pem, (int)n);
    size_t n_public = sizeof(identity->public.bytes);

    if (!bio)
        return -ENOMEM;
    identity->key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    if (!identity->key || EVP_PKEY_get_base_id(identity->key) != EVP_PKEY_ED25519 ||
        !EVP_PKEY_get_raw_public_key(identity->key, identity->public.bytes, &n_public))
        return -EBADMSG;
    return 0;
}

int identity_load(const char *path, bool make, struct identity **ret_identity, struct err *err)
{
    CLEANUP(cleanup_identity) struct identity *identity = calloc(1, sizeof(*identity));
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char pem[FILE_MAX];
    ssize_t n;
    int r;

    if (!identity)
        return err_sys(err, -ENOMEM, "%s", path);
    if (fd < 0 && errno == ENOENT && make) {
        r = make_file(path, err);
        if (r < 0)
            return r;
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (fd < 0)
        return err_sys(err, -errno, "%s", path);
    n = read_private(fd, pem, path, err);
    if (n < 0)
        return (int)n;
    r = decode(pem, (size_t)n, identity);
    OPENSSL_cleanse(pem, sizeof(pem));
    if (r < 0)
        return err_set(err, r, "%s: no Ed25519 private key", path);
    *ret_identity = take_ptr(identity);
    return 0;
}

const struct public_key *identity_public(const struct identity *identity)
{
    return &identity->public;
}

EVP_PKEY *identity_key(const struct identity *identity)
{
    return identity->key;
}

void identity_free(struct identity *identity)
{
    if (!identity)
        return;
    EVP_PKEY_free(identity->key);
    free(identity);
}
