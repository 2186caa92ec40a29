/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "guard/effort.h"
#include "random.h"
#include "unit.h"

/* Loads and links that are made up; what the sender would measure follows from the level. */

struct load {
    unsigned body, lz4, zstd; /* bytes of a page: as changes, and what compressors leave */
};

struct link {
    double ns_per_byte;
    bool behind;
};

/* Changes alone, of a build; noise, rewritten all the time; text of which there are no copies. */
static const struct load build = {900, 300, 190}, noise = {4100, 4100, 4100},
                         text = {4100, 1500, 1000};
static const struct link slow = {800, true}, lan = {2, false}, fast = {0.05, true};

enum { N_PAGES = 256, BODY_NS = 1200, LZ4_NS = 1300, ZSTD_NS = 2000, RAW_NS = 300 };

static struct effort effort;
static uint64_t seed;
static enum effort_level settled;
static unsigned changes, wire_bytes; /* changes: trials that change nothing are none */

/* So many messages over a link. `noisy`: each time is anything from half to twice what it is, and
 * now and then the processor is somebody else's. */
static void run(const struct load *load, const struct link *link, unsigned n, bool noisy)
{
    while (n--) {
        struct effort_sample s = {.n_pages = N_PAGES, .n_body = N_PAGES * load->body};
        double stretch = noisy ? 0.5 + (double)(test_random(&seed) % 1000) / 667 : 1;
        enum effort_level level = effort.level;
        unsigned left = level == EFFORT_RAW    ? 4096
                        : level == EFFORT_LZ4  ? load->lz4
                        : level == EFFORT_ZSTD ? load->zstd
                                               : load->body;

        if (noisy && test_random(&seed) % 50 == 0)
            stretch *= 10;
        s.body_ns = (uint64_t)(N_PAGES * (level == EFFORT_RAW ? RAW_NS : BODY_NS) * stretch);
        for (int i = EFFORT_LZ4; i < EFFORT_LEVELS; i++) {
            s.packed[i] = effort_tries(&effort, (enum effort_level)i);
            s.pack_ns[i] = (uint64_t)(N_PAGES * (i == EFFORT_LZ4 ? LZ4_NS : ZSTD_NS) * stretch);
            s.n_packed[i] = N_PAGES * (i == EFFORT_LZ4 ? load->lz4 : load->zstd);
        }
        assert_true(level < EFFORT_LZ4 || s.packed[level]);
        effort_epoch(&effort, link->behind);
        (void)effort_sample(&effort, &s);
        if (effort.trial == 0 && effort.level != settled) {
            settled = effort.level;
            changes++;
        }
        wire_bytes += left;
        effort_written(&effort, N_PAGES * left, (uint64_t)(N_PAGES * left * link->ns_per_byte));
    }
}

static void start(void)
{
    effort_init(&effort, EFFORT_LZ4, false);
    seed = 88172645463325252;
    changes = wire_bytes = 0;
    settled = effort.level;
}

static void a_slow_link_is_worth_all(void **state)
{
    start();
    run(&build, &slow, 200, false);
    assert_int_equal(effort.level, EFFORT_ZSTD);
    run(&text, &slow, 200, false);
    assert_int_equal(effort.level, EFFORT_ZSTD);
}

static void a_fast_one_is_worth_little(void **state)
{
    start();
    run(&build, &fast, 200, false);
    assert_in_range(effort.level, EFFORT_RAW, EFFORT_DELTA);
    run(&build, &slow, 400, false); /* and back */
    assert_int_equal(effort.level, EFFORT_ZSTD);
}

/* Nobody waits for the sender: bytes count although writing them takes no time. */
static void time_that_nobody_needs(void **state)
{
    start();
    run(&build, &lan, 200, false);
    assert_in_range(effort.level, EFFORT_LZ4, EFFORT_ZSTD);
    run(&noise, &lan, 200, false);
    assert_int_equal(effort.level, EFFORT_DELTA);
    run(&build, &lan, 400, false);
    assert_in_range(effort.level, EFFORT_LZ4, EFFORT_ZSTD);
}

/* Where compression does not pay it is not done, but for some tries, which change no byte. */
static void what_does_not_compress(void **state)
{
    unsigned before;

    start();
    run(&noise, &fast, 200, false);
    assert_int_equal(effort.level, EFFORT_RAW);
    before = wire_bytes;
    run(&noise, &fast, 1000, false);
    assert_in_range(wire_bytes - before, 1000 * 4096, 1000 * 4096 + 1000 * 4);
    run(&build, &lan, 100, false); /* it keeps up again: soon there is time */
    assert_in_range(effort.level, EFFORT_LZ4, EFFORT_ZSTD);
    run(&noise, &fast, 200, false);
    assert_int_equal(effort.level, EFFORT_RAW);
    run(&text, &slow, 200, false);
    assert_int_equal(effort.level, EFFORT_ZSTD);
}

static void noise_in_the_figures(void **state)
{
    const struct link links[] = {slow, lan, fast};

    for (size_t i = 0; i < N_OF(links); i++) {
        start();
        run(&build, &links[i], 200, true);
        changes = 0;
        run(&build, &links[i], 10000, true);
        print_message("# link of %.2f ns a byte: %u changes, level %d\n", links[i].ns_per_byte,
                      changes, (int)effort.level);
        assert_in_range(changes, 0, 100); /* EFFORT_STAY alone would permit 312 */
    }
}

static void fixed(void **state)
{
    start();
    effort_init(&effort, EFFORT_RAW, true);
    settled = EFFORT_RAW;
    run(&text, &slow, 1000, false);
    assert_int_equal(effort.level, EFFORT_RAW);
    assert_int_equal(changes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slow_link_is_worth_all), cmocka_unit_test(a_fast_one_is_worth_little),
        cmocka_unit_test(time_that_nobody_needs),   cmocka_unit_test(what_does_not_compress),
        cmocka_unit_test(noise_in_the_figures),     cmocka_unit_test(fixed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
