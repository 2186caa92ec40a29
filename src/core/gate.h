/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_GATE_H
#define US_CORE_GATE_H

#include <stdbool.h>
#include <stdint.h>

/* The output gate's book-keeping (Remus, NSDI 2008, section 2.4: output commit). Every frame of the
 * guest is stamped with the epoch that covers its cause when it is read; it may leave when that
 * epoch is committed, or at once while the gate flows because the register names this host sole
 * owner.
 *
 * A frame that is read before the VM goes on after a checkpoint was sent before that checkpoint,
 * so the checkpoint covers it; one that is read later belongs to the next epoch. The shell
 * therefore calls gate_cut() after it has emptied the VM's sockets and before it resumes the VM. */
struct gate {
    bool holding;
    uint64_t open_epoch; /* stamp of frames read now: the epoch that will be cut next */
    uint64_t committed;  /* newest committed epoch */
};

static inline void gate_init(struct gate *g, uint64_t open_epoch)
{
    *g = (struct gate){.open_epoch = open_epoch};
}

/* Epoch `epoch` was cut: later frames belong to the one after it. When the copy of an epoch lasts
 * longer than its session, the next session's seeding epochs are cut before it is done: a stamp
 * never goes back, or it would pass for committed. */
static inline void gate_cut(struct gate *g, uint64_t epoch)
{
    if (epoch >= g->open_epoch)
        g->open_epoch = epoch + 1;
}

/* May a frame with this stamp leave the host? */
static inline bool gate_may_leave(const struct gate *g, uint64_t stamp)
{
    return !g->holding || stamp <= g->committed;
}

#endif
