/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "hyp/qemu/fault_watch.h"
#include "hyp/qemu/uapi.h"
#include "io/clock.h"
#include "io/log.h"
#include "io/parallel.h"

enum {
    RUNS_PER_SCAN = 512,      /* 12 KiB of stack */
    REGION_PAGES_MIN = 1024,  /* moving one takes about 0.1 ms */
    REGIONS_MAX = 16384,      /* each may be a mapping of its own; the kernel allows 65,530 */
    PARTS = 16,               /* of a take */
    PARALLEL_PAGES = 1 << 16, /* to scan: less is not worth waking anybody */
    MUCH_PAGES = 1 << 18,     /* of memory: less needs no pool of threads, and begins hot */
    /* A region's heat is a moving average over about HEAT_TAKES takes of its dirty pages, in units
     * of 1/HEAT_ONE. A scan of a region takes 2 us; a synchronous fault costs the guest 3.5 us
     * while the watch's thread is awake on a core, and 50 us when a core has to wake up for it, so:
     */
    HEAT_ONE = 1 << 18,
    HEAT_TAKES = 64,
    HEAT_WARM = HEAT_ONE / 8,  /* more: it becomes hot */
    HEAT_COOL = HEAT_ONE / 32, /* less: cold */
    HEAT_START = HEAT_ONE / 16,
    HEAT_MAX = HEAT_ONE / 4, /* no hotter, so that what is over is soon forgotten */
};

struct region {
    uint32_t heat;
    uint32_t found; /* pages by the take that is being made */
    bool cold;
};

/* Regions that one thread takes, or counts, with what it found. */
struct part {
    uint64_t first, end; /* regions */
    struct run_list list;
    uint64_t n_pages;
    int r;
};

struct dirty {
    uint64_t base, n_pages;
    int pagemap_fd;
    int async_fd;              /* -1: none */
    struct fault_watch *watch; /* NULL: none */
    uint64_t region_pages, n_regions, n_cold;
    struct region *regions;
    uint64_t settle_next; /* region where dirty_settle() goes on */
    bool settled;         /* a move failed: regions stay where they are */
    int error;
    struct parallel *parallel; /* NULL: not worth it */
    uint64_t parallel_pages;   /* ... for less than these, to scan */
    struct part parts[PARTS];
    uint64_t limit; /* of the count that is being made */
};

static uint64_t region_first(const struct dirty *d, uint64_t region)
{
    uint64_t first = region * d->region_pages;

    return first < d->n_pages ? first : d->n_pages;
}

/* One PAGEMAP_SCAN from page `from` to `end`. Returns the number of runs stored, or -errno. */
static int scan(const struct dirty *d, uint64_t from, uint64_t end, uint64_t flags,
                struct page_run *runs, uint64_t max_pages, uint64_t *ret_next)
{
    struct page_region found[RUNS_PER_SCAN];
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .flags = flags | PM_SCAN_CHECK_WPASYNC,
        .start = d->base + from * VM_PAGE_BYTES,
        .end = d->base + end * VM_PAGE_BYTES,
        .vec = runs ? (uintptr_t)found : 0,
        .vec_len = runs ? RUNS_PER_SCAN : 0,
        .max_pages = max_pages,
        .category_mask = PAGE_IS_WRITTEN,
        .return_mask = PAGE_IS_WRITTEN,
    };
    int n = ioctl(d->pagemap_fd, PAGEMAP_SCAN, &arg);

    if (n < 0)
        return -errno;
    for (int i = 0; i < n && runs; i++) {
        runs[i].first = (found[i].start - d->base) / VM_PAGE_BYTES;
        runs[i].count = (found[i].end - found[i].start) / VM_PAGE_BYTES;
    }
    *ret_next = (arg.walk_end - d->base) / VM_PAGE_BYTES;
    return n;
}

/* The memory of a process that is ending has no pages, so nothing would be reported as written.
 * Not every kernel refuses to scan it. Reading an entry works only while the address space lives,
 * and it never comes back: success now proves that it lived before. */
static int check_alive(const struct dirty *d)
{
    uint64_t entry;
    off_t at = (off_t)(d->base / VM_PAGE_BYTES * sizeof(entry));

    return pread(d->pagemap_fd, &entry, sizeof(entry), at) == (ssize_t)sizeof(entry) ? 0 : -ESRCH;
}

