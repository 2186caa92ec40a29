/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_SIM_PLANT_H
#define US_TESTS_SIM_PLANT_H

/* Bugs that the simulated shells have on request, to prove that the checks can fail: name on the
 * command line, the invariant that has to show it (docs/simulation.md), what it is. */
#define PLANTS(X)                                                                                  \
    X(RELEASE_ON_SENT, "release-on-sent", "I1", "frames leave when their epoch is sent")           \
    X(ACK_EARLY, "ack-early", "I1", "epochs are acknowledged when they begin to arrive")           \
    X(TAKE_UNASKED, "take-unasked", "I4", "a standby activates on silence without the arbiter")    \
    X(TAKE_PARTIAL, "take-partial", "I3",                                                          \
      "a standby activates what it has of an unfinished epoch")                                    \
    X(TAKE_OLD, "take-old", "I3", "a standby activates the epoch before the newest")               \
    X(SOLO_UNASKED, "solo-unasked", "I1", "a primary goes solo without the swap")                  \
    X(TERM_IGNORED, "term-ignored", "register",                                                    \
      "a standby claims with whatever term the register has")                                      \
    X(SEEDING_PROTECTED, "seeding-protected", "I5", "a VM counts as protected while it is seeded") \
    X(DEAF, "deaf", "I5", "a guard never notices that its standby is gone")                        \
    X(STAMP_LATE, "stamp-late", "I1", "frames after the pause are stamped with the epoch before")  \
    X(NO_HOLD, "no-hold", "I1", "the gate closes only when the pair is recorded")                  \
    X(NO_REBASE, "no-rebase", "I3", "after a resume epochs go on as if none were lost")            \
    X(KEEP_AFTER_LOSS, "keep-after-loss", "I1", "a guard that lost its VM releases what it held")  \
    X(THAW_WRITES_ALL, "thaw-writes-all", "I2",                                                    \
      "a guard that thaws writes all frames that it holds")                                        \
    X(ARBITER_FORGETS, "arbiter-forgets", "progress",                                              \
      "the arbiter loses its last change in a crash")                                              \
    X(BYE_EARLY, "bye-early", "S", "a VM is handed over before its last epoch is acknowledged")    \
    X(RESUME_UNASKED, "resume-unasked", "S", "a handed VM runs on before the register says so")    \
    X(MUTE_LEAKS, "mute-leaks", "I1", "what a guard held leaves when it dies")                     \
    X(ATTACH_FLOWS, "attach-flows", "I1", "an attached guard lets output flow at once")            \
    X(ATTACH_UNSWAPPED, "attach-unswapped", "register",                                            \
      "an attached guard takes a solo record for its own")                                         \
    X(ATTACH_UNRECORDED, "attach-unrecorded", "progress",                                          \
      "an attached guard's swap is not preceded by a record")                                      \
    X(MUTE_FORGOTTEN, "mute-forgotten", "progress",                                                \
      "understudyd comes back and does not look for mute VMs")                                     \
    X(DAEMON_FATAL, "daemon-fatal", "progress", "understudyd takes its VMs' processes with it")    \
    X(PROTECT_ONCE, "protect-once", "progress", "a guard looks for a standby only once")           \
    X(RELINK_UNTOLD, "relink-untold", "D1",                                                        \
      "a link that is replaced while the pair is left counts as unbroken")                         \
    X(ATTACH_STANDS, "attach-stands", "S", "an attached VM that stood still is not resumed")       \
    X(RELINK_NO_REBASE, "relink-no-rebase", "I3",                                                  \
      "over a new link epochs go on as if none were lost")                                         \
    X(RELINK_BREAKS, "relink-breaks", "progress",                                                  \
      "new keys break the link instead of replacing it")                                           \
    X(LEADER_FORGETS, "leader-forgets", "progress",                                                \
      "the arbiter's new leader lacks its last change")                                            \
    X(REPEATED_BLINDLY, "repeated-blindly", "register",                                            \
      "a repeated swap is carried out unconditionally")                                            \
    X(HELD_ERROR, "held-error", "I6", "a write that has to wait fails instead")                    \
    X(APPLY_EARLY, "apply-early", "D1", "a standby applies disk records as they arrive")           \
    X(NO_REDO, "no-redo", "D2", "a standby's redo log is not replayed")                            \
    X(TAIL_APPLIED, "tail-applied", "D1", "a takeover applies an epoch that it does not activate") \
    X(FLUSH_UNSYNCED, "flush-unsynced", "D3", "an epoch with a flush is acknowledged, not synced") \
    X(NO_DISK_HOLD, "no-disk-hold", "D1",                                                          \
      "a guest writes before its new host's redo log is empty")                                    \
    X(JOURNAL_LOST, "journal-lost", "D1", "disk records of lost epochs are not sent again")        \
    X(MAP_AT_ACK, "map-at-ack", "D2", "the dirty map drops what is acknowledged, durable or not")  \
    X(MAP_TRUSTED, "map-trusted", "D2", "a dirty map is trusted after a loss of power")            \
    X(DROP_IN_SEEDING, "drop-in-seeding", "D2", "seeding to another standby clears the dirty map") \
    X(CLOSE_UNSYNCED, "close-unsynced", "D2", "a map is closed before its disk is synced")         \
    X(STALE_NEWEST, "stale-newest", "D3", "a former primary's copy counts as the newest")

enum plant {
    PLANT_NONE,
#define X(id, name, shows, text) PLANT_##id,
    PLANTS(X)
#undef X
        PLANT_END,
};

#endif
