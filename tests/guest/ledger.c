/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ledger for failover tests: numbers are appended, and every answer carries the running hash of
 * all that was appended before, in order. A client that computes the same hash proves with one
 * comparison that nothing acknowledged was lost, repeated or rolled back.
 *
 *   ADD <n>   -> <count> <n> <hash>    append n (decimal, below 2^64)
 *   GET       -> <count> <hash>
 *   SUM       -> <count> <sum> <hash>  both computed again from the stored numbers: an error if
 *                                      the memory that holds them disagrees with the running hash
 *   otherwise -> ERR <reason>
 *
 * The ledger is one for all connections and bounded.
 *
 *   ledger [FILE]
 *
 * Without FILE it lives in memory only. With FILE each number is on stable storage before it is
 * answered, and SUM reads the file back from its disk as well. The file is a list of
 * {number, running hash}, 8 bytes each, least significant first. At the start it is read: a crash
 * can leave one more record behind the acknowledged ones, of which not everything is there; that is
 * cut off. Anything else that does not fit the chain of hashes is damage: the ledger does not
 * start.
 */
#include "ledger.h"
#include "line_server.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEDGER_MAX (UINT64_C(4) << 20)

enum { READ_RECORDS = 1024 };

struct record {
    uint64_t n, hash;
};

struct ledger {
    uint64_t count;
    uint64_t hash;
    int fd;                       /* of its file; -1: in memory only */
    uint64_t numbers[LEDGER_MAX]; /* costs memory only as far as it is written */
};

/* A record that is partly written is overwritten by the next one. */
static int store(const struct ledger *l, uint64_t n, uint64_t hash)
{
    struct record r = {n, hash};
    ssize_t wrote;

    if (l->fd < 0)
        return 0;
    wrote = pwrite(l->fd, &r, sizeof(r), (off_t)(l->count * sizeof(r)));
    if (wrote != sizeof(r))
        return wrote < 0 ? -errno : -EIO;
    return fdatasync(l->fd) < 0 ? -errno : 0;
}

static void answer_add(struct ledger *l, const char *text, char *answer, size_t size)
{
    char *end;

    errno = 0;
    uint64_t n = strtoull(text, &end, 10);

    /* strtoull takes blanks and signs as well. */
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0) {
        snprintf(answer, size, "ERR not a number");
        return;
    }
    if (l->count == LEDGER_MAX) {
        snprintf(answer, size, "ERR ledger is full");
        return;
    }

    uint64_t hash = ledger_hash(l->hash, n);
    int err = store(l, n, hash);

    if (err) {
        snprintf(answer, size, "ERR cannot store: %s", strerror(-err));
        return;
    }
    l->numbers[l->count++] = n;
    l->hash = hash;
    snprintf(answer, size, "%" PRIu64 " %" PRIu64 " %016" PRIx64, l->count, n, l->hash);
}

/* Reads the file's records in order, each as the successor of the one before. Returns how many fit
 * (at most max; *ret_hash: the running hash after them), or a negative errno. numbers may be NULL.
 */
static int64_t read_chain(int fd, uint64_t max, uint64_t *numbers, uint64_t *ret_hash)
{
    struct record buf[READ_RECORDS];
    uint64_t count = 0, hash = LEDGER_EMPTY_HASH;

    for (;;) {
        ssize_t n = pread(fd, buf, sizeof(buf), (off_t)(count * sizeof(buf[0])));
        size_t whole = n > 0 ? (size_t)n / sizeof(buf[0]) : 0, i = 0;

        if (n < 0)
            return -errno;
        for (; i < whole && count < max && buf[i].hash == ledger_hash(hash, buf[i].n); i++) {
            hash = buf[i].hash;
            if (numbers)
                numbers[count] = buf[i].n;
            count++;
        }
        if (i < READ_RECORDS)
            break;
    }
    *ret_hash = hash;
    return (int64_t)count;
}

/* Does the file hold the same, read from the disk and not from the page cache? */
static bool file_agrees(const struct ledger *l)
{
    uint64_t hash;

    if (l->fd < 0)
        return true;
    (void)posix_fadvise(l->fd, 0, 0, POSIX_FADV_DONTNEED); /* advice; everything is clean */
    return read_chain(l->fd, l->count, NULL, &hash) == (int64_t)l->count && hash == l->hash;
}

static void answer_sum(const struct ledger *l, char *answer, size_t size)
{
    uint64_t sum = 0, hash = LEDGER_EMPTY_HASH;

    for (uint64_t i = 0; i < l->count; i++) {
        sum += l->numbers[i];
        hash = ledger_hash(hash, l->numbers[i]);
    }
    if (hash != l->hash)
        snprintf(answer, size, "ERR stored numbers do not match the running hash");
    else if (!file_agrees(l))
        snprintf(answer, size, "ERR the file does not match the memory");
    else
        snprintf(answer, size, "%" PRIu64 " %" PRIu64 " %016" PRIx64, l->count, sum, hash);
}

static void answer_line(void *ctx, const char *line, char *answer, size_t size)
{
    struct ledger *l = ctx;

    if (strncmp(line, "ADD ", 4) == 0)
        answer_add(l, line + 4, answer, size);
    else if (strcmp(line, "GET") == 0)
        snprintf(answer, size, "%" PRIu64 " %016" PRIx64, l->count, l->hash);
    else if (strcmp(line, "SUM") == 0)
        answer_sum(l, answer, size);
    else
        snprintf(answer, size, "ERR unknown request");
}

/* Opens the file and takes over what it holds. Returns 0 or a negative errno (-EBADMSG: damaged).
 */
static int load(struct ledger *l, const char *path)
{
    struct stat st;

    l->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (l->fd < 0 || fstat(l->fd, &st) < 0)
        return -errno;

    int64_t count = read_chain(l->fd, LEDGER_MAX, l->numbers, &l->hash);

    if (count < 0)
        return (int)count;
    l->count = (uint64_t)count;
    if ((uint64_t)st.st_size > (l->count + 1) * sizeof(struct record))
        return -EBADMSG;
    if (ftruncate(l->fd, (off_t)(l->count * sizeof(struct record))) < 0 || fsync(l->fd) < 0)
        return -errno;
    return 0;
}

int main(int argc, char **argv)
{
    static struct ledger ledger;
    static struct line_server server;
    int err = 0;

    if (argc > 2) {
        fprintf(stderr, "usage: ledger [FILE]\n");
        return 2;
    }
    ledger.hash = LEDGER_EMPTY_HASH; /* an initialiser would make the program 32 MiB long */
    ledger.fd = -1;
    if (argc == 2)
        err = load(&ledger, argv[1]);
    if (err) {
        fprintf(stderr, "ledger: %s: %s, after %" PRIu64 " good records\n", argv[1],
                err == -EBADMSG ? "damaged" : strerror(-err), ledger.count);
        return 1;
    }
    err = line_server_open(&server, LEDGER_PORT, answer_line, &ledger);
    if (err) {
        fprintf(stderr, "ledger: cannot listen on port %d: %s\n", LEDGER_PORT, strerror(-err));
        return 1;
    }
    printf("ledger: listening on port %d, %" PRIu64 " numbers\n", LEDGER_PORT, ledger.count);
    fflush(stdout);
    while (!err)
        err = line_server_poll(&server, -1);
    fprintf(stderr, "ledger: poll: %s\n", strerror(-err));
    return 1;
}
