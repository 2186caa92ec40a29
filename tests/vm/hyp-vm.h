/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_VM_H
#define US_TESTS_HYP_VM_H

#include <stdbool.h>
#include <stdint.h>

#include "hyp-disks.h"
#include "hyp/hyp.h"

/* VMs under the QEMU driver, and the event loop that they report to. What goes wrong in here ends
 * the program; so does a signal. */

/* What a VM reports, see struct hyp_callbacks. */
enum happening {
    NOTHING,
    CHECKPOINT,
    FLUSHES,
    RUNNING,
    FAILURE,
    EXIT,
};

/* A VM with its RAM file and what it last reported. */
struct vm {
    struct hyp_vm *hyp;
    uint32_t n_disks;
    char dir[128];
    char ram_path[160];
    uint8_t *ram;
    int guard_sockets[VM_NICS_MAX];
    enum happening happened;
    struct hyp_state state;
    struct hyp_timing timing;
    unsigned int stops; /* since the last await() */
    bool flushes_known;
    uint64_t flushes[VM_DISKS_MAX];
    bool failure_running;
    enum hyp_exit exit_how;
    char text[512];
};

/* What VMs are launched with; borrowed. */
struct vm_world {
    const char *emulator;
    const char *work_dir, *shm_dir; /* of all VMs */
    const struct hyp_disk *disks;
};

extern const struct hyp_callbacks vm_callbacks; /* user: a struct vm */

void loop_start(void);
sd_event *loop_get(void); /* borrowed */
void loop_end(void);
void run_loop_for(unsigned int ms);

/* Starts a QEMU, with RAM in a file of its own, which is mapped. */
void launch(struct vm *vm, const struct vm_world *world, const struct vm_spec *spec,
            const char *name, bool incoming);
void close_vm(struct vm *vm, const struct vm_spec *spec);

/* Runs the loop until the VM reports something, which must be what was awaited. */
void await(struct vm *vm, enum happening what, const char *for_what);

#endif
