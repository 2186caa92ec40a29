/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/map.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "disk/log.h"
#include "wire/endian.h"

/* Theory of operation. The file is a page with the header and then the two halves, one bit for each
 * block, 64-bit words of the host's byte order. The halves are mapped shared: a mark is in the page
 * cache at once and outlives the process. Their space is allocated beforehand, so that no mark
 * meets a full file system. The header is written by pwrite(), which a signal does not tear.
 *
 * What makes a map worth trusting after a crash:
 *   - of the process: every mark stands before its write, and every change of what the file means
 * is ordered such that any moment shows too many marks, never too few: a new id is written before
 *     the marks of the old one are dropped, and `before` gets marks before `now` loses them.
 *   - of the host: nothing. The header names the boot in which the map is open, and is on stable
 * storage before disk_map_open() returns. Only close, which syncs the halves and then the header,
 *     makes a map valid for other boots.
 *
 * For each half there is, in memory only, a bit for each of its pages that may have a bit set:
 * clearing and iterating cost what is dirty, not the disk's size. A mark sets it after the bits
 * themselves, which is early enough since nobody clears a half while marks go into it.
 *
 * disk_map_mark() is the only function for any thread. It reads which half is `now` once; a cut
 * changes that while no mark is being made (its contract), after it was cleared. */

enum {
    PAGE_BYTES = 4096,
    PAGE_WORDS = PAGE_BYTES / 8,
    WORD_BITS = 64,
    BOOT_BYTES = 36,
    FORM_VERSION = 1,
};

#define FORM_MAGIC "undrsmap"
#define BOOT_PATH  "/proc/sys/kernel/random/boot_id"

struct header_form {
    uint8_t magic[8];
    struct le32 version;
    struct le32 clean; /* 1: properly ended; 0: open, or was when its process ended */
    struct le64 size_bytes;
    uint8_t sync[DISK_SYNC_ID_BYTES];
    uint8_t boot[BOOT_BYTES]; /* in which it was opened last */
    uint8_t zero[4];
    struct le64 checksum; /* XXH3-64 of the bytes before it */
};

static_assert(sizeof(struct header_form) == 88, "no padding");

enum follow { ALONE, SYNCING, FOLLOWED };

struct half {
    _Atomic uint64_t *words;   /* n_pages * PAGE_WORDS, in the file */
    _Atomic uint64_t *touched; /* a bit for each page */
};

struct disk_map {
    int fd;
    uint64_t size_bytes, n_blocks, n_pages; /* pages of one half */
    uint8_t boot[BOOT_BYTES];
    uint8_t sync[DISK_SYNC_ID_BYTES];
    void *mapped, *touched; /* memory of both halves' parts */
    struct half half[2];
    _Atomic unsigned now; /* index of the half that takes marks; the other one is `before` */

    /* main thread only */
    enum follow follow;
    bool filled;    /* `before` may have marks */
    uint64_t epoch; /* SYNCING: which makes the copy; FOLLOWED and filled: which covers `before` */
    uint8_t new_sync[DISK_SYNC_ID_BYTES]; /* SYNCING */
};

static uint64_t half_bytes(const struct disk_map *map)
{
    return map->n_pages * PAGE_BYTES;
}

static uint64_t touched_words(const struct disk_map *map)
{
    return (map->n_pages + WORD_BITS - 1) / WORD_BITS;
}

static struct half *now_half(struct disk_map *map)
{
    return &map->half[atomic_load_explicit(&map->now, memory_order_acquire)];
}

static struct half *before_half(struct disk_map *map)
{
    return &map->half[!atomic_load_explicit(&map->now, memory_order_relaxed)];
}

static uint64_t load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static void set_bits(_Atomic uint64_t *word, uint64_t bits)
{
    if ((load(word) & bits) != bits)
        atomic_fetch_or_explicit(word, bits, memory_order_relaxed);
}

static bool is_touched(const struct half *half, uint64_t page)
{
    return load(&half->touched[page / WORD_BITS]) >> page % WORD_BITS & 1;
}

static void touch(struct half *half, uint64_t page)
{
    set_bits(&half->touched[page / WORD_BITS], UINT64_C(1) << page % WORD_BITS);
}

