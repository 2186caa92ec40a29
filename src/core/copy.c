/* SPDX-License-Identifier: Apache-2.0 */
#include "core/copy.h"

#include <string.h>

static const char *const copy_refusals[] = {
    [COPY_NEWEST] = NULL,
    [COPY_OLDER] = "the disks here are older than those of the host where it ran last: start it "
                   "there, or, if that one is gone for good, use --seize",
    [COPY_INCOMPLETE] = "the copy of the disks here is not complete: start it where it ran last; "
                        "--seize would start from what is here, whatever that is",
    [COPY_UNKNOWN] = "it has run before, and nothing is known of the disks here: start it where it "
                     "ran last, or, if these are its newest disks, use --seize",
};

/* What a copy is that is not the newest one. */
static enum copy_verdict not_newest(const struct copy_record *copy)
{
    switch (copy->role) {
    case COPY_SYNCING:
        return COPY_INCOMPLETE;
    case COPY_NONE:
        return COPY_UNKNOWN;
    default:
        return COPY_OLDER;
    }
}

/* Nobody owns the VM: is the copy that of the host that stopped it? */
static bool newest_of_stopped(const struct copy_record *copy, const struct arb_record *reg)
{
    return copy->role == COPY_PRIMARY && (copy->term == reg->term || copy->term + 1 == reg->term);
}

/* The register says that this host owns the VM. */
static bool newest_of_owner(const struct copy_record *copy, const struct arb_record *reg)
{
    switch (copy->role) {
    case COPY_PRIMARY:
        return copy->term <= reg->term;
    case COPY_STANDBY:
        return copy->term + 1 == reg->term; /* it took over, and has not written that down */
    case COPY_NONE:
        return reg->term == 1; /* the VM's very first start, cut short */
    default:
        return false;
    }
}

enum copy_verdict copy_judge(const struct copy_record *copy, const struct arb_record *reg,
                             const char *self)
{
    bool newest;

    if (reg->term == 0)
        newest = copy->role == COPY_NONE || copy->role == COPY_PRIMARY;
    else if (!reg->owner[0])
        newest = newest_of_stopped(copy, reg);
    else
        newest = strcmp(reg->owner, self) == 0 && newest_of_owner(copy, reg);
    return newest ? COPY_NEWEST : not_newest(copy);
}

const char *start_refusal(const struct start_order *order, const struct arb_record *reg,
                          const char *self)
{
    if (order->seize)
        return NULL;
    if (reg->owner[0] && strcmp(reg->owner, self) != 0)
        return "another host owns it: stop or recover it there, or, if that host is gone for good, "
               "use --seize";
    if (reg->mode == ARB_PAIRED && !order->recover)
        return "its standby may hold its running state: fail over there, or, if both hosts went "
               "down, use 'understudy recover'";
    return order->has_disks ? copy_refusals[copy_judge(&order->copy, reg, self)] : NULL;
}
