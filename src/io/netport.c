/* SPDX-License-Identifier: Apache-2.0 */
#include "io/netport.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/announce.h"
#include "io/tap.h"

/* Two traits of UNIX datagram sockets shape this file (Linux, net/unix/af_unix.c):
 *
 * - A receiver's queue holds net.unix.max_dgram_qlen datagrams, 10 by default, unless its socket is
 *   connected to the sender's. The guard's is therefore connected to the hypervisor's as soon as
 *   that is there: then only the hypervisor's send buffer limits what it can send in one go, and
 *   nobody else can send at all. It also makes POLLOUT mean "the hypervisor takes another frame".
 * - The hypervisor's socket is not connected, so those 10 do hold towards it: a frame that does not
 *   fit is kept here (`stuck`), and the ones behind it in the tap's queue. */

enum {
    SLOT_BYTES = 65536, /* a byte longer than the longest frame, so that giants show */
    SEND_BUFFER_BYTES = 1024 * 1024,
};

struct netport {
    int guest_fd, tap_fd;
    bool connected;    /* guest_fd has a peer */
    bool emit_blocked; /* the tap took no frame: wait for POLLOUT */
    uint32_t n_stuck;  /* length of a frame for the guest that waits in `stuck`; 0 = none */
    uint8_t mac[6];
    struct sockaddr_un hyp, guard;
    struct guest_addresses addresses;
    struct netport_stats stats;
    struct mmsghdr batch[NETPORT_BATCH];
    struct iovec iov[NETPORT_BATCH];
    uint8_t *slots; /* NETPORT_BATCH * SLOT_BYTES, touched only as far as frames are long */
    uint8_t stuck[SLOT_BYTES];
};

static uint64_t now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec;
}

static int set_path(struct sockaddr_un *address, const char *path, struct err *err)
{
    if (!path[0] || strlen(path) >= sizeof(address->sun_path))
        return err_set(err, -ENAMETOOLONG, "socket path \"%s\" is not 1 to %zu bytes long", path,
                       sizeof(address->sun_path) - 1);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, path, strlen(path) + 1);
    return 0;
}

