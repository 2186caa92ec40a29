/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/progress.h"

enum { RATE_MS = 500 }; /* between two looks that make a rate */

struct status_options {
    const char *vm;
    bool json, watch;
};

static error_t parse_status(int key, char *arg, struct argp_state *state)
{
    struct status_options *o = state->input;

    switch (key) {
    case 'j':
        o->json = true;
        return 0;
    case 'w':
        o->watch = true;
        return 0;
    case ARGP_KEY_ARG:
        if (o->vm)
            argp_usage(state);
        o->vm = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* The status of a VM with the rates of what is being copied. *before: the look before this one, or
 * NULL; it is replaced. */
static json_t *look(const char *name, json_t **before, double *before_s)
{
    json_t *vm = cli_vm_status(name);
    double now = cli_now();

    if (vm && !*before && view_moves(vm)) {
        *before = vm;
        *before_s = now;
        (void)cli_pause(RATE_MS);
        vm = cli_vm_status(name);
        now = cli_now();
    }
    if (*before && vm)
        view_set_rates(vm, *before, now - *before_s);
    json_decref(*before);
    *before = json_incref(vm);
    *before_s = now;
    return vm;
}

static int one_vm(const struct status_options *o)
{
    static json_t *before;
    static double before_s;
    json_t *vm = o->json ? cli_vm_status(o->vm) : look(o->vm, &before, &before_s);
    int result;

    if (!vm)
        return CLI_FAILED;
    if (o->json)
        cli_print_json(vm);
    else
        view_details(vm);
    result = view_unprotected(vm) ? CLI_UNPROTECTED : CLI_OK;
    json_decref(vm);
    return result;
}

static int all_vms(const struct status_options *o)
{
    json_t *answer, *vms, *vm;
    int result = CLI_OK;
    size_t i;

    if (cli_ask(json_pack("{s:s}", "command", "status"), &answer) < 0)
        return CLI_FAILED;
    vms = json_object_get(answer, "vms");
    (void)json_object_del(answer, "ok"); /* says something about the question only */
    if (o->json)
        cli_print_json(answer);
    else
        view_table(vms);
    json_array_foreach(vms, i, vm)
    {
        if (view_unprotected(vm))
            result = CLI_UNPROTECTED;
    }
    json_decref(answer);
    return result;
}

int cli_status(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", 'j', NULL, 0, "Print JSON, for programs", 0},
        {"watch", 'w', NULL, 0, "Show it anew every second", 0},
        {0},
    };
    struct status_options o = {0};
    int result;

    cli_parse("status", argc, argv, options, parse_status, &o);
    do {
        if (o.watch && isatty(STDOUT_FILENO))
            printf("\033[H\033[2J");
        result = o.vm ? one_vm(&o) : all_vms(&o);
        if (fflush(stdout) != 0)
            return CLI_FAILED;
        if (o.watch)
            (void)cli_pause(1000);
    } while (o.watch && result != CLI_FAILED);
    return result;
}
