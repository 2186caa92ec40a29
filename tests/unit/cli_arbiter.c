/* SPDX-License-Identifier: Apache-2.0 */
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "capture.h"
#include "io/arbiter_client.h"
#include "io/clock.h"
#include "witness_run.h"

/* `understudy arbiter status` against a real witness. Arguments: understudy, understudy-witness. */

static const char *understudy, *program;
static char said[65536];

struct rig {
    struct witness_run witness;
    char config[128];
    struct identity *identity; /* of hosta, in its state directory */
    struct tls_context *tls;
};

/* A host's configuration, in the witness's directory, which goes in the end. */
static void write_config(struct rig *rig)
{
    const struct witness_run *w = &rig->witness;
    char key[PUBLIC_KEY_TEXT];
    FILE *f = fopen(rig->config, "w");

    assert_non_null(f);
    public_key_format(&w->config.key, key);
    fprintf(f,
            "name: hosta\nlisten: 127.0.0.1:7700\narbiter: {witness: '%s', key: '%s'}\n"
            "state_dir: %s/hosta\n",
            w->config.address, key, w->dir);
    assert_int_equal(fclose(f), 0);
}

static int setup(void **state)
{
    static struct rig rig;
    struct witness_run *w = &rig.witness;
    char path[160];

    witness_run_init(w, program);
    (void)snprintf(rig.config, sizeof(rig.config), "%s/u.yaml", w->dir);
    (void)snprintf(path, sizeof(path), "%s/hosta", w->dir);
    assert_int_equal(mkdir(path, 0700), 0);
    strcat(path, "/host.key");
    assert_int_equal(identity_load(path, true, &rig.identity, NULL), 0);
    assert_int_equal(tls_context_new(rig.identity, &rig.tls, NULL), 0);
    witness_run_allow(w, "hosta", "default", identity_public(rig.identity));
    witness_run_start(w);
    write_config(&rig);
    *state = &rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;

    tls_context_free(rig->tls);
    identity_free(rig->identity);
    witness_run_done(&rig->witness);
    return 0;
}

static void start_vm(const struct rig *rig, const char *vm, bool paired)
{
    struct wire_arb_request request = {.op = WIRE_ARB_CAS, .wanted = {1, ARB_SOLO, "hosta", ""}};
    struct wire_arb_reply reply;

    strcpy(request.vm, vm);
    for (int i = 0; i < 1 + paired; i++) {
        assert_int_equal(arbiter_ask_once(&rig->witness.config, rig->tls, "hosta", &request,
                                          20 * NS_PER_S, &reply, NULL),
                         0);
        assert_int_equal(reply.status, WIRE_ARB_DONE);
        request.expected = request.wanted;
        request.wanted = (struct arb_record){2, ARB_PAIRED, "hosta", "hostb"};
    }
}

/* Returns the exit status. */
static int run(const struct rig *rig, const char *args)
{
    char line[512];

    (void)snprintf(line, sizeof(line), "timeout 60 %s %s --config %s 2>&1", understudy, args,
                   rig->config);
    return capture(line, said, sizeof(said));
}

static void assert_said(const char *text)
{
    if (!strstr(said, text))
        fail_msg("not said: %s\n%s", text, said);
}

static void test_text(void **state)
{
    const struct rig *rig = *state;

    assert_int_equal(run(rig, "arbiter status"), 0);
    assert_said("witness 127.0.0.1:");
    assert_said(": answers within ");
    assert_said("no VMs");
    start_vm(rig, "web", true);
    start_vm(rig, "db", false);
    assert_int_equal(run(rig, "arbiter status"), 0);
    assert_said("db                          1  hosta                solo    -\n"
                "web                         2  hosta                paired  hostb\n");
}

/* More registers than go into one message. */
static void test_json(void **state)
{
    enum { N = 2 * WIRE_ARB_REGISTERS_PER_MSG + 1 };
    const struct rig *rig = *state;
    const char *vm, *owner, *mode, *standby;
    json_t *status, *registers;
    json_error_t why;
    char name[16];
    int reachable;
    double ms;
    json_int_t term;

    for (int i = 0; i < N; i++) {
        (void)snprintf(name, sizeof(name), "vm-%03d", i);
        start_vm(rig, name, false);
    }
    assert_int_equal(run(rig, "arbiter status --json"), 0);
    status = json_loads(said, 0, &why);
    if (!status)
        fail_msg("%s: %s", why.text, said);
    assert_int_equal(json_unpack(status, "{s:[{s:b, s:F}], s:o}", "endpoints", "reachable",
                                 &reachable, "answer_ms", &ms, "registers", &registers),
                     0);
    assert_true(reachable && ms > 0);
    assert_int_equal(json_array_size(registers), N);
    assert_int_equal(json_unpack(json_array_get(registers, N - 1), "{s:s, s:I, s:s, s:s, s:s}",
                                 "vm", &vm, "term", &term, "owner", &owner, "mode", &mode,
                                 "standby", &standby),
                     0);
    assert_string_equal(vm, name);
    assert_int_equal(term, 1);
    assert_string_equal(owner, "hosta");
    assert_string_equal(mode, "solo");
    assert_string_equal(standby, "");
    json_decref(status);
}

static void test_not_reachable(void **state)
{
    struct rig *rig = *state;

    witness_run_signal(&rig->witness, SIGKILL);
    (void)witness_run_wait(&rig->witness);
    assert_int_equal(run(rig, "arbiter status"), 1);
    assert_said(": not reachable: ");
    assert_said("refused");
}

static void test_another_witness(void **state)
{
    struct rig *rig = *state;

    rig->witness.config.key.bytes[3] ^= 1;
    write_config(rig);
    assert_int_equal(run(rig, "arbiter status"), 1);
    assert_said("does not know the other's key");
}

static void test_usage(void **state)
{
    const struct rig *rig = *state;

    assert_int_equal(run(rig, "arbiter"), 2);
    assert_int_equal(run(rig, "arbiter bogus"), 2);
    assert_said("there is no command \"arbiter bogus\"");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_json, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_reachable, setup, teardown),
        cmocka_unit_test_setup_teardown(test_another_witness, setup, teardown),
        cmocka_unit_test_setup_teardown(test_usage, setup, teardown),
    };

    understudy = argc > 1 ? argv[1] : "understudy";
    program = argc > 2 ? argv[2] : "understudy-witness";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
