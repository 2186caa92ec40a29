/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "io/arbiter_client.h"
#include "io/clock.h"
#include "unit.h"
#include "witness/hosts.h"
#include "witness_run.h"

/* One witness for hundreds of pairs, each a group of its own with a VM of the same name, all of
 * which ask at once; and for one host with as many VMs as it can have. Prints figures. */

#ifndef __has_feature /* gcc */
#define __has_feature(name) 0
#endif

#define PATIENCE_NS (100 * NS_PER_S)

enum {
    AGAIN_MAX = 20, /* on a slow machine not all have said their hellos within 5 s */
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
    CONNECTION_KIB = 1000,
#else
    CONNECTION_KIB = 100,
#endif
};

static const char *program;

/* One process of a host: swaps its VM's record some times, each time on top of what is there. */
struct asker {
    struct crowd *crowd;
    const char *host;
    struct arbiter_client *client;
    struct arb_record known;
    uint64_t since_ns;
    unsigned n_left, n_won, n_again;
};

struct crowd {
    sd_event *event;
    unsigned n_busy;
    uint64_t *took_ns; /* of each answer */
    size_t n_took, n_room;
};

static void ask(struct asker *a)
{
    struct wire_arb_request request = {.op = WIRE_ARB_CAS, .expected = a->known};

    request.wanted = (struct arb_record){.term = a->known.term + 1, .mode = ARB_SOLO};
    strcpy(request.wanted.owner, a->host);
    a->since_ns = clock_now_ns();
    arbiter_client_ask(a->client, a->n_left, &request);
}

static void on_answer(void *user, uint64_t id, uint8_t status, const struct arb_record *current,
                      const char *why)
{
    struct asker *a = user;

    if (status == 0 && a->n_again++ < AGAIN_MAX) { /* as every host does */
        ask(a);
        return;
    }
    if (status != WIRE_ARB_DONE && status != WIRE_ARB_CONFLICT)
        fail_msg("%s", why);
    assert_true(a->crowd->n_took < a->crowd->n_room);
    a->crowd->took_ns[a->crowd->n_took++] = clock_now_ns() - a->since_ns;
    a->n_won += status == WIRE_ARB_DONE;
    a->known = *current;
    if (--a->n_left > 0)
        ask(a);
    else
        a->crowd->n_busy--;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* The witness's memory, in KiB, by a line of /proc/PID/status. */
static unsigned long memory_kib(const struct witness_run *w, const char *line)
{
    char path[64], text[128];
    unsigned long kib = 0;
    FILE *f;

    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)w->pid);
    f = fopen(path, "r");
    assert_non_null(f);
    while (kib == 0 && fgets(text, sizeof(text), f)) {
        if (strncmp(text, line, strlen(line)) == 0)
            kib = strtoul(text + strlen(line), NULL, 10);
    }
    fclose(f);
    return kib;
}

static void run_loop(struct crowd *crowd)
{
    uint64_t end = clock_now_ns() + PATIENCE_NS;

    while (crowd->n_busy > 0) {
        assert_true(clock_now_ns() < end);
        assert_return_code(sd_event_run(crowd->event, 100000), 0);
    }
}

static unsigned count_won(const struct asker *askers, unsigned n)
{
    unsigned won = 0;

    for (unsigned i = 0; i < n; i++)
        won += askers[i].n_won;
    return won;
}

/* Everybody connects and asks, then asks n times more. */
static void run_crowd(const struct witness_run *w, struct asker *askers, unsigned n_askers,
                      unsigned n_times)
{
    struct crowd *crowd = askers[0].crowd;
    unsigned long before = memory_kib(w, "VmRSS:"), after;
    uint64_t since, took;
    unsigned won;

    crowd->n_room = (size_t)n_askers * n_times;
    crowd->took_ns = calloc(crowd->n_room, sizeof(*crowd->took_ns));
    assert_non_null(crowd->took_ns);
    for (int round = 0; round < 2; round++) { /* the first one with the connection */
        won = count_won(askers, n_askers);
        since = clock_now_ns();
        crowd->n_took = 0;
        crowd->n_busy = n_askers;
        for (unsigned i = 0; i < n_askers; i++) {
            askers[i].n_left = round == 0 ? 1 : n_times;
            ask(&askers[i]);
        }
        run_loop(crowd);
        took = clock_now_ns() - since;
        qsort(crowd->took_ns, crowd->n_took, sizeof(*crowd->took_ns), by_size);
        print_message("# %s: %.0f answers/s, %.0f swaps/s, half within %.1f ms, "
                      "99 %% within %.1f ms\n",
                      round == 0 ? "connecting" : "connected",
                      (double)crowd->n_took * 1e9 / (double)took,
                      (double)(count_won(askers, n_askers) - won) * 1e9 / (double)took,
                      (double)crowd->took_ns[crowd->n_took / 2] / 1e6,
                      (double)crowd->took_ns[crowd->n_took * 99 / 100] / 1e6);
    }
    after = memory_kib(w, "VmRSS:");
    print_message("# %u connections: %.1f KiB of memory each\n", n_askers,
                  (double)(after - before) / n_askers);
    assert_true((after - before) / n_askers < CONNECTION_KIB);
    free(crowd->took_ns);
}

