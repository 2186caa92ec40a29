/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CLI_PROGRESS_H
#define US_CLI_PROGRESS_H

#include <stdbool.h>

/* What a command shows while it waits for something that goes on without it: a bar on a terminal, a
 * line every few seconds elsewhere. */

struct cli_progress {
    const char *vm; /* borrowed; begins each line */
    bool terminal;
    bool bar;        /* a bar stands on the terminal's line */
    char last[256];  /* the last line said */
    double said;     /* when; seconds, as cli_now() */
    char what[32];   /* what the bar is about */
    double from, at; /* where it was when that began, in bytes, and when */
};

double cli_now(void); /* seconds of the monotonic clock */

void cli_progress_init(struct cli_progress *p, const char *vm);

/* Shows how far it is, in bytes; `what` is a word or two. */
void cli_progress_show(struct cli_progress *p, const char *what, double done, double total);

/* Prints a line instead of the bar, unless it is what was printed last. */
void cli_progress_say(struct cli_progress *p, const char *text);

/* Removes the bar, before something else is printed. */
void cli_progress_end(struct cli_progress *p);

/* From now on an interrupt (SIGINT) does not end the program but the next pause. */
void cli_catch_interrupt(void);
/* Waits. True: interrupted. */
bool cli_pause(int ms);

#endif
