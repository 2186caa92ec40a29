/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a VM under the QEMU driver for a few seconds: checkpoints it many times, carrying its dirty
 * pages over into a second RAM file as a standby would, compares the two files, makes checkpoints
 * fail on purpose, then kills the VM and restores a second QEMU from the copy. Prints TAP, and what
 * each part of a pause took.
 *
 * Without --kernel and --firmware the guest is the one of hyp-guest.h; with --disks, the boot
 * sector there. The disks are of hyp-disks.h: shared by both QEMUs, so the original must not run
 * once the copy does. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "hyp/qemu/vm.h"
#include "hyp-guest.h"
#include "hyp-options.h"
#include "hyp-pattern.h"
#include "hyp-samples.h"
#include "hyp-tap.h"
#include "hyp-vm.h"
#include "io/clock.h"

static struct hyp_options options;
static char work_dir[64], shm_dir[64];

/* VMs survive their launcher; here they shall not. */
static struct vm original, copy;
static struct hyp_disk disks[VM_DISKS_MAX];
static uint64_t pattern_base = HYP_GUEST_BASE;

enum { DISK_BYTES = 16 << 20 };

static void clean_up(void)
{
    char command[200];

    hyp_qemu.close(original.hyp);
    hyp_qemu.close(copy.hyp);
    for (unsigned int i = 0; i < options.disks; i++)
        hyp_disk_stop(&disks[i]);
    if (!work_dir[0])
        return;
    (void)snprintf(command, sizeof(command), "rm -rf '%s' '%s'", work_dir, shm_dir);
    if (system(command) != 0)
        fprintf(stderr, "cannot remove %s and %s\n", work_dir, shm_dir);
}

static void write_guest(const char *path)
{
    FILE *file = fopen(path, "we");

    if (!file || fwrite(hyp_guest(options.pages, options.delay), HYP_GUEST_BYTES, 1, file) != 1 ||
        fclose(file) != 0)
        bail_out("%s: %s", path, strerror(errno));
}

static uint32_t check_pattern(const uint8_t *ram, const char *what)
{
    uint32_t newest, bad = hyp_pattern_memory(ram + pattern_base, options.pages, &newest);

    check(bad == 0, "%s: memory agrees with itself (counter %" PRIu32 ", %" PRIu32 " bad pages)",
          what, newest, bad);
    return newest;
}

static void check_disk(uint32_t newest, const char *what)
{
    uint32_t bad = hyp_pattern_disk(disks[0].path, options.pages, newest);

    check(bad == 0, "%s: the disk agrees with the memory (%" PRIu32 " bad blocks)", what, bad);
}

static void start_disks(struct vm_spec *spec)
{
    static const uint8_t nothing[1];
    bool boot = !options.kernel && !options.firmware;

    for (uint32_t i = 0; i < options.disks; i++) {
        bool first = boot && i == 0;
        int r = hyp_disk_start(&disks[i], work_dir, i, DISK_BYTES,
                               first ? hyp_boot_guest(options.pages) : nothing,
                               first ? HYP_BOOT_BYTES : sizeof(nothing));

        if (r < 0)
            bail_out("%s: %s", disks[i].path, strerror(-r));
        spec->disks[i] = (struct vm_disk){.size_bytes = DISK_BYTES, .cache = VM_CACHE_WRITEBACK};
        strcpy(spec->disks[i].path, disks[i].path);
        (void)snprintf(spec->disks[i].serial, VM_SERIAL_BYTES, "smoke%u", i);
        spec->n_disks = i + 1;
    }
    if (boot)
        pattern_base = HYP_BOOT_BASE;
}

