/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_PACE_H
#define US_GUARD_PACE_H

#include <stdint.h>

/* When to cut: gives the controller (core/controller.h) what it looks at, and does what it says. */

struct guard;

/* Makes the controller, from the VM's file and the size of the staging memory. */
void pace_setup(struct guard *g);

/* Cuts an epoch when it is due. Returns when to come back for that. */
uint64_t pace_cut_if_due(struct guard *g, uint64_t now_ns);

#endif
