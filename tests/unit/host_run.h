/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HOST_RUN_H
#define US_TESTS_HOST_RUN_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "io/identity.h"

/* understudyd as a process with a directory of its own, on loopback, with a stand-in for the
 * processes of its VMs (host_fake_guard.c). The host's name is hostb, its peer is hosta, whose key
 * the test has. */
struct host_run {
    struct identity *hosta;
    char dir[32];    /* all of its files */
    char config[64]; /* its configuration */
    char socket[64]; /* where it takes orders */
    unsigned port;   /* where it listens for peers */
    pid_t daemon;    /* 0: not running */
};

/* Which programs are run; first of all, from main(). False: they are not there. */
bool host_run_programs(const char *understudyd, const char *fake_guard);

/* For the tests' fixtures: *state is a struct host_run that is started, and ends with the test. */
int host_run_setup(void **state);
int host_run_teardown(void **state);

/* All of these fail the test that calls them when something is wrong. */

/* Starts understudyd and waits until it answers. */
void host_run_start(struct host_run *h);

/* Adds a line to its configuration, before it starts. */
void host_run_configure(const struct host_run *h, const char *line);

/* Sends it a signal that ends it. Returns its status as waitpid() does. */
int host_run_end(struct host_run *h, int signal);

/* One request (taken) to understudyd, as control_ask(). */
int host_run_ask(const struct host_run *h, json_t *request, json_t **ret_answer, struct err *err);
bool host_run_is_up(const struct host_run *h);

/* The same; returns the answer's JSON or the error's text, valid until the next call. */
const char *host_run_text(const struct host_run *h, json_t *request);

/* Starts a VM; returns what is said, as above. */
const char *host_run_start_vm(const struct host_run *h, const char *vm, bool seize);

/* The status of a VM; NULL when it is not known. The caller owns it. */
json_t *host_run_status(const struct host_run *h, const char *vm);
/* A member of it; 0 when the VM is not known. */
int host_run_number(const struct host_run *h, const char *vm, const char *key);

/* Waits up to 10 s until done() is true. */
void host_run_wait(const struct host_run *h, bool (*done)(const struct host_run *h));

/* How many lines of its log have that text? */
unsigned host_run_logged(const struct host_run *h, const char *text);

/* Is there a file of that path, below its directory? */
bool host_run_exists(const struct host_run *h, const char *path);

#endif