static int bind_guard(struct netport *port, struct err *err)
{
    int bytes = SEND_BUFFER_BYTES;

    port->guest_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (port->guest_fd < 0)
        return err_sys(err, -errno, "socket");
    /* Best effort: the default still holds a few of the longest frames. */
    (void)setsockopt(port->guest_fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    if (unlink(port->guard.sun_path) && errno != ENOENT)
        return err_sys(err, -errno, "remove %s", port->guard.sun_path);
    if (bind(port->guest_fd, (const struct sockaddr *)&port->guard, sizeof(port->guard)))
        return err_sys(err, -errno, "bind %s", port->guard.sun_path);
    return 0;
}

static void cleanup_netport(struct netport **port)
{
    netport_close(*port);
}

int netport_open(const struct netport_config *config, struct netport **ret_port, struct err *err)
{
    CLEANUP(cleanup_netport) struct netport *port = calloc(1, sizeof(*port));
    struct tap_config tap = {.vm = config->vm, .nic = config->nic, .bridge = config->bridge};
    int rc;

    if (!port)
        return err_sys(err, -ENOMEM, "nics[%u]", config->nic);
    port->guest_fd = port->tap_fd = -1;
    memcpy(port->mac, config->mac, 6);
    memcpy(tap.mac, config->mac, 6);
    port->slots = mmap(NULL, (size_t)NETPORT_BATCH * SLOT_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (port->slots == MAP_FAILED) {
        port->slots = NULL;
        return err_sys(err, -ENOMEM, "nics[%u]", config->nic);
    }
    for (int i = 0; i < NETPORT_BATCH; i++) {
        port->iov[i].iov_base = port->slots + (size_t)i * SLOT_BYTES;
        port->iov[i].iov_len = SLOT_BYTES;
        port->batch[i].msg_hdr.msg_iov = &port->iov[i];
        port->batch[i].msg_hdr.msg_iovlen = 1;
    }
    rc = set_path(&port->hyp, config->hyp_path, err);
    if (!rc)
        rc = set_path(&port->guard, config->guard_path, err);
    if (!rc)
        rc = tap_open(&tap, &port->tap_fd, err);
    if (!rc)
        rc = bind_guard(port, err);
    if (rc)
        return rc;
    *ret_port = take_ptr(port);
    return 0;
}

void netport_close(struct netport *port)
{
    if (!port)
        return;
    if (port->guest_fd >= 0) {
        close(port->guest_fd);
        (void)unlink(port->guard.sun_path); /* already gone is as well */
    }
    if (port->tap_fd >= 0)
        close(port->tap_fd);
    if (port->slots)
        (void)munmap(port->slots, (size_t)NETPORT_BATCH * SLOT_BYTES); /* cannot fail: ours */
    free(port);
}

int netport_guest_fd(const struct netport *port)
{
    return port->guest_fd;
}

int netport_tap_fd(const struct netport *port)
{
    return port->tap_fd;
}

short netport_guest_events(const struct netport *port)
{
    return (short)(POLLIN | (port->n_stuck ? POLLOUT : 0));
}

short netport_tap_events(const struct netport *port)
{
    return (short)((port->n_stuck ? 0 : POLLIN) | (port->emit_blocked ? POLLOUT : 0));
}

/* Connects to what is at the path itself: the hypervisor's user owns the directory, and a link there
 * could lead us to a socket that he has no access to. */
static bool connect_hypervisor(struct netport *port)
{
    struct sockaddr_un itself = {.sun_family = AF_UNIX};
    CLEANUP_FD int fd = -1;

    if (port->connected)
        return true;
    fd = open(port->hyp.sun_path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return false;
    (void)snprintf(itself.sun_path, sizeof(itself.sun_path), "/proc/self/fd/%d", fd);
    port->connected =
        connect(port->guest_fd, (const struct sockaddr *)&itself, sizeof(itself)) == 0;
    return port->connected;
}

int netport_read_guest(struct netport *port, unsigned max, netport_frame_fn *on_frame, void *user)
{
    uint64_t now = now_s();
    int n = FAULTY("net.guest-read",
                   recvmmsg(port->guest_fd, port->batch, max < NETPORT_BATCH ? max : NETPORT_BATCH,
                            MSG_DONTWAIT, NULL));

    if (n < 0) {
        /* A hypervisor that died while it was connected shows once, as ECONNRESET. */
        bool passing = errno == EAGAIN || errno == EINTR || errno == ECONNRESET;

        return passing ? 0 : -errno;
    }
    for (int i = 0; i < n; i++) {
        uint32_t n_bytes = port->batch[i].msg_len;
        const uint8_t *bytes = port->iov[i].iov_base;

        if (n_bytes < NETPORT_FRAME_MIN) {
            port->stats.guest_runt++;
        } else if (n_bytes > NETPORT_FRAME_MAX) {
            port->stats.guest_giant++;
        } else {
            port->stats.guest_frames++;
            port->stats.guest_bytes += n_bytes;
            guest_addresses_learn(&port->addresses, port->mac, bytes, n_bytes, now);
            on_frame(user, bytes, n_bytes);
        }
    }
    if (n > 0)
        (void)connect_hypervisor(port); /* whoever sent is there; if not, there is another time */
    return n;
}

/* Sends the frame in `stuck` to the hypervisor, or drops it. False: it has to wait. */
static bool deliver_stuck(struct netport *port)
{
    ssize_t n;

    if (!connect_hypervisor(port)) {
        port->stats.inbound_absent++;
        port->n_stuck = 0;
        return true;
    }
    n = FAULTY("net.guest-write",
               send(port->guest_fd, port->stuck, port->n_stuck, MSG_DONTWAIT | MSG_NOSIGNAL));
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n >= 0) {
        port->stats.inbound_frames++;
        port->stats.inbound_bytes += port->n_stuck;
    } else if (errno == ECONNREFUSED || errno == ENOTCONN || errno == ECONNRESET) {
        port->connected = false; /* it died; the next frame looks for its successor */
        port->stats.inbound_absent++;
    } else {
        port->stats.inbound_failed++;
    }
    port->n_stuck = 0;
    return true;
}

/* Reads the next frame from the tap into `stuck`. 1, 0 when there is none, or -errno. */
static int next_inbound(struct netport *port)
{
    ssize_t n = FAULTY("net.tap-read", read(port->tap_fd, port->stuck, sizeof(port->stuck)));

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    port->n_stuck = (uint32_t)n;
    return n > 0;
}

int netport_forward_inbound(struct netport *port)
{
    int n = 0;

    if (port->n_stuck && !deliver_stuck(port))
        return 0;
    while (n < NETPORT_BATCH) {
        int rc = next_inbound(port);

        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        n++;
        if (!deliver_stuck(port))
            break;
    }
    return n;
}

int netport_divert_inbound(struct netport *port, netport_frame_fn *on_frame, void *user)
{
    int n;

    for (n = 0; n < NETPORT_BATCH; n++) {
        int rc = port->n_stuck ? 1 : next_inbound(port);

        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        if (port->n_stuck >= NETPORT_FRAME_MIN && port->n_stuck <= NETPORT_FRAME_MAX)
            on_frame(user, port->stuck, port->n_stuck);
        port->n_stuck = 0;
    }
    return n;
}

void netport_deliver(struct netport *port, const uint8_t *bytes, uint32_t n_bytes)
{
    if (port->n_stuck && !deliver_stuck(port)) {
        port->stats.inbound_failed++;
        return;
    }
    memcpy(port->stuck, bytes, n_bytes);
    port->n_stuck = n_bytes;
    (void)deliver_stuck(port); /* or with the next frame */
}

int netport_discard_inbound(struct netport *port)
{
    int n = 0;

    port->stats.inbound_discarded += port->n_stuck != 0;
    port->n_stuck = 0;
    while (n < NETPORT_BATCH) {
        int rc = next_inbound(port);

        port->n_stuck = 0;
        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        n++;
        port->stats.inbound_discarded++;
    }
    return n;
}

static int tap_send(struct netport *port, const uint8_t *bytes, size_t n_bytes)
{
    ssize_t n = FAULTY("net.tap-write", write(port->tap_fd, bytes, n_bytes));

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return -EAGAIN;
    if (n == (ssize_t)n_bytes) {
        port->stats.emitted_frames++;
        port->stats.emitted_bytes += n_bytes;
    } else {
        port->stats.emit_failed++;
    }
    return 0;
}

int netport_emit(struct netport *port, const uint8_t *bytes, uint32_t n_bytes)
{
    int rc = tap_send(port, bytes, n_bytes);

    port->emit_blocked = rc != 0;
    return rc;
}

void netport_announce(struct netport *port)
{
    struct guest_address address[GUEST_ADDRESSES_MAX];
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    size_t n = netport_addresses_get(port, address);

    /* A frame that the tap does not take now is lost like any other: the caller repeats us. */
    (void)tap_send(port, frame, announce_rarp(port->mac, frame));
    for (size_t i = 0; i < n; i++) {
        if (address[i].family == 6) {
            (void)tap_send(port, frame, announce_neighbour(port->mac, &address[i], frame));
            continue;
        }
        (void)tap_send(port, frame, announce_arp_request(port->mac, &address[i], frame));
        (void)tap_send(port, frame, announce_arp_reply(port->mac, &address[i], frame));
    }
}

size_t netport_addresses_get(const struct netport *port,
                             struct guest_address out[static GUEST_ADDRESSES_MAX])
{
    return guest_addresses_export(&port->addresses, now_s(), out);
}

void netport_addresses_set(struct netport *port, const struct guest_address *in, size_t n)
{
    guest_addresses_import(&port->addresses, now_s(), in, n);
}

void netport_stats_get(const struct netport *port, struct netport_stats *ret_stats)
{
    *ret_stats = port->stats;
}
