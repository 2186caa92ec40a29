/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../unit/unit.h"
#include "base/cleanup.h"
#include "io/announce.h"
#include "io/netport.h"

/* A NIC port on a real bridge, in a network namespace of this process alone:
 *
 *   hyp.sock (the test plays the hypervisor) -- netport -- us-web-0 -- br0 -- wire (a second tap,
 *   whose descriptor the test holds: what it reads there has left the host)
 */

enum { WAIT_MS = 10000, MTU = 1400 };

static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

static struct {
    char dir[64], hyp_path[100], guard_path[100];
    int sock, wire_fd, hyp_fd;
    struct netport *port;
} net;

static struct ifreq interface(const char *name)
{
    struct ifreq req = {0};

    memcpy(req.ifr_name, name, strlen(name));
    return req;
}

static void bring_up(const char *name)
{
    struct ifreq req = interface(name);

    assert_int_equal(ioctl(net.sock, SIOCGIFFLAGS, &req), 0);
    req.ifr_flags |= IFF_UP;
    assert_int_equal(ioctl(net.sock, SIOCSIFFLAGS, &req), 0);
}

/* So that whatever arrives at the wire comes from the port. */
static void silence(const char *name)
{
    char path[100];
    int fd;

    (void)snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return; /* no IPv6 here */
    assert_int_equal(write(fd, "1", 1), 1);
    close(fd);
}

static int make_network(void **state)
{
    struct ifreq wire = interface("wire"), bridge = interface("br0");

    (void)snprintf(net.dir, sizeof(net.dir), "/tmp/netport.XXXXXX");
    assert_non_null(mkdtemp(net.dir));
    (void)snprintf(net.hyp_path, sizeof(net.hyp_path), "%s/hyp.sock", net.dir);
    (void)snprintf(net.guard_path, sizeof(net.guard_path), "%s/guard.sock", net.dir);
    assert_int_equal(unshare(CLONE_NEWNET), 0);
    net.hyp_fd = -1;
    net.sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(ioctl(net.sock, SIOCBRADDBR, "br0"), 0);
    silence("br0");
    net.wire_fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    wire.ifr_flags = IFF_TAP | IFF_NO_PI;
    assert_int_equal(ioctl(net.wire_fd, TUNSETIFF, &wire), 0);
    silence("wire");
    wire.ifr_mtu = MTU;
    assert_int_equal(ioctl(net.sock, SIOCSIFMTU, &wire), 0);
    /* A bridge takes the lowest address of its ports, which is to be this one: a random one might be
     * above fe:54:... */
    wire.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(wire.ifr_hwaddr.sa_data, (const uint8_t[]){2, 0, 0, 0, 0, 1}, 6);
    assert_int_equal(ioctl(net.sock, SIOCSIFHWADDR, &wire), 0);
    bridge.ifr_ifindex = (int)if_nametoindex("wire");
    assert_int_equal(ioctl(net.sock, SIOCBRADDIF, &bridge), 0);
    bring_up("wire");
    bring_up("br0");
    return 0;
}

static int remove_network(void **state)
{
    close(net.wire_fd);
    close(net.sock);
    return rmdir(net.dir); /* fails when a test leaves something behind */
}

static void hypervisor_starts(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    memcpy(address.sun_path, net.hyp_path, strlen(net.hyp_path));
    (void)unlink(net.hyp_path);
    net.hyp_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(net.hyp_fd, (struct sockaddr *)&address, sizeof(address)), 0);
}

static void hypervisor_dies(void)
{
    close(net.hyp_fd);
    net.hyp_fd = -1;
}

static struct netport_config config(void)
{
    return (struct netport_config){.vm = "web",
                                   .bridge = "br0",
                                   .mac = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56},
                                   .hyp_path = net.hyp_path,
                                   .guard_path = net.guard_path};
}

static void swallow_wire(void)
{
    uint8_t frame[70000];

    while (read(net.wire_fd, frame, sizeof(frame)) > 0)
        ;
}

static int open_port(void **state)
{
    struct netport_config c = config();
    struct err err = {""};
    int rc = netport_open(&c, &net.port, &err);

    if (rc)
        print_error("%s\n", err.text);
    hypervisor_starts();
    swallow_wire();
    return rc;
}

static int close_port(void **state)
{
    netport_close(net.port);
    net.port = NULL;
    if (net.hyp_fd >= 0)
        hypervisor_dies();
    (void)unlink(net.hyp_path);
    return access(net.guard_path, F_OK) == 0; /* must be gone */
}

