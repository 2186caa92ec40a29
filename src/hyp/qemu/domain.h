/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_DOMAIN_H
#define US_HYP_QEMU_DOMAIN_H

#include "base/err.h"

/* Puts the calling process, which must not be able to gain privileges, into a Landlock domain of
 * its own. What is in it can trace, or look into /proc/PID of, processes of the same domain only,
 * also when the other one has the same user; from Linux 6.12 on, signal those only. So VMs that
 * share a user cannot reach into each other. Files are not restricted. Those outside of the domain
 * may do to it what they could. System calls only, for use between fork and exec. 0, also where the
 * kernel has no Landlock; or -1 and errno. */
int domain_enter(void) US_MUST_CHECK;

#endif
