/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/arbiter_client.h"
#include "io/clock.h"
#include "witness_talk.h"

/* A witness that is killed at any instruction, and whose disk fails or is full: whatever it has
 * confirmed is there afterwards, and whatever it has not is there wholly or not at all. */

#define PATIENCE_NS (20 * NS_PER_S)
#define STORM_NS    (20 * NS_PER_S)

static const struct arb_record none;
static const char *program;

static int setup(void **state)
{
    static struct witness_run w;

    witness_run_init(&w, program);
    (void)witness_run_host(&w, "hosta");
    *state = &w;
    return 0;
}

static int teardown(void **state)
{
    witness_run_done(*state);
    return 0;
}

/* Its directory is a file system of its own, in memory: killing a process loses nothing of what the
 * kernel has, and more of its life fits into a second. */
static int setup_memory(void **state)
{
    static struct witness_run w;
    char said[256];

    witness_run_init(&w, program);
    assert_int_equal(mount("none", w.dir, "tmpfs", 0, "size=4m"), 0);
    assert_int_equal(witness_run_command(&w, "key", said, sizeof(said)), 0); /* a new one there */
    *strchrnul(said, '\n') = '\0';
    assert_int_equal(public_key_parse(said, &w.config.key, NULL), 0);
    (void)witness_run_host(&w, "hosta");
    *state = &w;
    return 0;
}

static int teardown_memory(void **state)
{
    struct witness_run *w = *state;

    if (w->pid > 0) {
        witness_run_signal(w, SIGKILL);
        (void)witness_run_wait(w);
    }
    assert_int_equal(umount(w->dir), 0);
    witness_run_done(w);
    return 0;
}

static void kill_and_wait(struct witness_run *w)
{
    witness_run_signal(w, SIGKILL);
    assert_true(WIFSIGNALED(witness_run_wait(w)));
}

/* ---- kill -9 at random moments of a storm ---- */

/* The swaps of one VM, each on top of the one before. */
struct chain {
    struct arbiter_client *client;
    char vm[16];
    struct arb_record known; /* the last one that the witness confirmed */
    struct arb_record asked;
    unsigned n_swaps, n_in_doubt;
    bool over; /* the witness is gone */
};

static void chain_ask(struct chain *c)
{
    struct wire_arb_request request;

    c->asked = witness_run_successor(&c->known);
    request = witness_run_request(c->vm, &c->known, &c->asked);
    arbiter_client_ask(c->client, c->n_swaps, &request);
}

static void chain_answer(void *user, uint64_t id, uint8_t status, const struct arb_record *current,
                         const char *why)
{
    struct chain *c = user;

    assert_int_equal(id, c->n_swaps);
    if (status == 0) {
        c->over = true;
        return;
    }
    assert_int_equal(status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(current, &c->asked));
    c->known = *current;
    c->n_swaps++;
    chain_ask(c);
}

/* What is there is what was confirmed last, or what was asked for after that. */
static void chain_check(struct chain *c, struct witness_run *w)
{
    struct arb_record now = witness_run_get(w, c->vm);

    if (!arb_record_equal(&now, &c->known)) {
        assert_true(arb_record_equal(&now, &c->asked));
        c->n_in_doubt++;
    }
    c->known = now;
}

/* Kills the witness after a time, from outside: in the middle of whatever both sides do. */
static pid_t start_killer(const struct witness_run *w, long kill_us)
{
    const struct timespec time = {.tv_nsec = kill_us * 1000};
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    (void)nanosleep(&time, NULL);
    _exit(kill(w->pid, SIGKILL) == 0 ? 0 : 1);
}

static unsigned count_swaps(const struct chain *chains, unsigned n)
{
    unsigned n_swaps = 0;

    for (unsigned i = 0; i < n; i++)
        n_swaps += chains[i].n_swaps;
    return n_swaps;
}

