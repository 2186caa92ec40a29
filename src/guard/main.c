/* SPDX-License-Identifier: Apache-2.0 */
#include <argp.h>
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "guard/confine.h"
#include "guard/guard.h"
#include "host/preflight.h"
#include "host/records.h"
#include "io/log.h"
#include "io/peers.h"
#include "io/thread.h"
#include "io/tls.h"
#include "io/vm_json.h"
#include "standby/standby.h"

/* understudy-guard: the process of one VM on one host, started by understudyd. It begins as the
 * VM's guard (primary), as its standby, or in the place of a guard that died (attach); a standby
 * that takes over goes on as the guard. */

struct options {
    const char *role; /* "primary", "standby" or "attach" */
    const char *config_path;
    const char *vm; /* primary, attach: path of the record; standby: name */
    int conn_fd, ready_fd;
    bool seize, recover;
};

struct process {
    struct options options;
    struct host_config config;
    struct tls_context *tls;
    struct public_key key; /* this host's, as in use */
    sd_event *event;
    struct control_server *control;
    struct guard *guard;
    struct standby_shell *standby;
    sd_event_source *switch_source; /* standby -> guard, from the loop */
    bool refused;                   /* the VM was not started */
    char vm[VM_NAME_MAX];
    struct takeover takeover;
};

static const struct hyp_ops *const hyp = &hyp_qemu;

/* ---- the line that understudyd waits for ---- */

/* Says once whether it works; the descriptor is closed by that. */
static void say_ready(struct process *p, const char *error)
{
    json_t *line =
        error ? json_pack("{s:b, s:s}", "ok", 0, "error", error) : json_pack("{s:b}", "ok", 1);

    fault_point("guard.say-ready");
    if (p->options.ready_fd < 0) {
        json_decref(line);
        return;
    }
    if (line) {
        (void)json_dumpfd(line, p->options.ready_fd, JSON_COMPACT); /* end of file says it too */
        (void)!write(p->options.ready_fd, "\n", 1);
    }
    json_decref(line);
    close(p->options.ready_fd);
    p->options.ready_fd = -1;
}

static void on_started(void *user, const char *refused)
{
    struct process *p = user;

    p->refused = refused != NULL;
    say_ready(p, refused);
}

/* ---- keys ---- */

/* Reads this host's key, and has connections made with it from now on. *ret_changed: it is another
 * one than before. */
static int load_key(struct process *p, bool *ret_changed, struct err *err)
{
    char path[STATE_PATH_MAX];
    struct identity *identity;
    int r;

    host_key_path(&p->config, path);
    r = identity_load(path, false, &identity, err);
    if (r < 0)
        return r;
    if (p->tls)
        r = tls_context_change(p->tls, identity, err);
    else
        r = tls_context_new(identity, &p->tls, err);
    *ret_changed = r >= 0 && !public_key_equal(&p->key, identity_public(identity));
    if (r >= 0)
        p->key = *identity_public(identity);
    identity_free(identity);
    return r;
}

/* The witness may have another key by now; where it is does not change under a running VM. */
static int load_witness_key(struct process *p, struct err *err)
{
    CLEANUP_FREE struct host_config *now = malloc(sizeof(*now));
    int r;

    if (!now)
        return err_sys(err, -ENOMEM, "configuration");
    r = host_config_load_file(host_config_path(p->options.config_path), now, err);
    if (r >= 0 && strcmp(now->arbiter.address, p->config.arbiter.address) == 0)
        p->config.arbiter.key = now->arbiter.key;
    return r;
}

/* understudyd has changed the peers' file, or this host's key, or was started again. */
static void reload(struct process *p, struct control_request *req)
{
    bool own_changed;
    struct err err;

    if (peers_load(&p->config, &err) < 0 || load_witness_key(p, &err) < 0 ||
        load_key(p, &own_changed, &err) < 0) {
        log_error("keys and peers stay as they were: %s", err.text);
        control_fail(req, "%s: %s", p->vm, err.text);
        return;
    }
    if (p->guard)
        guard_keys_changed(p->guard, own_changed);
    else if (p->standby)
        standby_keys_changed(p->standby);
    control_reply(req, NULL);
}

