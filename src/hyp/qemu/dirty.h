/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_DIRTY_H
#define US_HYP_QEMU_DIRTY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "hyp/hyp.h"

/* Tracks which pages of a file mapping of another process were written, from outside of it.
 *
 * Theory of operation. Two kinds of userfaultfd of that process can do it:
 *
 * - Asynchronous write protection (Linux 6.7) marks page table entries. The first write to a marked
 *   page takes the mark off inside the kernel; nobody is woken. PAGEMAP_SCAN walks the page tables,
 *   reports the pages without a mark ("written") and marks them again in the same step, under the
 *   page table lock: a page is either reported and clean, or not reported and still dirty. Pages
 *   that were never touched count as written until they are marked (UFFD_FEATURE_WP_UNPOPULATED);
 *   the first protection marks all. A first write is cheap, but a scan costs what there is.
 * - Synchronous write protection (fault_watch.h): a first write costs the guest 4 to 60 times as
 *   much, but nothing is scanned. All that there is before Linux 6.7.
 *
 * Given both, memory is divided into regions, each tracked the one way (hot) or the other (cold).
 * It begins hot, from 1 GiB on cold. Each take counts a region's dirty pages; dirty_settle(),
 * called while nobody writes, moves a few regions to where they cost less: a cold one that is
 * written to more than now and then becomes hot, a hot one where nothing was found for a while
 * becomes cold. A region moves without a dirty page in it, and nothing is written meanwhile, so
 * nothing is missed.
 *
 * A process that dies takes its page tables along; a scan then fails with -ESRCH and never passes
 * off a dead process as one that wrote nothing.
 *
 * Limits: writes are seen through the page tables of the process alone; who writes to the file
 * through another mapping, or punches holes into it, is not seen.
 *
 * Source: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst, Linux 6.7. */
struct dirty;

/* Ways to track, combined as flags. */
enum { DIRTY_ASYNC = 1, DIRTY_SYNC = 2, DIRTY_BOTH = DIRTY_ASYNC | DIRTY_SYNC };

/* What to track and with what. */
struct dirty_target {
    pid_t pid;
    uint64_t base, n_bytes; /* address of the mapping in the process; whole pages */
    /* Fresh userfaultfds of that process, non-blocking, -1: none of this kind. The synchronous one
     * must handle faults of the kernel. */
    int async_fd, sync_fd;
    unsigned n_threads; /* that take; 0: as many as it pays, and where it does */
};

/* Checks with descriptors of our own that the kernel can do it, one way or the other: *ret_ways.
 * Returns 0, or -EOPNOTSUPP with a text that names what is missing. */
int dirty_probe_kernel(unsigned *ret_ways, struct err *err) US_MUST_CHECK;

/* Finds where process `pid` maps the file `path`: n_bytes from offset 0, in one contiguous stretch
 * of addresses (in pieces or not). Returns 0, or -errno with the reason. */
int dirty_find_mapping(pid_t pid, const char *path, uint64_t n_bytes, uint64_t *ret_base,
                       struct err *err) US_MUST_CHECK;

/* Starts tracking. All pages count as clean after it. Takes the descriptors, on failure too. Blocks
 * for a walk over the page tables: about a millisecond per GiB, up to 50 where all is in use.
 * Returns 0, or -errno with the reason; -EOPNOTSUPP: this kernel cannot do it in this way. */
int dirty_start(const struct dirty_target *target, struct dirty **ret_dirty,
                struct err *err) US_MUST_CHECK;

/* As hyp_ops.dirty_take, dirty_count and dirty_settle. */
int dirty_take(struct dirty *d, struct run_list *list) US_MUST_CHECK;
int dirty_count(struct dirty *d, uint64_t limit, uint64_t *ret_pages) US_MUST_CHECK;
void dirty_settle(struct dirty *d, uint64_t budget_ns);

/* Tracking has failed for good; it has to begin anew. */
bool dirty_broken(const struct dirty *d);

/* How many pages are tracked synchronously; for tests and figures. */
uint64_t dirty_cold_pages(const struct dirty *d);

/* Ends tracking: the process runs at full speed again. NULL is allowed. */
void dirty_free(struct dirty *d);

/* dirty_probe.c: asks for features on a fresh userfaultfd. */
int dirty_enable(int uffd, uint64_t features, struct err *err) US_MUST_CHECK;
extern const uint64_t dirty_async_features;

#endif
