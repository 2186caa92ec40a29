/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "hyp/qemu/vm.h"
#include "io/clock.h"
#include "io/log.h"

/* Theory of operation. "xen-save-devices-state" has QEMU's main thread write the state of a stopped
 * VM's CPUs and devices into a file, here a memfd that is passed once. It takes half as long as a
 * migration: there is no thread to be made, no dirty logging to be switched
 * on and off, the disks are not given up and taken again, and QEMU never waits for us.
 *
 * QEMU reads its control sockets byte by byte, at several system calls each, so both orders are
 * typed ahead, less their last byte; for that, the one to stop has a socket of its own. QEMU takes
 * orders from several sockets in no certain sequence: the second one is given when the first is
 * being carried out (event STOP).
 *
 * What it writes is a migration stream that lacks what comes before the devices: the machine's
 * name, and the memories of QEMU that are not the guest's RAM. That is the base. It is learnt from
 * a checkpoint by migration, which is followed, in the same pause, by one of this kind: that must
 * be, byte by byte, the end of the former, or nothing is learnt. From then on a checkpoint is the
 * base followed by what was written, less its header: what a migration would have written, and
 * restored as such.
 *
 * The base holds for as long as those memories do not change. They are ROMs (a VM that has any
 * other, such as the frame buffer of a VGA, is not checkpointed in this way), and the ACPI tables,
 * which QEMU builds anew when the firmware asks for them for the first time after a reset. So it is
 * dropped at the event RESET, and when the section "acpi_build", which says whether they were asked
 * for, changes; that checkpoint becomes a migration of the stopped VM. */

enum {
    STATE_BYTES = 8 << 20, /* a longer one is no use to us */
    HEADER_BYTES = 8,      /* what each stream begins with */
    LEARN_TRIES = 16,      /* a clock may tick between the two */
};

_Static_assert(STATE_BYTES < VM_STATE_MAX_BYTES, "what is saved can be restored");

void vm_save_init(struct vm_save *save)
{
    *save = (struct vm_save){.fd = -1, .writer = -1};
}

void vm_save_done(struct vm_save *save)
{
    free(save->bytes);
    if (save->fd >= 0)
        close(save->fd);
    if (save->writer >= 0)
        close(save->writer);
    vm_save_init(save);
}

/* ---- preparation ---- */

/* Whether the guest cannot change a memory of QEMU of this name but in the ways that are looked
 * after here. */
static bool is_steady(const char *name, size_t n)
{
    static const char *const names[] = {
        "ram0", /* not in the stream (args.c) */
        "pc.bios", "pc.rom", "/rom@etc/acpi/tables", "/rom@etc/acpi/rsdp", "/rom@etc/table-loader",
    };
    static const char rom[] = ".rom"; /* of a PCI device */
    size_t n_rom = sizeof(rom) - 1;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strlen(names[i]) == n && memcmp(names[i], name, n) == 0)
            return true;
    }
    return n > n_rom && memcmp(name + n - n_rom, rom, n_rom) == 0;
}

/* Reads the table of QEMU's memories: a line of titles, then one for each, which its name begins.
 */
static bool all_steady(const char *table)
{
    const char *line = strchr(table, '\n');

    while (line && line[1 + strspn(line + 1, " \r\n")]) {
        const char *name = line + 1 + strspn(line + 1, " \r\n");

        if (!is_steady(name, strcspn(name, " \r\n")))
            return false;
        line = strchr(name, '\n');
    }
    return line != NULL;
}

static int ask_memories(struct hyp_vm *vm, const struct qmp_wait *wait, struct err *err)
{
    json_auto_t *reply = NULL;
    const char *table;
    int r = qmp_call(vm->qmp, "x-query-ramblock", "", -1, wait, &reply, err);

    if (r < 0)
        return r;
    table = json_string_value(json_object_get(reply, "human-readable-text"));
    return table && all_steady(table)
               ? 0
               : err_set(err, -EOPNOTSUPP, "the VM has memory beside its RAM");
}

