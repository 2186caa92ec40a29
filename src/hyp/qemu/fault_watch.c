/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp/qemu/fault_watch.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "core/vm_spec.h"
#include "hyp/qemu/uapi.h"
#include "io/lock.h"
#include "io/log.h"
#include "io/thread.h"

enum {
    MESSAGES = 32, /* read at a time */
    WORD_PAGES = 64,
    STREAMS = 4, /* of writes that go on from page to page */
    AHEAD_MAX_PAGES = 32,
};

const uint64_t fault_watch_features =
    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

struct region {
    _Atomic uint32_t n_written; /* bits that are set */
    bool watched;
};

struct stream {
    uint64_t next;        /* page where it will fault if it goes on */
    uint64_t ahead_pages; /* to be let go then */
};

struct fault_watch {
    int uffd;
    int stop_fd; /* eventfd */
    pthread_t thread;
    uint64_t base, n_pages, region_pages, n_regions;
    _Atomic int error;
    pthread_mutex_t lock; /* of the bits and regions, and what they say of pages */
    struct region *regions;
    uint64_t *bits;
    struct stream streams[STREAMS]; /* of our thread */
    unsigned stream_next;           /* to give up for another one */
};

static uint64_t region_end(const struct fault_watch *w, uint64_t region)
{
    uint64_t end = (region + 1) * w->region_pages;

    return end < w->n_pages ? end : w->n_pages;
}

static struct uffdio_range range_of(const struct fault_watch *w, uint64_t first, uint64_t end)
{
    return (struct uffdio_range){
        .start = w->base + first * VM_PAGE_BYTES,
        .len = (end - first) * VM_PAGE_BYTES,
    };
}

/* Protects pages, or lifts their protection (and wakes who waits for it). Kernels as old as 6.1
 * take no range that lies in several mappings: it is divided then. */
static int protect(const struct fault_watch *w, uint64_t first, uint64_t end, uint64_t mode)
{
    struct uffdio_writeprotect order = {.range = range_of(w, first, end), .mode = mode};
    uint64_t middle = first + (end - first) / 2;
    int r;

    if (ioctl(w->uffd, UFFDIO_WRITEPROTECT, &order) == 0)
        return 0;
    if (errno != ENOENT || middle == first)
        return -errno;
    r = protect(w, first, middle, mode);
    return r < 0 ? r : protect(w, middle, end, mode);
}

/* Lifts the protection of a whole region, and wakes who waits, which here does not go without
 * saying. */
static int unregister(const struct fault_watch *w, uint64_t region)
{
    struct uffdio_range range = range_of(w, region * w->region_pages, region_end(w, region));

    if (ioctl(w->uffd, UFFDIO_UNREGISTER, &range) < 0)
        return -errno;
    (void)ioctl(w->uffd, UFFDIO_WAKE, &range); /* fails only on what is no range of memory */
    return 0;
}

/* Nobody may wait for a thread that cannot help: all regions are let go. */
static void give_up(struct fault_watch *w, int error)
{
    if (error != -ESRCH)
        log_error("writes to the guest's memory cannot be followed: errno %d", -error);
    w->error = error;
    for (uint64_t i = 0; i < w->n_regions; i++) {
        if (w->regions[i].watched)
            (void)unregister(w, i); /* closing the descriptor, soon, does what this could not */
    }
}

/* Up to where a fault at `page` lets the writer go on. Writes that go on from page to page are let
 * further ahead with each fault, which costs them more than a page too many costs us. */
static uint64_t ahead(struct fault_watch *w, uint64_t page)
{
    uint64_t end = region_end(w, page / w->region_pages), n_pages = 1;
    struct stream *stream = NULL;

    for (unsigned i = 0; i < STREAMS && !stream; i++)
        if (w->streams[i].next == page)
            stream = &w->streams[i];
    if (stream) {
        n_pages = stream->ahead_pages;
        if (n_pages < AHEAD_MAX_PAGES)
            stream->ahead_pages *= 2;
    } else {
        stream = &w->streams[w->stream_next++ % STREAMS];
        stream->ahead_pages = 1;
    }
    if (end > page + n_pages)
        end = page + n_pages;
    stream->next = end;
    return end;
}

