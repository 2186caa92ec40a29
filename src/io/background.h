/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_BACKGROUND_H
#define US_IO_BACKGROUND_H

#include <systemd/sd-event.h>

#include "base/err.h"

/* A thread for what may block (syncing a disk), so that a loop that owes heartbeats does not. */

struct background;

int background_new(sd_event *event, struct background **ret_background) US_MUST_CHECK;

/* Has work(user) run by the thread, in the order of the calls, then done(user, its result) by the
 * loop (NULL: nobody is told). -ENOMEM. */
int background_run(struct background *b, int (*work)(void *user),
                   void (*done)(void *user, int result), void *user) US_MUST_CHECK;

/* Waits until all work that was ordered is carried out (not for the calls of `done`). */
void background_drain(struct background *b);

/* Waits for all work that was ordered, without calling anybody's `done`, and frees. NULL is
 * allowed. */
void background_free(struct background *b);

#endif
