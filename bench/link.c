/* SPDX-License-Identifier: Apache-2.0 */
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>

#include "guard/sender.h"
#include "plain_transport.h"
#include "standby/receiver.h"
#include "tls_rig.h"

/* What encryption costs a link over the loopback, where both ends share a machine: the bare
 * transports, and the whole pipeline from sender to receiver, plain and with TLS in turn. Beside
 * them AES-GCM alone, on one core, which each byte passes at both ends: no TLS is faster. Prints
 * one JSON object per run: GiB/s (of pages, for the pipeline), and seconds of CPU per GiB, which
 * say more when the machine is not idle. Usage: link RUNS GIB */

enum {
    RAW_BYTES = 256 * 1024, /* a write, as the sender's; and a read */
    EPOCH_CHUNKS = 8,
    POOL_CHUNKS = 4 * EPOCH_CHUNKS,
    IMAGE_CHUNKS = 64,
    MAX_EPOCHS = 4,
    CHUNK_BYTES = STAGE_CHUNK_PAGES * STAGE_PAGE_BYTES,
};

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double cpu_seconds(void)
{
    struct timespec used;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

/* What a run took. */
struct took {
    double gib, seconds, cpu;
};

static struct took took_begin(uint64_t n_bytes)
{
    return (struct took){(double)n_bytes / (1 << 30), seconds(), cpu_seconds()};
}

static void took_end(struct took *took)
{
    took->seconds = seconds() - took->seconds;
    took->cpu = cpu_seconds() - took->cpu;
}

/* Records of the size of TLS. */
static struct took run_aes(uint64_t n_bytes)
{
    enum { RECORD_BYTES = 16384 };
    static uint8_t in[RECORD_BYTES], out[RECORD_BYTES];
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    struct took took;
    int n;

    assert_int_equal(EVP_EncryptInit_ex(ctx, EVP_aes_128_gcm(), NULL, in, in), 1);
    took = took_begin(n_bytes);
    for (uint64_t at = 0; at < n_bytes; at += RECORD_BYTES) {
        assert_int_equal(EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, in), 1);
        assert_int_equal(EVP_EncryptUpdate(ctx, out, &n, in, RECORD_BYTES), 1);
        assert_int_equal(EVP_EncryptFinal_ex(ctx, out, &n), 1);
    }
    took_end(&took);
    EVP_CIPHER_CTX_free(ctx);
    return took;
}