/* ---- what threads do ---- */

/* The end of the stretch of regions that begins with `region` and is tracked in the same way. */
static uint64_t stretch_end(const struct dirty *d, uint64_t region, uint64_t end)
{
    bool cold = d->regions[region].cold;

    while (region < end && d->regions[region].cold == cold)
        region++;
    return region;
}

static int take_hot(const struct dirty *d, uint64_t first, uint64_t end, struct run_list *list)
{
    struct page_run runs[RUNS_PER_SCAN];

    while (first < end) {
        int n = scan(d, first, end, PM_SCAN_WP_MATCHING, runs, 0, &first);

        if (n < 0)
            return n;
        for (int i = 0; i < n; i++) {
            if (run_list_add(list, runs[i]) < 0)
                return -ENOMEM;
        }
    }
    return 0;
}

static void take_part(void *user, size_t i)
{
    struct dirty *d = user;
    struct part *part = &d->parts[i];
    uint64_t region = part->first;

    part->list.n = 0;
    part->r = 0;
    while (part->r == 0 && region < part->end) {
        uint64_t end = stretch_end(d, region, part->end);

        if (!d->regions[region].cold)
            part->r = take_hot(d, region_first(d, region), region_first(d, end), &part->list);
        else
            for (uint64_t k = region; part->r == 0 && k < end; k++)
                part->r = fault_watch_take(d->watch, k, &part->list);
        region = end;
    }
}

/* Counts pages, going on from `pages` and up to d->limit + 1. */
static int count_hot(const struct dirty *d, uint64_t first, uint64_t end, uint64_t *pages)
{
    struct page_run runs[RUNS_PER_SCAN];

    while (first < end && *pages <= d->limit) {
        uint64_t want = d->limit - *pages < d->n_pages ? d->limit - *pages + 1 : d->n_pages;
        int n = scan(d, first, end, 0, runs, want, &first);

        if (n < 0)
            return n;
        for (int i = 0; i < n; i++)
            *pages += runs[i].count;
    }
    return 0;
}

static void count_part(void *user, size_t i)
{
    struct dirty *d = user;
    struct part *part = &d->parts[i];
    uint64_t region = part->first;

    part->n_pages = 0;
    part->r = 0;
    while (part->r == 0 && region < part->end) {
        uint64_t end = stretch_end(d, region, part->end);

        if (!d->regions[region].cold)
            part->r = count_hot(d, region_first(d, region), region_first(d, end), &part->n_pages);
        else
            for (uint64_t k = region; k < end; k++)
                part->n_pages += fault_watch_count(d->watch, k);
        region = end;
    }
}

/* Has fn look at all regions, in parts. Returns the number of parts, which are in order, or -errno.
 */
static int in_parts(struct dirty *d, void (*fn)(void *user, size_t i))
{
    bool wide = d->parallel && (d->n_regions - d->n_cold) * d->region_pages >= d->parallel_pages;
    int n = wide ? PARTS : 1, r;

    for (int i = 0; i < n; i++) {
        d->parts[i].first = d->n_regions * (unsigned)i / (unsigned)n;
        d->parts[i].end = d->n_regions * (unsigned)(i + 1) / (unsigned)n;
    }
    parallel_run(d->parallel, (size_t)n, fn, d);
    r = check_alive(d);
    for (int i = 0; r == 0 && i < n; i++)
        r = d->parts[i].r;
    return r < 0 ? r : n;
}

/* ---- taking ---- */

/* Notes how many pages were found where. */
static void note_found(struct dirty *d, const struct run_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        uint64_t page = list->runs[i].first, end = page + list->runs[i].count;

        while (page < end) {
            uint64_t region = page / d->region_pages;
            uint64_t stop = region_first(d, region + 1) < end ? region_first(d, region + 1) : end;

            d->regions[region].found += (uint32_t)(stop - page);
            page = stop;
        }
    }
}

