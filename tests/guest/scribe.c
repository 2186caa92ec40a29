/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scribe: appends numbered entries to several files, as a journaling service would, and says
 * how far everything is on stable storage. Whoever knows that number can tell later whether the
 * file system kept its word.
 *
 *   scribe DIR [MiB]            writes in DIR until there are so many MiB (default 64)
 *   scribe --check DIR ACKED    judges what a disk holds: are all entries up to ACKED there, whole?
 *
 *   STATUS    -> acked=N last=N errno=E
 *   PAUSE     -> the same line; nothing is written until RUN
 *   RUN       -> the same line
 *   otherwise -> ERR <reason>
 *
 * Entry n stands in file n % FILES, behind entry n - FILES, and its length and contents follow
 * from n: the files can be judged byte by byte. A batch of entries is written, each file that it
 * touched is synced, and then the batch counts as acknowledged. Now and then a file is replaced
 * by rename, so that the file system's journal has something to do.
 *
 * A crash can leave anything behind the acknowledged entries: ext4 may have made a file longer
 * before the data was there. At the start, what lies behind the last gapless entry is cut off.
 */
#include "line_server.h"
#include "pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SCRIBE_PORT = 7002,
    FILES = 4,
    ENTRY_WORDS_MAX = 2048,
    BATCH_MAX = 8,      /* entries */
    REPLACE_EVERY = 16, /* batches */
    PAUSE_MS = 2,       /* between two batches: others want the disk, too */
    MIB_DEFAULT = 64,
};

struct scribe {
    int dir;
    int fds[FILES];
    uint64_t ends[FILES]; /* bytes */
    uint64_t last;        /* number of the newest entry that is written */
    uint64_t acked;       /* of the newest one on stable storage */
    uint64_t batches;
    uint64_t limit_bytes;
    bool paused;
    int err; /* negative errno that ended the writing; 0 = none */
};

/* Fills in entry n. Returns its length in bytes. */
static size_t entry_make(uint64_t n, uint64_t words[ENTRY_WORDS_MAX])
{
    uint64_t x = pattern_start(n, 1) >> 16;
    size_t n_words = x % 64 == 0 ? ENTRY_WORDS_MAX : 8 + x % 120;

    words[0] = n;
    words[1] = n_words;
    pattern_write(words + 2, n_words - 2, n, n_words);
    return n_words * sizeof(words[0]);
}

static uint64_t first_entry(unsigned file)
{
    return file ? file : FILES; /* there is no entry 0 */
}

/*
 * Reads a file from its beginning. *ret_next: the first entry that is not whole there; *ret_end:
 * where it would begin. Returns 0 or a negative errno.
 */
static int file_check(int fd, unsigned file, uint64_t *ret_next, uint64_t *ret_end)
{
    uint64_t want[ENTRY_WORDS_MAX], got[ENTRY_WORDS_MAX];
    uint64_t number = first_entry(file), at = 0;

    for (;; number += FILES) {
        size_t n = entry_make(number, want);
        ssize_t n_got = pread(fd, got, n, (off_t)at);

        if (n_got < 0)
            return -errno;
        if ((size_t)n_got < n || memcmp(want, got, n) != 0)
            break;
        at += n;
    }
    *ret_next = number;
    *ret_end = at;
    return 0;
}

/* The file that is replaced by rename holds one whole entry, whichever. */
static int replaced_check(int dir)
{
    uint64_t want[ENTRY_WORDS_MAX], got[ENTRY_WORDS_MAX];
    int fd = openat(dir, "replaced", O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    n = read(fd, got, sizeof(got));
    close(fd);
    if (n < (ssize_t)sizeof(got[0]) || entry_make(got[0], want) != (size_t)n)
        return -EBADMSG;
    return memcmp(want, got, (size_t)n) == 0 ? 0 : -EBADMSG;
}

/* Opens the files and reads them. s->last and s->acked: the last entry before which none is
 * missing.
 */
static int scribe_load(struct scribe *s, const char *path, int flags)
{
    uint64_t missing = UINT64_MAX;

    s->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir < 0)
        return -errno;
    for (unsigned i = 0; i < FILES; i++) {
        char name[16];
        uint64_t next;

        snprintf(name, sizeof(name), "scribe.%u", i);
        s->fds[i] = openat(s->dir, name, flags | O_CLOEXEC, 0644);
        if (s->fds[i] < 0)
            return -errno;

        int err = file_check(s->fds[i], i, &next, &s->ends[i]);

        if (err)
            return err;
        if (next < missing)
            missing = next;
    }
    s->last = s->acked = missing - 1;
    return replaced_check(s->dir);
}

/* Cuts off what lies behind the last gapless entry. */
static int scribe_trim(struct scribe *s)
{
    uint64_t words[ENTRY_WORDS_MAX];

    for (unsigned i = 0; i < FILES; i++) {
        s->ends[i] = 0;
        for (uint64_t n = first_entry(i); n <= s->last; n += FILES)
            s->ends[i] += entry_make(n, words);
        if (ftruncate(s->fds[i], (off_t)s->ends[i]) < 0 || fsync(s->fds[i]) < 0)
            return -errno;
    }
    return fsync(s->dir) < 0 ? -errno : 0;
}

