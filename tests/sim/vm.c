/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* The guest. Its state is a point in a tree: each start makes a root, each takeover a branch from
 * the checkpoint that it runs from, and each step goes one further on the branch. Whatever the
 * network ever saw of one start must lie on one path (I2). */

static bool covers(const struct world *w, struct state b, struct state a, bool through_boots)
{
    while (b.branch != a.branch) {
        const struct branch *branch = &w->truth.branches[b.branch];

        if (branch->root && !(through_boots && branch->has_from))
            return false;
        b = branch->from;
    }
    return a.index <= b.index;
}

bool state_covers(const struct world *w, struct state b, struct state a)
{
    return covers(w, b, a, false);
}

bool lineage_covers(const struct world *w, struct state b, struct state a)
{
    return covers(w, b, a, true);
}

static bool new_branch(struct world *w, unsigned host, struct branch branch)
{
    struct truth *t = &w->truth;
    struct vm *vm = &w->hosts[host].guard.vm;

    if (t->n_branches == BRANCHES_MAX) {
        world_fail(w, "simulator: too many branches");
        return false;
    }
    t->branches[t->n_branches] = branch;
    *vm = (struct vm){.exists = true, .state = {.branch = t->n_branches++}};
    return true;
}

static void schedule_step(struct world *w, unsigned host)
{
    struct vm *vm = &w->hosts[host].guard.vm;

    if (vm->step_due)
        return;
    vm->step_due = true;
    world_post(w, w->now_ns + 100 * NS_PER_US + rng_mean(w, w->setup.step_mean_ns), EV_VM_STEP,
               proc_id(host, ROLE_GUARD), 0);
}

void vm_boot(struct world *w, unsigned host)
{
    struct branch branch = {.root = true, .boot = w->truth.n_boots};
    struct sim_disk *d = &w->hosts[host].disk;

    check_boot(w, host);
    branch.has_from = w->setup.disks && w->truth.n_boots;
    branch.from = d->last;
    if (!new_branch(w, host, branch))
        return;
    memcpy(w->hosts[host].guard.vm.memory.disk, d->image, sizeof(d->image));
    w->truth.front[w->truth.n_boots] = w->hosts[host].guard.vm.state;
    w->truth.boot_at_ns[w->truth.n_boots++] = w->now_ns;
    TRACE(w, "%s vm: boots (start %u)", host_names[host], w->truth.n_boots);
    schedule_step(w, host);
}

void vm_activate(struct world *w, unsigned host, const struct staged *image)
{
    struct state from = image->state;
    struct branch branch = {.from = from, .boot = w->truth.branches[from.branch].boot};

    if (!new_branch(w, host, branch))
        return;
    w->hosts[host].guard.vm.memory = image->memory;
    w->truth.front[branch.boot] = w->hosts[host].guard.vm.state;
    TRACE(w, "%s vm: goes on as branch %u from %u.%u", host_names[host],
          w->hosts[host].guard.vm.state.branch, from.branch, from.index);
    schedule_step(w, host);
}

void vm_resume(struct world *w, unsigned host)
{
    struct vm *vm = &w->hosts[host].guard.vm;

    if (vm->exists && !vm->paused && !vm->stuffed)
        schedule_step(w, host);
}

static void emit(struct world *w, uint8_t proc, struct vm *vm)
{
    if (vm->n_socket == SOCKET_MAX)
        return; /* the guest's own queue is full */
    vm->socket[vm->n_socket++] = (struct frame){.state = vm->state, .flush = vm->memory.flush};
    if (vm->n_socket == 1)
        world_post(w, w->now_ns + rng_below(w, NS_PER_MS / 2), EV_FRAMES, proc, 0);
}

/* The guard serves the disk. */
static void use_disk(struct world *w, unsigned host)
{
    check_disk_matches(w, host, &w->hosts[host].guard.vm.memory, "while the VM runs");
    if (rng_chance(w, w->setup.write_rate) && !disk_write(w, host))
        world_fail(w, "I6: %s sees an I/O error that its disk did not have", host_names[host]);
    if (rng_chance(w, w->setup.flush_rate))
        disk_flush(w, host);
}

void vm_step(struct world *w, uint8_t proc)
{
    unsigned host = proc / 2;
    struct vm *vm = &w->hosts[host].guard.vm;

    vm->step_due = false;
    if (!vm->exists || vm->paused || vm->stuffed)
        return;
    if (w->hosts[host].frozen_until_ns > w->now_ns) {
        vm->step_due = true;
        world_post(w, w->hosts[host].frozen_until_ns, EV_VM_STEP, proc, 0);
        return;
    }
    vm->state.index++;
    vm->dirty_pages += rng_below(w, 200);
    if (w->setup.disks && w->hosts[host].proc[ROLE_GUARD].frozen_until_ns <= w->now_ns)
        use_disk(w, host);
    if (rng_chance(w, w->setup.frame_rate))
        emit(w, proc, vm);
    schedule_step(w, host);
}