/* ---- roles ---- */

static void on_request(void *user, struct control_request *req)
{
    struct process *p = user;

    if (strcmp(control_command(req), "reload") == 0)
        reload(p, req);
    else if (p->guard)
        guard_request(p->guard, req);
    else if (p->standby)
        standby_request(p->standby, req);
    else
        control_fail(req, "not ready yet; try again");
}

static int serve_control(struct process *p, const char *vm, struct err *err)
{
    char path[RECORD_PATH_MAX];

    vm_socket_path(&p->config, vm, path);
    return control_server_new(p->event, path, on_request, p, &p->control, err);
}

static int load_record(const char *path, struct vm_spec *ret_spec, struct err *err)
{
    CLEANUP_FREE char *text = malloc(VM_JSON_MAX);
    FILE *file = fopen(path, "re");
    size_t n;
    int r;

    if (!file || !text) {
        if (file)
            fclose(file);
        return err_sys(err, file ? -ENOMEM : -errno, "%s", path);
    }
    n = fread(text, 1, VM_JSON_MAX, file);
    fclose(file);
    r = vm_json_decode(text, n, ret_spec, err);
    if (r < 0)
        err_prefix(err, "%s", path);
    return r;
}

static int run_preflight(struct vm_spec *spec, const struct host_config *config, struct err *err)
{
    return preflight_vm(spec, config, hyp, err);
}

static int run_preflight_standby(struct vm_spec *spec, const struct host_config *config,
                                 struct err *err)
{
    int r = preflight_standby(spec, config, hyp, err);

    if (r >= 0) {
        /* What this host had to say of the VM from an earlier role is history. */
        record_remove(config, spec->name);
        ended_remove(config, spec->name);
    }
    return r;
}

/* The definition of the VM that this process is for. */
static int read_record(struct process *p, struct vm_spec *ret_spec, struct err *err)
{
    int r = load_record(p->options.vm, ret_spec, err);

    if (r < 0)
        return r;
    (void)snprintf(p->vm, sizeof(p->vm), "%s", ret_spec->name);
    log_setup(p->config.name, ret_spec->name);
    return 0;
}

static int start_primary(struct process *p, struct err *err)
{
    CLEANUP_FREE struct vm_spec *spec = malloc(sizeof(*spec));
    struct guard_params params = {
        .event = p->event,
        .config = &p->config,
        .tls = p->tls,
        .seize = p->options.seize,
        .recover = p->options.recover,
        .on_started = on_started,
        .user = p,
    };
    int r;

    if (!spec)
        return err_sys(err, -ENOMEM, "record");
    r = read_record(p, spec, err);
    if (r < 0)
        return r;
    fault_point("guard.preflight");
    r = run_preflight(spec, &p->config, err);
    if (r >= 0)
        r = record_write(&p->config, spec, err); /* the machine type is pinned now */
    if (r >= 0)
        r = serve_control(p, spec->name, err);
    if (r >= 0)
        r = body_open(&p->config, spec, hyp, p->event, false, NULL, NULL, &params.body, err);
    if (r < 0)
        return r;
    r = guard_new(&params, &p->guard, err);
    if (r < 0)
        body_close(params.body);
    return r;
}

/* Takes the place of a guard that died. */
static int start_attach(struct process *p, struct err *err)
{
    CLEANUP_FREE struct vm_spec *spec = malloc(sizeof(*spec));
    struct guard_params params = {
        .event = p->event, .config = &p->config, .tls = p->tls, .attached = true};
    int r;

    if (!spec)
        return err_sys(err, -ENOMEM, "record");
    r = read_record(p, spec, err);
    if (r >= 0)
        r = serve_control(p, spec->name, err);
    if (r >= 0)
        r = body_attach(&p->config, spec, hyp, p->event, NULL, NULL, &params.body, &params.running,
                        err);
    if (r < 0)
        return r;
    r = guard_new(&params, &p->guard, err);
    if (r < 0)
        body_close(params.body);
    else
        say_ready(p, NULL);
    return r;
}

