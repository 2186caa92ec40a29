/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_DIRTY_H
#define US_HYP_QEMU_DIRTY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "hyp/hyp.h"

/* Tracks which pages of a file mapping of another process were written, from outside of it.
 *
 * Theory of operation. A userfaultfd of the process, in asynchronous write-protect mode, marks the
 * page table entries of the mapping. The first write to a marked page takes the mark off inside
 * the kernel; nobody is woken. PAGEMAP_SCAN walks the page tables, reports the pages without a
 * mark ("written") and marks them again in the same step, under the page table lock: a page is
 * either reported and clean, or not reported and still dirty. Pages that were never touched count
 * as written until they are marked (UFFD_FEATURE_WP_UNPOPULATED); the first protection marks all.
 * Source: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst, Linux 6.7.
 *
 * A process that dies takes its page tables along; a scan then fails with -ESRCH and never passes
 * off a dead process as one that wrote nothing.
 *
 * Limits: writes are seen through the page tables of the process alone; who writes to the file
 * through another mapping, or punches holes into it, is not seen. The cost of a scan grows with
 * the mapping's size. */
struct dirty {
    int uffd; /* -1: not tracking */
    int pagemap_fd;
    uint64_t base; /* address of the mapping in the process */
    uint64_t n_pages;
};

/* Makes an empty tracker. */
void dirty_init(struct dirty *d);

/* Checks with descriptors of our own that the kernel can do all this.
 * Returns 0, or -EOPNOTSUPP with a text that names the missing feature. */
int dirty_probe_kernel(struct err *err) US_MUST_CHECK;

/* Finds where process `pid` maps the file `path`: n_bytes from offset 0, in one contiguous stretch
 * of addresses (in pieces or not). Returns 0, or -errno with the reason. */
int dirty_find_mapping(pid_t pid, const char *path, uint64_t n_bytes, uint64_t *ret_base,
                       struct err *err) US_MUST_CHECK;

/* Starts tracking n_bytes at `base` in process `pid`, with `uffd`, a fresh userfaultfd of that
 * process (taken on success). All pages count as clean after it. Blocks for a walk over the page
 * tables: about a millisecond per GiB. Returns 0, or -errno with the reason. */
int dirty_start(struct dirty *d, pid_t pid, int uffd, uint64_t base, uint64_t n_bytes,
                struct err *err) US_MUST_CHECK;

/* As hyp_ops.dirty_take and hyp_ops.dirty_count; -ENOTCONN: not tracking. */
int dirty_take(struct dirty *d, struct run_list *list) US_MUST_CHECK;
int dirty_count(struct dirty *d, uint64_t limit, uint64_t *ret_pages) US_MUST_CHECK;

/* Ends tracking: the process runs at full speed again. Does nothing on an empty tracker. */
void dirty_done(struct dirty *d);

#endif
