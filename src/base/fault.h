/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_FAULT_H
#define US_BASE_FAULT_H

/* Named points at which a test can have a process crash, stop or wait, or a call fail (build option
 * fault_points; in other builds they cost nothing):
 *
 *     fault_point("guard.sent");
 *     if (FAULTY("disk.image-sync", fdatasync(fd)) < 0)
 *         return -errno;
 *     chunk = FAULTY_ALLOC("disk.log-room", malloc(n));
 *
 * A name is PART.STEP and stands in one place of the source; tools/fault-points lists them all, and
 * tests/vm/fault_test.py tries each.
 *
 * UNDERSTUDY_FAULTS=FILE names a file (struct fault_file, made by the test) that all processes of a
 * host map and that may be changed at any time. It has one order, a line of text:
 *
 *     POINT N crash              when a process of the host comes there for the Nth time: SIGKILL
 *     POINT N stop               SIGSTOP, for whoever wants to kill the host in exactly that phase
 *     POINT N delay MS           goes on later
 *     POINT N error ERRNO        the call is not made, and fails with that
 *     POINT N delays MS          likewise, and each time from then on
 *     POINT N errors ERRNO
 *
 * and tells what became of it. Points of calls take all orders, others all but errors. */
#ifdef US_FAULT_POINTS

#include <stdatomic.h>
#include <stdint.h>

enum { FAULT_POINTS_MAX = 496 };

struct fault_file {
    _Atomic uint32_t generation; /* 0: no order; the writer changes it last */
    _Atomic uint32_t hits;       /* of the order's point since it was given */
    _Atomic uint32_t taken;      /* how often the order was carried out */
    _Atomic uint32_t pid;        /* by whom last */
    char order[240];             /* ends with NUL */
    struct {
        _Atomic uint64_t name; /* FNV-1a, 64 bits; 0: free */
        _Atomic uint64_t hits; /* of the point since the file was made */
    } seen[FAULT_POINTS_MAX];
};

void fault_point(const char *name);
/* 0, or the negative errno (errno too) with which a call is to fail: for those that return such a
 * thing, as in r = fault_error("redo.sync") ?: image_sync(file). */
int fault_error(const char *name);
/* For tests in one process, and those that they fork: gives an order. NULL: none. */
void fault_arm(const char *order);
/* How often the order was carried out. */
unsigned fault_taken(void);

/* A call that returns -1 and sets errno. */
#define FAULTY(name, call) (fault_error(name) < 0 ? -1 : (call))
/* A call that returns NULL and sets errno. */
#define FAULTY_ALLOC(name, call) (fault_error(name) < 0 ? NULL : (call))

#else

static inline void fault_point(const char *name)
{
    (void)name;
}

static inline int fault_error(const char *name)
{
    (void)name;
    return 0;
}

static inline void fault_arm(const char *order)
{
    (void)order;
}

#define FAULTY(name, call)       (call)
#define FAULTY_ALLOC(name, call) (call)

#endif
#endif
