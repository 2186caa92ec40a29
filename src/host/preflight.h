/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HOST_PREFLIGHT_H
#define US_HOST_PREFLIGHT_H

#include "base/err.h"
#include "hyp/hyp.h"
#include "io/config.h"

/* Everything that can be known, before anything runs, about whether this host can run a VM. */

enum { PREFLIGHT_PROBLEMS_MAX = 16 };

enum preflight_role { PREFLIGHT_PRIMARY = 1, PREFLIGHT_STANDBY };

struct preflight {
    unsigned n; /* 0 = all is well; what goes beyond the maximum is dropped */
    struct err problem[PREFLIGHT_PROBLEMS_MAX];
};

/* Looks for every problem. Fills in spec->machine (versioned) and spec->accel when the hypervisor
 * knows them. Blocks for the emulator's answers (bounded, a second or so). */
void preflight_check(struct vm_spec *spec, const struct host_config *config,
                     const struct hyp_ops *hyp, enum preflight_role role,
                     struct preflight *ret_preflight);

/* The same for who wants one answer: 0, or -EINVAL with the first problem. */
int preflight_vm(struct vm_spec *spec, const struct host_config *config, const struct hyp_ops *hyp,
                 struct err *err) US_MUST_CHECK;
int preflight_standby(struct vm_spec *spec, const struct host_config *config,
                      const struct hyp_ops *hyp, struct err *err) US_MUST_CHECK;

#endif
