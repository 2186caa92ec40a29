/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_TAP_H
#define US_TESTS_HYP_TAP_H

#include <stdbool.h>

#include "base/err.h"

/* A line of TAP. */
void check(bool good, const char *fmt, ...) US_PRINTF(2, 3);
/* It cannot go on: says why and ends the program. */
void bail_out(const char *fmt, ...) US_PRINTF(1, 2) __attribute__((noreturn));
/* The last line. Returns the exit status. */
int tap_end(void);

#endif