static void fill_spec(struct vm_spec *spec)
{
    struct err err;

    *spec = (struct vm_spec){
        .name = "smoke",
        .memory_bytes = (uint64_t)options.memory << 20,
        .cpus = options.cpus,
        .virtio = options.transitional ? VM_VIRTIO_TRANSITIONAL : VM_VIRTIO_LEGACY,
        .n_nics = options.nics,
    };
#define SET(field, value)                                                                          \
    (void)snprintf(spec->field, sizeof(spec->field), "%s", (value) ? (value) : "")
    SET(machine, options.machine);
    SET(accel, options.accel);
    SET(cpu_model, options.cpu);
    SET(kernel, options.kernel);
    SET(initrd, options.initrd);
    SET(append, options.append);
    SET(firmware, options.firmware);
#undef SET
    if (options.disks > 0)
        start_disks(spec);
    else if (!options.kernel && !options.firmware) {
        (void)snprintf(spec->firmware, sizeof(spec->firmware), "%s/guest.bin", work_dir);
        write_guest(spec->firmware);
    }
    for (uint32_t i = 0; i < spec->n_nics; i++)
        memcpy(spec->nics[i].mac, (uint8_t[]){0x52, 0x54, 0, 0, 0, (uint8_t)i}, 6);
    if (hyp_qemu.preflight(spec, options.emulator, &err) < 0)
        bail_out("preflight: %s", err.text);
    check(strchr(spec->machine, '.') && spec->accel[0], "preflight: %s, %s", spec->machine,
          spec->accel);
}

/* Copies the dirty pages of the stopped VM. Returns their number. */
static uint64_t take_and_copy(struct vm *from, struct vm *to, uint64_t *ret_scan_ns)
{
    static struct run_list list;
    uint64_t start = clock_now_ns(), pages = 0;

    list.n = 0;
    if (hyp_qemu.dirty_take(from->hyp, &list) < 0)
        bail_out("dirty_take");
    *ret_scan_ns = clock_now_ns() - start;
    for (size_t i = 0; i < list.n; i++) {
        memcpy(to->ram + list.runs[i].first * VM_PAGE_BYTES,
               from->ram + list.runs[i].first * VM_PAGE_BYTES, list.runs[i].count * VM_PAGE_BYTES);
        pages += list.runs[i].count;
    }
    return pages;
}

static void order(int r, const char *what, const struct err *err)
{
    if (r < 0)
        bail_out("%s: %s", what, err->text);
}

enum { STOP, STATE, SCAN, COPY, FLUSHES_, RESUME, PAUSE, N_FIGURES };

/* Of checkpoints by saving, and by migration. */
static struct hyp_samples figures[2][N_FIGURES];
static const char *const figure_names[N_FIGURES] = {
    "stop", "state", "scan", "copy", "flushes", "resume", "pause",
};

/* With --alternate: the next checkpoint is of the other kind. */
static void alternate(struct hyp_vm *vm)
{
    static struct vm_save hidden = {.fd = -1, .writer = -1};
    struct vm_save now = vm->save;

    if (options.alternate && (now.n_base > 0 || hidden.n_base > 0)) {
        vm->save = hidden;
        hidden = now;
    }
}

/* Asks how many flushes the guest has seen. Returns what it took. */
static uint64_t count_flushes(struct vm *vm)
{
    uint64_t start = clock_now_ns();
    struct err err = {0};

    if (options.disks == 0)
        return 0;
    order(hyp_qemu.guest_flushes(vm->hyp, &err), "guest_flushes", &err);
    await(vm, FLUSHES, "guest_flushes");
    if (!vm->flushes_known)
        check(false, "QEMU tells the guest's flushes");
    return clock_now_ns() - start;
}

/* One epoch: pause, carry over, run. `full` copies all memory. */
static uint64_t epoch(struct vm *vm, struct vm *to, uint64_t n_bytes, bool full, bool compare)
{
    uint64_t start = clock_now_ns(), copied, scan_ns, pages, ordered, flushes_ns;
    struct err err = {0};
    struct hyp_samples *figure;
    bool same = true, saved;

    order(hyp_qemu.checkpoint(vm->hyp, &err), "checkpoint", &err);
    await(vm, CHECKPOINT, "checkpoint");
    pages = take_and_copy(vm, to, &scan_ns);
    copied = clock_now_ns();
    if (full)
        memcpy(to->ram, vm->ram, n_bytes);
    if (compare)
        same = memcmp(to->ram, vm->ram, n_bytes) == 0;
    if (!same)
        check(false, "the copy is the original");
    flushes_ns = count_flushes(vm);
    saved = vm->state.bytes == vm->hyp->save.bytes;
    alternate(vm->hyp);
    ordered = clock_now_ns();
    order(hyp_qemu.resume(vm->hyp, &err), "resume", &err);
    await(vm, RUNNING, "resume");
    if (full || compare)
        return pages;
    figure = figures[saved ? 0 : 1];
    hyp_samples_add(&figure[STOP], vm->timing.stop_ns);
    hyp_samples_add(&figure[STATE], vm->timing.state_ns);
    hyp_samples_add(&figure[SCAN], scan_ns);
    hyp_samples_add(&figure[COPY],
                    copied - start - vm->timing.stop_ns - vm->timing.state_ns - scan_ns);
    hyp_samples_add(&figure[FLUSHES_], flushes_ns);
    hyp_samples_add(&figure[RESUME], clock_now_ns() - ordered);
    hyp_samples_add(&figure[PAUSE], clock_now_ns() - start - vm->timing.stop_ns);
    return pages;
}

