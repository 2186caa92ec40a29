/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

const char *const host_names[HOSTS_MAX] = {"hosta", "hostb", "hostc"};

const char *const profile_names[PROFILES] = {
    [PROFILE_NONE] = "none",   [PROFILE_LIGHT] = "light",   [PROFILE_NETWORK] = "network",
    [PROFILE_CRASH] = "crash", [PROFILE_FREEZE] = "freeze", [PROFILE_EVERYTHING] = "everything",
};

/* ---- random numbers: xoshiro256** 1.0, seeded by splitmix64 (Blackman and Vigna, 2018) ---- */

static uint64_t rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

static uint64_t rng_next(struct rng *r)
{
    uint64_t result = rotl(r->s[1] * 5, 7) * 9, t = r->s[1] << 17;

    r->s[2] ^= r->s[0];
    r->s[3] ^= r->s[1];
    r->s[1] ^= r->s[2];
    r->s[0] ^= r->s[3];
    r->s[2] ^= t;
    r->s[3] = rotl(r->s[3], 45);
    return result;
}

static void rng_seed(struct rng *r, uint64_t seed)
{
    unsigned i;

    for (i = 0; i < 4; i++) {
        uint64_t z = (seed += 0x9e3779b97f4a7c15);

        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        r->s[i] = z ^ (z >> 31);
    }
}

/* A number below n from the bytes. */
static uint64_t choose(struct rng *r, uint64_t n)
{
    unsigned wide = n > 16 && r->n_choices > 1, x = *r->choices++;

    if (wide)
        x = x << 8 | *r->choices++;
    r->n_choices -= 1 + wide;
    return (uint64_t)(((unsigned __int128)x * n) >> (wide ? 16 : 8));
}

uint64_t rng_below(struct world *w, uint64_t n)
{
    if (w->rng.n_choices)
        return choose(&w->rng, n);
    return (uint64_t)(((unsigned __int128)rng_next(&w->rng) * n) >> 64);
}

uint64_t rng_range(struct world *w, uint64_t lo, uint64_t hi)
{
    return lo + rng_below(w, hi - lo + 1);
}

uint64_t rng_log(struct world *w, uint64_t lo, uint64_t hi)
{
    unsigned octaves = 0;
    uint64_t x;

    while (lo << (octaves + 1) <= hi)
        octaves++;
    x = lo << rng_below(w, octaves + 1);
    x += rng_below(w, x);
    return x < hi ? x : hi;
}

uint64_t rng_mean(struct world *w, uint64_t mean)
{
    /* The product of two uniform numbers, scaled: many short times, few long ones, no logarithm. */
    uint64_t a = rng_below(w, 2 * mean + 1), b = rng_below(w, 2048);

    return a * b / 1024;
}

bool rng_chance(struct world *w, unsigned millionths)
{
    return millionths && rng_below(w, 1000000) < millionths;
}

/* ---- events ---- */

static bool before(const struct event *a, const struct event *b)
{
    return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->seq < b->seq);
}