/* The first touched page at or after `page`, or n_pages. */
static uint64_t next_touched(const struct disk_map *map, const struct half *half, uint64_t page)
{
    while (page < map->n_pages) {
        uint64_t bits = load(&half->touched[page / WORD_BITS]) >> page % WORD_BITS;

        if (bits)
            return page + (uint64_t)__builtin_ctzll(bits);
        page = (page / WORD_BITS + 1) * WORD_BITS;
    }
    return map->n_pages;
}

static void clear_half(struct disk_map *map, struct half *half)
{
    for (uint64_t page = next_touched(map, half, 0); page < map->n_pages;
         page = next_touched(map, half, page + 1))
        for (uint64_t i = 0; i < PAGE_WORDS; i++)
            atomic_store_explicit(&half->words[page * PAGE_WORDS + i], 0, memory_order_relaxed);
    for (uint64_t i = 0; i < touched_words(map); i++)
        atomic_store_explicit(&half->touched[i], 0, memory_order_relaxed);
}

static void add_half(struct disk_map *map, struct half *to, const struct half *from)
{
    for (uint64_t page = next_touched(map, from, 0); page < map->n_pages;
         page = next_touched(map, from, page + 1)) {
        for (uint64_t i = page * PAGE_WORDS; i < (page + 1) * PAGE_WORDS; i++)
            set_bits(&to->words[i], load(&from->words[i]));
        touch(to, page);
    }
}

/* Of a map that was found: which pages have marks. */
static void find_touched(struct disk_map *map, struct half *half)
{
    for (uint64_t i = 0; i < map->n_pages * PAGE_WORDS; i++)
        if (load(&half->words[i]))
            touch(half, i / PAGE_WORDS);
}

static int write_header(const struct disk_map *map, const uint8_t *sync, bool clean)
{
    struct header_form form = {
        .magic = FORM_MAGIC,
        .version = le32_of(FORM_VERSION),
        .clean = le32_of(clean),
        .size_bytes = le64_of(map->size_bytes),
    };
    ssize_t n;

    memcpy(form.sync, sync, sizeof(form.sync));
    memcpy(form.boot, map->boot, sizeof(form.boot));
    form.checksum = le64_of(XXH3_64bits(&form, offsetof(struct header_form, checksum)));
    n = FAULTY("disk.map-write", pwrite(map->fd, &form, sizeof(form), 0));
    return n == (ssize_t)sizeof(form) ? 0 : n < 0 ? -errno : -EIO;
}

/* The id of the map in the file, if it can be trusted. */
static bool read_header(const struct disk_map *map, uint8_t *ret_sync)
{
    off_t n_bytes = (off_t)(PAGE_BYTES + 2 * half_bytes(map));
    struct header_form form;
    struct stat st;

    if (pread(map->fd, &form, sizeof(form), 0) != (ssize_t)sizeof(form) ||
        memcmp(form.magic, FORM_MAGIC, sizeof(form.magic)) != 0 ||
        le64_get(form.checksum) != XXH3_64bits(&form, offsetof(struct header_form, checksum)) ||
        le32_get(form.version) != FORM_VERSION || le64_get(form.size_bytes) != map->size_bytes ||
        fstat(map->fd, &st) < 0 || st.st_size != n_bytes)
        return false;
    if (!le32_get(form.clean) && memcmp(form.boot, map->boot, sizeof(form.boot)) != 0)
        return false;
    memcpy(ret_sync, form.sync, sizeof(form.sync));
    return true;
}

static int read_boot(uint8_t *ret_boot, struct err *err)
{
    CLEANUP_FD int fd = open(BOOT_PATH, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret_boot, BOOT_BYTES);

    if (n != BOOT_BYTES)
        return err_sys(err, n < 0 ? -errno : -EIO, "%s", BOOT_PATH);
    return 0;
}

