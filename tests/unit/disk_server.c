/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk/server.h"
#include "unit.h"

/* libnbd and QEMU's own tools are the clients; the journal and the map are the real ones. */

enum {
    DISK_BYTES = 8 << 20,
    CLIENTS = 3,
    WAIT_MS = 20000,
    JOURNAL_BYTES = 1 << 30, /* plenty */
};

struct rig {
    char folder[32], image_path[64], map_path[64], socket_path[64];
    struct image image;
    struct disk_map *map;
    struct journal *journal;
    int journal_event;
    struct disk_server *server;
    struct nbd_handle *client[CLIENTS];
    uint64_t epoch; /* the last one cut */
};

static struct nbd_handle *connected(const struct rig *rig)
{
    struct nbd_handle *client = nbd_create();

    assert_non_null(client);
    assert_int_equal(nbd_set_strict_mode(client, 0), 0);
    if (nbd_connect_unix(client, rig->socket_path) < 0)
        fail_msg("%s", nbd_get_error());
    return client;
}

static void serve(struct rig *rig, bool read_only)
{
    struct disk_server_disk disk = {
        .image = &rig->image,
        .map = rig->map,
        .socket_path = rig->socket_path,
        .read_only = read_only,
    };
    struct err err;

    if (disk_server_open(&disk, 1, rig->journal, &rig->server, &err) < 0)
        fail_msg("%s", err.text);
    for (int i = 0; i < CLIENTS; i++)
        rig->client[i] = connected(rig);
}

static void stop_serving(struct rig *rig)
{
    for (int i = 0; i < CLIENTS; i++) {
        nbd_close(rig->client[i]);
        rig->client[i] = NULL;
    }
    disk_server_close(rig->server);
    rig->server = NULL;
}

static struct rig *make_rig(uint64_t journal_bytes)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct image_open how = {.path = rig->image_path, .size_bytes = DISK_BYTES, .create = true};
    bool created;

    strcpy(rig->folder, "/tmp/disk_server.XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    (void)snprintf(rig->image_path, sizeof(rig->image_path), "%s/disk.raw", rig->folder);
    (void)snprintf(rig->map_path, sizeof(rig->map_path), "%s/map", rig->folder);
    (void)snprintf(rig->socket_path, sizeof(rig->socket_path), "%s/nbd.sock", rig->folder);
    assert_int_equal(image_open(&how, &rig->image, &created, NULL), 0);
    assert_int_equal(disk_map_open(rig->map_path, DISK_BYTES, &rig->map, NULL), 0);
    rig->journal_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_true(rig->journal_event >= 0);
    assert_int_equal(journal_new(journal_bytes, rig->journal_event, &rig->journal), 0);
    journal_start(rig->journal);
    serve(rig, false);
    disk_server_mode(rig->server, DISK_OPEN);
    return rig;
}

static int setup(void **state)
{
    *state = make_rig(JOURNAL_BYTES);
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;

    stop_serving(rig);
    assert_int_equal(access(rig->socket_path, F_OK), -1);
    journal_free(rig->journal);
    close(rig->journal_event);
    disk_map_close(rig->map);
    image_close(&rig->image);
    (void)unlink(rig->image_path);
    (void)unlink(rig->map_path);
    assert_int_equal(rmdir(rig->folder), 0);
    free(rig);
    return 0;
}

static void ok(int r)
{
    if (r < 0)
        fail_msg("%s", nbd_get_error());
}

static void fails(int r, int expected_errno)
{
    assert_int_equal(r, -1);
    assert_int_equal(nbd_get_errno(), expected_errno);
}

/* The open epoch is cut; its records are forgotten with the next call. */
static const struct disk_log *cut(struct rig *rig)
{
    journal_acked(rig->journal, rig->epoch);
    return journal_cut(rig->journal, ++rig->epoch);
}

/* Carries the open epoch's records out on *copy, as a standby does. Returns how many there were. */
static unsigned replay(struct rig *rig, uint8_t *copy)
{
    const struct disk_log *log = cut(rig);
    const uint64_t size = DISK_BYTES;
    struct disk_cursor cursor = {0};
    struct disk_record rec;
    const uint8_t *data;
    unsigned n = 0;

    for (; log && disk_log_next(log, &cursor, &rec, &data); n++) {
        assert_int_equal(disk_record_check(&rec, &size, 1, NULL), 0);
        if (rec.kind == DISK_WRITE)
            memcpy(copy + rec.offset, data, rec.n_bytes);
        else
            memset(copy + rec.offset, 0, rec.n_bytes);
    }
    return n;
}

