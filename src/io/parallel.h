/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_PARALLEL_H
#define US_IO_PARALLEL_H

#include <stddef.h>

#include "base/err.h"

/* A few threads that help their owner with work which comes in parts, over and over: for what is
 * done while a VM stands still.
 *
 * Theory of operation. A round is a function and a number of parts. Owner and helpers claim part
 * after part under one lock. A helper holds a lock of its own while it works on a part; the owner,
 * out of parts to claim, takes and returns each helper's lock in turn, and so waits for those that
 * still work. All locks inherit priority (io/lock.h): a helper, which has the usual one, never
 * lets an owner with a real-time priority wait behind somebody else's load. A helper that wakes up
 * late finds nothing to claim, and nobody waits for it. */

enum { PARALLEL_THREADS_MAX = 4 }; /* the owner included: memory bandwidth is used up then */

struct parallel;

/* Makes a pool of n_threads, its owner included; 0: as many as there are cores online. At most
 * PARALLEL_THREADS_MAX, and fewer where they cannot be had. Returns 0 or -ENOMEM. */
int parallel_new(unsigned n_threads, struct parallel **ret_parallel) US_MUST_CHECK;

/* Calls fn(arg, i) once for each i below n_parts, in any order and at the same time, and returns
 * when all calls have. Parts should take more than some microseconds and be several times as many
 * as there are threads. NULL: the caller does all. One round at a time. */
void parallel_run(struct parallel *parallel, size_t n_parts, void (*fn)(void *arg, size_t part),
                  void *arg);

/* Ends the threads and frees the pool. NULL is allowed. */
void parallel_free(struct parallel *parallel);

#endif
