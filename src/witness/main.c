/* SPDX-License-Identifier: Apache-2.0 */
#include <argp.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include "io/log.h"
#include "witness/server.h"

/* understudy-witness: the arbiter for those who run no etcd. Decides nothing itself: it keeps one
 * record per VM and swaps it for whoever knows what it holds (docs/design.md, Arbitration). */

const char *argp_program_version = "understudy-witness " US_VERSION;

struct options {
    const char *listen, *state;
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct options *options = state->input;

    switch (key) {
    case 'l':
        options->listen = arg;
        return 0;
    case 's':
        options->state = arg;
        return 0;
    case ARGP_KEY_END:
        if (!options->listen || !options->state)
            argp_error(state, "--listen and --state are needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option argp_options[] = {
    {"listen", 'l', "ADDRESS:PORT", 0, "Where hosts connect to; numeric, IPv6 as [ADDRESS]:PORT",
     0},
    {"state", 's', "DIR", 0, "Directory of the registers; it must exist", 0},
    {0},
};

static const struct argp argp = {
    .options = argp_options,
    .parser = parse_option,
    .doc = "Keeps, for each VM, the record of who may run it, and changes it by compare-and-swap."
           "\vRun it on a third machine, so that no single failure takes a host and the witness.",
};

/* A witness that waits for the CPU makes an outage longer. It needs next to no time itself. */
static void raise_priority(void)
{
    struct sched_param param = {.sched_priority = 1};

    (void)sched_setscheduler(0, SCHED_RR, &param); /* not allowed: then without */
}

/* Ends the loop on SIGTERM and SIGINT: without a handler, sd-event exits with the data as code. */
static int add_signals(sd_event *event)
{
    int r = sd_event_add_signal(event, NULL, SIGTERM | SD_EVENT_SIGNAL_PROCMASK, NULL, NULL);

    if (r >= 0)
        r = sd_event_add_signal(event, NULL, SIGINT | SD_EVENT_SIGNAL_PROCMASK, NULL, NULL);
    return r;
}

static int run(const struct options *options, struct err *err)
{
    sd_event *event = NULL;
    struct store *store = NULL;
    struct server *server = NULL;
    int r = store_open(options->state, &store, err);

    if (r < 0)
        return r;
    r = sd_event_new(&event);
    if (r >= 0)
        r = add_signals(event);
    if (r < 0)
        (void)err_sys(err, r, "event loop");
    else
        r = server_new(event, options->listen, store, &server, err);
    if (r >= 0) {
        raise_priority();
        log_info("listening on %s, registers in %s", server_address(server), options->state);
        (void)sd_notifyf(0, "READY=1\nSTATUS=Listening on %s", server_address(server));
        r = sd_event_loop(event);
        if (r < 0)
            (void)err_sys(err, r, "event loop");
    }
    server_free(server);
    sd_event_unref(event);
    store_close(store);
    return r;
}

int main(int argc, char **argv)
{
    struct options options = {0};
    struct err err = {""};
    int r;

    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    log_setup("witness", "");
    r = run(&options, &err);
    if (r < 0)
        log_error("%s", err.text);
    return r == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