static void same_as_image(const struct rig *rig, const uint8_t *copy)
{
    uint8_t *found = malloc(DISK_BYTES);

    assert_int_equal(image_read(&rig->image, found, DISK_BYTES, 0), 0);
    for (size_t i = 0; i < DISK_BYTES; i++) {
        if (found[i] != copy[i])
            fail_msg("byte %zu is %u in the image, %u in the copy", i, found[i], copy[i]);
    }
    free(found);
}

/* xorshift: the same sequence everywhere */
static uint64_t random_below(uint64_t *seed, uint64_t n)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (*seed >> 11) % n;
}

static void fill_random(uint64_t *seed, uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)random_below(seed, 256);
}

/* Any place, any length, but blocks and their neighbours more often than others. */
static void random_range(uint64_t *seed, uint64_t *ret_offset, uint64_t *ret_n, uint64_t max)
{
    uint64_t unit = random_below(seed, 2) ? 4096 : 1;

    *ret_n = (1 + random_below(seed, max / unit)) * unit;
    *ret_offset = random_below(seed, (DISK_BYTES - *ret_n) / unit + 1) * unit;
}

static void test_what_is_offered(void **state)
{
    struct rig *rig = *state;
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
    struct rig *rig = *state;
    struct nbd_handle *h = nbd_create();
    int n = 0;

    ok(nbd_set_opt_mode(h, true));
    ok(nbd_connect_unix(h, rig->socket_path));
    assert_int_equal(
        nbd_opt_list(h, (nbd_list_callback){.callback = count_export, .user_data = &n}), 1);
    assert_int_equal(n, 1);
    ok(nbd_opt_info(h));
    assert_int_equal(nbd_get_size(h), DISK_BYTES);
    ok(nbd_set_export_name(h, "other"));
    assert_int_equal(nbd_opt_info(h), -1);
    ok(nbd_set_export_name(h, ""));
    ok(nbd_opt_go(h));
    assert_int_equal(nbd_get_size(h), DISK_BYTES);
    nbd_close(h);

    h = nbd_create();
    ok(nbd_set_opt_mode(h, true));
    ok(nbd_connect_unix(h, rig->socket_path));
    ok(nbd_opt_abort(h));
    nbd_close(h);

    h = nbd_create();
    ok(nbd_set_tls(h, LIBNBD_TLS_REQUIRE));
    assert_int_equal(nbd_connect_unix(h, rig->socket_path), -1);
    nbd_close(h);
}

/* One random request, on the model too. */
static void random_request(struct rig *rig, uint64_t *seed, uint8_t *model, uint8_t *buf)
{
    struct nbd_handle *h = rig->client[random_below(seed, CLIENTS)];
    uint32_t fua = random_below(seed, 8) ? 0 : LIBNBD_CMD_FLAG_FUA;
    uint64_t offset, n;

    random_range(seed, &offset, &n, random_below(seed, 20) ? 65536 : DISK_BYTES);
    switch (random_below(seed, 5)) {
    case 0:
        ok(nbd_pread(h, buf, n, offset, 0));
        assert_memory_equal(buf, model + offset, n);
        break;
    case 1:
        fill_random(seed, model + offset, n);
        ok(nbd_pwrite(h, model + offset, n, offset, fua));
        break;
    case 2:
        memset(model + offset, 0, n);
        ok(nbd_zero(h, n, offset, fua | (random_below(seed, 2) ? LIBNBD_CMD_FLAG_NO_HOLE : 0)));
        break;
    case 3:
        if (image_can_punch(&rig->image)) /* else it is ignored */
            memset(model + offset, 0, n);
        ok(nbd_trim(h, n, offset, fua));
        break;
    default:
        ok(nbd_flush(h, 0));
    }
}

