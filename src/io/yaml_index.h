/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_YAML_INDEX_H
#define US_IO_YAML_INDEX_H

#include <stddef.h>

#include "base/err.h"
#include "io/yaml_file.h"

/* Where each value of a YAML text stands; io/yaml_file.h's first pass. */

enum { YAML_NODES_MAX = 512 };

struct yaml_index {
    unsigned n;
    struct {
        unsigned line; /* from 1 */
        char path[YAML_PATH_MAX];
    } node[YAML_NODES_MAX];
};

/* The caller frees *ret_index with free(). -EINVAL with file and line, or -ENOMEM. */
int yaml_index_new(const char *text, size_t n_text, const char *file, struct yaml_index **ret_index,
                   struct err *err) US_MUST_CHECK;

/* The line of a path, 0 when it is not there. */
unsigned yaml_index_line(const struct yaml_index *index, const char *path);

#endif
