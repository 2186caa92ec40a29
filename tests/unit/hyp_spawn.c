/* SPDX-License-Identifier: Apache-2.0 */
/* What a program that is started finds: descriptors, user, privileges, neighbours. */
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "unit.h"

#include "base/cleanup.h"
#include "hyp/qemu/spawn.h"
#include "io/clock.h"

enum { STRANGER = 64110, DEADLINE_S = 10 };

/* Runs a shell command to its end; takes its output. */
static const char *output_of(struct spawn_order *order, const char *command)
{
    static char text[4096];
    char *argv[] = {(char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c", (char *)(uintptr_t)command,
                    NULL};
    CLEANUP_FD int pidfd = -1;
    struct err err;
    size_t n = 0;
    ssize_t got;
    int fds[2], status;
    pid_t pid;

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    order->argv = argv;
    order->output_fd = fds[1];
    if (spawn(order, &pid, &pidfd, &err) < 0)
        fail_msg("%s", err.text);
    close(fds[1]);
    while ((got = read(fds[0], text + n, sizeof(text) - 1 - n)) > 0)
        n += (size_t)got;
    close(fds[0]);
    text[n] = 0;
    assert_int_equal(spawn_wait(pidfd, clock_now_ns() + DEADLINE_S * NS_PER_S, &status), 0);
    return text;
}

static struct spawn_order stranger(void)
{
    return (struct spawn_order){.pid_fd = -1, .drop = true, .uid = STRANGER, .gid = STRANGER};
}

static void passes_descriptors(void **state)
{
    char path[] = "/tmp/us-spawn.XXXXXX", text[32] = "";
    struct spawn_order order = {.n_fds = 4};
    CLEANUP_FD int a = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    CLEANUP_FD int b = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CLEANUP_FD int leaked = open("/dev/full", O_RDONLY);

    (void)state;
    assert_true(leaked >= 0);
    order.pid_fd = mkostemp(path, O_CLOEXEC);
    assert_true(order.pid_fd >= 0);
    /* Crosswise, with a gap: 3 is a, 4 nothing, 5 is b, 6 is a again. */
    order.fds[0].fd = a;
    order.fds[1].fd = -1;
    order.fds[2].fd = b;
    order.fds[3].fd = a;
    assert_string_equal(output_of(&order, "for i in 0 3 4 5 6 7 8 9; do readlink /proc/$$/fd/$i ||"
                                          " echo none; done; test $(cut -d' ' -f6 /proc/$$/stat)"
                                          " = $$ && echo leader"),
                        "/dev/null\n/dev/zero\nnone\n/dev/null\n/dev/zero\nnone\nnone\nnone\n"
                        "leader\n");
    assert_true(pread(order.pid_fd, text, sizeof(text) - 1, 0) > 1);
    assert_true(atoi(text) > 1);
    close(order.pid_fd);
    (void)unlink(path);
}

static void drops_privileges(void **state)
{
    struct spawn_order order = stranger();

    (void)state;
    if (geteuid() != 0)
        skip();
    assert_string_equal(output_of(&order,
                                  "sed -n 's/^\\(Uid\\|Gid\\|Groups\\|CapPrm\\|NoNewPrivs\\)"
                                  ":[\\t ]*/\\1 /p' /proc/self/status | tr '\\t' ' '"),
                        "Uid 64110 64110 64110 64110\nGid 64110 64110 64110 64110\nGroups \n"
                        "CapPrm 0000000000000000\nNoNewPrivs 1\n");
    order.n_groups = 1;
    order.groups[0] = 36;
    assert_string_equal(output_of(&order, "id -G"), "64110 36\n");
}

static void says_what_fails(void **state)
{
    char path[] = "/tmp/us-spawn.XXXXXX", program[] = "/nonexistent/program";
    char *argv[] = {program, NULL};
    struct spawn_order order = stranger();
    struct err err;
    int pidfd;
    pid_t pid;

    (void)state;
    order.argv = argv;
    order.drop = false;
    assert_int_equal(spawn(&order, &pid, &pidfd, &err), -ENOENT);
    assert_string_equal(err.text, "/nonexistent/program: No such file or directory");
    if (geteuid() != 0)
        return;
    order.drop = true;
    order.n_fds = 1;
    order.fds[0] = (struct spawn_fd){mkostemp(path, O_CLOEXEC), "the kernel"};
    assert_int_equal(spawn(&order, &pid, &pidfd, &err), -EACCES);
    assert_string_equal(err.text, "user 64110 may not read the kernel: Permission denied");
    assert_int_equal(fchmod(order.fds[0].fd, 0644), 0);
    assert_int_equal(spawn(&order, &pid, &pidfd, &err), -ENOENT);
    close(order.fds[0].fd);
    (void)unlink(path);
}

/* Two of one user do not reach each other. */
static void keeps_neighbours_apart(void **state)
{
    char *argv[] = {(char *)(uintptr_t) "sleep", (char *)(uintptr_t) "60", NULL};
    struct spawn_order order = stranger();
    CLEANUP_FD int null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    CLEANUP_FD int pidfd = -1;
    char command[200];
    struct err err;
    int status;
    pid_t pid;

    (void)state;
    if (geteuid() != 0 ||
        syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) < 0)
        skip();
    order.argv = argv;
    order.output_fd = null_fd;
    assert_int_equal(spawn(&order, &pid, &pidfd, &err), 0);
    (void)snprintf(command, sizeof(command),
                   "id -u; (cat /proc/%d/maps; readlink /proc/%d/fd/1) 2>/dev/null; echo end", (int)pid,
                   (int)pid);
    assert_string_equal(output_of(&order, command), "64110\nend\n");
    spawn_kill(pidfd);
    assert_int_equal(spawn_wait(pidfd, clock_now_ns() + DEADLINE_S * NS_PER_S, &status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_descriptors),
        cmocka_unit_test(drops_privileges),
        cmocka_unit_test(says_what_fails),
        cmocka_unit_test(keeps_neighbours_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
