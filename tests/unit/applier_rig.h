/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_APPLIER_RIG_H
#define US_TESTS_APPLIER_RIG_H

#include <poll.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "disk/applier.h"
#include "disk_rig.h"

/* An applier with a redo log on the disks of disk_rig.h, which stages that rig's epochs. */

enum { TERM = 7, WAIT_MS = 20000 };

static struct {
    struct applier *applier;
    int event;
    unsigned n_consistent;
    uint64_t consistent_epoch, consistent_term;
    uint64_t tag_then, durable_then; /* when it became consistent */
    int refuse;                      /* what on_consistent returns */
} rig;

static inline struct applier_report report(void)
{
    struct applier_report r;

    applier_report_get(rig.applier, &r);
    return r;
}

static inline int on_consistent(void *user, uint64_t epoch, uint64_t term)
{
    rig.n_consistent++;
    rig.consistent_epoch = epoch;
    rig.consistent_term = term;
    rig.tag_then = rig_tag();
    rig.durable_then = report().durable_epoch;
    return rig.refuse;
}

/* *ret_epoch: the last one that was in the log. */
static inline struct redo *open_redo(uint64_t *ret_epoch)
{
    struct redo *redo;
    uint64_t term;

    assert_int_equal(redo_open(rig_path("redo"), "web", &redo, NULL), 0);
    assert_int_equal(redo_recover(redo, rig_images, RIG_DISKS, ret_epoch, &term, NULL), 0);
    return redo;
}

static inline void open_applier(uint64_t limit_bytes)
{
    const struct applier_callbacks callbacks = {.on_consistent = on_consistent};
    uint64_t epoch;
    struct redo *redo = open_redo(&epoch);

    assert_int_equal(
        applier_new(rig_images, RIG_DISKS, redo, limit_bytes, rig.event, &callbacks, &rig.applier),
        0);
}

static inline int setup(void **state)
{
    memset(&rig, 0, sizeof(rig));
    rig.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rig_open_images();
    open_applier(1 << 20);
    return 0;
}

static inline int teardown(void **state)
{
    applier_close(rig.applier);
    close(rig.event);
    rig_close_images();
    return rig_clean(state);
}

/* Ends the applier and finds what a restart finds in the log. */
static inline uint64_t restart(void)
{
    uint64_t epoch;

    applier_close(take_ptr(rig.applier));
    redo_close(open_redo(&epoch));
    return epoch;
}

/* What a restart finds are the disks at that epoch. The log may have been emptied, if the test was
 * stopped for a second. */
static inline void restart_finds(uint64_t epoch)
{
    uint64_t found = restart();

    assert_true(found == epoch || found == 0);
    rig_assert_at(epoch);
}

static inline int stage(uint64_t epoch, uint64_t term)
{
    struct disk_log log = {0};
    int r;

    rig_epoch(epoch, &log, NULL);
    r = applier_stage(rig.applier, epoch, term, &log);
    if (r == 0)
        assert_null(log.first);
    disk_log_clear(&log);
    return r;
}

static inline void stage_all(uint64_t first, uint64_t last, uint64_t term)
{
    for (uint64_t epoch = first; epoch <= last; epoch++)
        assert_int_equal(stage(epoch, term), 0);
}

/* Waits for the next change of the report. */
static inline void wait_event(void)
{
    struct pollfd pollfd = {.fd = rig.event, .events = POLLIN};
    uint64_t n;

    assert_int_equal(poll(&pollfd, 1, WAIT_MS), 1);
    assert_int_equal(read(rig.event, &n, sizeof(n)), sizeof(n));
}

static inline void wait_applied(uint64_t epoch)
{
    while (report().applied_epoch < epoch) {
        assert_int_equal(report().error, 0);
        wait_event();
    }
}

static inline void commit(uint64_t epoch)
{
    applier_commit(rig.applier, epoch);
    wait_applied(epoch);
}

static inline void add_mark(struct disk_log *log, uint64_t number, uint8_t flags)
{
    const struct disk_record rec = {.kind = DISK_MARK, .flags = flags, .offset = number};

    assert_int_equal(disk_log_add(log, &rec, NULL), 0);
}

#endif
