/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_CLEANUP_H
#define US_BASE_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

/* Locals that clean up after themselves on every way out of a function. What shall outlive the
 * function leaves through take_ptr() or take_fd(). */
#define CLEANUP(fn) __attribute__((cleanup(fn)))
#define CLEANUP_FREE CLEANUP(cleanup_free)
#define CLEANUP_FD CLEANUP(cleanup_fd)

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}

static inline void cleanup_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

/* Moves ownership out of a cleanup local: returns the value, leaves NULL or -1 behind. */
#define take_ptr(p)                                                                                \
    __extension__({                                                                                \
        __typeof__(p) taken_ = (p);                                                                \
        (p) = NULL;                                                                                \
        taken_;                                                                                    \
    })

static inline int take_fd(int *fd)
{
    int taken = *fd;

    *fd = -1;
    return taken;
}

#endif
