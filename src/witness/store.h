/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WITNESS_STORE_H
#define US_WITNESS_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "wire/msg.h"

/* The witness's registers: a directory per group of hosts, in it one file per VM, named for it. The
 * files are the registers; there is no second copy in memory that could differ.
 *
 * A change is written to a new file, synced, renamed over the old one, and the directory synced,
 * before anybody hears of it. So a crash leaves the old record or the new one, never a torn one:
 *   - before the rename: the old one (and perhaps a file ".new", removed at the next start);
 *   - after it: the new one for whoever reads, but perhaps not yet on the disk. Opening the store
 *     syncs everything before the first answer, so what was seen once cannot be lost later.
 *
 * Where it is not known whether a change reached the disk (the directory's sync failed), no answer
 * is right, and the store is of no more use: the process must end without answering. The asker does
 * not know then whether its swap was carried out, which is the truth, and the next start reads what
 * is there. */

enum {
    STORE_FILE_BYTES = 256,
    STORE_VMS_MAX = 4096, /* per group; a new VM is refused beyond that, so that nobody fills the
                           * disk */
};

struct store;

/* Who asks. Borrowed. */
struct store_asker {
    const char *group, *host;
};

/* Opens the registers in a directory, which must exist, for this process alone, and verifies all of
 * them. One that cannot be written to will do for reading. 0; -EBUSY when another process has it;
 * -EBADMSG when a file is damaged (the text names it); another negative errno. Blocks on the disk.
 */
int store_open(const char *dir, struct store **ret_store, struct err *err) US_MUST_CHECK;

/* Carries out a valid request (arb_request_check()) on a register of the asker's group, if it is
 * for the asker to make (arb_request_allowed()), and fills in the reply. 0; where the reply's
 * status is WIRE_ARB_ERROR or REFUSED, the register is as it was and err has the reason. Or
 * -ENOTRECOVERABLE with the reason: nothing may be answered, now or later. Blocks on the disk. */
int store_apply(struct store *store, const struct store_asker *asker,
                const struct wire_arb_request *request, struct wire_arb_reply *ret_reply,
                struct err *err) US_MUST_CHECK;

/* Reads the group's registers of the VMs whose names come next after `after` ("": the first ones).
 * 0, or -errno with the reason. Blocks on the disk. */
int store_list(struct store *store, const char *group, const char *after,
               struct wire_arb_registers *ret_registers, struct err *err) US_MUST_CHECK;

void store_close(struct store *store); /* NULL is allowed */

/* True when bytes begin as a register's file does. */
bool store_file_recognize(const uint8_t bytes[static STORE_FILE_BYTES]);

/* Decodes and verifies a register's file, which must be this VM's. 0, or -EBADMSG with the reason.
 */
int store_file_decode(const uint8_t bytes[static STORE_FILE_BYTES], const char *vm,
                      struct arb_record *ret_record, struct err *err) US_MUST_CHECK;

#endif
