/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_NETPORT_H
#define US_IO_NETPORT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "io/guest_addresses.h"

/* One NIC's path for frames between the hypervisor and the host's bridge:
 *
 *   hypervisor --(datagram)--> guard_path | netport | tap --> bridge    read_guest(), emit()
 *   hypervisor <--(datagram)-- hyp_path   | netport | tap <-- bridge    forward_inbound()
 *
 * Frames from the guest are handed to the caller, who holds them and emits them later; frames for
 * the guest go straight through. One thread; no call blocks. The caller waits with poll or epoll on
 * two descriptors, for the events that the port wants at that moment: look at both again after
 * every call. POLLERR comes unasked: on guest_fd it calls for read_guest(), which clears it, on
 * tap_fd for forward_inbound(), which says what it is.
 *
 * Inbound, frames wait in the tap's own bounded queue while the hypervisor takes none (a VM that
 * stands still for a checkpoint), and are lost only when that is full, or nobody is there to take
 * them. Both directions are Ethernet: losses are counted, not errors. */

struct netport;

struct netport_config {
    const char *vm;         /* the VM's name */
    unsigned nic;           /* its number at the VM, below 100 */
    const char *bridge;     /* an existing bridge */
    uint8_t mac[6];         /* of the guest's NIC */
    const char *hyp_path;   /* where the hypervisor binds; need not exist yet */
    const char *guard_path; /* bound here; one left by an earlier process is replaced */
};

struct netport_stats {
    uint64_t guest_frames, guest_bytes;     /* from the guest, handed to the caller */
    uint64_t guest_runt, guest_giant;       /* ... dropped: below 14 bytes; above 65,535 */
    uint64_t emitted_frames, emitted_bytes; /* to the bridge */
    uint64_t emit_failed;                   /* ... dropped: the tap refused it */
    uint64_t inbound_frames, inbound_bytes; /* delivered to the hypervisor */
    uint64_t inbound_absent;                /* ... dropped: no hypervisor there */
    uint64_t inbound_failed;                /* ... dropped: its socket refused it */
    uint64_t inbound_discarded;             /* ... by netport_discard_inbound() */
};

enum {
    NETPORT_FRAME_MIN = 14,
    NETPORT_FRAME_MAX = 65535,
    NETPORT_BATCH = 64, /* most frames that one call moves */
};

/* Creates the tap (tap_open) and binds guard_path, both with the caller's rights; to let a
 * hypervisor of another user send, change the owner of guard_path. Strings are copied. */
int netport_open(const struct netport_config *config, struct netport **ret_port,
                 struct err *err) US_MUST_CHECK;

/* Removes the tap and guard_path. NULL is allowed. */
void netport_close(struct netport *port);

/* The descriptors (borrowed), and the poll events to wait for on each now. */
int netport_guest_fd(const struct netport *port);
int netport_tap_fd(const struct netport *port);
short netport_guest_events(const struct netport *port);
short netport_tap_events(const struct netport *port);

/* Takes a frame from the guest, borrowed during the call. Untrusted but for its length,
 * NETPORT_FRAME_MIN..NETPORT_FRAME_MAX. */
typedef void netport_frame_fn(void *user, const uint8_t *bytes, uint32_t n_bytes);

/* Hands at most `max` (and NETPORT_BATCH) frames from the guest to on_frame, oldest first, and
 * learns the guest's addresses from them. Returns how many frames were read, dropped ones included:
 * fewer than asked for means that no more are there; or a negative errno that will not go away. */
int netport_read_guest(struct netport *port, unsigned max, netport_frame_fn *on_frame,
                       void *user) US_MUST_CHECK;

/* Moves frames for the guest from the tap to the hypervisor. To be called when either descriptor is
 * ready for the events asked for. Returns how many left the tap, or a negative errno that will not
 * go away (the device was removed: -EBADFD). */
int netport_forward_inbound(struct netport *port) US_MUST_CHECK;

/* Hands frames for the guest to on_frame instead, when the VM has gone to another host. Called and
 * answering as forward_inbound(). */
int netport_divert_inbound(struct netport *port, netport_frame_fn *on_frame,
                           void *user) US_MUST_CHECK;

/* Delivers a frame that came for the guest by another way than the tap. Lost, and counted, when the
 * hypervisor takes none. */
void netport_deliver(struct netport *port, const uint8_t *bytes, uint32_t n_bytes);

/* Throws away frames for the guest, as forward_inbound() moves them: at a standby, whose guest must
 * not see frames from before its activation. The same results. */
int netport_discard_inbound(struct netport *port) US_MUST_CHECK;

/* Sends a frame of the guest to the bridge. 0: it is gone, or was dropped and counted; -EAGAIN: not
 * now, the caller keeps it and tries again (netport_tap_events() then asks for POLLOUT). */
int netport_emit(struct netport *port, const uint8_t *bytes, uint32_t n_bytes) US_MUST_CHECK;

/* Tells the network that the guest is here: one reverse ARP for its MAC, gratuitous ARP and
 * unsolicited neighbour advertisements for its addresses. To be repeated a few times by the caller,
 * as any of these frames may get lost. */
void netport_announce(struct netport *port);

/* The guest's addresses, for the standby, whose process has not seen the guest's frames. get:
 * returns how many entries of `out` are valid. set: replaces what was learned; `in` may come from a
 * peer. */
size_t netport_addresses_get(const struct netport *port,
                             struct guest_address out[static GUEST_ADDRESSES_MAX]);
void netport_addresses_set(struct netport *port, const struct guest_address *in, size_t n);

/* Counters since open. */
void netport_stats_get(const struct netport *port, struct netport_stats *ret_stats);

#endif