static void test_random_requests(void **state)
{
    struct rig *rig = *state;
    uint8_t *model = calloc(1, DISK_BYTES), *copy = calloc(1, DISK_BYTES);
    uint8_t *buf = malloc(DISK_BYTES);
    uint64_t seed = 20240607, at = 0, n;

    for (int i = 0; i < 600; i++) {
        random_request(rig, &seed, model, buf);
        if (i % 50 == 0)
            (void)replay(rig, copy);
    }
    (void)replay(rig, copy);
    same_as_image(rig, model);
    same_as_image(rig, copy);
    /* What was never marked is as it was made. */
    for (uint64_t end = 0; end < DISK_BYTES; end = at + n) {
        if (!disk_map_next(rig->map, end, &at, &n)) {
            at = DISK_BYTES;
            n = 0;
        }
        for (uint64_t i = end; i < at; i++)
            assert_int_equal(model[i], 0);
    }
    free(model);
    free(copy);
    free(buf);
}

enum { CONTENDED_BYTES = 256 * 1024 };

static atomic_bool copying;

/* As the copier does it, but with a long time between reading and recording. */
static void *copy_ranges(void *user)
{
    struct rig *rig = user;
    uint8_t *buf = malloc(CONTENDED_BYTES);
    uint64_t seed = 7;

    while (atomic_load(&copying)) {
        uint64_t n = 1 + random_below(&seed, CONTENDED_BYTES);
        struct disk_record rec = {
            .kind = DISK_WRITE,
            .n_data = (uint32_t)n,
            .offset = random_below(&seed, CONTENDED_BYTES - n + 1),
            .n_bytes = n,
        };

        disk_server_lock(rig->server, 0, rec.offset, rec.n_bytes);
        assert_int_equal(
            image_read(disk_server_image(rig->server, 0), buf, rec.n_bytes, rec.offset), 0);
        for (int i = 0; i < 20; i++)
            sched_yield();
        assert_int_equal(journal_add(rig->journal, &rec, buf), 0);
        disk_server_unlock(rig->server, 0, rec.offset, rec.n_bytes);
    }
    free(buf);
    return NULL;
}

static void finish_all(struct rig *rig)
{
    for (int i = 0; i < CLIENTS; i++) {
        while (nbd_aio_in_flight(rig->client[i]) > 0) {
            assert_int_equal(nbd_poll(rig->client[i], WAIT_MS), 1);
            for (int64_t cookie; (cookie = nbd_aio_peek_command_completed(rig->client[i])) > 0;)
                ok(nbd_aio_command_completed(rig->client[i], (uint64_t)cookie));
        }
    }
}

/* Requests that overlap, at once, on several connections, while ranges are copied: whatever order
 * they get, the journal's is the image's. */
static void test_order_of_overlapping_requests(void **state)
{
    enum { DEPTH = 8, ROUNDS = 150, BYTES = 65536 };
    static uint8_t data[CLIENTS][DEPTH][BYTES];
    struct rig *rig = *state;
    uint8_t *copy = calloc(1, DISK_BYTES);
    uint64_t seed = 99, offset, n;
    pthread_t copier;

    atomic_store(&copying, true);
    assert_int_equal(pthread_create(&copier, NULL, copy_ranges, rig), 0);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < CLIENTS * DEPTH; i++) {
            uint8_t *bytes = data[i % CLIENTS][i / CLIENTS];
            struct nbd_handle *h = rig->client[i % CLIENTS];

            n = 1 + random_below(&seed, BYTES);
            offset = random_below(&seed, CONTENDED_BYTES - n + 1);
            memset(bytes, (int)random_below(&seed, 256), n);
            if (random_below(&seed, 3))
                ok((int)nbd_aio_pwrite(h, bytes, n, offset, NBD_NULL_COMPLETION, 0));
            else
                ok((int)nbd_aio_zero(h, n, offset, NBD_NULL_COMPLETION, 0));
        }
        finish_all(rig);
    }
    atomic_store(&copying, false);
    pthread_join(copier, NULL);
    (void)replay(rig, copy);
    same_as_image(rig, copy);
    free(copy);
}