static void update_heat(struct dirty *d)
{
    for (uint64_t i = 0; i < d->n_regions; i++) {
        struct region *region = &d->regions[i];

        region->heat -= region->heat / HEAT_TAKES;
        region->heat += region->found * (HEAT_ONE / HEAT_TAKES);
        if (region->heat > HEAT_MAX)
            region->heat = HEAT_MAX;
        region->found = 0;
    }
}

int dirty_take(struct dirty *d, struct run_list *list)
{
    int n = d->error ? d->error : in_parts(d, take_part);

    if (n < 0)
        return n;
    for (int i = 0; i < n; i++) {
        if (run_list_append(list, &d->parts[i].list) < 0)
            return -ENOMEM;
        if (d->watch && d->async_fd >= 0)
            note_found(d, &d->parts[i].list);
    }
    if (d->watch && d->async_fd >= 0)
        update_heat(d);
    return 0;
}

int dirty_count(struct dirty *d, uint64_t limit, uint64_t *ret_pages)
{
    uint64_t pages = 0;
    int n;

    d->limit = limit;
    n = d->error ? d->error : in_parts(d, count_part);
    if (n < 0)
        return n;
    for (int i = 0; i < n; i++)
        pages += d->parts[i].n_pages;
    *ret_pages = pages > limit ? limit + 1 : pages;
    return 0;
}

/* ---- moving regions ---- */

