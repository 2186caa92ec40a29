/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_DEADLINE_H
#define US_HYP_QEMU_DEADLINE_H

#include "io/clock.h"

/* Milliseconds until `deadline_ns`, rounded up, 0 when it has passed: a timeout for poll(). */
static inline int ms_until(uint64_t deadline_ns)
{
    uint64_t now = clock_now_ns();

    return now >= deadline_ns ? 0 : (int)((deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS);
}

#endif
