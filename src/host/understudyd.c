/* SPDX-License-Identifier: Apache-2.0 */
#include <argp.h>
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "host/host.h"

/* understudyd: one per host. See host.h for what it is made of. */

const char *argp_program_version = "understudyd " US_VERSION;

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    const char **config_path = state->input;

    switch (key) {
    case 'c':
        *config_path = arg;
        return 0;
    case ARGP_KEY_ARG:
        argp_usage(state);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"config", 'c', "FILE", 0,
     "Configuration of this host (default: $UNDERSTUDY_CONFIG, or " HOST_CONFIG_DEFAULT_PATH ")",
     0},
    {0},
};

static const struct argp argp = {
    .options = options,
    .parser = parse_option,
    .doc = "Runs the protected VMs of this host and backs those of its peers.",
};

/* The group that may give orders too, if the configuration has one. */
static int allow_group(const struct host *host, struct err *err)
{
    const char *name = host->config.control_group;
    const struct group *group;

    if (!name[0])
        return 0;
    group = getgrnam(name);
    if (!group)
        return err_set(err, -ENOENT, "control_group: there is no group %s", name);
    return control_server_allow(host->control, group->gr_gid, err);
}

static int serve(struct host *host, struct err *err)
{
    char path[RECORD_PATH_MAX], key[PUBLIC_KEY_TEXT];
    int r;

    r = records_prepare(&host->config, err);
    if (r == 0)
        r = keys_open(host, err);
    if (r < 0)
        return r;
    (void)snprintf(path, sizeof(path), "%s/understudyd.sock", host->config.run_dir);
    r = control_server_new(host->event, path, host_command, host, &host->control, err);
    if (r == 0)
        r = allow_group(host, err);
    if (r == 0)
        r = vms_find(host, err);
    if (r < 0)
        return r;
    reload_all(host, NULL); /* an earlier understudyd may have ended before it did so */
    r = door_open(host, err);
    if (r < 0)
        return r;
    public_key_format(identity_public(host->identity), key);
    log_info("%s, peers on %s, orders on %s, key %s", argp_program_version, host->config.listen,
             path, key);
    (void)sd_notify(0, "READY=1");
    vms_notify(host);
    return 0;
}

/* SIGTERM and SIGINT end the loop; the VMs go on. */
static int watch_signals(sd_event *event, struct err *err)
{
    static const int signals[] = {SIGTERM, SIGINT};
    sigset_t blocked;
    int r = 0;

    sigemptyset(&blocked);
    sigaddset(&blocked, SIGPIPE);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaddset(&blocked, signals[i]);
    (void)sigprocmask(SIG_BLOCK, &blocked, NULL); /* fails for a bad first argument only */
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]) && r >= 0; i++)
        r = sd_event_add_signal(event, NULL, signals[i], NULL, NULL);
    if (r >= 0)
        r = sd_event_set_watchdog(event, 1);
    return r < 0 ? err_sys(err, r, "signals") : 0;
}

static int run(struct host *host, struct err *err)
{
    int r = host_config_load(host->config_path, &host->config, err);

    if (r < 0)
        return r;
    log_setup(host->config.name, "");
    r = sd_event_new(&host->event);
    if (r < 0)
        return err_sys(err, r, "event loop");
    r = watch_signals(host->event, err);
    if (r == 0)
        r = serve(host, err);
    if (r < 0)
        return r;
    r = sd_event_loop(host->event);
    if (r < 0)
        return err_sys(err, r, "event loop");
    (void)sd_notify(0, "STOPPING=1");
    log_info("ends; %u VM%s go%s on", host->n_vms, host->n_vms == 1 ? "" : "s",
             host->n_vms == 1 ? "es" : "");
    return 0;
}

int main(int argc, char **argv)
{
    static struct host host;
    const char *config_option = NULL;
    struct err err;
    int r;

    argp_err_exit_status = 2;
    if (argp_parse(&argp, argc, argv, 0, NULL, &config_option))
        return 2;
    umask(0077);
    host.config_path = host_config_path(config_option);
    r = run(&host, &err);
    if (r < 0)
        log_error("%s", err.text);
    door_close(&host);
    relays_done(&host);
    vms_done(&host);
    control_server_close(host.control);
    keys_close(&host);
    sd_event_unref(host.event);
    return r < 0 ? 1 : 0;
}
