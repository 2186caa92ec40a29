/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>

#include "disk/redo.h"
#include "disk_rig.h"
#include "golden/redo.h"

enum { BLOCK = 4096, FIRST = 2 * BLOCK, TERM = 7 };

/* These stand in for libc's functions of the same name, so that the log's disk can be made to fail.
 */
static struct {
    int calls, fail_at; /* fail_at: the number of the call that fails; 0 = none */
} disk;

static bool failing(void)
{
    disk.calls++;
    if (disk.calls != disk.fail_at)
        return false;
    errno = ENOSPC;
    return true;
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset)
{
    return failing() ? -1 : syscall(SYS_pwrite64, fd, bytes, n, offset);
}

int fdatasync(int fd)
{
    return failing() ? -1 : (int)syscall(SYS_fdatasync, fd);
}

static struct redo *open_log(void)
{
    struct redo *redo;
    struct err err = {""};

    if (redo_open(rig_path("redo"), "web", &redo, &err) < 0)
        fail_msg("%s", err.text);
    return redo;
}

static void refused(const char *vm, int r, const char *text)
{
    struct redo *redo;
    struct err err;

    assert_int_equal(redo_open(rig_path("redo"), vm, &redo, &err), r);
    assert_non_null(strstr(err.text, rig_path("redo")));
    if (!strstr(err.text, text))
        fail_msg("\"%s\" is not in \"%s\"", text, err.text);
}

static int try_recover(struct redo *redo, uint64_t *ret_epoch, struct err *err)
{
    uint64_t term;
    int r;

    r = redo_recover(redo, rig_images, RIG_DISKS, ret_epoch, &term, err);
    if (r == 0)
        assert_int_equal(term, *ret_epoch ? TERM : 0);
    return r;
}

