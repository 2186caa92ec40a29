/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_SIM_DISK_H
#define US_TESTS_SIM_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/copy.h"

/* The VM's disk in the simulation: a few blocks, each with the number of the write that it holds
 * (0: never written). A host's copy and what belongs to it survive its processes; of what was not
 * synced, a loss of power takes any part. */

struct world;
struct staged;

enum {
    BLOCKS = 8,
    REDO_MAX = 64,
    JOURNAL_MAX = 64,
    WRITES_MAX = 1 << 16,
    FLUSHES_MAX = 1 << 13,
};

/* A state of the guest: a point on a branch. A branch begins where a VM is started (root) or goes
 * on from a checkpoint. */
struct state {
    uint32_t branch, index;
};

/* What the guest's memory says of its disk. */
struct memory {
    uint32_t disk[BLOCKS];
    uint32_t flush; /* its last flush: number of truth.flushes; 0 = none */
};

/* Records of an epoch: of each block in the mask the last write. */
struct delta {
    uint32_t v[BLOCKS];
    uint8_t mask;
    bool flushed;
};

/* disk/map.h */
struct sim_map {
    uint8_t now, before;
    uint64_t before_epoch;
    uint32_t sync; /* id of the last full copy: the number of its session; 0 = none */
    uint32_t next; /* ... that will be complete when before_epoch is durable; 0 = none */
    bool trusted;
    bool closed; /* properly, since it was opened last */
};

struct redo_entry {
    uint64_t epoch;
    struct state state;
    struct delta delta;
};

struct sim_disk {
    /* what survives */
    uint32_t image[BLOCKS]; /* as the host reads it */
    uint32_t safe[BLOCKS];  /* as it was synced last */
    struct copy_record record;
    struct sim_map map;
    unsigned n_redo, n_redo_safe; /* appended; synced */
    struct redo_entry redo[REDO_MAX];
    struct state last; /* of the VM whose last write is here */

    /* the process's */
    unsigned n_committed; /* entries of the redo log that may be applied */
    unsigned n_applied;   /* ... that are on the image */
    uint8_t apply_done;   /* blocks of the next one that are */
    uint64_t durable;     /* newest epoch that survives a loss of power */
    bool apply_due;       /* an EV_APPLY is under way */
    bool held;            /* just taken over: the guest's writes wait */
    uint64_t record_term; /* ACT_COPY_RECORD that is still to be written; 0 = none */
};

/* disk/journal.h */
struct sim_journal {
    bool on;
    struct delta open;
    unsigned n;
    struct {
        uint64_t epoch;
        struct delta delta;
    } in_flight[JOURNAL_MAX];
};

/* ---- disk.c ---- */

void disk_init(struct world *w, unsigned host);
/* A process begins to use the copy: the redo log is replayed. */
void disk_open(struct world *w, unsigned host);
/* It ends orderly: the disk is synced before the map says so. */
void disk_close(struct world *w, unsigned host);
void disk_power_loss(struct world *w, unsigned host);
void disk_sync(struct sim_disk *d);

/* The guest writes a block, or flushes. False: it is told that this has failed. */
bool disk_write(struct world *w, unsigned host);
void disk_flush(struct world *w, unsigned host);
/* A guard took over: soon the guest's writes are let through. */
void disk_hold(struct world *w, unsigned host);
void disk_release(struct world *w, unsigned host);
/* ACT_COPY_RECORD, and its being carried out. */
void disk_record(struct world *w, unsigned host, uint64_t term, bool wait);
void disk_record_due(struct world *w, unsigned host);

/* Seeding begins: the blocks that have to be copied. */
uint8_t disk_resync(struct world *w, unsigned host);

/* An epoch was cut: returns its records. term 0: while seeding. */
struct delta disk_cut(struct world *w, unsigned host, uint64_t epoch, uint64_t term);
/* The copier puts blocks into the open epoch. */
void disk_copy_blocks(struct world *w, unsigned host, uint8_t mask);
void disk_committed(struct world *w, unsigned host, uint64_t epoch);
void disk_durable(struct world *w, unsigned host, uint64_t epoch);
void disk_rebase(struct world *w, unsigned host);
void disk_solo(struct world *w, unsigned host);

/* The standby: an epoch is whole; what is whole is committed; some of that is applied; all of it,
 * and what is not committed leaves the redo log. */
void disk_stage(struct world *w, unsigned host, const struct staged *epoch);
void disk_commit(struct world *w, unsigned host);
void disk_apply(struct world *w, unsigned host);
void disk_drain(struct world *w, unsigned host);
void disk_apply_early(struct world *w, unsigned host, const struct delta *delta); /* a plant */

/* ---- check_disk.c ---- */

/* D1: the copy is what the running VM's memory says. */
void check_disk_matches(struct world *w, unsigned host, const struct memory *memory,
                        const char *when);
/* D2: what differs lies within the mask. */
void check_resync(struct world *w, unsigned primary, unsigned standby, uint8_t mask);
/* D3: the VM is about to be started from this copy. */
void check_disk_start(struct world *w, unsigned host, bool seize);

#endif
