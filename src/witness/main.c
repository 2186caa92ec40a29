/* SPDX-License-Identifier: Apache-2.0 */
#include <argp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "witness/admin.h"
#include "witness/daemon.h"
#include "witness/state.h"

/* understudy-witness: the arbiter for those who run no etcd. Decides nothing itself: it keeps one
 * record per VM and swaps it for whoever knows what it holds (docs/design.md, Arbitration). Without
 * a sub-command it is the daemon. */

const char *argp_program_version = "understudy-witness " US_VERSION;

enum { OPTION_GROUP = 'g', OPTION_JSON = 'j', OPTION_LISTEN = 'l', OPTION_STATE = 's' };

struct options {
    const char *listen, *state;
    const char *command; /* NULL: the daemon */
    struct admin_args args;
};

static const struct admin_command *find_command(const char *name)
{
    const struct admin_command *c = admin_commands;

    while (c->name && strcmp(c->name, name) != 0)
        c++;
    return c->name ? c : NULL;
}

/* After all arguments: do they go together? argp_error() does not return. */
static void check_options(const struct options *o, const struct argp_state *state)
{
    const struct admin_command *c = o->command ? find_command(o->command) : NULL;

    if (!o->command && !o->listen)
        argp_error(state, "--listen is needed");
    if (o->command && !c)
        argp_error(state, "there is no command \"%s\"", o->command);
    if (c && (o->args.n < c->args_min || o->args.n > c->args_max))
        argp_error(state, "usage: understudy-witness %s %s", c->name, c->args);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct options *options = state->input;

    switch (key) {
    case OPTION_GROUP:
        options->args.group = arg;
        return 0;
    case OPTION_JSON:
        options->args.json = true;
        return 0;
    case OPTION_LISTEN:
        options->listen = arg;
        return 0;
    case OPTION_STATE:
        options->state = arg;
        return 0;
    case ARGP_KEY_ARG:
        if (!options->command)
            options->command = arg;
        else if (options->args.n == ADMIN_ARGS_MAX)
            argp_usage(state);
        else
            options->args.arg[options->args.n++] = arg;
        return 0;
    case ARGP_KEY_END:
        check_options(options, state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option argp_options[] = {
    {"listen", OPTION_LISTEN, "ADDRESS:PORT", 0,
     "Where hosts connect to; numeric, IPv6 as [ADDRESS]:PORT", 0},
    {"state", OPTION_STATE, "DIR", 0, "Directory of all that it keeps (" STATE_DEFAULT ")", 0},
    {"group", OPTION_GROUP, "GROUP", 0, "allow, forbid: the host's group (default)", 1},
    {"json", OPTION_JSON, NULL, 0, "hosts: print JSON, for programs", 1},
    {0},
};

/* The list of commands behind the help text. */
static char *list_commands(int key, const char *text, void *input)
{
    char *out = NULL;
    size_t n = 0;
    FILE *f;

    if (key != ARGP_KEY_HELP_POST_DOC || !(f = open_memstream(&out, &n)))
        return (char *)(uintptr_t)text;
    fprintf(f, "%s\n\nCommands:\n", text);
    for (const struct admin_command *c = admin_commands; c->name; c++)
        fprintf(f, "  %-7s %-11s %s\n", c->name, c->args, c->doc);
    return fclose(f) == 0 ? out : NULL;
}

static int run(const struct options *options, struct err *err)
{
    const struct admin_command *c = options->command ? find_command(options->command) : NULL;
    /* A daemon whose directory is missing has lost its records, and must not start without. */
    int r = state_enter(options->state, c != NULL, err);

    if (r < 0)
        return r;
    return c ? c->run(&options->args, err) : daemon_run(options->listen, options->state, err);
}

int main(int argc, char **argv)
{
    static const struct argp argp = {
        .options = argp_options,
        .parser = parse_option,
        .args_doc = "--listen ADDRESS:PORT\nCOMMAND [ARGUMENT...]",
        .doc = "Keeps, for each VM, the record of who may run it, and changes it by "
               "compare-and-swap.\vRun it on a third machine, so that no single failure takes a "
               "host and the witness.",
        .help_filter = list_commands,
    };
    struct options options = {.state = STATE_DEFAULT};
    struct err err = {""};
    int r;

    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    log_setup("witness", "");
    r = run(&options, &err);
    if (r < 0 && options.command)
        fprintf(stderr, "understudy-witness: %s\n", err.text);
    else if (r < 0)
        log_error("%s", err.text);
    if (fflush(stdout) != 0)
        r = -1;
    return r == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
