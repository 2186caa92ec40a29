/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_HYP_H
#define US_HYP_HYP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "core/vm_spec.h"
#include "hyp/run_list.h"

/* The table of operations behind which hypervisors sit. Nothing above it knows QEMU.
 *
 * A VM under a hypervisor is a `struct hyp_vm`. Its guest RAM is one shared file that the caller
 * provides (normally in a tmpfs), so that whoever maps the file sees the guest's memory; page
 * numbers are offsets into that file divided by VM_PAGE_BYTES.
 *
 * Life of a primary's VM:  launch -> [resume] -> track -> (checkpoint -> dirty_take... -> resume)*
 * After the caller's crash: attach -> [resume] -> track -> (as above)
 * Life of a standby's VM:  launch(incoming) -> restore -> (as above)
 *
 * Everything runs in the thread of the sd_event loop given at launch. Operations marked "async"
 * return at once; their outcome arrives by exactly one of the callbacks named there, or by on_exit
 * alone. Callbacks are never called from inside an operation, and may call any, close() included.
 * After on_exit no other callback comes. */

struct hyp_vm;

/* CPU and device state of a stopped VM. `format` says who can read it: for QEMU
 * "qemu:" + machine type. A neutral form will have a tag of its own. */
struct hyp_state {
    char format[80];
    const uint8_t *bytes; /* borrowed; valid until the next checkpoint or close */
    size_t n_bytes;
};

/* What a checkpoint takes, as the caller's loop sees it; for metrics. 0 = did not happen. */
struct hyp_timing {
    uint64_t stop_ns;  /* from the order until the vCPUs stood still: the guest ran meanwhile */
    uint64_t state_ns; /* from the vCPUs' stop until the device state was complete */
};

enum hyp_exit {
    HYP_EXIT_CRASH = 1,      /* the hypervisor process died or broke its protocol */
    HYP_EXIT_GUEST_SHUTDOWN, /* the guest powered itself off */
    HYP_EXIT_KILLED,         /* by hyp_vm_kill() */
};

struct hyp_callbacks {
    /* checkpoint, once before on_checkpoint: the vCPUs stand still. The disks' requests are being
     * drained now; what the guest has ordered before may still arrive at them. NULL: not wanted. */
    void (*on_stopped)(void *user);
    /* guest_flushes: how many flushes of each disk (spec->n_disks entries; borrowed) the guest has
     * seen ended since launch, also in vain. NULL: it could not be found out. */
    void (*on_guest_flushes)(void *user, const uint64_t *flushes);
    /* checkpoint: the VM stands still and its device state is complete. */
    void (*on_checkpoint)(void *user, const struct hyp_state *state,
                          const struct hyp_timing *timing);
    /* resume or restore: the vCPUs run. */
    void (*on_running)(void *user);
    /* checkpoint, resume or restore did not work; `why` is borrowed. The VM may still exist: the
     * caller decides (normally hyp_vm_kill). After a failed checkpoint the driver has already
     * tried to resume the VM; `running` says whether it runs. It may have been running for a
     * while then: whoever put something off at on_stopped, for as long as the VM stands still,
     * makes it good at once. */
    void (*on_failure)(void *user, const char *why, bool running);
    /* the VM is gone; only close() is allowed now. */
    void (*on_exit)(void *user, enum hyp_exit how, const char *detail);
};

struct hyp_nic_paths {
    char hyp_path[108];   /* UNIX datagram socket that the hypervisor binds: frames for the guest */
    char guard_path[108]; /* the one that the caller has bound: frames from the guest */
};

struct hyp_launch {
    const struct vm_spec *spec; /* borrowed during the call */
    const char *run_dir;  /* for the hypervisor's sockets, log and pid (io/vm_process.h); exists;
                           * borrowed */
    const char *ram_path; /* RAM file of spec->memory_bytes; exists; borrowed */
    const char *emulator; /* program to run, e.g. qemu-system-x86_64; borrowed */
    uid_t uid; /* whom it runs as, in a sandbox; the caller has given it the RAM file and the
                * sockets below, and the directory where it binds one */
    gid_t gid;
    const struct hyp_nic_paths *nics; /* spec->n_nics entries; borrowed */
    const char *const *disk_sockets;  /* NBD servers' sockets, served already, spec->n_disks
                                       * entries; borrowed */
    const int *disk_listeners; /* the sockets that listen there, which the hypervisor keeps open for
                                * whoever attaches (vm_process_kept()); NULL: none; borrowed */
    bool incoming;   /* true: wait for restore(); false: start stopped, wait for resume() */
    sd_event *event; /* borrowed for the life of the VM */
    const struct hyp_callbacks *callbacks; /* borrowed for the life of the VM */
    void *user;
};

struct hyp_ops {
    const char *name; /* "qemu" */

