/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

/* understudy trace: the last epochs of a protected VM, a line each. */

struct trace {
    const char *vm;
    bool json;
};

static error_t parse_trace(int key, char *arg, struct argp_state *state)
{
    struct trace *o = state->input;

    if (key != 'j')
        return cli_argument(key, arg, state, &o->vm);
    o->json = true;
    return 0;
}

/* All in ms. The pause is state + scan + copy + resume, and what lies between them. */
static const struct {
    const char *title, *key;
} columns[] = {
    {"PAUSE", "pause_ms"}, {"(AHEAD)", "ahead_ms"}, {"(STOP)", "stop_ms"},   {"STATE", "state_ms"},
    {"SCAN", "scan_ms"},   {"COPY", "copy_ms"},     {"RESUME", "resume_ms"},
};

enum { N_COLUMNS = sizeof(columns) / sizeof(columns[0]) };

static void print_epoch(const json_t *epoch)
{
    printf("%-10.0f %8.0f %6.0f %6.0f", view_number(epoch, "epoch"), view_number(epoch, "age_ms"),
           view_number(epoch, "pages"), view_number(epoch, "ahead_pages"));
    for (size_t i = 0; i < N_COLUMNS; i++)
        printf(" %7.2f", view_number(epoch, columns[i].key));
    printf("\n");
}

int cli_trace(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", 'j', NULL, 0, "Print it in JSON", 0},
        {0},
    };
    struct trace o = {0};
    json_t *answer, *epochs, *epoch;
    size_t i;

    cli_parse("trace", argc, argv, options, parse_trace, &o);
    if (cli_ask(json_pack("{s:s, s:s}", "command", "trace", "vm", o.vm), &answer) < 0)
        return CLI_FAILED;
    epochs = json_object_get(answer, "epochs");
    if (o.json) {
        cli_print_json(epochs);
    } else {
        printf("%-10s %8s %6s %6s", "EPOCH", "AGE", "PAGES", "AHEAD");
        for (i = 0; i < N_COLUMNS; i++)
            printf(" %7s", columns[i].title);
        printf("\n");
        json_array_foreach(epochs, i, epoch) print_epoch(epoch);
    }
    json_decref(answer);
    return CLI_OK;
}
