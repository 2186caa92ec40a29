/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "host/vmfile.h"
#include "io/vm_json.h"

struct start {
    const char *file;
    bool no_wait, seize;
    unsigned timeout_s;
};

enum { KEY_NO_WAIT = 256, KEY_SEIZE, KEY_TIMEOUT };

static error_t parse_start(int key, char *arg, struct argp_state *state)
{
    struct start *start = state->input;

    switch (key) {
    case KEY_NO_WAIT:
        start->no_wait = true;
        return 0;
    case KEY_SEIZE:
        start->seize = true;
        return 0;
    case KEY_TIMEOUT:
        start->timeout_s = cli_seconds(state, arg);
        return 0;
    case ARGP_KEY_ARG:
        if (start->file)
            argp_usage(state);
        start->file = arg;
        return 0;
    case ARGP_KEY_END:
        if (!start->file)
            argp_usage(state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int cli_start(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"no-wait", KEY_NO_WAIT, NULL, 0, "Return once the VM runs, protected or not", 0},
        {"timeout", KEY_TIMEOUT, "SECONDS", 0, CLI_TIMEOUT_DOC, 0},
        {"seize", KEY_SEIZE, NULL, 0,
         "Start the VM even if the arbiter says that another host owns it. Only when that host is "
         "gone for good",
         0},
        {0},
    };
    CLEANUP_FREE struct vm_spec *spec = malloc(sizeof(*spec));
    struct start start = {.timeout_s = CLI_TIMEOUT_S};
    json_t *request;
    struct err err;

    cli_parse("start", argc, argv, options, parse_start, &start);
    if (!spec)
        return cli_fail("out of memory");
    if (vmfile_load(start.file, spec, &err) < 0)
        return cli_fail("%s", err.text);
    request = json_pack("{s:s, s:o, s:b}", "command", "start", "vm", vm_json_from_spec(spec),
                        "seize", start.seize);
    if (cli_ask(request, NULL) < 0)
        return CLI_FAILED;
    printf("%s: runs\n", spec->name);
    if (!spec->protect.standby[0] || start.no_wait)
        return CLI_OK;
    return cli_wait_protected(spec->name, start.timeout_s);
}
