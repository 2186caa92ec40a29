/* SPDX-License-Identifier: Apache-2.0 */
#include "io/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"

/* Frames for the guest that the device holds while the guest stands still for a checkpoint: 4,096
 * are 40 ms of full frames at 1 Gbit/s, and at most 6 MiB. */
enum { TAP_QUEUE_FRAMES = 4096 };

void tap_name(const char *vm, unsigned nic, char ret_name[static IFNAMSIZ])
{
    uint32_t hash = 2166136261; /* FNV-1a; collisions only cost a clear error at start */
    int n = snprintf(ret_name, IFNAMSIZ, "us-%s-%u", vm, nic);

    if (n < IFNAMSIZ)
        return;
    for (const char *p = vm; *p; p++)
        hash = (hash ^ (uint8_t)*p) * 16777619;
    (void)snprintf(ret_name, IFNAMSIZ, "us-%.2s_%06x-%u", vm, hash >> 8, nic % 100);
}

/* Keeps the host from sending frames of its own (neighbour discovery, MLD) through the guest's NIC.
 * A kernel without IPv6 has no such file, and nothing to disable. */
static int disable_ipv6(const char *name, struct err *err)
{
    char path[64 + IFNAMSIZ];
    CLEANUP_FD int fd = -1;

    (void)snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd < 0 || write(fd, "1", 1) != 1)
        return err_sys(err, -errno, "disable IPv6 on the tap: %s", path);
    return 0;
}

/* A bridge without an address of its own takes the lowest of its ports', and would change it with
 * every VM that comes or goes; hence a high, locally administered first byte. */
static void host_side_mac(const uint8_t guest[6], struct ifreq *req)
{
    req->ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(req->ifr_hwaddr.sa_data, guest, 6);
    req->ifr_hwaddr.sa_data[0] = (char)(guest[0] == 0xfe ? 0xfa : 0xfe);
}

static int plug_in(int sock, const char *name, const struct tap_config *config, struct err *err)
{
    struct ifreq req = {0}, bridge = {0};

    if (!config->bridge[0] || strlen(config->bridge) >= IFNAMSIZ)
        return err_set(err, -EINVAL, "nics[%u].bridge is not the name of a network interface",
                       config->nic);
    memcpy(bridge.ifr_name, config->bridge, strlen(config->bridge));
    if (ioctl(sock, SIOCGIFMTU, &bridge))
        return errno == ENODEV
                   ? err_set(err, -ENODEV,
                             "bridge %s does not exist on this host: create it or name another in "
                             "nics[%u].bridge",
                             config->bridge, config->nic)
                   : err_sys(err, -errno, "MTU of bridge %s", config->bridge);

    memcpy(req.ifr_name, name, strlen(name));
    req.ifr_mtu = bridge.ifr_mtu;
    if (ioctl(sock, SIOCSIFMTU, &req))
        return err_sys(err, -errno, "set the MTU of %s to %d", name, req.ifr_mtu);
    req.ifr_qlen = TAP_QUEUE_FRAMES;
    if (ioctl(sock, SIOCSIFTXQLEN, &req))
        return err_sys(err, -errno, "set the queue of %s to %d frames", name, TAP_QUEUE_FRAMES);
    host_side_mac(config->mac, &req);
    if (ioctl(sock, SIOCSIFHWADDR, &req))
        return err_sys(err, -errno, "set the address of %s", name);

    bridge.ifr_ifindex = (int)if_nametoindex(name);
    if (FAULTY("net.tap-plug-in", ioctl(sock, SIOCBRADDIF, &bridge)))
        return errno == EOPNOTSUPP || errno == EINVAL
                   ? err_set(err, -errno, "%s is not a bridge: name one in nics[%u].bridge",
                             config->bridge, config->nic)
                   : err_sys(err, -errno, "add %s to bridge %s", name, config->bridge);

    if (ioctl(sock, SIOCGIFFLAGS, &req))
        return err_sys(err, -errno, "flags of %s", name);
    req.ifr_flags |= IFF_UP;
    if (ioctl(sock, SIOCSIFFLAGS, &req))
        return err_sys(err, -errno, "bring up %s", name);
    return 0;
}

int tap_open(const struct tap_config *config, int *ret_fd, struct err *err)
{
    struct ifreq req = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL};
    CLEANUP_FD int fd = -1;
    CLEANUP_FD int sock = -1;
    int rc;

    tap_name(config->vm, config->nic, req.ifr_name);
    fd = FAULTY("net.tap-open", open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (fd < 0)
        return err_sys(err, -errno, "/dev/net/tun");
    if (ioctl(fd, TUNSETIFF, &req))
        return errno == EBUSY ? err_set(err, -EBUSY, "tap device %s exists already", req.ifr_name)
                              : err_sys(err, -errno, "create tap device %s", req.ifr_name);
    sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0)
        return err_sys(err, -errno, "network configuration socket");
    rc = disable_ipv6(req.ifr_name, err);
    if (!rc)
        rc = plug_in(sock, req.ifr_name, config, err);
    if (rc)
        return rc;
    *ret_fd = take_fd(&fd);
    return 0;
}
