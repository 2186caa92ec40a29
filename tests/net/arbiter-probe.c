/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arbiter_args.h"
#include "io/arbiter_client.h"
#include "io/clock.h"

/* Asks an arbiter, for the tests in etcd_test.py, which know what the answers should be.
 *
 *   arbiter-probe ARBITER HOST TIMEOUT_MS get VM      one question, one line
 *   arbiter-probe ARBITER HOST TIMEOUT_MS list        all registers, a line each
 *   arbiter-probe ARBITER HOST TIMEOUT_MS race VM MS  for so long, tries to become the owner in
 * each term; a line for each answer:
 *
 *   FROM_NS TO_NS get|swap STATUS EXPECTED_TERM TERM OWNER WHY      OWNER "-": nobody */

static struct arbiter_config config;
static const char *host;
static uint64_t timeout_ns;

struct race {
    sd_event *event;
    struct arbiter_client *client;
    uint64_t id, end_ns, asked_ns;
    struct wire_arb_request request;
    bool known; /* what is in the register, as far as we heard */
    struct arb_record current;
};

static void print_answer(const struct wire_arb_request *request, uint64_t from_ns, uint8_t status,
                         const struct arb_record *current, const char *why)
{
    printf("%" PRIu64 " %" PRIu64 " %s %u %" PRIu64 " %" PRIu64 " %s %s\n", from_ns, clock_now_ns(),
           request->op == WIRE_ARB_GET ? "get" : "swap", status, request->expected.term,
           current->term, current->owner[0] ? current->owner : "-", why);
    fflush(stdout);
}

static void race_ask(struct race *race)
{
    race->request = (struct wire_arb_request){.op = race->known ? WIRE_ARB_CAS : WIRE_ARB_GET};
    if (race->known) {
        race->request.expected = race->current;
        race->request.wanted =
            (struct arb_record){.term = race->current.term + 1, .mode = ARB_SOLO};
        strcpy(race->request.wanted.owner, host);
    }
    race->asked_ns = clock_now_ns();
    arbiter_client_ask(race->client, ++race->id, &race->request);
}

static void on_answer(void *user, uint64_t id, uint8_t status, const struct arb_record *current,
                      const char *why)
{
    struct race *race = user;

    print_answer(&race->request, race->asked_ns, status, current, why);
    race->known = status == WIRE_ARB_DONE || status == WIRE_ARB_CONFLICT;
    race->current = *current;
    if (clock_now_ns() >= race->end_ns)
        (void)sd_event_exit(race->event, 0);
    else
        race_ask(race);
}

static int run_race(const char *vm, uint64_t duration_ns)
{
    struct race race = {.end_ns = clock_now_ns() + duration_ns};
    int r = sd_event_new(&race.event);

    if (r >= 0)
        r = arbiter_client_new(race.event, &config, NULL, host, vm, timeout_ns, on_answer, &race,
                               &race.client);
    if (r >= 0) {
        race_ask(&race);
        r = sd_event_loop(race.event);
    }
    arbiter_client_close(race.client);
    sd_event_unref(race.event);
    return r;
}

static int run_get(const char *vm)
{
    struct wire_arb_request request = {.op = WIRE_ARB_GET};
    struct wire_arb_reply reply = {0};
    uint64_t from_ns = clock_now_ns();
    struct err err = {""};
    int r;

    (void)snprintf(request.vm, sizeof(request.vm), "%s", vm);
    r = arbiter_ask_once(&config, NULL, host, &request, timeout_ns, &reply, &err);
    print_answer(&request, from_ns, reply.status, &reply.current, err.text);
    return r == -ECOMM ? 0 : r;
}

static void print_register(void *user, const char *vm, const struct arb_record *record)
{
    printf("%s %" PRIu64 " %s\n", vm, record->term, record->owner);
}

static int run_list(void)
{
    struct err err = {""};
    int r = arbiter_list(&config, NULL, host, timeout_ns, print_register, NULL, &err);

    if (r < 0)
        printf("failed: %s\n", err.text);
    return r;
}

int main(int argc, char **argv)
{
    int r = -1;

    if (argc < 5 || !arbiter_args(argv[1], &config)) {
        fprintf(stderr, "arbiter-probe: see its source for the arguments\n");
        return 2;
    }
    host = argv[2];
    timeout_ns = strtoull(argv[3], NULL, 10) * NS_PER_MS;
    if (strcmp(argv[4], "get") == 0 && argc == 6)
        r = run_get(argv[5]);
    else if (strcmp(argv[4], "list") == 0)
        r = run_list();
    else if (strcmp(argv[4], "race") == 0 && argc == 7)
        r = run_race(argv[5], strtoull(argv[6], NULL, 10) * NS_PER_MS);
    return r < 0 ? 1 : 0;
}
