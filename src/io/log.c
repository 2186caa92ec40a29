/* SPDX-License-Identifier: Apache-2.0 */
#include "io/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

static char log_host[64];
static char log_vm[64];

void log_setup(const char *host, const char *vm)
{
    (void)snprintf(log_host, sizeof(log_host), "%s", host);
    (void)snprintf(log_vm, sizeof(log_vm), "%s", vm);
}

static void log_to_stderr(int priority, const char *text)
{
    struct timespec now;
    struct tm tm;
    char clock_text[16];

    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    strftime(clock_text, sizeof(clock_text), "%H:%M:%S", &tm);
    fprintf(stderr, "%s.%03ld %s%s%s: %s%s\n", clock_text, now.tv_nsec / 1000000, log_host,
            log_vm[0] ? " " : "", log_vm, priority <= LOG_ERR ? "error: " : "", text);
}

void log_line(int priority, const char *fmt, ...)
{
    int saved_errno = errno;
    char text[1024];
    va_list ap;

    if (priority == LOG_DEBUG && !getenv("UNDERSTUDY_DEBUG"))
        return;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (getenv("JOURNAL_STREAM"))
        (void)sd_journal_send("PRIORITY=%d", priority, "VM=%s", log_vm, "MESSAGE=%s%s%s", log_vm,
                              log_vm[0] ? ": " : "", text, NULL);
    else
        log_to_stderr(priority, text);
    errno = saved_errno;
}

int log_limit_pass(struct log_limit *limit, unsigned long long *ret_suppressed)
{
    struct timespec now;
    unsigned long long now_ms, period_ms = limit->period_ms ? limit->period_ms : 1000;

    clock_gettime(CLOCK_MONOTONIC, &now);
    now_ms = (unsigned long long)now.tv_sec * 1000 + (unsigned long long)now.tv_nsec / 1000000;
    if (limit->last_ms && now_ms - limit->last_ms < period_ms) {
        limit->suppressed++;
        return 0;
    }
    *ret_suppressed = limit->suppressed;
    limit->last_ms = now_ms;
    limit->suppressed = 0;
    return 1;
}

void log_limited(struct log_limit *limit, int priority, const char *fmt, ...)
{
    unsigned long long suppressed;
    char text[1024], more[64] = "";
    va_list ap;

    if (!log_limit_pass(limit, &suppressed))
        return;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (suppressed)
        (void)snprintf(more, sizeof(more), " (%llu more like this before)", suppressed);
    log_line(priority, "%s%s", text, more);
}
