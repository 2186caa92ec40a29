/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_RECORD_FILE_H
#define US_DISK_RECORD_FILE_H

#include "core/copy.h"

/* The activation record in a file (docs/disks.md, "Which copy is the newest"):
 *
 *     {"role": "standby", "term": 8, "epoch": 1234, "peer": "hosta"}
 *
 * role: "none", "primary", "standby" or "syncing"; peer: "" but for the last two. A crash at any
 * point leaves a whole old file or a whole new one. Both functions block on the disk. */

/* Reads it. A missing file is COPY_NONE. 0; -EINVAL when it is damaged, with what to do; another
 * negative errno when it cannot be read. */
int copy_record_load(const char *path, struct copy_record *ret_record,
                     struct err *err) US_MUST_CHECK;

/* Replaces it; on stable storage when it returns 0. -EINVAL for a record that load would refuse. */
int copy_record_store(const char *path, const struct copy_record *record,
                      struct err *err) US_MUST_CHECK;

#endif
