/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_YAML_FILE_H
#define US_IO_YAML_FILE_H

#include <cyaml/cyaml.h>
#include <stddef.h>

#include "base/err.h"

/* Reads a YAML text by a libcyaml schema, with errors that a person can act on:
 * `web.yaml:12: nics[0]: unknown key "macc"`.
 *
 * libcyaml says what is wrong, but reports the line of the value before an unknown key, and it
 * cannot know rules that span several keys. So the text is parsed twice: first by libyaml into an
 * index from path ("nics[0].mac") to line, which also refuses what no file of ours needs (aliases,
 * several documents, keys given twice, NUL bytes); then by libcyaml into the caller's structure.
 * Whoever checks values afterwards reports them with yaml_fail(), by path. */

enum {
    YAML_TEXT_MAX = 256 * 1024, /* bytes; a longer text is refused */
    YAML_PATH_MAX = 128,        /* bytes of a path with its NUL */
};

struct yaml;

/* Indexes a text. `file` is the name used in errors. Both are borrowed for the life of *ret_yaml,
 * which the caller frees with yaml_free(). -EINVAL for a text that is not ours to read, -ENOMEM. */
int yaml_open(const char *text, size_t n_text, const char *file, struct yaml **ret_yaml,
              struct err *err) US_MUST_CHECK;

void yaml_free(struct yaml *y); /* NULL is allowed */

/* The line (from 1) on which the value at `path` is introduced; 0 when the text has no such path.
 * Path "" is the whole document. */
unsigned yaml_line(const struct yaml *y, const char *path);

/* Fills a structure by a schema whose top is a mapping by pointer. The caller frees *ret_data with
 * yaml_data_free(). -EINVAL with file, line, path and what is wrong; -ENOMEM. */
int yaml_read(const struct yaml *y, const cyaml_schema_value_t *schema, void **ret_data,
              struct err *err) US_MUST_CHECK;

void yaml_data_free(const cyaml_schema_value_t *schema, void *data); /* NULL data is allowed */

/* Says that the value at `path` is wrong: "FILE:LINE: PATH: TEXT"; where there is no such path, the
 * line of the nearest one around it. Returns -EINVAL. */
int yaml_fail(const struct yaml *y, struct err *err, const char *path, const char *fmt, ...)
    US_PRINTF(4, 5);

/* Reads a whole file of at most YAML_TEXT_MAX bytes. The caller frees *ret_text (NUL-terminated).
 * -errno with the file's name and the reason. Blocks on the disk. */
int yaml_slurp(const char *path, char **ret_text, size_t *ret_n, struct err *err) US_MUST_CHECK;

#endif
