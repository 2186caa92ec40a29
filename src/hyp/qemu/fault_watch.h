/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_FAULT_WATCH_H
#define US_HYP_QEMU_FAULT_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "hyp/run_list.h"

/* Pages of another process under synchronous write protection, and a thread that records the first
 * write to each.
 *
 * Theory of operation. A write to a protected page stops the writing thread in the kernel, which
 * sends a message through the userfaultfd. Our thread sets the page's bit, lifts the protection and
 * so lets the writer go on. A bit is set exactly while its page is unprotected: both change under
 * one lock, so that a page that is taken (protected, its bit cleared) faults again at the next
 * write. Nothing is ever scanned: a take costs what was written, the guest some microseconds for
 * each first write. Where writes go on from page to page, up to 32 are let go at once, and count as
 * written.
 *
 * The writer may be the kernel, when it reads from a file or a socket into the memory for the
 * process, or when KVM runs a vCPU: the userfaultfd must be one that handles the kernel's faults
 * (uffd_inject.h), or those calls would fail with EFAULT.
 *
 * Nobody is left waiting: when the descriptor is closed, also by the end of this process, the
 * kernel lifts all protection and wakes whoever waits. Should the thread be unable to lift a
 * protection it gives all of them up, and says so (fault_watch_error).
 *
 * Pages are watched in regions of equal size, which come and go. Source:
 * Documentation/admin-guide/mm/userfaultfd.rst; from Linux 5.19 on for memory of a shared file. */
struct fault_watch;

/* The features that a userfaultfd needs for it. */
extern const uint64_t fault_watch_features;

/* Makes a watch over n_pages at `base`, in regions of region_pages (a power of two, at least 64);
 * none is watched yet. `uffd`, opened with fault_watch_features and non-blocking, is taken on
 * success. Returns 0, or -errno with the reason. */
int fault_watch_new(int uffd, uint64_t base, uint64_t n_pages, uint64_t region_pages,
                    struct fault_watch **ret_watch, struct err *err) US_MUST_CHECK;

/* Watches n regions from `region` on, which no userfaultfd has now; all their pages are clean
 * afterwards. What is written to them during the call may stay unseen. Returns 0, or -errno:
 * none is watched then, unless the kernel refuses that, too. */
int fault_watch_add(struct fault_watch *watch, uint64_t region, uint64_t n) US_MUST_CHECK;

/* Ends the watch over one region, whose bits are forgotten. Returns 0, or -errno: it goes on. */
int fault_watch_remove(struct fault_watch *watch, uint64_t region) US_MUST_CHECK;

/* Appends the pages of a region that were written, in ascending order, and protects them anew. To
 * be called from several threads for different regions. Returns 0 or -errno. */
int fault_watch_take(struct fault_watch *watch, uint64_t region,
                     struct run_list *list) US_MUST_CHECK;

/* How many pages of a region were written. */
uint64_t fault_watch_count(const struct fault_watch *watch, uint64_t region);

/* 0, or the negative errno for which all protection was given up: writes are not seen any more. */
int fault_watch_error(const struct fault_watch *watch);

/* Ends the thread and lifts all protection. NULL is allowed. */
void fault_watch_free(struct fault_watch *watch);

#endif