static void run_epochs(struct vm *vm, struct vm *to, uint64_t n_bytes)
{
    uint64_t pages = 0;

    for (unsigned int i = 0; i < options.epochs; i++) {
        run_loop_for(options.interval);
        pages += epoch(vm, to, n_bytes, i == 0, i % 50 == 49);
    }
    if (vm->hyp->save.fd < 0)
        alternate(vm->hyp);
    options.alternate = 0;
    check(true, "%u epochs, each 50th compared, %" PRIu64 " pages carried over", options.epochs,
          pages);
    printf("# %.1f pages an epoch, %zu bytes of device state\n", (double)pages / options.epochs,
           vm->state.n_bytes);
    for (int way = 0; way < 2; way++) {
        printf("# by %s\n", way ? "migration" : "saving");
        for (size_t i = 0; i < N_FIGURES; i++) {
            figures[way][i].name = figure_names[i];
            hyp_samples_print(&figures[way][i]);
        }
    }
    check(figures[0][PAUSE].n > 0, "checkpoints go the short way");
}

/* Checkpoints that grow too large have to leave a running VM behind, and the next one works. */
static void fail_some(struct vm *vm, struct vm *to, uint64_t n_bytes)
{
    char arguments[sizeof(vm->hyp->save.arguments)];
    size_t limit = vm->hyp->stream.max_bytes;
    struct err err = {0};
    bool running = true;

    vm->hyp->stream.max_bytes = 1000;
    for (int i = 0; i < 20; i++) {
        vm_save_forget(vm->hyp);
        order(hyp_qemu.checkpoint(vm->hyp, &err), "checkpoint", &err);
        await(vm, FAILURE, "a checkpoint over its limit");
        running &= vm->failure_running;
        run_loop_for(options.interval);
    }
    check(running, "failed checkpoints leave the VM running (%s)", vm->text);
    check(hyp_qemu.restore(vm->hyp, &vm->state, &err) == -EINVAL, "a running VM is not restored");
    vm->hyp->stream.max_bytes = limit;
    (void)epoch(vm, to, n_bytes, false, true);
    check(true, "the next checkpoint works");
    memcpy(arguments, vm->hyp->save.arguments, sizeof(arguments));
    run_loop_for(options.interval); /* the next order is typed now */
    strcpy(vm->hyp->save.arguments, "{\"live\":false,\"filename\":\"/nowhere/at/all\"}");
    (void)epoch(vm, to, n_bytes, false, true);
    order(hyp_qemu.checkpoint(vm->hyp, &err), "checkpoint", &err);
    await(vm, FAILURE, "a checkpoint that cannot be saved");
    check(vm->failure_running, "the VM runs after it (%s)", vm->text);
    memcpy(vm->hyp->save.arguments, arguments, sizeof(arguments));
    (void)epoch(vm, to, n_bytes, false, true);
    check(vm_save_ready(vm->hyp), "the next checkpoint works, and teaches");
}

/* A disk that does not answer holds the checkpoint up, and no more. */
static void stall_once(struct vm *vm, struct vm *to, uint64_t n_bytes)
{
    struct err err = {0};

    hyp_disk_stall(&disks[0], true);
    run_loop_for(50); /* the guest has written something meanwhile */
    order(hyp_qemu.checkpoint(vm->hyp, &err), "checkpoint", &err);
    run_loop_for(1000);
    check(vm->stops == 1 && !vm->happened, "a checkpoint waits for a disk that is slow");
    hyp_disk_stall(&disks[0], false);
    await(vm, CHECKPOINT, "the disk's answer");
    order(hyp_qemu.resume(vm->hyp, &err), "resume", &err);
    await(vm, RUNNING, "resume");
    (void)epoch(vm, to, n_bytes, false, true);
    check(true, "the next checkpoint works");
}

