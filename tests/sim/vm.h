/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_SIM_VM_H
#define US_TESTS_SIM_VM_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"

/* The guest (vm.c). */

struct world;
struct staged;

enum { SOCKET_MAX = 48 };

struct frame {
    struct state state; /* what caused it */
    uint64_t stamp;
    uint32_t flush; /* the guest's last one before it */
};

struct branch {
    struct state from; /* root: what its disk comes from, if it has an earlier one */
    bool root, has_from;
    uint32_t boot; /* which start of the VM it descends from */
};

struct vm {
    bool exists, paused, stuffed; /* stuffed: paused because the gate's queue is full */
    bool step_due;
    struct state state;
    struct memory memory;
    uint64_t dirty_pages;
    unsigned n_socket;
    struct frame socket[SOCKET_MAX]; /* emitted, not read by the guard */
};

void vm_boot(struct world *w, unsigned host);
void vm_activate(struct world *w, unsigned host, const struct staged *image);
void vm_step(struct world *w, uint8_t proc);
void vm_resume(struct world *w, unsigned host);
/* True when b is a or comes after it. */
bool state_covers(const struct world *w, struct state b, struct state a);
/* ... also when b's VM was started anew from the disk that a's had written. */
bool lineage_covers(const struct world *w, struct state b, struct state a);

#endif