static void storm(struct witness_run *w, struct chain *chains, unsigned n, long kill_us)
{
    struct tls_context *tls = witness_run_tls(w, "hosta");
    sd_event *event = NULL;
    unsigned n_over, n_swaps = count_swaps(chains, n);
    int status;
    pid_t killer;

    assert_return_code(sd_event_new(&event), 0);
    for (unsigned i = 0; i < n; i++) {
        chains[i].over = false;
        assert_int_equal(arbiter_client_new(event, &w->config, tls, "hosta", chains[i].vm,
                                            PATIENCE_NS, chain_answer, &chains[i],
                                            &chains[i].client),
                         0);
        chain_ask(&chains[i]);
    }
    while (count_swaps(chains, n) == n_swaps) /* connecting takes its time */
        assert_true(sd_event_run(event, PATIENCE_NS / 1000) > 0);
    killer = start_killer(w, kill_us);
    do {
        assert_true(sd_event_run(event, PATIENCE_NS / 1000) > 0);
        n_over = 0;
        for (unsigned i = 0; i < n; i++)
            n_over += chains[i].over;
    } while (n_over < n);
    for (unsigned i = 0; i < n; i++)
        arbiter_client_close(chains[i].client);
    sd_event_unref(event);
    assert_int_equal(waitpid(killer, &status, 0), killer);
    assert_int_equal(status, 0);
}

static void test_kill_during_storm(void **state)
{
    enum { ROUNDS = 100, CHAINS = 4, KILL_US = 30000 };
    struct witness_run *w = *state;
    struct chain chains[CHAINS] = {0};
    unsigned seed = (unsigned)clock_now_ns(), n_kills = 0, n_swaps, n_in_doubt = 0;
    const uint64_t end = clock_now_ns() + STORM_NS; /* a slow machine sees fewer */

    print_message("# seed %u\n", seed);
    srandom(seed);
    for (unsigned i = 0; i < CHAINS; i++)
        (void)snprintf(chains[i].vm, sizeof(chains[i].vm), "vm-%u", i);
    for (; n_kills < ROUNDS && clock_now_ns() < end; n_kills++) {
        witness_run_start(w);
        for (unsigned i = 0; i < CHAINS; i++)
            chain_check(&chains[i], w);
        storm(w, chains, CHAINS, random() % KILL_US);
        assert_true(WIFSIGNALED(witness_run_wait(w)));
    }
    for (unsigned i = 0; i < CHAINS; i++)
        n_in_doubt += chains[i].n_in_doubt;
    n_swaps = count_swaps(chains, CHAINS);
    print_message("# %u kills, %u swaps confirmed, %u carried out and not\n", n_kills, n_swaps,
                  n_in_doubt);
    assert_true(n_kills >= 10 && n_swaps >= n_kills);
}

/* ---- every system call of a swap ---- */

enum {
    CALLS_MAX = 200, /* stops; a swap has fewer */
    SYSCALL_STOP = SIGTRAP | 0x80,
};

/* What a traced witness did between the request and its answer. */
struct trace {
    long calls[CALLS_MAX]; /* the system calls, in order, as far as they began */
    int n_calls;
    bool answered;
    bool done;  /* it has answered, and waits again */
    bool ended; /* by itself */
    int status; /* then */
};

/* Lets the witness run to its next system call, or out of it. False: it ended. */
static bool trace_step(pid_t pid, struct trace *trace)
{
    int signal = 0;

    do {
        assert_int_equal(ptrace(PTRACE_SYSCALL, pid, NULL, signal), 0);
        assert_int_equal(waitpid(pid, &trace->status, __WALL), pid);
        if (!WIFSTOPPED(trace->status)) {
            trace->ended = true;
            return false;
        }
        signal = WSTOPSIG(trace->status) == SYSCALL_STOP ? 0 : WSTOPSIG(trace->status);
    } while (WSTOPSIG(trace->status) != SYSCALL_STOP);
    return true;
}

