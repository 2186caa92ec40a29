/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbd_rig.h"
#include "unit.h"

/* What the disk server says to clients: to libnbd, to QEMU's tools, to those that send nonsense. */

static void test_what_is_offered(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0], *other = nbd_create();
    struct stat st;

    assert_int_equal(nbd_get_size(h), DISK_BYTES);
    assert_int_equal(nbd_is_read_only(h), 0);
    assert_int_equal(nbd_can_flush(h), 1);
    assert_int_equal(nbd_can_fua(h), 1);
    assert_int_equal(nbd_can_trim(h), 1);
    assert_int_equal(nbd_can_zero(h), 1);
    assert_int_equal(nbd_can_fast_zero(h), 0);
    assert_int_equal(nbd_can_multi_conn(h), 1);
    assert_int_equal(nbd_get_structured_replies_negotiated(h), 0);
    assert_int_equal(nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM), 1);
    assert_int_equal(nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED), 4096);
    assert_int_equal(nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM), 32 << 20);
    assert_int_equal(stat(rig->socket_path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);

    assert_int_equal(nbd_set_export_name(other, "other"), 0);
    assert_int_equal(nbd_connect_unix(other, rig->socket_path), -1);
    nbd_close(other);
}

static int count_export(void *user, const char *name, const char *description)
{
    assert_string_equal(name, "");
    ++*(int *)user;
    return 0;
}

static void test_options(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = nbd_create();
    int n = 0;

    succeeds(nbd_set_opt_mode(h, true));
    succeeds(nbd_connect_unix(h, rig->socket_path));
    assert_int_equal(
        nbd_opt_list(h, (nbd_list_callback){.callback = count_export, .user_data = &n}), 1);
    assert_int_equal(n, 1);
    succeeds(nbd_opt_info(h));
    assert_int_equal(nbd_get_size(h), DISK_BYTES);
    succeeds(nbd_set_export_name(h, "other"));
    assert_int_equal(nbd_opt_info(h), -1);
    succeeds(nbd_set_export_name(h, ""));
    succeeds(nbd_opt_go(h));
    assert_int_equal(nbd_get_size(h), DISK_BYTES);
    nbd_close(h);

    h = nbd_create();
    succeeds(nbd_set_opt_mode(h, true));
    succeeds(nbd_connect_unix(h, rig->socket_path));
    succeeds(nbd_opt_abort(h));
    nbd_close(h);

    h = nbd_create();
    succeeds(nbd_set_tls(h, LIBNBD_TLS_REQUIRE));
    assert_int_equal(nbd_connect_unix(h, rig->socket_path), -1);
    nbd_close(h);
}

static void test_requests_that_make_no_sense(void **state)
{
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    static char block[8192];

    fails(nbd_pread(h, block, 512, DISK_BYTES, 0), EINVAL);
    fails(nbd_pread(h, block, 1024, DISK_BYTES - 512, 0), EINVAL);
    fails(nbd_pread(h, block, 512, UINT64_MAX - 100, 0), EINVAL);
    fails(nbd_pwrite(h, block, 8192, DISK_BYTES - 512, 0), ENOSPC);
    fails(nbd_pwrite(h, block, 8192, UINT64_MAX - 100, 0), ENOSPC);
    fails(nbd_zero(h, UINT32_MAX, 512, 0), ENOSPC);
    fails(nbd_zero(h, 512, 0, LIBNBD_CMD_FLAG_FAST_ZERO), EINVAL);
    fails(nbd_pread(h, block, 0, 0, 0), EINVAL);
    fails(nbd_pwrite(h, block, 0, 0, 0), EINVAL);
    fails(nbd_pwrite(h, block, 512, 0, LIBNBD_CMD_FLAG_NO_HOLE), EINVAL);
    fails(nbd_cache(h, 512, 0, 0), EINVAL);
    assert_null(rig_cut(rig));
    succeeds(nbd_pwrite(h, block, 512, DISK_BYTES - 512, 0)); /* the connection lives on */
    assert_non_null(rig_cut(rig));
}

