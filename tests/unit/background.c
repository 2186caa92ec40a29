/* SPDX-License-Identifier: Apache-2.0 */
#include "io/background.h"

#include <pthread.h>

#include <pthread.h>

#include "unit.h"

/* Work runs in order, in another thread; what it returns is told by the loop. */

struct job {
    pthread_t ran_in;
    unsigned *order, place;
    int result;
    sd_event *event;
    unsigned last;
};

static int work(void *user)
{
    struct job *job = user;

    job->ran_in = pthread_self();
    job->place = (*job->order)++;
    return -(int)job->last;
}

static void done(void *user, int result)
{
    struct job *job = user;

    job->result = result;
    if (job->last == 3)
        assert_int_equal(sd_event_exit(job->event, 0), 0);
}

static void in_order(void **state)
{
    struct job jobs[3] = {0};
    struct background *b;
    unsigned order = 0;
    sd_event *event;

    assert_int_equal(sd_event_new(&event), 0);
    assert_int_equal(background_new(event, &b), 0);
    for (unsigned i = 0; i < 3; i++) {
        jobs[i] = (struct job){.order = &order, .result = 1, .event = event, .last = i + 1};
        assert_int_equal(background_run(b, work, done, &jobs[i]), 0);
    }
    background_drain(b);
    assert_int_equal(order, 3);
    assert_int_equal(jobs[2].result, 1); /* nobody was told yet */
    assert_int_equal(sd_event_loop(event), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(jobs[i].place, i);
        assert_int_equal(jobs[i].result, -(int)(i + 1));
        assert_false(pthread_equal(jobs[i].ran_in, pthread_self()));
    }
    background_free(b);
    sd_event_unref(event);
}

/* What was ordered is carried out even when nobody waits for it any more. */
static void free_waits(void **state)
{
    struct background *b;
    unsigned order = 0;
    struct job job = {.order = &order, .result = 1};
    sd_event *event;

    assert_int_equal(sd_event_new(&event), 0);
    assert_int_equal(background_new(event, &b), 0);
    assert_int_equal(background_run(b, work, done, &job), 0);
    background_free(b);
    assert_int_equal(order, 1);
    assert_int_equal(job.result, 1);
    sd_event_unref(event);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_order),
        cmocka_unit_test(free_waits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
