/* SPDX-License-Identifier: Apache-2.0 */
#include "lan.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../unit/unit.h"

/* Room for what a test lets pass before it looks. */
enum { WIRE_FRAMES = 65536, SNIFFER_BYTES = 256 << 20 };

static struct {
    int sock, wire_fd, sniffer_fd;
    int not_ports[3]; /* devices that are not the code's under test */
} lan;

static struct ifreq interface(const char *name)
{
    struct ifreq req = {0};

    memcpy(req.ifr_name, name, strlen(name));
    return req;
}

static void bring_up(const char *name)
{
    struct ifreq req = interface(name);

    assert_int_equal(ioctl(lan.sock, SIOCGIFFLAGS, &req), 0);
    req.ifr_flags |= IFF_UP;
    assert_int_equal(ioctl(lan.sock, SIOCSIFFLAGS, &req), 0);
}

static void set(const char *path, char value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return; /* this kernel has no such thing */
    assert_int_equal(write(fd, &value, 1), 1);
    close(fd);
}

/* So that whatever passes comes from the code under test: no IPv6, and no IGMP reports, which a
 * bridge sends for the group of all snoopers (RFC 4286). */
static void silence_host(void)
{
    set("/proc/sys/net/ipv6/conf/all/disable_ipv6", '1');
    set("/proc/sys/net/ipv6/conf/default/disable_ipv6", '1');
    set("/proc/sys/net/ipv4/igmp_link_local_mcast_reports", '0');
}

static void open_wire(int mtu)
{
    struct ifreq wire = interface("wire");

    lan.wire_fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    wire.ifr_flags = IFF_TAP | IFF_NO_PI;
    assert_int_equal(ioctl(lan.wire_fd, TUNSETIFF, &wire), 0);
    wire.ifr_mtu = mtu;
    assert_int_equal(ioctl(lan.sock, SIOCSIFMTU, &wire), 0);
    wire.ifr_qlen = WIRE_FRAMES;
    assert_int_equal(ioctl(lan.sock, SIOCSIFTXQLEN, &wire), 0);
}

/* One socket for all ports: it keeps the order across them. */
static void open_sniffer(void)
{
    int on = 1, bytes = SNIFFER_BYTES;

    lan.sniffer_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(ETH_P_ALL));
    assert_true(lan.sniffer_fd >= 0);
    assert_int_equal(
        setsockopt(lan.sniffer_fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)), 0);
    assert_int_equal(setsockopt(lan.sniffer_fd, SOL_PACKET, PACKET_AUXDATA, &on, sizeof(on)), 0);
    assert_int_equal(setsockopt(lan.sniffer_fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)),
                     0);
}

void lan_open(int mtu)
{
    struct ifreq bridge = interface("br0");

    assert_int_equal(unshare(CLONE_NEWNET), 0);
    silence_host();
    lan.sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(ioctl(lan.sock, SIOCBRADDBR, "br0"), 0);
    open_wire(mtu);
    lan.not_ports[0] = (int)if_nametoindex("lo");
    lan.not_ports[1] = (int)if_nametoindex("br0");
    lan.not_ports[2] = bridge.ifr_ifindex = (int)if_nametoindex("wire");
    assert_int_equal(ioctl(lan.sock, SIOCBRADDIF, &bridge), 0);
    bring_up("wire");
    bring_up("br0");
    open_sniffer();
}

void lan_close(void)
{
    close(lan.sniffer_fd);
    close(lan.wire_fd);
    close(lan.sock);
}

/* The kernel takes the outer VLAN tag off a frame before we see it, and tells us about it. */
static size_t put_back_tag(struct msghdr *msg, uint8_t *frame, size_t n)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        struct tpacket_auxdata aux;
        uint16_t tag[2];

        if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA)
            continue;
        memcpy(&aux, CMSG_DATA(c), sizeof(aux));
        if (!(aux.tp_status & TP_STATUS_VLAN_VALID))
            continue;
        tag[0] = htons(aux.tp_vlan_tpid);
        tag[1] = htons(aux.tp_vlan_tci);
        memmove(frame + 16, frame + 12, n - 12);
        memcpy(frame + 12, tag, 4);
        return n + 4;
    }
    return n;
}

static size_t read_sniffer(uint8_t *frame, unsigned *ret_port)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(struct tpacket_auxdata))];
    } control;
    struct sockaddr_ll from;
    struct iovec iov = {.iov_base = frame, .iov_len = LAN_FRAME_MAX - 4};

    for (;;) {
        struct msghdr msg = {.msg_name = &from,
                             .msg_namelen = sizeof(from),
                             .msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
        ssize_t n = recvmsg(lan.sniffer_fd, &msg, 0);
        bool port = true;

        if (n <= 0)
            return 0;
        for (size_t i = 0; i < N_OF(lan.not_ports); i++)
            port = port && from.sll_ifindex != lan.not_ports[i];
        if (!port)
            continue;
        *ret_port = (unsigned)from.sll_ifindex;
        return put_back_tag(&msg, frame, (size_t)n);
    }
}

size_t lan_read(enum lan_place place, int wait_ms, uint8_t frame[static LAN_FRAME_MAX],
                unsigned *ret_port)
{
    struct pollfd p = {.fd = place == LAN_WIRE ? lan.wire_fd : lan.sniffer_fd, .events = POLLIN};
    unsigned port = 0;
    ssize_t n;

    do {
        if (place == LAN_PORTS)
            n = (ssize_t)read_sniffer(frame, &port);
        else
            n = read(lan.wire_fd, frame, LAN_FRAME_MAX);
    } while (n <= 0 && poll(&p, 1, wait_ms) == 1);
    if (ret_port)
        *ret_port = port;
    return n > 0 ? (size_t)n : 0;
}

void lan_write(const uint8_t *frame, size_t n_bytes)
{
    assert_int_equal(write(lan.wire_fd, frame, n_bytes), n_bytes);
}