static int raw_connection(const struct nbd_rig *rig)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = WAIT_MS / 1000};
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(addr.sun_path, rig->socket_path);
    assert_int_equal(connect(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    return sock;
}

/* Sends, and reads until the server closes. */
static void is_thrown_out(const struct nbd_rig *rig, const void *bytes, size_t n)
{
    int sock = raw_connection(rig);
    char got[4096];
    ssize_t r;

    (void)send(sock, bytes, n, MSG_NOSIGNAL); /* it may be closed before it has taken all */
    while ((r = recv(sock, got, sizeof(got), 0)) > 0)
        ;
    if (r < 0)
        assert_int_equal(errno, ECONNRESET);
    close(sock);
}

#define HELLO                      "\0\0\0\3"
#define OPTION                     "IHAVEOPT"
#define BEGIN                      HELLO OPTION "\0\0\0\1\0\0\0\0"
#define SEND_AND_THROWN_OUT(bytes) is_thrown_out(rig, bytes, sizeof(bytes) - 1)

static void test_broken_protocol(void **state)
{
    struct nbd_rig *rig = *state;
    uint8_t junk[4096];
    uint64_t seed = 5;
    char byte;

    SEND_AND_THROWN_OUT("\0\0\0\7"); /* a flag that was not offered */
    SEND_AND_THROWN_OUT(HELLO "IHAVENOT\0\0\0\7\0\0\0\0");
    SEND_AND_THROWN_OUT(HELLO OPTION "\0\0\0\7\0\1\0\0");  /* 64 KiB of data */
    SEND_AND_THROWN_OUT(HELLO OPTION "\0\0\0\1\0\0\0\1x"); /* no such export */
    SEND_AND_THROWN_OUT(HELLO OPTION "\0\0\0\2\0\0\0\1x"); /* abort */
    SEND_AND_THROWN_OUT(BEGIN "\x25\x60\x95\x14"
                              "cookie is here, the rest"); /* wrong magic */
    SEND_AND_THROWN_OUT(BEGIN
                        "\x25\x60\x95\x13\0\0\0\1cookie..\0\0\0\0\0\0\0\0\x02\0\0\1"); /* large */
    SEND_AND_THROWN_OUT(BEGIN
                        "\x25\x60\x95\x13\0\0\0\2cookie..\0\0\0\0\0\0\0\0\0\0\0\0"); /* leave */
    for (int i = 0; i < 200; i++) {
        static uint8_t sent[sizeof(BEGIN) - 1 + sizeof(junk)];

        fill_random(&seed, junk, sizeof(junk));
        if (i % 2)
            memcpy(junk, "\x25\x60\x95\x13\0\0\0\0", 8);
        memcpy(sent, BEGIN, sizeof(BEGIN) - 1);
        memcpy(sent + sizeof(BEGIN) - 1, junk, sizeof(junk));
        is_thrown_out(rig, sent + (i % 4 ? 0 : sizeof(BEGIN) - 1),
                      sizeof(sent) - sizeof(BEGIN) + 1);
    }
    succeeds(nbd_pread(rig->client[0], &byte, 1, 0, 0));
    assert_null(rig_cut(rig));
}

static void expect_bytes(int sock, const void *bytes, size_t n)
{
    uint8_t got[512];

    assert_true(n <= sizeof(got));
    assert_int_equal(recv(sock, got, n, MSG_WAITALL), n);
    assert_memory_equal(got, bytes, n);
}

#define SAYS(sock, bytes) expect_bytes(sock, bytes, sizeof(bytes) - 1)
#define TELL(sock, bytes)                                                                          \
    assert_int_equal(send(sock, bytes, sizeof(bytes) - 1, MSG_NOSIGNAL), sizeof(bytes) - 1)
#define ANSWER "\0\x03\xe8\x89\x04\x55\x65\xa9"

/* The bytes as the protocol's description has them, not as our own codec does. */
static void test_bytes_of_the_negotiation(void **state)
{
    struct nbd_rig *rig = *state;
    int sock = raw_connection(rig);
    static const char zeroes[124];

    SAYS(sock, "NBDMAGICIHAVEOPT\0\3");
    TELL(sock, "\0\0\0\1");                /* wants the padding */
    TELL(sock, OPTION "\0\0\0\5\0\0\0\0"); /* STARTTLS */
    SAYS(sock, ANSWER "\0\0\0\5\x80\0\0\1\0\0\0\0");
    TELL(sock, OPTION "\0\0\0\x08\0\0\0\0"); /* structured replies */
    SAYS(sock, ANSWER "\0\0\0\x08\x80\0\0\1\0\0\0\0");
    TELL(sock, OPTION "\0\0\0\3\0\0\0\1x"); /* a list, with data */
    SAYS(sock, ANSWER "\0\0\0\3\x80\0\0\3\0\0\0\0");
    TELL(sock, OPTION "\0\0\0\7\0\0\0\6\0\0\0\1xx"); /* the name is longer than the data */
    SAYS(sock, ANSWER "\0\0\0\7\x80\0\0\3\0\0\0\0");
    TELL(sock, OPTION "\0\0\0\7\0\0\0\7\0\0\0\1x\0\0"); /* no such name */
    SAYS(sock, ANSWER "\0\0\0\7\x80\0\0\6\0\0\0\0");
    TELL(sock, OPTION "\0\0\0\1\0\0\0\0"); /* the old way to begin */
    SAYS(sock, "\0\0\0\0\0\x80\0\0\x01\x6d");
    expect_bytes(sock, zeroes, sizeof(zeroes));
    TELL(sock, "\x25\x60\x95\x13\0\0\0\0cookie..\0\0\0\0\0\x7f\xff\xff\0\0\0\1");
    SAYS(sock, "\x67\x44\x66\x98\0\0\0\0cookie..\0");
    TELL(sock, "\x25\x60\x95\x13\0\0\0\0cookie..\0\0\0\0\0\x80\0\0\0\0\0\1");
    SAYS(sock, "\x67\x44\x66\x98\0\0\0\x16"
               "cookie..");
    close(sock);
}

/* True: the server greets; false: it has closed. */
static bool greeted(int sock)
{
    char greeting[18];
    ssize_t r = recv(sock, greeting, sizeof(greeting), MSG_WAITALL);

    assert_true(r == 0 || r == sizeof(greeting));
    return r > 0;
}

static void test_too_many_connections(void **state)
{
    struct nbd_rig *rig = *state;
    int socks[DISK_SERVER_CONNECTIONS_MAX - CLIENTS], late, tries = 0;
    bool welcome;

    for (size_t i = 0; i < N_OF(socks); i++) {
        socks[i] = raw_connection(rig);
        assert_true(greeted(socks[i]));
    }
    late = raw_connection(rig);
    assert_false(greeted(late));
    close(late);
    for (size_t i = 0; i < N_OF(socks); i++)
        close(socks[i]);
    do { /* until the server has noticed */
        late = raw_connection(rig);
        welcome = greeted(late);
        close(late);
    } while (!welcome && ++tries < 10000);
    assert_true(welcome);
}

static void test_far_ahead(void **state)
{
    enum { N = 400, BYTES = 65536 };
    static uint8_t data[BYTES], got[N][4096];
    struct nbd_rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    uint8_t *copy = calloc(1, DISK_BYTES);

    for (uint64_t i = 0; i < N; i++) {
        succeeds((int)nbd_aio_pwrite(h, data, BYTES, i % 64 * BYTES, NBD_NULL_COMPLETION, 0));
        succeeds((int)nbd_aio_pread(h, got[i], 4096, i % 64 * BYTES, NBD_NULL_COMPLETION, 0));
    }
    succeeds(nbd_pwrite(rig->client[1], data, 512, 0, 0)); /* another one gets through */
    rig_finish(rig);
    assert_int_equal(rig_replay(rig, copy), N + 1);
    free(copy);
}

/* So many options in one go that the server does not work on all of them in one go. */
static void test_options_far_ahead(void **state)
{
    enum { N = 256, ANSWER_BYTES = 44 };
    struct nbd_rig *rig = *state;
    int sock = raw_connection(rig);
    char options[4 + N * 16] = HELLO, answers[18 + N * ANSWER_BYTES];

    for (int i = 0; i < N; i++)
        memcpy(options + 4 + 16 * i, OPTION "\0\0\0\3\0\0\0\0", 16);
    assert_int_equal(send(sock, options, sizeof(options), 0), sizeof(options));
    assert_int_equal(recv(sock, answers, sizeof(answers), MSG_WAITALL), sizeof(answers));
    close(sock);
}

/* A client whose writes are held cannot fill the server's memory with them. */
static void test_memory_is_bounded(void **state)
{
    enum { REQUEST_BYTES = 28, MANY_BYTES = 256 << 20 };
    static char write[REQUEST_BYTES + (1 << 20)] =
        "\x25\x60\x95\x13\0\0\0\1cookie..\0\0\0\0\0\0\0\0\0\x10\0\0";
    struct nbd_rig *rig = *state;
    int sock = raw_connection(rig);
    struct pollfd taken = {.fd = sock, .events = POLLOUT};
    size_t sent = 0;
    ssize_t n;

    disk_server_mode(rig->server, DISK_HELD);
    assert_int_equal(send(sock, BEGIN, sizeof(BEGIN) - 1, 0), sizeof(BEGIN) - 1);
    while (sent < MANY_BYTES && poll(&taken, 1, 300) == 1) {
        size_t at = sent % sizeof(write);

        n = send(sock, write + at, sizeof(write) - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        assert_true(n > 0);
        sent += (size_t)n;
    }
    assert_true(sent < 64 << 20);
    close(sock);
}

static void runs(const struct nbd_rig *rig, const char *format)
{
    char command[512];
    int r;

    (void)snprintf(command, sizeof(command), format, rig->socket_path);
    r = system(command);
    if (r != 0)
        fail_msg("%s: %d", command, r);
}

static void test_qemu_is_a_client(void **state)
{
    struct nbd_rig *rig = *state;
    uint8_t *copy = calloc(1, DISK_BYTES);

    runs(rig, "timeout 20 qemu-img info --output=json 'nbd+unix:///?socket=%s' | "
              "grep -q '\"virtual-size\": 8388608'");
    runs(rig, "timeout 20 qemu-io -f raw -c 'write -P 7 0 1M' -c 'write -z -u 4k 64k' "
              "-c 'discard 512k 64k' -c 'flush' -c 'read -P 7 128k 128k' -c 'read -P 0 4k 64k' "
              "-c 'write -f -P 9 2097153 7' 'nbd+unix:///?socket=%s' >/dev/null");
    assert_true(rig_replay(rig, copy) >= 3);
    assert_int_equal(copy[0], 7);
    assert_int_equal(copy[4096], 0);
    assert_int_equal(copy[2097153], 9);
    rig_compare(rig, copy);
    free(copy);
}

static void test_socket_is_refused(void **state)
{
    struct nbd_rig *rig = *state;
    struct disk_server_disk disk = {.image = &rig->image, .socket_path = "/nonexistent/nbd.sock"};
    struct disk_server *server;
    struct err err;
    char long_path[200];

    assert_int_equal(disk_server_open(&disk, 1, rig->journal, DISK_WAITING, &server, &err),
                     -ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/nbd.sock"));
    memset(long_path, 'x', sizeof(long_path));
    long_path[sizeof(long_path) - 1] = 0;
    disk.socket_path = long_path;
    assert_int_equal(disk_server_open(&disk, 1, rig->journal, DISK_WAITING, &server, &err),
                     -ENAMETOOLONG);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_is_offered),
        TEST(test_options),
        TEST(test_requests_that_make_no_sense),
        TEST(test_broken_protocol),
        TEST(test_bytes_of_the_negotiation),
        TEST(test_too_many_connections),
        TEST(test_far_ahead),
        TEST(test_options_far_ahead),
        TEST(test_memory_is_bounded),
        TEST(test_qemu_is_a_client),
        TEST(test_socket_is_refused),
    };

    return cmocka_run_group_tests_name("disk_protocol", tests, NULL, NULL);
}
