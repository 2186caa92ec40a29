/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Appends numbers to the ledger of a test guest and proves, from the answers, that no
 * acknowledged operation was lost, repeated or rolled back. With one connection (the default)
 * count and hash of every answer are computed here as well and compared. With several, whose
 * order at the server nobody knows, each connection's counts must rise, and at the end the
 * server's count must have grown by exactly the operations sent. Nobody else may use the ledger
 * meanwhile.
 *
 * It ends when it has done its work, at SIGINT or SIGTERM (after the answers still due), or when
 * a connection breaks or stays mute too long. A connection that breaks is not replaced: that
 * connections survive is what the tests are about.
 */
#include "ledger.h"
#include "line_client.h"
#include "tally.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 32, DEPTH_MAX = 64, LINE_MAX_BYTES = 128 };

struct options {
    const char *host;
    uint16_t port;
    uint64_t interval_ns; /* between two requests of a connection; 0: on each answer */
    uint64_t count;       /* operations in all */
    uint64_t duration_ns;
    int connections;
    int depth;      /* requests of a connection that may wait for their answers */
    int timeout_ms; /* mute for longer: given up */
    int wait_ms;    /* for somebody to listen */
};

struct op {
    uint64_t n;
    uint64_t sent_ns;
};

struct connection {
    int fd;
    uint64_t next_n;
    uint64_t next_send_ns;
    uint64_t last_count; /* of its last answer */
    uint64_t last_answer_ns;
    double last_answer_unix_ms;
    struct op pending[DEPTH_MAX]; /* ring: first, n_pending */
    unsigned first, n_pending;
    char in[LINE_MAX_BYTES];
    size_t in_bytes;
};

struct run {
    struct options opt;
    struct tally tally;
    struct connection conns[CONNECTIONS_MAX];
    uint64_t sent;
    uint64_t end_ns;
    uint64_t count, hash; /* the ledger's, as they ought to be by the answers so far */
    const char *broken;   /* why a connection is lost, or NULL */
};

static volatile sig_atomic_t stopping;

static void on_signal(int sig)
{
    (void)sig;
    stopping = 1;
}

/* Asks for count and hash while nothing else is under way. */
static bool get_state(struct run *r, uint64_t *ret_count, uint64_t *ret_hash)
{
    char answer[LINE_MAX_BYTES];
    int err = line_exchange(r->conns[0].fd, "GET", answer, sizeof(answer), r->opt.timeout_ms);

    if (err)
        r->broken = strerror(-err);
    else if (sscanf(answer, "%" SCNu64 " %" SCNx64, ret_count, ret_hash) != 2)
        r->broken = "GET is answered by something else";
    return !r->broken;
}

static void send_op(struct run *r, struct connection *c, uint64_t now)
{
    char line[LINE_MAX_BYTES];
    uint64_t n = c->next_n++;
    int bytes = snprintf(line, sizeof(line), "ADD %" PRIu64 "\n", n);

    c->pending[(c->first + c->n_pending++) % DEPTH_MAX] = (struct op){.n = n, .sent_ns = now};
    r->sent++;
    /* No catching up after a silence: the pause in sending is part of what a client sees. */
    c->next_send_ns += r->opt.interval_ns;
    if (c->next_send_ns < now)
        c->next_send_ns = now;
    /* The few bytes that may be under way always fit into the socket's buffer. */
    if (send(c->fd, line, (size_t)bytes, MSG_NOSIGNAL) != bytes)
        r->broken = strerror(errno);
}

/* Judges the answer to op when this is the only connection. */
static void check_chain(struct run *r, uint64_t count, uint64_t hash, const struct op *op)
{
    uint64_t want = r->count + 1;

    r->hash = ledger_hash(r->hash, op->n);
    if (count < want)
        r->tally.lost += want - count;
    else if (count > want)
        r->tally.duplicated += count - want;
    else if (hash != r->hash)
        r->tally.corrupted++;
    /* Each wrong counts once: go on from what the server has. */
    r->count = count;
    r->hash = hash;
}

static void handle_answer(struct run *r, struct connection *c, const char *line)
{
    uint64_t count, n, hash, now = line_now_ns();
    int used = 0;

    if (c->n_pending == 0) {
        r->broken = "an answer that nobody asked for";
        return;
    }

    struct op op = c->pending[c->first];

    c->first = (c->first + 1) % DEPTH_MAX;
    c->n_pending--;
    if (sscanf(line, "%" SCNu64 " %" SCNu64 " %" SCNx64 "%n", &count, &n, &hash, &used) != 3 ||
        line[used] != '\0') {
        fprintf(stderr, "ledger-client: not an answer: %s\n", line);
        r->tally.corrupted++;
        return;
    }
    if (n != op.n)
        r->tally.corrupted++;
    if (r->opt.connections == 1) {
        check_chain(r, count, hash, &op);
    } else {
        r->count++;
        if (count <= c->last_count)
            r->tally.lost += c->last_count - count + 1;
    }
    c->last_count = count;
    tally_op(&r->tally, op.n, now - op.sent_ns);
    tally_gap(&r->tally, now - c->last_answer_ns, c->last_answer_unix_ms);
    c->last_answer_ns = now;
    c->last_answer_unix_ms = tally_unix_ms();
}

