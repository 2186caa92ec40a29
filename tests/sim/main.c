/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

/* The command line: many schedules on a few processes, or one with its trace, or planted bugs that
 * have to be found. Prints TAP. */

enum { JOBS_MAX = 16, SCHEDULES = 200000, COVERAGE_FROM = 10000, TEXT_MAX = 512 };

static const struct {
    const char *name, *shows, *text;
} plants[] = {
#define X(id, name, shows, text) [PLANT_##id] = {name, shows, text},
    PLANTS(X)
#undef X
};

static const struct {
    const char *id, *text;
    uint64_t least;
} coverage[] = {
#define X(id, text, least) [COVER_##id] = {#id, text, least},
    COVERAGE(X)
#undef X
};

/* The profile of a seed, by its last digit in base 16. */
static const uint8_t profile_of[16] = {
    PROFILE_NONE,       PROFILE_LIGHT,      PROFILE_LIGHT,      PROFILE_NETWORK,
    PROFILE_NETWORK,    PROFILE_NETWORK,    PROFILE_CRASH,      PROFILE_CRASH,
    PROFILE_CRASH,      PROFILE_FREEZE,     PROFILE_FREEZE,     PROFILE_FREEZE,
    PROFILE_EVERYTHING, PROFILE_EVERYTHING, PROFILE_EVERYTHING, PROFILE_EVERYTHING,
};

struct options {
    uint64_t first_seed, schedules;
    uint64_t seed; /* one only */
    bool one, verbose, self_test;
    enum plant plant;
    unsigned jobs;
};

/* What one job has done: in memory shared with the parent. */
struct result {
    bool failed;
    uint64_t seed; /* that failed */
    char failure[TEXT_MAX];
    uint64_t n[PROFILES];
    uint64_t events, virtual_ns;
    uint64_t covered[COVERAGES];
};

static enum profile seed_profile(uint64_t seed)
{
    return (enum profile)profile_of[seed % 16];
}

/* ---- one schedule, for people ---- */

static void command_line(char *out, size_t size, uint64_t seed, enum plant plant)
{
    (void)snprintf(out, size, "understudy-sim --seed %" PRIu64 "%s%s --verbose", seed,
                   plant ? " --plant " : "", plant ? plants[plant].name : "");
}

/* Runs a seed that failed once more, now with its trace. */
static void show_failure(uint64_t seed, enum plant plant, const char *failure)
{
    struct world *w = world_new();
    char command[128];

    if (!w)
        return;
    command_line(command, sizeof(command), seed, plant);
    world_run(w, seed, seed_profile(seed), plant, true, false);
    world_print_trace(w);
    printf("# profile %s, seed %" PRIu64 ": %s\n", profile_names[seed_profile(seed)], seed,
           failure);
    if (strcmp(failure, w->failure) != 0)
        printf("# the same seed ran differently the second time: %s\n",
               w->failed ? w->failure : "no failure");
    printf("# to reproduce: %s\n", command);
    world_free(w);
}

static int run_one(const struct options *o)
{
    struct world *w = world_new();
    bool failed;
    unsigned i;

    if (!w)
        return 1;
    world_run(w, o->seed, seed_profile(o->seed), o->plant, true, o->verbose);
    failed = w->failed;
    if (failed && !o->verbose)
        world_print_trace(w);
    for (i = 0; i < COVERAGES; i++) {
        if (w->covered[i])
            printf("# met: %s\n", coverage[i].text);
    }
    printf("%s 1 - seed %" PRIu64 ", profile %s, %.3f s, %" PRIu64 " events%s%s\n1..1\n",
           failed ? "not ok" : "ok", o->seed, profile_names[seed_profile(o->seed)],
           (double)w->now_ns / 1e9, w->n_events, failed ? ": " : "", failed ? w->failure : "");
    world_free(w);
    return failed;
}

/* ---- many ---- */

static void job(const struct options *o, unsigned number, struct result *result)
{
    struct world *w = world_new();
    uint64_t i;
    unsigned c;

    if (!w)
        _exit(1);
    for (i = number; i < o->schedules; i += o->jobs) {
        uint64_t seed = o->first_seed + i;

        world_run(w, seed, seed_profile(seed), o->plant, false, false);
        result->n[seed_profile(seed)]++;
        result->events += w->n_events;
        result->virtual_ns += w->now_ns;
        for (c = 0; c < COVERAGES; c++)
            result->covered[c] += w->covered[c];
        if (w->failed) {
            result->failed = true;
            result->seed = seed;
            memcpy(result->failure, w->failure, sizeof(w->failure));
            break;
        }
    }
    world_free(w);
    _exit(0);
}

