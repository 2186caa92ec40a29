/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_SIM_PLANT_H
#define US_TESTS_SIM_PLANT_H

/* Bugs that the simulated shells have on request, to prove that the checks can fail. */
#define PLANTS(X)                                                                                  \
    X(RELEASE_ON_SENT, "release-on-sent", "frames leave when their epoch is sent")                 \
    X(ACK_EARLY, "ack-early", "epochs are acknowledged when they begin to arrive")                 \
    X(TAKE_UNASKED, "take-unasked", "a standby activates on silence without the arbiter")          \
    X(TAKE_PARTIAL, "take-partial", "a standby activates what it has of an unfinished epoch")      \
    X(TAKE_OLD, "take-old", "a standby activates the epoch before the newest")                     \
    X(SOLO_UNASKED, "solo-unasked", "a primary goes solo without the swap")                        \
    X(TERM_IGNORED, "term-ignored", "a standby claims with whatever term the register has")        \
    X(SEEDING_PROTECTED, "seeding-protected", "a VM counts as protected while it is seeded")       \
    X(DEAF, "deaf", "a guard never notices that its standby is gone")                              \
    X(STAMP_LATE, "stamp-late", "frames after the pause are stamped with the epoch before")        \
    X(NO_HOLD, "no-hold", "the gate closes only when the pair is recorded")                        \
    X(NO_REBASE, "no-rebase", "after a resume epochs go on as if none were lost")                  \
    X(KEEP_AFTER_LOSS, "keep-after-loss", "a guard that lost its VM releases what it held")        \
    X(ARBITER_FORGETS, "arbiter-forgets", "the arbiter loses its last change in a crash")          \
    X(BYE_EARLY, "bye-early", "a VM is handed over before its last epoch is acknowledged")         \
    X(RESUME_UNASKED, "resume-unasked", "a handed VM runs on before the register says so")         \
    X(APPLY_EARLY, "apply-early", "a standby applies disk records as they arrive")                 \
    X(NO_REDO, "no-redo", "a standby's redo log is not replayed")                                  \
    X(TAIL_APPLIED, "tail-applied", "a takeover applies an epoch that it does not activate")       \
    X(FLUSH_UNSYNCED, "flush-unsynced", "an epoch with a flush is acknowledged, not synced")       \
    X(NO_DISK_HOLD, "no-disk-hold", "a guest writes before its new host's redo log is empty")      \
    X(JOURNAL_LOST, "journal-lost", "disk records of lost epochs are not sent again")              \
    X(MAP_AT_ACK, "map-at-ack", "the dirty map drops what is acknowledged, durable or not")        \
    X(MAP_TRUSTED, "map-trusted", "a dirty map is trusted after a loss of power")                  \
    X(DROP_IN_SEEDING, "drop-in-seeding", "seeding to another standby clears the dirty map")       \
    X(CLOSE_UNSYNCED, "close-unsynced", "a map is closed before its disk is synced")               \
    X(STALE_NEWEST, "stale-newest", "a former primary's copy counts as the newest")

enum plant {
    PLANT_NONE,
#define X(id, name, text) PLANT_##id,
    PLANTS(X)
#undef X
        PLANT_END,
};

#endif
