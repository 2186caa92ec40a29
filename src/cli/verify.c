/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/progress.h"

/* understudy verify: starts a comparison and watches it. The VM's process makes it; this command
 * may go away. Exit status as cmp(1) has it: equal, different, trouble. */

enum { LOOK_MS = 200, VERIFY_DIFFERS = 1, VERIFY_TROUBLE = 2 };

struct verify {
    const char *vm;
    uint64_t rate_bytes;
};

static error_t parse_verify(int key, char *arg, struct argp_state *state)
{
    struct verify *o = state->input;

    if (key != 'r')
        return cli_argument(key, arg, state, &o->vm);
    o->rate_bytes = cli_bytes(state, arg);
    return 0;
}

static int differs(const char *vm, const json_t *verify)
{
    const json_t *list = json_object_get(verify, "differing"), *range;
    char ranges[48];
    size_t i;

    printf("DISK  %-20s  LENGTH\n", "OFFSET");
    json_array_foreach(list, i, range)
        printf("%-4.0f  %-20.0f  %.0f\n", view_number(range, "disk"), view_number(range, "offset"),
               view_number(range, "bytes"));
    view_ranges(verify, ranges, sizeof(ranges));
    printf("%s: the copies of its disks differ in %s\n", vm, ranges);
    return VERIFY_DIFFERS;
}

static int outcome(const char *vm, const json_t *verify)
{
    const char *error = view_text(verify, "error");
    char size[32];

    if (error[0]) {
        cli_fail("%s: the comparison failed: %s", vm, error);
        return VERIFY_TROUBLE;
    }
    if (json_array_size(json_object_get(verify, "differing")) > 0)
        return differs(vm, verify);
    view_size(view_number(verify, "total_bytes"), size, sizeof(size));
    printf("%s: the copies of its disks are equal: %s compared\n", vm, size);
    return CLI_OK;
}

/* One look. True: it is over, with *ret_exit. */
static bool look(struct cli_progress *p, int *ret_exit)
{
    json_t *vm = cli_vm_status(p->vm);
    const json_t *verify = json_object_get(vm, "verify");
    bool over = !json_is_true(json_object_get(verify, "running"));

    if (!over) {
        cli_progress_show(p, "comparing", view_number(verify, "done_bytes"),
                          view_number(verify, "total_bytes"));
    } else if (json_is_object(verify)) {
        cli_progress_end(p);
        *ret_exit = outcome(p->vm, verify);
    } else {
        cli_progress_end(p);
        *ret_exit = VERIFY_TROUBLE;
        if (vm)
            cli_fail("%s: the comparison ended without an outcome: %s", p->vm,
                     view_text(vm, "state"));
    }
    json_decref(vm);
    return over;
}

int cli_verify(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"rate", 'r', "BYTES", 0, "Read no more than that in a second, for example 50M", 0},
        {0},
    };
    struct verify o = {.rate_bytes = 0};
    struct cli_progress progress;
    json_t *request;
    int result;

    cli_parse("verify", argc, argv, options, parse_verify, &o);
    request = json_pack("{s:s, s:s}", "command", "verify", "vm", o.vm);
    if (o.rate_bytes &&
        json_object_set_new(request, "rate_bytes", json_integer((json_int_t)o.rate_bytes)) < 0) {
        json_decref(request);
        request = NULL;
    }
    if (cli_ask(request, NULL) < 0)
        return VERIFY_TROUBLE;
    cli_progress_init(&progress, o.vm);
    cli_catch_interrupt();
    while (!look(&progress, &result)) {
        if (cli_pause(LOOK_MS)) {
            cli_progress_end(&progress);
            cli_fail("%s: the comparison goes on without this command: understudy status %s", o.vm,
                     o.vm);
            return CLI_INTERRUPTED;
        }
    }
    return result;
}
