/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_PRIMARY_ASK_H
#define US_CORE_PRIMARY_ASK_H

#include "core/primary.h"

/* The primary's words to the arbiter and about its disks. Private to core/primary.c. */

/* Asks what the register says. */
void primary_ask_get(struct primary *p, struct actions *out);

/* Asks for the swap of the record as last known. */
void primary_ask_swap(struct primary *p, const char *owner, enum arb_mode mode, const char *standby,
                      struct actions *out);

/* The copy here is the VM's under the register's term: the activation record follows. A VM that is
 * being started or stopped waits for that: its newest copy is known by it alone. So does one that
 * was attached to: its dead guard may have taken it over and not have written that down, and a
 * standby's record is not known for the newest any more once the term has moved on. */
void primary_copy_record(struct primary *p, struct actions *out);

#endif
