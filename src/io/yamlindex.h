/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_YAMLINDEX_H
#define US_IO_YAMLINDEX_H

#include <stddef.h>

#include "base/err.h"
#include "io/yamlfile.h"

/* Where each value of a YAML text stands; io/yamlfile.h's first pass. */

enum { YAML_NODES_MAX = 512 };

struct yamlindex {
    unsigned n;
    struct {
        unsigned line; /* from 1 */
        char path[YAML_PATH_MAX];
    } node[YAML_NODES_MAX];
};

/* The caller frees *ret_index with free(). -EINVAL with file and line, or -ENOMEM. */
int yamlindex_new(const char *text, size_t n_text, const char *file, struct yamlindex **ret_index,
                  struct err *err) US_MUST_CHECK;

/* The line of a path, 0 when it is not there. */
unsigned yamlindex_line(const struct yamlindex *index, const char *path);

#endif
