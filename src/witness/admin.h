/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WITNESS_ADMIN_H
#define US_WITNESS_ADMIN_H

#include <stdbool.h>

#include "base/err.h"

/* The sub-commands of understudy-witness: its key, and whom it talks to. They print to standard
 * output, work on the files of the working directory (witness/state.h) and block on the disk. All
 * return 0, or -errno with the reason. */

enum { ADMIN_ARGS_MAX = 2 };

struct admin_args {
    const char *arg[ADMIN_ARGS_MAX];
    int n;
    const char *group; /* NULL: HOSTS_GROUP_DEFAULT */
    bool json;
};

struct admin_command {
    const char *name;
    const char *args; /* for people */
    const char *doc;
    int args_min, args_max;
    int (*run)(const struct admin_args *args, struct err *err);
};

extern const struct admin_command admin_commands[]; /* ends with a NULL name */

#endif