static int map_halves(struct disk_map *map, bool found)
{
    void *mapped =
        mmap(NULL, 2 * half_bytes(map), PROT_READ | PROT_WRITE, MAP_SHARED, map->fd, PAGE_BYTES);

    if (mapped == MAP_FAILED)
        return -errno;
    map->mapped = mapped;
    map->touched = calloc(2 * touched_words(map), sizeof(*map->half[0].touched));
    if (!map->touched)
        return -ENOMEM;
    for (int i = 0; i < 2; i++) {
        map->half[i].words = (_Atomic uint64_t *)map->mapped + i * map->n_pages * PAGE_WORDS;
        map->half[i].touched = (_Atomic uint64_t *)map->touched + i * touched_words(map);
        if (found)
            find_touched(map, &map->half[i]);
    }
    map->filled = next_touched(map, before_half(map), 0) < map->n_pages;
    return 0;
}

/* Makes the file what the header then tells: either it has a map to be trusted, or an empty one. */
static int open_file(struct disk_map *map, const char *path, struct err *err)
{
    uint64_t n_bytes = PAGE_BYTES + 2 * half_bytes(map);
    bool found;
    int r;

    map->fd = FAULTY("disk.map-open", open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (map->fd < 0)
        return err_sys(err, -errno, "%s", path);
    found = read_header(map, map->sync);
    if (!found && ftruncate(map->fd, 0) < 0)
        return err_sys(err, -errno, "%s: cannot be emptied", path);
    r = -fault_error("disk.map-allocate") ?: posix_fallocate(map->fd, 0, (off_t)n_bytes);
    if (r)
        return err_sys(err, -r, "%s: no space for a dirty map of %llu bytes", path,
                       (unsigned long long)n_bytes);
    r = map_halves(map, found);
    if (r == 0)
        r = write_header(map, map->sync, false);
    if (r == 0 && FAULTY("disk.map-sync", fsync(map->fd)) < 0)
        r = -errno;
    return r < 0 ? err_sys(err, r, "%s: cannot be mapped and written", path) : 0;
}

static void map_free(struct disk_map *map)
{
    if (map->mapped)
        (void)munmap(map->mapped, 2 * half_bytes(map)); /* cannot fail: the range is ours */
    if (map->fd >= 0)
        close(map->fd);
    free(map->touched);
    free(map);
}

int disk_map_open(const char *path, uint64_t size_bytes, struct disk_map **ret_map, struct err *err)
{
    struct disk_map *map = calloc(1, sizeof(*map));
    int r;

    if (!map)
        return err_sys(err, -ENOMEM, "dirty map");
    map->fd = -1;
    map->size_bytes = size_bytes;
    map->n_blocks = size_bytes / DISK_BLOCK_BYTES + (size_bytes % DISK_BLOCK_BYTES != 0);
    map->n_pages = (map->n_blocks + PAGE_BYTES * 8 - 1) / (PAGE_BYTES * 8);
    r = read_boot(map->boot, err);
    if (r == 0)
        r = open_file(map, path, err);
    if (r < 0) {
        map_free(map);
        return r;
    }
    *ret_map = map;
    return 0;
}

void disk_map_close(struct disk_map *map)
{
    if (!map)
        return;
    /* Failing here, it stays as it was: trusted in this boot only. */
    if (fsync(map->fd) == 0 && write_header(map, map->sync, true) == 0)
        (void)fsync(map->fd);
    map_free(map);
}

void disk_map_abandon(struct disk_map *map)
{
    map_free(map);
}

bool disk_map_trusted(const struct disk_map *map)
{
    static const uint8_t none[DISK_SYNC_ID_BYTES];

    return memcmp(map->sync, none, sizeof(none)) != 0;
}

const uint8_t *disk_map_sync(const struct disk_map *map)
{
    return map->sync;
}

void disk_map_mark(struct disk_map *map, uint64_t offset, uint64_t n_bytes)
{
    struct half *half = now_half(map);
    uint64_t block = offset / DISK_BLOCK_BYTES, last;

    if (!n_bytes || offset >= map->size_bytes)
        return;
    if (n_bytes > map->size_bytes - offset)
        n_bytes = map->size_bytes - offset;
    last = (offset + n_bytes - 1) / DISK_BLOCK_BYTES;
    while (block <= last) {
        uint64_t word = block / WORD_BITS, bits = UINT64_MAX << block % WORD_BITS;

        if (word == last / WORD_BITS)
            bits &= UINT64_MAX >> (WORD_BITS - 1 - last % WORD_BITS);
        set_bits(&half->words[word], bits);
        touch(half, word / PAGE_WORDS);
        block = (word + 1) * WORD_BITS;
    }
}

/* `before` is empty: it takes marks from now on. */
static void swap_halves(struct disk_map *map)
{
    map->filled = next_touched(map, now_half(map), 0) < map->n_pages;
    if (map->filled)
        atomic_store_explicit(&map->now, !map->now, memory_order_release);
}

void disk_map_cut(struct disk_map *map, uint64_t epoch)
{
    if (map->follow != FOLLOWED || map->filled)
        return;
    swap_halves(map);
    fault_point("disk.map-cut");
    map->epoch = epoch;
}

static void drop_before(struct disk_map *map)
{
    clear_half(map, before_half(map));
    map->filled = false;
}

void disk_map_durable(struct disk_map *map, uint64_t epoch)
{
    if (map->follow == ALONE || epoch < map->epoch)
        return;
    if (map->follow == SYNCING) {
        if (write_header(map, map->new_sync, false) < 0)
            return; /* the old id stands, and the next durable epoch tries again */
        memcpy(map->sync, map->new_sync, sizeof(map->sync));
        map->follow = FOLLOWED;
    }
    if (map->filled)
        drop_before(map);
}

void disk_map_begin_sync(struct disk_map *map, uint64_t epoch, const uint8_t *sync)
{
    if (map->filled) {
        add_half(map, before_half(map), now_half(map));
        clear_half(map, now_half(map));
    } else {
        swap_halves(map);
    }
    memcpy(map->new_sync, sync, sizeof(map->new_sync));
    map->epoch = epoch;
    map->follow = SYNCING;
}

void disk_map_abort_sync(struct disk_map *map)
{
    map->follow = ALONE;
}

int disk_map_reset(struct disk_map *map, const uint8_t *sync, struct err *err)
{
    int r = write_header(map, sync, false);

    if (r < 0)
        return err_sys(err, r, "dirty map: cannot be written");
    fault_point("disk.map-reset");
    memcpy(map->sync, sync, sizeof(map->sync));
    map->follow = ALONE;
    drop_before(map);
    clear_half(map, now_half(map));
    return 0;
}

static bool page_is_clean(const struct disk_map *map, uint64_t page)
{
    return !is_touched(&map->half[0], page) && !is_touched(&map->half[1], page);
}

/* Bit i: the word's block i is marked in either half. */
static uint64_t marked_word(const struct disk_map *map, uint64_t word)
{
    return load(&map->half[0].words[word]) | load(&map->half[1].words[word]);
}

/* The first block at or after `block` that is marked, or is not; n_blocks: there is none. */
static uint64_t find_block(const struct disk_map *map, uint64_t block, bool marked)
{
    while (block < map->n_blocks) {
        uint64_t word = block / WORD_BITS, page = word / PAGE_WORDS, bits;

        if (page_is_clean(map, page)) {
            if (!marked)
                return block;
            block = (page + 1) * PAGE_WORDS * WORD_BITS;
            continue;
        }
        bits = marked ? marked_word(map, word) : ~marked_word(map, word);
        bits &= UINT64_MAX << block % WORD_BITS;
        if (bits) {
            block = word * WORD_BITS + (uint64_t)__builtin_ctzll(bits);
            break;
        }
        block = (word + 1) * WORD_BITS;
    }
    return block < map->n_blocks ? block : map->n_blocks;
}

bool disk_map_next(const struct disk_map *map, uint64_t from, uint64_t *ret_offset,
                   uint64_t *ret_bytes)
{
    uint64_t first, end;

    if (from >= map->size_bytes)
        return false;
    first = find_block(map, (from + DISK_BLOCK_BYTES - 1) / DISK_BLOCK_BYTES, true);
    if (first == map->n_blocks)
        return false;
    end = find_block(map, first, false);
    *ret_offset = first * DISK_BLOCK_BYTES;
    *ret_bytes = (end < map->n_blocks ? end * DISK_BLOCK_BYTES : map->size_bytes) - *ret_offset;
    return true;
}

uint64_t disk_map_dirty_bytes(const struct disk_map *map)
{
    uint64_t at = 0, n_bytes, sum = 0;

    while (disk_map_next(map, at, &at, &n_bytes)) {
        at += n_bytes;
        sum += n_bytes;
    }
    return sum;
}
