/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_ESTIMATE_H
#define US_GUARD_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

/* What a guard keeps of an estimate (estimate.c). */

enum { SAMPLES_MAX = 4096, ESTIMATE_IN_FLIGHT = 64 };

/* The last of many durations, and the sum of all. */
struct samples {
    uint64_t ns[SAMPLES_MAX];
    uint64_t n; /* ever */
    uint64_t sum_ns;
};

struct estimate_counters {
    uint64_t at_ns, cpu_ns, wire_bytes, raw_bytes;
};

struct estimate {
    bool runs;
    bool made; /* there are figures */
    unsigned seconds;
    char error[128];                         /* why it ended early; "" = it did not */
    uint64_t epoch, sent;                    /* newest cut; newest written */
    uint64_t ordered_ns[ESTIMATE_IN_FLIGHT]; /* of the epochs between these, by epoch */
    uint64_t seen_frames;                    /* released when the last epoch was cut */
    uint64_t pages;                          /* of all epochs */
    struct samples pauses, commits;          /* commit: from the order to the last byte written */
    struct estimate_counters from, to;
    sd_event_source *deadline;
};

#endif