static struct netport_stats stats(void)
{
    struct netport_stats s;

    netport_stats_get(net.port, &s);
    return s;
}

static void wait_for(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};

    assert_int_equal(poll(&p, 1, WAIT_MS), 1);
    assert_int_equal(p.revents & POLLERR, 0);
}

static bool ready(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};

    return poll(&p, 1, 0) == 1;
}

/* A frame from somebody to everybody, told apart by a number. */
static size_t make_frame(uint8_t *frame, const uint8_t from[6], uint32_t number, size_t n)
{
    memset(frame, 0xff, 6);
    memcpy(frame + 6, from, 6);
    frame[12] = 0x88;
    frame[13] = 0xb5; /* for local experiments (IEEE 802) */
    memset(frame + 14, (int)number, n - 14);
    memcpy(frame + 14, &number, sizeof(number));
    return n;
}

static void send_from_hypervisor(const void *bytes, size_t n)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    memcpy(address.sun_path, net.guard_path, strlen(net.guard_path));
    assert_int_equal(sendto(net.hyp_fd, bytes, n, 0, (struct sockaddr *)&address, sizeof(address)),
                     n);
}

struct seen {
    unsigned n;
    uint32_t n_bytes, first, last;
};

static void on_frame(void *user, const uint8_t *bytes, uint32_t n_bytes)
{
    struct seen *seen = user;
    uint32_t number = 0;

    if (n_bytes >= 18)
        memcpy(&number, bytes + 14, sizeof(number));
    if (seen->n++ == 0)
        seen->first = number;
    else if (number != seen->last + 1)
        fail_msg("frame %u after frame %u", number, seen->last);
    seen->last = number;
    seen->n_bytes = n_bytes;
}

static void emit(const uint8_t *bytes, size_t n)
{
    assert_int_equal(netport_emit(net.port, bytes, (uint32_t)n), 0);
}

static void assert_on_wire(const uint8_t *expected, size_t n)
{
    uint8_t frame[70000];

    wait_for(net.wire_fd, POLLIN);
    assert_int_equal(read(net.wire_fd, frame, sizeof(frame)), n);
    assert_memory_equal(frame, expected, n);
}

static void open_fails_with(struct netport_config c, int code, const char *text)
{
    struct netport *port = NULL;
    struct err err = {""};

    assert_int_equal(netport_open(&c, &port, &err), code);
    assert_null(port);
    assert_string_equal(err.text, text);
    assert_int_equal(if_nametoindex("us-web-0"), 0);
    assert_int_not_equal(access(net.guard_path, F_OK), 0);
}

static void bad_configurations(void **state)
{
    struct netport_config c = config();

    c.bridge = "br7";
    open_fails_with(c, -ENODEV,
                    "bridge br7 does not exist on this host: create it or name another in "
                    "nics[0].bridge");
    c.bridge = "wire";
    open_fails_with(c, -EOPNOTSUPP, "wire is not a bridge: name one in nics[0].bridge");
    c.bridge = "";
    open_fails_with(c, -EINVAL, "nics[0].bridge is not the name of a network interface");
    c.bridge = "a-name-that-is-too-long";
    open_fails_with(c, -EINVAL, "nics[0].bridge is not the name of a network interface");
    c = config();
    c.guard_path = "/nonexistent/guard.sock";
    open_fails_with(c, -ENOENT, "bind /nonexistent/guard.sock: No such file or directory");
    c.guard_path = "";
    open_fails_with(c, -ENAMETOOLONG, "socket path \"\" is not 1 to 107 bytes long");
}

static void name_in_use(void **state)
{
    struct netport_config c = config();
    struct netport *port;
    struct err err = {""};

    assert_int_equal(netport_open(&c, &port, &err), -EBUSY);
    assert_string_equal(err.text, "tap device us-web-0 exists already");
}