/* Bytes have come. A connection that was closed without has none. */
static bool readable(const struct transport *t)
{
    char byte;

    return recv(t->ops->fd(t), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
}

/* The nth system call that has to do with the disk, from 1; 0: there are fewer. The rest are not
 * always the same ones: the end of the handshake may be among them. */
static long disk_call(const struct trace *trace, int n)
{
    static const long disk[] = {SYS_openat,   SYS_write, SYS_fdatasync,
                                SYS_renameat, SYS_fsync, SYS_getdents64};

    for (int i = 0; i < trace->n_calls; i++)
        for (size_t k = 0; k < N_OF(disk); k++)
            if (trace->calls[i] == disk[k] && --n == 0)
                return disk[k];
    return 0;
}

/* Sends a swap and follows the witness until it has answered and waits again, or `stop` stops are
 * over: then it is killed, before or behind a system call. fail_at: that system call of the disk,
 * counted from 1, is not made and fails with EIO. */
static void trace_swap(struct witness_run *w, struct transport *t,
                       const struct wire_arb_request *request, int stop, int fail_at,
                       struct trace *trace)
{
    struct wire_msg msg = {.type = WIRE_ARB_REQUEST, .epoch = 1, .u.arb_request = *request};
    struct __ptrace_syscall_info info;
    struct user_regs_struct regs;
    bool failed = false, failing = false;
    int stops = 0;

    *trace = (struct trace){.n_calls = 0};
    assert_int_equal(ptrace(PTRACE_SEIZE, w->pid, NULL, PTRACE_O_TRACESYSGOOD), 0);
    assert_int_equal(ptrace(PTRACE_INTERRUPT, w->pid, NULL, NULL), 0);
    assert_int_equal(waitpid(w->pid, &trace->status, __WALL), w->pid);
    talk_send_msg(t, &msg);
    while (stops++ != stop && trace_step(w->pid, trace)) {
        assert_true(ptrace(PTRACE_GET_SYSCALL_INFO, w->pid, sizeof(info), &info) > 0);
        assert_int_equal(ptrace(PTRACE_GETREGS, w->pid, NULL, &regs), 0);
        if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
            trace->answered = readable(t);
            trace->done = trace->answered && info.entry.nr == SYS_epoll_wait;
            if (trace->done)
                return;
            assert_in_range(trace->n_calls, 0, CALLS_MAX - 1);
            trace->calls[trace->n_calls++] = (long)info.entry.nr;
            failing = fail_at && !failed && disk_call(trace, fail_at);
            failed |= failing;
            if (failing)
                regs.orig_rax = (unsigned long long)-1;
        } else if (failing) {
            regs.rax = (unsigned long long)-EIO;
        }
        assert_int_equal(ptrace(PTRACE_SETREGS, w->pid, NULL, &regs), 0);
    }
    trace->answered = readable(t);
}

/* Prepares a register, and a connection to ask on. */
static struct transport *start_with(struct witness_run *w, const char *vm,
                                    const struct arb_record *old)
{
    witness_run_start(w);
    if (old->term)
        assert_int_equal(witness_run_ask(w, vm, &none, old).status, WIRE_ARB_DONE);
    return talk_start(w, "hosta");
}

/* The nth call of that number, from 1; 0: there is none. */
static int call_find(const struct trace *trace, long nr, int from)
{
    for (int i = from; i < trace->n_calls; i++) {
        if (trace->calls[i] == nr)
            return i + 1;
    }
    return 0;
}

/* In the order that survives a loss of power: the new file is synced before it gets its name, the
 * name before the answer is sent. */
static void assert_order(const struct trace *trace)
{
    int data = call_find(trace, SYS_fdatasync, 0), name = call_find(trace, SYS_renameat, data);
    int synced = call_find(trace, SYS_fsync, name);

    assert_true(data && name && synced);
    assert_int_equal(call_find(trace, SYS_sendto, 0), call_find(trace, SYS_sendto, synced));
    assert_true(call_find(trace, SYS_sendto, synced));
}