/* Blocking transports, connected. */
static void connect_pair(bool tls, struct transport *t[2])
{
    if (tls) {
        tls_pair(&tls_hosts[0], &tls_hosts[1], TLS_ROOM, t);
    } else {
        int fd[2];

        tcp_pair(fd);
        t[0] = transport_tcp_new(fd[0]);
        t[1] = transport_tcp_new(fd[1]);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(transport_set_blocking(t[i], true), 0);
}

struct reading {
    struct transport *t;
    uint64_t n_bytes;
};

static void *read_raw(void *arg)
{
    struct reading *reading = arg;
    uint8_t *buf = malloc(RAW_BYTES);

    for (uint64_t at = 0; at < reading->n_bytes; at += RAW_BYTES)
        assert_int_equal(transport_read_all(reading->t, buf, RAW_BYTES), 0);
    free(buf);
    return NULL;
}

static struct took run_raw(bool tls, uint64_t n_bytes)
{
    struct transport *t[2];
    struct reading reading;
    struct iovec iov = {.iov_base = malloc(RAW_BYTES), .iov_len = RAW_BYTES};
    pthread_t reader;
    struct took took;

    memset(iov.iov_base, 0x5a, RAW_BYTES);
    connect_pair(tls, t);
    reading = (struct reading){.t = t[1], .n_bytes = n_bytes};
    took = took_begin(n_bytes);
    assert_int_equal(pthread_create(&reader, NULL, read_raw, &reading), 0);
    for (uint64_t at = 0; at < n_bytes; at += RAW_BYTES)
        assert_int_equal(transport_write_all(t[0], &iov, 1), 0);
    pthread_join(reader, NULL);
    took_end(&took);
    tls_pair_close(t);
    free(iov.iov_base);
    return took;
}

struct pipeline {
    struct stage_pool *send_pool, *receive_pool;
    struct sender *sender;
    struct receiver *receiver;
    int event; /* of both */
    uint8_t *image;
};

/* Fills the pool's memory with pages of which one half is noise: chunks keep what is in them. */
static void fill_pool(struct stage_pool *pool)
{
    struct stage_chunk *all = NULL, *chunk;
    uint64_t seed = 1;

    while ((chunk = stage_pool_get(pool))) {
        for (size_t at = 0; at < CHUNK_BYTES; at += sizeof(seed)) {
            seed = seed * 6364136223846793005 + 1442695040888963407;
            memcpy(chunk->bytes + at,
                   at % STAGE_PAGE_BYTES < STAGE_PAGE_BYTES / 2 ? &seed : &(uint64_t){7},
                   sizeof(seed));
        }
        chunk->next = all;
        all = chunk;
    }
    stage_pool_put(pool, all);
}

static void pipeline_new(struct pipeline *p)
{
    static const struct sender_options options = {.delta_cache_bytes =
                                                      0}; /* bytes are wanted here */

    p->send_pool = stage_pool_new((uint64_t)POOL_CHUNKS * CHUNK_BYTES);
    p->receive_pool = stage_pool_new((uint64_t)POOL_CHUNKS * CHUNK_BYTES);
    p->event = eventfd(0, EFD_CLOEXEC);
    p->image = mmap(NULL, (size_t)IMAGE_CHUNKS * CHUNK_BYTES, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    assert_ptr_not_equal(p->image, MAP_FAILED);
    fill_pool(p->send_pool);
    assert_int_equal(sender_new(p->send_pool, MAX_EPOCHS, p->event, &options, &p->sender), 0);
    assert_int_equal(receiver_new(p->receive_pool, p->image, IMAGE_CHUNKS * STAGE_CHUNK_PAGES, NULL,
                                  p->event, &p->receiver),
                     0);
}

static void pipeline_free(struct pipeline *p)
{
    sender_close(p->sender);
    receiver_close(p->receiver);
    stage_pool_close(p->send_pool);
    stage_pool_close(p->receive_pool);
    munmap(p->image, (size_t)IMAGE_CHUNKS * CHUNK_BYTES);
    close(p->event);
}

/* Gives the sender an epoch of pages. False when it takes none now. */
static bool feed(struct pipeline *p, uint64_t epoch)
{
    if (stage_pool_free_chunks(p->send_pool) < EPOCH_CHUNKS ||
        sender_begin(p->sender, epoch, 1, NULL) < 0)
        return false;
    for (uint64_t i = 0; i < EPOCH_CHUNKS; i++) {
        struct stage_chunk *chunk = stage_pool_get(p->send_pool);
        uint64_t from = (epoch * EPOCH_CHUNKS + i) % IMAGE_CHUNKS * STAGE_CHUNK_PAGES;

        chunk->n_pages = STAGE_CHUNK_PAGES;
        for (uint32_t page = 0; page < STAGE_CHUNK_PAGES; page++)
            chunk->number[page] = from + page;
        sender_chunk(p->sender, chunk);
    }
    assert_int_equal(sender_state(p->sender, "bench:1", (const uint8_t *)"state", 5), 0);
    sender_end(p->sender);
    return true;
}

static struct took run_link(bool tls, uint64_t n_bytes)
{
    uint64_t n_epochs = n_bytes / ((uint64_t)EPOCH_CHUNKS * CHUNK_BYTES), fed = 0, count;
    struct receiver_report report = {0};
    struct pipeline p;
    struct transport *t[2];
    struct took took;

    pipeline_new(&p);
    connect_pair(tls, t);
    assert_int_equal(sender_attach(p.sender, t[0]), 0);
    assert_int_equal(receiver_attach(p.receiver, t[1]), 0);
    took = took_begin(n_epochs * EPOCH_CHUNKS * CHUNK_BYTES);
    while (report.applied_epoch < n_epochs) {
        while (fed < n_epochs && feed(&p, fed + 1))
            fed++;
        receiver_report_get(p.receiver, &report);
        assert_int_equal(report.error, 0);
        if (report.staged_epoch > report.applied_epoch)
            receiver_apply(p.receiver);
        if (report.applied_epoch < n_epochs)
            assert_int_equal(read(p.event, &count, sizeof(count)), sizeof(count));
    }
    took_end(&took);
    pipeline_free(&p);
    return took;
}

static void print(const char *name, struct took took, const char *end)
{
    printf("\"%s\": %.3f, \"cpu_%s\": %.3f%s", name, took.gib / took.seconds, name,
           took.cpu / took.gib, end);
}

int main(int argc, char **argv)
{
    int n_runs = argc == 3 ? atoi(argv[1]) : 0;
    uint64_t n_bytes = argc == 3 ? (uint64_t)(atof(argv[2]) * (1 << 30)) : 0;

    if (n_runs < 1 || n_bytes < EPOCH_CHUNKS * CHUNK_BYTES) {
        (void)fprintf(stderr, "usage: link RUNS GIB\n");
        return 2;
    }
    (void)tls_setup(NULL);
    for (int i = 0; i < n_runs; i++) {
        printf("{");
        print("aes", run_aes(n_bytes), ", ");
        print("tcp_raw", run_raw(false, n_bytes), ", ");
        print("tls_raw", run_raw(true, n_bytes), ", ");
        print("tcp_link", run_link(false, n_bytes), ", ");
        print("tls_link", run_link(true, n_bytes), "}\n");
        (void)fflush(stdout);
    }
    (void)tls_teardown(NULL);
    return 0;
}