    /* Checks, without starting a VM, that the host and the definition suit the driver: emulator,
     * machine type (versioned and known), accelerator, kernel features, options that cannot be
     * checkpointed. Fills in spec->accel when it is "", and puts the versioned name in the place of
     * an empty or unversioned spec->machine: record both. Blocks for the emulator's answers (a
     * second or so, bounded to 15). Returns 0, or -errno with the reason. */
    int (*preflight)(struct vm_spec *spec, const char *emulator, struct err *err) US_MUST_CHECK;

    /* Starts the hypervisor in its own session, so that it survives the caller. Blocks until it
     * answers its control protocol (bounded, 10 s). The caller owns *ret_vm. */
    int (*launch)(const struct hyp_launch *launch, struct hyp_vm **ret_vm,
                  struct err *err) US_MUST_CHECK;

    /* Takes charge of a VM that an earlier launch() with the same arguments (but for `incoming`)
     * has made, and whose caller is gone: `pid` is its hypervisor. Whatever was under way in it (a
     * checkpoint) is waited for. *ret_running: whether its vCPUs run; if not, it waits for
     * resume(). Dirty tracking begins anew with track(). Blocks for the hypervisor's answers
     * (bounded: 10 s, 30 s with disks, which it may have to connect to first). The caller owns
     * *ret_vm. On failure the process is as it was; -ESRCH: it is not there, or has never run its
     * VM (started and not resumed, incoming and not restored). */
    int (*attach)(const struct hyp_launch *launch, pid_t pid, struct hyp_vm **ret_vm,
                  bool *ret_running, struct err *err) US_MUST_CHECK;

    /* Starts dirty tracking: from now on every page written by the guest or the hypervisor is
     * recorded. All pages count as clean after it. Blocks for milliseconds (more with terabytes);
     * the guest may run.
     * -EOPNOTSUPP names the missing kernel feature. Idempotent, but for tracking that has failed
     * (dirty_take says so) and begins anew then. */
    int (*track)(struct hyp_vm *vm, struct err *err) US_MUST_CHECK;

    /* Async (on_checkpoint | on_failure): stops the VM and collects its device state. The VM
     * stays stopped until resume(). One at a time: -EBUSY otherwise. */
    int (*checkpoint)(struct hyp_vm *vm, struct err *err) US_MUST_CHECK;

    /* Takes all dirty pages: appends them to `list` in ascending order and marks exactly those
     * clean. A few next to them may be among them that were not written. On a stopped VM all that
     * were written are. On a running one, a page that is written after it was taken is dirty again:
     * so whoever copies the pages after the call has each of them right, or will find it in the
     * next take. Does not block. Returns 0, or -errno (-ESRCH: the VM is gone; -ENOMEM), and then
     * pages may be marked clean and not be in the list: nothing taken since the last checkpoint
     * makes another one, and after track() a full copy is due. */
    int (*dirty_take)(struct hyp_vm *vm, struct run_list *list) US_MUST_CHECK;

    /* To be called when all that was dirty is taken and copied, and the VM still stands still: lets
     * the tracker rearrange itself, so that the next take costs less. Keeps the VM waiting for 0.2
     * ms, and rarely a little longer. Not calling it is no error. */
    void (*dirty_settle)(struct hyp_vm *vm);

    /* Counts dirty pages without marking them clean, giving up above `limit`: *ret_pages is then
     * limit + 1. Does not block. */
    int (*dirty_count)(struct hyp_vm *vm, uint64_t limit, uint64_t *ret_pages) US_MUST_CHECK;

    /* Async (on_guest_flushes): asks a VM that stands still after a checkpoint how many flushes its
     * guest has seen ended, which does not include the hypervisor's own. Best called between
     * on_checkpoint and resume(), where the question is prepared for. */
    int (*guest_flushes)(struct hyp_vm *vm, struct err *err) US_MUST_CHECK;

    /* Async (on_running | on_failure): lets a stopped VM run. */
    int (*resume)(struct hyp_vm *vm, struct err *err) US_MUST_CHECK;

    /* Async (on_running | on_failure): gives a VM launched with `incoming` its device state (the
     * RAM file must hold the matching memory) and lets it run. `state` is copied. */
    int (*restore)(struct hyp_vm *vm, const struct hyp_state *state, struct err *err) US_MUST_CHECK;

    /* Pid of the hypervisor process, for status. */
    pid_t (*pid)(const struct hyp_vm *vm);

    /* Async (on_exit): ends the VM at once (SIGKILL). The guest is not asked. */
    void (*kill)(struct hyp_vm *vm);

    /* Frees everything; kills the VM when it still runs. Waits for the process to be gone
     * (bounded, 5 s), so that its files can be removed. NULL is allowed. No callback is made. */
    void (*close)(struct hyp_vm *vm);
};

extern const struct hyp_ops hyp_qemu;

#endif
