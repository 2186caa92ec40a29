/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_LOG_H
#define US_IO_LOG_H

#include <syslog.h>

#include "base/err.h"

/* Logging of the daemons. Under systemd, lines go to the journal with the fields VM= and PRIORITY=;
 * elsewhere to standard error as "12:00:00.123 hosta web: text". Tools print instead of logging. */

/* Names this process in its log lines. Both strings are copied; vm may be "" (no VM). */
void log_setup(const char *host, const char *vm);

/* Logs one line at a syslog priority (LOG_ERR ... LOG_DEBUG). LOG_DEBUG is dropped unless the
 * environment has UNDERSTUDY_DEBUG=1. errno is kept. Never blocks on anything but the journal or
 * standard error. */
void log_line(int priority, const char *fmt, ...) US_PRINTF(2, 3);

#define log_error(...)   log_line(LOG_ERR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_DEBUG, __VA_ARGS__)

/* A limiter for lines that a guest or a peer can trigger: at most one line in each period.
 * Otherwise zero-initialise. */
struct log_limit {
    unsigned period_ms; /* 0: a second */
    unsigned long long last_ms;
    unsigned long long suppressed;
};

/* True when a line may be logged now; *ret_suppressed tells how many were not since the last one.
 */
int log_limit_pass(struct log_limit *limit, unsigned long long *ret_suppressed);

/* log_line(), if it may: with how many such lines were not logged since the last one, if any. */
void log_limited(struct log_limit *limit, int priority, const char *fmt, ...) US_PRINTF(3, 4);

#endif
