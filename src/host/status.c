/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "host/host.h"
#include "wire/msg.h"

/* The status of a host: what the process of each VM says of itself, asked all at once, and for VMs
 * without one what the disk says. A process that does not answer is shown as such: it must not hide
 * the others, nor be missing. */

#define STATUS_TIMEOUT_NS UINT64_C(2000000000)

struct status_job {
    struct host *host;
    struct control_request *req;
    char wanted[VM_NAME_MAX]; /* "" = all */
    json_t *vms;              /* the answers so far */
    unsigned open;            /* questions without one */
};

struct question {
    struct status_job *job;
    char vm[VM_NAME_MAX];
    int pid;
};

/* What is said of a VM whose own process says nothing. Strings are borrowed. */
static json_t *silent_vm(const struct host *host, const char *vm, const char *state,
                         const char *reason)
{
    json_t *record = record_read(&host->config, vm);
    const char *standby =
        json_string_value(json_object_get(json_object_get(record, "protect"), "standby"));
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:b, s:s, s:s, s:s, s:s}", "vm", vm, "role", "none", "state",
                  state, "protected", 0, "wanted_standby", standby ? standby : "", "reason", reason,
                  "host", host->config.name, "peer", "");

    json_decref(record);
    return json;
}

/* "taken over by hostb (term 7) at 2026-01-31 12:00:05" */
static void ended_text(const struct host *host, const json_t *note, char *out, size_t n_out)
{
    const char *detail = json_string_value(json_object_get(note, "detail"));
    const char *owner = json_string_value(json_object_get(note, "owner"));
    json_int_t term = json_integer_value(json_object_get(note, "term"));
    time_t when = (time_t)json_integer_value(json_object_get(note, "unix"));
    char what[256], clock_text[32] = "", term_text[32] = "";
    struct tm tm;

    if (owner && owner[0] && strcmp(owner, host->config.name) != 0)
        (void)snprintf(what, sizeof(what), "taken over by %s", owner);
    else
        (void)snprintf(what, sizeof(what), "%s", detail ? detail : "for an unknown reason");
    if (localtime_r(&when, &tm))
        (void)strftime(clock_text, sizeof(clock_text), "%F %T", &tm);
    if (term > 0)
        (void)snprintf(term_text, sizeof(term_text), " (term %lld)", (long long)term);
    (void)snprintf(out, n_out, "%s%s at %s", what, term_text, clock_text);
}

static bool has_disks(const struct host *host, const char *vm)
{
    json_t *record = record_read(&host->config, vm);
    bool has = json_array_size(json_object_get(record, "disks")) > 0;

    json_decref(record);
    return has;
}

static json_t *absent_vm(const struct host *host, const char *vm)
{
    json_t *note = ended_read(&host->config, vm);
    const char *reason = json_string_value(json_object_get(note, "reason"));
    char text[400];
    json_t *json;

    if (!note) {
        (void)snprintf(text, sizeof(text),
                       "not running since this host or its process went down; %s",
                       has_disks(host, vm) ? "start it again; if its standby went down too, "
                                             "recover it"
                                           : "start it again");
        return silent_vm(host, vm, "down", text);
    }
    ended_text(host, note, text, sizeof(text));
    json = silent_vm(host, vm, reason ? reason : "ended", text);
    (void)json_object_set_new(json, "ended", note); /* out of memory: the key is missing */
    return json;
}

static int by_name(const void *a, const void *b)
{
    json_t *const *x = a, *const *y = b;
    const char *x_name = json_string_value(json_object_get(*x, "vm"));
    const char *y_name = json_string_value(json_object_get(*y, "vm"));

    return strcmp(x_name ? x_name : "", y_name ? y_name : "");
}

/* Returns the list sorted by name; it is taken. */
static json_t *sorted(json_t *list)
{
    size_t n = json_array_size(list);
    json_t **items = calloc(n ? n : 1, sizeof(*items));
    json_t *result = json_array();

    for (size_t i = 0; items && i < n; i++)
        items[i] = json_array_get(list, i);
    if (items)
        qsort(items, n, sizeof(*items), by_name);
    for (size_t i = 0; items && i < n; i++)
        (void)json_array_append(result, items[i]); /* out of memory: the entry is missing */
    free(items);
    json_decref(list);
    return result;
}