/* A thread waits to write to a page. Called with the lock. */
static int on_fault(struct fault_watch *w, uint64_t address)
{
    uint64_t page = (address - w->base) / VM_PAGE_BYTES, end;
    struct region *region;

    if (address < w->base || page >= w->n_pages)
        return -EPROTO;
    region = &w->regions[page / w->region_pages];
    if (!region->watched) /* it was let go, and who waited woken, before we read the message */
        return 0;
    end = ahead(w, page);
    for (uint64_t i = page; i < end; i++) {
        uint64_t bit = UINT64_C(1) << i % WORD_PAGES;

        region->n_written += !(w->bits[i / WORD_PAGES] & bit);
        w->bits[i / WORD_PAGES] |= bit;
    }
    return fault_error("hyp.lift") ?: protect(w, page, end, 0);
}

static int read_faults(struct fault_watch *w)
{
    struct uffd_msg messages[MESSAGES];
    ssize_t n = read(w->uffd, messages, sizeof(messages));
    int r = 0;

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    pthread_mutex_lock(&w->lock);
    for (size_t i = 0; r == 0 && i < (size_t)n / sizeof(messages[0]); i++) {
        if (messages[i].event == UFFD_EVENT_PAGEFAULT)
            r = on_fault(w, messages[i].arg.pagefault.address);
    }
    if (r < 0)
        give_up(w, r);
    pthread_mutex_unlock(&w->lock);
    return r;
}

/* With the usual priority: so the kernel wakes it on the core of the vCPU that has just begun to
 * wait. With real-time priority it is woken where it ran last, which makes a first write 70 us long
 * instead of 3.5 (make bench-scan). */
static void *watch_thread(void *user)
{
    struct fault_watch *w = user;
    struct pollfd fds[] = {{.fd = w->uffd, .events = POLLIN}, {.fd = w->stop_fd, .events = POLLIN}};
    int r = 0;

    while (r == 0 && !fds[1].revents) {
        if (poll(fds, 2, -1) > 0 && fds[0].revents)
            r = read_faults(w);
    }
    return NULL;
}

int fault_watch_new(int uffd, uint64_t base, uint64_t n_pages, uint64_t region_pages,
                    struct fault_watch **ret_watch, struct err *err)
{
    CLEANUP_FREE struct fault_watch *w = calloc(1, sizeof(*w));
    CLEANUP_FREE struct region *regions = NULL;
    CLEANUP_FREE uint64_t *bits = NULL;
    CLEANUP_FD int stop_fd = -1;
    uint64_t n_regions = (n_pages + region_pages - 1) / region_pages;
    int r;

    regions = calloc(n_regions, sizeof(*regions));
    bits = calloc((n_pages + WORD_PAGES - 1) / WORD_PAGES, sizeof(*bits));
    if (!w || !regions || !bits)
        return err_sys(err, -ENOMEM, "record of written pages");
    stop_fd = eventfd(0, EFD_CLOEXEC);
    if (stop_fd < 0)
        return err_sys(err, -errno, "eventfd");
    *w = (struct fault_watch){.uffd = uffd,
                              .stop_fd = stop_fd,
                              .base = base,
                              .n_pages = n_pages,
                              .region_pages = region_pages,
                              .n_regions = n_regions,
                              .regions = regions,
                              .bits = bits,
                              .streams = {[0 ... STREAMS - 1] = {.ahead_pages = 1}}};
    lock_init(&w->lock);
    r = thread_start(&w->thread, "us-faults", watch_thread, w);
    if (r < 0)
        return err_sys(err, r, "thread");
    (void)take_fd(&stop_fd); /* `w` has them */
    (void)take_ptr(regions);
    (void)take_ptr(bits);
    *ret_watch = take_ptr(w);
    return 0;
}

