/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "hyp/qemu/dirty.h"
#include "hyp/qemu/fault_watch.h"
#include "hyp/qemu/uapi.h"
#include "hyp/qemu/uffd_inject.h"

/* What dirty tracking asks before it begins: what the kernel can do, where the memory lies. */

const uint64_t dirty_async_features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                      UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                      UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;

int dirty_enable(int uffd, uint64_t features, struct err *err)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};

    if (ioctl(uffd, UFFDIO_API, &api) == 0)
        return 0;
    if (errno == EINVAL)
        return err_set(err, -EOPNOTSUPP, "this kernel lacks %s by userfaultfd",
                       features & UFFD_FEATURE_WP_ASYNC
                           ? "asynchronous write protection (Linux 6.7)"
                           : "write protection of shared memory (Linux 5.19)");
    return err_sys(err, -errno, "userfaultfd: UFFDIO_API");
}

static int probe_scan(struct err *err)
{
    CLEANUP_FD int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    struct page_region region;
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .vec = (uintptr_t)&region,
        .vec_len = 1,
        .category_mask = PAGE_IS_WRITTEN,
        .return_mask = PAGE_IS_WRITTEN,
    };
    void *page;
    int r;

    if (fd < 0)
        return err_sys(err, -errno, "/proc/self/pagemap");
    page = mmap(NULL, VM_PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return err_sys(err, -errno, "mmap");
    arg.start = (uintptr_t)page;
    arg.end = arg.start + VM_PAGE_BYTES;
    r = ioctl(fd, PAGEMAP_SCAN, &arg) < 0 ? -errno : 0;
    (void)munmap(page, VM_PAGE_BYTES); /* just mapped: cannot fail */
    if (r == -ENOTTY || r == -EINVAL)
        return err_set(err, -EOPNOTSUPP, "this kernel lacks PAGEMAP_SCAN (Linux 6.7)");
    return r < 0 ? err_sys(err, r, "PAGEMAP_SCAN") : 0;
}

static int probe_async(struct err *err)
{
    CLEANUP_FD int uffd =
        (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    int r;

    if (uffd < 0 && (errno == ENOSYS || errno == EINVAL))
        return err_set(err, -EOPNOTSUPP, "this kernel lacks userfaultfd");
    if (uffd < 0)
        return err_sys(err, -errno, "userfaultfd");
    r = dirty_enable(uffd, dirty_async_features, err);
    return r < 0 ? r : probe_scan(err);
}

/* A hypervisor without privileges gets a userfaultfd for the kernel's faults through the device, or
 * because everybody does. */
static int probe_sync(struct err *err)
{
    CLEANUP_FD int device = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC);
    CLEANUP_FD int uffd = -1;
    char allowed = '0';

    if (device >= 0) {
        uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    } else {
        CLEANUP_FD int sysctl = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);

        if (sysctl < 0 || read(sysctl, &allowed, 1) != 1 || allowed != '1')
            return err_set(err, -EOPNOTSUPP,
                           "synchronous write protection needs " UFFD_DEVICE
                           " (Linux 6.1), or vm.unprivileged_userfaultfd=1");
        uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    }
    if (uffd < 0)
        return err_sys(err, -errno, "userfaultfd");
    return dirty_enable(uffd, fault_watch_features, err);
}

int dirty_probe_kernel(unsigned *ret_ways, struct err *err)
{
    struct err why_sync;
    int r = probe_async(err);

    *ret_ways = r == 0 ? DIRTY_ASYNC : 0;
    if (probe_sync(&why_sync) == 0)
        *ret_ways |= DIRTY_SYNC;
    if (*ret_ways)
        return 0;
    if (r == -EOPNOTSUPP) {
        struct err why_async = *err;

        return err_set(err, r, "%.200s; %.200s", why_async.text, why_sync.text);
    }
    return r;
}

struct mapping_search {
    dev_t dev;
    ino_t inode;
    uint64_t base;
    uint64_t end;    /* of the stretch found so far; 0 = nothing yet */
    uint64_t offset; /* in the file, of `end` */
};

/* Looks at one line of /proc/PID/maps (proc_pid_maps(5)). Returns -ENOTSUP when it is another piece
 * of the file that does not continue the stretch. */
static int search_line(struct mapping_search *s, const char *line)
{
    uint64_t start, end, offset, inode;
    unsigned int major_no, minor_no;

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %x:%x %" SCNu64, &start, &end,
               &offset, &major_no, &minor_no, &inode) != 6)
        return 0;
    if (inode != s->inode || makedev(major_no, minor_no) != s->dev)
        return 0;
    if (s->end == 0) {
        if (offset != 0)
            return -ENOTSUP;
        s->base = start;
    } else if (start != s->end || offset != s->offset) {
        return -ENOTSUP;
    }
    s->end = end;
    s->offset = offset + (end - start);
    return 0;
}

int dirty_find_mapping(pid_t pid, const char *path, uint64_t n_bytes, uint64_t *ret_base,
                       struct err *err)
{
    struct mapping_search search = {0};
    char maps_path[32], line[512];
    struct stat st;
    FILE *maps;
    int r = 0;

    if (stat(path, &st) < 0)
        return err_sys(err, -errno, "%s", path);
    search.dev = st.st_dev;
    search.inode = st.st_ino;
    (void)snprintf(maps_path, sizeof(maps_path), "/proc/%d/maps", (int)pid);
    maps = fopen(maps_path, "re");
    if (!maps)
        return err_sys(err, -errno, "%s", maps_path);
    while (r == 0 && fgets(line, sizeof(line), maps))
        r = search_line(&search, line);
    (void)fclose(maps); /* only read */
    if (r < 0)
        return err_set(err, r, "process %d maps %s more than once or in scattered pieces", (int)pid,
                       path);
    if (search.end - search.base != n_bytes)
        return err_set(err, -ENOTSUP, "process %d maps %" PRIu64 " of %" PRIu64 " bytes of %s",
                       (int)pid, search.end - search.base, n_bytes, path);
    *ret_base = search.base;
    return 0;
}
