/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "host/host.h"
#include "io/vm_json.h"
#include "wire/msg.h"

/* The control socket of understudyd: docs/control.md. */

typedef void command_fn(struct host *host, struct control_request *req, const char *vm);

/* The definition of the VM to start: it is in the request, or a recovery names a VM that this host
 * has a record of. */
static int start_spec(const struct host *host, const struct control_request *req, bool recover,
                      struct vm_spec *ret_spec, struct err *err)
{
    const char *name = recover ? control_string(req, "vm") : NULL;
    int r = name ? record_load(&host->config, name, ret_spec, err)
                 : vm_json_to_spec(json_object_get(control_body(req), "vm"), ret_spec, err);

    if (r < 0)
        err_prefix(err, "%.*s", VM_NAME_MAX, name ? name : "vm");
    return r;
}

static void start(struct host *host, struct control_request *req, const char *none)
{
    CLEANUP_FREE struct vm_spec *spec = malloc(sizeof(*spec));
    struct vm_order order = {.start = req, .conn_fd = -1};
    const struct vm *running;
    struct err err;

    order.recover = json_is_true(json_object_get(control_body(req), "recover"));
    if (!spec || start_spec(host, req, order.recover, spec, &err) < 0) {
        control_fail(req, "%s", spec ? err.text : "out of memory");
        return;
    }
    running = vm_get(host, spec->name);
    if (running) {
        control_fail(req, "%s: %s", spec->name,
                     running->backs ? "this host is its standby, or has taken it over"
                                    : "runs on this host already");
        return;
    }
    order.name = spec->name;
    order.seize = json_is_true(json_object_get(control_body(req), "seize"));
    order.had_record = record_exists(&host->config, spec->name);
    if (record_write(&host->config, spec, &err) < 0 || vm_start(host, &order, &err) < 0) {
        if (!order.had_record)
            record_remove(&host->config, spec->name);
        control_fail(req, "%s: %s", spec->name, err.text);
    }
}

static void stop(struct host *host, struct control_request *req, const char *name)
{
    struct vm *vm = vm_get(host, name);
    json_t *note = ended_read(&host->config, name);
    bool known =
        note || record_exists(&host->config, name) || record_exists_standby(&host->config, name);

    json_decref(note);
    if (vm) {
        relay_stop(host, vm, req);
    } else if (known) {
        record_forget(&host->config, name);
        control_reply(req, json_pack("{s:s}", "note", "it was not running; forgotten"));
    } else {
        control_fail(req, "%s: not known on this host", name);
    }
}

static void order(struct host *host, struct control_request *req, const char *name)
{
    struct vm *vm = vm_get(host, name);

    if (vm)
        relay_order(host, vm, req);
    else
        control_fail(req, "%s: does not run on this host", name);
}

static void status(struct host *host, struct control_request *req, const char *name)
{
    status_request(host, req);
}

static void ping(struct host *host, struct control_request *req, const char *none)
{
    control_reply(req, json_pack("{s:s, s:s, s:i}", "host", host->config.name, "version",
                                 US_VERSION, "pid", (int)getpid()));
}

static const struct {
    const char *name;
    bool names_vm; /* needs "vm": the name of a VM */
    command_fn *run;
} commands[] = {
    {"start", false, start},
    {"stop", true, stop},
    {"protect", true, order},
    {"unprotect", true, order},
    {"failover", true, order},
    {"switchover", true, order},
    {"verify", true, order},
    {"trace", true, order},
    {"estimate", true, order},
    {"status", false, status},
    {"ping", false, ping},
    {"key", false, keys_show},
    {"key-new", false, keys_new},
    {"key-use", false, keys_use},
    {"key-forget", false, keys_forget},
    {"peers", false, keys_peers},
    {"peer-add", false, keys_peer_add},
    {"peer-remove", false, keys_peer_remove},
};

void host_command(void *user, struct control_request *req)
{
    struct host *host = user;
    const char *name = control_command(req), *vm = control_string(req, "vm");

    fault_point("host.command");
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(commands[i].name, name) != 0)
            continue;
        if (commands[i].names_vm && (!vm || !wire_name_valid(vm)))
            control_fail(req, "%s: \"vm\" must be the name of a VM", name);
        else
            commands[i].run(host, req, vm);
        return;
    }
    control_fail(req, "unknown command \"%.32s\"", name);
}
