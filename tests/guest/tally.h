/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_GUEST_TALLY_H
#define TESTS_GUEST_TALLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What ledger-client found out: counts of wrongs, round-trip times, the longest silence. */
struct tally {
    uint64_t ops;           /* acknowledged */
    uint64_t lost;          /* acknowledged, then missing from the server's count */
    uint64_t duplicated;    /* in the server's count more often than sent */
    uint64_t corrupted;     /* wrong hash, wrong echo, or not an answer at all */
    uint64_t max_gap_ns;    /* longest time between two consecutive answers */
    double max_gap_unix_ms; /* when it began */
    uint32_t *rtt_us;       /* owned; one per operation, up to TALLY_RTTS */
    size_t n_rtts;
    size_t cap_rtts;
    uint64_t report_gap_ns; /* print silences longer than this as they end; 0: none */
    FILE *out;              /* owned, may be NULL: one JSON object per answer */
};

/* Wall clock in milliseconds since 1970. */
double tally_unix_ms(void);

/* Notes an answered operation. */
void tally_op(struct tally *t, uint64_t n, uint64_t rtt_ns);

/* Notes a silence that began at start_unix_ms and lasted gap_ns. */
void tally_gap(struct tally *t, uint64_t gap_ns, double start_unix_ms);

/* Prints the summary line, closes the output file and frees what t owns. */
void tally_end(struct tally *t);

#endif
