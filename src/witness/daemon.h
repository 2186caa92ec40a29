/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WITNESS_DAEMON_H
#define US_WITNESS_DAEMON_H

#include "base/err.h"

/* Runs the witness in the working directory (witness/state.h) until SIGTERM or SIGINT, listening on
 * "ADDRESS:PORT". dir is what people call the directory. 0, a positive exit status, or -errno with
 * the reason. */
int daemon_run(const char *listen, const char *dir, struct err *err) US_MUST_CHECK;

#endif
