/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/domain.h"

#include <errno.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As in Linux 6.12; Debian 12's header is older. Source: Documentation/userspace-api/landlock.rst.
 */
struct ruleset {
    uint64_t fs;
    uint64_t net;    /* from version 4 of the interface on */
    uint64_t scoped; /* from version 6 on */
};

enum { SCOPE_SIGNAL = 1 << 1, VERSION_NET = 4, VERSION_SCOPED = 6 };

int domain_enter(void)
{
    /* A ruleset has to restrict something: no program of ours makes block devices. */
    struct ruleset rules = {.fs = LANDLOCK_ACCESS_FS_MAKE_BLOCK};
    size_t n_rules = sizeof(rules.fs);
    long version, fd;
    int e;

    version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 0)
        return errno == ENOSYS || errno == EOPNOTSUPP ? 0 : -1;
    if (version >= VERSION_NET)
        n_rules = sizeof(rules.fs) + sizeof(rules.net);
    if (version >= VERSION_SCOPED) {
        n_rules = sizeof(rules);
        rules.scoped = SCOPE_SIGNAL;
    }
    fd = syscall(SYS_landlock_create_ruleset, &rules, n_rules, 0);
    if (fd < 0)
        return -1;
    e = syscall(SYS_landlock_restrict_self, (int)fd, 0) < 0 ? errno : 0;
    close((int)fd);
    errno = e;
    return e ? -1 : 0;
}
