/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_RECORD_FILE_H
#define US_DISK_RECORD_FILE_H

#include "core/copy.h"

/* The activation record in a file (docs/disks.md, "Which copy is the newest"): JSON, replaced as a whole. */

/* Reads it. A missing file is COPY_NONE. A damaged one is an error: 0, or -EINVAL with what to do. */
int copy_record_load(const char *path, struct copy_record *ret_record, struct err *err) US_MUST_CHECK;

/* Replaces it; on stable storage when it returns 0. */
int copy_record_store(const char *path, const struct copy_record *record, struct err *err) US_MUST_CHECK;

#endif