static void recovers_to(struct redo *redo, uint64_t epoch)
{
    struct err err = {""};
    uint64_t found;

    if (try_recover(redo, &found, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(found, epoch);
}

static struct redo *open_recovered(void)
{
    struct redo *redo = open_log();

    recovers_to(redo, 0);
    return redo;
}

static int append(struct redo *redo, uint64_t epoch)
{
    struct disk_log log = {0};
    int r;

    rig_epoch(epoch, &log, NULL);
    r = redo_append(redo, epoch, TERM, &log);
    disk_log_clear(&log);
    return r;
}

static void append_all(struct redo *redo, uint64_t first, uint64_t last)
{
    for (uint64_t epoch = first; epoch <= last; epoch++)
        assert_int_equal(append(redo, epoch), 0);
}

/* A restart finds those epochs in the log, then stands at disk_epoch, and the log is empty. */
static void restart_finds(uint64_t log_epoch, uint64_t disk_epoch)
{
    struct redo *redo = open_log();

    recovers_to(redo, log_epoch);
    rig_assert_at(disk_epoch);
    redo_close(redo);
    redo = open_recovered();
    rig_assert_at(disk_epoch);
    redo_close(redo);
}

static int open_disks(void **state)
{
    disk.fail_at = 0;
    rig_open_images();
    return 0;
}

static int close_disks(void **state)
{
    rig_close_images();
    return rig_clean(state);
}

static int log_fd(void)
{
    int fd = open(rig_path("redo"), O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static uint64_t file_bytes(bool allocated)
{
    struct stat st;

    assert_int_equal(stat(rig_path("redo"), &st), 0);
    return allocated ? (uint64_t)st.st_blocks * 512 : (uint64_t)st.st_size;
}

/* Writes something else over n bytes of the file. */
static void damage(uint64_t at, size_t n)
{
    uint8_t bytes[256];
    int fd = log_fd();

    assert_true(n <= sizeof(bytes));
    assert_int_equal(pread(fd, bytes, n, (off_t)at), n);
    for (size_t i = 0; i < n; i++)
        bytes[i] ^= 0x55;
    assert_int_equal(syscall(SYS_pwrite64, fd, bytes, n, at), n);
    close(fd);
}

static void copy_file(const char *from, const char *to)
{
    char command[256], from_path[64];

    (void)snprintf(from_path, sizeof(from_path), "%s", rig_path(from));
    (void)snprintf(command, sizeof(command), "cp --sparse=always %s %s", from_path, rig_path(to));
    assert_int_equal(system(command), 0);
}

static void layout_is_as_documented(void **state)
{
    const struct disk_record write = {
        .disk = 1, .kind = DISK_WRITE, .n_data = 4, .offset = 512, .n_bytes = 4};
    struct disk_log log = {.flushed = true};
    struct redo *redo = open_recovered();
    uint8_t slot[BLOCK], epoch[sizeof(golden_epoch)];
    int fd = log_fd();

    assert_int_equal(disk_log_add(&log, &write, "data"), 0);
    assert_int_equal(redo_append(redo, 0x1122334455667788, TERM, &log), 0);
    disk_log_clear(&log);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(pread(fd, slot, BLOCK, i * BLOCK), BLOCK);
        assert_memory_equal(slot, golden_slot[i].start, sizeof(golden_slot[i].start));
        for (unsigned at = sizeof(golden_slot[i].start); at < BLOCK - 8; at++)
            assert_int_equal(slot[at], 0);
        assert_memory_equal(slot + BLOCK - 8, golden_slot[i].checksum, 8);
    }
    assert_int_equal(pread(fd, epoch, sizeof(epoch), FIRST), sizeof(epoch));
    assert_memory_equal(epoch, golden_epoch, sizeof(epoch));
    close(fd);
    redo_close(redo);
}

static void epochs_are_replayed(void **state)
{
    struct redo *redo = open_recovered();

    append_all(redo, 1, 30);
    assert_int_equal(redo_sync(redo), 0);
    redo_close(redo);
    restart_finds(30, 30);
}

/* The images may have any part of what the log holds. */
static void replay_does_not_depend_on_the_images(void **state)
{
    struct redo *redo = open_recovered();

    append_all(redo, 1, 20);
    redo_close(redo);
    copy_file("redo", "redo.new");
    restart_finds(20, 20);
    copy_file("redo.new", "redo");
    restart_finds(20, 20);
}

static void reset_forgets(void **state)
{
    struct redo *redo = open_recovered();

    append_all(redo, 1, 12);
    redo_close(redo);
    redo = open_log();
    recovers_to(redo, 12);    /* and resets */
    append_all(redo, 13, 15); /* shorter: old epochs are left behind it */
    redo_close(redo);
    restart_finds(15, 15);
}

/* As after a crash while epoch 10 was appended, and perhaps 11 behind it. */
static void recovers_to_9(void)
{
    struct redo *redo = open_log();

    recovers_to(redo, 9);
    rig_assert_at(9);
    redo_close(redo);
}

static void torn_end_is_ignored(void **state)
{
    struct redo *redo = open_recovered();
    struct disk_log log = {0};
    uint64_t place, end;

    append_all(redo, 1, 9);
    place = redo_end(redo);
    append_all(redo, 10, 11);
    redo_close(redo);
    rig_epoch(10, &log, NULL);
    end = place + 80 + log.n_bytes;
    disk_log_clear(&log);
    copy_file("redo", "redo.new");
    for (uint64_t at = place; at < end; at += at < place + 128 ? 1 : 997) {
        copy_file("redo.new", "redo");
        damage(at, 1);
        recovers_to_9();
        copy_file("redo.new", "redo");
        assert_int_equal(truncate(rig_path("redo"), (off_t)at), 0);
        recovers_to_9();
    }
}

/* The first epoch is torn, the next, of the same length, is not: nothing that is appended later in
 * place of the first may bring it back. */
static void torn_start_does_not_return(void **state)
{
    struct redo *redo = open_recovered();

    append_all(redo, 3, 3);
    append_all(redo, 4, 4);
    redo_close(redo);
    damage(FIRST, 1);
    redo = open_log();
    recovers_to(redo, 0);
    append_all(redo, 3, 3);
    redo_close(redo);
    redo = open_log();
    recovers_to(redo, 3);
    redo_close(redo);
}

/* A crash while the header of a reset was written: the older one counts. */
static void torn_reset_replays(void **state)
{
    struct redo *redo = open_recovered();

    append_all(redo, 1, 6);
    redo_close(redo);
    redo = open_log();
    recovers_to(redo, 6);
    redo_close(redo);
    damage(0, 1); /* that reset's header */
    redo = open_log();
    recovers_to(redo, 6);
    append_all(redo, 7, 8);
    redo_close(redo);
    restart_finds(8, 8);
}

static void damage_is_refused(void **state)
{
    struct redo *redo = open_recovered();
    struct err err;
    uint64_t epoch;

    redo_close(redo);
    refused("db", -EBADMSG, "another VM");

    damage(0, 1); /* one slot, and the other names an empty log */
    redo = open_log();
    assert_int_equal(try_recover(redo, &epoch, &err), -EBADMSG);
    redo_close(redo);
    damage(BLOCK + 100, 1);
    refused("web", -EBADMSG, "both headers");
    assert_int_equal(truncate(rig_path("redo"), 100), 0);
    refused("web", -EBADMSG, "too short");
    rig_clean(NULL);

    /* The newest header is lost, and epochs that it names have replaced those of the older one. */
    rig_close_images();
    rig_open_images();
    redo = open_recovered();
    append_all(redo, 1, 3);
    redo_close(redo);
    redo = open_log();
    recovers_to(redo, 3);
    append_all(redo, 4, 4);
    redo_close(redo);
    damage(0, 1);
    redo = open_log();
    assert_int_equal(try_recover(redo, &epoch, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "newest header"));
    redo_close(redo);
}

static void one_process_only(void **state)
{
    struct redo *redo = open_log();

    refused("web", -EBUSY, "another process");
    redo_close(redo);
}

/* Epochs that do not belong to these disks, in this order: nothing at all is applied. */
static void strange_epochs_change_nothing(void **state)
{
    const struct disk_record behind = {.kind = DISK_ZERO, .offset = RIG_BIG_BYTES, .n_bytes = 512};
    struct redo *redo = open_recovered();
    struct disk_log log = {0};
    struct err err;
    uint64_t epoch;

    append_all(redo, 1, 2);
    append_all(redo, 2, 2);
    redo_close(redo);
    redo = open_log();
    assert_int_equal(try_recover(redo, &epoch, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "epoch 2 comes after epoch 2"));
    rig_assert_at(0);
    redo_close(redo);

    assert_int_equal(unlink(rig_path("redo")), 0);
    redo = open_recovered();
    append_all(redo, 1, 2);
    assert_int_equal(disk_log_add(&log, &behind, NULL), 0);
    assert_int_equal(redo_append(redo, 3, TERM, &log), 0);
    disk_log_clear(&log);
    redo_close(redo);
    redo = open_log();
    assert_int_equal(try_recover(redo, &epoch, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "epoch 3: disk record for"));
    rig_assert_at(0);
    redo_close(redo);
}

static void trim_starts_later(void **state)
{
    struct redo *redo = open_recovered();
    struct rig_model *model = calloc(1, sizeof(*model));
    uint64_t place, used;

    append_all(redo, 1, 40);
    place = redo_end(redo);
    append_all(redo, 41, 45);
    used = file_bytes(true);
    rig_model_to(model, 40);
    for (unsigned i = 0; i < RIG_DISKS; i++)
        assert_int_equal(image_write(&rig_images[i], model->bytes[i], rig_sizes[i], 0), 0);
    assert_int_equal(redo_trim(redo, place), 0);
    assert_true(file_bytes(true) < used / 2);
    redo_close(redo);
    copy_file("redo", "redo.new");
    restart_finds(45, 45);

    copy_file("redo.new", "redo"); /* the trim's header is lost, and what was before it too */
    damage(0, 1);
    redo = open_log();
    assert_int_equal(try_recover(redo, &place, NULL), -EBADMSG);
    redo_close(redo);
    free(model);
}

static void dropped_epochs_are_gone(void **state)
{
    struct redo *redo = open_recovered();
    uint64_t place[2];

    append_all(redo, 1, 3);
    place[0] = redo_end(redo);
    append_all(redo, 4, 4);
    place[1] = redo_end(redo);
    append_all(redo, 5, 5);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(redo_drop(redo, place[i]), 0);
    assert_int_equal(redo_end(redo), place[0]);
    copy_file("redo", "redo.new");
    append_all(redo, 4, 4); /* the one behind it does not come back */
    redo_close(redo);
    restart_finds(4, 4);
    assert_int_equal(unlink(rig_path("disk0")), 0);
    assert_int_equal(unlink(rig_path("disk1")), 0);
    rig_close_images();
    rig_open_images();
    copy_file("redo.new", "redo");
    restart_finds(3, 3);
}

static void a_large_file_is_cut_down(void **state)
{
    const struct disk_record write = {
        .kind = DISK_WRITE, .n_data = RIG_BIG_BYTES, .n_bytes = RIG_BIG_BYTES};
    uint8_t *data = calloc(1, RIG_BIG_BYTES);
    struct redo *redo = open_recovered();
    struct disk_log log = {0};

    for (int i = 0; i < 20; i++)
        assert_int_equal(disk_log_add(&log, &write, data), 0);
    for (uint64_t epoch = 1; epoch <= 3; epoch++)
        assert_int_equal(redo_append(redo, epoch, TERM, &log), 0);
    assert_true(file_bytes(false) > 15 << 20);
    assert_int_equal(redo_reset(redo), 0);
    assert_int_equal(file_bytes(false), 8 << 20);
    redo_close(redo);
    redo = open_recovered();
    redo_close(redo);
    disk_log_clear(&log);
    free(data);
}

/* Whichever call fails, the log ends at a whole epoch and says that it failed. */
static void full_disk(void **state)
{
    struct redo *redo;

    for (int at = 1; at <= 3; at++) {
        redo = open_recovered();
        append_all(redo, 1, 5);
        disk.calls = 0;
        disk.fail_at = at;
        assert_int_equal(append(redo, 6), at <= 2 ? -ENOSPC : 0);
        assert_int_equal(redo_sync(redo), at == 3 ? -ENOSPC : 0);
        disk.fail_at = 0;
        assert_int_equal(redo_sync(redo), at == 3 ? -ENOSPC : 0); /* it does not forget */
        redo_close(redo);
        restart_finds(at <= 2 ? 5 : 6, at <= 2 ? 5 : 6);
        rig_close_images();
        rig_clean(NULL);
        rig_open_images();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(layout_is_as_documented, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(epochs_are_replayed, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(replay_does_not_depend_on_the_images, open_disks,
                                        close_disks),
        cmocka_unit_test_setup_teardown(reset_forgets, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(torn_end_is_ignored, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(torn_start_does_not_return, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(torn_reset_replays, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(damage_is_refused, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(one_process_only, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(strange_epochs_change_nothing, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(trim_starts_later, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(dropped_epochs_are_gone, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(a_large_file_is_cut_down, open_disks, close_disks),
        cmocka_unit_test_setup_teardown(full_disk, open_disks, close_disks),
    };

    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
