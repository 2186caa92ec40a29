/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_UAPI_H
#define US_HYP_QEMU_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

/* Kernel interfaces of Linux 6.4 to 6.7 that Debian 12's headers (6.1) do not have yet.
 * Source: Documentation/admin-guide/mm/{userfaultfd,pagemap}.rst. */

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13) /* Linux 6.4 */
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15) /* Linux 6.7 */
#endif

#ifndef PAGEMAP_SCAN /* Linux 6.7 */
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)

#define PAGE_IS_WRITTEN (1 << 1)

#define PM_SCAN_WP_MATCHING   (1 << 0) /* write-protect what is reported */
#define PM_SCAN_CHECK_WPASYNC (1 << 1) /* fail where asynchronous protection is not on */

struct page_region {
    __u64 start;
    __u64 end;
    __u64 categories;
};

struct pm_scan_arg {
    __u64 size;
    __u64 flags;
    __u64 start;
    __u64 end;
    __u64 walk_end;
    __u64 vec;
    __u64 vec_len;
    __u64 max_pages;
    __u64 category_inverted;
    __u64 category_mask;
    __u64 category_anyof_mask;
    __u64 return_mask;
};
#endif

#endif
