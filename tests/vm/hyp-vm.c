/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp-vm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "hyp-tap.h"
#include "io/clock.h"

enum { WAIT_S = 20 };

static sd_event *loop;
static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    interrupted = number;
}

void loop_start(void)
{
    (void)signal(SIGINT, on_signal);
    (void)signal(SIGTERM, on_signal);
    if (sd_event_new(&loop) < 0)
        bail_out("sd_event_new");
}

sd_event *loop_get(void)
{
    return loop;
}

void loop_end(void)
{
    sd_event_unref(loop);
}

/* Waits for and handles events. Bails out on errors and signals, which is how VMs get closed. */
static void run_loop_once(uint64_t timeout_usec)
{
    if (sd_event_run(loop, timeout_usec) < 0)
        bail_out("sd_event_run");
    if (interrupted)
        bail_out("signal %d", (int)interrupted);
}

static void on_stopped(void *user)
{
    ((struct vm *)user)->stops++;
}

static void on_guest_flushes(void *user, const uint64_t *flushes)
{
    struct vm *vm = user;

    vm->happened = FLUSHES;
    vm->flushes_known = flushes;
    if (flushes)
        memcpy(vm->flushes, flushes, vm->n_disks * sizeof(*flushes));
}

static void on_checkpoint(void *user, const struct hyp_state *state,
                          const struct hyp_timing *timing)
{
    struct vm *vm = user;

    if (vm->stops != 1)
        bail_out("%u stops before a checkpoint", vm->stops);
    vm->happened = CHECKPOINT;
    vm->state = *state;
    vm->timing = *timing;
}

static void on_running(void *user)
{
    ((struct vm *)user)->happened = RUNNING;
}

static void on_failure(void *user, const char *why, bool running)
{
    struct vm *vm = user;

    vm->happened = FAILURE;
    vm->failure_running = running;
    (void)snprintf(vm->text, sizeof(vm->text), "%s", why);
}

static void on_exit_of_vm(void *user, enum hyp_exit how, const char *detail)
{
    struct vm *vm = user;

    vm->happened = EXIT;
    vm->exit_how = how;
    (void)snprintf(vm->text, sizeof(vm->text), "%s", detail);
}

const struct hyp_callbacks vm_callbacks = {
    .on_stopped = on_stopped,
    .on_guest_flushes = on_guest_flushes,
    .on_checkpoint = on_checkpoint,
    .on_running = on_running,
    .on_failure = on_failure,
    .on_exit = on_exit_of_vm,
};

void await(struct vm *vm, enum happening what, const char *for_what)
{
    uint64_t deadline = clock_now_ns() + WAIT_S * NS_PER_S;

    while (!vm->happened && clock_now_ns() < deadline)
        run_loop_once(100000);
    if (vm->happened != what)
        bail_out("%s: %s: %s", vm->dir, for_what,
                 vm->happened ? vm->text : "nothing happened in time");
    vm->happened = NOTHING;
    vm->stops = 0;
}

void run_loop_for(unsigned int ms)
{
    uint64_t deadline = clock_now_ns() + ms * NS_PER_MS;

    for (uint64_t now; (now = clock_now_ns()) < deadline;)
        run_loop_once((deadline - now) / 1000 + 1);
}

static void make_ram(struct vm *vm, uint64_t n_bytes)
{
    CLEANUP_FD int fd = open(vm->ram_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0 || ftruncate(fd, (off_t)n_bytes) < 0)
        bail_out("%s: %s", vm->ram_path, strerror(errno));
    vm->ram = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (vm->ram == MAP_FAILED)
        bail_out("mmap: %s", strerror(errno));
}

static void bind_guard(struct vm *vm, size_t i, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    vm->guard_sockets[i] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    strcpy(address.sun_path, path);
    if (bind(vm->guard_sockets[i], (struct sockaddr *)&address, sizeof(address)) < 0)
        bail_out("%s: %s", path, strerror(errno));
}

void launch(struct vm *vm, const struct vm_world *world, const struct vm_spec *spec,
            const char *name, bool incoming)
{
    struct hyp_nic_paths nics[VM_NICS_MAX];
    const char *disk_sockets[VM_DISKS_MAX];
    struct hyp_launch order = {
        .spec = spec,
        .run_dir = vm->dir,
        .ram_path = vm->ram_path,
        .emulator = world->emulator,
        .nics = nics,
        .disk_sockets = disk_sockets,
        .incoming = incoming,
        .event = loop,
        .callbacks = &vm_callbacks,
        .user = vm,
    };
    uint64_t start;
    struct err err;

    (void)snprintf(vm->dir, sizeof(vm->dir), "%s/%s", world->work_dir, name);
    (void)snprintf(vm->ram_path, sizeof(vm->ram_path), "%s/%s", world->shm_dir, name);
    if (mkdir(vm->dir, 0700) < 0)
        bail_out("%s: %s", vm->dir, strerror(errno));
    make_ram(vm, spec->memory_bytes);
    for (uint32_t i = 0; i < spec->n_nics; i++) {
        (void)snprintf(nics[i].hyp_path, sizeof(nics[i].hyp_path), "%.80s/nic%u.hyp", vm->dir, i);
        (void)snprintf(nics[i].guard_path, sizeof(nics[i].guard_path), "%.80s/nic%u", vm->dir, i);
        bind_guard(vm, i, nics[i].guard_path);
    }
    vm->n_disks = spec->n_disks;
    for (uint32_t i = 0; i < spec->n_disks; i++)
        disk_sockets[i] = world->disks[i].socket;
    start = clock_now_ns();
    if (hyp_qemu.launch(&order, &vm->hyp, &err) < 0)
        bail_out("launch %s: %s", name, err.text);
    printf("# launch of the %s: %" PRIu64 " ms, pid %d\n", name,
           (clock_now_ns() - start) / NS_PER_MS, (int)hyp_qemu.pid(vm->hyp));
}

void close_vm(struct vm *vm, const struct vm_spec *spec)
{
    hyp_qemu.close(take_ptr(vm->hyp));
    (void)munmap(vm->ram, spec->memory_bytes);
    for (uint32_t i = 0; i < spec->n_nics; i++)
        close(vm->guard_sockets[i]);
}
