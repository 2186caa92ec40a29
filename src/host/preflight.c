/* SPDX-License-Identifier: Apache-2.0 */
#include "host/preflight.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/ethtool.h>
#include <linux/magic.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/vfs.h>

#include "base/cleanup.h"
#include "io/user.h"

#define MIB (UINT64_C(1) << 20)

/* Room that must be left for the hypervisor itself and the host. */
#define MEMORY_SPARE_BYTES (64 * MIB)

enum { SOCKET_NAME_SPARE = 24 }; /* bytes of the longest name of a socket in a VM's directory */

static void problem(struct preflight *p, const char *fmt, ...) US_PRINTF(2, 3);

static void problem(struct preflight *p, const char *fmt, ...)
{
    va_list ap;

    if (p->n == PREFLIGHT_PROBLEMS_MAX)
        return;
    va_start(ap, fmt);
    (void)vsnprintf(p->problem[p->n].text, sizeof(p->problem[p->n].text), fmt, ap);
    va_end(ap);
    p->n++;
}

static void check_standby(const struct vm_spec *spec, const struct host_config *config,
                          struct preflight *p)
{
    const char *standby = spec->protect.standby;

    if (!standby[0])
        return;
    if (strcmp(standby, config->name) == 0)
        problem(p, "protect: standby: %s is this host; a standby must be another one", standby);
    else if (!host_config_peer(config, standby))
        problem(p,
                "protect: standby: %s is not among the peers of this host (understudy peer list)",
                standby);
}

/* Asks the kernel which driver is behind an interface: right in any network namespace, where /sys
 * may show another one's interfaces. */
static bool is_bridge(int sock, const char *name)
{
    struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
    struct ifreq request = {.ifr_data = (char *)&info};

    memcpy(request.ifr_name, name, strlen(name));
    return ioctl(sock, SIOCETHTOOL, &request) == 0 && strcmp(info.driver, "bridge") == 0;
}

static void check_bridges(const struct vm_spec *spec, struct preflight *p)
{
    CLEANUP_FD int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    for (uint32_t i = 0; i < spec->n_nics; i++) {
        const char *bridge = spec->nics[i].bridge;

        if (if_nametoindex(bridge) == 0)
            problem(p, "nics[%u]: there is no bridge %s on this host (ip link add %s type bridge)",
                    i, bridge, bridge);
        else if (!is_bridge(sock, bridge))
            problem(p, "nics[%u]: %s is not a bridge", i, bridge);
    }
}

/* The file system that memory_dir is on, or will be on once it is made. */
static int memory_fs(const char *dir, struct statfs *ret_fs)
{
    char path[VM_PATH_MAX];

    (void)snprintf(path, sizeof(path), "%s", dir);
    while (statfs(path, ret_fs) < 0) {
        char *slash = strrchr(path, '/');

        if (errno != ENOENT || !slash)
            return -errno;
        slash[slash == path ? 1 : 0] = '\0';
    }
    return 0;
}

/* MemAvailable of /proc/meminfo in bytes; UINT64_MAX when it is not known. */
static uint64_t memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    uint64_t kib = UINT64_MAX / 1024;
    char line[128];

    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
            break;
    }
    if (f)
        (void)fclose(f); /* only read */
    return kib * 1024;
}

static void check_memory(const struct vm_spec *spec, const struct host_config *config,
                         struct preflight *p)
{
    const char *dir = config->memory_dir;
    uint64_t want = spec->memory_bytes, room, available = memory_available();
    struct statfs fs;
    int r = memory_fs(dir, &fs);

    if (r < 0) {
        problem(p, "memory: %s: %s", dir, strerror(-r));
        return;
    }
    if (fs.f_type != TMPFS_MAGIC && fs.f_type != HUGETLBFS_MAGIC) {
        problem(p, "memory: %s is not in a tmpfs; dirty pages can only be tracked there", dir);
        return;
    }
    room = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
    if (fs.f_blocks != 0 && room < want) /* a tmpfs without a limit has no blocks */
        problem(p, "memory: %s has room for %" PRIu64 " MiB, the VM needs %" PRIu64 " MiB", dir,
                room / MIB, want / MIB);
    if (fs.f_type == TMPFS_MAGIC && available < want + MEMORY_SPARE_BYTES)
        problem(p,
                "memory: %" PRIu64 " MiB are available on this host, the VM needs %" PRIu64
                " MiB and %" PRIu64 " MiB besides",
                available / MIB, want / MIB, (uint64_t)(MEMORY_SPARE_BYTES / MIB));
}

static void check_user(const struct host_config *config, struct preflight *p)
{
    const char *user = config->emulator_user;
    struct err err;
    uid_t uid;
    gid_t gid;
    int r = user_lookup(user, &uid, &gid, &err);

    if (r == -ENOENT)
        problem(p,
                "emulator_user: %s (useradd --system --no-create-home "
                "--shell /usr/sbin/nologin %s; or another one in understudy.yaml)",
                err.text, user);
    else if (r < 0)
        problem(p, "emulator_user: %s", err.text);
}

/* A peer's definition names files that this host is to open, make and overwrite. */
static void check_disks(const struct vm_spec *spec, const struct host_config *config,
                        struct preflight *p)
{
    struct err err;

    if (vm_disks_allowed(spec, config, &err) < 0)
        problem(p, "%s", err.text);
}

static void check_paths(const struct vm_spec *spec, const struct host_config *config,
                        struct preflight *p)
{
    size_t n = strlen(config->run_dir) + strlen("/vms/") + strlen(spec->name) + SOCKET_NAME_SPARE;

    if (n >= sizeof(((struct sockaddr_un *)0)->sun_path))
        problem(p, "name: too long for sockets in %s; choose a shorter name or run_dir",
                config->run_dir);
}

void preflight_check(struct vm_spec *spec, const struct host_config *config,
                     const struct hyp_ops *hyp, enum preflight_role role,
                     struct preflight *ret_preflight)
{
    struct err err;

    *ret_preflight = (struct preflight){0};
    if (role == PREFLIGHT_PRIMARY)
        check_standby(spec, config, ret_preflight);
    else
        check_disks(spec, config, ret_preflight);
    check_bridges(spec, ret_preflight);
    check_memory(spec, config, ret_preflight);
    check_paths(spec, config, ret_preflight);
    check_user(config, ret_preflight);
    if (hyp->preflight(spec, config->emulator, &err) < 0)
        problem(ret_preflight, "%s", err.text);
}

static int first_problem(struct vm_spec *spec, const struct host_config *config,
                         const struct hyp_ops *hyp, enum preflight_role role, struct err *err)
{
    struct preflight p;

    preflight_check(spec, config, hyp, role, &p);
    return p.n ? err_set(err, -EINVAL, "%s", p.problem[0].text) : 0;
}

int preflight_vm(struct vm_spec *spec, const struct host_config *config, const struct hyp_ops *hyp,
                 struct err *err)
{
    return first_problem(spec, config, hyp, PREFLIGHT_PRIMARY, err);
}

int preflight_standby(struct vm_spec *spec, const struct host_config *config,
                      const struct hyp_ops *hyp, struct err *err)
{
    return first_problem(spec, config, hyp, PREFLIGHT_STANDBY, err);
}