static void device_suits_the_bridge(void **state)
{
    static const uint8_t expected[6] = {0xfe, 0x54, 0x00, 0x12, 0x34, 0x56};
    struct ifreq tap = interface("us-web-0"), wire = interface("wire"), bridge = interface("br0");
    char flag = '?';
    int fd;

    assert_int_equal(ioctl(net.sock, SIOCGIFMTU, &tap), 0);
    assert_int_equal(tap.ifr_mtu, MTU);
    assert_int_equal(ioctl(net.sock, SIOCGIFTXQLEN, &tap), 0);
    assert_int_equal(tap.ifr_qlen, 4096);
    assert_int_equal(ioctl(net.sock, SIOCGIFFLAGS, &tap), 0);
    assert_true(tap.ifr_flags & IFF_UP);
    assert_int_equal(ioctl(net.sock, SIOCGIFHWADDR, &tap), 0);
    assert_memory_equal(tap.ifr_hwaddr.sa_data, expected, 6);
    /* The bridge has kept the address that it had from its first port. */
    assert_int_equal(ioctl(net.sock, SIOCGIFHWADDR, &bridge), 0);
    assert_int_equal(ioctl(net.sock, SIOCGIFHWADDR, &wire), 0);
    assert_memory_equal(bridge.ifr_hwaddr.sa_data, wire.ifr_hwaddr.sa_data, 6);
    fd = open("/proc/sys/net/ipv6/conf/us-web-0/disable_ipv6", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        assert_int_equal(read(fd, &flag, 1), 1);
        assert_int_equal(flag, '1');
        close(fd);
    }
}

static void device_ends_with_the_port(void **state)
{
    assert_int_not_equal(if_nametoindex("us-web-0"), 0);
    netport_close(net.port);
    net.port = NULL;
    assert_int_equal(if_nametoindex("us-web-0"), 0);
}

static void guest_frames_are_handed_over(void **state)
{
    static uint8_t frame[65536];
    struct seen seen = {0};
    int n;

    send_from_hypervisor(frame, 0);
    send_from_hypervisor(frame, 13);
    send_from_hypervisor(frame, sizeof(frame));
    send_from_hypervisor(frame, make_frame(frame, mac, 7, 65535));
    send_from_hypervisor(frame, make_frame(frame, mac, 8, 18));
    wait_for(netport_guest_fd(net.port), netport_guest_events(net.port));
    n = netport_read_guest(net.port, NETPORT_BATCH, on_frame, &seen);
    assert_int_equal(n, 5);
    assert_int_equal(seen.n, 2);
    assert_int_equal(seen.first, 7);
    assert_int_equal(seen.n_bytes, 18);
    assert_int_equal(stats().guest_runt, 2);
    assert_int_equal(stats().guest_giant, 1);
    assert_int_equal(stats().guest_frames, 2);
    assert_int_equal(stats().guest_bytes, 65535 + 18);
    assert_int_equal(netport_read_guest(net.port, NETPORT_BATCH, on_frame, &seen), 0);
}

/* Once the port knows the hypervisor, 10 frames are no longer all that it may send in one go; each
 * call takes as many as it is told; and nobody else can send. */
static void bursts_and_strangers(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint8_t frame[100];
    struct seen seen = {0};
    int stranger;

    send_from_hypervisor(frame, make_frame(frame, mac, 1, 60));
    assert_int_equal(netport_read_guest(net.port, 1, on_frame, &seen), 1);
    for (uint32_t i = 2; i <= 150; i++)
        send_from_hypervisor(frame, make_frame(frame, mac, i, 60));
    assert_int_equal(netport_read_guest(net.port, 0, on_frame, &seen), 0);
    assert_int_equal(netport_read_guest(net.port, 5, on_frame, &seen), 5);
    assert_int_equal(seen.last, 6);
    assert_int_equal(netport_read_guest(net.port, 1000, on_frame, &seen), NETPORT_BATCH);
    assert_int_equal(netport_read_guest(net.port, 1000, on_frame, &seen), NETPORT_BATCH);
    assert_int_equal(netport_read_guest(net.port, 1000, on_frame, &seen), 16);
    assert_int_equal(seen.last, 150);

    stranger = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    memcpy(address.sun_path, net.guard_path, strlen(net.guard_path));
    assert_int_equal(sendto(stranger, frame, 60, 0, (struct sockaddr *)&address, sizeof(address)),
                     -1);
    assert_int_equal(errno, EPERM);
    close(stranger);
}

static void emitted_frames_reach_the_wire(void **state)
{
    static uint8_t frame[MTU + 14];

    for (uint32_t i = 0; i < 50; i++) {
        size_t n = make_frame(frame, mac, i, i % 2 ? 60 : sizeof(frame));

        emit(frame, n);
        assert_on_wire(frame, n);
    }
    assert_int_equal(stats().emitted_frames, 50);
    assert_int_equal(stats().emitted_bytes, 25 * (60 + sizeof(frame)));
    emit(frame, 5); /* the tap knows better, and it is no reason to stop */
    assert_int_equal(stats().emit_failed, 1);
}

