/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hyp/qemu/uffd_inject.h"
#include "hyp/qemu/vm.h"
#include "io/log.h"

/* Which way of dirty tracking a VM gets (dirty.h): both, where the kernel can. */

enum { SETTLE_NS = 200000 };

static unsigned ways_wanted(void)
{
#ifdef US_FAULT_POINTS
    const char *forced = getenv("UNDERSTUDY_DIRTY"); /* tests */

    if (forced && strcmp(forced, "sync") == 0)
        return DIRTY_SYNC;
    if (forced && strcmp(forced, "async") == 0)
        return DIRTY_ASYNC;
#endif
    return DIRTY_BOTH;
}

static const char *name_of(unsigned ways)
{
    return ways == DIRTY_ASYNC  ? "asynchronous"
           : ways == DIRTY_SYNC ? "synchronous"
                                : "asynchronous, synchronous where it is cold";
}

static int start(struct hyp_vm *vm, uint64_t base, unsigned ways, struct err *err)
{
    struct dirty_target target = {
        .pid = vm->pid,
        .base = base,
        .n_bytes = vm->ram_bytes,
        .async_fd = -1,
        .sync_fd = -1,
    };
    int r = 0;

    if (ways & DIRTY_ASYNC)
        r = uffd_inject(vm->pid, vm->pidfd, UFFD_KIND_USER, &target.async_fd, err);
    if (r == 0 && ways & DIRTY_SYNC)
        r = uffd_inject(vm->pid, vm->pidfd, UFFD_KIND_KERNEL, &target.sync_fd, err);
    if (r < 0) {
        if (target.async_fd >= 0)
            close(target.async_fd);
        return r;
    }
    r = dirty_start(&target, &vm->dirty, err);
    if (r == 0)
        log_info("dirty tracking: %s", name_of(ways));
    return r;
}

int vm_track(struct hyp_vm *vm, struct err *err)
{
    unsigned ways = ways_wanted();
    uint64_t base;
    int r;

    if (vm->dirty && !dirty_broken(vm->dirty))
        return 0;
    dirty_free(vm->dirty);
    vm->dirty = NULL;
    if (vm->pidfd < 0)
        return err_set(err, -ESRCH, "the VM is gone");
    r = dirty_find_mapping(vm->pid, vm->ram_path, vm->ram_bytes, &base, err);
    if (r == 0)
        r = start(vm, base, ways, err);
    if (r < 0 && r != -EOPNOTSUPP && ways == DIRTY_BOTH) {
        log_info("no regions are tracked synchronously: %s", err->text);
        ways = DIRTY_ASYNC;
        r = start(vm, base, ways, err);
    }
    if (r == -EOPNOTSUPP && ways & DIRTY_ASYNC) {
        log_info("dirty tracking costs the guest more than it might: %s", err->text);
        r = start(vm, base, DIRTY_SYNC, err);
    }
    return r;
}

int vm_dirty_take(struct hyp_vm *vm, struct run_list *list)
{
    return vm->dirty ? dirty_take(vm->dirty, list) : -ENOTCONN;
}

int vm_dirty_count(struct hyp_vm *vm, uint64_t limit, uint64_t *ret_pages)
{
    return vm->dirty ? dirty_count(vm->dirty, limit, ret_pages) : -ENOTCONN;
}

void vm_dirty_settle(struct hyp_vm *vm)
{
    if (vm->dirty)
        dirty_settle(vm->dirty, SETTLE_NS);
}
