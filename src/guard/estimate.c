/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "guard/internal.h"

/* What would it cost to protect this VM? For a while a VM without a standby is treated as if it had
 * one: epochs are cut when the controller says so, copied, encoded and written, to nowhere. Its
 * output flows; the epochs have numbers of their own and no term, and nobody ever hears of them. */

static_assert((int)IN_FLIGHT_MAX <= (int)ESTIMATE_IN_FLIGHT, "each epoch in flight has a place");

enum { SECONDS_DEFAULT = 30, SECONDS_MAX = 3600 };

/* ---- the bin ---- */

struct bin {
    struct transport base;
    int fd;
};

static ssize_t bin_readv(struct transport *t, const struct iovec *iov, int n_iov)
{
    return 0;
}

static ssize_t bin_writev(struct transport *t, const struct iovec *iov, int n_iov)
{
    ssize_t n = writev(((struct bin *)t)->fd, iov, n_iov);

    return n < 0 ? -errno : n;
}

static int bin_fd(const struct transport *t)
{
    return ((const struct bin *)t)->fd;
}

static void bin_shutdown(struct transport *t)
{
}

static void bin_close(struct transport *t)
{
    if (!t)
        return;
    close(((struct bin *)t)->fd);
    free(t);
}

static struct transport *bin_new(void)
{
    static const struct transport_ops ops = {.name = "bin",
                                             .readv = bin_readv,
                                             .writev = bin_writev,
                                             .fd = bin_fd,
                                             .shutdown = bin_shutdown,
                                             .close = bin_close};
    struct bin *bin = calloc(1, sizeof(*bin));

    if (!bin)
        return NULL;
    bin->base.ops = &ops;
    bin->fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (bin->fd < 0) {
        free(bin);
        return NULL;
    }
    return &bin->base;
}

/* ---- figures ---- */

