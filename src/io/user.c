/* SPDX-License-Identifier: Apache-2.0 */
#include "io/user.h"

#include <errno.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reads one number of "UID:GID", up to `end`; -1 stands for "no change" in system calls, so it is
 * nobody's. */
static bool parse_id(const char *text, char end, const char **ret_rest, unsigned int *ret_id)
{
    unsigned long value;
    char *rest;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    value = strtoul(text, &rest, 10);
    if (errno || *rest != end || value >= 0xffffffff)
        return false;
    *ret_rest = rest + 1;
    *ret_id = (unsigned int)value;
    return true;
}

int user_lookup(const char *text, uid_t *ret_uid, gid_t *ret_gid, struct err *err)
{
    struct passwd entry, *found = NULL;
    unsigned int uid, gid;
    char buffer[16384];
    const char *rest;
    int e;

    if (parse_id(text, ':', &rest, &uid) && parse_id(rest, '\0', &rest, &gid)) {
        *ret_uid = uid;
        *ret_gid = gid;
        return 0;
    }
    e = getpwnam_r(text, &entry, buffer, sizeof(buffer), &found);
    if (!found && e != 0 && e != ENOENT)
        return err_sys(err, -e, "look for the user \"%s\"", text);
    if (!found)
        return err_set(err, -ENOENT, "there is no user \"%s\" on this host", text);
    *ret_uid = entry.pw_uid;
    *ret_gid = entry.pw_gid;
    return 0;
}