static void test_long_write_is_split(void **state)
{
    struct rig *rig = *state;
    uint8_t *bytes = malloc(DISK_BYTES), *copy = calloc(1, DISK_BYTES);

    memset(bytes, 5, DISK_BYTES);
    ok(nbd_pwrite(rig->client[0], bytes, DISK_BYTES - 1, 1, 0));
    assert_int_equal(replay(rig, copy), DISK_BYTES / DISK_DATA_MAX);
    same_as_image(rig, copy);
    free(bytes);
    free(copy);
}

static void test_discard_is_a_hole_of_zeroes(void **state)
{
    struct rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    struct disk_cursor cursor = {0};
    const struct disk_log *log;
    struct disk_record rec;
    const uint8_t *data;

    if (!image_can_punch(&rig->image))
        skip();
    ok(nbd_trim(h, 4096, 8192, 0));
    ok(nbd_zero(h, 4096, 8192, 0));
    ok(nbd_zero(h, 4096, 8192, LIBNBD_CMD_FLAG_NO_HOLE));
    log = cut(rig);
    for (int i = 0; i < 3; i++) {
        assert_true(disk_log_next(log, &cursor, &rec, &data));
        assert_int_equal(rec.kind, DISK_ZERO);
        assert_int_equal(rec.flags, i < 2 ? DISK_PUNCH : 0);
    }
    assert_false(disk_log_next(log, &cursor, &rec, &data));

    rig->image.can_punch = false;
    ok(nbd_trim(h, 4096, 8192, LIBNBD_CMD_FLAG_FUA));
    assert_null(cut(rig));
}

static bool flushed(struct rig *rig)
{
    const struct disk_log *log = cut(rig);

    return log && log->flushed;
}

static struct disk_flushes flushes(struct rig *rig)
{
    struct disk_flushes found;

    disk_server_flushes(rig->server, 0, &found);
    return found;
}

static void test_flush_marks_the_epoch(void **state)
{
    struct rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    char block[512] = {1};

    ok(nbd_pwrite(h, block, sizeof(block), 0, 0));
    assert_false(flushed(rig));
    ok(nbd_flush(h, 0));
    assert_true(flushed(rig));
    ok(nbd_flush(h, 0)); /* with nothing to sync */
    assert_int_equal(flushes(rig).synced, 2);
    assert_true(flushed(rig));
    ok(nbd_pwrite(h, block, sizeof(block), 0, LIBNBD_CMD_FLAG_FUA));
    assert_true(flushed(rig));
    ok(nbd_zero(h, sizeof(block), 0, LIBNBD_CMD_FLAG_FUA));
    assert_true(flushed(rig));
    assert_int_equal(flushes(rig).synced, 2);
    assert_int_equal(flushes(rig).deferred, 0);
}

static int64_t begin_flush(struct nbd_handle *h)
{
    int64_t cookie = nbd_aio_flush(h, NBD_NULL_COMPLETION, 0);

    assert_true(cookie >= 0);
    return cookie;
}

/* The server has read what h sent before: it has answered a read which came after. Only what h
 * itself sent is still open then. */
static void not_answered(struct nbd_handle *h, int64_t cookie)
{
    char byte;

    ok(nbd_pread(h, &byte, 1, 0, 0));
    assert_int_equal(nbd_aio_command_completed(h, (uint64_t)cookie), 0);
}

static void answered(struct nbd_handle *h, int64_t cookie)
{
    int r;

    while ((r = nbd_aio_command_completed(h, (uint64_t)cookie)) == 0)
        assert_int_equal(nbd_poll(h, WAIT_MS), 1);
    ok(r);
}

static void test_flush_in_a_checkpoint(void **state)
{
    struct rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    char block[512] = {1};
    int64_t first, second;

    ok(nbd_pwrite(h, block, sizeof(block), 0, 0));
    ok(nbd_flush(h, 0));
    assert_true(flushed(rig));
    ok(nbd_pwrite(h, block, sizeof(block), 0, 0));
    disk_server_phase(rig->server, DISK_STOPPING);
    first = begin_flush(h);
    not_answered(h, first);
    ok(nbd_pwrite(h, block, sizeof(block), 0, LIBNBD_CMD_FLAG_FUA)); /* is no flush */
    assert_true(flushed(rig));
    disk_server_phase(rig->server, DISK_STOPPED);
    answered(h, first);
    ok(nbd_flush(h, 0));
    assert_int_equal(flushes(rig).synced, 1);
    assert_int_equal(flushes(rig).deferred, 2);
    assert_false(flushed(rig));

    disk_server_phase(rig->server, DISK_RUNNING);
    assert_int_equal(flushes(rig).synced, 0);
    assert_int_equal(flushes(rig).deferred, 0);

    /* A checkpoint that is given up. */
    disk_server_phase(rig->server, DISK_STOPPING);
    first = begin_flush(h);
    second = begin_flush(rig->client[1]);
    not_answered(h, first);
    not_answered(rig->client[1], second);
    disk_server_phase(rig->server, DISK_RUNNING);
    answered(h, first);
    answered(rig->client[1], second);
    assert_int_equal(flushes(rig).synced, 2);
    assert_true(flushed(rig));
}