/* Two descriptors of the file: QEMU insists on one that is for writing only. */
static int make_file(struct vm_save *save, struct err *err)
{
    CLEANUP_FD int fd = memfd_create("device-state", MFD_CLOEXEC);
    CLEANUP_FD int writer = -1;
    char path[32];

    if (fd < 0)
        return err_sys(err, -errno, "memfd");
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    writer = FAULTY("hyp.save-file", open(path, O_WRONLY | O_CLOEXEC));
    if (writer < 0)
        return err_sys(err, -errno, "memfd");
    save->bytes = FAULTY_ALLOC("hyp.save-room", malloc(STATE_BYTES));
    if (!save->bytes)
        return err_sys(err, -ENOMEM, "device state");
    save->fd = take_fd(&fd);
    save->writer = take_fd(&writer);
    return 0;
}

static int pass_file(struct hyp_vm *vm, const struct qmp_wait *wait, struct err *err)
{
    struct vm_save *save = &vm->save;
    json_auto_t *reply = NULL;
    const json_t *set;
    int r = make_file(save, err);

    /* QEMU chooses the number: one of ours might be that of a guard that is gone. */
    if (r == 0)
        r = qmp_call(vm->qmp, "add-fd", "", save->writer, wait, &reply, err);
    if (r < 0)
        return r;
    set = json_object_get(reply, "fdset-id");
    if (!json_is_integer(set))
        return err_set(err, -EPROTO, "QEMU does not say where the descriptor is");
    (void)snprintf(save->arguments, sizeof(save->arguments),
                   "{\"live\":false,\"filename\":\"/dev/fdset/%" JSON_INTEGER_FORMAT "\"}",
                   json_integer_value(set));
    return 0;
}

void vm_save_prepare(struct hyp_vm *vm, const struct qmp_wait *wait)
{
    struct err err;
    int r = ask_memories(vm, wait, &err);

    if (r == 0)
        r = pass_file(vm, wait, &err);
    if (r == 0)
        return;
    vm_save_done(&vm->save);
    log_info("qemu: checkpoints take longer: %s", err.text);
}

/* ---- a checkpoint ---- */

bool vm_save_ready(const struct hyp_vm *vm)
{
    return vm->save.n_base > 0 && vm->running;
}

void vm_save_forget(struct hyp_vm *vm)
{
    vm->save.n_base = 0;
    vm->save.learn_tries = 0;
}

static const char save_command[] = "xen-save-devices-state";

static int order_save(struct hyp_vm *vm, qmp_reply_fn *fn)
{
    /* QEMU empties the file, but writes on where it was: its descriptor is a copy of this one. */
    if (lseek(vm->save.writer, 0, SEEK_SET) < 0)
        return -errno;
    return qmp_send(vm->qmp, save_command, vm->save.arguments, -1, fn, vm);
}

/* Reads what was saved to where the devices belong. Returns its length without the header; 0: it is
 * of no use. */
static size_t take(struct vm_save *save)
{
    ssize_t n = FAULTY("hyp.save-read", pread(save->fd, save->bytes + save->n_base,
                                              STATE_BYTES - save->n_base, HEADER_BYTES));

    return n > 0 && (size_t)n < STATE_BYTES - save->n_base ? (size_t)n : 0;
}

static void on_stopped(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;

    if (--vm->save.stops_due > 0)
        return;
    qmp_drain(vm->qmp); /* the event came before */
    if (vm->phase != VM_CHECKPOINT || !vm->save.stopping)
        return;
    /* There was none: a guest that sleeps. */
    vm->save.stopping = false;
    vm->timing.stop_ns = clock_now_ns() - vm->order_ns;
    vm_stopped(vm);
    vm_save_forget(vm);
    vm_migrate(vm);
}

