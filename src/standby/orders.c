/* SPDX-License-Identifier: Apache-2.0 */
#include "standby/internal.h"

#include <jansson.h>
#include <string.h>
#include <unistd.h>

/* What operators ask of a standby. The keys are documented in docs/control.md. */

static json_t *disks(const struct standby_shell *s)
{
    const struct disks *d = s->body ? s->body->disks : NULL;
    struct applier_report report = {.durable_epoch = 0};
    json_t *list = json_array();
    uint32_t i;

    if (s->applier)
        applier_report_get(s->applier, &report);
    for (i = 0; d && i < d->n; i++)
        (void)json_array_append_new(
            list, json_pack("{s:s, s:I, s:s, s:I, s:I}", "path", s->body->spec.disks[i].path,
                            "size_bytes", (json_int_t)d->sizes[i], "state",
                            s->core.right ? "standby" : "receiving", "applied_bytes",
                            (json_int_t)report.applied_bytes, "durable_epoch",
                            (json_int_t)report.durable_epoch));
    return list;
}

static json_t *status(const struct standby_shell *s)
{
    struct receiver_report report = {.wire_bytes = 0};

    if (s->receiver)
        receiver_report_get(s->receiver, &report);
    return json_pack("{s:s, s:s, s:s, s:b, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:i, "
                     "s:I, s:s, s:o}",
                     "vm", s->vm, "role", "standby", "state",
                     s->serving ? standby_state_name(s->core.state) : "connecting", "protected",
                     s->serving && s->core.state == STANDBY_READY, "wanted_standby", "", "reason",
                     "", "host", s->config->name, "peer", s->primary, "term",
                     (json_int_t)s->core.right, "epoch", (json_int_t)s->core.epoch,
                     "committed_epoch", (json_int_t)report.applied_epoch, "bytes_received",
                     (json_int_t)report.wire_bytes, "bytes_raw", (json_int_t)report.raw_bytes,
                     "pid", (int)getpid(), "hypervisor_pid",
                     s->body && s->body->vm ? (int)s->hyp->pid(s->body->vm) : 0, "uptime_s",
                     (json_int_t)((clock_now_ns() - s->started_ns) / NS_PER_S), "arbiter",
                     s->core.arbiter_silent ? "unreachable" : "ok", "disks", disks(s));
}

static void request_failover(struct standby_shell *s, struct control_request *req)
{
    if (!s->serving || s->core.state == STANDBY_RECEIVING) {
        control_fail(req, "%s: this host's copy is not complete: nothing to take over with", s->vm);
    } else if (s->failover_request) {
        control_fail(req, "%s: a failover is under way already", s->vm);
    } else {
        s->failover_request = req;
        standby_simple_event(s, SEV_FAILOVER);
    }
}

static void request_adopt(struct standby_shell *s, struct control_request *req)
{
    int fd = control_take_fd(req);
    struct err err;

    if (fd < 0)
        control_fail(req, "%s: adopt needs a connection", s->vm);
    else if (session_adopt(s, fd, &err) < 0)
        control_fail(req, "%s: %s", s->vm, err.text);
    else
        control_reply(req, NULL);
}

/* A copy that may be the only one left is not thrown away by a stray stop. */
static void request_stop(struct standby_shell *s, struct control_request *req)
{
    if (s->core.link_up) {
        control_fail(req, "%s: runs on %s: stop it there", s->vm, s->primary);
        return;
    }
    standby_finish(s, "stopped by an operator");
    control_reply(req, NULL);
}

void standby_request(struct standby_shell *s, struct control_request *req)
{
    const char *command = control_command(req);

    if (strcmp(command, "status") == 0)
        control_reply(req, json_pack("{s:o}", "status", status(s)));
    else if (strcmp(command, "failover") == 0)
        request_failover(s, req);
    else if (strcmp(command, "adopt") == 0)
        request_adopt(s, req);
    else if (strcmp(command, "stop") == 0)
        request_stop(s, req);
    else if (strcmp(command, "protect") == 0 || strcmp(command, "unprotect") == 0 ||
             strcmp(command, "switchover") == 0 || strcmp(command, "verify") == 0)
        control_fail(req, "%s: runs on %s: order that there", s->vm, s->primary);
    else
        control_fail(req, "%s: unknown command '%s'", s->vm, command);
}
