/* SPDX-License-Identifier: Apache-2.0 */
#include "core/action.h"

#include <assert.h>
#include <string.h>

struct action *actions_add(struct actions *out, enum action_type type)
{
    struct action *a;

    assert(out->n < ACTIONS_MAX);
    a = &out->a[out->n++];
    memset(a, 0, sizeof(*a));
    a->type = type;
    return a;
}
