/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_TAKEOVER_H
#define US_GUARD_TAKEOVER_H

#include <stdint.h>

#include "disk/applier.h"
#include "guard/body.h"
#include "wire/msg.h"

/* What a standby that has taken over hands to the guard that it becomes. Times are UNIX
 * milliseconds, for the time-line that people want to see afterwards. */
struct takeover {
    struct body *body;          /* its VM runs; owned by whoever holds the struct */
    struct applier *applier;    /* finishing; NULL without disks; owned likewise */
    struct arb_record record;   /* as swapped */
    char from[WIRE_NAME_BYTES]; /* the host that had it; to be its standby when it is back */
    uint64_t epoch;             /* the newest one in the body */
    double decided_ms;          /* when the claim was decided upon */
    double won_ms;              /* when the arbiter's answer was here */
    double running_ms;          /* when the vCPUs ran */
};

#endif
