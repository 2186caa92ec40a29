/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_CONTROLLER_MODEL_H
#define US_TESTS_CONTROLLER_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "core/controller.h"
#include "core/vm_spec.h"
#include "unit.h"

/* The controller in a closed model of a guest, its clients, its pauses and the way to its standby,
 * in steps of 50 us. The load changes as it likes; what is asserted is what the VM's owner was
 * promised. */

#define US UINT64_C(1000)
#define MS UINT64_C(1000000)
#define S  UINT64_C(1000000000)

enum {
    STEP_NS = 50000,
    CLIENTS_MAX = 64,
    SAMPLES_MAX = 1 << 18,
    EPOCHS = CONTROLLER_IN_FLIGHT_MAX,
    PERMILLE = 1000,
};

/* What goes on for a while. */
struct load {
    uint64_t ns;
    uint64_t dirty_per_s; /* pages that the guest dirties while it runs */
    uint64_t busy;        /* permille of a CPU, besides its clients */
    unsigned clients;     /* each sends a request, waits for the answer, thinks */
    uint64_t think_ns, service_ns;
    uint64_t carries;  /* bytes a second */
    uint64_t trip_ns;  /* to the standby and back */
    uint64_t epoch_ns; /* that both hosts compute for an epoch, one after the other */
};

struct client {
    uint64_t asked_ns;
    uint64_t next_ns; /* thinking until then; 0 = waiting */
    uint64_t work_ns; /* of the request, still to be done */
    uint64_t epoch;   /* of the answer; 0 = none yet */
};

struct sent {
    uint64_t epoch, ack_ns;
};

struct model {
    struct controller c;
    struct load load;
    uint64_t now;
    uint64_t dirty_milli;           /* thousandths of pages */
    uint64_t ran_ns, worked_ns;     /* since the VM went on */
    uint64_t pause_until, pause_ns; /* 0: none */
    uint64_t dirty_seen;            /* pages, at the last look */
    bool held;
    uint64_t held_since;
    struct client clients[CLIENTS_MAX];
    struct sent sent[EPOCHS];
    unsigned n_sent;
    uint64_t way_free_ns;
    uint64_t open_epoch;

    /* what came of it, in the present load */
    uint64_t began_ns, last_cut_ns;
    uint64_t cost_ns, held_ns, longest_stop_ns;
    uint64_t answers, cuts;
    unsigned most_in_flight;
    uint64_t most_bytes, largest_pages;
    uint32_t latency_us[SAMPLES_MAX];
    uint32_t interval_us[SAMPLES_MAX];
    uint64_t n_intervals;
    bool outrun;
};

static inline struct controller_params params(void)
{
    return (struct controller_params){
        .interval_min_ns = 5 * MS,
        .interval_max_ns = 500 * MS,
        .slowdown_permille = 250,
        .epoch_pages_max = 8192,
        .in_flight_bytes_max = UINT64_C(256) << 20,
    };
}

static inline void model_init(struct model *m, const struct controller_params *p)
{
    memset(m, 0, sizeof(*m));
    m->now = 1000 * S;
    m->way_free_ns = m->now;
    m->open_epoch = 1;
    controller_init(&m->c, p, m->now);
    controller_link(&m->c, 200 * US, m->now);
}

static inline struct model *model_new(const struct controller_params *p)
{
    struct model *m = malloc(sizeof(*m));

    assert_non_null(m);
    model_init(m, p);
    return m;
}

/* Of a cut: the device state, and 4 pages in a microsecond. */
static inline uint64_t pause_of(uint64_t pages)
{
    return 1500 * US + pages * US / 4;
}

static inline void send(struct model *m, uint64_t epoch, uint64_t bytes)
{
    uint64_t begin = m->way_free_ns > m->now ? m->way_free_ns : m->now;

    assert_true(m->n_sent < EPOCHS);
    m->way_free_ns =
        begin + m->load.epoch_ns + (bytes + 65536) * 1000 / (m->load.carries / 1000000 + 1);
    m->sent[m->n_sent++] = (struct sent){epoch, m->way_free_ns + m->load.trip_ns + 1500 * US};
}

static inline void answer(struct model *m, uint64_t committed)
{
    for (unsigned i = 0; i < m->load.clients; i++) {
        struct client *k = &m->clients[i];

        if (!k->epoch || k->epoch > committed)
            continue;
        m->latency_us[m->answers++ % SAMPLES_MAX] = (uint32_t)((m->now - k->asked_ns) / US);
        *k = (struct client){.next_ns = m->now + m->load.think_ns * (8 + i % 8) / 8};
    }
}

static inline void acknowledge(struct model *m)
{
    while (m->n_sent && m->sent[0].ack_ns <= m->now) {
        controller_acked(&m->c, m->sent[0].epoch, m->now);
        answer(m, m->sent[0].epoch);
        memmove(m->sent, m->sent + 1, --m->n_sent * sizeof(m->sent[0]));
    }
}

/* The guest runs for a step: one CPU serves the clients in turn. */
static inline void run(struct model *m)
{
    uint64_t left = STEP_NS;

    for (unsigned i = 0; i < m->load.clients && left; i++) {
        struct client *k = &m->clients[i];
        uint64_t work = k->work_ns < left ? k->work_ns : left;

        k->work_ns -= work;
        left -= work;
        if (work && !k->work_ns)
            k->epoch = m->open_epoch;
    }
    m->ran_ns += STEP_NS;
    m->worked_ns += STEP_NS - left + left * m->load.busy / PERMILLE;
    m->dirty_milli += m->load.dirty_per_s * STEP_NS / MS;
}

