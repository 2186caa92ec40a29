/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_WITNESS_RUN_H
#define US_TESTS_WITNESS_RUN_H

#include <stdbool.h>
#include <sys/types.h>

#include "io/config.h"

/* A real witness in a process of its own, with a directory of its own, on loopback. */
struct witness_run {
    const char *program;
    char dir[64];     /* made by witness_run_init(), removed by witness_run_done() */
    char address[64]; /* chosen at the first start, kept at later ones */
    pid_t pid;        /* 0: not running */
};

/* The configuration of a client of the witness there. */
struct arbiter_config witness_config(const char *address);

/* All of these fail the test that calls them when something is wrong. */
void witness_run_init(struct witness_run *w, const char *program);

/* Starts the witness and waits until it is ready. */
void witness_run_start(struct witness_run *w);

/* Starts it where it is expected to refuse: waits for its end, returns its exit status and fills in
 * what it said. */
int witness_run_refused(struct witness_run *w, char *ret_text, size_t n_text);

/* Sends it a signal; where that ends it, witness_run_wait() returns its status as waitpid() does.
 */
void witness_run_signal(struct witness_run *w, int signal);
int witness_run_wait(struct witness_run *w);

/* Kills it if it runs, and removes its directory. */
void witness_run_done(struct witness_run *w);

#endif