/* Kills the witness at each stop in turn. */
static void kill_at_every_call(struct witness_run *w, const char *prefix,
                               const struct arb_record *old)
{
    struct arb_record wanted = witness_run_successor(old), now;
    struct wire_arb_request request;
    struct trace trace;
    int stop = 0, n_old = 0, n_new = 0;
    char vm[32];

    do {
        struct transport *t;

        (void)snprintf(vm, sizeof(vm), "%s-%d", prefix, ++stop);
        request = witness_run_request(vm, old, &wanted);
        t = start_with(w, vm, old);
        trace_swap(w, t, &request, stop, 0, &trace);
        assert_false(trace.ended);
        kill_and_wait(w);
        talk_end(t);
        witness_run_start(w);
        now = witness_run_get(w, vm);
        assert_true(arb_record_equal(&now, &wanted) || arb_record_equal(&now, old));
        if (trace.answered)
            assert_true(arb_record_equal(&now, &wanted));
        *(arb_record_equal(&now, old) ? &n_old : &n_new) += 1;
        /* What the crash left over is in nobody's way. */
        if (arb_record_equal(&now, old))
            assert_int_equal(witness_run_ask(w, vm, old, &wanted).status, WIRE_ARB_DONE);
        kill_and_wait(w);
    } while (!trace.done);
    print_message("# killed at %d stops: %d times the old record, %d times the new one\n", stop,
                  n_old, n_new);
    assert_true(n_old > 10 && n_new > 3);
    assert_order(&trace);
}

static void test_kill_at_every_system_call(void **state)
{
    const struct arb_record first = witness_run_successor(&none);

    kill_at_every_call(*state, "web", &first);
}

/* Of a new VM. */
static void test_kill_at_every_system_call_of_the_first(void **state)
{
    kill_at_every_call(*state, "new", &none);
}

/* Each system call that has to do with the disk fails: what is answered then is the truth. */
static void test_every_system_call_fails(void **state)
{
    const struct arb_record first = witness_run_successor(&none),
                            second = witness_run_successor(&first);
    struct witness_run *w = *state;
    int n_refused = 0, n_ended = 0;
    struct wire_arb_request request;
    struct transport *t;
    struct wire_msg msg;
    struct trace whole, trace;
    char vm[32];

    request = witness_run_request("whole", &first, &second);
    t = start_with(w, "whole", &first);
    trace_swap(w, t, &request, -1, 0, &whole);
    kill_and_wait(w);
    talk_end(t);
    for (int n = 1; disk_call(&whole, n); n++) {
        struct arb_record now;

        (void)snprintf(vm, sizeof(vm), "fail-%d", n);
        request = witness_run_request(vm, &first, &second);
        t = start_with(w, vm, &first);
        trace_swap(w, t, &request, -1, n, &trace);
        if (trace.ended) { /* nothing was answered */
            assert_true(WIFEXITED(trace.status));
            assert_int_equal(WEXITSTATUS(trace.status), EXIT_FAILURE);
            assert_int_equal(disk_call(&trace, n), SYS_fsync);
            w->pid = 0;
            assert_true(talk_ended(t) <= 0);
            n_ended++;
        } else {
            assert_int_equal(ptrace(PTRACE_DETACH, w->pid, NULL, NULL), 0);
            talk_read_msg(t, &msg);
            assert_int_equal(msg.u.arb_reply.status, WIRE_ARB_ERROR);
            talk_end(t);
            n_refused++;
            kill_and_wait(w);
        }
        witness_run_start(w);
        now = witness_run_get(w, vm);
        assert_true(arb_record_equal(&now, trace.ended ? &second : &first));
        kill_and_wait(w);
    }
    print_message("# %d errors: %d answered, %d times it ended\n", n_refused + n_ended, n_refused,
                  n_ended);
    assert_true(n_refused >= 5);
    assert_int_equal(n_ended, 1);
}