/* A VM is about to run here. Its record must be there for whoever attaches to it, should this
 * process die before record_takeover(), and must not cost the time of a sync now. */
static void on_won(void *user, struct vm_spec *spec, const char *from)
{
    const struct process *p = user;
    struct err err;

    (void)snprintf(spec->protect.standby, sizeof(spec->protect.standby), "%s", from);
    if (record_write_soft(&p->config, spec, &err) < 0)
        log_error("%s", err.text);
}

/* The record of a VM that runs here from now on, as if it had been started here. */
static void record_takeover(struct process *p)
{
    const struct vm_spec *spec = &p->takeover.body->spec;
    struct err err;

    fault_point("standby.record");
    if (record_write(&p->config, spec, &err) < 0)
        log_error("its record is not kept: %s", err.text);
    record_remove_standby(&p->config, spec->name);
    fault_point("standby.recorded");
}

/* The standby has become the owner of a running VM: the same process goes on as its guard. */
static int on_switch(sd_event_source *source, void *user)
{
    struct process *p = user;
    struct guard_params params = {
        .event = p->event,
        .config = &p->config,
        .tls = p->tls,
        .body = p->takeover.body,
        .takeover = &p->takeover,
    };
    struct err err;

    fault_point("standby.switch");
    standby_free(take_ptr(p->standby));
    if (guard_new(&params, &p->guard, &err) < 0) {
        log_error("THE VM IS LOST: %s", err.text);
        body_close(params.body);
        return sd_event_exit(p->event, GUARD_LOST);
    }
    record_takeover(p);
    return 0;
}

static void on_takeover(void *user, const struct takeover *takeover)
{
    struct process *p = user;

    p->takeover = *takeover;
    if (sd_event_add_defer(p->event, &p->switch_source, on_switch, p) < 0) {
        log_error("THE VM IS LOST: out of memory");
        body_close(p->takeover.body);
        (void)sd_event_exit(p->event, GUARD_LOST);
        return;
    }
    (void)sd_event_source_set_priority(p->switch_source, SD_EVENT_PRIORITY_IMPORTANT);
}

static int on_complete(void *user, const struct vm_spec *spec, const char *primary, struct err *err)
{
    const struct process *p = user;

    return record_write_standby(&p->config, spec, primary, err);
}

static int start_standby(struct process *p, struct err *err)
{
    struct standby_params params = {
        .event = p->event,
        .config = &p->config,
        .tls = p->tls,
        .hyp = hyp,
        .vm = p->options.vm,
        .conn_fd = p->options.conn_fd,
        .preflight = run_preflight_standby,
        .on_won = on_won,
        .on_takeover = on_takeover,
        .on_complete = on_complete,
        .user = p,
    };
    int r;

    (void)snprintf(p->vm, sizeof(p->vm), "%s", p->options.vm);
    log_setup(p->config.name, p->options.vm);
    r = serve_control(p, p->options.vm, err);
    if (r >= 0)
        r = standby_new(&params, &p->standby, err);
    if (r >= 0)
        say_ready(p, NULL);
    return r;
}

/* ---- process ---- */

static const struct role {
    const char *name;
    int (*start)(struct process *p, struct err *err);
} roles[] = {{"primary", start_primary}, {"standby", start_standby}, {"attach", start_attach}};

