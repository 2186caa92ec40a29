/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk/record_file.h"
#include "guard/disks.h"
#include "unit.h"

/* A VM's two disks at a host, with a state directory, and libnbd in place of the hypervisor. */

enum { DISK_BYTES = 1 << 20, BLOCK = 4096, DISKS = 2, WAIT_MS = 20000 };

struct rig {
    char folder[32];
    struct host_config config;
    struct vm_spec spec;
    sd_event *event;
    struct disks *disks;
    struct nbd_handle *client[DISKS];
    uint64_t epoch;         /* last one cut */
    uint64_t counts[DISKS]; /* flushes that the guest has seen ended, as the hypervisor counts */
};

static const uint8_t none[DISK_SYNC_ID_BYTES];
static const uint8_t some[DISK_SYNC_ID_BYTES] = "a full copy";

/* A path below the rig's folder. Borrowed until the call after next. */
static const char *path(const struct rig *rig, const char *name)
{
    static char paths[2][128];
    static unsigned next;
    char *p = paths[next++ % 2];

    (void)snprintf(p, sizeof(paths[0]), "%s/%s", rig->folder, name);
    return p;
}

static void succeeds(int r)
{
    if (r < 0)
        fail_msg("%s", nbd_get_error());
}

static void open_disks(struct rig *rig)
{
    struct err err;

    if (disks_open(&rig->config, &rig->spec, rig->folder, DISKS_START, rig->event, &rig->disks,
                   &err) < 0)
        fail_msg("%s", err.text);
}

static void close_disks(struct rig *rig)
{
    for (unsigned i = 0; i < DISKS; i++) {
        nbd_close(rig->client[i]);
        rig->client[i] = NULL;
    }
    disks_close(rig->disks);
    rig->disks = NULL;
}

/* The hypervisor starts, and the VM with it. */
static void start(struct rig *rig)
{
    disks_start(rig->disks);
    journal_start(rig->disks->journal);
    for (unsigned i = 0; i < DISKS; i++) {
        rig->client[i] = nbd_create();
        assert_non_null(rig->client[i]);
        succeeds(nbd_connect_unix(rig->client[i], rig->disks->socket_list[i]));
    }
}

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));

    strcpy(rig->folder, "/tmp/guard_disks.XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    (void)snprintf(rig->config.state_dir, sizeof(rig->config.state_dir), "%s", rig->folder);
    rig->config.disk_journal_mib = 64;
    strcpy(rig->spec.name, "web");
    rig->spec.n_disks = DISKS;
    for (unsigned i = 0; i < DISKS; i++) {
        rig->spec.disks[i].size_bytes = DISK_BYTES;
        (void)snprintf(rig->spec.disks[i].path, sizeof(rig->spec.disks[i].path), "%s/image%u",
                       rig->folder, i);
    }
    assert_int_equal(sd_event_new(&rig->event), 0);
    open_disks(rig);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    static const char *const names[] = {"image0",          "image1",         "disks/web/0.map",
                                        "disks/web/1.map", "disks/web/redo", "disks/web/copy"};
    struct rig *rig = *state;

    close_disks(rig);
    sd_event_unref(rig->event);
    for (size_t i = 0; i < N_OF(names); i++)
        (void)unlink(path(rig, names[i]));
    assert_int_equal(rmdir(path(rig, "disks/web")), 0);
    assert_int_equal(rmdir(path(rig, "disks")), 0);
    assert_int_equal(rmdir(rig->folder), 0);
    free(rig);
    return 0;
}

/* ---- opening and closing ---- */

static void no_disks(void **state)
{
    const struct rig *rig = *state;
    struct vm_spec spec = {.name = "none"};
    struct disks *d = rig->disks;

    assert_int_equal(
        disks_open(&rig->config, &spec, rig->folder, DISKS_START, rig->event, &d, NULL), 0);
    assert_null(d);
    disks_phase(NULL, DISK_STOPPING);
    disks_let_flushes_go(NULL);
    assert_false(disks_deferred(NULL));
    disks_close(NULL);
}

static void append(struct redo *redo, uint64_t epoch, uint64_t offset, uint8_t byte)
{
    uint8_t data[BLOCK];
    struct disk_record rec = {
        .disk = 1, .kind = DISK_WRITE, .n_data = BLOCK, .offset = offset, .n_bytes = BLOCK};
    struct disk_log log = {.n_bytes = 0};

    memset(data, byte, sizeof(data));
    assert_int_equal(disk_log_add(&log, &rec, data), 0);
    assert_int_equal(redo_append(redo, epoch, 3, &log), 0);
    disk_log_clear(&log);
}

