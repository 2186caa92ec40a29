/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_RANGE_LIST_H
#define US_DISK_RANGE_LIST_H

#include <stdint.h>

#include "base/err.h"

/* Growing lists of ranges of a VM's disks: what is to be copied or compared, and what differs. Not
 * thread-safe. */

enum { RANGES_TOLD_MAX = 8192 /* of one disk, that a standby tells its primary at a time */ };

struct disk_range {
    uint8_t disk;             /* number at the VM */
    uint64_t offset, n_bytes; /* not empty; their sum does not overflow */
};

/* All zero is an empty list. */
struct range_list {
    struct disk_range *v;
    uint32_t n, room;
};

/* Appends a range. 0; -ENOMEM (nothing changed). */
int range_list_add(struct range_list *list, uint32_t disk, uint64_t offset,
                   uint64_t n_bytes) US_MUST_CHECK;

/* Sorts the ranges, by disk and offset, and joins those of a disk that touch, overlap, or have at
 * most gap_bytes between them. */
void range_list_join(struct range_list *list, uint64_t gap_bytes);

/* As range_list_join(), with a growing gap, until there are at most `max` of them: not below the
 * number of disks. So the list covers what it did before, and more if need be. */
void range_list_coarsen(struct range_list *list, uint32_t max);

uint64_t range_list_bytes(const struct range_list *list);

/* Frees the memory; the list is empty and can be used again. */
void range_list_free(struct range_list *list);

#endif
