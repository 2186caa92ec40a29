/* SPDX-License-Identifier: Apache-2.0 */
/* A pool of threads: each part is done once, none is left when the call returns. */
#include <stdatomic.h>

#include "io/clock.h"
#include "io/parallel.h"
#include "unit.h"

enum { PARTS_MAX = 64 };

struct work {
    size_t n_parts;
    _Atomic unsigned done[PARTS_MAX];
    _Atomic unsigned in_progress, together; /* parts; the most at one time */
    unsigned await;                         /* parts to be in progress before any ends */
};

static void do_part(void *arg, size_t part)
{
    struct work *w = arg;
    uint64_t deadline_ns = clock_now_ns() + 5 * NS_PER_S;
    unsigned now = atomic_fetch_add(&w->in_progress, 1) + 1, most = w->together;

    while (now > most && !atomic_compare_exchange_weak(&w->together, &most, now))
        ;
    while (w->together < w->await && clock_now_ns() < deadline_ns)
        ;
    w->done[part]++;
    w->in_progress--;
}

static void check(struct parallel *p, size_t n_parts, unsigned await)
{
    struct work w = {.n_parts = n_parts, .await = await};

    parallel_run(p, n_parts, do_part, &w);
    assert_int_equal(w.in_progress, 0);
    assert_true(w.together >= await);
    for (size_t i = 0; i < PARTS_MAX; i++)
        assert_int_equal(w.done[i], i < n_parts);
}

static void does_each_part_once(void **state)
{
    for (unsigned threads = 0; threads <= PARALLEL_THREADS_MAX; threads++) {
        struct parallel *p;

        assert_int_equal(parallel_new(threads, &p), 0);
        for (unsigned round = 0; round < 3000; round++)
            check(p, round % (PARTS_MAX + 1), 0);
        parallel_free(p);
    }
    check(NULL, 5, 1);
    parallel_free(NULL);
}

static void all_threads_take_part(void **state)
{
    for (unsigned threads = 1; threads <= PARALLEL_THREADS_MAX; threads++) {
        struct parallel *p;

        assert_int_equal(parallel_new(threads, &p), 0);
        for (unsigned round = 0; round < 20; round++)
            check(p, 2 * threads, threads);
        parallel_free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(does_each_part_once),
        cmocka_unit_test(all_threads_take_part),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
