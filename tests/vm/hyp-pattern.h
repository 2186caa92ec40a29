/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_PATTERN_H
#define US_TESTS_HYP_PATTERN_H

#include <stdint.h>

/* What the guests of hyp-guest.h leave in memory and on the disk. */

/* Counts the pages of a stopped guest, at `base`, that disagree with the highest counter in them.
 */
uint32_t hyp_pattern_memory(const uint8_t *base, uint32_t n_pages, uint32_t *ret_newest);

/* Counts the blocks of the disk that do not have what the boot sector's guest had in its memory
 * when it stopped. The write of the newest counter may have been yet to come. */
uint32_t hyp_pattern_disk(const char *path, uint32_t n_pages, uint32_t newest);

#endif
