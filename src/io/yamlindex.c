/* SPDX-License-Identifier: Apache-2.0 */
#include "io/yamlindex.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/cleanup.h"

enum { DEPTH_MAX = 16 };

/* One open mapping or sequence. */
struct level {
    bool sequence;
    bool have_key;    /* mapping: the path ends in a key whose value comes next */
    unsigned entries; /* sequence: entries seen */
    size_t n_path;    /* length of the path of the mapping or sequence itself */
};

struct scan {
    const char *file;
    struct yamlindex *index;
    char path[YAML_PATH_MAX];
    struct level level[DEPTH_MAX];
    unsigned depth;
    unsigned documents;
};

static unsigned line_of(const yaml_event_t *event)
{
    return (unsigned)event->start_mark.line + 1;
}

static int fail(const struct scan *s, struct err *err, unsigned line, const char *what)
{
    return err_set(err, -EINVAL, "%s:%u: %s", s->file, line, what);
}

/* Cuts the path to `n` bytes and appends a key, or else an entry's number. False when it does not
 * fit. */
static bool path_set(struct scan *s, size_t n, const char *key, unsigned number)
{
    size_t room = sizeof(s->path) - n;
    int len;

    if (key)
        len = snprintf(s->path + n, room, "%s%s", n ? "." : "", key);
    else
        len = snprintf(s->path + n, room, "[%u]", number);
    return len >= 0 && (size_t)len < room;
}

static int record(struct scan *s, unsigned line, struct err *err)
{
    struct yamlindex *index = s->index;

    if (index->n == YAML_NODES_MAX)
        return fail(s, err, line, "too many values for a file of ours");
    index->node[index->n].line = line;
    memcpy(index->node[index->n].path, s->path, sizeof(s->path));
    index->n++;
    return 0;
}

static int take_key(struct scan *s, const yaml_event_t *event, struct err *err)
{
    struct level *top = &s->level[s->depth - 1];
    const char *key = (const char *)event->data.scalar.value;
    unsigned line = line_of(event);

    if (event->type != YAML_SCALAR_EVENT)
        return fail(s, err, line, "a key must be a plain word");
    if (memchr(key, '\0', event->data.scalar.length))
        return fail(s, err, line, "a NUL byte is not allowed");
    if (!path_set(s, top->n_path, key, 0))
        return fail(s, err, line, "this key is too long");
    if (yamlindex_line(s->index, s->path))
        return err_set(err, -EINVAL, "%s:%u: %s: given twice", s->file, line, s->path);
    top->have_key = true;
    return record(s, line, err);
}

/* A value is about to start: puts its place in a sequence into the path. */
static int enter_value(struct scan *s, const yaml_event_t *event, struct err *err)
{
    struct level *top;

    if (s->depth == 0)
        return 0;
    top = &s->level[s->depth - 1];
    if (!top->sequence) {
        top->have_key = false;
        return 0;
    }
    if (!path_set(s, top->n_path, NULL, top->entries++))
        return fail(s, err, line_of(event), "nested too deeply");
    return record(s, line_of(event), err);
}

static int open_level(struct scan *s, const yaml_event_t *event, bool sequence, struct err *err)
{
    int r = enter_value(s, event, err);

    if (r < 0)
        return r;
    if (s->depth == DEPTH_MAX)
        return fail(s, err, line_of(event), "nested too deeply");
    s->level[s->depth++] = (struct level){.sequence = sequence, .n_path = strlen(s->path)};
    return 0;
}

static void close_level(struct scan *s)
{
    s->depth--;
    s->path[s->depth ? s->level[s->depth - 1].n_path : 0] = '\0';
}

static int take_event(struct scan *s, const yaml_event_t *event, struct err *err)
{
    struct level *top = s->depth ? &s->level[s->depth - 1] : NULL;
    bool ends = event->type == YAML_MAPPING_END_EVENT || event->type == YAML_SEQUENCE_END_EVENT;

    if (event->type == YAML_ALIAS_EVENT)
        return fail(s, err, line_of(event), "aliases (*name) are not supported");
    if (top && !top->sequence && !top->have_key && !ends)
        return take_key(s, event, err);

    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (s->documents++)
            return fail(s, err, line_of(event), "one document per file only");
        return 0;
    case YAML_SCALAR_EVENT:
        if (memchr(event->data.scalar.value, '\0', event->data.scalar.length))
            return fail(s, err, line_of(event), "a NUL byte is not allowed");
        return enter_value(s, event, err);
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT:
        return open_level(s, event, event->type == YAML_SEQUENCE_START_EVENT, err);
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        close_level(s);
        return 0;
    default:
        return 0;
    }
}

static unsigned line_of_problem(const yaml_parser_t *parser, const char *text)
{
    unsigned line = 1;

    if (parser->error != YAML_READER_ERROR)
        return (unsigned)parser->problem_mark.line + 1;
    for (size_t i = 0; i < parser->problem_offset; i++)
        line += text[i] == '\n';
    return line;
}

static int parse(struct scan *s, yaml_parser_t *parser, const char *text, struct err *err)
{
    bool end = false;
    int r = 0;

    while (!end && r == 0) {
        yaml_event_t event;

        if (!yaml_parser_parse(parser, &event)) {
            if (parser->error == YAML_MEMORY_ERROR)
                return err_set(err, -ENOMEM, "%s: out of memory", s->file);
            return err_set(err, -EINVAL, "%s:%u: not valid YAML: %s", s->file,
                           line_of_problem(parser, text),
                           parser->problem ? parser->problem : "unreadable");
        }
        end = event.type == YAML_STREAM_END_EVENT;
        r = take_event(s, &event, err);
        yaml_event_delete(&event);
    }
    if (r == 0 && s->documents == 0)
        return err_set(err, -EINVAL, "%s: the file is empty", s->file);
    return r;
}

int yamlindex_new(const char *text, size_t n_text, const char *file, struct yamlindex **ret_index,
                  struct err *err)
{
    CLEANUP_FREE struct yamlindex *index = calloc(1, sizeof(*index));
    struct scan scan = {.file = file, .index = index};
    yaml_parser_t parser;
    int r;

    if (!index || !yaml_parser_initialize(&parser))
        return err_set(err, -ENOMEM, "%s: out of memory", file);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n_text);
    r = parse(&scan, &parser, text, err);
    yaml_parser_delete(&parser);
    if (r < 0)
        return r;
    *ret_index = take_ptr(index);
    return 0;
}

unsigned yamlindex_line(const struct yamlindex *index, const char *path)
{
    for (unsigned i = 0; i < index->n; i++) {
        if (strcmp(index->node[i].path, path) == 0)
            return index->node[i].line;
    }
    return 0;
}
