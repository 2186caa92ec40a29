/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "core/name.h"
#include "core/primary_ask.h"

/* The three ways in which a VM comes to have a guard. */

static void init(struct primary *p, const char *self, const struct core_timing *timing)
{
    memset(p, 0, sizeof(*p));
    name_copy(p->self, self);
    p->timing = *timing;
    p->next_epoch = 1;
    p->connect_at_ns = CORE_NEVER;
    p->ask_at_ns = CORE_NEVER;
}

void primary_init_start(struct primary *p, const char *self, const struct core_timing *timing,
                        const char *wanted, const struct start_order *order, uint64_t now,
                        struct actions *out)
{
    init(p, self, timing);
    p->state = PRIMARY_STARTING;
    p->order = *order;
    name_copy(p->wanted, wanted);
    p->start_deadline_ns = now + timing->start_ns;
    primary_ask_get(p, out);
}

void primary_init_takeover(struct primary *p, const char *self, const struct core_timing *timing,
                           const struct arb_record *record, uint64_t epoch, struct actions *out)
{
    init(p, self, timing);
    p->state = PRIMARY_SOLO;
    p->record = *record;
    p->ask_at_ns = 0; /* a first look at once */
    p->next_epoch = epoch + 1;
    p->committed = epoch;
    primary_copy_record(p, out);
}

void primary_init_attach(struct primary *p, const char *self, const struct core_timing *timing,
                         const char *wanted, bool running, struct actions *out)
{
    init(p, self, timing);
    p->state = PRIMARY_ISOLATED;
    name_copy(p->wanted, wanted);
    p->handing = !running;
    actions_add(out, ACT_GATE_HOLD);
    primary_ask_get(p, out);
}
