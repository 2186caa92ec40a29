/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_EFFORT_H
#define US_GUARD_EFFORT_H

#include <stdbool.h>
#include <stdint.h>

/* How hard the sender works on pages: what encoding costs against what it saves. No clock in here.
 *
 * Theory of operation. What a page costs at a level is the time to encode it and the time that its
 * bytes take to write; the level with the lowest cost is best. Each message tells what its parts
 * took and yielded, so that the levels below the present one are known from it as well: they leave
 * parts out. Compressors that the present level does not use are tried now and then on what is to
 * be sent anyway: that costs time, and changes no byte. At EFFORT_RAW nothing is known of pages any
 * more, so from there, now and then, comes a trial of some messages at EFFORT_DELTA; at once when
 * the sender keeps up, for then that level has no use.
 *
 * A byte costs what writing has taken of late. But writing into a socket that has room is quick
 * whatever the link is like, and links are shared: while the sender keeps up, a byte costs at least
 * EFFORT_IDLE_NS_PER_BYTE, so that time that nobody waits for is spent on it. When most epochs
 * wait for the sender, time is what counts.
 *
 * Figures are sums that fade with each message. A level is left only when what that saves is at
 * least a fifth more than what it costs, and not before EFFORT_STAY messages. */

enum effort_level {
    EFFORT_RAW,   /* zero pages, and whole ones */
    EFFORT_DELTA, /* unchanged and repeated ones; changes alone of pages in the cache */
    EFFORT_LZ4,   /* that, then LZ4 */
    EFFORT_ZSTD,  /* that, then Zstandard */
    EFFORT_LEVELS,
};

enum {
    EFFORT_IDLE_NS_PER_BYTE = 40, /* a link of 200 Mbit/s */
    EFFORT_STAY = 32,             /* messages */
    EFFORT_TRY_EVERY = 32,        /* messages between two tries of compressors not in use */
    EFFORT_TRIAL_EVERY = 256,     /* messages at EFFORT_RAW before a trial */
    EFFORT_TRIAL = 16,            /* messages of a trial */
};

/* What one message of pages took, in all of its pages. */
struct effort_sample {
    uint32_t n_pages;           /* at least 1 */
    uint32_t n_body;            /* bytes before compression */
    uint64_t body_ns;           /* to make them */
    bool packed[EFFORT_LEVELS]; /* tried: LZ4, ZSTD. And what it took and gave (n_body: nothing) */
    uint64_t pack_ns[EFFORT_LEVELS];
    uint32_t n_packed[EFFORT_LEVELS];
};

/* Fading sums; `of` is what is divided by. */
struct effort_rate {
    double sum, of;
};

struct effort {
    enum effort_level level;
    bool fixed;    /* stays at its level */
    uint32_t stay; /* messages until the level may be left */
    uint32_t until_try;
    uint32_t trial; /* messages left of a trial of EFFORT_DELTA; it ends in a decision */
    struct effort_rate waiting;                /* epochs that wait, per epoch */
    struct effort_rate write_ns;               /* per byte */
    struct effort_rate body_ns, body_bytes;    /* per page, at EFFORT_DELTA and above */
    struct effort_rate pack_ns[EFFORT_LEVELS]; /* per page: LZ4, ZSTD */
    struct effort_rate packed[EFFORT_LEVELS];  /* bytes per page, likewise */
};

/* fixed: never leaves the level. */
void effort_init(struct effort *e, enum effort_level level, bool fixed);

/* Whether that compressor is to be tried on the next message: the present level's always. */
bool effort_tries(const struct effort *e, enum effort_level level);

/* A message was encoded. Returns true when the level has changed, for the next message: below
 * EFFORT_DELTA nothing is kept of pages. */
bool effort_sample(struct effort *e, const struct effort_sample *sample);

/* So many bytes were written. */
void effort_written(struct effort *e, uint64_t n_bytes, uint64_t ns);

/* An epoch was encoded; another one that is whole waits already, or none does. */
void effort_epoch(struct effort *e, bool another_waits);

#endif
