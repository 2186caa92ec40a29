/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CLI_CLI_H
#define US_CLI_CLI_H

#include <argp.h>
#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"
#include "io/config.h"

/* understudy, the command line: one function per command, a client of understudyd. Answers go to
 * standard output, errors to standard error as "understudy: web: ...". */

enum cli_exit {
    CLI_OK = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_UNPROTECTED = 3, /* a VM that should be protected is not */
    CLI_INTERRUPTED = 130,
};

struct cli_command {
    const char *name;
    const char *args;                  /* for the usage; several forms in lines of their own */
    const char *doc;                   /* first line: what the list of commands says */
    int (*run)(int argc, char **argv); /* argv[0] is "understudy NAME"; returns enum cli_exit */
};

extern const struct cli_command cli_commands[]; /* ends with a NULL name */

int cli_start(int argc, char **argv);
int cli_status(int argc, char **argv);
int cli_protect(int argc, char **argv);
int cli_unprotect(int argc, char **argv);
int cli_failover(int argc, char **argv);
int cli_switchover(int argc, char **argv);
int cli_recover(int argc, char **argv);
int cli_verify(int argc, char **argv);
int cli_trace(int argc, char **argv);
int cli_estimate(int argc, char **argv);
int cli_stop(int argc, char **argv);
int cli_check(int argc, char **argv);
int cli_key(int argc, char **argv);
int cli_peer(int argc, char **argv);
int cli_arbiter(int argc, char **argv);
int cli_version(int argc, char **argv);

/* --- what the commands share (cli.c) --- */

/* The entry of a command's own name, for its usage. */
const struct cli_command *cli_command_get(const char *name);

/* Parses a command's arguments by its entry in the table; options may be NULL. Takes --config for
 * all of them. Exits with CLI_USAGE for wrong usage, as argp does. */
void cli_parse(const char *name, int argc, char **argv, const struct argp_option *options,
               argp_parser_t parser, void *input);

/* For the parser of a command that takes exactly one argument: called for what is no option of its
 * own. *ret_arg is NULL at first. */
error_t cli_argument(int key, char *arg, const struct argp_state *state, const char **ret_arg);

/* Prints "understudy: TEXT" to standard error. Returns CLI_FAILED. */
int cli_fail(const char *fmt, ...) US_PRINTF(1, 2);

void cli_print_json(const json_t *json); /* to standard output */

/* Values of options: a number of seconds, a number of bytes such as 50M. They end the program with
 * a usage error when the text is none. */
unsigned cli_seconds(const struct argp_state *state, const char *text);
uint64_t cli_bytes(const struct argp_state *state, const char *text);

/* The host's configuration, by --config or its default. 0, or -errno after saying why. */
int cli_config(struct host_config *ret_config) US_MUST_CHECK;

/* Sends a request (taken) to understudyd; the caller owns *ret_answer. 0, or -errno after saying
 * why and what to do about it. ret_answer may be NULL. */
int cli_ask(json_t *request, json_t **ret_answer) US_MUST_CHECK;

/* The status of one VM, or NULL after saying why there is none. The caller owns it. */
json_t *cli_vm_status(const char *vm);

/* --- status of a VM (vm_view.c) --- */

/* Members of a status, with a value for what is missing: "" and 0. Borrowed. */
const char *view_text(const json_t *vm, const char *key);
double view_number(const json_t *vm, const char *key);

/* True when the VM should be protected, by this host, and is not; or crashed here, whether it was
 * to be protected or not. */
bool view_unprotected(const json_t *vm);

/* One line: "protected by hostb", "not protected: hostb: not connected yet". */
void view_protection(const json_t *vm, char *out, size_t n_out);

void view_table(const json_t *vms);  /* prints all of them */
void view_details(const json_t *vm); /* prints a block of text about one */

/* --- its disks (disk_view.c) --- */

/* "42 s", "3 min", "5 h", "2 days"; "512 KiB", "10 MiB", "1.5 GiB". */
void view_duration(double s, char *out, size_t n_out);
void view_size(double bytes, char *out, size_t n_out);

/* " 43%, 440 of 1024 MiB, 80.0 MiB/s, 7 s left". Bytes; rate_bytes per second, 0 = not known. */
void view_progress(double done, double total, double rate_bytes, char *out, size_t n_out);

/* What is being copied to the standby now ("copying disks"), and how much of it; NULL: nothing. */
const char *view_copying(const json_t *vm, double *ret_done_bytes, double *ret_total_bytes);

/* True when something about the disks goes on that has a rate. A rate takes two looks: this one,
 * and `before`, `seconds` earlier. It is noted in the status for the functions below. */
bool view_moves(const json_t *vm);
void view_set_rates(json_t *vm, const json_t *before, double seconds);

void view_disk_notes(const json_t *vm); /* prints what is not as always, for a list of VMs */
void view_disk_lines(const json_t *vm); /* prints all of them, for the details of one */
/* "1 range", "more than 1000 ranges": what `verify` has found. */
void view_ranges(const json_t *verify, char *out, size_t n_out);
void view_verify_line(const json_t *vm); /* prints the outcome of `verify`, if there is one */

/* --- waiting for protection (wait.c) --- */

enum { CLI_TIMEOUT_S = 60 };
#define CLI_TIMEOUT_DOC "Stop waiting when nothing has moved for so long (60)"

/* Waits until a VM is protected, and shows how far its first copy is: a bar on a terminal, a line
 * every few seconds elsewhere. Gives up when nothing has moved for timeout_s. */
int cli_wait_protected(const char *vm, unsigned timeout_s);

#endif
