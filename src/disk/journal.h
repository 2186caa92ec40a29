/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_JOURNAL_H
#define US_DISK_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/log.h"

/* The primary's memory of what was done to its disks and is not acknowledged: the open epoch's log,
 * which the server and the copier append to from their threads, and the closed logs of epochs in
 * flight. Bounded: adding waits for room, except while the VM is being stopped (QEMU must drain its
 * requests then). Thread-safe; everything but add, flushed and poisoned is the main thread's. */

struct journal;

enum { JOURNAL_EPOCHS_MAX = 32 };

/* limit_bytes: of packed records, open and in flight; whoever finds less than that adds one more
 * record. notify_fd: an eventfd (borrowed), written when the open log has grown past half of
 * the limit, when somebody begins to wait for room, and when the journal is poisoned. Off at first:
 * add() returns at once and keeps nothing. 0 or -ENOMEM. */
int journal_new(uint64_t limit_bytes, int notify_fd, struct journal **ret_journal) US_MUST_CHECK;
/* Nobody uses it any more. NULL is allowed. */
void journal_free(struct journal *j);

/* From now on everything is kept. Empties the journal, as stop does; it is not poisoned. */
void journal_start(struct journal *j);
/* Forgets everything; adders that wait go on. Nobody reads the logs in flight any more when this is
 * called. */
void journal_stop(struct journal *j);
/* True: add() does not wait for room (a checkpoint is being taken), and who waits goes on. */
void journal_pass(struct journal *j, bool pass);

/* Appends to the open epoch. Waits for room as described. 0, also when the journal is off; -ENOMEM:
 * the record is missing, so the journal has poisoned itself (journal_poisoned). */
int journal_add(struct journal *j, const struct disk_record *rec, const void *data);
/* A guest's flush was carried out: the open epoch's log is flushed. */
void journal_flushed(struct journal *j);
/* A record is missing: what is kept is worthless, until the next start. */
bool journal_poisoned(struct journal *j);

/* Bytes of the open log, for the controller; 0 when off. *ret_waiting: somebody waits for room. */
uint64_t journal_open_bytes(struct journal *j, bool *ret_waiting);

/* Closes the open log as that of `epoch`, a later one than all before. Returns it, or NULL when it
 * is empty and not flushed (then nothing is remembered). It stays the journal's, at its address and
 * unchanged, until acked, rebase, start or stop; until then any thread may read it. At most
 * JOURNAL_EPOCHS_MAX in flight: the caller sees to that. */
const struct disk_log *journal_cut(struct journal *j, uint64_t epoch);
/* Epochs up to this one are acknowledged: frees their logs, which makes room. */
void journal_acked(struct journal *j, uint64_t epoch);
/* The link resumed: logs in flight come, in order, before the open one again. DIGEST and MARK
 * records are dropped from them. Nobody reads the logs in flight any more when this is called. */
void journal_rebase(struct journal *j);

#endif
