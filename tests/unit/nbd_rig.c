/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "nbd_rig.h"
#include "unit.h"

enum { JOURNAL_BYTES = 1 << 30 /* plenty */ };

struct nbd_handle *rig_connect(const struct nbd_rig *rig)
{
    struct nbd_handle *client = nbd_create();

    assert_non_null(client);
    assert_int_equal(nbd_set_strict_mode(client, 0), 0);
    if (nbd_connect_unix(client, rig->socket_path) < 0)
        fail_msg("%s", nbd_get_error());
    return client;
}

void rig_serve(struct nbd_rig *rig, bool read_only)
{
    struct disk_server_disk disk = {
        .image = &rig->image,
        .map = rig->map,
        .socket_path = rig->socket_path,
        .read_only = read_only,
    };
    struct err err;

    if (disk_server_open(&disk, 1, rig->journal, DISK_WAITING, &rig->server, &err) < 0)
        fail_msg("%s", err.text);
    for (int i = 0; i < CLIENTS; i++)
        rig->client[i] = rig_connect(rig);
}

void rig_stop(struct nbd_rig *rig)
{
    for (int i = 0; i < CLIENTS; i++) {
        nbd_close(rig->client[i]);
        rig->client[i] = NULL;
    }
    disk_server_close(rig->server);
    rig->server = NULL;
}

struct nbd_rig *rig_new(uint64_t disk_bytes, uint64_t journal_bytes)
{
    struct nbd_rig *rig = calloc(1, sizeof(*rig));
    struct image_open how = {.path = rig->image_path, .size_bytes = disk_bytes, .create = true};
    bool created;

    strcpy(rig->folder, "/tmp/disk_server.XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    (void)snprintf(rig->image_path, sizeof(rig->image_path), "%s/disk.raw", rig->folder);
    (void)snprintf(rig->map_path, sizeof(rig->map_path), "%s/map", rig->folder);
    (void)snprintf(rig->socket_path, sizeof(rig->socket_path), "%s/nbd.sock", rig->folder);
    assert_int_equal(image_open(&how, &rig->image, &created, NULL), 0);
    assert_int_equal(disk_map_open(rig->map_path, disk_bytes, &rig->map, NULL), 0);
    rig->journal_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_true(rig->journal_event >= 0);
    assert_int_equal(journal_new(journal_bytes, rig->journal_event, &rig->journal), 0);
    journal_start(rig->journal);
    rig_serve(rig, false);
    disk_server_mode(rig->server, DISK_OPEN);
    return rig;
}

int rig_setup(void **state)
{
    *state = rig_new(DISK_BYTES, JOURNAL_BYTES);
    return 0;
}

int rig_teardown(void **state)
{
    struct nbd_rig *rig = *state;

    journal_stop(rig->journal); /* nobody waits for room any more */
    rig_stop(rig);
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

void succeeds(int r)
{
    if (r < 0)
        fail_msg("%s", nbd_get_error());
}

void fails(int r, int expected_errno)
{
    assert_int_equal(r, -1);
    assert_int_equal(nbd_get_errno(), expected_errno);
}

/* The open epoch is cut; its records are forgotten with the next call. */
const struct disk_log *rig_cut(struct nbd_rig *rig)
{
    journal_acked(rig->journal, rig->epoch);
    return journal_cut(rig->journal, ++rig->epoch);
}

/* Carries the open epoch's records out on *copy, as a standby does. Returns how many there were. */
unsigned rig_replay(struct nbd_rig *rig, uint8_t *copy)
{
    const struct disk_log *log = rig_cut(rig);
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

void rig_compare(const struct nbd_rig *rig, const uint8_t *copy)
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
uint64_t random_below(uint64_t *seed, uint64_t n)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (*seed >> 11) % n;
}

void fill_random(uint64_t *seed, uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)random_below(seed, 256);
}

void rig_finish(struct nbd_rig *rig)
{
    for (int i = 0; i < CLIENTS; i++) {
        while (nbd_aio_in_flight(rig->client[i]) > 0) {
            assert_int_equal(nbd_poll(rig->client[i], WAIT_MS), 1);
            for (int64_t cookie; (cookie = nbd_aio_peek_command_completed(rig->client[i])) > 0;)
                succeeds(nbd_aio_command_completed(rig->client[i], (uint64_t)cookie));
        }
    }
}