static void last_checkpoint(struct vm *vm, struct vm *to, uint64_t n_bytes)
{
    struct err err = {0};
    uint64_t scan_ns;

    order(hyp_qemu.checkpoint(vm->hyp, &err), "checkpoint", &err);
    check(hyp_qemu.checkpoint(vm->hyp, &err) == -EBUSY, "a second checkpoint is refused: %s",
          err.text);
    await(vm, CHECKPOINT, "checkpoint");
    (void)take_and_copy(vm, to, &scan_ns);
    check(memcmp(to->ram, vm->ram, n_bytes) == 0, "the last copy is the original");
}

static bool all_zero(const uint8_t *bytes, uint64_t n)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, n - 1) == 0;
}

static void restore(struct vm *vm, const struct hyp_state *state)
{
    uint64_t start = clock_now_ns();
    struct err err = {0};

    order(hyp_qemu.restore(vm->hyp, state, &err), "restore", &err);
    await(vm, RUNNING, "restore");
    printf("# restore %.2f ms, order to running\n", (double)(clock_now_ns() - start) / 1e6);
    check(true, "the copy runs");
}

static void run(const struct vm_spec *spec)
{
    bool ours = !options.kernel && !options.firmware;
    uint64_t n_bytes = spec->memory_bytes, track_ns, scan_ns, pages;
    const struct vm_world world = {options.emulator, work_dir, shm_dir, disks};
    uint32_t before = 0;
    struct err err = {0};

    launch(&original, &world, spec, "original", false);
    launch(&copy, &world, spec, "copy", true);
    check(all_zero(copy.ram, n_bytes), "a waiting QEMU leaves its memory alone");
    track_ns = clock_now_ns();
    order(hyp_qemu.track(original.hyp, &err), "track", &err);
    printf("# track %.2f ms\n", (double)(clock_now_ns() - track_ns) / 1e6);
    order(hyp_qemu.resume(original.hyp, &err), "resume", &err);
    await(&original, RUNNING, "first resume");
    run_loop_for(ours && options.disks == 0 ? 50 : 5000); /* the BIOS takes its time */
    run_epochs(&original, &copy, n_bytes);
    fail_some(&original, &copy, n_bytes);
    if (options.disks > 0)
        stall_once(&original, &copy, n_bytes);
    last_checkpoint(&original, &copy, n_bytes);
    if (ours)
        before = check_pattern(copy.ram, "last checkpoint");
    if (ours && options.disks > 0)
        check_disk(before, "last checkpoint");

    hyp_qemu.kill(original.hyp);
    await(&original, EXIT, "kill");
    check(original.exit_how == HYP_EXIT_KILLED, "killed: %s", original.text);
    restore(&copy, &original.state);
    order(hyp_qemu.track(copy.hyp, &err), "track", &err);
    run_loop_for(50);
    order(hyp_qemu.checkpoint(copy.hyp, &err), "checkpoint", &err);
    await(&copy, CHECKPOINT, "checkpoint of the restored VM");
    memset(original.ram, 0, n_bytes);
    pages = take_and_copy(&copy, &original, &scan_ns);
    printf("# %" PRIu64 " pages dirtied by the restored VM\n", pages);
    if (ours) {
        uint32_t after = check_pattern(copy.ram, "restored VM");

        check(after > before, "the restored guest went on");
        if (options.disks > 0)
            check_disk(after, "restored VM");
    }
    close_vm(&original, spec);
    close_vm(&copy, spec);
}

int main(int argc, char **argv)
{
    struct vm_spec spec;

    hyp_options_parse(argc, argv, &options);
    strcpy(work_dir, "/tmp/hyp-smoke.XXXXXX");
    strcpy(shm_dir, "/dev/shm/hyp-smoke.XXXXXX");
    if (!mkdtemp(work_dir) || !mkdtemp(shm_dir))
        bail_out("mkdtemp: %s", strerror(errno));
    (void)atexit(clean_up);
    loop_start();
    fill_spec(&spec);
    run(&spec);
    loop_end();
    return tap_end();
}
