/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

const struct cli_command cli_commands[] = {
    {"start", "FILE",
     "Start a VM, protected as its file says.\v"
     "Waits until the VM is protected. The VM runs from the first moment, and goes on starting "
     "when this command is interrupted.",
     cli_start},
    {"status", "[VM]",
     "Show this host's VMs, or one of them in detail.\v"
     "Exit status 3: a VM that should be protected is not.",
     cli_status},
    {"trace", "VM",
     "Show the last checkpoints of a protected VM, with where their time went.\v"
     "A line for each epoch: how many pages it has and how many of them were copied before the VM "
     "stood still; how long it stood still (PAUSE), and of that, in ms: until QEMU had written its "
     "device state, for the last scan and the last copying of dirty pages, until it ran again. In "
     "brackets what costs no pause: copying ahead, and from the order to stop until it stopped.",
     cli_trace},
    {"estimate", "VM",
     "Find out what it would cost to protect a running VM.\v"
     "For half a minute its checkpoints are taken as if it were protected, and thrown away. Its "
     "guest feels what it would feel then, but for the output's delay. Give it its usual load "
     "meanwhile. Disk writes are not counted.",
     cli_estimate},
    {"protect", "VM --to HOST", "Protect a running VM by a standby on another host.", cli_protect},
    {"unprotect", "VM", "Let a VM run without its standby.", cli_unprotect},
    {"failover", "VM",
     "Take a VM over, now. To be given on its standby.\v"
     "The arbiter decides, as it does when the primary dies. The primary destroys its copy.",
     cli_failover},
    {"switchover", "VM",
     "Hand a running VM over to its standby.\v"
     "To be given on its primary. The VM goes on at its standby at once, and nothing is lost. When "
     "that is not possible, it goes on here, and the exit status is 1.",
     cli_switchover},
    {"verify", "VM",
     "Compare both copies of a VM's disks.\v"
     "The VM runs on meanwhile, and the comparison goes on when this command is interrupted. Exit "
     "status 0: they are equal; 1: they differ, in the ranges printed; 2: they could not be "
     "compared.",
     cli_verify},
    {"recover", "VM [FILE]",
     "Start a VM again after both its hosts went down.\v"
     "From this host's copy of its disks; refused unless that is the newest valid one. The guest "
     "boots as after a power failure. Without FILE the VM is defined as this host last knew it.",
     cli_recover},
    {"stop", "VM", "Stop a VM, without asking its guest.", cli_stop},
    {"check", "FILE", "Say what a start would refuse.", cli_check},
    {"key", "\nnew\nuse\nforget",
     "Show the key of this host, or change it.\v"
     "Its peers and the witness have to be told it.\n"
     "To change it: `key new` makes and shows the next key; make that known to all peers (peer "
     "add) "
     "and the witness; then `key use` here. `key forget` gives the next key up.",
     cli_key},
    {"peer", "list\nadd NAME ADDRESS KEY\nremove NAME [KEY]",
     "Show, add and remove the peers of this host.\v"
     "KEY is what `understudy key` shows there. A peer that is there already gets a second key, "
     "while its key is changed, or another address. remove with KEY takes only that one back.",
     cli_peer},
    {"arbiter", "status",
     "Show the arbiter, and what it knows.\v"
     "Asks it as the VMs do, by this host's key; understudyd need not run. Exit status 1: it "
     "cannot be asked.",
     cli_arbiter},
    {"version", "", "Print the version.", cli_version},
    {0},
};

const struct cli_command *cli_command_get(const char *name)
{
    const struct cli_command *c = cli_commands;

    while (c->name && strcmp(c->name, name) != 0)
        c++;
    return c->name ? c : NULL;
}

int cli_version(int argc, char **argv)
{
    cli_parse("version", argc, argv, NULL, NULL, NULL);
    printf("%s\n", argp_program_version);
    return CLI_OK;
}

const char *argp_program_version = "understudy " US_VERSION;

struct top {
    char **rest; /* the command and its arguments */
    int n_rest;
};

static error_t parse_top(int key, char *arg, struct argp_state *state)
{
    struct top *top = state->input;

    switch (key) {
    case ARGP_KEY_ARG: /* everything from the command on is the command's */
        top->rest = &state->argv[state->next - 1];
        top->n_rest = state->argc - (state->next - 1);
        state->next = state->argc;
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_usage(state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void list_command(FILE *f, const struct cli_command *c)
{
    bool forms = strchr(c->args, '\n') != NULL;

    fprintf(f, "  %-10s %-13s %.*s\n", c->name, forms ? "..." : c->args, (int)strcspn(c->doc, "\v"),
            c->doc);
}

/* The list of commands behind the help text. */
static char *list_commands(int key, const char *text, void *input)
{
    char *out = NULL;
    size_t n = 0;
    FILE *f;

    if (key != ARGP_KEY_HELP_POST_DOC || !(f = open_memstream(&out, &n)))
        return (char *)(uintptr_t)text;
    fputs("Commands:\n", f);
    for (const struct cli_command *c = cli_commands; c->name; c++)
        list_command(f, c);
    fputs("\nunderstudy help COMMAND tells more, as does the manual: man understudy", f);
    return fclose(f) == 0 ? out : NULL;
}

static int run(const char *name, int argc, char **argv)
{
    const struct cli_command *c = cli_command_get(name);
    char title[64];

    if (!c) {
        cli_fail("there is no command \"%s\"; see understudy --help", name);
        return CLI_USAGE;
    }
    (void)snprintf(title, sizeof(title), "understudy %s", name);
    argv[0] = title;
    return c->run(argc, argv);
}

static int help(int argc, char **argv, const struct argp *argp)
{
    char option[] = "--help", *as_option[] = {NULL, option, NULL};

    if (argc > 1)
        return run(argv[1], 2, as_option);
    argp_help(argp, stdout, ARGP_HELP_STD_HELP, argv[-1]);
    return CLI_OK;
}

int main(int argc, char **argv)
{
    static const struct argp argp = {
        .parser = parse_top,
        .args_doc = "COMMAND [ARGUMENT...]",
        .doc = "Keeps virtual machines running when their host does not.\v",
        .help_filter = list_commands,
    };
    char program[] = "understudy";
    struct top top = {0};

    argp_err_exit_status = CLI_USAGE;
    argv[0] = program;
    if (argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &top))
        return CLI_USAGE;
    if (strcmp(top.rest[0], "help") == 0)
        return help(top.n_rest, top.rest, &argp);
    return run(top.rest[0], top.n_rest, top.rest);
}
