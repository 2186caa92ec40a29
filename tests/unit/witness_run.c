/* SPDX-License-Identifier: Apache-2.0 */
#include "witness_run.h"

#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "capture.h"
#include "io/arbiter_client.h"
#include "io/clock.h"
#include "unit.h"

enum { READY_MS = 20000, POLL_MS = 2 };

#define PATIENCE_NS (20 * NS_PER_S)

static const struct arb_record no_record;

struct arbiter_config witness_config(const char *address)
{
    struct arbiter_config config = {.kind = ARBITER_WITNESS};

    assert_true(strlen(address) < sizeof(config.address));
    strcpy(config.address, address);
    return config;
}

static struct identity *load_identity(const struct witness_run *w, const char *name)
{
    struct identity *identity = NULL;
    struct err err = {""};
    char path[128];

    (void)snprintf(path, sizeof(path), "%s/%s", w->dir, name);
    if (identity_load(path, true, &identity, &err) < 0)
        fail_msg("%s", err.text);
    return identity;
}

void witness_run_init(struct witness_run *w, const char *program)
{
    struct identity *identity;

    *w = (struct witness_run){.program = program, .dir = "/tmp/us-witness-XXXXXX"};
    assert_non_null(mkdtemp(w->dir));
    w->config = witness_config("127.0.0.1:0");
    identity = load_identity(w, "host.key");
    w->config.key = *identity_public(identity);
    identity_free(identity);
}

struct identity *witness_run_identity(const struct witness_run *w)
{
    struct identity *identity = load_identity(w, "new.key");
    char path[128];

    (void)snprintf(path, sizeof(path), "%s/new.key", w->dir);
    assert_int_equal(unlink(path), 0);
    return identity;
}

int witness_run_command(struct witness_run *w, const char *command, char *ret_text, size_t n_text)
{
    char line[512];

    (void)snprintf(line, sizeof(line), "'%s' --state '%s' %s 2>&1", w->program, w->dir, command);
    return capture(line, ret_text, n_text);
}

void witness_run_allow(struct witness_run *w, const char *name, const char *group,
                       const struct public_key *key)
{
    char text[PUBLIC_KEY_TEXT], command[256], said[256];

    public_key_format(key, text);
    (void)snprintf(command, sizeof(command), "allow %s %s --group %s", name, text, group);
    if (witness_run_command(w, command, said, sizeof(said)) != 0)
        fail_msg("%s", said);
}

/* The running witness sees a change of its files by and by. */
static void wait_allowed(struct witness_run *w, const struct witness_host *host)
{
    const struct wire_arb_request get = {.op = WIRE_ARB_GET, .vm = "nothing"};
    uint64_t end = clock_now_ns() + PATIENCE_NS;
    struct wire_arb_reply reply;
    struct err err = {""};

    while (arbiter_ask_once(&w->config, host->tls, host->name, &get, PATIENCE_NS, &reply, &err) <
           0) {
        if (clock_now_ns() > end)
            fail_msg("%s", err.text);
        (void)poll(NULL, 0, POLL_MS);
    }
}

const struct witness_host *witness_run_host(struct witness_run *w, const char *name)
{
    struct witness_host *host = w->host;

    while (host < w->host + w->n_hosts && strcmp(host->name, name) != 0)
        host++;
    if (host < w->host + w->n_hosts)
        return host;
    assert_true(++w->n_hosts <= WITNESS_RUN_HOSTS);
    strcpy(host->name, name);
    host->identity = witness_run_identity(w);
    assert_int_equal(tls_context_new(host->identity, &host->tls, NULL), 0);
    witness_run_allow(w, name, "default", identity_public(host->identity));
    if (w->pid > 0)
        wait_allowed(w, host);
    return host;
}

struct tls_context *witness_run_tls(struct witness_run *w, const char *name)
{
    return witness_run_host(w, name)->tls;
}

