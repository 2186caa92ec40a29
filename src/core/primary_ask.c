/* SPDX-License-Identifier: Apache-2.0 */
#include "core/primary_ask.h"

#include <string.h>

#include "core/name.h"

static struct action *ask(struct primary *p, uint8_t op, struct actions *out)
{
    struct action *a = actions_add(out, ACT_ARB_ASK);

    p->asking = true;
    p->ask_at_ns = CORE_NEVER;
    a->u.ask.id = ++p->ask_id;
    a->u.ask.request.op = op;
    return a;
}

void primary_ask_get(struct primary *p, struct actions *out)
{
    memset(&p->asked_for, 0, sizeof(p->asked_for));
    (void)ask(p, WIRE_ARB_GET, out);
}

void primary_ask_swap(struct primary *p, const char *owner, enum arb_mode mode, const char *standby,
                      struct actions *out)
{
    struct action *a = ask(p, WIRE_ARB_CAS, out);
    struct arb_record *wanted = &a->u.ask.request.wanted;

    a->u.ask.request.expected = p->record;
    wanted->term = p->record.term + 1;
    wanted->mode = (uint8_t)mode;
    name_copy(wanted->owner, owner);
    name_copy(wanted->standby, standby);
    p->asked_for = *wanted;
}

void primary_copy_record(struct primary *p, struct actions *out)
{
    struct action *a = actions_add(out, ACT_COPY_RECORD);
    bool attached = p->state == PRIMARY_ISOLATED && !p->pair_term;

    a->u.copy.term = p->record.term;
    a->u.copy.vital = p->state == PRIMARY_STARTING;
    a->u.copy.wait = a->u.copy.vital || p->state == PRIMARY_STOPPING || attached;
}
