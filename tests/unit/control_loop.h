/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_CONTROL_LOOP_H
#define US_TESTS_CONTROL_LOOP_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <systemd/sd-event.h>
#include <time.h>
#include <unistd.h>

#include "unit.h"

/* An event loop and a directory for sockets, for the tests of the control protocol. */

struct loop {
    sd_event *event;
    char dir[32];
    char path[64]; /* DIR/c.sock */
};

static inline void loop_init(struct loop *l)
{
    (void)snprintf(l->dir, sizeof(l->dir), "/tmp/control.XXXXXX");
    assert_non_null(mkdtemp(l->dir));
    (void)snprintf(l->path, sizeof(l->path), "%s/c.sock", l->dir);
    assert_true(sd_event_new(&l->event) >= 0);
}

static inline void loop_done(struct loop *l)
{
    sd_event_unref(l->event);
    assert_int_equal(rmdir(l->dir), 0); /* servers have removed their sockets */
}

static inline double loop_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Runs the loop until *flag is true; fails the test after 10 seconds. */
static inline void loop_until(struct loop *l, const bool *flag)
{
    double end = loop_seconds() + 10;

    while (!*flag) {
        assert_true(loop_seconds() < end);
        assert_true(sd_event_run(l->event, 100000) >= 0);
    }
}

/* Runs the loop until nothing is left to do. */
static inline void loop_idle(struct loop *l)
{
    while (sd_event_run(l->event, 0) > 0)
        ;
}

#endif