static int async_add(const struct dirty *d, uint64_t first, uint64_t end)
{
    struct uffdio_register order = {
        .range = {.start = d->base + first * VM_PAGE_BYTES, .len = (end - first) * VM_PAGE_BYTES},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    uint64_t next;

    if (ioctl(d->async_fd, UFFDIO_REGISTER, &order) < 0)
        return -errno;
    return scan(d, first, end, PM_SCAN_WP_MATCHING, NULL, 0, &next);
}

/* The region is in nobody's hands: its writes would be missed. */
static void lost(struct dirty *d, int r)
{
    d->error = r;
    log_error("dirty tracking has failed: a region of memory cannot be moved: errno %d", -r);
}

static void stop_moving(struct dirty *d, int r)
{
    d->settled = true;
    log_info("dirty tracking: regions of memory stay as they are: errno %d", -r);
}

static void make_hot(struct dirty *d, uint64_t region)
{
    int r;

    if (fault_watch_count(d->watch, region) > 0)
        return;
    r = fault_watch_remove(d->watch, region);
    if (r < 0) {
        stop_moving(d, r);
        return;
    }
    r = async_add(d, region_first(d, region), region_first(d, region + 1));
    if (r < 0)
        lost(d, r);
    d->regions[region].cold = false;
    d->n_cold--;
}

static void make_cold(struct dirty *d, uint64_t region)
{
    uint64_t first = region_first(d, region), end = region_first(d, region + 1), next;
    struct uffdio_range range = {
        .start = d->base + first * VM_PAGE_BYTES,
        .len = (end - first) * VM_PAGE_BYTES,
    };
    struct page_run run[RUNS_PER_SCAN];
    int r;

    if (scan(d, first, end, 0, run, 1, &next) != 0)
        return; /* written since it was taken, which should not be: its mark must not get lost */
    if (ioctl(d->async_fd, UFFDIO_UNREGISTER, &range) < 0) {
        stop_moving(d, -errno);
        return;
    }
    r = fault_watch_add(d->watch, region, 1);
    if (r == 0) {
        d->regions[region].cold = true;
        d->n_cold++;
        return;
    }
    stop_moving(d, r);
    r = async_add(d, first, end);
    if (r < 0)
        lost(d, r);
}

void dirty_settle(struct dirty *d, uint64_t budget_ns)
{
    uint64_t deadline_ns = clock_now_ns() + budget_ns;

    if (!d->watch || d->async_fd < 0)
        return;
    for (uint64_t i = 0; i < d->n_regions && !d->settled && !d->error; i++) {
        uint64_t region = d->settle_next;
        const struct region *at = &d->regions[region];

        d->settle_next = (region + 1) % d->n_regions;
        if (at->cold && at->heat > HEAT_WARM)
            make_hot(d, region);
        else if (!at->cold && at->heat < HEAT_COOL)
            make_cold(d, region);
        else
            continue;
        if (clock_now_ns() >= deadline_ns)
            return;
    }
}

bool dirty_broken(const struct dirty *d)
{
    return d->error || (d->watch && fault_watch_error(d->watch));
}

uint64_t dirty_cold_pages(const struct dirty *d)
{
    uint64_t pages = 0;

    for (uint64_t i = 0; i < d->n_regions; i++)
        if (d->regions[i].cold)
            pages += region_first(d, i + 1) - region_first(d, i);
    return pages;
}

/* ---- beginning and end ---- */

static int start_watch(struct dirty *d, int *sync_fd, struct err *err)
{
    int r = dirty_enable(*sync_fd, fault_watch_features, err);

    if (r == 0)
        r = fault_watch_new(*sync_fd, d->base, d->n_pages, d->region_pages, &d->watch, err);
    if (r == 0)
        (void)take_fd(sync_fd); /* the watch has it */
    return r;
}

/* Little memory begins hot. Much of it begins cold, since a scan of it takes longer than a guest
 * may stand still; without the asynchronous way it stays so. */
static int start_regions(struct dirty *d)
{
    bool cold = d->async_fd < 0 || (d->watch && d->n_pages >= MUCH_PAGES);

    for (uint64_t i = 0; i < d->n_regions; i++)
        d->regions[i] = (struct region){.cold = cold, .heat = HEAT_START};
    d->n_cold = cold ? d->n_regions : 0;
    return cold ? fault_watch_add(d->watch, 0, d->n_regions) : async_add(d, 0, d->n_pages);
}

static int start(struct dirty *d, pid_t pid, int *sync_fd, struct err *err)
{
    char path[32];
    int r = 0;

    (void)snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    d->pagemap_fd = FAULTY("hyp.open-pagemap", open(path, O_RDONLY | O_CLOEXEC));
    if (d->pagemap_fd < 0)
        return err_sys(err, -errno, "%s", path);
    if (d->async_fd >= 0)
        r = dirty_enable(d->async_fd, dirty_async_features, err);
    if (r == 0 && *sync_fd >= 0)
        r = start_watch(d, sync_fd, err);
    if (r < 0)
        return r;
    r = start_regions(d);
    return r < 0 ? err_sys(err, r, "write protection of the guest's memory") : 0;
}

static int new_dirty(const struct dirty_target *target, struct dirty **ret_dirty)
{
    struct dirty *d = calloc(1, sizeof(*d));

    if (!d)
        return -ENOMEM;
    d->base = target->base;
    d->n_pages = target->n_bytes / VM_PAGE_BYTES;
    d->pagemap_fd = d->async_fd = -1;
    d->parallel_pages = target->n_threads ? 0 : PARALLEL_PAGES;
    d->region_pages = REGION_PAGES_MIN;
    while ((d->n_pages - 1) / d->region_pages >= REGIONS_MAX)
        d->region_pages *= 2;
    d->n_regions = (d->n_pages - 1) / d->region_pages + 1;
    d->regions = calloc(d->n_regions, sizeof(*d->regions));
    if (!d->regions || ((target->n_threads || d->n_pages >= MUCH_PAGES) &&
                        parallel_new(target->n_threads, &d->parallel) < 0)) {
        dirty_free(d);
        return -ENOMEM;
    }
    *ret_dirty = d;
    return 0;
}

int dirty_start(const struct dirty_target *target, struct dirty **ret_dirty, struct err *err)
{
    CLEANUP_FD int async_fd = target->async_fd, sync_fd = target->sync_fd;
    struct dirty *d;
    int r;

    r = new_dirty(target, &d);
    if (r < 0)
        return err_sys(err, r, "dirty tracking");
    d->async_fd = take_fd(&async_fd);
    r = start(d, target->pid, &sync_fd, err);
    if (r < 0) {
        dirty_free(d);
        return r;
    }
    *ret_dirty = d;
    return 0;
}

void dirty_free(struct dirty *d)
{
    if (!d)
        return;
    fault_watch_free(d->watch);
    if (d->async_fd >= 0)
        close(d->async_fd);
    if (d->pagemap_fd >= 0)
        close(d->pagemap_fd);
    parallel_free(d->parallel);
    for (unsigned i = 0; i < PARTS; i++)
        run_list_free(&d->parts[i].list);
    free(d->regions);
    free(d);
}
