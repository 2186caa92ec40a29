/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "sim.h"

/* The invariants of the disks (docs/simulation.md, D1 to D3). */

static const uint32_t *image(const struct world *w, unsigned host)
{
    return w->hosts[host].disk.image;
}

void check_disk_matches(struct world *w, unsigned host, const struct memory *memory,
                        const char *when)
{
    unsigned b;

    for (b = 0; b < BLOCKS; b++) {
        if (image(w, host)[b] != memory->disk[b])
            world_fail(w, "D1: %s, %s: block %u holds write %u, memory says %u", host_names[host],
                       when, b, image(w, host)[b], memory->disk[b]);
    }
}

void check_resync(struct world *w, unsigned primary, unsigned standby, uint8_t mask)
{
    unsigned b;

    for (b = 0; b < BLOCKS; b++) {
        if (image(w, primary)[b] == image(w, standby)[b])
            continue;
        if (!(mask & (1u << b)))
            world_fail(w, "D2: block %u is in neither map, %s has write %u and %s %u", b,
                       host_names[primary], image(w, primary)[b], host_names[standby],
                       image(w, standby)[b]);
        else if (!lineage_covers(w, w->hosts[primary].disk.last,
                                 w->truth.writes[image(w, standby)[b]]))
            cover(w, COVER_RESYNC_UNDO);
    }
}

/* The host that owned the VM before it was started just now; "" = nobody ever. */
static const char *last_owner(const struct world *w)
{
    uint64_t term = w->arbiter.reg.term;

    while (term && --term) {
        if (w->truth.history[term].owner[0])
            return w->truth.history[term].owner;
    }
    return "";
}

/* A write may be there if it belongs to the history that the world outside has seen, or could
 * still have become part of it. */
static bool may_hold(const struct world *w, uint32_t write)
{
    const struct truth *t = &w->truth;
    struct state front = t->front[t->n_boots - 1], at = t->writes[write];

    return lineage_covers(w, front, at) || lineage_covers(w, at, front);
}

static void check_block(struct world *w, unsigned host, unsigned b)
{
    const struct truth *t = &w->truth;
    uint32_t is = image(w, host)[b], must = t->flushes[t->required][b];

    if (is <= t->judged_from && must <= t->judged_from)
        return;
    if (is < must)
        world_fail(w, "D3: %s starts the VM, block %u holds write %u, but write %u was flushed",
                   host_names[host], b, is, must);
    else if (is > must && !may_hold(w, is))
        world_fail(w, "D3: %s starts the VM, block %u holds write %u of another history",
                   host_names[host], b, is);
}

static void cover_start(struct world *w, unsigned host)
{
    const struct start_order *order = &w->hosts[host].guard.core.order;

    if (w->truth.required)
        cover(w, COVER_STARTED_FLUSHED);
    if (order->copy.role == COPY_STANDBY)
        cover(w, COVER_STARTED_CLAIMED);
    if (order->recover && w->truth.history[w->arbiter.reg.term - 1].mode == ARB_PAIRED)
        cover(w, COVER_RECOVERED);
}

void check_disk_start(struct world *w, unsigned host, bool seize)
{
    struct truth *t = &w->truth;
    unsigned b;

    if (seize) { /* whatever it is, from now on it is the VM's disk */
        disk_sync(&w->hosts[host].disk);
        t->required = 0;
        t->judged_from = t->n_writes;
        return;
    }
    if (!t->n_boots)
        return;
    cover_start(w, host);
    if (strcmp(last_owner(w), host_names[host]) != 0)
        world_fail(w, "D3: %s starts the VM from its copy, %s has a newer one", host_names[host],
                   last_owner(w));
    for (b = 0; b < BLOCKS; b++)
        check_block(w, host, b);
}
