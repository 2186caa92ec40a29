/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/log.h"
#include "wire/msg.h"

/* What operators ask of a guard, and what it tells them. The keys are documented in
 * docs/control.md. */

/* Why the VM is not protected although it should be; "" when all is well or nobody wants it. */
static void reason(const struct guard *g, char *text, size_t n)
{
    const struct primary *p = &g->core;

    text[0] = '\0';
    switch (p->state) {
    case PRIMARY_SOLO:
        if (p->wanted[0] && clock_now_ns() < p->cool_until_ns)
            (void)snprintf(text, n, "it outran the link to %s; tried again in %.0f s", p->wanted,
                           (double)(p->cool_until_ns - clock_now_ns()) / (double)NS_PER_S);
        else if (p->wanted[0])
            (void)snprintf(text, n, "%s: %s", p->wanted,
                           g->link.why[0] ? g->link.why : "not connected yet");
        break;
    case PRIMARY_HANDING:
        (void)snprintf(text, n, "is being handed over to %s", p->peer);
        break;
    case PRIMARY_SEEDING:
    case PRIMARY_ARMING:
    case PRIMARY_PAIRING:
        (void)snprintf(text, n, "the first copy to %s is not complete yet", p->peer);
        break;
    case PRIMARY_ISOLATED:
        (void)snprintf(text, n, "%s%s; output is held",
                       g->link.up       ? "leaving the pair"
                       : g->link.why[0] ? g->link.why
                                        : "the standby is silent",
                       p->arbiter_silent ? ", and the arbiter does not answer" : "");
        break;
    default:
        break;
    }
}

static json_t *seeding(const struct guard *g)
{
    if (g->core.state != PRIMARY_SEEDING)
        return json_null();
    return json_pack("{s:I, s:I}", "done_bytes", (json_int_t)(g->seed.done_pages * VM_PAGE_BYTES),
                     "total_bytes", (json_int_t)(g->seed.total_pages * VM_PAGE_BYTES));
}

static void add(json_t *object, json_t *more)
{
    (void)json_object_update_new(object, more); /* out of memory: the key is missing */
}

json_t *status_json(struct guard *g)
{
    const struct primary *p = &g->core;
    const struct vm_spec *spec = &g->body->spec;
    char why[WIRE_TEXT_BYTES + 100];
    json_t *status;

    reason(g, why, sizeof(why));
    fault_point("guard.status");
    status = json_pack("{s:s, s:s, s:s, s:b, s:s, s:s, s:s, s:s, s:I, s:I, s:I}", "vm", spec->name,
                       "role", "primary", "state", primary_state_name(p->state), "protected",
                       p->state == PRIMARY_PROTECTED, "wanted_standby", p->wanted, "reason", why,
                       "host", p->self, "peer", g->link.up ? p->peer : "", "term",
                       (json_int_t)p->record.term, "epoch", (json_int_t)(p->next_epoch - 1),
                       "committed_epoch", (json_int_t)p->committed);
    add(status, figures_json(g));
    add(status, json_pack("{s:o}", "pace", figures_pace(g)));
    add(status, json_pack("{s:o, s:i, s:i, s:I, s:i, s:s, s:s, s:I, s:s}", "seeding", seeding(g),
                          "pid", (int)getpid(), "hypervisor_pid",
                          g->body->vm ? (int)g->body->ops->pid(g->body->vm) : 0, "memory_bytes",
                          (json_int_t)spec->memory_bytes, "cpus", (int)spec->cpus, "machine",
                          spec->machine, "accel", spec->accel, "uptime_s",
                          (json_int_t)((clock_now_ns() - g->stats.started_ns) / NS_PER_S),
                          "arbiter", p->arbiter_silent ? "unreachable" : "ok"));
    if (g->takeover.epoch)
        add(status,
            json_pack("{s:{s:f, s:f, s:f, s:I}}", "takeover", "decided_unix_ms",
                      g->takeover.decided_ms, "won_unix_ms", g->takeover.won_ms, "running_unix_ms",
                      g->takeover.running_ms, "epoch", (json_int_t)g->takeover.epoch));
    if (g->estimate.made)
        add(status, json_pack("{s:o}", "estimate", estimate_json(g)));
    if (g->body->disks)
        add(status, resync_status(g));
    return status;
}