/* Runs all schedules in o->jobs processes and sums up. The lowest failed seed counts. Returns 0, or
 * -1 when a job died. */
static int run_jobs(const struct options *o, struct result *ret_sum)
{
    struct result *results = mmap(NULL, o->jobs * sizeof(*results), PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[JOBS_MAX];
    int status, r = 0;
    unsigned i, k;

    if (results == MAP_FAILED)
        return -1;
    (void)fflush(stdout);
    for (i = 0; i < o->jobs; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            job(o, i, &results[i]);
        if (pids[i] < 0)
            r = -1;
    }
    memset(ret_sum, 0, sizeof(*ret_sum));
    for (i = 0; i < o->jobs; i++) {
        const struct result *part = &results[i];

        if (pids[i] < 0)
            continue;
        if (waitpid(pids[i], &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status))
            r = -1;
        if (part->failed && (!ret_sum->failed || part->seed < ret_sum->seed)) {
            ret_sum->failed = true;
            ret_sum->seed = part->seed;
            memcpy(ret_sum->failure, part->failure, TEXT_MAX);
        }
        for (k = 0; k < PROFILES; k++)
            ret_sum->n[k] += part->n[k];
        for (k = 0; k < COVERAGES; k++)
            ret_sum->covered[k] += part->covered[k];
        ret_sum->events += part->events;
        ret_sum->virtual_ns += part->virtual_ns;
    }
    (void)munmap(results, o->jobs * sizeof(*results)); /* our own mapping */
    return r;
}

static uint64_t total(const struct result *r)
{
    uint64_t n = 0;
    unsigned i;

    for (i = 0; i < PROFILES; i++)
        n += r->n[i];
    return n;
}

/* True when every situation was met often enough. */
static bool print_coverage(const struct result *r)
{
    uint64_t n = total(r);
    bool enough = true;
    unsigned i;

    for (i = 0; i < COVERAGES; i++) {
        uint64_t least = coverage[i].least * n / 100000;
        bool missing = n >= COVERAGE_FROM && r->covered[i] < least;

        printf("# %7" PRIu64 "  %s", r->covered[i], coverage[i].text);
        if (missing)
            printf("  <- at least %" PRIu64 " expected", least);
        printf("\n");
        enough = enough && !missing;
    }
    return enough;
}

/* Writes what was run to the file that SIM_REPORT names, for docs/reliability.md. */
static void write_report(const struct options *o, const struct result *r, double seconds)
{
    const char *path = getenv("SIM_REPORT");
    FILE *to = path ? fopen(path, "we") : NULL;
    unsigned i;

    if (!to)
        return;
    (void)fprintf(to,
                  "{\"schedules\": %" PRIu64 ", \"first_seed\": %" PRIu64 ", \"violations\": %d,\n"
                  " \"steps\": %" PRIu64 ", \"virtual_seconds\": %.0f, \"seconds\": %.1f,\n"
                  " \"profiles\": {",
                  total(r), o->first_seed, r->failed, r->events, (double)r->virtual_ns / 1e9,
                  seconds);
    for (i = 0; i < PROFILES; i++)
        (void)fprintf(to, "%s\"%s\": %" PRIu64, i ? ", " : "", profile_names[i], r->n[i]);
    (void)fprintf(to, "},\n \"situations\": {");
    for (i = 0; i < COVERAGES; i++)
        (void)fprintf(to, "%s\n  \"%s\": %" PRIu64, i ? "," : "", coverage[i].id, r->covered[i]);
    (void)fprintf(to, "}}\n");
    if (fclose(to) != 0)
        printf("# the report was not written\n");
}

static int run_many(const struct options *o)
{
    struct result sum;
    struct timespec begin, end;
    double seconds;
    bool covered;
    unsigned i;

    (void)clock_gettime(CLOCK_MONOTONIC, &begin); /* cannot fail */
    printf("1..%d\n", PROFILES + 1);
    if (run_jobs(o, &sum) < 0) {
        printf("Bail out! a job died\n");
        return 1;
    }
    (void)clock_gettime(CLOCK_MONOTONIC, &end);
    seconds = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
    if (sum.failed)
        show_failure(sum.seed, PLANT_NONE, sum.failure);
    for (i = 0; i < PROFILES; i++)
        printf("%s %u - profile %s: %" PRIu64 " schedules\n",
               sum.failed && seed_profile(sum.seed) == i ? "not ok" : "ok", i + 1, profile_names[i],
               sum.n[i]);
    covered = print_coverage(&sum);
    printf("%s %d - every situation was met%s\n", covered ? "ok" : "not ok", PROFILES + 1,
           total(&sum) < COVERAGE_FROM ? " # SKIP too few schedules to tell" : "");
    printf("# %" PRIu64 " schedules from seed %" PRIu64 ", %" PRIu64
           " steps, %.0f virtual s, %.1f s\n",
           total(&sum), o->first_seed, sum.events, (double)sum.virtual_ns / 1e9, seconds);
    write_report(o, &sum, seconds);
    return sum.failed || !covered;
}

/* ---- planted bugs ---- */

/* A bug may show in several ways: the first seed that shows it by its own invariant is the answer.
 */
static bool find_plant(const struct options *all, enum plant plant, unsigned number)
{
    const char *shows = plants[plant].shows;
    struct options o = *all;
    struct result sum;
    bool found;

    o.plant = plant;
    o.jobs = 1;
    do {
        if (run_jobs(&o, &sum) < 0)
            return false;
        found = sum.failed && strncmp(sum.failure, shows, strlen(shows)) == 0;
        o.schedules -= sum.failed ? sum.seed + 1 - o.first_seed : 0;
        o.first_seed = sum.seed + 1;
    } while (sum.failed && !found && o.schedules);
    printf("%s %u - %s shows: %s\n", found ? "ok" : "not ok", number, shows, plants[plant].text);
    if (sum.failed)
        printf("# %s: seed %" PRIu64 ": %s\n", plants[plant].name, sum.seed, sum.failure);
    return found;
}

static int run_plants(struct options *o)
{
    enum plant first = o->plant ? o->plant : (enum plant)(PLANT_NONE + 1);
    enum plant last = o->plant ? o->plant : (enum plant)(PLANT_END - 1), p;
    bool all = true;

    printf("1..%d\n", (int)(last - first) + 1);
    for (p = first; p <= last; p++)
        all = find_plant(o, p, (unsigned)(p - first) + 1) && all;
    return !all;
}

/* ---- command line ---- */

static void usage(FILE *to)
{
    unsigned i;

    (void)fprintf(to, "usage: understudy-sim [--schedules N] [--first-seed S] [--jobs N]\n"
                      "       understudy-sim --seed S [--verbose] [--plant NAME]\n"
                      "       understudy-sim --self-test | --plant NAME [--schedules N]\n"
                      "Simulates the state machines of src/core (docs/simulation.md). Plants:\n");
    for (i = PLANT_NONE + 1; i < PLANT_END; i++)
        (void)fprintf(to, "  %-18s %s\n", plants[i].name, plants[i].text);
}

static int parse_number(const char *text, uint64_t *ret_number)
{
    char *end;

    errno = 0;
    *ret_number = strtoull(text, &end, 0);
    return errno || end == text || *end || text[0] == '-' ? -EINVAL : 0;
}

static int parse_plant(const char *name, enum plant *ret_plant)
{
    unsigned i;

    for (i = PLANT_NONE + 1; i < PLANT_END; i++) {
        if (strcmp(name, plants[i].name) == 0) {
            *ret_plant = (enum plant)i;
            return 0;
        }
    }
    return -EINVAL;
}

/* 0, 1 for --help, or -EINVAL. */
static int parse(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        {"schedules", required_argument, NULL, 'n'},
        {"first-seed", required_argument, NULL, 'f'},
        {"seed", required_argument, NULL, 's'},
        {"verbose", no_argument, NULL, 'v'},
        {"plant", required_argument, NULL, 'p'},
        {"self-test", no_argument, NULL, 't'},
        {"jobs", required_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    uint64_t jobs = 2;
    int c, r = 0;

    while (r == 0 && (c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'n':
            r = parse_number(optarg, &o->schedules);
            break;
        case 'f':
            r = parse_number(optarg, &o->first_seed);
            break;
        case 's':
            o->one = true;
            r = parse_number(optarg, &o->seed);
            break;
        case 'v':
            o->verbose = true;
            break;
        case 'p':
            r = parse_plant(optarg, &o->plant);
            break;
        case 't':
            o->self_test = true;
            break;
        case 'j':
            r = parse_number(optarg, &jobs);
            break;
        case 'h':
            return 1;
        default:
            r = -EINVAL;
            break;
        }
    }
    if (r == 0 && (optind != argc || jobs < 1 || jobs > JOBS_MAX))
        r = -EINVAL;
    o->jobs = (unsigned)jobs;
    return r;
}

int main(int argc, char **argv)
{
    struct options o = {.first_seed = 1};
    int r = parse(argc, argv, &o);

    if (r) {
        usage(r < 0 ? stderr : stdout);
        return r < 0 ? 2 : 0;
    }
    if (o.one)
        return run_one(&o);
    if (!o.schedules)
        o.schedules = SCHEDULES;
    if (o.self_test || o.plant)
        return run_plants(&o);
    return run_many(&o);
}
