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
 * The ledger is one for all connections, lives in memory only and is bounded.
 */
#include "ledger.h"
#include "line_server.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEDGER_MAX (UINT64_C(4) << 20)

struct ledger {
    uint64_t count;
    uint64_t hash;
    uint64_t numbers[LEDGER_MAX]; /* costs memory only as far as it is written */
};

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
    l->numbers[l->count++] = n;
    l->hash = ledger_hash(l->hash, n);
    snprintf(answer, size, "%" PRIu64 " %" PRIu64 " %016" PRIx64, l->count, n, l->hash);
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

int main(void)
{
    static struct ledger ledger;
    static struct line_server server;

    ledger.hash = LEDGER_EMPTY_HASH; /* an initialiser would make the program 32 MiB long */

    int err = line_server_open(&server, LEDGER_PORT, answer_line, &ledger);

    if (err) {
        fprintf(stderr, "ledger: cannot listen on port %d: %s\n", LEDGER_PORT, strerror(-err));
        return 1;
    }
    printf("ledger: listening on port %d\n", LEDGER_PORT);
    fflush(stdout);
    while (!err)
        err = line_server_poll(&server, -1);
    fprintf(stderr, "ledger: poll: %s\n", strerror(-err));
    return 1;
}