void status_write_ended(const struct guard *g, const char *why)
{
    char path[VM_PATH_MAX + 100];
    json_t *note;

    (void)snprintf(path, sizeof(path), "%s/vms/%s.ended.json", g->config->state_dir,
                   g->body->spec.name);
    note = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "vm", g->body->spec.name, "reason",
                     g->core.state == PRIMARY_LOST ? "lost" : "crashed", "detail", why, "owner",
                     g->core.record.owner, "term", (json_int_t)g->core.record.term, "unix",
                     (json_int_t)time(NULL));
    if (!note || json_dump_file(note, path, JSON_COMPACT) < 0)
        log_error("%s: cannot be written", path);
    json_decref(note);
    log_error("this host has lost the VM: %s", why);
}

/* ---- orders ---- */

static void request_protect(struct guard *g, struct control_request *req)
{
    struct primary_event ev = {.type = PEV_PROTECT};
    const char *to = control_string(req, "to");

    if (!to || !wire_name_valid(to)) {
        control_fail(req, "%s: protect needs the name of a host", g->body->spec.name);
    } else if (strcmp(to, g->config->name) == 0) {
        control_fail(req, "%s: %s cannot be its own standby", g->body->spec.name, to);
    } else if (!host_config_peer(g->config, to)) {
        control_fail(req, "%s: %s is not among the peers of %s", g->body->spec.name, to,
                     g->config->name);
    } else if (g->core.state != PRIMARY_SOLO && strcmp(g->core.wanted, to) != 0) {
        control_fail(req, "%s: is %s with %s as its standby: unprotect it first",
                     g->body->spec.name, primary_state_name(g->core.state), g->core.peer);
    } else {
        (void)snprintf(ev.u.host, sizeof(ev.u.host), "%s", to);
        guard_event(g, &ev);
        control_reply(req, NULL);
    }
}

static void request_stop(struct guard *g, struct control_request *req)
{
    if (g->stop_request) {
        control_fail(req, "%s: is being stopped already", g->body->spec.name);
        return;
    }
    g->stop_request = req;
    guard_simple_event(g, PEV_STOP);
}

/* A peer wants this host as a standby for a VM that it is primary for. */
static void request_adopt(struct guard *g, struct control_request *req)
{
    int fd = control_take_fd(req);

    if (fd >= 0)
        close(fd);
    control_fail(req, "%s: this host runs it itself (%s, term %llu)", g->body->spec.name,
                 primary_state_name(g->core.state), (unsigned long long)g->core.record.term);
}

static void request_switchover(struct guard *g, struct control_request *req)
{
    const struct primary *p = &g->core;

    if (p->state != PRIMARY_PROTECTED || !g->link.up) {
        control_fail(req, "%s: is %s: only a protected VM can be switched over", g->body->spec.name,
                     primary_state_name(p->state));
    } else if (g->takeover.applier) {
        control_fail(req, "%s: the disks are still being taken over; try again",
                     g->body->spec.name);
    } else {
        g->switch_request = req;
        guard_simple_event(g, PEV_SWITCHOVER);
    }
}

void status_answer_switchover(struct guard *g)
{
    enum primary_state state = g->core.state;

    if (g->switch_request && (state == PRIMARY_SOLO || state == PRIMARY_STOPPING))
        control_fail(take_ptr(g->switch_request), "%s: it stays here: %s did not take it over%s%s",
                     g->body->spec.name, g->core.peer, g->link.why[0] ? ": " : "", g->link.why);
}

void guard_request(struct guard *g, struct control_request *req)
{
    const char *command = control_command(req);

    if (strcmp(command, "status") == 0) {
        control_reply(req, json_pack("{s:o}", "status", status_json(g)));
    } else if (strcmp(command, "estimate") == 0) {
        estimate_request(g, req);
    } else if (strcmp(command, "trace") == 0) {
        control_reply(req, figures_trace(g));
    } else if (strcmp(command, "protect") == 0) {
        request_protect(g, req);
    } else if (strcmp(command, "unprotect") == 0) {
        guard_simple_event(g, PEV_UNPROTECT);
        control_reply(req, NULL);
    } else if (strcmp(command, "stop") == 0) {
        request_stop(g, req);
    } else if (strcmp(command, "adopt") == 0) {
        request_adopt(g, req);
    } else if (strcmp(command, "switchover") == 0) {
        request_switchover(g, req);
    } else if (strcmp(command, "verify") == 0) {
        resync_request_verify(g, req);
    } else if (strcmp(command, "failover") == 0) {
        control_fail(req, "%s: this host runs it; order a failover on its standby%s%s",
                     g->body->spec.name, g->core.peer[0] ? ", " : "", g->core.peer);
    } else {
        control_fail(req, "%s: unknown command '%s'", g->body->spec.name, command);
    }
}
