/* SPDX-License-Identifier: Apache-2.0 */
#include <argp.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "direction.h"
#include "io/clock.h"

/* understudy-shaper: a cable that is as bad as it is told to be, for tests (not installed).
 *
 *     host --- INSIDE tap [shaper] OUTSIDE tap --- network
 *
 * It makes the two taps, goes to the background, and passes Ethernet frames between them as
 * direction.h says; "in" is to the host, "out" is from it. The kernel sees taps without offloads,
 * so that what passes are frames as they would be on a cable, with their checksums.
 *
 * One process and thread per link: epoll over the taps, a timer and a UNIX socket. An order is
 * one packet of words and is answered by one:
 *
 *     [in | out | both] KEY=VALUE...   change parameters (of both directions, until told
 * otherwise); all words or, when one is wrong, none clear                            no parameters;
 * what is queued leaves at once show                             parameters and counters, a line
 * for each direction end                              the process ends, with its taps
 */

enum {
    TEXT_BYTES = 2048,
    N_DIRECTIONS = 2,
    DIR_IN = 0,
    DIR_OUT = 1,
    ANSWER_S = 5,
    ORDER_US = 100000
};

#define DONE "done"

static const char *const names[N_DIRECTIONS] = {[DIR_IN] = "in", [DIR_OUT] = "out"};

static struct shaper {
    struct direction direction[N_DIRECTIONS];
    int epoll_fd, timer_fd, control_fd;
    uint64_t timer_ns; /* what the timer is set to; UINT64_MAX = to nothing */
    bool ends;
} shaper;

/* --- orders ---------------------------------------------------------------------------------- */

static void show(char *text, size_t n)
{
    size_t at = 0;

    text[0] = '\0';
    for (int i = 0; i < N_DIRECTIONS; i++) {
        const struct direction *d = &shaper.direction[i];
        const struct counters *c = &d->counters;
        char params[512];
        int len;

        params_show(&d->params, params, sizeof(params));
        len = snprintf(text + at, n - at,
                       "%s: %spassed=%" PRIu64 " bytes=%" PRIu64 " lost=%" PRIu64
                       " overflowed=%" PRIu64 " duplicated=%" PRIu64 " reordered=%" PRIu64
                       " flipped=%" PRIu64 " flipped_bits=%" PRIu64 " queued=%" PRIu32 "\n",
                       names[i], params, c->passed, c->bytes, c->lost, c->overflowed, c->duplicated,
                       c->reordered, c->flipped_frames, c->flipped_bits, d->n_queued);
        if (len < 0 || (size_t)len >= n - at)
            return;
        at += (size_t)len;
    }
}

static void clear(void)
{
    struct params nothing;

    params_init(&nothing);
    for (int i = 0; i < N_DIRECTIONS; i++) {
        (void)direction_send(&shaper.direction[i], UINT64_MAX); /* nothing remains */
        direction_set(&shaper.direction[i], &nothing);
    }
}

static int change(char *words, struct err *error)
{
    struct params params[N_DIRECTIONS];
    bool chosen[N_DIRECTIONS] = {true, true};
    char *rest = NULL;

    for (int i = 0; i < N_DIRECTIONS; i++)
        params[i] = shaper.direction[i].params;
    for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        bool both = strcmp(word, "both") == 0;

        if (both || strcmp(word, names[DIR_IN]) == 0 || strcmp(word, names[DIR_OUT]) == 0) {
            for (int i = 0; i < N_DIRECTIONS; i++)
                chosen[i] = both || strcmp(word, names[i]) == 0;
            continue;
        }
        for (int i = 0; i < N_DIRECTIONS; i++)
            if (chosen[i] && params_set(&params[i], word, error))
                return -EINVAL;
    }
    for (int i = 0; i < N_DIRECTIONS; i++)
        direction_set(&shaper.direction[i], &params[i]);
    return 0;
}

/* One order, one answer, and the connection ends. Who gives it sends it at once. */
static void take_order(void)
{
    struct timeval limit = {.tv_usec = ORDER_US};
    CLEANUP_FD int fd = accept4(shaper.control_fd, NULL, NULL, SOCK_CLOEXEC);
    struct err error = {0};
    char text[TEXT_BYTES];
    ssize_t n;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)))
        return;
    n = recv(fd, text, sizeof(text) - 1, 0);
    if (n <= 0)
        return;
    text[n] = '\0';
    if (strcmp(text, "show") == 0) {
        show(text, sizeof(text));
    } else {
        if (strcmp(text, "clear") == 0)
            clear();
        else if (strcmp(text, "end") == 0)
            shaper.ends = true;
        else
            (void)change(text, &error); /* the text says it */
        (void)snprintf(text, sizeof(text), "%s", error.text[0] ? error.text : DONE);
    }
    /* Who does not wait for the answer gets none. */
    (void)!send(fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
}