/* Listens where the witness reports that it is ready; the kernel chooses the (abstract) name. */
static int notify_socket(char *ret_name, size_t n)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    socklen_t len = sizeof(addr.sun_family);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, len), 0);
    len = sizeof(addr);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
    (void)snprintf(ret_name, n, "@%.*s", (int)(len - offsetof(struct sockaddr_un, sun_path) - 1),
                   addr.sun_path + 1);
    return fd;
}

static void spawn(struct witness_run *w, const char *notify, int stderr_fd)
{
    w->pid = fork();
    assert_true(w->pid >= 0);
    if (w->pid > 0)
        return;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* no witness outlives a test that crashed */
    setenv("NOTIFY_SOCKET", notify, 1);
    unsetenv("JOURNAL_STREAM");
    dup2(stderr_fd, STDERR_FILENO);
    execl(w->program, w->program, "--listen", w->config.address, "--state", w->dir, NULL);
    _exit(127);
}

void witness_run_start(struct witness_run *w)
{
    char name[64], text[256] = "";
    int notify = notify_socket(name, sizeof(name)), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    struct pollfd p = {.fd = notify, .events = POLLIN};
    const char *listening;
    ssize_t n;

    spawn(w, name, null);
    close(null);
    assert_int_equal(poll(&p, 1, READY_MS), 1);
    n = recv(notify, text, sizeof(text) - 1, 0);
    assert_true(n > 0);
    close(notify);
    listening = strstr(text, "Listening on ");
    assert_non_null(listening);
    assert_int_equal(sscanf(listening, "Listening on %63s", w->config.address), 1);
}

int witness_run_refused(struct witness_run *w, char *ret_text, size_t n_text)
{
    int pipe_fd[2], status;
    size_t used = 0;
    ssize_t n;

    assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
    spawn(w, "", pipe_fd[1]);
    close(pipe_fd[1]);
    while ((n = read(pipe_fd[0], ret_text + used, n_text - 1 - used)) > 0)
        used += (size_t)n;
    ret_text[used] = '\0';
    close(pipe_fd[0]);
    status = witness_run_wait(w);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

void witness_run_signal(struct witness_run *w, int signal)
{
    assert_int_equal(kill(w->pid, signal), 0);
}

int witness_run_wait(struct witness_run *w)
{
    int status;

    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    w->pid = 0;
    return status;
}

struct wire_arb_request witness_run_request(const char *vm, const struct arb_record *expected,
                                            const struct arb_record *wanted)
{
    struct wire_arb_request request = {
        .op = wanted->term ? WIRE_ARB_CAS : WIRE_ARB_GET, .expected = *expected, .wanted = *wanted};

    strcpy(request.vm, vm);
    return request;
}

struct wire_arb_reply witness_run_ask(struct witness_run *w, const char *vm,
                                      const struct arb_record *expected,
                                      const struct arb_record *wanted)
{
    struct wire_arb_request request = witness_run_request(vm, expected, wanted);
    struct wire_arb_reply reply;
    struct err err = {""};

    if (arbiter_ask_once(&w->config, witness_run_tls(w, "hosta"), "hosta", &request, PATIENCE_NS,
                         &reply, &err) < 0)
        fail_msg("%s", err.text);
    return reply;
}

struct arb_record witness_run_get(struct witness_run *w, const char *vm)
{
    struct wire_arb_reply reply = witness_run_ask(w, vm, &no_record, &no_record);

    assert_int_equal(reply.status, WIRE_ARB_DONE);
    return reply.current;
}

struct arb_record witness_run_successor(const struct arb_record *record)
{
    struct arb_record next = {.term = record->term + 1, .mode = ARB_SOLO, .owner = "hosta"};

    if (record->mode == ARB_SOLO) {
        next.mode = ARB_PAIRED;
        strcpy(next.standby, "hostb");
    }
    return next;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *at)
{
    return remove(path);
}

void witness_run_done(struct witness_run *w)
{
    if (w->pid > 0) {
        witness_run_signal(w, SIGKILL);
        (void)witness_run_wait(w);
    }
    for (int i = 0; i < w->n_hosts; i++) {
        tls_context_free(w->host[i].tls);
        identity_free(w->host[i].identity);
    }
    assert_int_equal(nftw(w->dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
}
