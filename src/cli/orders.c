/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

/* Commands that are one order for one VM. */

struct order {
    const char *vm;
    const char *to;     /* protect */
    bool no_wait;       /* protect */
    unsigned timeout_s; /* protect */
};

enum { KEY_NO_WAIT = 256, KEY_TIMEOUT };

static error_t parse_vm(int key, char *arg, struct argp_state *state)
{
    struct order *order = state->input;

    switch (key) {
    case 't':
        order->to = arg;
        return 0;
    case KEY_NO_WAIT:
        order->no_wait = true;
        return 0;
    case KEY_TIMEOUT:
        order->timeout_s = cli_seconds(state, arg);
        return 0;
    default:
        return cli_argument(key, arg, state, &order->vm);
    }
}

/* Gives an order that takes no more than the VM's name, and says what it came to. */
static int simple_order(const char *command, int argc, char **argv, const char *done)
{
    struct order order = {0};
    json_t *answer;
    const char *note;

    cli_parse(command, argc, argv, NULL, parse_vm, &order);
    if (cli_ask(json_pack("{s:s, s:s}", "command", command, "vm", order.vm), &answer) < 0)
        return CLI_FAILED;
    note = view_text(answer, "note");
    printf("%s: %s\n", order.vm, note[0] ? note : done);
    json_decref(answer);
    return CLI_OK;
}

int cli_unprotect(int argc, char **argv)
{
    return simple_order("unprotect", argc, argv, "runs without a standby from now on");
}

int cli_failover(int argc, char **argv)
{
    return simple_order("failover", argc, argv, "runs here now");
}

int cli_switchover(int argc, char **argv)
{
    return simple_order("switchover", argc, argv, "runs on its other host now, this one backs it");
}

int cli_stop(int argc, char **argv)
{
    return simple_order("stop", argc, argv, "stopped");
}

int cli_protect(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"to", 't', "HOST", 0, "The peer that is to back the VM", 0},
        {"no-wait", KEY_NO_WAIT, NULL, 0, "Return at once, not when the VM is protected", 0},
        {"timeout", KEY_TIMEOUT, "SECONDS", 0, CLI_TIMEOUT_DOC, 0},
        {0},
    };
    struct order order = {.timeout_s = CLI_TIMEOUT_S};

    cli_parse("protect", argc, argv, options, parse_vm, &order);
    if (!order.to) {
        cli_fail("protect: say by which host, as in: understudy protect %s --to hostb", order.vm);
        return CLI_USAGE;
    }
    if (cli_ask(json_pack("{s:s, s:s, s:s}", "command", "protect", "vm", order.vm, "to", order.to),
                NULL) < 0)
        return CLI_FAILED;
    if (order.no_wait)
        return CLI_OK;
    return cli_wait_protected(order.vm, order.timeout_s);
}
