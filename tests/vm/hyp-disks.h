/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_DISKS_H
#define US_TESTS_HYP_DISKS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/vm_spec.h"

/* The disks of hyp-smoke: images in a directory, each served by a qemu-nbd of its own, which both
 * QEMUs are connected to. */

struct hyp_disk {
    char path[160];
    char socket[100];
    char pid_path[160];
    pid_t pid; /* of qemu-nbd; 0: none */
};

/* Makes a sparse image of that size, which begins with the n_first bytes given, and serves it.
 * Blocks until connections are taken. 0, or -errno; disks_stop() is then due all the same. */
int hyp_disk_start(struct hyp_disk *disk, const char *dir, unsigned number, uint64_t size_bytes,
                   const void *first, uint64_t n_first);

/* Lets the server answer nothing (true), or again. */
void hyp_disk_stall(const struct hyp_disk *disk, bool stall);

/* Ends the server. */
void hyp_disk_stop(struct hyp_disk *disk);

#endif