static void test_modes(void **state)
{
    struct rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    char block[512] = {1}, found[512];
    int64_t write, zero, trim, flush;

    disk_server_mode(rig->server, DISK_WAITING);
    fails(nbd_pwrite(h, block, sizeof(block), 0, 0), EPERM);
    fails(nbd_zero(h, sizeof(block), 0, 0), EPERM);
    fails(nbd_trim(h, sizeof(block), 0, 0), EPERM);
    ok(nbd_pread(h, found, sizeof(found), 0, 0));
    ok(nbd_flush(h, 0));
    (void)cut(rig);

    disk_server_mode(rig->server, DISK_HELD);
    write = nbd_aio_pwrite(h, block, sizeof(block), 0, NBD_NULL_COMPLETION, 0);
    zero = nbd_aio_zero(h, sizeof(block), 4096, NBD_NULL_COMPLETION, 0);
    trim = nbd_aio_trim(h, sizeof(block), 8192, NBD_NULL_COMPLETION, 0);
    flush = begin_flush(h);
    not_answered(h, write);
    not_answered(h, zero);
    not_answered(h, trim);
    not_answered(h, flush);
    ok(nbd_pread(h, found, sizeof(found), 0, 0));
    assert_int_equal(found[0], 0);
    assert_null(cut(rig));

    disk_server_mode(rig->server, DISK_OPEN);
    answered(h, write);
    answered(h, zero);
    answered(h, trim);
    answered(h, flush);
    ok(nbd_pread(h, found, sizeof(found), 0, 0));
    assert_memory_equal(found, block, sizeof(block));
    assert_true(flushed(rig));
}

static void test_read_only(void **state)
{
    struct rig *rig = *state;
    struct nbd_handle *h;
    char block[512] = {0};

    stop_serving(rig);
    serve(rig, true);
    disk_server_mode(rig->server, DISK_OPEN);
    h = rig->client[0];
    assert_int_equal(nbd_is_read_only(h), 1);
    fails(nbd_pwrite(h, block, sizeof(block), 0, 0), EPERM);
    fails(nbd_zero(h, sizeof(block), 0, 0), EPERM);
    ok(nbd_pread(h, block, sizeof(block), 0, 0));
    ok(nbd_flush(h, 0));
}

static void test_requests_that_make_no_sense(void **state)
{
    struct rig *rig = *state;
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
    assert_null(cut(rig));
    ok(nbd_pwrite(h, block, 512, DISK_BYTES - 512, 0)); /* the connection lives on */
    assert_non_null(cut(rig));
}

/* The guest sees the error that its disk would have had; the standby sees nothing. */
static void test_errors_of_the_image(void **state)
{
    struct rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    struct rlimit before, half;
    static char block[8192] = {1};

    assert_true(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    half = before;
    half.rlim_cur = DISK_BYTES / 2;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &half), 0);
    fails(nbd_pwrite(h, block, sizeof(block), DISK_BYTES / 2 + 4096, 0), ENOSPC);
    fails(nbd_pwrite(h, block, sizeof(block), DISK_BYTES / 2 - 4096, LIBNBD_CMD_FLAG_FUA), ENOSPC);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_null(cut(rig));

    assert_int_equal(truncate(rig->image_path, DISK_BYTES / 2), 0);
    fails(nbd_pread(h, block, sizeof(block), DISK_BYTES / 2, 0), EIO);
    ok(nbd_pread(h, block, sizeof(block), 0, 0));
}