static void write_to_guest(uint32_t number)
{
    static const uint8_t neighbour[6] = {0x52, 0x54, 0x00, 0x99, 0x99, 0x99};
    uint8_t frame[60];
    size_t n = make_frame(frame, neighbour, number, sizeof(frame));

    assert_int_equal(write(net.wire_fd, frame, n), n);
}

/* Forwards until nothing is left to do but wait. */
static int forward_all(void)
{
    int total = 0, n;

    do {
        n = netport_forward_inbound(net.port);
        assert_true(n >= 0);
        total += n;
    } while (n);
    return total;
}

static void assert_hypervisor_gets(uint32_t number)
{
    uint8_t frame[100];
    uint32_t got;

    assert_int_equal(recv(net.hyp_fd, frame, sizeof(frame), 0), 60);
    memcpy(&got, frame + 14, sizeof(got));
    assert_int_equal(got, number);
}

static void inbound_frames_reach_the_hypervisor(void **state)
{
    write_to_guest(1);
    write_to_guest(2);
    wait_for(netport_tap_fd(net.port), netport_tap_events(net.port));
    assert_int_equal(forward_all(), 2);
    assert_hypervisor_gets(1);
    assert_hypervisor_gets(2);
    assert_int_equal(stats().inbound_frames, 2);
    assert_int_equal(stats().inbound_bytes, 120);
}

/* A hypervisor that does not read, as while its VM stands still: everything waits, and nothing is
 * lost, repeated or reordered. */
static void inbound_frames_wait(void **state)
{
    enum { FRAMES = 1000 };
    uint32_t next = 0;
    int left;

    for (uint32_t i = 0; i < FRAMES; i++)
        write_to_guest(i);
    wait_for(netport_tap_fd(net.port), POLLIN);
    left = forward_all();
    assert_in_range(left, 1, FRAMES - 1);
    /* The port waits for the hypervisor now, and only for it. */
    assert_int_equal(netport_guest_events(net.port), POLLIN | POLLOUT);
    assert_int_equal(netport_tap_events(net.port), 0);
    assert_false(ready(netport_guest_fd(net.port), netport_guest_events(net.port)));
    while (next < FRAMES) {
        assert_hypervisor_gets(next++);
        wait_for(netport_guest_fd(net.port), POLLOUT);
        left += forward_all();
    }
    assert_int_equal(left, FRAMES);
    assert_int_equal(netport_guest_events(net.port), POLLIN);
    assert_int_equal(netport_tap_events(net.port), POLLIN);
    assert_int_equal(stats().inbound_frames, FRAMES);
    assert_int_equal(stats().inbound_absent + stats().inbound_failed, 0);
}

static void hypervisor_comes_and_goes(void **state)
{
    uint8_t frame[60];
    struct seen seen = {0};

    write_to_guest(1);
    wait_for(netport_tap_fd(net.port), POLLIN);
    assert_int_equal(forward_all(), 1);
    hypervisor_dies();
    write_to_guest(2); /* lost: the socket is there, but nobody behind it */
    write_to_guest(3);
    wait_for(netport_tap_fd(net.port), POLLIN);
    assert_int_equal(forward_all(), 2);
    assert_int_equal(stats().inbound_absent, 2);
    assert_int_equal(netport_read_guest(net.port, 64, on_frame, &seen), 0);
    unlink(net.hyp_path);
    write_to_guest(4); /* lost: not even the socket */
    wait_for(netport_tap_fd(net.port), POLLIN);
    assert_int_equal(forward_all(), 1);
    assert_int_equal(stats().inbound_absent, 3);
    assert_int_equal(symlink(net.guard_path, net.hyp_path), 0);
    write_to_guest(4); /* lost: a link is not followed */
    wait_for(netport_tap_fd(net.port), POLLIN);
    assert_int_equal(forward_all(), 1);
    assert_int_equal(stats().inbound_absent, 4);
    hypervisor_starts();
    write_to_guest(5);
    wait_for(netport_tap_fd(net.port), POLLIN);
    assert_int_equal(forward_all(), 1);
    assert_hypervisor_gets(5);
    send_from_hypervisor(frame, make_frame(frame, mac, 9, 60));
    assert_int_equal(netport_read_guest(net.port, 64, on_frame, &seen), 1);
    assert_int_equal(seen.last, 9);
}

