/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp-tap.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned int n_checks, n_failed;

void check(bool good, const char *fmt, ...)
{
    va_list ap;

    printf("%sok %u - ", good ? "" : "not ", ++n_checks);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    fflush(stdout);
    if (!good)
        n_failed++;
}

void bail_out(const char *fmt, ...)
{
    va_list ap;

    printf("Bail out! ");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    exit(1);
}

int tap_end(void)
{
    printf("1..%u\n", n_checks);
    return n_failed ? 1 : 0;
}
