/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/syscall.h>

#include "applier_rig.h"

/* What ends a copy: a broken order of epochs, and errors of the images, the log and the record. */

/* These stand in for libc's functions of the same name, so that one file can be made to fail. */
static struct {
    const char *path; /* in the folder; NULL = none fails */
    bool syncs;       /* syncs fail, else writes */
} broken;

static bool is_broken(int fd, bool sync)
{
    struct stat one, other;
    char path[64]; /* rig_path() has one for all threads */

    if (!broken.path || broken.syncs != sync)
        return false;
    (void)snprintf(path, sizeof(path), "%s/%s", rig_folder, broken.path);
    return fstat(fd, &one) == 0 && stat(path, &other) == 0 && one.st_ino == other.st_ino;
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset)
{
    if (!is_broken(fd, false))
        return syscall(SYS_pwrite64, fd, bytes, n, offset);
    errno = ENOSPC;
    return -1;
}

int fdatasync(int fd)
{
    if (!is_broken(fd, true))
        return (int)syscall(SYS_fdatasync, fd);
    errno = EIO;
    return -1;
}

static void assert_failed(int error, const char *text)
{
    struct disk_log log = {0};

    while (report().error == 0)
        wait_event();
    assert_int_equal(report().error, error);
    if (!strstr(report().text, text))
        fail_msg("\"%s\" is not in \"%s\"", text, report().text);
    applier_drain(rig.applier); /* and it does not hang */
    assert_int_equal(applier_stage(rig.applier, 1000, TERM, &log), error);
}

static void marks_are_bounded(void **state)
{
    struct disk_log log = {0};

    for (unsigned i = 0; i <= APPLIER_MARKS_MAX; i++)
        add_mark(&log, i, 0);
    assert_int_equal(applier_stage(rig.applier, 1, 0, &log), 0);
    applier_commit(rig.applier, 1);
    assert_failed(-EPROTO, "marks");
}

static void order_is_checked(void **state)
{
    stage_all(1, 2, TERM);
    assert_int_equal(stage(2, TERM), -EPROTO);
    assert_failed(-EPROTO, "epoch 2");
}

static void no_seeding_after_a_term(void **state)
{
    stage_all(1, 2, TERM);
    assert_int_equal(stage(3, 0), -EPROTO);
    assert_failed(-EPROTO, "epoch 3");
}

static void errors_of_an_image(void **state)
{
    applier_close(rig.applier);
    open_applier(1);
    broken.path = "disk0";
    stage_all(1, 3, TERM);
    applier_commit(rig.applier, 3);
    assert_int_equal(stage(4, TERM), -ENOSPC); /* and it does not wait for ever */
    assert_failed(-ENOSPC, rig_path("disk0"));
    broken.path = NULL;
    assert_int_equal(restart(), 3); /* the log has them all the same */
    rig_assert_at(3);
}

static void errors_of_an_image_sync(void **state)
{
    broken.path = "disk1";
    broken.syncs = true;
    stage_all(1, 3, TERM);
    applier_commit(rig.applier, 3);
    assert_failed(-EIO, rig_path("disk1"));
    assert_int_equal(rig.n_consistent, 0);
    rig_assert_at(0);
}

static void errors_of_the_log(void **state)
{
    stage_all(1, 2, TERM);
    commit(2);
    broken.path = "redo";
    assert_int_equal(stage(3, TERM), -ENOSPC);
    assert_failed(-ENOSPC, rig_path("redo"));
}

static void errors_of_a_log_sync(void **state)
{
    stage_all(1, 2, TERM);
    commit(2);
    broken.path = "redo";
    broken.syncs = true;
    assert_int_equal(stage(3, TERM), 0);
    assert_int_equal(stage(4, TERM), -EIO); /* flushed */
    assert_failed(-EIO, rig_path("redo"));
    assert_int_equal(report().durable_epoch, 2);
}

static void errors_of_the_record(void **state)
{
    rig.refuse = -EROFS;
    stage_all(1, 2, TERM);
    applier_commit(rig.applier, 2);
    assert_failed(-EROFS, "record of the copy");
    rig_assert_at(0);
}

static int mend(void **state)
{
    memset(&broken, 0, sizeof(broken));
    return teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(marks_are_bounded, setup, mend),
        cmocka_unit_test_setup_teardown(order_is_checked, setup, mend),
        cmocka_unit_test_setup_teardown(no_seeding_after_a_term, setup, mend),
        cmocka_unit_test_setup_teardown(errors_of_an_image, setup, mend),
        cmocka_unit_test_setup_teardown(errors_of_an_image_sync, setup, mend),
        cmocka_unit_test_setup_teardown(errors_of_the_log, setup, mend),
        cmocka_unit_test_setup_teardown(errors_of_a_log_sync, setup, mend),
        cmocka_unit_test_setup_teardown(errors_of_the_record, setup, mend),
    };

    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
