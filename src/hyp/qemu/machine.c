/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/machine.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "io/clock.h"
#include "hyp/qemu/spawn.h"

enum {
    HELP_BYTES = 65536,
    NAME_MAX_BYTES = 64,
    VERSION_MIN = 702, /* the first with -netdev dgram */
};

#define ANSWER_TIMEOUT_NS (5 * NS_PER_S)

/* A line of the list: "pc   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)". */
struct machine_line {
    char name[NAME_MAX_BYTES];
    char alias_of[NAME_MAX_BYTES]; /* "" = none */
    bool is_default;
};

static bool copy_name(char *to, const char *from, size_t n)
{
    if (n == 0 || n >= NAME_MAX_BYTES)
        return false;
    memcpy(to, from, n);
    to[n] = 0;
    return true;
}

/* Parses the line that starts at `text`; false when it describes no machine. */
static bool parse_line(const char *text, size_t n, struct machine_line *ret)
{
    static const char alias[] = "(alias of ", dflt[] = "(default)";
    const char *found = memmem(text, n, alias, sizeof(alias) - 1);

    *ret = (struct machine_line){0};
    if (n == 0 || !memchr(text, ' ', n) || !copy_name(ret->name, text, strcspn(text, " \n")))
        return false;
    if (found) {
        found += sizeof(alias) - 1;
        if (!copy_name(ret->alias_of, found, strcspn(found, ")\n")))
            return false;
    }
    ret->is_default = memmem(text, n, dflt, sizeof(dflt) - 1);
    return true;
}

/* Says whether a name ends in "-MAJOR.MINOR" or "-MAJOR.MINOR.MICRO". */
static bool is_versioned(const char *name)
{
    const char *dash = strrchr(name, '-');

    return dash && isdigit((unsigned char)dash[1]) && strchr(dash, '.') &&
           dash[1 + strspn(dash + 1, "0123456789.")] == 0;
}

int qemu_find_machine(const char *help, const char *asked, char *ret_name, size_t n,
                      struct err *err)
{
    struct machine_line line;
    const char *name = NULL;

    for (const char *text = help; *text && !name; text += strcspn(text, "\n") + 1) {
        size_t length = strcspn(text, "\n");

        if (parse_line(text, length, &line)) {
            if (*asked ? strcmp(line.name, asked) == 0 : line.is_default)
                name = line.alias_of[0] ? line.alias_of : line.name;
        }
        if (text[length] == 0)
            break;
    }
    if (!name)
        return *asked ? err_set(err, -ENOENT,
                                "machine type %s is unknown to this emulator "
                                "(-machine help lists those it has)",
                                asked)
                      : err_set(err, -ENOENT, "the emulator has no default machine type");
    if (!is_versioned(name))
        return err_set(err, -EINVAL,
                       "machine type %s has no version, so another QEMU may build "
                       "another machine: use a versioned one",
                       name);
    if (snprintf(ret_name, n, "%s", name) >= (int)n)
        return err_set(err, -ENAMETOOLONG, "machine type %s: overlong", name);
    return 0;
}

int qemu_resolve_machine(const char *emulator, const char *asked, char *ret_name, size_t n,
                         struct err *err)
{
    char program[] = "-machine", what[] = "help";
    char *argv[] = {(char *)(uintptr_t)emulator, program, what, NULL};
    char help[HELP_BYTES];
    int r = spawn_capture(argv, ANSWER_TIMEOUT_NS, help, sizeof(help), err);

    return r < 0 ? r : qemu_find_machine(help, asked, ret_name, n, err);
}

int qemu_parse_version(const char *text, int *ret_version)
{
    int major_no, minor_no;

    if (sscanf(text, "QEMU emulator version %d.%d", &major_no, &minor_no) != 2)
        return -EINVAL;
    if (major_no < 0 || major_no > 999 || minor_no < 0 || minor_no > 99)
        return -EINVAL;
    *ret_version = major_no * 100 + minor_no;
    return 0;
}

int qemu_check_version(const char *emulator, struct err *err)
{
    char option[] = "-version";
    char *argv[] = {(char *)(uintptr_t)emulator, option, NULL};
    char text[1024];
    int version;
    int r = spawn_capture(argv, ANSWER_TIMEOUT_NS, text, sizeof(text), err);

    if (r < 0) {
        err_prefix(err, "emulator");
        return r;
    }
    if (qemu_parse_version(text, &version) < 0)
        return err_set(err, -EINVAL, "%s is not QEMU", emulator);
    if (version < VERSION_MIN)
        return err_set(err, -EINVAL, "%s is QEMU %d.%d; %d.%d or newer is needed", emulator,
                       version / 100, version % 100, VERSION_MIN / 100, VERSION_MIN % 100);
    return 0;
}
