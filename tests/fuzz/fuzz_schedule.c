/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

/* A schedule of the simulation (docs/simulation.md). The input is a byte for the profile and then
 * what chance decides otherwise: delays, faults, orders. When it is used up, a seeded generator
 * goes on. What the fuzzer is after are situations that were not met before, besides new code. */

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t situations[COVERAGES];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void run(struct world *w, const uint8_t *data, size_t n, bool tracing)
{
    world_choose(w, data + 1, n - 1);
    world_run(w, 1, (enum profile)(data[0] % PROFILES), PLANT_NONE, tracing, false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct world *w;
    unsigned i;

    if (!w && !(w = world_new()))
        abort();
    if (!n)
        return 0;
    run(w, data, n, false);
    for (i = 0; i < COVERAGES; i++)
        situations[i] = w->covered[i];
    /* A table of the simulator that is too small for such chances is nobody's fault. */
    if (!w->failed || strncmp(w->failure, "simulator", strlen("simulator")) == 0)
        return 0;
    run(w, data, n, true);
    world_print_trace(w);
    (void)fflush(stdout);
    abort();
}