static void test_hundreds_of_pairs(void **state)
{
    enum { PAIRS = 500, HOSTS = 2, N = PAIRS * HOSTS, TIMES = 4 };
    static struct identity *identities[N];
    static struct tls_context *tls[N];
    static struct asker askers[N];
    static struct hosts hosts;
    struct crowd crowd = {0};
    struct witness_run w;
    char path[128], group[16];

    witness_run_init(&w, program);
    for (unsigned i = 0; i < N; i++) {
        (void)snprintf(group, sizeof(group), "pair-%u", i / HOSTS);
        identities[i] = witness_run_identity(&w);
        assert_int_equal(tls_context_new(identities[i], &tls[i], NULL), 0);
        assert_int_equal(hosts_allow(&hosts, group, i % HOSTS ? "hostb" : "hosta",
                                     identity_public(identities[i]), NULL),
                         0);
    }
    (void)snprintf(path, sizeof(path), "%s/hosts.json", w.dir);
    assert_int_equal(hosts_save(&hosts, path, NULL), 0);
    witness_run_start(&w);
    assert_return_code(sd_event_new(&crowd.event), 0);
    for (unsigned i = 0; i < N; i++) {
        askers[i] = (struct asker){.crowd = &crowd, .host = i % HOSTS ? "hostb" : "hosta"};
        assert_int_equal(arbiter_client_new(crowd.event, &w.config, tls[i], askers[i].host, "web",
                                            PATIENCE_NS, on_answer, &askers[i], &askers[i].client),
                         0);
    }
    run_crowd(&w, askers, N, TIMES);
    for (unsigned i = 0; i < N; i += HOSTS) { /* one register for both: each swap was won by one */
        const struct asker *a = &askers[i], *b = &askers[i + 1];

        assert_int_equal(a->known.term > b->known.term ? a->known.term : b->known.term,
                         a->n_won + b->n_won);
    }
    for (unsigned i = 0; i < N; i++) {
        arbiter_client_close(askers[i].client);
        tls_context_free(tls[i]);
        identity_free(identities[i]);
    }
    sd_event_unref(crowd.event);
    witness_run_done(&w);
}

static void test_a_host_full_of_vms(void **state)
{
    enum { VMS = 64, PROCESSES = 2, N = VMS * PROCESSES, TIMES = 4 };
    static struct asker askers[N];
    struct crowd crowd = {0};
    struct witness_run w;
    char vm[16];

    witness_run_init(&w, program);
    (void)witness_run_host(&w, "hosta");
    witness_run_start(&w);
    assert_return_code(sd_event_new(&crowd.event), 0);
    for (unsigned i = 0; i < N; i++) {
        (void)snprintf(vm, sizeof(vm), "vm-%u", i);
        askers[i] = (struct asker){.crowd = &crowd, .host = "hosta"};
        assert_int_equal(arbiter_client_new(crowd.event, &w.config, witness_run_tls(&w, "hosta"),
                                            "hosta", vm, PATIENCE_NS, on_answer, &askers[i],
                                            &askers[i].client),
                         0);
    }
    run_crowd(&w, askers, N, TIMES);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(askers[i].n_won, 1 + TIMES); /* nobody was dropped, nobody interfered */
        arbiter_client_close(askers[i].client);
    }
    sd_event_unref(crowd.event);
    witness_run_done(&w);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hundreds_of_pairs),
        cmocka_unit_test(test_a_host_full_of_vms),
    };
    struct rlimit files;

    (void)unsetenv("MALLOC_PERTURB_"); /* it would have memory used that is not */
    program = argc > 1 ? argv[1] : "understudy-witness";
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
