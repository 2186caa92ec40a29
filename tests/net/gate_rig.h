/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_GATE_RIG_H
#define US_TESTS_GATE_RIG_H

#include <sys/types.h>

#include "../unit/unit.h"
#include "guard/output.h"
#include "lan.h"

/* The output gate between a hypervisor, which the test plays, and a real bridge:
 *
 *   hyp-0.sock -- guard-0.sock \                      / us-web-0 \
 *                               output gate, netports             br0 -- wire (see lan.h)
 *   hyp-1.sock -- guard-1.sock /                      \ us-web-1 /
 *
 * Every frame that the hypervisor sends goes into a log. A frame that leaves must be the oldest one
 * of the log that has not left, byte for byte. All functions fail the test when something is not as
 * they say, and none waits longer than WAIT_MS. */

enum {
    NICS = 2,
    GATE_BYTES = 1024 * 1024,
    LOG_FRAMES = 100000,
    WAIT_MS = 10000,
};

/* Kinds of frames: KINDS of them, from 0 on, some of which have names. */
enum { IPV4, IPV6, SHORT = 8, GIANT = 12, KINDS };

struct gate_rig {
    struct body body;
    struct gate gate;
    struct output *output;
    uint32_t n_sent, n_left; /* frames in the log, and how many of them have left */
};

extern struct gate_rig rig;
extern const uint8_t guest_mac[NICS][6];

/* For all tests: the network. For each test: a gate that holds, with epoch 1 open, and a bridge
 * that knows where the neighbour is. */
int rig_make_network(void **state);
int rig_remove_network(void **state);
int rig_open(void **state);
int rig_close(void **state);

/* The hypervisor sends a frame, or anything at all, to the gate's socket, without waiting. False:
 * the socket takes no more now. */
bool rig_try_send(unsigned nic, unsigned kind);
bool rig_try_send_bytes(unsigned nic, const uint8_t *bytes, size_t n_bytes);

/* ... and the gate gets to see it. */
void rig_send(unsigned nic, unsigned kind);

/* One frame of each kind at each NIC, the NICs in turn: NICS * KINDS. */
void rig_send_all_kinds(void);

/* The neighbour says something to everybody, and the hypervisor gets it at both NICs. */
void rig_hear(void);

/* Runs the event loop until it has nothing left to do. */
void rig_run_loop(void);

/* As the guard does: at a checkpoint; at its acknowledgement; when the register says solo. */
void rig_cut(void);
void rig_commit(uint64_t epoch);
void rig_flow(void);

/* This frame of that NIC left next, and reached the wire if it does that. */
void rig_expect_frame(unsigned nic, bool at_wire, const uint8_t *bytes, size_t n_bytes,
                      const char *what);

/* The next n frames of the log have left, and nothing else. */
void rig_expect_left(uint32_t n);

void rig_expect_stats(uint64_t held, uint64_t released, uint64_t dropped);

#endif