static void read_answers(struct run *r, struct connection *c)
{
    ssize_t n = recv(c->fd, c->in + c->in_bytes, sizeof(c->in) - c->in_bytes, 0);
    char *end;

    if (n <= 0) {
        if (n == 0)
            r->broken = "closed by the server";
        else if (errno != EAGAIN && errno != EINTR)
            r->broken = strerror(errno);
        return;
    }
    c->in_bytes += (size_t)n;
    while (!r->broken && (end = memchr(c->in, '\n', c->in_bytes))) {
        size_t used = (size_t)(end - c->in) + 1;

        *end = '\0';
        handle_answer(r, c, c->in);
        c->in_bytes -= used;
        memmove(c->in, c->in + used, c->in_bytes);
    }
    if (c->in_bytes == sizeof(c->in))
        r->broken = "an endless line";
}

static bool sending_over(const struct run *r, uint64_t now)
{
    return stopping || r->sent >= r->opt.count || now >= r->end_ns;
}

/*
 * Sends what is due and returns when to look again, in ns; UINT64_MAX once all is sent and
 * answered.
 */
static uint64_t send_due(struct run *r, uint64_t now)
{
    uint64_t timeout_ns = (uint64_t)r->opt.timeout_ms * 1000000;
    uint64_t next = UINT64_MAX;

    for (int i = 0; i < r->opt.connections && !r->broken; i++) {
        struct connection *c = &r->conns[i];

        while (!r->broken && !sending_over(r, now) && now >= c->next_send_ns &&
               c->n_pending < (unsigned)r->opt.depth)
            send_op(r, c, now);
        if (!sending_over(r, now) && c->n_pending < (unsigned)r->opt.depth &&
            c->next_send_ns < next)
            next = c->next_send_ns;
        if (c->n_pending == 0)
            continue;

        uint64_t mute_ns = c->pending[c->first].sent_ns + timeout_ns;

        if (now >= mute_ns)
            r->broken = "no answer in time";
        else if (mute_ns < next)
            next = mute_ns;
    }
    return next;
}

static void run_loop(struct run *r, const sigset_t *unblocked)
{
    while (!r->broken) {
        struct pollfd fds[CONNECTIONS_MAX];
        uint64_t now = line_now_ns();
        uint64_t next = send_due(r, now);

        if (next == UINT64_MAX || r->broken)
            return;
        if (next > r->end_ns && r->end_ns > now)
            next = r->end_ns;
        for (int i = 0; i < r->opt.connections; i++)
            fds[i] = (struct pollfd){.fd = r->conns[i].fd, .events = POLLIN};

        uint64_t wait = next > now ? next - now : 0;
        struct timespec t = {.tv_sec = (time_t)(wait / 1000000000),
                             .tv_nsec = (long)(wait % 1000000000)};

        /* Signals are let in only here, so that none can slip in between check and wait. */
        if (ppoll(fds, (nfds_t)r->opt.connections, &t, unblocked) <= 0)
            continue;
        for (int i = 0; i < r->opt.connections && !r->broken; i++) {
            if (fds[i].revents)
                read_answers(r, &r->conns[i]);
        }
    }
}

static bool connect_all(struct run *r)
{
    const struct options *o = &r->opt;

    for (int i = 0; i < o->connections; i++) {
        struct connection *c = &r->conns[i];
        int err = line_connect(o->host, o->port, o->timeout_ms, o->wait_ms, &c->fd);

        if (err) {
            r->broken = strerror(-err);
            c->fd = -1;
            return false;
        }
        c->next_n = (uint64_t)i << 40 | 1;
    }
    return get_state(r, &r->count, &r->hash);
}

/* The silence that a broken connection ends in counts as well. */
static void note_last_gaps(struct run *r)
{
    for (int i = 0; i < r->opt.connections; i++) {
        const struct connection *c = &r->conns[i];

        if (c->n_pending)
            tally_gap(&r->tally, line_now_ns() - c->last_answer_ns, c->last_answer_unix_ms);
    }
}

static void check_end(struct run *r)
{
    uint64_t count, hash;

    if (!get_state(r, &count, &hash))
        return;
    if (count < r->count)
        r->tally.lost += r->count - count;
    else if (count > r->count)
        r->tally.duplicated += count - r->count;
    else if (r->opt.connections == 1 && hash != r->hash)
        r->tally.corrupted++;
}

static int run(struct run *r)
{
    sigset_t stop, unblocked;

    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    if (connect_all(r)) {
        uint64_t now = line_now_ns();

        sigprocmask(SIG_BLOCK, &stop, &unblocked);
        sigaction(SIGINT, &(struct sigaction){.sa_handler = on_signal}, NULL);
        sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_signal}, NULL);
        r->end_ns = r->opt.duration_ns ? now + r->opt.duration_ns : UINT64_MAX;
        for (int i = 0; i < r->opt.connections; i++) {
            r->conns[i].next_send_ns = r->conns[i].last_answer_ns = now;
            r->conns[i].last_answer_unix_ms = tally_unix_ms();
        }
        printf("ledger: connected count=%" PRIu64 "\n", r->count);
        run_loop(r, &unblocked);
        if (!r->broken)
            check_end(r);
        note_last_gaps(r);
    }
    if (r->broken)
        fprintf(stderr, "ledger-client: %s port %d: %s\n", r->opt.host, r->opt.port, r->broken);
    tally_end(&r->tally);
    for (int i = 0; i < r->opt.connections; i++) {
        if (r->conns[i].fd >= 0)
            close(r->conns[i].fd);
    }
    return r->broken || r->tally.lost || r->tally.duplicated || r->tally.corrupted;
}

