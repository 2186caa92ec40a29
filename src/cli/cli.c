/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/vmfile.h"
#include "io/control.h"

enum { ANSWER_TIMEOUT_MS = 70000 }; /* more than what understudyd allows the slowest start */

static const char *config_option; /* --config */

struct parse {
    argp_parser_t parser;
    void *input;
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct parse *parse = state->input;
    struct argp_state inner = *state;

    if (key == 'c') {
        config_option = arg;
        return 0;
    }
    if (!parse->parser)
        return ARGP_ERR_UNKNOWN;
    inner.input = parse->input;
    return parse->parser(key, arg, &inner);
}

void cli_parse(const char *name, int argc, char **argv, const struct argp_option *options,
               argp_parser_t parser, void *input)
{
    const struct cli_command *command = cli_command_get(name);
    struct argp_option all[16] = {
        {"config", 'c', "FILE", 0, "Configuration of this host", 1},
    };
    struct argp argp = {
        .options = all, .parser = parse_option, .args_doc = command->args, .doc = command->doc};
    struct parse parse = {.parser = parser, .input = input};

    for (size_t i = 0; options && options[i].name && i + 2 < sizeof(all) / sizeof(all[0]); i++)
        all[i + 1] = options[i];
    if (argp_parse(&argp, argc, argv, 0, NULL, &parse))
        exit(CLI_USAGE);
}

error_t cli_argument(int key, char *arg, const struct argp_state *state, const char **ret_arg)
{
    if (key != ARGP_KEY_ARG && key != ARGP_KEY_END)
        return ARGP_ERR_UNKNOWN;
    if (key == ARGP_KEY_ARG ? *ret_arg != NULL : *ret_arg == NULL)
        argp_usage(state);
    if (key == ARGP_KEY_ARG)
        *ret_arg = arg;
    return 0;
}

int cli_fail(const char *fmt, ...)
{
    va_list ap;

    (void)fflush(stdout); /* in the order in which it was said */
    fputs("understudy: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    return CLI_FAILED;
}

void cli_print_json(const json_t *json)
{
    (void)json_dumpf(json, stdout, JSON_INDENT(2)); /* a broken pipe shows at exit */
    putchar('\n');
}

unsigned cli_seconds(const struct argp_state *state, const char *text)
{
    char *end;
    unsigned long s = strtoul(text, &end, 10);

    if (end == text || *end || s == 0 || s > 86400)
        argp_error(state, "%s is not a number of seconds", text);
    return (unsigned)s;
}

uint64_t cli_bytes(const struct argp_state *state, const char *text)
{
    uint64_t bytes;

    if (vmfile_bytes(text, &bytes) < 0 || bytes == 0 || bytes > INT64_MAX)
        argp_error(state, "%s is not a number of bytes such as 50M", text);
    return bytes;
}

static int load_config(int (*load)(const char *path, struct host_config *ret_config,
                                   struct err *err),
                       struct host_config *ret_config)
{
    struct err err;
    int r = load(host_config_path(config_option), ret_config, &err);

    if (r < 0)
        cli_fail("%s", err.text);
    return r;
}

int cli_config(struct host_config *ret_config)
{
    return load_config(host_config_load, ret_config);
}

int cli_ask(json_t *request, json_t **ret_answer)
{
    static struct host_config config;
    char path[sizeof(config.run_dir) + 32];
    json_t *answer = NULL;
    struct err err;
    int r = request ? 0 : -ENOMEM;

    if (r < 0)
        cli_fail("out of memory");
    else
        r = load_config(host_config_load_file, &config);
    if (r < 0) {
        json_decref(request);
        return r;
    }
    (void)snprintf(path, sizeof(path), "%s/understudyd.sock", config.run_dir);
    r = control_ask(path, request, ANSWER_TIMEOUT_MS, NULL, NULL, &answer, &err);
    json_decref(request);
    if (r == -ENOENT || r == -ECONNREFUSED)
        cli_fail("cannot reach understudyd (%s)\n"
                 "Is it running? systemctl status understudyd",
                 err.text);
    else if (r == -EACCES)
        cli_fail("%s: only root and the control_group of understudy.yaml may give orders", path);
    else if (r == -EREMOTEIO)
        cli_fail("%s", err.text);
    else if (r < 0)
        cli_fail("understudyd: %s", err.text);
    if (r == 0 && ret_answer)
        *ret_answer = answer;
    else
        json_decref(answer);
    return r;
}

json_t *cli_vm_status(const char *vm)
{
    json_t *answer, *status;

    if (cli_ask(json_pack("{s:s, s:s}", "command", "status", "vm", vm), &answer) < 0)
        return NULL;
    status = json_incref(json_array_get(json_object_get(answer, "vms"), 0));
    json_decref(answer);
    if (!status)
        cli_fail("%s: understudyd does not say anything about it", vm);
    return status;
}
