/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_DURABLE_H
#define US_IO_DURABLE_H

#include <stddef.h>

#include "base/err.h"

/* Files that a crash at any point leaves whole. Both functions block on the disk. */

/* Replaces a file, or makes it, mode 0600: either the old contents or the new ones are there at any
 * time, and the new ones are on stable storage when it returns 0. Uses PATH.new, which a crash may
 * leave behind for the next call to replace. */
int durable_replace(const char *path, const void *bytes, size_t n, struct err *err) US_MUST_CHECK;

/* Brings the name of a file that was made, renamed or removed to stable storage. 0 or -errno. */
int durable_sync_name(const char *path) US_MUST_CHECK;

#endif
