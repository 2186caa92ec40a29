/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_USER_H
#define US_IO_USER_H

#include <sys/types.h>

#include "base/err.h"

/* Finds whom a hypervisor runs as: a user's name (with his group), "UID:GID", or "root". May block
 * for the host's name services. 0; -ENOENT when there is no such user, or another -errno, with the
 * reason. */
int user_lookup(const char *text, uid_t *ret_uid, gid_t *ret_gid, struct err *err) US_MUST_CHECK;

#endif
