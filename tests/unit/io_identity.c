/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/identity.h"
#include "unit.h"

static struct {
    char dir[32], path[64];
} here;

static int setup(void **state)
{
    (void)snprintf(here.dir, sizeof(here.dir), "/tmp/identity.XXXXXX");
    assert_non_null(mkdtemp(here.dir));
    (void)snprintf(here.path, sizeof(here.path), "%s/host.key", here.dir);
    return 0;
}

static int teardown(void **state)
{
    (void)unlink(here.path);
    assert_int_equal(rmdir(here.dir), 0); /* nothing else was left there */
    return 0;
}

/* Loads the file, which must be refused, and say so. */
static void assert_refused(int error)
{
    struct identity *identity = NULL;
    struct err err = {""};

    assert_int_equal(identity_load(here.path, false, &identity, &err), error);
    assert_int_equal(identity_load(here.path, true, &identity, NULL), error == -ENOENT ? 0 : error);
    assert_non_null(strstr(err.text, here.path));
    if (error == -ENOENT)
        identity_free(identity);
    else
        assert_null(identity);
}

static void write_file(const char *bytes, size_t n, mode_t mode)
{
    int fd = open(here.path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_int_equal(write(fd, bytes, n), n);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static size_t read_file(char buf[static 4096])
{
    int fd = open(here.path, O_RDONLY);
    ssize_t n = read(fd, buf, 4096);

    assert_true(n > 0);
    close(fd);
    return (size_t)n;
}

static void made_once(void **state)
{
    struct identity *first, *again;
    struct stat st;

    assert_int_equal(identity_load(here.path, true, &first, NULL), 0);
    assert_int_equal(stat(here.path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_false(public_key_none(identity_public(first)));
    assert_int_equal(identity_load(here.path, true, &again, NULL), 0);
    assert_true(public_key_equal(identity_public(first), identity_public(again)));
    identity_free(again);
    assert_int_equal(unlink(here.path), 0);
    assert_int_equal(identity_load(here.path, true, &again, NULL), 0);
    assert_false(public_key_equal(identity_public(first), identity_public(again)));
    identity_free(again);
    identity_free(first);
    identity_free(NULL);
}

static void missing_is_not_made_unasked(void **state)
{
    assert_refused(-ENOENT);
}

static void files_of_others_are_refused(void **state)
{
    static const mode_t modes[] = {0640, 0604, 0620, 0602, 0644, 0666, 0610};
    struct identity *identity;

    assert_int_equal(identity_load(here.path, true, &identity, NULL), 0);
    identity_free(identity);
    for (size_t i = 0; i < N_OF(modes); i++) {
        assert_int_equal(chmod(here.path, modes[i]), 0);
        assert_refused(-EPERM);
    }
    assert_int_equal(chmod(here.path, 0400), 0);
    assert_int_equal(identity_load(here.path, false, &identity, NULL), 0);
    identity_free(identity);
    if (geteuid() != 0)
        skip();
    assert_int_equal(chown(here.path, 65534, 0), 0);
    assert_refused(-EPERM);
}

/* Every byte of the key's text counts, and so does every missing one. */
static void damaged_files_are_refused(void **state)
{
    struct identity *identity, *other;
    char pem[4096], bad[4096];
    size_t n, body;

    assert_int_equal(identity_load(here.path, true, &identity, NULL), 0);
    n = read_file(pem);
    body = (size_t)(strchr(pem, '\n') + 1 - pem);
    for (size_t i = 0; i + 1 < n; i++) { /* the last one ends the line */
        write_file(pem, i, 0600);
        assert_refused(-EBADMSG);
        memcpy(bad, pem, n);
        bad[i] = '*';
        write_file(bad, n, 0600);
        assert_refused(-EBADMSG);
    }
    /* One character that is Base64 too gives another key, or none. */
    memcpy(bad, pem, n);
    bad[body + 40] = bad[body + 40] == 'A' ? 'B' : 'A';
    write_file(bad, n, 0600);
    if (identity_load(here.path, false, &other, NULL) == 0) {
        assert_false(public_key_equal(identity_public(identity), identity_public(other)));
        identity_free(other);
    }
    identity_free(identity);
}

static void write_key(EVP_PKEY *key, const EVP_CIPHER *cipher)
{
    FILE *file = fopen(here.path, "w");

    assert_non_null(key);
    assert_int_equal(fchmod(fileno(file), 0600), 0);
    assert_int_equal(
        PEM_write_PKCS8PrivateKey(file, key, cipher, "secret", cipher ? 6 : 0, NULL, NULL), 1);
    assert_int_equal(fclose(file), 0);
    EVP_PKEY_free(key);
}

static void other_things_are_refused(void **state)
{
    char long_text[5000];

    memset(long_text, 'A', sizeof(long_text));
    write_file("", 0, 0600);
    assert_refused(-EBADMSG);
    write_file(long_text, sizeof(long_text), 0600);
    assert_refused(-EBADMSG);
    write_key(EVP_EC_gen("P-256"), NULL);
    assert_refused(-EBADMSG);
    write_key(EVP_PKEY_Q_keygen(NULL, NULL, "X25519"), NULL);
    assert_refused(-EBADMSG);
    write_key(EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), EVP_aes_128_cbc()); /* asks nobody */
    assert_refused(-EBADMSG);
    assert_int_equal(unlink(here.path), 0);
    assert_int_equal(mkfifo(here.path, 0600), 0);
    assert_refused(-EBADMSG); /* and does not wait for a writer */
}

static void text_forms(void **state)
{
    struct public_key key, back;
    char text[PUBLIC_KEY_TEXT];

    for (unsigned i = 0; i < 256; i++) {
        for (size_t b = 0; b < sizeof(key.bytes); b++)
            key.bytes[b] = (uint8_t)(i * 7 + b * 31 + 1);
        public_key_format(&key, text);
        assert_int_equal(strlen(text), 8 + 44);
        assert_int_equal(public_key_parse(text, &back, NULL), 0);
        assert_true(public_key_equal(&key, &back));
    }
}

/* Any other text is refused, also one that lenient decoders take for the same key. */
static void bad_texts(void **state)
{
    static const char *const bad[] = {
        "",
        "ed25519",
        "ed25519:",
        "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
        "ED25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo==",
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURp=", /* a bit that nobody reads */
        "ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=", /* another alphabet */
        "ed25519: 11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHUR=",
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n",
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHU===",
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPa=iMlrwIaaPcHURo=",
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHUROO",
        "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", /* nobody's */
        "ed25519:\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
        "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
        "\xff=",
    };
    static const char good[] = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    struct public_key key;

    assert_int_equal(public_key_parse(good, &key, NULL), 0);
    assert_int_equal(key.bytes[0], 0xd7); /* RFC 8037, A.2 */
    assert_int_equal(key.bytes[31], 0x1a);
    for (size_t i = 0; i < N_OF(bad); i++) {
        struct public_key untouched = key;
        struct err err = {""};

        assert_int_equal(public_key_parse(bad[i], &untouched, &err), -EINVAL);
        assert_true(err.text[0]);
        assert_true(public_key_equal(&untouched, &key));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(made_once, setup, teardown),
        cmocka_unit_test_setup_teardown(missing_is_not_made_unasked, setup, teardown),
        cmocka_unit_test_setup_teardown(files_of_others_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_files_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(other_things_are_refused, setup, teardown),
        cmocka_unit_test(text_forms),
        cmocka_unit_test(bad_texts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
