/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_RESYNC_H
#define US_GUARD_RESYNC_H

#include "disk/copier.h"

/* What the guard keeps of bringing a standby's disks in step, and of comparing them later. */

enum resync_phase {
    RESYNC_OFF = 0, /* no standby, or no disks */
    RESYNC_COPYING,
    RESYNC_COMPARING, /* the digests of what was copied (or of everything) are on their way */
    RESYNC_DONE,      /* in step: the journal alone keeps it so */
};

/* A comparison that an operator asked for. */
struct verify {
    bool running;
    uint64_t mark;
    struct range_list differing;
    char error[128];
    int64_t finished_at; /* UNIX seconds; 0 = never */
};

struct resync {
    struct copier *copier;
    enum resync_phase phase;
    uint32_t disk;                        /* in work */
    unsigned rounds;                      /* of copying what differed */
    uint64_t next_mark;                   /* numbers of marks, never used twice */
    uint64_t mark;                        /* that ends the present job; 0 = none */
    bool answered;                        /* ... and was reached by the standby */
    struct range_list work;               /* to be copied, then compared */
    struct range_list differing;          /* told by the standby so far */
    struct range_list told[VM_DISKS_MAX]; /* where the standby's copies may differ (before READY) */
    uint64_t copied_bytes[VM_DISKS_MAX];
    bool sync_begun; /* the maps know the epoch that makes the copy full */
    char error[512];
    struct verify verify;
    sd_event_source *source; /* disks' eventfd */
};

#endif
