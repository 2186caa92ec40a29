/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WITNESS_STATE_H
#define US_WITNESS_STATE_H

#include <stdbool.h>

#include "base/err.h"

/* The witness's directory. The daemon works in it, and so do the sub-commands, on the same files:
 * who changes one replaces it as a whole, and the daemon sees that (inotify). So a sub-command does
 * the same whether the daemon runs or not. */

#define STATE_DEFAULT   "/var/lib/understudy-witness"
#define STATE_KEY       "host.key"      /* who it is */
#define STATE_KEY_NEXT  "host.key.next" /* who it will be */
#define STATE_HOSTS     "hosts.json"    /* whom it talks to */
#define STATE_REGISTERS "registers"     /* the store */

/* Makes `dir` the working directory; the names above are relative to it. make: it is made first if
 * it is missing, mode 0700. root becomes the directory's owner, so that the daemon, which may be
 * another user, can read what root writes. 0, or -errno with the reason. */
int state_enter(const char *dir, bool make, struct err *err) US_MUST_CHECK;

/* Keeps everybody else who calls this waiting, until *ret_fd is closed. In the directory. */
int state_lock(int *ret_fd, struct err *err) US_MUST_CHECK;

#endif
