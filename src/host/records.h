/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HOST_RECORDS_H
#define US_HOST_RECORDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "io/config.h"

/* What a host keeps on disk about its VMs, in STATE_DIR/vms:
 *
 *   NAME.json        the definition of a VM that was started here and not stopped. Written by
 *                    understudyd at the start, again by the guard once the machine type is pinned.
 *   NAME.standby.json
 *                    the definition of a VM whose disks this host has a complete copy of, as it
 *                    would run here: what `understudy recover` starts when NAME.json is missing.
 *                    Written by the standby; removed when the VM runs here or is forgotten.
 *                    Which copy may be started is not decided by this file (docs/disks.md).
 *   NAME.ended.json  how a VM left this host other than by a stop: {"vm", "reason", "detail",
 *                    "owner", "term", "unix"}. Written by the guard, or by understudyd for a guard
 *                    that crashed; removed by the next start or stop.
 *
 * A crash at any point leaves a whole old file or a whole new one. */

enum { RECORD_PATH_MAX = VM_PATH_MAX + VM_NAME_MAX + 32 };

/* Makes the directories of the configuration, mode 0700; others may pass through RUN_DIR. */
int records_prepare(const struct host_config *config, struct err *err) US_MUST_CHECK;

/* Paths; `out` has room for RECORD_PATH_MAX bytes. */
void record_path(const struct host_config *config, const char *vm, char *out);
void vm_socket_path(const struct host_config *config, const char *vm, char *out);

/* Writes a definition, durably. Blocks on the disk. */
int record_write(const struct host_config *config, const struct vm_spec *spec,
                 struct err *err) US_MUST_CHECK;

/* The same without waiting for a disk: survives this process, and not the host. */
int record_write_soft(const struct host_config *config, const struct vm_spec *spec,
                      struct err *err) US_MUST_CHECK;

bool record_exists(const struct host_config *config, const char *vm);
void record_remove(const struct host_config *config, const char *vm);

/* For the standby, when the copy of the disks has become complete: writes the definition that
 * `understudy recover` needs here, durably. spec is the offered one; its standby is replaced by
 * `primary`, which is to back the VM if it is recovered here. Blocks on the disk. */
int record_write_standby(const struct host_config *config, const struct vm_spec *spec,
                         const char *primary, struct err *err) US_MUST_CHECK;
bool record_exists_standby(const struct host_config *config, const char *vm);
void record_remove_standby(const struct host_config *config, const char *vm);

/* The definition to recover a VM with: NAME.json, else NAME.standby.json. Any text may be given as
 * the name. -ENOENT when this host has neither, -EPROTO for a damaged one, both with the reason. */
int record_load(const struct host_config *config, const char *vm, struct vm_spec *ret_spec,
                struct err *err) US_MUST_CHECK;

/* Removes all that is noted of the VM. */
void record_forget(const struct host_config *config, const char *vm);

/* The definition as JSON, or NULL when there is none that is readable. The caller owns it. */
json_t *record_read(const struct host_config *config, const char *vm);

/* How the VM left this host, or NULL. The caller owns it. */
json_t *ended_read(const struct host_config *config, const char *vm);
void ended_remove(const struct host_config *config, const char *vm);

/* Notes that a VM's process crashed, unless the process left a note itself. */
void ended_note_crash(const struct host_config *config, const char *vm, const char *detail);

/* Calls fn for every VM that has a record or a note, in no order; twice for one that has both. */
void records_each(const struct host_config *config, void (*fn)(void *user, const char *vm),
                  void *user);

#endif
