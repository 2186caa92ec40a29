/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hyp/qemu/machine.h"
#include "hyp/qemu/vm.h"

/* What QEMU says on its control socket, whole and in pieces, with the driver in the middle of a
 * checkpoint, a resume, a question for flushes or a restore (the first byte chooses); and what it
 * prints when asked for its version and machine types. Whatever comes, the driver may only end up
 * in a phase that its table allows, and tells its caller at most one thing about one operation. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { N_DISKS = 2 };

static unsigned int outcomes, stops;

static void require(bool ok)
{
    if (!ok)
        abort();
}

static void on_stopped(void *user)
{
    require(outcomes == 0);
    stops++;
}

static void on_guest_flushes(void *user, const uint64_t *flushes)
{
    for (int i = 0; flushes && i < N_DISKS; i++)
        require(flushes[i] <= 2 * (uint64_t)INT64_MAX);
    outcomes++;
}

static void on_checkpoint(void *user, const struct hyp_state *state,
                          const struct hyp_timing *timing)
{
    require(stops == 1);
    require(state->n_bytes > 0);
    outcomes++;
}

static void on_running(void *user)
{
    outcomes++;
}

static void on_failure(void *user, const char *why, bool running)
{
    require(why[0] != 0);
    outcomes++;
}

static void on_exit_of_vm(void *user, enum hyp_exit how, const char *detail)
{
    abort(); /* no process, so none that ends */
}

static const struct hyp_callbacks callbacks = {
    .on_stopped = on_stopped,
    .on_guest_flushes = on_guest_flushes,
    .on_checkpoint = on_checkpoint,
    .on_running = on_running,
    .on_failure = on_failure,
    .on_exit = on_exit_of_vm,
};

/* A VM as launch leaves it behind, but without a process. */
static struct hyp_vm *new_vm(sd_event *event, bool incoming, int *ret_peer)
{
    struct hyp_vm *vm = calloc(1, sizeof(*vm));
    int fds[2], pipe_fds[2];

    require(vm && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    require(pipe(pipe_fds) == 0);
    close(pipe_fds[0]);
    vm->event = sd_event_ref(event);
    vm->callbacks = &callbacks;
    vm->incoming = incoming;
    vm->qmp_path = strdup("/nonexistent/qmp.sock"); /* close removes them */
    vm->stop_path = strdup("/nonexistent/stop.sock");
    vm->pid_path = strdup("/nonexistent/pid");
    vm->n_disks = N_DISKS;
    vm->stream.fd = vm->feed.fd = -1;
    vm->stream.max_bytes = 1 << 20;
    vm_save_init(&vm->save);
    vm->checkpoint_timeout_ms = vm->answer_timeout_ms = 60000;
    vm->pidfd = pipe_fds[1]; /* no pidfd: killing and waiting fail at once */
    require(qmp_new(fds[0], &vm_qmp_callbacks, vm, &vm->qmp) == 0);
    require(vm_join_loop(vm) == 0);
    vm->exit_source = sd_event_source_disable_unref(vm->exit_source);
    *ret_peer = fds[1];
    return vm;
}

static void order(struct hyp_vm *vm, unsigned int which, int feed_fd)
{
    static const uint8_t bytes[100];
    struct hyp_state state = {.format = "qemu:", .bytes = bytes, .n_bytes = sizeof(bytes)};

    if (vm->incoming) {
        vm->feed.fd = feed_fd;
        require(hyp_qemu.restore(vm, &state, NULL) == 0);
    } else if (which % 4 == 1) {
        require(hyp_qemu.resume(vm, NULL) == 0);
    } else if (which % 4 == 2) {
        require(hyp_qemu.guest_flushes(vm, NULL) == 0);
    } else {
        require(hyp_qemu.checkpoint(vm, NULL) == 0);
    }
}

static void converse(sd_event *event, const uint8_t *data, size_t n)
{
    unsigned int how = n ? data[0] : 0;
    size_t step = how & 0x10 ? 1 + how / 32U : n + 1;
    bool incoming = how % 4 == 3;
    int feed[2], peer;
    struct hyp_vm *vm = new_vm(event, incoming, &peer);

    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, feed) == 0);
    order(vm, how, incoming ? feed[0] : -1);
    if (how & 0x08) { /* some of the state has come */
        vm->stream.bytes = realloc(vm->stream.bytes, 64);
        require(vm->stream.bytes);
        memset(vm->stream.bytes, 0, 64);
        vm->stream.cap = vm->stream.n_bytes = 64;
        vm->stream.ended = true;
    }
    outcomes = stops = 0;
    for (size_t at = 1; at < n; at += step)
        qmp_feed(vm->qmp, (const char *)data + at, n - at < step ? n - at : step);
    while (sd_event_run(event, 0) > 0)
        ;
    require(outcomes <= 1 && stops <= 1);
    require(vm->phase < VM_N_PHASES && (vm->phase != VM_IDLE || outcomes == 1));
    vm->phase = VM_GONE;
    close(vm->pidfd);
    vm->pidfd = -1;
    vm_close(vm);
    close(peer);
    if (!incoming)
        close(feed[0]);
    close(feed[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static sd_event *event;
    char name[64], *text = malloc(n + 1);
    int version;

    require(text != NULL);
    memcpy(text, data, n);
    text[n] = 0;
    if (qemu_parse_version(text, &version) == 0)
        require(version >= 0);
    if (qemu_find_machine(text, "", name, sizeof(name), NULL) == 0)
        require(strchr(name, '.') != NULL);
    if (qemu_find_machine(text, "pc", name, sizeof(name), NULL) == 0)
        require(strchr(name, '-') != NULL);
    free(text);
    if (!event)
        require(sd_event_new(&event) >= 0);
    converse(event, data, n);
    return 0;
}
