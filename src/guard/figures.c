/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/internal.h"

#include <jansson.h>
#include <stddef.h>

/* What a guard measures, for status and trace. The keys are documented in docs/control.md. */

/* The parts of a pause, in their order. */
static const struct pause_part {
    const char *name;
    size_t offset; /* in struct epoch_trace */
} pause_parts[] = {
    {"stop", offsetof(struct epoch_trace, stop_ns)},
    {"state", offsetof(struct epoch_trace, state_ns)},
    {"scan", offsetof(struct epoch_trace, scan_ns)},
    {"copy", offsetof(struct epoch_trace, copy_ns)},
    {"resume", offsetof(struct epoch_trace, resume_ns)},
};

enum { N_PAUSE_PARTS = sizeof(pause_parts) / sizeof(pause_parts[0]) };

static double ms(uint64_t ns)
{
    return (double)ns / (double)NS_PER_MS;
}

static double percentile_ms(const struct guard *g, size_t offset, unsigned percentile)
{
    return ms(stats_percentile(&g->stats, offset, percentile));
}

static json_t *pause_breakdown(const struct guard *g)
{
    json_t *all = json_object();

    for (int i = 0; i < N_PAUSE_PARTS; i++) {
        size_t offset = pause_parts[i].offset;

        (void)json_object_set_new(all, pause_parts[i].name, /* out of memory: it is missing */
                                  json_pack("{s:f, s:f}", "p50_ms", percentile_ms(g, offset, 50),
                                            "p99_ms", percentile_ms(g, offset, 99)));
    }
    return all;
}

static json_t *encoding(const struct sender_report *sent)
{
    static const char *const levels[] = {[EFFORT_RAW] = "raw",
                                         [EFFORT_DELTA] = "delta",
                                         [EFFORT_LZ4] = "lz4",
                                         [EFFORT_ZSTD] = "zstd"};
    static const char *const kinds[WIRE_PAGE_KINDS] = {[WIRE_PAGE_ZERO] = "zero",
                                                       [WIRE_PAGE_UNCHANGED] = "unchanged",
                                                       [WIRE_PAGE_DUPLICATE] = "duplicate",
                                                       [WIRE_PAGE_CHANGES] = "changes",
                                                       [WIRE_PAGE_WHOLE] = "whole"};
    json_t *pages = json_object();

    for (int i = 0; i < WIRE_PAGE_KINDS; i++) /* out of memory: it is missing */
        (void)json_object_set_new(pages, kinds[i], json_integer((json_int_t)sent->pages[i]));
    return json_pack("{s:s, s:o, s:I, s:I, s:I, s:I, s:f, s:f}", "level", levels[sent->level],
                     "pages", pages, "page_bytes", (json_int_t)sent->page_bytes, "page_wire_bytes",
                     (json_int_t)sent->page_wire_bytes, "state_bytes",
                     (json_int_t)sent->state_bytes, "state_wire_bytes",
                     (json_int_t)sent->state_wire_bytes, "encode_ms", ms(sent->encode_ns),
                     "write_ms", ms(sent->write_ns));
}

json_t *figures_pace(const struct guard *g)
{
    struct controller_figures f;

    controller_figures_get(&g->pace.controller, &f);
    return json_pack("{s:f, s:f, s:f, s:i, s:I, s:f, s:I, s:I}", "interval_ms", ms(f.interval_ns),
                     "slowdown_pct", f.slowdown_permille / 10.0, "held_pct", f.held_permille / 10.0,
                     "in_flight", (int)f.in_flight, "in_flight_bytes",
                     (json_int_t)f.in_flight_bytes, "round_trip_ms", ms(f.round_trip_ns),
                     "carries_bytes_per_s", (json_int_t)f.bytes_per_s, "epoch_pages",
                     (json_int_t)f.epoch_pages);
}

json_t *figures_json(struct guard *g)
{
    uint64_t interval = stats_interval(&g->stats);
    size_t pause = offsetof(struct epoch_trace, pause_ns);
    struct sender_report sent;
    struct output_stats out;

    sender_report_get(g->sender, &sent);
    output_stats_get(g->output, &out);
    return json_pack(
        "{s:f, s:f, s:f, s:f, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "interval_ms",
        ms(interval), "epochs_per_s", interval ? 1e9 / (double)interval : 0.0, "pause_p50_ms",
        percentile_ms(g, pause, 50), "pause_p99_ms", percentile_ms(g, pause, 99), "pause_parts",
        pause_breakdown(g), "encoding", encoding(&sent), "dirty_pages",
        (json_int_t)g->capture.now.pages, "bytes_sent", (json_int_t)sent.wire_bytes, "bytes_raw",
        (json_int_t)sent.raw_bytes, "held_frames", (json_int_t)out.held_frames, "held_bytes",
        (json_int_t)out.held_bytes, "released_frames", (json_int_t)out.released_frames,
        "dropped_frames", (json_int_t)out.dropped_frames, "protected_since",
        (json_int_t)g->stats.protected_since);
}

static json_t *trace_json(const struct epoch_trace *t, uint64_t now)
{
    json_t *one = json_pack("{s:I, s:f, s:I, s:I, s:f, s:f}", "epoch", (json_int_t)t->epoch,
                            "age_ms", ms(now - t->at_ns), "pages", (json_int_t)t->pages,
                            "ahead_pages", (json_int_t)t->ahead_pages, "ahead_ms", ms(t->ahead_ns),
                            "pause_ms", ms(t->pause_ns));

    for (int i = 0; i < N_PAUSE_PARTS; i++) {
        uint64_t ns = *(const uint64_t *)((const char *)t + pause_parts[i].offset);
        char key[32];

        (void)snprintf(key, sizeof(key), "%s_ms", pause_parts[i].name);
        (void)json_object_set_new(one, key, json_real(ms(ns))); /* out of memory: it is missing */
    }
    return one;
}

json_t *figures_trace(const struct guard *g)
{
    uint64_t now = clock_now_ns();
    json_t *all = json_array();

    for (unsigned i = 0; i < stats_count(&g->stats); i++)
        (void)json_array_append_new(all, trace_json(stats_at(&g->stats, i), now));
    return json_pack("{s:o}", "epochs", all);
}
