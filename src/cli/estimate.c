/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/progress.h"

/* understudy estimate: has a VM treated as if it were protected for a while, and tells what that
 * cost. The VM's process makes it; this command may go away. */

enum { LOOK_MS = 200 };

struct estimate {
    const char *vm;
    unsigned seconds;
    bool json;
};

static error_t parse_estimate(int key, char *arg, struct argp_state *state)
{
    struct estimate *o = state->input;

    switch (key) {
    case 's':
        o->seconds = cli_seconds(state, arg);
        return 0;
    case 'j':
        o->json = true;
        return 0;
    default:
        return cli_argument(key, arg, state, &o->vm);
    }
}

static void print_rate(const char *title, const json_t *estimate)
{
    char wire[32], raw[32];

    view_size(view_number(estimate, "wire_bytes_per_s"), wire, sizeof(wire));
    view_size(view_number(estimate, "raw_bytes_per_s"), raw, sizeof(raw));
    printf("  %-14s %s/s, for %s/s that change\n", title, wire, raw);
}

static void print_ms(const char *title, const json_t *samples, const char *rest)
{
    printf("  %-14s %.1f ms, 99 of 100 at most %.1f ms%s\n", title, view_number(samples, "p50_ms"),
           view_number(samples, "p99_ms"), rest);
}

static int outcome(const struct estimate *o, const json_t *estimate)
{
    const char *error = view_text(estimate, "error");
    char size[32];

    if (error[0])
        return cli_fail("%s: the estimate was ended: %s", o->vm, error);
    if (o->json) {
        cli_print_json(estimate);
        return CLI_OK;
    }
    view_size(view_number(estimate, "first_copy_bytes"), size, sizeof(size));
    printf("%s: protecting it would cost, as of the last %.0f s and %.0f checkpoints:\n", o->vm,
           view_number(estimate, "elapsed_s"), view_number(estimate, "epochs"));
    print_ms("pause", json_object_get(estimate, "pause"), "");
    printf("  %-14s %.1f %%\n", "slow-down", view_number(estimate, "slowdown_pct"));
    print_ms("output delay", json_object_get(estimate, "commit"),
             ", and a round trip to the standby");
    print_rate("link", estimate);
    printf("  %-14s %.0f %% of a core\n", "CPU here", view_number(estimate, "cpu_pct"));
    printf("  %-14s %s to copy before the VM is protected\n", "first copy", size);
    return CLI_OK;
}

/* One look. True: it is over, with *ret_exit. */
static bool look(struct cli_progress *p, const struct estimate *o, int *ret_exit)
{
    json_t *vm = cli_vm_status(o->vm);
    const json_t *estimate = json_object_get(vm, "estimate");
    bool over = !json_is_true(json_object_get(estimate, "running"));
    char text[64];

    if (!over) {
        (void)snprintf(text, sizeof(text), "estimating for %.0f s",
                       view_number(estimate, "seconds"));
        if (!o->json)
            cli_progress_say(p, text);
    } else {
        *ret_exit = json_is_object(estimate) ? outcome(o, estimate) : CLI_FAILED;
        if (vm && !json_is_object(estimate))
            cli_fail("%s: the estimate ended without an outcome: %s", o->vm,
                     view_text(vm, "state"));
    }
    json_decref(vm);
    return over;
}

int cli_estimate(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"seconds", 's', "SECONDS", 0, "How long to look; 30 unless given", 0},
        {"json", 'j', NULL, 0, "Print the outcome in JSON", 0},
        {0},
    };
    struct estimate o = {.seconds = 30};
    struct cli_progress progress;
    int result;

    cli_parse("estimate", argc, argv, options, parse_estimate, &o);
    if (cli_ask(json_pack("{s:s, s:s, s:i}", "command", "estimate", "vm", o.vm, "seconds",
                          (int)o.seconds),
                NULL) < 0)
        return CLI_FAILED;
    cli_progress_init(&progress, o.vm);
    cli_catch_interrupt();
    while (!look(&progress, &o, &result)) {
        if (cli_pause(LOOK_MS)) {
            cli_fail("%s: the estimate goes on without this command: understudy status --json %s",
                     o.vm, o.vm);
            return CLI_INTERRUPTED;
        }
    }
    return result;
}
