/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_YAMLFILE_H
#define US_IO_YAMLFILE_H

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
 * Whoever checks values afterwards reports them with yamlfile_fail(), by path.
 *
 * The prefix is yamlfile_ because libyaml exports its own yaml_free() and the like: one of ours by
 * that name would be called from inside libyaml. */

enum {
    YAML_TEXT_MAX = 256 * 1024, /* bytes; a longer text is refused */
    YAML_PATH_MAX = 128,        /* bytes of a path with its NUL */
};

struct yamlfile;

/* Indexes a text. `file` is the name used in errors. Both are borrowed for the life of *ret_yaml,
 * which the caller frees with yamlfile_free(). -EINVAL for a text that is not ours to read,
 * -ENOMEM. */
int yamlfile_open(const char *text, size_t n_text, const char *file, struct yamlfile **ret_yaml,
                  struct err *err) US_MUST_CHECK;

void yamlfile_free(struct yamlfile *y); /* NULL is allowed */

/* The line (from 1) on which the value at `path` is introduced; 0 when the text has no such path.
 * Path "" is the whole document. */
unsigned yamlfile_line(const struct yamlfile *y, const char *path);

/* Fills a structure by a schema whose top is a mapping by pointer. The caller frees *ret_data with
 * yamlfile_data_free(). -EINVAL with file, line, path and what is wrong; -ENOMEM. */
int yamlfile_read(const struct yamlfile *y, const cyaml_schema_value_t *schema, void **ret_data,
                  struct err *err) US_MUST_CHECK;

void yamlfile_data_free(const cyaml_schema_value_t *schema, void *data); /* NULL data is allowed */

/* Says that the value at `path` is wrong: "FILE:LINE: PATH: TEXT"; where there is no such path, the
 * line of the nearest one around it. Returns -EINVAL. */
int yamlfile_fail(const struct yamlfile *y, struct err *err, const char *path, const char *fmt, ...)
    US_PRINTF(4, 5);

/* Reads a whole file of at most YAML_TEXT_MAX bytes. The caller frees *ret_text (NUL-terminated).
 * -errno with the file's name and the reason. Blocks on the disk. */
int yamlfile_slurp(const char *path, char **ret_text, size_t *ret_n, struct err *err) US_MUST_CHECK;

#endif