static void redo_log_is_replayed(void **state)
{
    struct rig *rig = *state;
    uint8_t found[3];
    uint64_t start_at, end;

    append(rig->disks->redo, 7, 0, 'a');
    append(rig->disks->redo, 8, BLOCK, 'b');
    append(rig->disks->redo, 9, 0, 'c');
    assert_int_equal(image_next_data(&rig->disks->images[1], 0, &start_at, &end), 0);
    close_disks(rig);
    open_disks(rig);
    assert_int_equal(image_read(&rig->disks->images[1], &found[0], 1, 0), 0);
    assert_int_equal(image_read(&rig->disks->images[1], &found[1], 1, BLOCK), 0);
    assert_int_equal(image_read(&rig->disks->images[1], &found[2], 1, 2 * BLOCK), 0);
    assert_memory_equal(found, "cb", 3);

    /* Once: what was written since stays. */
    start(rig);
    succeeds(nbd_pwrite(rig->client[1], "guest", 5, 0, 0));
    close_disks(rig);
    open_disks(rig);
    assert_int_equal(image_read(&rig->disks->images[1], &found[0], 1, 0), 0);
    assert_int_equal(found[0], 'g');
}

static void refuses_what_is_damaged(void **state)
{
    static const char *const names[] = {"disks/web/copy", "disks/web/redo"};
    struct rig *rig = *state;
    struct disks *d;
    struct err err;

    for (size_t i = 0; i < N_OF(names); i++) {
        FILE *f;

        close_disks(rig);
        f = fopen(path(rig, names[i]), "w");
        assert_non_null(f);
        assert_true(fputs("damaged", f) >= 0);
        assert_int_equal(fclose(f), 0);
        assert_true(disks_open(&rig->config, &rig->spec, rig->folder, DISKS_START, rig->event, &d,
                               &err) < 0);
        assert_null(d);
        assert_non_null(strstr(err.text, path(rig, names[i])));
        assert_int_equal(unlink(path(rig, names[i])), 0);
        open_disks(rig);
    }
    /* One process at a time. */
    assert_int_equal(
        disks_open(&rig->config, &rig->spec, rig->folder, DISKS_START, rig->event, &d, &err),
        -EBUSY);
    assert_non_null(strstr(err.text, "disks[0]: "));
}

static void maps_are_trusted_until_the_start(void **state)
{
    struct rig *rig = *state;

    for (unsigned i = 0; i < DISKS; i++) {
        assert_true(rig->disks->created[i]);
        assert_int_equal(disk_map_reset(rig->disks->maps[i], some, NULL), 0);
        disk_map_mark(rig->disks->maps[i], i * BLOCK, 1);
    }
    close_disks(rig);
    open_disks(rig);
    for (unsigned i = 0; i < DISKS; i++) {
        uint64_t offset, n;

        assert_false(rig->disks->created[i]);
        assert_true(disk_map_trusted(rig->disks->maps[i]));
        assert_memory_equal(disk_map_sync(rig->disks->maps[i]), some, sizeof(some));
        assert_true(disk_map_next(rig->disks->maps[i], 0, &offset, &n));
        assert_int_equal(offset, i * BLOCK);
    }
    start(rig);
    for (unsigned i = 0; i < DISKS; i++)
        assert_false(disk_map_trusted(rig->disks->maps[i]));
    close_disks(rig);
    open_disks(rig);
    for (unsigned i = 0; i < DISKS; i++)
        assert_false(disk_map_trusted(rig->disks->maps[i]));
}

/* An image that was made anew is not the one that the map is of. */
static void a_new_image_has_no_history(void **state)
{
    struct rig *rig = *state;

    for (unsigned i = 0; i < DISKS; i++)
        assert_int_equal(disk_map_reset(rig->disks->maps[i], some, NULL), 0);
    close_disks(rig);
    assert_int_equal(unlink(path(rig, "image0")), 0);
    open_disks(rig);
    assert_true(rig->disks->created[0]);
    assert_false(rig->disks->created[1]);
    assert_memory_equal(disk_map_sync(rig->disks->maps[0]), none, sizeof(none));
    assert_true(disk_map_trusted(rig->disks->maps[1]));
}

/* ---- activation record ---- */

static void assert_record(const struct rig *rig, enum copy_role role, uint64_t term)
{
    struct copy_record there;

    assert_int_equal(copy_record_load(path(rig, "disks/web/copy"), &there, NULL), 0);
    assert_int_equal(there.role, role);
    assert_int_equal(there.term, term);
}