/* A copy that waits for nothing but a recovery is no VM of this host, but who asks for it by name
 * is told. */
static void unknown_vm(struct status_job *job)
{
    const char *vm = job->wanted;

    if (wire_name_valid(vm) && record_exists_standby(&job->host->config, vm))
        control_fail(job->req,
                     "%s: does not run on this host, which has a copy of its disks\n"
                     "understudy recover %s starts it from that, if it is the newest",
                     vm, vm);
    else
        control_fail(job->req, "%s: not known on this host", vm);
}

static void finish(struct status_job *job)
{
    if (job->open > 0)
        return;
    if (job->wanted[0] && json_array_size(job->vms) == 0) {
        unknown_vm(job);
        json_decref(job->vms);
    } else {
        control_reply(job->req, json_pack("{s:s, s:o}", "host", job->host->config.name, "vms",
                                          sorted(job->vms)));
    }
    free(job);
}

static void add(struct status_job *job, json_t *vm)
{
    (void)json_array_append_new(job->vms, vm); /* out of memory: the entry is missing */
}

static void on_answer(void *user, const json_t *answer, const char *why)
{
    struct question *q = user;
    struct status_job *job = q->job;
    json_t *status = json_object_get(answer, "status");
    char text[256];

    if (json_is_object(status)) {
        add(job, json_deep_copy(status));
    } else {
        (void)snprintf(text, sizeof(text), "its process (pid %d) %s", q->pid,
                       answer ? "does not know its status" : why);
        add(job, silent_vm(job->host, q->vm, "unresponsive", text));
    }
    free(q);
    job->open--;
    finish(job);
}

static const struct control_callbacks callbacks = {.on_answer = on_answer};

static void ask(struct status_job *job, const struct vm *vm)
{
    struct question *q = malloc(sizeof(*q));
    json_t *request = json_pack("{s:s}", "command", "status");
    char path[RECORD_PATH_MAX];
    struct control_call *call;
    struct err err = {""};

    vm_socket_path(&job->host->config, vm->name, path);
    if (q) {
        *q = (struct question){.job = job, .pid = (int)vm->pid};
        (void)snprintf(q->vm, sizeof(q->vm), "%s", vm->name);
    }
    if (q && control_call_new(job->host->event, path, request, -1, STATUS_TIMEOUT_NS, &callbacks, q,
                              &call, &err) == 0) {
        job->open++;
    } else {
        add(job, silent_vm(job->host, vm->name, "unresponsive", err.text));
        free(q);
    }
    json_decref(request);
}

static bool has(const json_t *vms, const char *name)
{
    const json_t *vm;
    size_t i;

    json_array_foreach(vms, i, vm)
    {
        const char *have = json_string_value(json_object_get(vm, "vm"));

        if (have && strcmp(have, name) == 0)
            return true;
    }
    return false;
}

static void add_absent(void *user, const char *name)
{
    struct status_job *job = user;

    if (job->wanted[0] && strcmp(job->wanted, name) != 0)
        return;
    if (!vm_get(job->host, name) && !has(job->vms, name))
        add(job, absent_vm(job->host, name));
}

void status_request(struct host *host, struct control_request *req)
{
    const char *wanted = control_string(req, "vm");
    struct status_job *job = calloc(1, sizeof(*job));

    if (!job) {
        control_fail(req, "out of memory");
        return;
    }
    job->host = host;
    job->req = req;
    job->vms = json_array();
    (void)snprintf(job->wanted, sizeof(job->wanted), "%s", wanted ? wanted : "");
    for (const struct vm *vm = host->vms; vm; vm = vm->next) {
        if (job->wanted[0] && strcmp(job->wanted, vm->name) != 0)
            continue;
        if (vm->state == VM_STARTING)
            add(job, silent_vm(host, vm->name, "starting", ""));
        else
            ask(job, vm);
    }
    records_each(&host->config, add_absent, job);
    finish(job);
}
