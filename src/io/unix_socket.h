/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_UNIX_SOCKET_H
#define US_IO_UNIX_SOCKET_H

#include "base/err.h"

/* Makes a listening stream socket at that path, for this user only (mode 0600). A file that is
 * there is replaced: whoever must not be pushed aside is looked for before. CLOEXEC, non-blocking.
 * The caller owns the socket and removes the path. -ENAMETOOLONG or what the kernel says. */
int unix_listen(const char *path, int backlog, int *ret_sock, struct err *err) US_MUST_CHECK;

#endif
