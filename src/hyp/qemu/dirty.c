/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "hyp/qemu/uapi.h"

enum {
    REGIONS_PER_SCAN = 512, /* 12 KiB of stack */
};

static const uint64_t needed_features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                        UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                        UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;

void dirty_init(struct dirty *d)
{
    *d = (struct dirty){.uffd = -1, .pagemap_fd = -1};
}

static int missing(struct err *err, const char *feature)
{
    return err_set(err, -EOPNOTSUPP, "this kernel lacks %s, Linux 6.7 or newer is needed", feature);
}

/* Asks for the features on a fresh userfaultfd. */
static int enable_features(int uffd, struct err *err)
{
    struct uffdio_api api = {.api = UFFD_API, .features = needed_features};

    if (ioctl(uffd, UFFDIO_API, &api) == 0)
        return 0;
    if (errno == EINVAL)
        return missing(err, "asynchronous write protection by userfaultfd (UFFD_FEATURE_WP_ASYNC)");
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
        return missing(err, "the PAGEMAP_SCAN ioctl");
    return r < 0 ? err_sys(err, r, "PAGEMAP_SCAN") : 0;
}

int dirty_probe_kernel(struct err *err)
{
    CLEANUP_FD int uffd =
        (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    int r;

    if (uffd < 0 && (errno == ENOSYS || errno == EINVAL))
        return missing(err, "userfaultfd");
    if (uffd < 0)
        return err_sys(err, -errno, "userfaultfd");
    r = enable_features(uffd, err);
    return r < 0 ? r : probe_scan(err);
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

/* One PAGEMAP_SCAN from page `from` on. Returns the number of regions stored, or -errno. */
static int scan(const struct dirty *d, uint64_t from, uint64_t flags, struct page_region *regions,
                size_t n_regions, uint64_t max_pages, uint64_t *ret_next)
{
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .flags = flags | PM_SCAN_CHECK_WPASYNC,
        .start = d->base + from * VM_PAGE_BYTES,
        .end = d->base + d->n_pages * VM_PAGE_BYTES,
        .vec = (uintptr_t)regions,
        .vec_len = n_regions,
        .max_pages = max_pages,
        .category_mask = PAGE_IS_WRITTEN,
        .return_mask = PAGE_IS_WRITTEN,
    };
    int n = ioctl(d->pagemap_fd, PAGEMAP_SCAN, &arg);
    uint64_t entry;

    if (n < 0)
        return -errno;
    /* The memory of a process that is ending has no pages, so nothing would be reported as written.
     * Not every kernel refuses to scan it. Reading an entry works only while the address space
     * lives, and it never comes back: success now proves that it lived during the scan. */
    if (pread(d->pagemap_fd, &entry, sizeof(entry),
              (off_t)(d->base / VM_PAGE_BYTES * sizeof(entry))) != (ssize_t)sizeof(entry))
        return -ESRCH;
    *ret_next = (arg.walk_end - d->base) / VM_PAGE_BYTES;
    return n;
}

int dirty_start(struct dirty *d, pid_t pid, int uffd, uint64_t base, uint64_t n_bytes,
                struct err *err)
{
    struct uffdio_register range = {
        .range = {.start = base, .len = n_bytes},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    struct dirty started = {.uffd = uffd, .base = base, .n_pages = n_bytes / VM_PAGE_BYTES};
    CLEANUP_FD int pagemap_fd = -1;
    char path[32];
    uint64_t next;
    int r;

    r = enable_features(uffd, err);
    if (r < 0)
        return r;
    if (ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
        return err_sys(err, -errno, "userfaultfd: UFFDIO_REGISTER on the guest's memory");
    (void)snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    pagemap_fd = FAULTY("hyp.open-pagemap", open(path, O_RDONLY | O_CLOEXEC));
    if (pagemap_fd < 0)
        return err_sys(err, -errno, "%s", path);
    started.pagemap_fd = pagemap_fd;
    r = scan(&started, 0, PM_SCAN_WP_MATCHING, NULL, 0, 0, &next);
    if (r < 0)
        return err_sys(err, r, "PAGEMAP_SCAN on process %d", (int)pid);
    (void)take_fd(&pagemap_fd); /* `started` has it */
    *d = started;
    return 0;
}

int dirty_take(struct dirty *d, struct run_list *list)
{
    struct page_region regions[REGIONS_PER_SCAN];
    uint64_t next = 0;

    if (d->uffd < 0)
        return -ENOTCONN;
    while (next < d->n_pages) {
        int r = scan(d, next, PM_SCAN_WP_MATCHING, regions, REGIONS_PER_SCAN, 0, &next);

        if (r < 0)
            return r;
        for (int i = 0; i < r; i++) {
            struct page_run run = {
                .first = (regions[i].start - d->base) / VM_PAGE_BYTES,
                .count = (regions[i].end - regions[i].start) / VM_PAGE_BYTES,
            };

            if (run_list_add(list, run) < 0)
                return -ENOMEM;
        }
    }
    return 0;
}

int dirty_count(struct dirty *d, uint64_t limit, uint64_t *ret_pages)
{
    struct page_region regions[REGIONS_PER_SCAN];
    uint64_t next = 0, pages = 0;

    if (d->uffd < 0)
        return -ENOTCONN;
    while (next < d->n_pages && pages <= limit) {
        uint64_t want = limit - pages < d->n_pages ? limit - pages + 1 : d->n_pages;
        int r = scan(d, next, 0, regions, REGIONS_PER_SCAN, want, &next);

        if (r < 0)
            return r;
        for (int i = 0; i < r; i++)
            pages += (regions[i].end - regions[i].start) / VM_PAGE_BYTES;
    }
    *ret_pages = pages;
    return 0;
}

void dirty_done(struct dirty *d)
{
    if (d->uffd < 0)
        return;
    close(d->uffd);
    close(d->pagemap_fd);
    dirty_init(d);
}
