/* SPDX-License-Identifier: Apache-2.0 */
#include "io/yamlfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "io/yamlindex.h"

struct yamlfile {
    const char *text; /* borrowed */
    size_t n_text;
    const char *file; /* borrowed */
    struct yamlindex *index;
};

/* What libcyaml said while it failed: the message, and the fields and entries around the place,
 * innermost first. */
struct complaint {
    char message[256];
    char step[16][YAML_PATH_MAX];
    unsigned n_steps;
    bool in_backtrace;
    bool no_key_yet; /* the innermost mapping has not read a key */
};

int yamlfile_open(const char *text, size_t n_text, const char *file, struct yamlfile **ret_yaml,
                  struct err *err)
{
    struct yamlindex *index;
    struct yamlfile *y;
    int r;

    if (n_text > YAML_TEXT_MAX)
        return err_set(err, -EINVAL, "%s: longer than %d KiB", file, YAML_TEXT_MAX / 1024);
    r = yamlindex_new(text, n_text, file, &index, err);
    if (r < 0)
        return r;
    y = malloc(sizeof(*y));
    if (!y) {
        free(index);
        return err_set(err, -ENOMEM, "%s: out of memory", file);
    }
    *y = (struct yamlfile){.text = text, .n_text = n_text, .file = file, .index = index};
    *ret_yaml = y;
    return 0;
}

void yamlfile_free(struct yamlfile *y)
{
    if (!y)
        return;
    free(y->index);
    free(y);
}

unsigned yamlfile_line(const struct yamlfile *y, const char *path)
{
    return path[0] ? yamlindex_line(y->index, path) : 1;
}

/* Shortens a path by its last step: "nics[0].mac", "nics[0]", "nics", "". */
static void path_up(char *path)
{
    size_t n = strlen(path);

    while (n > 0 && path[n - 1] != '.' && path[n - 1] != '[')
        n--;
    path[n > 0 ? n - 1 : 0] = '\0';
}

static int fail_text(const struct yamlfile *y, struct err *err, const char *path, const char *text)
{
    char near[YAML_PATH_MAX];

    (void)snprintf(near, sizeof(near), "%s", path);
    while (!yamlfile_line(y, near))
        path_up(near);
    return err_set(err, -EINVAL, "%s:%u: %s%s%s", y->file, yamlfile_line(y, near), path,
                   path[0] ? ": " : "", text);
}

int yamlfile_fail(const struct yamlfile *y, struct err *err, const char *path, const char *fmt, ...)
{
    char text[384];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return fail_text(y, err, path, text);
}

/* libcyaml's log: one line of message, then "Load: Backtrace:" and a line for each level. */
static void on_log(cyaml_log_t level, void *user, const char *fmt, va_list ap)
{
    struct complaint *c = user;
    char line[256];
    unsigned entry;

    (void)level;
    (void)vsnprintf(line, sizeof(line), fmt, ap);
    line[strcspn(line, "\n")] = '\0';
    if (strcmp(line, "Load: Backtrace:") == 0) {
        c->in_backtrace = true;
        return;
    }
    if (!c->in_backtrace) {
        bool prefixed = strncmp(line, "Load: ", 6) == 0;

        (void)snprintf(c->message, sizeof(c->message), "%s", line + (prefixed ? 6 : 0));
        return;
    }
    if (c->n_steps == sizeof(c->step) / sizeof(c->step[0]))
        return;
    if (strncmp(line, "  in mapping (", 14) == 0) {
        c->no_key_yet = c->n_steps == 0;
    } else if (sscanf(line, "  in mapping field '%127[^']'", c->step[c->n_steps]) == 1) {
        c->n_steps++;
    } else if (sscanf(line, "  in sequence entry '%u'", &entry) == 1) {
        /* It counts entries begun, so the one in work is one less; see also too many entries. */
        (void)snprintf(c->step[c->n_steps++], YAML_PATH_MAX, "[%u]", entry ? entry - 1 : 0);
    }
}

/* Joins the steps from `innermost` outwards into a path. */
static void complaint_path(const struct complaint *c, unsigned innermost, char path[YAML_PATH_MAX])
{
    size_t used = 0;

    path[0] = '\0';
    for (unsigned i = c->n_steps; i-- > innermost && used < YAML_PATH_MAX - 1;) {
        const char *dot = used && c->step[i][0] != '[' ? "." : "";
        int n = snprintf(path + used, YAML_PATH_MAX - used, "%s%s", dot, c->step[i]);

        used += n > 0 ? (size_t)n : 0;
    }
}

static const char *after(const char *message, const char *prefix)
{
    size_t n = strlen(prefix);

    return strncmp(message, prefix, n) == 0 ? message + n : NULL;
}

