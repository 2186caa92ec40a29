/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_SIM_SETUP_H
#define US_TESTS_SIM_SETUP_H

#include <stdbool.h>
#include <stdint.h>

#include "core/action.h"

/* What a schedule's seed decides at its beginning. */

enum profile {
    PROFILE_NONE,
    PROFILE_LIGHT,
    PROFILE_NETWORK,
    PROFILE_CRASH,
    PROFILE_FREEZE,
    PROFILE_EVERYTHING,
    PROFILES,
};

enum single {
    SINGLE_HOST,
    SINGLE_GUARD, /* with its VM */
    SINGLE_MUTE,  /* ... without */
    SINGLE_VM,
    SINGLE_STANDBY_HOST,
    SINGLE_STANDBY,
    SINGLE_LINK,
    SINGLE_ARBITER,
    SINGLE_LEADER,
    SINGLE_DAEMON,
    SINGLE_KEYS, /* no fault, an order */
    SINGLE_FREEZE,
    SINGLE_FREEZE_STANDBY,
    SINGLE_FREEZE_ALL, /* as when a laptop sleeps */
    SINGLE_SWITCHOVER, /* no fault, an order */
    SINGLES,
};

/* Rates are in millionths. */
struct setup {
    enum profile profile;
    enum single single;
    struct core_timing primary, standby;
    uint64_t heartbeat_ns, arb_timeout_ns, connect_ns;
    uint64_t fault_mean_ns, operator_mean_ns;
    uint64_t heal_at_ns;
    unsigned provoke;    /* a fault follows a transition at once */
    unsigned spike;      /* a message is late by 50 to 500 ms */
    unsigned late_ask;   /* a question to the arbiter arrives seconds late */
    unsigned lost_reply; /* an arbiter's answer gets lost */
    unsigned arb_error;
    unsigned repeated_ask; /* ... is carried out twice: its client has asked another node too */
    unsigned crash_loop;   /* a guard that took over or attached dies of it */
    unsigned midway;       /* a guard stands still between decision and write */
    unsigned slow_copy;    /* an epoch's copy waits for staging memory, with the VM stopped */
    uint64_t step_mean_ns;
    unsigned frame_rate;
    bool disks;
    unsigned write_rate, flush_rate;
    bool seize; /* people would rather seize a VM than recover it */
    unsigned seeds;
    bool seed_ahead; /* seeding counts as done once all is sent, not acknowledged */
    uint64_t interval_min_ns, interval_max_ns;
    unsigned max_slowdown; /* permille */
};

#endif