static struct sockaddr_un control_address(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        errx(1, "%s: the path is too long for a socket", path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    return address;
}

/* Gives an order to the shaper that listens there; returns the exit status. */
static int give_order(const char *path, char *const words[])
{
    struct sockaddr_un to = control_address(path);
    struct timeval limit = {.tv_sec = ANSWER_S};
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    char text[TEXT_BYTES] = "";
    ssize_t n;

    for (size_t at = 0; *words && at < sizeof(text); words++)
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s", at ? " " : "", *words);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
        connect(fd, (struct sockaddr *)&to, sizeof(to)) || send(fd, text, strlen(text), 0) < 0 ||
        (n = recv(fd, text, sizeof(text) - 1, 0)) < 0)
        err(1, "%s", path);
    text[n] = '\0';
    if (strcmp(text, DONE) == 0)
        return 0;
    if (strncmp(text, "in:", 3) != 0)
        errx(1, "%s", text);
    (void)fputs(text, stdout);
    return 0;
}

/* --- frames ---------------------------------------------------------------------------------- */

static int open_tap(const char *name)
{
    struct ifreq req = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (strlen(name) >= IFNAMSIZ)
        errx(1, "%s: the name is too long for an interface", name);
    memcpy(req.ifr_name, name, strlen(name) + 1);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &req))
        err(1, "tap %s", name);
    return fd;
}

static void set_timer(uint64_t due_ns)
{
    struct itimerspec when = {0};

    if (due_ns == shaper.timer_ns)
        return;
    shaper.timer_ns = due_ns;
    if (due_ns != UINT64_MAX) {
        when.it_value.tv_sec = (time_t)(due_ns / NS_PER_S);
        when.it_value.tv_nsec = (long)(due_ns % NS_PER_S);
    }
    if (timerfd_settime(shaper.timer_fd, TFD_TIMER_ABSTIME, &when, NULL))
        err(1, "timer");
}

static void watch(int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    if (fd < 0 || epoll_ctl(shaper.epoll_fd, EPOLL_CTL_ADD, fd, &event))
        err(1, "epoll");
}

static void run(void)
{
    while (!shaper.ends) {
        struct epoll_event events[4];
        int n = epoll_wait(shaper.epoll_fd, events, 4, -1);
        uint64_t due_ns = UINT64_MAX, expirations;

        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == shaper.control_fd)
                take_order();
            else if (events[i].data.fd == shaper.timer_fd &&
                     read(shaper.timer_fd, &expirations, sizeof(expirations)) > 0)
                shaper.timer_ns = UINT64_MAX;
        }
        for (int i = 0; i < N_DIRECTIONS; i++) {
            struct direction *d = &shaper.direction[i];
            uint64_t next_ns;

            direction_receive(d, clock_now_ns());
            next_ns = direction_send(d, clock_now_ns());
            due_ns = next_ns < due_ns ? next_ns : due_ns;
        }
        set_timer(due_ns);
    }
}

static void serve(const char *inside, const char *outside, const char *path, uint64_t seed)
{
    struct sockaddr_un address = control_address(path);
    int in_fd = open_tap(inside), out_fd = open_tap(outside);

    shaper.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    shaper.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    shaper.timer_ns = UINT64_MAX;
    shaper.control_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (direction_init(&shaper.direction[DIR_IN], out_fd, in_fd, seed * 2 + 1) ||
        direction_init(&shaper.direction[DIR_OUT], in_fd, out_fd, seed * 2 + 2))
        errx(1, "out of memory");
    if (bind(shaper.control_fd, (struct sockaddr *)&address, sizeof(address)) ||
        listen(shaper.control_fd, 8))
        err(1, "%s", path);
    watch(in_fd);
    watch(out_fd);
    watch(shaper.timer_fd);
    watch(shaper.control_fd);
    /* It stands for a cable, which waits for no processor. */
    (void)setpriority(PRIO_PROCESS, 0, -20);
    if (daemon(1, 0))
        err(1, "daemon");
    run();
    (void)unlink(path);
}

/* --- command line ---------------------------------------------------------------------------- */

static struct {
    const char *inside, *outside, *control;
    uint64_t seed;
    char **words;
} options = {.seed = 1};

static const struct argp_option option_table[] = {
    {"inside", 'i', "TAP", 0, "make this tap towards the host", 0},
    {"outside", 'o', "TAP", 0, "make this tap towards the network", 0},
    {"control", 'c', "SOCKET", 0, "take orders there, or give one", 0},
    {"seed", 's', "N", 0, "of all that happens by chance (default 1)", 0},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    switch (key) {
    case 'i':
        options.inside = arg;
        return 0;
    case 'o':
        options.outside = arg;
        return 0;
    case 'c':
        options.control = arg;
        return 0;
    case 's':
        options.seed = strtoull(arg, NULL, 10) & UINT32_MAX;
        return 0;
    case ARGP_KEY_ARGS:
        options.words = state->argv + state->next;
        return 0;
    case ARGP_KEY_END:
        if (!options.control || !options.inside != !options.outside ||
            !options.inside == !options.words)
            argp_usage(state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int main(int argc, char *argv[])
{
    static const struct argp argp = {
        option_table,
        parse,
        "--control SOCKET --inside TAP --outside TAP\n"
        "--control SOCKET WORD...",
        "Passes frames between two taps as a bad cable would, or gives an order to the process "
        "that "
        "does.\vOrders: [in | out | both] KEY=VALUE... | clear | show | end",
        NULL,
        NULL,
        NULL};

    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    if (options.words)
        return give_order(options.control, options.words);
    serve(options.inside, options.outside, options.control, options.seed);
    return 0;
}
