/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "host/vmfile.h"
#include "io/vm_json.h"

/* start and recover: the VM is to run on this host. */

struct start {
    bool recover;
    const char *vm;   /* recover only */
    const char *file; /* NULL: recover from the host's own record */
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
        if (start->recover && !start->vm)
            start->vm = arg;
        else if (!start->file)
            start->file = arg;
        else
            argp_usage(state);
        return 0;
    case ARGP_KEY_END:
        if (start->recover ? !start->vm : !start->file)
            argp_usage(state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* What is to be started, for the request: a definition, or a name; *ret_name is the VM's. NULL
 * after saying why. */
static json_t *definition(const struct start *start, char ret_name[static VM_NAME_MAX])
{
    CLEANUP_FREE struct vm_spec *spec = malloc(sizeof(*spec));
    struct err err;

    if (!spec) {
        cli_fail("out of memory");
        return NULL;
    }
    if (!start->file) {
        (void)snprintf(ret_name, VM_NAME_MAX, "%s", start->vm);
        return json_string(start->vm);
    }
    if (vmfile_load(start->file, spec, &err) < 0) {
        cli_fail("%s", err.text);
        return NULL;
    }
    if (start->vm && strcmp(spec->name, start->vm) != 0) {
        cli_fail("%s describes %s, not %s", start->file, spec->name, start->vm);
        return NULL;
    }
    (void)snprintf(ret_name, VM_NAME_MAX, "%s", spec->name);
    return vm_json_from_spec(spec);
}

/* Starts the VM; unless told otherwise it waits until it is as protected as it should be. */
static int start_vm(const struct start *start)
{
    char name[VM_NAME_MAX];
    json_t *vm = definition(start, name), *status;
    bool wanted;

    if (!vm || cli_ask(json_pack("{s:s, s:o, s:b, s:b}", "command", "start", "vm", vm, "seize",
                                 start->seize, "recover", start->recover),
                       NULL) < 0)
        return CLI_FAILED;
    printf("%s: runs\n", name);
    if (start->no_wait)
        return CLI_OK;
    status = cli_vm_status(name);
    if (!status)
        return CLI_FAILED;
    wanted = view_text(status, "wanted_standby")[0];
    json_decref(status);
    return wanted ? cli_wait_protected(name, start->timeout_s) : CLI_OK;
}

static const struct argp_option options[] = {
    {"no-wait", KEY_NO_WAIT, NULL, 0, "Return once the VM runs, protected or not", 0},
    {"timeout", KEY_TIMEOUT, "SECONDS", 0, CLI_TIMEOUT_DOC, 0},
    {"seize", KEY_SEIZE, NULL, 0,
     "Start the VM even if another host owns it or has the newer copy of its disks. Only when that "
     "host is gone for good",
     0},
    {0},
};

int cli_start(int argc, char **argv)
{
    struct start start = {.timeout_s = CLI_TIMEOUT_S};

    cli_parse("start", argc, argv, options, parse_start, &start);
    return start_vm(&start);
}

int cli_recover(int argc, char **argv)
{
    struct start start = {.recover = true, .timeout_s = CLI_TIMEOUT_S};

    cli_parse("recover", argc, argv, options, parse_start, &start);
    return start_vm(&start);
}
