/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"

/* A VM's status for people. What a status does not have is shown as "-" or left out: a standby says
 * less than a primary, a VM that is down next to nothing. */

#define MIB 1048576.0

enum { CELL = 48, COLUMNS = 9, ROWS_MAX = 256 };

const char *view_text(const json_t *vm, const char *key)
{
    const char *text = json_string_value(json_object_get(vm, key));

    return text ? text : "";
}

double view_number(const json_t *vm, const char *key)
{
    return json_number_value(json_object_get(vm, key));
}

static bool is_primary(const json_t *vm)
{
    return strcmp(view_text(vm, "role"), "primary") == 0;
}

bool view_unprotected(const json_t *vm)
{
    const char *role = view_text(vm, "role");
    const char *owner = view_text(json_object_get(vm, "ended"), "owner");
    bool crashed = strcmp(view_text(vm, "state"), "crashed") == 0;

    if (json_is_true(json_object_get(vm, "protected")) ||
        (!crashed && !view_text(vm, "wanted_standby")[0]))
        return false;
    /* A standby does not protect by itself, and what another host has taken over is its matter. */
    return strcmp(role, "standby") != 0 && (!owner[0] || strcmp(owner, view_text(vm, "host")) == 0);
}

static void protected_for(const json_t *vm, char *out, size_t n_out)
{
    double since = view_number(vm, "protected_since");

    if (since > 0 && json_is_true(json_object_get(vm, "protected")))
        view_duration((double)time(NULL) - since, out, n_out);
    else
        (void)snprintf(out, n_out, "-");
}

void view_protection(const json_t *vm, char *out, size_t n_out)
{
    const char *reason = view_text(vm, "reason"), *peer = view_text(vm, "peer");

    if (strcmp(view_text(vm, "role"), "standby") == 0)
        (void)snprintf(out, n_out, "standby for %s: %s", peer[0] ? peer : "another host",
                       json_is_true(json_object_get(vm, "protected")) ? "ready to take over"
                                                                      : "the copy is not complete");
    else if (json_is_true(json_object_get(vm, "protected")))
        (void)snprintf(out, n_out, "protected by %s", peer);
    else if (!is_primary(vm))
        (void)snprintf(out, n_out, "%s%s%s", view_text(vm, "state"), reason[0] ? ": " : "", reason);
    else if (reason[0])
        (void)snprintf(out, n_out, "not protected: %s", reason);
    else
        (void)snprintf(out, n_out, "not protected: nobody has asked for it");
}

/* ---- table ---- */

static void cell(char out[CELL], bool known, const char *fmt, ...) US_PRINTF(3, 4);

static void cell(char out[CELL], bool known, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (known)
        (void)vsnprintf(out, CELL, fmt, ap); /* cut when too long */
    else
        (void)snprintf(out, CELL, "-");
    va_end(ap);
}

static void fill_row(const json_t *vm, char row[COLUMNS][CELL])
{
    bool runs = is_primary(vm);
    bool standby = strcmp(view_text(vm, "role"), "standby") == 0;
    const char *peer = view_text(vm, "peer");

    cell(row[0], true, "%s", view_text(vm, "vm"));
    cell(row[1], runs || standby, "%s", view_text(vm, "role"));
    cell(row[2], true, "%s", view_text(vm, "state"));
    cell(row[3], peer[0], "%s", peer);
    cell(row[4], runs || standby, "%.0f", view_number(vm, "epoch"));
    cell(row[5], runs && view_number(vm, "interval_ms") > 0, "%.0f ms",
         view_number(vm, "interval_ms"));
    cell(row[6], runs && view_number(vm, "pause_p99_ms") > 0, "%.1f/%.1f ms",
         view_number(vm, "pause_p50_ms"), view_number(vm, "pause_p99_ms"));
    cell(row[7], runs, "%.0f", view_number(vm, "held_frames"));
    protected_for(vm, row[8], CELL);
}

static void print_rows(char rows[][COLUMNS][CELL], size_t n_rows)
{
    int width[COLUMNS] = {0};

    for (size_t r = 0; r < n_rows; r++) {
        for (size_t c = 0; c < COLUMNS; c++) {
            int n = (int)strlen(rows[r][c]);

            width[c] = n > width[c] ? n : width[c];
        }
    }
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t c = 0; c + 1 < COLUMNS; c++)
            printf("%-*s  ", width[c], rows[r][c]);
        printf("%s\n", rows[r][COLUMNS - 1]);
    }
}

