/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_TAP_H
#define US_IO_TAP_H

#include <net/if.h>
#include <stdint.h>

#include "base/err.h"

/* A tap device: the host's end of a VM's NIC, plugged into a bridge. It lives as long as its file
 * descriptor, so nothing of it is left behind however the process ends. */

struct tap_config {
    const char *vm;     /* the VM's name */
    unsigned nic;       /* 0, 1, ...; below 100 */
    const char *bridge; /* an existing bridge of this network namespace */
    uint8_t mac[6];     /* of the guest's NIC */
};

/* The device's name: "us-VM-NIC", or where that is longer than the kernel allows, "us-", the start
 * of the VM's name, '_', a hash of all of it, "-NIC". VM names hold no '_', so that no short name
 * looks like a shortened one. */
void tap_name(const char *vm, unsigned nic, char ret_name[static IFNAMSIZ]);

/* Creates the device, plugs it into the bridge, takes over the bridge's MTU and brings it up. The
 * host speaks no IPv6 on it, and its own MAC is not the guest's, and above every vendor's, so that
 * the bridge does not change its own because of it. *ret_fd is non-blocking; each read or write is
 * one frame (TUN/TAP: Documentation/networking/tuntap.rst). Needs CAP_NET_ADMIN; does not block. */
int tap_open(const struct tap_config *config, int *ret_fd, struct err *err) US_MUST_CHECK;

#endif