static const struct role *find_role(const char *name)
{
    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        if (strcmp(roles[i].name, name) == 0)
            return &roles[i];
    }
    return NULL;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;

    switch (key) {
    case 'c':
        o->config_path = arg;
        return 0;
    case 'v':
        o->vm = arg;
        return 0;
    case 'f':
        o->conn_fd = atoi(arg);
        return 0;
    case 'r':
        o->ready_fd = atoi(arg);
        return 0;
    case 's':
        o->seize = true;
        return 0;
    case 'R':
        o->recover = true;
        return 0;
    case ARGP_KEY_ARG:
        if (o->role)
            argp_usage(state);
        o->role = arg;
        return 0;
    case ARGP_KEY_END:
        if (!o->role || !o->vm || !find_role(o->role) ||
            (strcmp(o->role, "standby") == 0 && o->conn_fd < 0))
            argp_usage(state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option argp_options[] = {
    {"config", 'c', "FILE", 0, "Configuration of this host", 0},
    {"vm", 'v', "RECORD|NAME", 0, "primary, attach: the VM's record; standby: its name", 0},
    {"conn-fd", 'f', "FD", 0, "standby: the primary's connection", 0},
    {"ready-fd", 'r', "FD", 0, "Where to say that it works", 0},
    {"seize", 's', NULL, 0, "primary: take the VM from an owner that is gone for good", 0},
    {"recover", 'R', NULL, 0, "primary: both hosts went down; start from this copy of the disks",
     0},
    {0},
};

static const struct argp argp = {
    .options = argp_options,
    .parser = parse_option,
    .args_doc = "primary|standby|attach",
    .doc = "The process of one VM on one host. Started by understudyd, not by people.",
};

const char *argp_program_version = "understudy-guard " US_VERSION;

/* Logs of disk writes come and go in pieces of 256 KiB, at the speed of the disk. Left alone, the
 * allocator gives each one back to the kernel, and every page of the next is cleared and faulted in
 * anew. */
static void keep_memory(void)
{
    (void)mallopt(M_MMAP_THRESHOLD, 4 << 20);
    (void)mallopt(M_TRIM_THRESHOLD, 128 << 20);
}

/* Heartbeats and cuts must not wait behind the guest for a core. */
static void raise_priority(void)
{
    int r = thread_raise_priority();

    if (r < 0)
        log_info("no real-time priority: %s", strerror(-r));
}

/* What is left to do, freeing a VM's memory above all, must not keep others from a core. */
static void lower_priority(void)
{
    const struct sched_param param = {.sched_priority = 0};

    (void)sched_setscheduler(0, SCHED_OTHER | SCHED_RESET_ON_FORK, &param); /* less is allowed */
}

static int run(struct process *p, struct err *err)
{
    sigset_t signals;
    bool changed;
    int r;

    r = host_config_load(host_config_path(p->options.config_path), &p->config, err);
    if (r < 0)
        return r;
    log_setup(p->config.name, "");
    r = confine_early(err);
    if (r < 0)
        return r;
    r = records_prepare(&p->config, err);
    if (r < 0)
        return r;
    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    r = sd_event_new(&p->event);
    if (r < 0)
        return err_sys(err, r, "event loop");
    r = load_key(p, &changed, err);
    if (r >= 0)
        r = find_role(p->options.role)->start(p, err);
    if (r < 0)
        return r;
    raise_priority();
    /* A standby has still to launch its hypervisor: it does the same then. */
    if (p->guard && (r = confine_late(err)) < 0)
        return r;
    return sd_event_loop(p->event);
}

int main(int argc, char **argv)
{
    struct process p = {.options = {.conn_fd = -1, .ready_fd = -1}};
    struct err err = {.text = ""};
    int r;

    argp_err_exit_status = 2;
    keep_memory();
    if (argp_parse(&argp, argc, argv, 0, NULL, &p.options))
        return 2;
    r = run(&p, &err);
    lower_priority();
    if (r < 0) {
        log_error("%s", err.text);
        say_ready(&p, err.text);
    }
    if (p.guard && r == GUARD_STOPPED && !p.refused)
        record_remove(&p.config, p.vm); /* by an order or by the guest itself: it is over */
    standby_free(p.standby);
    guard_free(p.guard);
    control_server_close(p.control);
    sd_event_source_disable_unref(p.switch_source);
    tls_context_free(p.tls);
    sd_event_unref(p.event);
    return r < 0 ? 1 : r;
}