static uint64_t cpu_ns(void)
{
    struct rusage used;

    (void)getrusage(RUSAGE_SELF, &used); /* cannot fail */
    return (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * NS_PER_S +
           (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000;
}

/* Counters that only grow, now. */
static struct estimate_counters counters(struct guard *g)
{
    struct estimate_counters now = {.at_ns = clock_now_ns(), .cpu_ns = cpu_ns()};
    struct sender_report sent;

    sender_report_get(g->sender, &sent);
    now.wire_bytes = sent.wire_bytes;
    now.raw_bytes = sent.raw_bytes;
    return now;
}

static uint64_t released_frames(struct guard *g)
{
    struct output_stats out;

    output_stats_get(g->output, &out);
    return out.released_frames;
}

/* ---- life ---- */

static int on_deadline(sd_event_source *source, uint64_t usec, void *user)
{
    estimate_end(user, "");
    return 0;
}

static int begin(struct guard *g, unsigned seconds, struct err *err)
{
    struct estimate *e = &g->estimate;
    struct transport *bin;
    int r = seed_track(g, err);

    if (r < 0)
        return r;
    bin = bin_new();
    r = bin ? sender_attach(g->sender, bin) : -ENOMEM;
    if (r < 0) {
        bin_close(bin);
        return err_sys(err, r, "/dev/null");
    }
    sd_event_source_disable_unref(e->deadline);
    e->deadline = NULL;
    r = sd_event_add_time_relative(g->event, &e->deadline, CLOCK_MONOTONIC,
                                   (uint64_t)seconds * 1000000, 0, on_deadline, g);
    if (r < 0) {
        sender_detach(g->sender);
        return err_sys(err, r, "event loop");
    }
    pace_link(g, bin->ops->fd(bin));
    *e = (struct estimate){.deadline = e->deadline, .runs = true, .made = true, .seconds = seconds};
    e->from = e->to = counters(g);
    e->seen_frames = released_frames(g);
    return 0;
}

void estimate_end(struct guard *g, const char *why)
{
    struct estimate *e = &g->estimate;

    if (!e->runs)
        return;
    fault_point("guard.estimated");
    e->to = counters(g);
    e->runs = false;
    (void)snprintf(e->error, sizeof(e->error), "%s", why);
    (void)sd_event_source_set_enabled(e->deadline, SD_EVENT_OFF); /* off cannot fail */
    sender_detach(g->sender);
    capture_forget(g);
}

void estimate_free(struct guard *g)
{
    sd_event_source_disable_unref(g->estimate.deadline);
}

uint64_t estimate_cut(struct guard *g)
{
    struct estimate *e = &g->estimate;

    e->seen_frames = released_frames(g);
    e->ordered_ns[++e->epoch % ESTIMATE_IN_FLIGHT] = g->capture.ordered_ns;
    return e->epoch;
}

bool estimate_frames_wait(struct guard *g)
{
    return g->estimate.runs && released_frames(g) != g->estimate.seen_frames;
}

static void sample_add(struct samples *s, uint64_t ns)
{
    s->ns[s->n++ % SAMPLES_MAX] = ns;
    s->sum_ns += ns;
}

void estimate_epoch(struct guard *g, const struct epoch_trace *trace)
{
    if (!g->estimate.runs)
        return;
    sample_add(&g->estimate.pauses, trace->pause_ns);
    g->estimate.pages += trace->pages;
}

void estimate_sent(struct guard *g, uint64_t epoch)
{
    struct estimate *e = &g->estimate;
    uint64_t now = clock_now_ns();

    if (!e->runs)
        return;
    while (e->sent < epoch)
        sample_add(&e->commits, now - e->ordered_ns[++e->sent % ESTIMATE_IN_FLIGHT]);
    capture_committed(g, epoch);
}

/* ---- orders and status ---- */

void estimate_request(struct guard *g, struct control_request *req)
{
    const char *vm = g->body->spec.name;
    const json_t *wish = json_object_get(control_body(req), "seconds");
    json_int_t seconds = wish ? json_integer_value(wish) : SECONDS_DEFAULT;
    struct err err;

    if (seconds < 1 || seconds > SECONDS_MAX)
        control_fail(req, "%s: estimate takes 1 to %d seconds", vm, SECONDS_MAX);
    else if (g->core.state == PRIMARY_PROTECTED)
        control_fail(req, "%s: is protected: status and trace tell what that costs", vm);
    else if (g->core.state != PRIMARY_SOLO || g->core.wanted[0])
        control_fail(req, "%s: is %s, to be protected by %s: unprotect it first", vm,
                     primary_state_name(g->core.state), g->core.wanted);
    else if (g->estimate.runs)
        control_fail(req, "%s: an estimate is being made already", vm);
    else if (begin(g, (unsigned)seconds, &err) < 0)
        control_fail(req, "%s: no estimate can be made: %s", vm, err.text);
    else
        control_reply(req, NULL);
}

static json_t *samples_json(const struct samples *s)
{
    size_t n = s->n < SAMPLES_MAX ? s->n : SAMPLES_MAX;
    uint64_t *values = malloc(sizeof(s->ns));
    json_t *json;

    if (!values)
        return NULL;
    memcpy(values, s->ns, n * sizeof(*values));
    json = json_pack("{s:f, s:f}", "p50_ms", (double)percentile_of(values, n, 50) / 1e6, "p99_ms",
                     (double)percentile_of(values, n, 99) / 1e6);
    free(values);
    return json;
}

json_t *estimate_json(struct guard *g)
{
    struct estimate *e = &g->estimate;
    double seconds;
    struct stat ram;

    if (!e->made)
        return NULL;
    if (e->runs)
        e->to = counters(g);
    seconds = (double)(e->to.at_ns - e->from.at_ns) / (double)NS_PER_S;
    if (seconds <= 0)
        seconds = 1e-9;
    if (fstat(g->body->ram_fd, &ram) < 0)
        ram.st_blocks = 0;
    return json_pack("{s:b, s:s, s:f, s:i, s:I, s:o, s:o, s:f, s:f, s:f, s:f, s:f, s:I}", "running",
                     e->runs, "error", e->error, "elapsed_s", seconds, "seconds", (int)e->seconds,
                     "epochs", (json_int_t)e->pauses.n, "pause", samples_json(&e->pauses), "commit",
                     samples_json(&e->commits), "slowdown_pct",
                     (double)e->pauses.sum_ns / (double)NS_PER_S / seconds * 100, "cpu_pct",
                     (double)(e->to.cpu_ns - e->from.cpu_ns) / (double)NS_PER_S / seconds * 100,
                     "pages_per_s", (double)e->pages / seconds, "raw_bytes_per_s",
                     (double)(e->to.raw_bytes - e->from.raw_bytes) / seconds, "wire_bytes_per_s",
                     (double)(e->to.wire_bytes - e->from.wire_bytes) / seconds, "first_copy_bytes",
                     (json_int_t)ram.st_blocks * 512);
}
