/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_WITNESS_RUN_H
#define US_TESTS_WITNESS_RUN_H

#include <stdbool.h>
#include <sys/types.h>

#include "io/config.h"
#include "io/tls.h"
#include "wire/msg.h"

enum { WITNESS_RUN_HOSTS = 8 };

/* A host that may talk to the witness. */
struct witness_host {
    char name[HOST_NAME_BYTES];
    struct identity *identity;
    struct tls_context *tls;
};

/* A real witness in a process of its own, with a directory of its own, on loopback. */
struct witness_run {
    const char *program;
    char dir[64];                 /* made by witness_run_init(), removed by witness_run_done() */
    struct arbiter_config config; /* its key, and its address: chosen at the first start, kept at
                                   * later ones */
    pid_t pid;                    /* 0: not running */
    int n_hosts;
    struct witness_host host[WITNESS_RUN_HOSTS];
};

/* The witness at that address, whose key does not matter. */
struct arbiter_config witness_config(const char *address);

/* All of these fail the test that calls them when something is wrong. */
void witness_run_init(struct witness_run *w, const char *program);

/* Starts the witness and waits until it is ready. */
void witness_run_start(struct witness_run *w);

/* Starts it where it is expected to refuse: waits for its end, returns its exit status and fills in
 * what it said. */
int witness_run_refused(struct witness_run *w, char *ret_text, size_t n_text);

/* Runs a sub-command, such as "forbid hosta": returns its exit status, fills in what it said. */
int witness_run_command(struct witness_run *w, const char *command, char *ret_text, size_t n_text);

/* A host of the group "default" by its name, with a key of its own, allowed at the first call;
 * when the witness runs, it knows of it then. Borrowed. */
const struct witness_host *witness_run_host(struct witness_run *w, const char *name);
struct tls_context *witness_run_tls(struct witness_run *w, const char *name); /* likewise */

/* Allows a host with a key made elsewhere. */
void witness_run_allow(struct witness_run *w, const char *name, const char *group,
                       const struct public_key *key);

/* A new key, by way of a file that is gone again. The caller owns it. */
struct identity *witness_run_identity(const struct witness_run *w);

/* A swap; without a wanted record, a look. */
struct wire_arb_request witness_run_request(const char *vm, const struct arb_record *expected,
                                            const struct arb_record *wanted);

/* Asks as hosta, on a connection of its own; and what a register holds. */
struct wire_arb_reply witness_run_ask(struct witness_run *w, const char *vm,
                                      const struct arb_record *expected,
                                      const struct arb_record *wanted);
struct arb_record witness_run_get(struct witness_run *w, const char *vm);

/* A record that may follow another one: hosta is paired, and alone, in turns. */
struct arb_record witness_run_successor(const struct arb_record *record);

/* Sends it a signal; where that ends it, witness_run_wait() returns its status as waitpid() does.
 */
void witness_run_signal(struct witness_run *w, int signal);
int witness_run_wait(struct witness_run *w);

/* Kills it if it runs, and removes its directory. */
void witness_run_done(struct witness_run *w);

#endif
