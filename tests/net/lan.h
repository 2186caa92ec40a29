/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_LAN_H
#define US_TESTS_LAN_H

#include <stddef.h>
#include <stdint.h>

/* A bridge in a network namespace of this process alone, and two places to listen at:
 *
 *   port of the code under test -- br0 -- wire
 *        ^ LAN_PORTS                       ^ LAN_WIRE
 *
 * The wire is a tap whose descriptor we hold: what is read there has left the host. The ports are
 * sniffed, so that frames that a bridge keeps to itself show (IEEE 802.1Q-2018, table 8-1). Both
 * are synchronous: a frame that was written to a port's device can be read here at once. */

enum { LAN_FRAME_MAX = 70000 };

enum lan_place { LAN_PORTS, LAN_WIRE };

/* Leaves the network namespace of the process. Fails the test when something is wrong. */
void lan_open(int mtu);
void lan_close(void);

/* The next frame that passed there, exactly as it was sent, into `frame`. Returns its length; 0
 * when there is none within wait_ms. *ret_port, if not NULL: the number of the port's device (0 at
 * the wire). */
size_t lan_read(enum lan_place place, int wait_ms, uint8_t frame[static LAN_FRAME_MAX],
                unsigned *ret_port);

/* Sends a frame from the wire to the bridge. */
void lan_write(const uint8_t *frame, size_t n_bytes);

#endif