static void queue_push(struct queue *q, const struct event *ev)
{
    unsigned i = q->n++;

    if (q->n > q->capacity) {
        q->capacity = q->capacity ? 2 * q->capacity : 1024;
        q->heap = realloc(q->heap, q->capacity * sizeof(*q->heap));
        if (!q->heap)
            abort();
    }
    while (i && before(ev, &q->heap[(i - 1) / 2])) {
        q->heap[i] = q->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    q->heap[i] = *ev;
}

static void queue_pop(struct queue *q, struct event *ret_ev)
{
    struct event last = q->heap[--q->n];
    unsigned i = 0, child;

    *ret_ev = q->n ? q->heap[0] : last;
    if (!q->n)
        return;
    while ((child = 2 * i + 1) < q->n) {
        if (child + 1 < q->n && before(&q->heap[child + 1], &q->heap[child]))
            child++;
        if (!before(&q->heap[child], &last))
            break;
        q->heap[i] = q->heap[child];
        i = child;
    }
    q->heap[i] = last;
}

void world_post(struct world *w, uint64_t at_ns, enum event_type type, uint8_t proc, uint32_t arg)
{
    struct event ev = {
        .at_ns = at_ns,
        .seq = w->queue.seq++,
        .type = (uint8_t)type,
        .proc = proc,
        .arg = arg,
        .life = proc == NO_PROC ? 0 : proc_get(w, proc)->life,
    };

    queue_push(&w->queue, &ev);
}

static void world_event(struct world *w, const struct event *ev)
{
    switch (ev->type) {
    case EV_DELIVER:
        net_deliver(w, ev->arg);
        break;
    case EV_ARB_ARRIVE:
        arbiter_arrive(w, ev->arg);
        break;
    case EV_ARB_APPLY:
        arbiter_apply(w, ev->arg);
        break;
    case EV_ARB_UP:
        arbiter_up(w);
        break;
    case EV_HOST_UP:
        host_up(w, ev->arg);
        break;
    case EV_DAEMON_UP:
        daemon_up(w, ev->arg);
        break;
    case EV_ATTACH:
        daemon_attach(w, ev->arg);
        break;
    case EV_FAULT:
    case EV_FAULT_SOON:
        fault_strike(w, ev->type == EV_FAULT);
        break;
    case EV_OPERATOR:
        operator_turn(w);
        break;
    case EV_HEAL:
        fault_heal(w);
        break;
    case EV_SINGLE:
        fault_single(w);
        break;
    case EV_LOOP:
        fault_loop(w, ev->arg);
        break;
    case EV_HIT:
        fault_hit(w);
        break;
    case EV_VERDICT:
        live_verdict(w);
        break;
    case EV_DEADLINE:
        live_deadline(w);
        break;
    default:
        break;
    }
}

static void dispatch(struct world *w, const struct event *ev)
{
    bool current = ev->proc == NO_PROC || proc_get(w, ev->proc)->life == ev->life;

    if (ev->proc == NO_PROC)
        world_event(w, ev);
    else if (ev->type <= EV_PROC_LAST)
        proc_handle(w, ev);
    else if (current && ev->type == EV_THAW)
        proc_thaw(w, ev->proc);
    else if (current && ev->type == EV_VM_STEP)
        vm_step(w, ev->proc);
}

/* ---- one schedule ---- */

struct world *world_new(void)
{
    struct world *w = calloc(1, sizeof(*w));

    if (w) /* first of all, so that a schedule never waits for memory */
        w->queue.heap = calloc(w->queue.capacity = 4096, sizeof(*w->queue.heap));
    return w;
}

void world_free(struct world *w)
{
    if (w)
        free(w->queue.heap);
    free(w);
}

/* Big tables need no clearing: what is in them counts only up to their n. */
static void world_reset(struct world *w)
{
    unsigned i;

    w->now_ns = w->n_events = w->dead_since_ns = 0;
    memset(w->covered, 0, sizeof(w->covered));
    w->healed = w->done = w->failed = false;
    w->n_trace = 0;
    w->queue.n = 0;
    w->queue.seq = 0;
    for (i = 0; i < PROCS; i++) {
        struct proc *p = proc_get(w, (uint8_t)i);

        p->alive = false;
        p->life = 1;
        p->n_inbox = p->ask = 0;
        p->frozen_until_ns = p->thawed_at_ns = 0;
        p->timer_at_ns = NEVER;
    }
    for (i = 0; i < HOSTS_MAX; i++) {
        w->hosts[i].up = w->hosts[i].daemon_up = true;
        w->hosts[i].mute = w->hosts[i].has_crashed = false;
        w->hosts[i].attaches = 0;
        w->hosts[i].frozen_until_ns = 0;
        disk_init(w, i);
    }
    w->arbiter.up = true;
    w->arbiter.life = w->arbiter.n_asks = 0;
    w->arbiter.slow_until_ns = w->arbiter.leaderless_until_ns = 0;
    w->arbiter.owner = w->arbiter.standby = NO_HOST;
    memset(&w->arbiter.reg, 0, sizeof(w->arbiter.reg));
    memset(&w->arbiter.old, 0, sizeof(w->arbiter.old));
    memset(w->net.blocked_until_ns, 0, sizeof(w->net.blocked_until_ns));
    w->net.n_conns = w->net.n_msgs = w->net.free_msg = 0;
    memset(&w->truth, 0, offsetof(struct truth, branches));
    w->truth.n_sessions = 1; /* 0 means none */
    memset(&w->truth.history[0], 0, sizeof(w->truth.history[0]));
    w->truth.last_term = 0;
    w->truth.emitted = w->truth.last_emit_ns = w->truth.must_activate = 0;
    w->truth.protected_since_ns = w->truth.emitted_before = 0;
    w->truth.was_protected = w->truth.left_protected = false;
    w->truth.n_writes = w->truth.n_flushes = w->truth.required = w->truth.judged_from = 0;
    memset(&w->truth.writes[0], 0, sizeof(w->truth.writes[0]));
    memset(w->truth.flushes[0], 0, sizeof(w->truth.flushes[0]));
}

void world_choose(struct world *w, const uint8_t *choices, size_t n)
{
    w->rng.choices = choices;
    w->rng.n_choices = n;
}

static sigjmp_buf on_assert;

static void assertion(int sig)
{
    siglongjmp(on_assert, sig);
}

void world_run(struct world *w, uint64_t seed, enum profile profile, enum plant plant, bool tracing,
               bool verbose)
{
    void (*handler)(int);
    struct event ev;

    world_reset(w);
    w->seed = seed;
    w->plant = plant;
    w->tracing = tracing || verbose;
    w->verbose = verbose;
    rng_seed(&w->rng, seed);
    handler = signal(SIGABRT, assertion);
    if (sigsetjmp(on_assert, 1) != 0) {
        world_fail(w, "an assertion of the machines failed");
        (void)signal(SIGABRT, handler);
        return;
    }
    faults_setup(w, profile);
    faults_begin(w);
    while (!w->failed && !w->done && w->queue.n) {
        queue_pop(&w->queue, &ev);
        w->now_ns = ev.at_ns;
        w->n_events++;
        dispatch(w, &ev);
        if (!w->failed)
            check_step(w);
    }
    (void)signal(SIGABRT, handler);
    w->rng.n_choices = 0;
}

/* ---- what people see ---- */

void world_fail(struct world *w, const char *fmt, ...)
{
    va_list args;

    if (w->failed)
        return;
    w->failed = true;
    va_start(args, fmt);
    (void)vsnprintf(w->failure, sizeof(w->failure), fmt, args); /* cut at worst: for people */
    va_end(args);
    TRACE(w, "VIOLATION: %s", w->failure);
}

void world_trace(struct world *w, const char *fmt, ...)
{
    char *line = w->trace[w->n_trace++ % TRACE_LINES];
    int n = snprintf(line, TRACE_BYTES, "%11.6f ms  ", (double)w->now_ns / 1e6);
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(line + n, TRACE_BYTES - (size_t)n, fmt, args); /* cut at worst: for people */
    va_end(args);
    if (w->verbose)
        puts(line);
}

void world_print_trace(const struct world *w)
{
    unsigned i = w->n_trace > TRACE_LINES ? w->n_trace - TRACE_LINES : 0;

    for (; i < w->n_trace; i++)
        printf("# %s\n", w->trace[i % TRACE_LINES]);
}
