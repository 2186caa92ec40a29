/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/effort.h"

#include <math.h>

#include "wire/msg.h"

/* How fast old figures fade: each is worth so much less, in parts of it, than the one after it. */
enum {
    FADE = 8,        /* of messages */
    FADE_TRY = 2,    /* of compressors that are only tried: seldom, so soon out of date */
    FADE_EPOCH = 16, /* of epochs */
    FADE_WRITE = 32, /* of writes: one that waits for the link comes after many that do not */
};

/* What a change of level has to save, of what it costs. */
static const double worth_a_change = 1.2;

static void add(struct effort_rate *rate, double sum, double of, double fade)
{
    rate->sum = rate->sum * (1 - 1 / fade) + sum;
    rate->of = rate->of * (1 - 1 / fade) + of;
}

static bool known(const struct effort_rate *rate)
{
    return rate->of > 0;
}

static double get(const struct effort_rate *rate)
{
    return rate->sum / rate->of;
}

void effort_init(struct effort *e, enum effort_level level, bool fixed)
{
    *e = (struct effort){.level = level, .fixed = fixed};
}

/* Of a page at a level, in ns: the time to encode it, and what its bytes cost. */
struct cost {
    double time, bytes;
};

static double total(struct cost cost)
{
    return cost.time + cost.bytes;
}

/* Most epochs wait. */
static bool behind(const struct effort *e)
{
    return known(&e->waiting) && get(&e->waiting) > 0.5;
}

/* Infinite when it is not known, or not wanted. */
static struct cost cost_of(const struct effort *e, enum effort_level level)
{
    double price = known(&e->write_ns) ? get(&e->write_ns) : 0;

    if (!behind(e) && price < EFFORT_IDLE_NS_PER_BYTE)
        price = EFFORT_IDLE_NS_PER_BYTE;
    if (level == EFFORT_RAW && behind(e))
        return (struct cost){0, WIRE_PAGE_BYTES * price};
    if (level == EFFORT_RAW || !known(&e->body_ns) ||
        (level >= EFFORT_LZ4 && !known(&e->packed[level])))
        return (struct cost){INFINITY, INFINITY};
    if (level == EFFORT_DELTA)
        return (struct cost){get(&e->body_ns), get(&e->body_bytes) * price};
    return (struct cost){get(&e->body_ns) + get(&e->pack_ns[level]),
                         get(&e->packed[level]) * price};
}

bool effort_tries(const struct effort *e, enum effort_level level)
{
    if (level == e->level)
        return level >= EFFORT_LZ4;
    return !e->fixed && level >= EFFORT_LZ4 && e->level != EFFORT_RAW &&
           (e->trial > 0 || e->until_try == 0);
}

static enum effort_level best(const struct effort *e)
{
    enum effort_level level = e->level;

    for (int i = 0; i < EFFORT_LEVELS; i++)
        if (total(cost_of(e, (enum effort_level)i)) < total(cost_of(e, level)))
            level = (enum effort_level)i;
    return level;
}

static double above_zero(double x)
{
    return x > 0 ? x : 0;
}

/* Whether going from one to the other saves enough: time or bytes, for more of the other. */
static bool worth(struct cost from, struct cost to)
{
    double less = above_zero(from.time - to.time) + above_zero(from.bytes - to.bytes);
    double more = above_zero(to.time - from.time) + above_zero(to.bytes - from.bytes);

    return less > worth_a_change * more;
}

/* Goes to the best level, if that is worth it. */
static bool decide(struct effort *e)
{
    enum effort_level level = best(e);

    if (level == e->level || !worth(cost_of(e, e->level), cost_of(e, level)))
        return false;
    e->level = level;
    e->stay = EFFORT_STAY;
    e->until_try = level == EFFORT_RAW ? EFFORT_TRIAL_EVERY : EFFORT_TRY_EVERY;
    return true;
}

static void learn(struct effort *e, const struct effort_sample *s)
{
    if (e->level == EFFORT_RAW)
        return;
    add(&e->body_ns, (double)s->body_ns, s->n_pages, FADE);
    add(&e->body_bytes, s->n_body, s->n_pages, FADE);
    for (int i = EFFORT_LZ4; i < EFFORT_LEVELS; i++)
        if (s->packed[i]) {
            double fade = e->level == (enum effort_level)i ? FADE : FADE_TRY;

            add(&e->pack_ns[i], (double)s->pack_ns[i], s->n_pages, fade);
            add(&e->packed[i], s->n_packed[i], s->n_pages, fade);
        }
}

bool effort_sample(struct effort *e, const struct effort_sample *sample)
{
    if (e->fixed)
        return false;
    learn(e, sample);
    if (e->until_try == 0)
        e->until_try = EFFORT_TRY_EVERY;
    e->until_try--;
    if (e->stay)
        e->stay--;
    if (e->trial > 0)
        return --e->trial == 0 && decide(e);
    if (e->level == EFFORT_RAW && (e->until_try == 0 || !behind(e))) {
        e->level = EFFORT_DELTA;
        e->trial = EFFORT_TRIAL;
        e->until_try = EFFORT_TRY_EVERY;
        return true;
    }
    return e->stay == 0 && decide(e);
}

void effort_written(struct effort *e, uint64_t n_bytes, uint64_t ns)
{
    add(&e->write_ns, (double)ns, (double)n_bytes, FADE_WRITE);
}

void effort_epoch(struct effort *e, bool another_waits)
{
    add(&e->waiting, another_waits, 1, FADE_EPOCH);
}
