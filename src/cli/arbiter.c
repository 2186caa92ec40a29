/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "io/arbiter_client.h"
#include "io/clock.h"
#include "io/peers.h"

/* arbiter status: asks the arbiter itself, as the processes of the VMs do, with this host's key. So
 * it works, and is worth most, when understudyd does not run. */

enum { TIMEOUT_S = 5 };

struct arbiter_options {
    const char *command;
    bool json;
};

static error_t parse_arbiter(int key, char *arg, struct argp_state *state)
{
    struct arbiter_options *o = state->input;

    if (key == 'j') {
        o->json = true;
        return 0;
    }
    if (key == ARGP_KEY_END && o->command && strcmp(o->command, "status") != 0)
        argp_error(state, "there is no command \"arbiter %s\"", o->command);
    return cli_argument(key, arg, state, &o->command);
}

/* This host's key, for a witness; with etcd *ret_tls stays NULL. */
static int load_tls(const struct host_config *config, struct tls_context **ret_tls, struct err *err)
{
    struct identity *identity;
    char path[STATE_PATH_MAX];
    int r;

    if (config->arbiter.kind != ARBITER_WITNESS)
        return 0;
    host_key_path(config, path);
    r = identity_load(path, false, &identity, err);
    if (r < 0)
        return r;
    r = tls_context_new(identity, ret_tls, err);
    identity_free(identity);
    return r;
}

/* One place where the arbiter is: how long does a question take, on a new connection? */
static json_t *probe(const struct host_config *host, const struct arbiter_config *config,
                     struct tls_context *tls, const char *address)
{
    struct wire_arb_request get = {.op = WIRE_ARB_GET};
    uint64_t since = clock_now_ns();
    struct wire_arb_reply reply;
    struct err err = {""};
    int r;

    strcpy(get.vm, host->name); /* any name: what is there does not matter */
    r = arbiter_ask_once(config, tls, host->name, &get, TIMEOUT_S * NS_PER_S, &reply, &err);
    if (r < 0)
        return json_pack("{s:s, s:b, s:s}", "address", address, "reachable", 0, "error", err.text);
    return json_pack("{s:s, s:b, s:f}", "address", address, "reachable", 1, "answer_ms",
                     (double)(clock_now_ns() - since) / 1e6);
}

/* Each of etcd's endpoints by itself, so that one that is down is seen. */
static json_t *probe_all(const struct host_config *host, struct tls_context *tls)
{
    static struct arbiter_config one;
    json_t *list = json_array();

    one = host->arbiter;
    if (one.kind == ARBITER_WITNESS) {
        (void)json_array_append_new(list, probe(host, &one, tls, one.address));
        return list;
    }
    for (uint32_t i = 0; i < host->arbiter.n_etcd; i++) {
        one.n_etcd = 1;
        strcpy(one.etcd[0], host->arbiter.etcd[i]);
        (void)json_array_append_new(list, probe(host, &one, tls, one.etcd[0]));
    }
    return list;
}

static void add_register(void *user, const char *vm, const struct arb_record *record)
{
    (void)json_array_append_new(user,
                                json_pack("{s:s, s:I, s:s, s:s, s:s}", "vm", vm, "term",
                                          (json_int_t)record->term, "owner", record->owner, "mode",
                                          record->mode == ARB_PAIRED ? "paired" : "solo", "standby",
                                          record->standby));
}

static void print_text(const json_t *status)
{
    const json_t *one, *list = json_object_get(status, "endpoints");
    size_t i;

    json_array_foreach(list, i, one)
    {
        if (json_is_true(json_object_get(one, "reachable")))
            printf("%s %s: answers within %.1f ms\n", view_text(status, "kind"),
                   view_text(one, "address"), view_number(one, "answer_ms"));
        else
            printf("%s %s: not reachable: %s\n", view_text(status, "kind"),
                   view_text(one, "address"), view_text(one, "error"));
    }
    list = json_object_get(status, "registers");
    if (json_array_size(list) > 0)
        printf("%-20s %8s  %-20s %-7s %s\n", "VM", "TERM", "OWNER", "MODE", "STANDBY");
    else if (list)
        printf("no VMs\n");
    json_array_foreach(list, i, one)
    {
        const char *owner = view_text(one, "owner"), *standby = view_text(one, "standby");

        printf("%-20s %8.0f  %-20s %-7s %s\n", view_text(one, "vm"), view_number(one, "term"),
               owner[0] ? owner : "-", owner[0] ? view_text(one, "mode") : "stopped",
               standby[0] ? standby : "-");
    }
}

/* Everything about the arbiter. "registers" is there only when it could be asked for all. */
static int look(const struct host_config *config, struct tls_context *tls, json_t **ret_status)
{
    json_t *registers = json_array();
    struct err err = {""};
    int r;

    *ret_status = json_pack("{s:s, s:o}", "kind",
                            config->arbiter.kind == ARBITER_WITNESS ? "witness" : "etcd",
                            "endpoints", probe_all(config, tls));
    r = arbiter_list(&config->arbiter, tls, config->name, TIMEOUT_S * NS_PER_S, add_register,
                     registers, &err);
    if (r == 0)
        (void)json_object_set(*ret_status, "registers", registers);
    else
        (void)json_object_set_new(*ret_status, "error", json_string(err.text));
    json_decref(registers);
    return r;
}

int cli_arbiter(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", 'j', NULL, 0, "Print JSON, for programs", 0},
        {0},
    };
    static struct host_config config;
    struct arbiter_options o = {.json = false};
    struct tls_context *tls = NULL;
    json_t *status = NULL;
    struct err err;
    int r;

    cli_parse("arbiter", argc, argv, options, parse_arbiter, &o);
    if (cli_config(&config) < 0)
        return CLI_FAILED;
    if (load_tls(&config, &tls, &err) < 0)
        return cli_fail("%s", err.text);
    r = look(&config, tls, &status);
    tls_context_free(tls);
    if (o.json)
        cli_print_json(status);
    else
        print_text(status);
    if (r < 0)
        cli_fail("%s", view_text(status, "error"));
    json_decref(status);
    return r < 0 ? CLI_FAILED : CLI_OK;
}