static void test_a_failed_sync_fails_for_good(void **state)
{
    struct rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    int pipes[2], kept = dup(rig->image.fd);
    char block[512] = {1};

    ok(nbd_pwrite(h, block, sizeof(block), 0, 0));
    assert_int_equal(pipe(pipes), 0);
    assert_true(dup2(pipes[0], rig->image.fd) >= 0); /* cannot be synced */
    fails(nbd_flush(h, 0), EINVAL);
    assert_true(dup2(kept, rig->image.fd) >= 0);
    fails(nbd_flush(h, 0), EINVAL);
    fails(nbd_pwrite(h, block, sizeof(block), 0, LIBNBD_CMD_FLAG_FUA), EINVAL);
    assert_int_equal(flushes(rig).synced, 0);
    assert_false(flushed(rig));
    close(pipes[0]);
    close(pipes[1]);
    close(kept);
}

static int raw_connection(const struct rig *rig)
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
static void is_thrown_out(const struct rig *rig, const void *bytes, size_t n)
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
    struct rig *rig = *state;
    uint8_t junk[4096];
    uint64_t seed = 5;
    char byte;

    SEND_AND_THROWN_OUT("\0\0\0\7"); /* a flag that was not offered */
    SEND_AND_THROWN_OUT(HELLO "IHAVENOT\0\0\0\7\0\0\0\0");
    SEND_AND_THROWN_OUT(HELLO OPTION "\0\0\0\7\0\1\0\0");                  /* 64 KiB of data */
    SEND_AND_THROWN_OUT(HELLO OPTION "\0\0\0\1\0\0\0\1x");                 /* no such export */
    SEND_AND_THROWN_OUT(HELLO OPTION "\0\0\0\2\0\0\0\1x");                 /* abort */
    SEND_AND_THROWN_OUT(BEGIN "\x25\x60\x95\x14" "cookie is here, the rest"); /* wrong magic */
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
    ok(nbd_pread(rig->client[0], &byte, 1, 0, 0));
    assert_null(cut(rig));
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
    struct rig *rig = *state;
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
    struct rig *rig = *state;
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
    struct rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    uint8_t *copy = calloc(1, DISK_BYTES);

    for (uint64_t i = 0; i < N; i++) {
        ok((int)nbd_aio_pwrite(h, data, BYTES, i % 64 * BYTES, NBD_NULL_COMPLETION, 0));
        ok((int)nbd_aio_pread(h, got[i], 4096, i % 64 * BYTES, NBD_NULL_COMPLETION, 0));
    }
    ok(nbd_pwrite(rig->client[1], data, 512, 0, 0)); /* another one gets through */
    finish_all(rig);
    assert_int_equal(replay(rig, copy), N + 1);
    free(copy);
}