void view_table(const json_t *vms)
{
    static char rows[ROWS_MAX + 1][COLUMNS][CELL] = {{"VM", "ROLE", "STATE", "PEER", "EPOCH",
                                                      "INTERVAL", "PAUSE p50/p99", "HELD",
                                                      "PROTECTED FOR"}};
    size_t n = 1, i;
    json_t *vm;

    if (json_array_size(vms) == 0) {
        printf("no VMs on this host\n");
        return;
    }
    json_array_foreach(vms, i, vm)
    {
        if (n <= ROWS_MAX)
            fill_row(vm, rows[n++]);
    }
    print_rows(rows, n);
    json_array_foreach(vms, i, vm)
    {
        if (view_text(vm, "reason")[0])
            printf("%s: %s\n", view_text(vm, "vm"), view_text(vm, "reason"));
        view_disk_notes(vm);
    }
}

/* ---- details ---- */

static void line(const char *title, const char *fmt, ...) US_PRINTF(2, 3);

static void line(const char *title, const char *fmt, ...)
{
    va_list ap;

    printf("  %-10s ", title);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

static void seeding_line(const json_t *vm)
{
    const json_t *seeding = json_object_get(vm, "seeding");

    if (json_is_object(seeding))
        line("copying", "%.0f of %.0f MiB", view_number(seeding, "done_bytes") / MIB,
             view_number(seeding, "total_bytes") / MIB);
}

static double part_ms(const json_t *vm, const char *part)
{
    const json_t *parts = json_object_get(vm, "pause_parts");

    return view_number(json_object_get(parts, part), "p50_ms");
}

static void primary_lines(const json_t *vm)
{
    seeding_line(vm);
    line("epochs", "%.0f, committed %.0f; %.1f a second, interval %.1f ms",
         view_number(vm, "epoch"), view_number(vm, "committed_epoch"),
         view_number(vm, "epochs_per_s"), view_number(vm, "interval_ms"));
    line("pause", "p50 %.1f ms, p99 %.1f ms; %.0f dirty pages", view_number(vm, "pause_p50_ms"),
         view_number(vm, "pause_p99_ms"), view_number(vm, "dirty_pages"));
    line("", "of that device state %.1f, last scan %.1f, last copy %.1f, resume %.1f ms",
         part_ms(vm, "state"), part_ms(vm, "scan"), part_ms(vm, "copy"), part_ms(vm, "resume"));
    line("sent", "%.1f MiB for %.1f MiB of memory and state", view_number(vm, "bytes_sent") / MIB,
         view_number(vm, "bytes_raw") / MIB);
    line("output", "%.0f frames held (%.0f bytes), %.0f released, %.0f dropped",
         view_number(vm, "held_frames"), view_number(vm, "held_bytes"),
         view_number(vm, "released_frames"), view_number(vm, "dropped_frames"));
    line("machine", "%s, %s, %.0f CPU%s, %.0f MiB", view_text(vm, "machine"),
         view_text(vm, "accel"), view_number(vm, "cpus"), view_number(vm, "cpus") > 1 ? "s" : "",
         view_number(vm, "memory_bytes") / MIB);
}

static void standby_lines(const json_t *vm)
{
    line("epochs", "%.0f here, %.0f in memory", view_number(vm, "epoch"),
         view_number(vm, "committed_epoch"));
    line("received", "%.1f MiB for %.1f MiB", view_number(vm, "bytes_received") / MIB,
         view_number(vm, "bytes_raw") / MIB);
}

void view_details(const json_t *vm)
{
    char text[512], uptime[32];
    const char *role = view_text(vm, "role");

    view_protection(vm, text, sizeof(text));
    printf("%s: %s\n", view_text(vm, "vm"), text);
    if (strcmp(role, "none") == 0)
        return;
    protected_for(vm, text, sizeof(text));
    view_duration(view_number(vm, "uptime_s"), uptime, sizeof(uptime));
    line("role", "%s on %s, %s; term %.0f, arbiter %s", role, view_text(vm, "host"),
         view_text(vm, "state"), view_number(vm, "term"), view_text(vm, "arbiter"));
    if (is_primary(vm)) {
        if (text[0] != '-')
            line("protected", "for %s", text);
        primary_lines(vm);
    } else {
        standby_lines(vm);
    }
    view_disk_lines(vm);
    view_verify_line(vm);
    line("processes", "%.0f, hypervisor %.0f; up %s", view_number(vm, "pid"),
         view_number(vm, "hypervisor_pid"), uptime);
}
