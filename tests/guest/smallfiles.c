/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A load of many small files, after PostMark (J. Katcher, NetApp TR3022): a pool of files of 0.5 to
 * 10 KB is made, then each transaction reads a file or appends to one, and makes a file or deletes
 * one. Then all is synced, the pool is deleted, and that is synced.
 *
 *   smallfiles DIR FILES TRANSACTIONS
 *
 * Exit status 0: all of it was done.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BYTES_MIN = 500, BYTES_MAX = 10000, FILES_MAX = 10000, FOLDERS = 10 };

struct pool {
    unsigned n_files;
    unsigned files[2 * FILES_MAX]; /* numbers of those that exist */
    unsigned next;                 /* number of the next file to make */
    uint32_t random;
};

static char buffer[BYTES_MAX];

static void fail(const char *what)
{
    fprintf(stderr, "smallfiles: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* xorshift32 (G. Marsaglia): the same load at each run. */
static unsigned below(struct pool *p, unsigned limit)
{
    p->random ^= p->random << 13;
    p->random ^= p->random >> 17;
    p->random ^= p->random << 5;
    return p->random % limit;
}

static int open_file(unsigned file, int flags)
{
    char name[32];
    int fd;

    snprintf(name, sizeof(name), "%u/%u", file % FOLDERS, file);
    fd = open(name, flags | O_CLOEXEC, 0644);
    if (fd < 0)
        fail(name);
    return fd;
}

static void append(struct pool *p, unsigned file, int flags)
{
    size_t n = BYTES_MIN + below(p, BYTES_MAX - BYTES_MIN);
    int fd = open_file(file, O_WRONLY | O_APPEND | flags);

    if (write(fd, buffer, n) != (ssize_t)n)
        fail("write");
    close(fd);
}

static void read_file(unsigned file)
{
    static char found[BYTES_MAX];
    int fd = open_file(file, O_RDONLY);
    ssize_t n;

    while ((n = read(fd, found, sizeof(found))) > 0) {
    }
    if (n < 0)
        fail("read");
    close(fd);
}

static void make_file(struct pool *p)
{
    append(p, p->next, O_CREAT | O_EXCL);
    p->files[p->n_files++] = p->next++;
}

static void delete_file(struct pool *p, unsigned at)
{
    char name[32];

    snprintf(name, sizeof(name), "%u/%u", p->files[at] % FOLDERS, p->files[at]);
    if (unlink(name) < 0)
        fail(name);
    p->files[at] = p->files[--p->n_files];
}

static void transaction(struct pool *p, unsigned pool_size)
{
    unsigned file = p->files[below(p, p->n_files)];
    bool grow = p->n_files <= pool_size / 2 || (p->n_files < 2 * pool_size && below(p, 2) == 0);

    if (below(p, 2) == 0)
        read_file(file);
    else
        append(p, file, 0);
    if (grow)
        make_file(p);
    else
        delete_file(p, below(p, p->n_files));
}

int main(int argc, char **argv)
{
    static struct pool pool;
    long n_files = argc == 4 ? atol(argv[2]) : 0;
    long transactions = argc == 4 ? atol(argv[3]) : 0;

    if (n_files < 2 || n_files > FILES_MAX || transactions < 1) {
        fprintf(stderr, "usage: smallfiles DIR FILES TRANSACTIONS\n");
        return 2;
    }
    pool.random = 2463534242;
    if (chdir(argv[1]) < 0)
        fail(argv[1]);
    for (size_t i = 0; i < sizeof(buffer); i++)
        buffer[i] = (char)(' ' + below(&pool, 95));
    for (int i = 0; i < FOLDERS; i++) {
        char name[16];

        snprintf(name, sizeof(name), "%d", i);
        if (mkdir(name, 0755) < 0 && errno != EEXIST)
            fail(name);
    }
    sync();
    while (pool.n_files < (unsigned)n_files)
        make_file(&pool);
    for (long i = 0; i < transactions; i++)
        transaction(&pool, (unsigned)n_files);
    sync();
    while (pool.n_files)
        delete_file(&pool, pool.n_files - 1);
    sync();
    return 0;
}
