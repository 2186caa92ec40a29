/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "host/host.h"

/* Orders to a VM's process: the request goes on as it is, the answer comes back as it is. A client
 * that goes away does not take its order back. */

/* The longest that a process may take for an order: a failover or switchover waits for the arbiter.
 */
#define ORDER_TIMEOUT_NS UINT64_C(30000000000)
#define EXIT_TIMEOUT_US  UINT64_C(10000000)

struct relay {
    struct relay *next;
    struct host *host;
    char vm[VM_NAME_MAX];
    struct control_request *req;
    struct control_call *call; /* NULL once the process has answered */
    bool stop;
    /* stop only: the answer, while the process is still to end */
    json_t *answer;
    sd_event_source *timer;
};

static void relay_free(struct relay *relay)
{
    struct relay **link = &relay->host->relays;

    while (*link != relay)
        link = &(*link)->next;
    *link = relay->next;
    control_call_cancel(relay->call);
    sd_event_source_disable_unref(relay->timer);
    json_decref(relay->answer);
    free(relay);
}

static void stop_done(struct relay *relay)
{
    record_forget(&relay->host->config, relay->vm);
    control_reply(relay->req, take_ptr(relay->answer));
    relay_free(relay);
}

static int on_exit_timeout(sd_event_source *source, uint64_t usec, void *user)
{
    struct relay *relay = user;

    control_fail(relay->req, "%s: its process has stopped the VM, but does not end", relay->vm);
    relay_free(relay);
    return 0;
}

/* The VM is stopped; `start` must find its process gone, so the answer waits for that. */
static void stop_answered(struct relay *relay, const json_t *answer)
{
    relay->answer = json_deep_copy(answer);
    if (!vm_get(relay->host, relay->vm) ||
        sd_event_add_time_relative(relay->host->event, &relay->timer, CLOCK_MONOTONIC,
                                   EXIT_TIMEOUT_US, 1000, on_exit_timeout, relay) < 0)
        stop_done(relay);
}

static void on_progress(void *user, const json_t *progress)
{
    struct relay *relay = user;

    control_progress(relay->req, json_deep_copy(progress));
}

static void on_answer(void *user, const json_t *answer, const char *why)
{
    struct relay *relay = user;

    relay->call = NULL;
    fault_point("host.relayed");
    if (answer && relay->stop && json_is_true(json_object_get(answer, "ok"))) {
        stop_answered(relay, answer);
        return;
    }
    if (answer)
        control_reply(relay->req, json_deep_copy(answer));
    else
        control_fail(relay->req, "%s: its process %s", relay->vm, why);
    relay_free(relay);
}

static const struct control_callbacks callbacks = {on_progress, on_answer};

static void relay_new(struct host *host, struct vm *vm, struct control_request *req, bool stop)
{
    struct relay *relay;
    char path[RECORD_PATH_MAX];
    struct err err;

    if (vm->state == VM_STARTING) {
        control_fail(req, "%s: is starting", vm->name);
        return;
    }
    relay = FAULTY_ALLOC("host.relay-room", calloc(1, sizeof(*relay)));
    if (!relay) {
        control_fail(req, "%s: out of memory", vm->name);
        return;
    }
    *relay = (struct relay){.host = host, .req = req, .stop = stop, .next = host->relays};
    (void)snprintf(relay->vm, sizeof(relay->vm), "%s", vm->name);
    host->relays = relay;
    vm_socket_path(&host->config, vm->name, path);
    if (control_call_new(host->event, path, control_body(req), -1, ORDER_TIMEOUT_NS, &callbacks,
                         relay, &relay->call, &err) < 0) {
        control_fail(req, "%s: its process (pid %d) cannot be reached: %s", vm->name, (int)vm->pid,
                     err.text);
        relay_free(relay);
    }
}

void relay_order(struct host *host, struct vm *vm, struct control_request *req)
{
    relay_new(host, vm, req, false);
}

void relay_stop(struct host *host, struct vm *vm, struct control_request *req)
{
    relay_new(host, vm, req, true);
}

void relay_vm_gone(struct host *host, const char *name)
{
    for (struct relay *relay = host->relays, *next; relay; relay = next) {
        next = relay->next;
        if (relay->answer && strcmp(relay->vm, name) == 0)
            stop_done(relay);
    }
}

void relays_done(struct host *host)
{
    while (host->relays) {
        control_fail(host->relays->req, "%s: understudyd ends", host->relays->vm);
        relay_free(host->relays);
    }
}