static void hypervisor_dies_with_a_full_queue(void **state)
{
    for (uint32_t i = 0; i < 100; i++)
        write_to_guest(i);
    wait_for(netport_tap_fd(net.port), POLLIN);
    assert_in_range(forward_all(), 1, 99);
    hypervisor_dies();
    wait_for(netport_guest_fd(net.port), netport_guest_events(net.port));
    (void)forward_all();
    assert_int_equal(stats().inbound_frames + stats().inbound_absent, 100);
    assert_int_equal(netport_tap_events(net.port), POLLIN);
}

static void standby_discards(void **state)
{
    int n;

    for (uint32_t i = 0; i < 100; i++)
        write_to_guest(i);
    wait_for(netport_tap_fd(net.port), POLLIN);
    assert_in_range(forward_all(), 1, 99); /* up to one that is stuck */
    do {
        n = netport_discard_inbound(net.port);
        assert_in_range(n, 0, NETPORT_BATCH);
    } while (n);
    assert_int_equal(stats().inbound_frames + stats().inbound_discarded, 100);
    assert_int_equal(netport_tap_events(net.port), POLLIN);
    assert_false(ready(netport_tap_fd(net.port), POLLIN));
}

static void announcement_reaches_the_wire(void **state)
{
    static const struct guest_address ip4 = {.family = 4, .bytes = {192, 0, 2, 7}};
    static const struct guest_address ip6 = {
        .family = 6, .bytes = {0xfe, 0x80, [8] = 0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56}};
    struct guest_address known[GUEST_ADDRESSES_MAX];
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    struct seen seen = {0};
    size_t n;

    netport_announce(net.port); /* nothing known yet */
    n = announce_rarp(mac, frame);
    assert_on_wire(frame, n);
    assert_false(ready(net.wire_fd, POLLIN));

    send_from_hypervisor(frame, announce_arp_request(mac, &ip4, frame));
    send_from_hypervisor(frame, announce_neighbour(mac, &ip6, frame));
    assert_int_equal(netport_read_guest(net.port, 1, on_frame, &seen), 1);
    seen.n = 0;
    assert_int_equal(netport_read_guest(net.port, 1, on_frame, &seen), 1);
    n = netport_addresses_get(net.port, known);
    assert_int_equal(n, 2);
    assert_false(ready(net.wire_fd, POLLIN)); /* reading is not emitting */
    netport_addresses_set(net.port, known, 0);
    netport_addresses_set(net.port, known, n);
    netport_announce(net.port);
    assert_on_wire(frame, announce_rarp(mac, frame));
    assert_on_wire(frame, announce_arp_request(mac, &ip4, frame));
    assert_on_wire(frame, announce_arp_reply(mac, &ip4, frame));
    assert_on_wire(frame, announce_neighbour(mac, &ip6, frame));
}

static void device_is_removed(void **state)
{
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } request = {.header = {.nlmsg_len = sizeof(request),
                            .nlmsg_type = RTM_DELLINK,
                            .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
                 .link = {.ifi_index = (int)if_nametoindex("us-web-0")}};
    uint8_t frame[60], answer[1024];
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    assert_int_equal(send(netlink, &request, sizeof(request), 0), sizeof(request));
    assert_true(recv(netlink, answer, sizeof(answer), 0) > 0);
    close(netlink);
    assert_int_equal(netport_forward_inbound(net.port), -EBADFD);
    assert_int_equal(netport_discard_inbound(net.port), -EBADFD);
    emit(frame, make_frame(frame, mac, 1, 60));
    assert_int_equal(stats().emit_failed, 1);
}

int main(void)
{
#define PORT_TEST(name) cmocka_unit_test_setup_teardown(name, open_port, close_port)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_configurations),
        PORT_TEST(name_in_use),
        PORT_TEST(device_suits_the_bridge),
        PORT_TEST(device_ends_with_the_port),
        PORT_TEST(guest_frames_are_handed_over),
        PORT_TEST(bursts_and_strangers),
        PORT_TEST(emitted_frames_reach_the_wire),
        PORT_TEST(inbound_frames_reach_the_hypervisor),
        PORT_TEST(inbound_frames_wait),
        PORT_TEST(hypervisor_comes_and_goes),
        PORT_TEST(hypervisor_dies_with_a_full_queue),
        PORT_TEST(standby_discards),
        PORT_TEST(announcement_reaches_the_wire),
        PORT_TEST(device_is_removed),
    };

    return cmocka_run_group_tests(tests, make_network, remove_network);
}
