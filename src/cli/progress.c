/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/progress.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

enum { BAR_WIDTH = 30, LINE_EVERY_S = 3 };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

void cli_catch_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};

    (void)sigaction(SIGINT, &action, NULL); /* fails for a bad signal only */
}

bool cli_pause(int ms)
{
    if (!interrupted)
        (void)poll(NULL, 0, ms);
    return interrupted;
}

double cli_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void cli_progress_init(struct cli_progress *p, const char *vm)
{
    *p = (struct cli_progress){.vm = vm, .terminal = isatty(STDOUT_FILENO), .said = cli_now()};
}

void cli_progress_end(struct cli_progress *p)
{
    if (p->bar)
        printf("\r\033[K");
    p->bar = false;
}

void cli_progress_say(struct cli_progress *p, const char *text)
{
    if (strcmp(text, p->last) == 0)
        return;
    cli_progress_end(p);
    printf("%s: %s\n", p->vm, text);
    (void)fflush(stdout); /* a line that cannot be shown is no failure */
    (void)snprintf(p->last, sizeof(p->last), "%s", text);
    p->said = cli_now();
}

static void draw_bar(struct cli_progress *p, const char *what, double part, const char *text)
{
    int filled = (int)(part * BAR_WIDTH);

    printf("\r\033[K%s: %s [", p->vm, what);
    for (int i = 0; i < BAR_WIDTH; i++)
        putchar(i < filled ? '#' : ' ');
    printf("] %s", text);
    p->bar = true;
    (void)fflush(stdout); /* as above */
}

void cli_progress_show(struct cli_progress *p, const char *what, double done, double total)
{
    double part = total > 0 ? done / total : 0, now = cli_now();
    char text[128], line[192];

    if (strcmp(p->what, what) != 0 || done < p->from) {
        (void)snprintf(p->what, sizeof(p->what), "%s", what);
        p->from = done;
        p->at = now;
    }
    /* The rate of the first moments says nothing. */
    view_progress(done, total, now - p->at >= 1 ? (done - p->from) / (now - p->at) : 0, text,
                  sizeof(text));
    if (p->terminal) {
        draw_bar(p, what, part < 0 ? 0 : part > 1 ? 1 : part, text);
    } else if (now - p->said >= LINE_EVERY_S) {
        (void)snprintf(line, sizeof(line), "%s: %s", what, text);
        cli_progress_say(p, line);
    }
}
