/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "io/log.h"
#include "unit.h"

/* Standard error goes into a pipe. */
static int redirect(int *ret_stderr)
{
    int pipe_fds[2];

    assert_int_equal(pipe(pipe_fds), 0);
    *ret_stderr = dup(STDERR_FILENO);
    assert_int_equal(dup2(pipe_fds[1], STDERR_FILENO), STDERR_FILENO);
    close(pipe_fds[1]);
    return pipe_fds[0];
}

static void restore(int kept_stderr)
{
    assert_int_equal(dup2(kept_stderr, STDERR_FILENO), STDERR_FILENO);
    close(kept_stderr);
}

static void swarms_become_few_lines(void **state)
{
    const struct timespec period = {.tv_nsec = 600000000};
    struct log_limit limit = {.period_ms = 500};
    char said[512];
    int kept_stderr, from = redirect(&kept_stderr);
    ssize_t n;

    for (int i = 0; i < 4; i++) {
        errno = EXDEV;
        log_limited(&limit, LOG_WARNING, "line %d", i);
        assert_int_equal(errno, EXDEV);
    }
    assert_int_equal(nanosleep(&period, NULL), 0);
    log_limited(&limit, LOG_WARNING, "line %s", "last");
    restore(kept_stderr);
    n = read(from, said, sizeof(said) - 1);
    close(from);
    assert_true(n > 0);
    said[n] = '\0';
    assert_non_null(strstr(said, "line 0\n"));
    assert_null(strstr(said, "line 1"));
    assert_non_null(strstr(said, "line last (3 more like this before)\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(swarms_become_few_lines),
    };

    (void)unsetenv("JOURNAL_STREAM");
    log_setup("host", "");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
