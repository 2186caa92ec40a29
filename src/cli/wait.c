/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

/* Waiting until a VM is protected. It only watches: whatever happens to this command, the VM's
 * process goes on. */

enum { BAR_WIDTH = 30, LOOK_MS = 200, LINE_EVERY_S = 3, PATIENCE_S = 2 };

static volatile sig_atomic_t interrupted;

struct watch {
    const char *vm;
    bool terminal;
    bool bar; /* a bar stands on the terminal's line */
    time_t moved, printed;
    double done;    /* bytes copied, as last seen */
    char last[256]; /* the last line printed */
};

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

static time_t seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static void end_bar(struct watch *w)
{
    if (w->bar)
        printf("\r\033[K");
    w->bar = false;
}

static void draw_bar(struct watch *w, double done, double total)
{
    int filled = total > 0 ? (int)(done / total * BAR_WIDTH) : 0;

    filled = filled > BAR_WIDTH ? BAR_WIDTH : filled;
    printf("\r\033[K%s: copying [", w->vm);
    for (int i = 0; i < BAR_WIDTH; i++)
        putchar(i < filled ? '#' : ' ');
    printf("] %3.0f%%  %.0f of %.0f MiB", total > 0 ? done / total * 100 : 0, done / 1048576,
           total / 1048576);
    w->bar = true;
    (void)fflush(stdout); /* a bar that cannot be shown is no failure */
}

/* Prints a line, unless it is what was printed last. */
static void say(struct watch *w, const char *text)
{
    if (strcmp(text, w->last) == 0)
        return;
    end_bar(w);
    printf("%s: %s\n", w->vm, text);
    (void)fflush(stdout); /* as above */
    (void)snprintf(w->last, sizeof(w->last), "%s", text);
    w->printed = seconds();
}

static void show(struct watch *w, const json_t *vm)
{
    const json_t *seeding = json_object_get(vm, "seeding");
    double done = view_number(seeding, "done_bytes"), total = view_number(seeding, "total_bytes");
    char text[256];

    if (!json_is_object(seeding)) {
        /* At first it is normal not to be connected yet. */
        if (strcmp(view_text(vm, "state"), "solo") == 0 && seconds() - w->moved >= PATIENCE_S) {
            view_protection(vm, text, sizeof(text));
            say(w, text);
        }
        return;
    }
    if (done != w->done)
        w->moved = seconds();
    w->done = done;
    if (w->terminal) {
        draw_bar(w, done, total);
    } else if (seconds() - w->printed >= LINE_EVERY_S) {
        (void)snprintf(text, sizeof(text), "copying: %.0f of %.0f MiB", done / 1048576,
                       total / 1048576);
        say(w, text);
    }
}

/* One look. True: it is over, with *ret_exit. */
static bool look(struct watch *w, unsigned timeout_s, int *ret_exit)
{
    json_t *vm = cli_vm_status(w->vm);
    const char *role = view_text(vm, "role"), *state = view_text(vm, "state");
    char text[256];
    bool over = true;

    *ret_exit = CLI_FAILED;
    if (!vm)
        return true;
    if (json_is_true(json_object_get(vm, "protected"))) {
        view_protection(vm, text, sizeof(text));
        say(w, text);
        *ret_exit = CLI_OK;
    } else if (strcmp(role, "primary") != 0) {
        end_bar(w);
        cli_fail("%s: %s: %s", w->vm, state, view_text(vm, "reason"));
    } else if (seconds() - w->moved > (time_t)timeout_s) {
        end_bar(w);
        view_protection(vm, text, sizeof(text));
        cli_fail("%s: runs, but is %s\nIt goes on trying: understudy status %s", w->vm, text,
                 w->vm);
        *ret_exit = CLI_UNPROTECTED;
    } else {
        show(w, vm);
        over = false;
    }
    json_decref(vm);
    return over;
}

unsigned cli_seconds(const struct argp_state *state, const char *text)
{
    char *end;
    unsigned long s = strtoul(text, &end, 10);

    if (end == text || *end || s == 0 || s > 86400)
        argp_error(state, "%s is not a number of seconds", text);
    return (unsigned)s;
}

int cli_wait_protected(const char *vm, unsigned timeout_s)
{
    struct watch w = {.vm = vm, .terminal = isatty(STDOUT_FILENO), .moved = seconds()};
    struct sigaction action = {.sa_handler = on_interrupt};
    int result;

    (void)sigaction(SIGINT, &action, NULL); /* fails for a bad signal only */
    w.printed = w.moved;
    while (!look(&w, timeout_s, &result)) {
        if (!interrupted)
            (void)poll(NULL, 0, LOOK_MS);
        if (interrupted) {
            end_bar(&w);
            cli_fail("%s: runs and goes on without this command: understudy status %s", vm, vm);
            return CLI_INTERRUPTED;
        }
    }
    return result;
}