int fault_watch_add(struct fault_watch *w, uint64_t region, uint64_t n)
{
    uint64_t first = region * w->region_pages, end = region_end(w, region + n - 1);
    struct uffdio_register order = {
        .range = range_of(w, first, end),
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    int r = 0;

    pthread_mutex_lock(&w->lock);
    if (FAULTY("hyp.watch", ioctl(w->uffd, UFFDIO_REGISTER, &order)) < 0)
        r = -errno;
    for (uint64_t i = region; r == 0 && i < region + n; i++)
        w->regions[i].watched = true;
    pthread_mutex_unlock(&w->lock);
    /* Not under the lock: it takes long for much memory, and a write to what is protected already
     * must not wait for it. */
    if (r == 0)
        r = protect(w, first, end, UFFDIO_WRITEPROTECT_MODE_WP);
    for (uint64_t i = region; r < 0 && i < region + n; i++)
        (void)!fault_watch_remove(w, i);
    return r;
}

static void forget(struct fault_watch *w, uint64_t first, uint64_t end)
{
    for (uint64_t page = first; page < end; page += WORD_PAGES)
        w->bits[page / WORD_PAGES] = 0;
}

int fault_watch_remove(struct fault_watch *w, uint64_t region)
{
    int r;

    pthread_mutex_lock(&w->lock);
    r = unregister(w, region);
    if (r == 0) {
        w->regions[region].watched = false;
        w->regions[region].n_written = 0;
        forget(w, region * w->region_pages, region_end(w, region));
    }
    pthread_mutex_unlock(&w->lock);
    return r;
}

/* The next run of set bits from *at on; moves *at behind it. False: none before `end`. */
static bool next_run(const struct fault_watch *w, uint64_t *at, uint64_t end,
                     struct page_run *ret_run)
{
    uint64_t page = *at, word;

    for (; page < end; page = (page / WORD_PAGES + 1) * WORD_PAGES) {
        word = w->bits[page / WORD_PAGES] >> page % WORD_PAGES;
        if (word)
            break;
    }
    if (page >= end)
        return false;
    page += (unsigned)__builtin_ctzll(word);
    ret_run->first = page;
    while (page < end && w->bits[page / WORD_PAGES] >> page % WORD_PAGES & 1)
        page++;
    ret_run->count = page - ret_run->first;
    *at = page;
    return true;
}

int fault_watch_take(struct fault_watch *w, uint64_t region, struct run_list *list)
{
    uint64_t at = region * w->region_pages, end = region_end(w, region);
    struct page_run run;
    int r;

    if (w->error)
        return w->error;
    if (w->regions[region].n_written == 0)
        return 0;
    pthread_mutex_lock(&w->lock);
    r = w->error;
    while (r == 0 && next_run(w, &at, end, &run)) {
        r = protect(w, run.first, run.first + run.count, UFFDIO_WRITEPROTECT_MODE_WP);
        if (r == 0)
            r = run_list_add(list, run);
    }
    if (r == 0) {
        forget(w, region * w->region_pages, end);
        w->regions[region].n_written = 0;
    }
    pthread_mutex_unlock(&w->lock);
    return r;
}

uint64_t fault_watch_count(const struct fault_watch *w, uint64_t region)
{
    return w->regions[region].n_written;
}

int fault_watch_error(const struct fault_watch *w)
{
    return w->error;
}

void fault_watch_free(struct fault_watch *w)
{
    uint64_t one = 1;

    if (!w)
        return;
    (void)!write(w->stop_fd, &one, sizeof(one)); /* to an empty eventfd: cannot fail */
    (void)pthread_join(w->thread, NULL);
    close(w->uffd);
    close(w->stop_fd);
    pthread_mutex_destroy(&w->lock);
    free(w->regions);
    free(w->bits);
    free(w);
}
