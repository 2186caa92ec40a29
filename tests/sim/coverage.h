/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_SIM_COVERAGE_H
#define US_TESTS_SIM_COVERAGE_H

/* Situations that a full run must have met, with the least number of schedules in 100,000 that must
 * have met them: the invariants say nothing about what never happened. */
#define COVERAGE(X)                                                                                \
    X(PROTECTED, "became protected", 50000)                                                        \
    X(PROTECTED_AGAIN, "protected, lost it, protected again", 20000)                               \
    X(TAKEOVER, "takeovers", 10000)                                                                \
    X(TAKEOVER_AFTER_CRASH, "takeovers from a primary that was gone", 5000)                        \
    X(TAKEOVER_FROM_LIVING, "takeovers from a primary that was only slow or cut off", 1000)        \
    X(TAKEOVER_FORCED, "takeovers ordered by an operator", 100)                                    \
    X(TAKEOVER_AGAIN, "two takeovers or more", 500)                                                \
    X(TAKEOVER_TOLD, "claims after the word that the VM died", 500)                                \
    X(TAKEOVER_NEWER, "takeovers with an epoch whose acknowledgement was never heard", 100)        \
    X(PARTIAL_DROPPED, "takeovers with part of a newer epoch there", 100)                          \
    X(LOST, "a former primary found another owner and destroyed its VM", 1000)                     \
    X(HELD_DROPPED, "... and dropped frames that it held", 500)                                    \
    X(SLOW_WIRE, "a former primary wrote frames that it had decided on before", 20)                \
    X(ISOLATED, "isolations", 5000)                                                                \
    X(RESUMED, "isolations with a resumed link", 500)                                              \
    X(RESUMED_NEWER, "resumed links that brought a lost acknowledgement", 20)                      \
    X(CUT_LOST, "links that broke and resumed under a cut", 5)                                     \
    X(CUT_IN_SEEDING, "cuts that were done when the next session was seeding already", 5)          \
    X(STUFFED, "VMs paused because the gate was full", 50)                                         \
    X(SOLO_AGAIN, "primaries that went solo after losing the standby", 5000)                       \
    X(STANDBY_OVERTAKEN, "standbys that found the record moved on", 1000)                          \
    X(STALE_WON_PRIMARY, "a primary's given-up question was carried out", 200)                     \
    X(STALE_WON_STANDBY, "a standby's given-up claim was carried out", 100)                        \
    X(STALE_WON_DEAD, "a dead process's question was carried out", 50)                             \
    X(STALE_LOST, "given-up questions that came too late", 500)                                    \
    X(OWN_WANTED_FOUND, "a conflict that was a success of an earlier question", 100)               \
    X(OWN_OTHER_FOUND, "a conflict with an earlier question's other outcome", 20)                  \
    X(ABORT_SEEDING, "seedings that were given up", 1000)                                          \
    X(ABORT_ARMING, "armings that were given up", 100)                                             \
    X(ABORT_PAIRING, "pairings that were given up", 100)                                           \
    X(KNOCK_BUSY, "new sessions refused by a standby that still could take over", 100)             \
    X(BUSY_PRIMARY, "new sessions refused by a host that is primary itself", 100)                  \
    X(START_REFUSED, "starts refused by the register", 100)                                        \
    X(START_TIMEOUT, "starts that gave up waiting for the arbiter", 10)                            \
    X(STOPPED, "stops on purpose", 200)                                                            \
    X(STOP_PROTECTED, "stops of a protected VM", 100)                                              \
    X(UNPROTECTED, "a protected VM was unprotected", 500)                                          \
    X(OUTRUN, "a protected VM was given up because it outran the link", 200)                       \
    X(OUTRUN_BACK, "... and protected again", 100)                                                 \
    X(THROTTLED, "VMs held after a cut until earlier epochs were acknowledged", 500)               \
    X(STOOD_PRIMARY, "a primary that had stood still", 1000)                                       \
    X(STOOD_STANDBY, "a standby that had stood still", 1000)                                       \
    X(LATE_STANDBY, "a standby's timer that was late by itself", 100)                              \
    X(ARB_CRASH_APPLIED, "a question carried out by an arbiter that crashed", 50)                  \
    X(ARB_ERROR, "errors of the arbiter", 100)                                                     \
    X(DIED_UNPROTECTED, "VMs that died unprotected", 1000)                                         \
    X(SEIZED, "starts with seize", 50)                                                             \
    X(HANDED_OVER, "switchovers", 1000)                                                            \
    X(HAND_GIVEN_UP, "switchovers that were given up: the VM ran on", 100)                         \
    X(HAND_TAKEN_LATE, "... or were found to have happened", 20)                                   \
    X(HAND_DIED, "VMs that died while they were handed over", 20)                                  \
    X(RESYNC_UNION, "disks brought up to date by the dirty maps", 10000)                           \
    X(RESYNC_UNDO, "... which undid what a former primary wrote last", 1000)                       \
    X(RESYNC_FULL, "disks copied as a whole", 10000)                                               \
    X(REDO_REPLAYED, "redo logs replayed", 1000)                                                   \
    X(REDO_TORN, "... after a crash in the middle of applying an epoch", 200)                      \
    X(TAIL_DROPPED, "takeovers with an epoch in the redo log that nobody had heard of", 20)        \
    X(HELD_WRITE, "guest writes that waited for the redo log to be emptied", 1000)                 \
    X(POWER_LOST_WRITES, "losses of power that took writes", 5000)                                 \
    X(POWER_LOST_REDO, "losses of power that took epochs of a redo log", 500)                      \
    X(RECOVERED, "recoveries from the newest copy after both hosts had gone", 500)                 \
    X(STARTED_CLAIMED, "starts from a copy that had been claimed and had not run", 20)             \
    X(STARTED_FLUSHED, "starts that had to find flushed writes", 2000)                             \
    X(REFUSED_OLDER, "starts refused because the copy is older", 1000)                             \
    X(REFUSED_INCOMPLETE, "starts refused because the copy is incomplete", 200)                    \
    X(REFUSED_UNKNOWN, "starts refused because nothing is known of the copy", 200)                 \
    X(HOST_BACK, "hosts that crashed and came back", 5000)                                         \
    X(BACKED_BY_RETURNED, "... and became the standby of a VM, until it was protected", 2000)      \
    X(ARBITER_BACK, "the arbiter crashed and came back", 2000)                                     \
    X(DISK_EPOCH, "epochs with a flush of the guest were committed", 20000)                        \
    X(MUTE, "VMs left mute by a guard that died", 5000)                                            \
    X(MUTE_TERM_GIVEN, "... which had given away a pair term that was not recorded", 100)          \
    X(MUTE_REPLACED, "... killed by a standby for the new owner", 50)                              \
    X(MUTE_GIVEN_UP, "... whose guards died too often", 50)                                        \
    X(ATTACH, "guards that attached to a mute VM", 5000)                                           \
    X(ATTACH_AGAIN, "... after a guard that had attached", 100)                                    \
    X(ATTACH_WON, "... and won the register", 1000)                                                \
    X(ATTACH_LOST, "... and found another owner", 500)                                             \
    X(ATTACH_RESUMED, "... and resumed a VM that stood still", 200)                                \
    X(DAEMON_CRASH, "understudyd crashed", 1000)                                                   \
    X(DAEMON_AWAY, "connections to a host without understudyd", 500)                               \
    X(RELINK, "links replaced because keys changed", 1000)                                         \
    X(RELINK_IN_FLIGHT, "... with epochs under way", 500)                                          \
    X(RELINK_KEPT, "... that could not be, and stayed", 10)                                        \
    X(RELINK_LOST, "... that could not be, and were lost", 5)                                      \
    X(RELINK_LEFT, "... while the pair was being left", 5)                                         \
    X(LEADER_LOST, "the arbiter changed its leader", 10000)                                        \
    X(REPEATED, "questions that were carried out twice", 2000)                                     \
    X(REPEATED_WON, "... and answered by their own outcome", 500)                                  \
    X(THIRD_HOST, "schedules with three hosts", 5000)

enum coverage {
#define X(name, text, least) COVER_##name,
    COVERAGE(X)
#undef X
        COVERAGES,
};

#endif