static const char usage[] =
    "usage: ledger-client --host ADDRESS [option...]\n"
    "  --port N            default 7000\n"
    "  --interval-ms N     between two requests (default 10; 0: as fast as answers come)\n"
    "  --count N           stop after N operations\n"
    "  --duration-s S      stop after that time (default: at SIGINT or SIGTERM)\n"
    "  --connections N     at once (default 1)\n"
    "  --depth N           requests that may wait for their answers (default 1)\n"
    "  --out FILE          write a JSON line {t_ms, n, rtt_ms} per answer\n"
    "  --report-gap-ms N   print each silence longer than that\n"
    "  --timeout-s S       give up when mute for that long (default 30)\n"
    "  --wait-s S          wait for somebody to listen (default 0)\n"
    "Exit status: 0 all acknowledged operations are there exactly once, 1 not so or the\n"
    "connection is lost, 2 usage.\n";

enum {
    OPT_HOST = 1,
    OPT_PORT,
    OPT_INTERVAL,
    OPT_COUNT,
    OPT_DURATION,
    OPT_CONNECTIONS,
    OPT_DEPTH,
    OPT_OUT,
    OPT_GAP,
    OPT_TIMEOUT,
    OPT_WAIT,
    OPT_HELP
};

static const struct option long_options[] = {
    {"host", required_argument, NULL, OPT_HOST},
    {"port", required_argument, NULL, OPT_PORT},
    {"interval-ms", required_argument, NULL, OPT_INTERVAL},
    {"count", required_argument, NULL, OPT_COUNT},
    {"duration-s", required_argument, NULL, OPT_DURATION},
    {"connections", required_argument, NULL, OPT_CONNECTIONS},
    {"depth", required_argument, NULL, OPT_DEPTH},
    {"out", required_argument, NULL, OPT_OUT},
    {"report-gap-ms", required_argument, NULL, OPT_GAP},
    {"timeout-s", required_argument, NULL, OPT_TIMEOUT},
    {"wait-s", required_argument, NULL, OPT_WAIT},
    {"help", no_argument, NULL, OPT_HELP},
    {0},
};

/* A number from min to max, or the end of the program. */
static double number(const char *text, double min, double max)
{
    char *end;
    double x = strtod(text, &end);

    if (end == text || *end != '\0' || !(x >= min && x <= max)) {
        fprintf(stderr, "ledger-client: '%s' is not a number from %g to %g\n", text, min, max);
        exit(2);
    }
    return x;
}

static void parse_option(struct run *r, int option)
{
    struct options *o = &r->opt;

    switch (option) {
    case OPT_HOST:
        o->host = optarg;
        break;
    case OPT_PORT:
        o->port = (uint16_t)number(optarg, 1, 65535);
        break;
    case OPT_INTERVAL:
        o->interval_ns = (uint64_t)(number(optarg, 0, 1e6) * 1e6);
        break;
    case OPT_COUNT:
        o->count = (uint64_t)number(optarg, 1, 1e12);
        break;
    case OPT_DURATION:
        o->duration_ns = (uint64_t)(number(optarg, 0.001, 1e6) * 1e9);
        break;
    case OPT_CONNECTIONS:
        o->connections = (int)number(optarg, 1, CONNECTIONS_MAX);
        break;
    case OPT_DEPTH:
        o->depth = (int)number(optarg, 1, DEPTH_MAX);
        break;
    case OPT_GAP:
        r->tally.report_gap_ns = (uint64_t)(number(optarg, 0, 1e6) * 1e6);
        break;
    case OPT_TIMEOUT:
        o->timeout_ms = (int)(number(optarg, 0.1, 1e5) * 1e3);
        break;
    case OPT_WAIT:
        o->wait_ms = (int)(number(optarg, 0, 1e5) * 1e3);
        break;
    case OPT_OUT:
        r->tally.out = fopen(optarg, "we");
        if (!r->tally.out) {
            fprintf(stderr, "ledger-client: %s: %s\n", optarg, strerror(errno));
            exit(2);
        }
        break;
    case OPT_HELP:
        fputs(usage, stdout);
        exit(0);
    default:
        fputs(usage, stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static struct run r = {
        .opt = {.port = LEDGER_PORT,
                .interval_ns = 10000000,
                .count = UINT64_MAX,
                .connections = 1,
                .depth = 1,
                .timeout_ms = 30000},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        parse_option(&r, option);
    if (!r.opt.host || optind != argc) {
        fputs(usage, stderr);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        r.conns[i].fd = -1;
    return run(&r);
}
