/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <assert.h>
#include <string.h>

/* The guest's addresses for the standby (docs/protocol.md, "Control"), which has seen none of the
 * guest's frames but is to announce them after a takeover. A copy of what was said last tells
 * whether there is news. Ages make no news, or each frame would; so that they do not grow too old
 * at the standby, all is said again once a minute. */

static const uint64_t news_ns = NS_PER_S, refresh_ns = 60 * NS_PER_S;

static_assert((int)VM_NICS_MAX <= (int)WIRE_NICS_MAX &&
                  VM_NICS_MAX * GUEST_ADDRESSES_MAX <= WIRE_ADDRESSES_MAX,
              "every VM's addresses fit a message");

static void collect(const struct body *body, struct wire_addresses *ret_all)
{
    struct guest_address found[GUEST_ADDRESSES_MAX];

    ret_all->n = 0;
    for (uint32_t nic = 0; nic < body->spec.n_nics; nic++) {
        size_t n = netport_addresses_get(body->ports[nic], found);

        for (size_t i = 0; i < n; i++) {
            struct wire_address *a = &ret_all->entry[ret_all->n++];

            *a = (struct wire_address){
                .nic = (uint8_t)nic,
                .family = found[i].family,
                .router = found[i].router,
                .vlan = found[i].vlan,
                .age_s = (uint16_t)found[i].seen_s, /* at most GUEST_ADDRESS_AGE_MAX_S */
            };
            memcpy(a->bytes, found[i].bytes, sizeof(a->bytes));
        }
    }
}

/* The same but for the ages? */
static bool same(const struct wire_addresses *a, const struct wire_addresses *b)
{
    if (a->n != b->n)
        return false;
    for (uint32_t i = 0; i < a->n; i++) {
        const struct wire_address *x = &a->entry[i], *y = &b->entry[i];

        if (x->nic != y->nic || x->family != y->family || x->router != y->router ||
            x->vlan != y->vlan || memcmp(x->bytes, y->bytes, sizeof(x->bytes)) != 0)
            return false;
    }
    return true;
}

void addresses_tell(struct guard *g)
{
    struct told *told = &g->link.told;
    struct wire_msg msg = {.type = WIRE_ADDRESSES};
    uint64_t now = clock_now_ns();

    if (told->at_ns && now - told->at_ns < news_ns)
        return;
    collect(g->body, &msg.u.addresses);
    if (told->at_ns && now - told->at_ns < refresh_ns && same(&told->addresses, &msg.u.addresses))
        return;
    told->at_ns = now;
    told->addresses = msg.u.addresses;
    channel_send(g->link.control, &msg);
}