/* A disk that the VM has used is not replaced by an empty one at a start; a standby's is. */
static void a_used_image_is_not_made_anew(void **state)
{
    const struct copy_record used = {.role = COPY_PRIMARY, .term = 3};
    struct rig *rig = *state;
    struct disks *d;
    struct err err;

    assert_int_equal(disks_record(rig->disks, &used, NULL), 0);
    close_disks(rig);
    assert_int_equal(unlink(path(rig, "image1")), 0);
    assert_int_equal(
        disks_open(&rig->config, &rig->spec, rig->folder, DISKS_START, rig->event, &d, &err),
        -ENOENT);
    assert_non_null(strstr(err.text, "disks[1]: "));
    assert_non_null(strstr(err.text, "image1 is missing"));
    assert_int_equal(access(path(rig, "image1"), F_OK), -1);
    assert_int_equal(
        disks_open(&rig->config, &rig->spec, rig->folder, DISKS_STANDBY, rig->event, &d, &err), 0);
    assert_false(d->created[0]);
    assert_true(d->created[1]);
    disks_close(d);
}

static void records_stay_in_order(void **state)
{
    const struct copy_record standby = {.role = COPY_STANDBY, .term = 4, .epoch = 9, .peer = "a"};
    struct copy_record primary = {.role = COPY_PRIMARY};
    struct rig *rig = *state;

    assert_int_equal(rig->disks->record.role, COPY_NONE);
    assert_int_equal(disks_record(rig->disks, &standby, NULL), 0);
    assert_record(rig, COPY_STANDBY, 4);
    for (unsigned round = 0; round < 20; round++) {
        for (primary.term = 5; primary.term < 10; primary.term++)
            disks_record_soon(rig->disks, &primary);
        assert_int_equal(rig->disks->record.term, 9); /* at once, for us */
        if (round % 2) {
            assert_int_equal(disks_record(rig->disks, &standby, NULL), 0);
            assert_record(rig, COPY_STANDBY, 4);
        } else {
            background_drain(rig->disks->background);
            assert_record(rig, COPY_PRIMARY, 9);
        }
    }
    disks_record_soon(rig->disks, &primary);
    close_disks(rig); /* waits for it */
    assert_record(rig, COPY_PRIMARY, 10);
    open_disks(rig);
    assert_int_equal(rig->disks->record.role, COPY_PRIMARY);
    assert_int_equal(rig->disks->record.term, 10);
}

/* ---- flushes ---- */

/* A flush of the guest, or of the hypervisor itself, which it does not count. */
enum whose { GUEST = 1, OWN = 0 };

/* One that ends at once. */
static void flush(struct rig *rig, unsigned disk, enum whose whose)
{
    succeeds(nbd_flush(rig->client[disk], 0));
    rig->counts[disk] += whose;
}

/* One that is kept waiting: it has arrived, since what was sent after it is answered. */
static int64_t flush_held(struct rig *rig, unsigned disk)
{
    int64_t cookie = nbd_aio_flush(rig->client[disk], NBD_NULL_COMPLETION, 0);
    char byte;

    assert_true(cookie > 0);
    succeeds(nbd_pread(rig->client[disk], &byte, 1, 0, 0));
    assert_int_equal(nbd_aio_command_completed(rig->client[disk], (uint64_t)cookie), 0);
    return cookie;
}

static void await(struct rig *rig, unsigned disk, int64_t cookie, enum whose whose)
{
    int r;

    while ((r = nbd_aio_command_completed(rig->client[disk], (uint64_t)cookie)) == 0)
        assert_int_equal(nbd_poll(rig->client[disk], WAIT_MS), 1);
    succeeds(r);
    rig->counts[disk] += whose;
}

/* Whether a flush was carried out with a sync since this was asked last. */
static bool synced(struct rig *rig)
{
    const struct disk_log *log = journal_cut(rig->disks->journal, ++rig->epoch);
    bool flushed = log && log->flushed;

    journal_acked(rig->disks->journal, rig->epoch);
    return flushed;
}

static void stop(struct rig *rig)
{
    disks_phase(rig->disks, DISK_STOPPING);
    disks_phase(rig->disks, DISK_STOPPED);
}

/* The end of a checkpoint: what the guard asks, and the VM goes on. */
static void assert_owed_and_go_on(struct rig *rig, bool owed)
{
    assert_true(disks_deferred(rig->disks));
    assert_false(synced(rig));
    assert_int_equal(disks_owe_sync(rig->disks, rig->counts), owed);
    if (owed) {
        assert_int_equal(disks_sync(rig->disks), 0);
        assert_true(synced(rig)); /* the standby has to sync too */
    }
    disks_phase(rig->disks, DISK_RUNNING);
    assert_false(disks_deferred(rig->disks));
}

