/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "host/host.h"

/* Keys or peers have changed: each VM's process reads them again by the command "reload". One that
 * does not, goes on with what it knows: whoever made the change is told, and the log. A process
 * that is still starting is told once it runs. */

#define RELOAD_TIMEOUT_NS UINT64_C(5000000000)

struct reload {
    struct control_request *req; /* NULL: nobody waits */
    json_t *not_followed;
    unsigned open; /* processes that have not answered, and whoever still asks */
};

struct order {
    struct reload *reload;
    char vm[VM_NAME_MAX];
};

static void finish(struct reload *reload)
{
    if (--reload->open > 0)
        return;
    if (reload->req)
        control_reply(reload->req, json_pack("{s:O}", "not_followed", reload->not_followed));
    json_decref(reload->not_followed);
    free(reload);
}

static void not_followed(struct reload *reload, const char *vm, const char *why)
{
    char text[256];

    (void)snprintf(text, sizeof(text), "%s: does not take the change over: %.120s", vm, why);
    log_warning("%s", text);
    (void)json_array_append_new(reload->not_followed, json_string(text)); /* it is in the log */
}

static void on_answer(void *user, const json_t *answer, const char *why)
{
    struct order *order = user;
    const char *error = json_string_value(json_object_get(answer, "error"));

    if (!answer)
        not_followed(order->reload, order->vm, why);
    else if (!json_is_true(json_object_get(answer, "ok")))
        not_followed(order->reload, order->vm, error ? error : "no reason given");
    finish(order->reload);
    free(order);
}

static const struct control_callbacks callbacks = {.on_answer = on_answer};

static void tell(struct host *host, const struct vm *vm, struct reload *reload)
{
    struct order *order = malloc(sizeof(*order));
    json_t *request = json_pack("{s:s}", "command", "reload");
    char path[RECORD_PATH_MAX];
    struct control_call *call;
    struct err err = {"out of memory"};

    vm_socket_path(&host->config, vm->name, path);
    if (order) {
        order->reload = reload;
        (void)snprintf(order->vm, sizeof(order->vm), "%s", vm->name);
    }
    if (order && request &&
        control_call_new(host->event, path, request, -1, RELOAD_TIMEOUT_NS, &callbacks, order,
                         &call, &err) == 0) {
        reload->open++;
    } else {
        not_followed(reload, vm->name, err.text);
        free(order);
    }
    json_decref(request);
}

static struct reload *reload_new(struct control_request *req)
{
    struct reload *reload = calloc(1, sizeof(*reload));

    if (reload)
        *reload = (struct reload){.req = req, .not_followed = json_array(), .open = 1};
    return reload;
}

void reload_all(struct host *host, struct control_request *req)
{
    struct reload *reload = reload_new(req);

    if (!reload) {
        log_error("out of memory: no VM's process takes over the change of keys");
        if (req)
            control_fail(req, "done, but out of memory: restart understudyd");
        return;
    }
    for (struct vm *vm = host->vms; vm; vm = vm->next) {
        if (vm->state == VM_STARTING)
            vm->stale = true;
        else
            tell(host, vm, reload);
    }
    finish(reload);
}

void reload_one(struct host *host, const struct vm *vm)
{
    struct reload *reload = reload_new(NULL);

    if (!reload)
        return;
    tell(host, vm, reload);
    finish(reload);
}
