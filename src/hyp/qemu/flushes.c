/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "hyp/qemu/vm.h"

/* Theory of operation. A virtio disk counts the flushes of its guest when they end. QEMU's own,
 * which it makes of its block nodes at every stop, are not among them, nor is it among them when
 * QEMU passes a guest's flush on or not (it does not when nothing was written since the last one).
 * While the VM stands still after a checkpoint no request is under way, so the counts are exact.
 * They start from 0 with QEMU: checkpoints do not carry them. */

/* Reads one of a disk's counters. */
static bool take_count(const json_t *stats, const char *name, uint64_t *ret_count)
{
    const json_t *count = json_object_get(stats, name);

    if (!json_is_integer(count) || json_integer_value(count) < 0)
        return false;
    *ret_count = (uint64_t)json_integer_value(count);
    return true;
}

/* Finds a disk by its device in the reply to query-blockstats. */
static bool take_disk(const json_t *list, uint32_t disk, uint64_t *ret_flushes)
{
    const json_t *entry;
    char device[64];
    size_t i;

    (void)snprintf(device, sizeof(device), "/machine/peripheral/disk%" PRIu32 "/virtio-backend",
                   disk);
    json_array_foreach(list, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "qdev"));
        const json_t *stats = json_object_get(entry, "stats");
        uint64_t ended, failed;

        if (!name || strcmp(name, device) != 0)
            continue;
        if (!take_count(stats, "flush_operations", &ended) ||
            !take_count(stats, "failed_flush_operations", &failed))
            return false;
        *ret_flushes = ended + failed;
        return true;
    }
    return false;
}

static void tell_flushes(struct hyp_vm *vm)
{
    vm->guest_flushes = VM_FLUSHES_UNASKED; /* the next question may be another */
    vm_end(vm, VM_IDLE, VM_OUTCOME_FLUSHES,
           vm->flushes_known ? "counted" : "QEMU does not tell the flushes");
}

static void on_blockstats(void *user, const json_t *ret, const char *error)
{
    struct hyp_vm *vm = user;

    vm->guest_flushes = VM_FLUSHES_ANSWERED;
    vm->flushes_known = !error;
    for (uint32_t i = 0; vm->flushes_known && i < vm->n_disks; i++)
        vm->flushes_known = take_disk(ret, i, &vm->flushes[i]);
    if (vm->phase == VM_FLUSHES)
        tell_flushes(vm);
}

static int ask(struct hyp_vm *vm)
{
    int r = qmp_send(vm->qmp, "query-blockstats", "", -1, on_blockstats, vm);

    if (r == 0)
        vm->guest_flushes = VM_FLUSHES_ASKED;
    return r;
}

void vm_ask_flushes(struct hyp_vm *vm)
{
    (void)ask(vm); /* vm_guest_flushes() will ask again */
}

int vm_guest_flushes(struct hyp_vm *vm, struct err *err)
{
    int r = vm_check_idle(vm, err);

    if (r < 0)
        return r;
    if (vm->guest_flushes == VM_FLUSHES_UNASKED) {
        r = ask(vm);
        if (r < 0)
            return err_sys(err, r, "QMP query-blockstats");
        if (!vm->running)
            qmp_prepare(vm->qmp, "cont", "");
    }
    vm_set_phase(vm, VM_FLUSHES, "ordered");
    vm_set_timer(vm, vm->answer_timeout_ms);
    if (vm->guest_flushes == VM_FLUSHES_ANSWERED)
        tell_flushes(vm);
    return 0;
}

void vm_guest_flushes_timeout(struct hyp_vm *vm)
{
    vm->flushes_known = false;
    vm_end(vm, VM_LOST, VM_OUTCOME_FLUSHES, "QEMU does not answer");
}