/* A checkpoint in which nothing happens but the hypervisor's own flush. */
static void assert_idle_checkpoint(struct rig *rig, bool owed)
{
    stop(rig);
    flush(rig, 0, OWN);
    flush(rig, 1, OWN);
    assert_owed_and_go_on(rig, owed);
}

static void own_flushes_owe_nothing(void **state)
{
    struct rig *rig = *state;

    start(rig);
    for (unsigned i = 0; i < 5; i++)
        assert_idle_checkpoint(rig, false);
    for (unsigned i = 0; i < 5; i++) {
        flush(rig, 0, GUEST);
        flush(rig, i % 2, GUEST);
        assert_true(synced(rig));
        if (i % 2)
            assert_idle_checkpoint(rig, false);
        stop(rig); /* one in which nothing had to be flushed, so nobody asks */
        assert_false(disks_deferred(rig->disks));
        disks_phase(rig->disks, DISK_RUNNING);
    }
    assert_idle_checkpoint(rig, false);
}

static void deferred_flush_of_the_guest_is_owed(void **state)
{
    struct rig *rig = *state;

    start(rig);
    for (unsigned i = 0; i < 10; i++) {
        unsigned disk = i % DISKS;
        int64_t cookie;

        for (unsigned j = 0; j < i; j++)
            flush(rig, disk, GUEST);
        (void)synced(rig);
        disks_phase(rig->disks, DISK_STOPPING);
        cookie = flush_held(rig, disk);
        assert_false(disks_deferred(rig->disks));
        disks_phase(rig->disks, DISK_STOPPED);
        await(rig, disk, cookie, GUEST);
        if (i % 3)
            flush(rig, disk, OWN);
        assert_owed_and_go_on(rig, true);
        if (i % 4)
            assert_idle_checkpoint(rig, false);
    }
    assert_idle_checkpoint(rig, false);
}

static void unknown_counts_are_owed(void **state)
{
    struct rig *rig = *state;

    start(rig);
    for (unsigned i = 0; i < 3; i++) {
        flush(rig, 0, GUEST);
        (void)synced(rig);
        stop(rig);
        flush(rig, 0, OWN);
        assert_true(disks_owe_sync(rig->disks, NULL));
        assert_int_equal(disks_sync(rig->disks), 0);
        disks_phase(rig->disks, DISK_RUNNING);
    }
    (void)synced(rig);
    assert_idle_checkpoint(rig, false); /* all that is known now was synced for */
    stop(rig);
    flush(rig, 1, GUEST);
    assert_owed_and_go_on(rig, true);
}

/* The checkpoint fails before the vCPUs stand still: what was kept waiting is carried out. */
static void flushes_of_a_failed_stop(void **state)
{
    struct rig *rig = *state;

    start(rig);
    for (unsigned i = 0; i < 4; i++) {
        enum whose whose = i % 2 ? GUEST : OWN;
        int64_t cookie;

        disks_phase(rig->disks, DISK_STOPPING);
        cookie = flush_held(rig, 0);
        if (i / 2)
            disks_let_flushes_go(rig->disks);
        else
            disks_phase(rig->disks, DISK_RUNNING);
        await(rig, 0, cookie, whose);
        assert_true(synced(rig));
        disks_phase(rig->disks, DISK_RUNNING);

        /* It may have been the hypervisor's own, and must not hide this one. */
        stop(rig);
        flush(rig, 0, GUEST);
        assert_owed_and_go_on(rig, true);
        assert_idle_checkpoint(rig, false);
    }
}

/* What is synced for while the phase does not change is counted once. */
static void running_twice(void **state)
{
    struct rig *rig = *state;

    start(rig);
    for (unsigned i = 0; i < 3; i++) {
        flush(rig, 1, GUEST);
        (void)synced(rig);
        disks_phase(rig->disks, DISK_RUNNING);
        stop(rig);
        flush(rig, 1, GUEST);
        assert_owed_and_go_on(rig, true);
    }
    assert_idle_checkpoint(rig, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(no_disks, setup, teardown),
        cmocka_unit_test_setup_teardown(redo_log_is_replayed, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_what_is_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(maps_are_trusted_until_the_start, setup, teardown),
        cmocka_unit_test_setup_teardown(a_new_image_has_no_history, setup, teardown),
        cmocka_unit_test_setup_teardown(a_used_image_is_not_made_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(records_stay_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(own_flushes_owe_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(deferred_flush_of_the_guest_is_owed, setup, teardown),
        cmocka_unit_test_setup_teardown(unknown_counts_are_owed, setup, teardown),
        cmocka_unit_test_setup_teardown(flushes_of_a_failed_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(running_twice, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