/* ---- disks that are full, or cannot be written ---- */

static void assert_nothing_is_stored(struct witness_run *w, const struct arb_record *there)
{
    struct arb_record next = witness_run_successor(there), first = witness_run_successor(&none),
                      now;
    struct wire_arb_reply reply;

    for (int i = 0; i < 3; i++) {
        reply = witness_run_ask(w, "web", there, &next);
        assert_int_equal(reply.status, WIRE_ARB_ERROR);
        assert_true(arb_record_equal(&reply.current, there));
        now = witness_run_get(w, "web");
        assert_true(arb_record_equal(&now, there));
        assert_int_equal(witness_run_ask(w, "other", &none, &first).status, WIRE_ARB_ERROR);
    }
}

static void test_full_disk(void **state)
{
    struct witness_run *w = *state;
    struct arb_record first = witness_run_successor(&none), second = witness_run_successor(&first),
                      now;
    static uint8_t filler[1 << 20];
    char path[128], said[256];
    FILE *f;

    assert_int_equal(mount(NULL, w->dir, NULL, MS_REMOUNT, "size=128k"), 0);
    witness_run_start(w);
    assert_int_equal(witness_run_ask(w, "web", &none, &first).status, WIRE_ARB_DONE);
    (void)snprintf(path, sizeof(path), "%s/filler.tmp", w->dir);
    f = fopen(path, "w");
    assert_non_null(f);
    setbuf(f, NULL);
    assert_true(fwrite(filler, 1, sizeof(filler), f) < sizeof(filler));
    assert_nothing_is_stored(w, &first);
    assert_int_equal(witness_run_command(w, "forbid hosta", said, sizeof(said)), 1);
    kill_and_wait(w);
    witness_run_start(w); /* with the disk still full */
    assert_nothing_is_stored(w, &first);
    assert_int_equal(ftruncate(fileno(f), 0), 0);
    fclose(f);
    assert_int_equal(witness_run_ask(w, "web", &first, &second).status, WIRE_ARB_DONE);
    assert_int_equal(witness_run_ask(w, "other", &none, &first).status, WIRE_ARB_DONE);
    kill_and_wait(w);
    witness_run_start(w);
    now = witness_run_get(w, "web");
    assert_true(arb_record_equal(&now, &second));
}

static void test_read_only_disk(void **state)
{
    struct witness_run *w = *state;
    struct arb_record first = witness_run_successor(&none), second = witness_run_successor(&first);

    witness_run_start(w);
    assert_int_equal(witness_run_ask(w, "web", &none, &first).status, WIRE_ARB_DONE);
    assert_int_equal(mount(NULL, w->dir, NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
    assert_nothing_is_stored(w, &first);
    kill_and_wait(w);
    witness_run_start(w); /* it can still be asked */
    assert_nothing_is_stored(w, &first);
    assert_int_equal(mount(NULL, w->dir, NULL, MS_REMOUNT, NULL), 0);
    assert_int_equal(witness_run_ask(w, "web", &first, &second).status, WIRE_ARB_DONE);
}

#define IN_MEMORY(test) cmocka_unit_test_setup_teardown(test, setup_memory, teardown_memory)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        {"storm on disk", test_kill_during_storm, setup, teardown, NULL},
        {"storm in memory", test_kill_during_storm, setup_memory, teardown_memory, NULL},
        IN_MEMORY(test_kill_at_every_system_call),
        IN_MEMORY(test_kill_at_every_system_call_of_the_first),
        IN_MEMORY(test_every_system_call_fails),
        IN_MEMORY(test_full_disk),
        IN_MEMORY(test_read_only_disk),
    };

    program = argc > 1 ? argv[1] : "understudy-witness";
    /* What is mounted here is nobody else's. */
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        perror("mount namespace");
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
