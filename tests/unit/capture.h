/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_CAPTURE_H
#define US_TESTS_CAPTURE_H

#include <stdio.h>
#include <sys/wait.h>

#include "unit.h"

/* Runs a shell command; output is what it prints, as far as it fits. Returns its exit status. */
static inline int capture(const char *command, char *output, size_t n_output)
{
    FILE *f = popen(command, "r");
    size_t n;
    int status;

    assert_non_null(f);
    n = fread(output, 1, n_output - 1, f);
    output[n] = '\0';
    status = pclose(f);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#endif