static int put(int fd, const void *bytes, size_t n, uint64_t at)
{
    ssize_t wrote = pwrite(fd, bytes, n, (off_t)at);

    if (wrote < 0)
        return -errno;
    return (size_t)wrote == n ? 0 : -ENOSPC;
}

static int replace_file(struct scribe *s)
{
    uint64_t words[ENTRY_WORDS_MAX];
    size_t n = entry_make(s->last, words);
    int fd = openat(s->dir, "new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int err = fd < 0 ? -errno : put(fd, words, n, 0);

    if (!err && fsync(fd) < 0)
        err = -errno;
    if (fd >= 0)
        close(fd);
    if (!err && renameat(s->dir, "new", s->dir, "replaced") < 0)
        err = -errno;
    if (!err && fsync(s->dir) < 0)
        err = -errno;
    return err;
}

static int write_batch(struct scribe *s)
{
    uint64_t words[ENTRY_WORDS_MAX];
    unsigned n_entries = 1 + (unsigned)(pattern_start(s->last, 2) % BATCH_MAX);
    bool touched[FILES] = {0};

    for (unsigned i = 0; i < n_entries; i++) {
        unsigned file = (unsigned)((s->last + 1) % FILES);
        size_t n = entry_make(s->last + 1, words);
        int err = put(s->fds[file], words, n, s->ends[file]);

        if (err)
            return err;
        touched[file] = true;
        s->ends[file] += n;
        s->last++;
    }
    for (unsigned i = 0; i < FILES; i++) {
        if (touched[i] && fdatasync(s->fds[i]) < 0)
            return -errno;
    }
    if (++s->batches % REPLACE_EVERY == 0) {
        int err = replace_file(s);

        if (err)
            return err;
    }
    s->acked = s->last;
    return 0;
}

static bool more_to_write(const struct scribe *s)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < FILES; i++)
        bytes += s->ends[i];
    return !s->err && !s->paused && bytes < s->limit_bytes;
}

static void answer_line(void *ctx, const char *line, char *answer, size_t size)
{
    struct scribe *s = ctx;

    if (strcmp(line, "PAUSE") == 0) {
        s->paused = true;
    } else if (strcmp(line, "RUN") == 0) {
        s->paused = false;
    } else if (strcmp(line, "STATUS") != 0) {
        snprintf(answer, size, "ERR unknown request");
        return;
    }
    snprintf(answer, size, "acked=%" PRIu64 " last=%" PRIu64 " errno=%d", s->acked, s->last,
             -s->err);
}

static int check(const char *path, uint64_t acked)
{
    struct scribe s = {0};
    int err = scribe_load(&s, path, O_RDONLY);

    if (err)
        fprintf(stderr, "scribe: %s: %s\n", path, err == -EBADMSG ? "damaged" : strerror(-err));
    else if (s.acked < acked)
        fprintf(stderr, "scribe: %s: entry %" PRIu64 " is missing, %" PRIu64 " were acknowledged\n",
                path, s.acked + 1, acked);
    else
        printf("scribe: %" PRIu64 " entries, all whole\n", s.acked);
    return err || s.acked < acked;
}

/* A decimal number, or the end of the program. */
static uint64_t number(const char *text)
{
    char *end;
    uint64_t n = strtoull(text, &end, 10);

    if (*text < '0' || *text > '9' || *end != '\0') {
        fprintf(stderr, "scribe: '%s' is not a number\n", text);
        exit(2);
    }
    return n;
}

int main(int argc, char **argv)
{
    static struct line_server server;
    struct scribe s = {0};

    if (argc == 4 && strcmp(argv[1], "--check") == 0)
        return check(argv[2], number(argv[3]));
    if (argc < 2 || argc > 3 || argv[1][0] == '-') {
        fprintf(stderr, "usage: scribe DIR [MiB] | scribe --check DIR ACKED\n");
        return 2;
    }
    s.limit_bytes = (argc == 3 ? number(argv[2]) : MIB_DEFAULT) << 20;

    int err = scribe_load(&s, argv[1], O_RDWR | O_CREAT);

    if (!err)
        err = scribe_trim(&s);
    if (err) {
        fprintf(stderr, "scribe: %s: %s\n", argv[1], err == -EBADMSG ? "damaged" : strerror(-err));
        return 1;
    }
    err = line_server_open(&server, SCRIBE_PORT, answer_line, &s);
    if (err) {
        fprintf(stderr, "scribe: cannot listen on port %d: %s\n", SCRIBE_PORT, strerror(-err));
        return 1;
    }
    printf("scribe: listening on port %d, %" PRIu64 " entries\n", SCRIBE_PORT, s.acked);
    fflush(stdout);
    while (!err) {
        bool more = more_to_write(&s);

        if (more)
            s.err = write_batch(&s);
        err = line_server_poll(&server, more ? PAUSE_MS : -1);
    }
    fprintf(stderr, "scribe: poll: %s\n", strerror(-err));
    return 1;
}