/* So many options in one go that the server does not work on all of them in one go. */
static void test_options_far_ahead(void **state)
{
    enum { N = 256, ANSWER_BYTES = 44 };
    struct rig *rig = *state;
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
    struct rig *rig = *state;
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

/* What a connection that breaks had sent either happened before a new one is served, or never
 * will: here, that a zero of the old one does not overtake a write of the new one. */
static void test_broken_connection(void **state)
{
    struct rig *rig = *state;
    static char block[4096];

    memset(block, 7, sizeof(block));
    for (int round = 0; round < 100; round++) {
        struct nbd_handle *old = connected(rig), *new;

        for (int i = 0; i < 40; i++)
            ok((int)nbd_aio_zero(old, sizeof(block) + (uint64_t)i * 65536, 0, NBD_NULL_COMPLETION,
                                 0));
        nbd_close(old);
        new = connected(rig);
        ok(nbd_pwrite(new, block, sizeof(block), 0, 0));
        ok(nbd_flush(new, 0));
        memset(block, 0, sizeof(block));
        ok(nbd_pread(new, block, sizeof(block), 0, 0));
        assert_int_equal(block[0], 7);
        nbd_close(new);
    }
}

static int setup_small_journal(void **state)
{
    *state = make_rig(1 << 20);
    return 0;
}

/* A guest that is faster than the link waits in its writes, without an error; the main thread does
 * not wait. */
static void test_full_journal(void **state)
{
    struct rig *rig = *state;
    struct nbd_handle *h = rig->client[0];
    uint8_t *data = calloc(1, 1 << 20);
    struct pollfd event = {.fd = rig->journal_event, .events = POLLIN};
    int64_t cookie;
    eventfd_t n;
    bool waiting;

    ok(nbd_pwrite(h, data, 1 << 20, 0, 0));
    assert_int_equal(eventfd_read(rig->journal_event, &n), 0);
    cookie = nbd_aio_pwrite(h, data, 4096, 0, NBD_NULL_COMPLETION, 0);
    assert_int_equal(poll(&event, 1, WAIT_MS), 1);
    assert_true(journal_open_bytes(rig->journal, &waiting) > 0);
    assert_true(waiting);
    disk_server_phase(rig->server, DISK_STOPPING);
    disk_server_phase(rig->server, DISK_RUNNING);
    assert_int_equal(nbd_aio_command_completed(h, (uint64_t)cookie), 0);
    (void)cut(rig);
    journal_acked(rig->journal, rig->epoch);
    answered(h, cookie);

    ok(nbd_pwrite(h, data, 1 << 20, 0, 0));
    cookie = nbd_aio_zero(h, 4096, 0, NBD_NULL_COMPLETION, 0);
    assert_int_equal(eventfd_read(rig->journal_event, &n), 0);
    assert_int_equal(poll(&event, 1, WAIT_MS), 1);
    journal_pass(rig->journal, true);
    answered(h, cookie);
    free(data);
}

static void runs(const struct rig *rig, const char *format)
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
    struct rig *rig = *state;
    uint8_t *copy = calloc(1, DISK_BYTES);

    runs(rig, "timeout 20 qemu-img info --output=json 'nbd+unix:///?socket=%s' | "
              "grep -q '\"virtual-size\": 8388608'");
    runs(rig, "timeout 20 qemu-io -f raw -c 'write -P 7 0 1M' -c 'write -z -u 4k 64k' "
              "-c 'discard 512k 64k' -c 'flush' -c 'read -P 7 128k 128k' -c 'read -P 0 4k 64k' "
              "-c 'write -f -P 9 2097153 7' 'nbd+unix:///?socket=%s' >/dev/null");
    assert_true(replay(rig, copy) >= 3);
    assert_int_equal(copy[0], 7);
    assert_int_equal(copy[4096], 0);
    assert_int_equal(copy[2097153], 9);
    same_as_image(rig, copy);
    free(copy);
}

static void test_socket_is_refused(void **state)
{
    struct rig *rig = *state;
    struct disk_server_disk disk = {.image = &rig->image, .socket_path = "/nonexistent/nbd.sock"};
    struct disk_server *server;
    struct err err;
    char long_path[200];

    assert_int_equal(disk_server_open(&disk, 1, rig->journal, &server, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/nbd.sock"));
    memset(long_path, 'x', sizeof(long_path));
    long_path[sizeof(long_path) - 1] = 0;
    disk.socket_path = long_path;
    assert_int_equal(disk_server_open(&disk, 1, rig->journal, &server, &err), -ENAMETOOLONG);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_is_offered),
        TEST(test_options),
        TEST(test_bytes_of_the_negotiation),
        TEST(test_random_requests),
        TEST(test_order_of_overlapping_requests),
        TEST(test_long_write_is_split),
        TEST(test_discard_is_a_hole_of_zeroes),
        TEST(test_flush_marks_the_epoch),
        TEST(test_flush_in_a_checkpoint),
        TEST(test_modes),
        TEST(test_read_only),
        TEST(test_requests_that_make_no_sense),
        TEST(test_errors_of_the_image),
        TEST(test_a_failed_sync_fails_for_good),
        TEST(test_broken_protocol),
        TEST(test_too_many_connections),
        TEST(test_far_ahead),
        TEST(test_options_far_ahead),
        TEST(test_memory_is_bounded),
        TEST(test_broken_connection),
        cmocka_unit_test_setup_teardown(test_full_journal, setup_small_journal, teardown),
        TEST(test_qemu_is_a_client),
        TEST(test_socket_is_refused),
    };

    return cmocka_run_group_tests_name("disk_server", tests, NULL, NULL);
}