/* The tables are as they were when the base was learnt. */
static bool tables_unchanged(const struct vm_save *save, size_t n_devices)
{
    const uint8_t *end = save->bytes + save->n_base + n_devices;

    return save->tables_at == 0 ||
           (n_devices > save->tables_at &&
            memcmp(end - save->tables_at, save->tables, sizeof(save->tables)) == 0);
}

static void on_saved(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;
    struct vm_save *save = &vm->save;
    char why[300];
    size_t n;

    if (vm->phase != VM_CHECKPOINT)
        return;
    n = error ? 0 : take(save);
    if (n == 0) {
        (void)snprintf(why, sizeof(why), "QEMU did not save its devices: %.200s",
                       error ? error : "there is nothing");
        vm_save_forget(vm); /* the next one is a migration */
        vm_checkpoint_fail(vm, why);
    } else if (save->n_base == 0 || vm->running || !tables_unchanged(save, n)) {
        vm_save_forget(vm);
        vm_migrate(vm);
    } else {
        vm_checkpoint_end(vm, save->bytes, save->n_base + n);
    }
}

void vm_save_arm(struct hyp_vm *vm)
{
    qmp_prepare(vm->stopper, "stop", "");
    qmp_prepare(vm->qmp, save_command, vm->save.arguments);
}

int vm_save(struct hyp_vm *vm)
{
    int r = qmp_send(vm->stopper, "stop", "", -1, on_stopped, vm);

    vm->save.stopping = r == 0;
    vm->save.stops_due += r == 0;
    return r;
}

void vm_save_stopped(struct hyp_vm *vm)
{
    if (!vm->save.stopping)
        return;
    vm->save.stopping = false;
    if (order_save(vm, on_saved) < 0) {
        vm_checkpoint_fail(vm, "QEMU does not take orders");
        return;
    }
    if (vm->n_disks > 0)
        vm_ask_flushes(vm);
    qmp_prepare(vm->qmp, "cont", "");
}

/* ---- learning ---- */

/* Takes the base from a state that ends with what was saved after it. */
static bool learn(struct vm_save *save, size_t n_devices, const struct vm_stream *stream)
{
    static const uint8_t tables[] = "\x0a"
                                    "acpi_build"; /* and then what save->tables is for */
    size_t n_base = stream->n_bytes > n_devices ? stream->n_bytes - n_devices : 0;
    const uint8_t *found;

    if (n_base < HEADER_BYTES || stream->n_bytes > STATE_BYTES ||
        memcmp(save->bytes, stream->bytes + n_base, n_devices) != 0)
        return false;
    found = memmem(stream->bytes + n_base, n_devices, tables, sizeof(tables) - 1);
    save->tables_at = 0;
    if (found) {
        save->tables_at = (size_t)(stream->bytes + stream->n_bytes - found);
        if (save->tables_at < sizeof(save->tables))
            return false;
        memcpy(save->tables, found, sizeof(save->tables));
    }
    memcpy(save->bytes, stream->bytes, n_base);
    save->n_base = n_base;
    return true;
}

static void on_learnt(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;
    struct vm_save *save = &vm->save;
    size_t n;

    if (vm->phase != VM_CHECKPOINT)
        return;
    n = error ? 0 : take(save);
    if (n > 0 && learn(save, n, &vm->stream)) {
        log_debug("qemu: learnt the %zu bytes before the devices", save->n_base);
    } else if (error || ++save->learn_tries == LEARN_TRIES) {
        log_info("qemu: checkpoints take longer: %s",
                 error ? error : "a migration writes something else than what is saved");
        vm_save_done(save);
    }
    vm_checkpoint_end(vm, vm->stream.bytes, vm->stream.n_bytes);
}

bool vm_save_learn(struct hyp_vm *vm)
{
    struct vm_save *save = &vm->save;

    if (save->fd < 0 || save->n_base > 0 || !save->learnable)
        return false;
    return order_save(vm, on_learnt) == 0;
}
