/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fault.h"
#include "io/clock.h"
#include "unit.h"

#ifdef US_FAULT_POINTS

static int disarm(void **state)
{
    fault_arm(NULL);
    return 0;
}

/* Passes the point until it is stopped, at most n times. Returns the wait status. */
static int child_passes(const char *point, int n)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        for (int i = 0; i < n; i++)
            fault_point(point);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    if (WIFSTOPPED(status)) {
        int last;

        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &last, 0), pid);
    }
    return status;
}

static void nothing_is_armed(void **state)
{
    fault_point("test.step");
    assert_int_equal(FAULTY("test.call", 7), 7);
    assert_int_equal(fault_taken(), 0);
}

static void crashes_the_nth_time(void **state)
{
    int status;

    fault_arm("test.step 3 crash");
    assert_int_equal(child_passes("test.step", 2), 0);
    assert_int_equal(child_passes("test.other", 9), 0);
    assert_int_equal(child_passes("test.ste", 9), 0);
    assert_int_equal(fault_taken(), 0);
    status = child_passes("test.step", 1); /* processes count together */
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(fault_taken(), 1);
    assert_int_equal(child_passes("test.step", 9), 0); /* once only */
}

static void stops(void **state)
{
    int status;

    fault_arm("test.step 1 stop");
    status = child_passes("test.step", 1);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
}

static void delays(void **state)
{
    uint64_t begun = clock_now_ns();

    fault_arm("test.step 2 delay 60");
    fault_point("test.step");
    assert_true(clock_now_ns() - begun < 50 * NS_PER_MS);
    fault_point("test.step");
    assert_true(clock_now_ns() - begun >= 60 * NS_PER_MS);
    assert_int_equal(fault_taken(), 1);
}

static void calls_fail(void **state)
{
    int made = 0;
    char *room;

    fault_arm("test.call 2 error ENOSPC");
    assert_int_equal(FAULTY("test.call", ++made), 1);
    errno = 0;
    assert_int_equal(FAULTY("test.call", ++made), -1);
    assert_int_equal(errno, ENOSPC);
    assert_int_equal(FAULTY("test.call", ++made), 2); /* the failed one was not made */
    fault_arm("test.room 1 error ENOMEM");
    room = FAULTY_ALLOC("test.room", malloc(1));
    assert_null(room);
    fault_arm("test.call 1 error EIO");
    made = fault_error("test.call") ?: 5;
    assert_int_equal(made, -EIO);
}

static void goes_on_failing(void **state)
{
    fault_arm("test.call 2 errors EIO");
    assert_int_equal(fault_error("test.call"), 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(fault_error("test.call"), -EIO);
    assert_int_equal(fault_taken(), 5);
    fault_arm(NULL);
    assert_int_equal(fault_error("test.call"), 0);
}

static void nonsense_does_nothing(void **state)
{
    static const char *const orders[] = {"test.call", "test.call 1", "test.call one crash",
                                         "test.call 1 dance", ""};

    for (size_t i = 0; i < sizeof(orders) / sizeof(orders[0]); i++) {
        fault_arm(orders[i]);
        assert_int_equal(fault_error("test.call"), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_armed),
        cmocka_unit_test_teardown(crashes_the_nth_time, disarm),
        cmocka_unit_test_teardown(stops, disarm),
        cmocka_unit_test_teardown(delays, disarm),
        cmocka_unit_test_teardown(calls_fail, disarm),
        cmocka_unit_test_teardown(goes_on_failing, disarm),
        cmocka_unit_test_teardown(nonsense_does_nothing, disarm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void costs_nothing(void **state)
{
    fault_point("test.step");
    assert_int_equal(fault_error("test.call"), 0);
    assert_int_equal(FAULTY("test.call", 7), 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(costs_nothing)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