/* "Expecting STRING, got event: SEQUENCE_START" in words. */
static const char *expectation(const char *message)
{
    static const struct {
        const char *prefix, *text;
    } words[] = {
        {"Expecting MAPPING", "keys with values belong here (key: value)"},
        {"Expecting SEQUENCE", "a list belongs here"},
        {"Expecting UINT", "a number belongs here"},
        {"Expecting", "a single value belongs here"},
        {"Invalid", "not a number in range"},
    };

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (after(message, words[i].prefix))
            return words[i].text;
    }
    return message;
}

static int unknown_key(const struct yamlfile *y, const char *path, const char *key, struct err *err)
{
    char key_path[2 * YAML_PATH_MAX];
    const char *dot = path[0] ? "." : "";
    int n = snprintf(key_path, sizeof(key_path), "%s%s%s", path, dot, key);
    unsigned line = n < (int)sizeof(key_path) ? yamlfile_line(y, key_path) : 0;

    return err_set(err, -EINVAL, "%s:%u: %s%sunknown key \"%s\"", y->file,
                   line ? line : yamlfile_line(y, path), path, path[0] ? ": " : "", key);
}

/* Turns libcyaml's code, message and backtrace into one sentence. */
static int complain(const struct yamlfile *y, const struct complaint *c, cyaml_err_t code,
                    struct err *err)
{
    char path[YAML_PATH_MAX];
    const char *key, *text;

    complaint_path(c, 0, path);
    switch (code) {
    case CYAML_ERR_INVALID_KEY:
        key = after(c->message, "Unexpected key: ");
        return unknown_key(y, path, key ? key : "", err);
    case CYAML_ERR_MAPPING_FIELD_MISSING:
        /* The innermost step is the last key that was read, not the one that is missing. */
        complaint_path(c, c->no_key_yet ? 0 : 1, path);
        key = after(c->message, "Missing required mapping field: ");
        return yamlfile_fail(y, err, path, "\"%s\" is missing", key ? key : "a key");
    case CYAML_ERR_STRING_LENGTH_MIN:
        return yamlfile_fail(y, err, path, "has no value");
    case CYAML_ERR_STRING_LENGTH_MAX:
        text = after(c->message, "STRING length > ");
        return yamlfile_fail(y, err, path, "longer than %d characters", text ? atoi(text) : 0);
    case CYAML_ERR_SEQUENCE_ENTRIES_MAX:
        /* Here the innermost step is the last entry that was still allowed. */
        complaint_path(c, 1, path);
        text = after(c->message, "Excessive entries (");
        return yamlfile_fail(y, err, path, "more than %d entries", text ? atoi(text) : 0);
    case CYAML_ERR_INVALID_VALUE:
        return yamlfile_fail(y, err, path, "%s", expectation(c->message));
    default:
        return yamlfile_fail(y, err, path, "%s", c->message[0] ? c->message : cyaml_strerror(code));
    }
}

static cyaml_config_t config_for(struct complaint *c)
{
    return (cyaml_config_t){
        .log_fn = c ? on_log : NULL,
        .log_ctx = c,
        .mem_fn = cyaml_mem,
        .log_level = CYAML_LOG_ERROR,
        .flags = CYAML_CFG_NO_ALIAS,
    };
}

int yamlfile_read(const struct yamlfile *y, const cyaml_schema_value_t *schema, void **ret_data,
                  struct err *err)
{
    struct complaint complaint = {0};
    cyaml_config_t config = config_for(&complaint);
    cyaml_data_t *data = NULL;
    cyaml_err_t code;

    code = cyaml_load_data((const uint8_t *)y->text, y->n_text, &config, schema, &data, NULL);
    if (code == CYAML_ERR_OOM)
        return err_set(err, -ENOMEM, "%s: out of memory", y->file);
    if (code != CYAML_OK)
        return complain(y, &complaint, code, err);
    if (!data)
        return err_set(err, -EINVAL, "%s: the file is empty", y->file);
    *ret_data = data;
    return 0;
}

void yamlfile_data_free(const cyaml_schema_value_t *schema, void *data)
{
    cyaml_config_t config = config_for(NULL);

    if (data)
        (void)cyaml_free(&config, schema, data, 0); /* fails for a bad schema only */
}

int yamlfile_slurp(const char *path, char **ret_text, size_t *ret_n, struct err *err)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    CLEANUP_FREE char *text = NULL;
    struct stat st;
    size_t n = 0;

    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, -errno, "%s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "%s: not a regular file", path);
    text = malloc(YAML_TEXT_MAX + 2);
    if (!text)
        return err_set(err, -ENOMEM, "%s: out of memory", path);
    for (;;) {
        ssize_t got = read(fd, text + n, YAML_TEXT_MAX + 1 - n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_sys(err, -errno, "%s", path);
        if (got == 0)
            break;
        n += (size_t)got; /* one byte over the limit is enough for yamlfile_open() to refuse it */
        if (n > YAML_TEXT_MAX)
            return err_set(err, -EFBIG, "%s: longer than %d KiB", path, YAML_TEXT_MAX / 1024);
    }
    text[n] = '\0';
    *ret_n = n;
    *ret_text = take_ptr(text);
    return 0;
}