static inline void ask(struct model *m)
{
    for (unsigned i = 0; i < m->load.clients; i++) {
        struct client *k = &m->clients[i];

        if (!k->work_ns && !k->epoch && m->now >= k->next_ns)
            *k = (struct client){.asked_ns = m->now, .work_ns = m->load.service_ns};
    }
}

static inline struct controller_input input(const struct model *m)
{
    struct controller_input in = {.dirty_pages = m->dirty_seen};

    for (unsigned i = 0; i < m->load.clients; i++)
        in.frames_wait = in.frames_wait || m->clients[i].epoch == m->open_epoch;
    return in;
}

static inline void end_cut(struct model *m)
{
    struct controller_epoch epoch = {
        .epoch = m->open_epoch++,
        .pause_ns = m->pause_ns,
        .busy_permille = (uint32_t)(m->ran_ns ? m->worked_ns * PERMILLE / m->ran_ns : 0),
        .bytes = m->dirty_milli / 1000 * VM_PAGE_BYTES,
        .in_flight = true,
    };
    struct controller_figures f;

    controller_cut(&m->c, &epoch, m->now);
    send(m, epoch.epoch, epoch.bytes);
    m->interval_us[m->n_intervals++ % SAMPLES_MAX] = (uint32_t)((m->now - m->last_cut_ns) / US);
    m->last_cut_ns = m->now;
    m->cost_ns += m->pause_ns * epoch.busy_permille / PERMILLE;
    m->cuts++;
    if (epoch.bytes / VM_PAGE_BYTES > m->largest_pages)
        m->largest_pages = epoch.bytes / VM_PAGE_BYTES;
    m->dirty_milli = m->dirty_seen = m->ran_ns = m->worked_ns = m->pause_until = 0;
    m->held = controller_holds(&m->c, m->now);
    m->held_since = m->now - m->pause_ns;
    controller_figures_get(&m->c, &f);
    m->most_in_flight = f.in_flight > m->most_in_flight ? f.in_flight : m->most_in_flight;
    m->most_bytes = f.in_flight_bytes > m->most_bytes ? f.in_flight_bytes : m->most_bytes;
    assert_int_equal(f.in_flight, m->n_sent);
}

static inline void stop_ends(struct model *m)
{
    uint64_t stop = m->now - m->held_since;

    m->held = false;
    m->held_ns += stop;
    m->longest_stop_ns = stop > m->longest_stop_ns ? stop : m->longest_stop_ns;
}

static inline void step(struct model *m)
{
    struct controller_input in;

    m->now += STEP_NS;
    acknowledge(m);
    ask(m);
    m->outrun = m->outrun || controller_outrun(&m->c, m->now);
    if (m->held && !controller_holds(&m->c, m->now))
        stop_ends(m);
    if (m->pause_until && m->now >= m->pause_until)
        end_cut(m);
    if (m->pause_until || m->held)
        return;
    run(m);
    if (m->now >= controller_probe_at(&m->c)) {
        m->dirty_seen = m->dirty_milli / 1000;
        controller_probed(&m->c, m->dirty_seen, m->now, 50 * US);
    }
    in = input(m);
    assert_int_equal(controller_due(&m->c, &in, m->now),
                     controller_deadline(&m->c, &in, m->now) <= m->now);
    if (controller_due(&m->c, &in, m->now)) {
        m->pause_ns = pause_of(m->dirty_milli / 1000);
        m->pause_until = m->now + m->pause_ns;
    }
}

/* `settle_ns` of it do not count. */
static inline void go(struct model *m, const struct load *load, uint64_t settle_ns)
{
    m->load = *load;
    memset(m->clients, 0, sizeof(m->clients));
    for (uint64_t t = 0; t < load->ns; t += STEP_NS) {
        if (t == settle_ns) {
            m->began_ns = m->last_cut_ns = m->now;
            m->cost_ns = m->held_ns = m->longest_stop_ns = 0;
            m->answers = m->cuts = m->n_intervals = m->most_bytes = m->largest_pages = 0;
            m->most_in_flight = 0;
            m->outrun = false;
        }
        step(m);
    }
}

static inline int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

/* In us. */
static inline uint32_t percentile(uint32_t *samples, uint64_t n, unsigned percent)
{
    assert_in_range(n, 1, SAMPLES_MAX);
    qsort(samples, n, sizeof(samples[0]), compare);
    return samples[(n - 1) * percent / 100];
}

static inline uint64_t slowdown(const struct model *m)
{
    return m->cost_ns * PERMILLE / (m->now - m->began_ns);
}

static inline void report(struct model *m, const char *what)
{
    uint64_t ms = (m->now - m->began_ns) / MS;

    print_message("# %-28s %6.1f cuts/s, D %4.1f %%, held %4.1f %%, longest stop %5.1f ms, "
                  "%2u in flight, %6.1f MiB, latency p50 %.1f p99 %.1f ms, %.0f answers/s\n",
                  what, (double)m->cuts * 1e3 / (double)ms, (double)slowdown(m) / 10,
                  (double)m->held_ns * 100 / (double)MS / (double)ms,
                  (double)m->longest_stop_ns / 1e6, m->most_in_flight,
                  (double)m->most_bytes / (1 << 20),
                  m->answers ? percentile(m->latency_us, m->answers, 50) / 1e3 : 0.0,
                  m->answers ? percentile(m->latency_us, m->answers, 99) / 1e3 : 0.0,
                  (double)m->answers * 1e3 / (double)ms);
}

#endif
