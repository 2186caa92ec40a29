/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"

/* The disks in a VM's status, for people. */

#define MIB 1048576.0
#define GIB (1024 * MIB)

void view_duration(double s, char *out, size_t n_out)
{
    if (s < 120)
        (void)snprintf(out, n_out, "%.0f s", s);
    else if (s < 2 * 3600)
        (void)snprintf(out, n_out, "%.0f min", s / 60);
    else if (s < 2 * 86400)
        (void)snprintf(out, n_out, "%.0f h", s / 3600);
    else
        (void)snprintf(out, n_out, "%.0f days", s / 86400);
}

void view_size(double bytes, char *out, size_t n_out)
{
    if (bytes >= 10 * GIB)
        (void)snprintf(out, n_out, "%.1f GiB", bytes / GIB);
    else if (bytes >= 10 * MIB)
        (void)snprintf(out, n_out, "%.0f MiB", bytes / MIB);
    else
        (void)snprintf(out, n_out, "%.0f KiB", bytes / 1024);
}

void view_progress(double done, double total, double rate, char *out, size_t n_out)
{
    char left[32];
    int n = snprintf(out, n_out, "%3.0f%%, %.0f of %.0f MiB", total > 0 ? done / total * 100 : 0,
                     done / MIB, total / MIB);

    if (rate <= 0 || n < 0 || (size_t)n >= n_out)
        return;
    view_duration(total > done ? (total - done) / rate : 0, left, sizeof(left));
    (void)snprintf(out + n, n_out - (size_t)n, ", %.1f MiB/s, %s left", rate / MIB, left);
}

/* Is it being brought up to date? */
static bool busy(const json_t *disk)
{
    const char *state = view_text(disk, "state");

    return strcmp(state, "copying") == 0 || strcmp(state, "comparing") == 0;
}

const char *view_copying(const json_t *vm, double *ret_done, double *ret_total)
{
    const json_t *seeding = json_object_get(vm, "seeding"), *disk;
    const char *what = NULL;
    size_t i;

    *ret_done = *ret_total = 0;
    json_array_foreach(json_object_get(vm, "disks"), i, disk)
    {
        *ret_done += view_number(disk, "done_bytes");
        *ret_total += view_number(disk, "total_bytes");
        if (strcmp(view_text(disk, "state"), "copying") == 0)
            what = "copying disks";
        else if (busy(disk) && !what)
            what = "comparing disks";
    }
    if (what || !json_is_object(seeding))
        return what;
    *ret_done = view_number(seeding, "done_bytes");
    *ret_total = view_number(seeding, "total_bytes");
    return "copying memory";
}

/* Notes the rate at which an object's done_bytes grew. */
static void set_rate(json_t *now, const json_t *before, double seconds)
{
    double grown = view_number(now, "done_bytes") - view_number(before, "done_bytes");

    if (json_is_object(now) && json_is_object(before) && grown > 0 && seconds > 0)
        (void)json_object_set_new(now, "rate_bytes", json_real(grown / seconds)); /* or none */
}

bool view_moves(const json_t *vm)
{
    const json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(vm, "disks"), i, disk)
    {
        if (busy(disk))
            return true;
    }
    return json_is_true(json_object_get(json_object_get(vm, "verify"), "running"));
}

void view_set_rates(json_t *vm, const json_t *before, double seconds)
{
    const json_t *old = json_object_get(before, "disks");
    json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(vm, "disks"), i, disk)
        set_rate(disk, json_array_get(old, i), seconds);
    set_rate(json_object_get(vm, "verify"), json_object_get(before, "verify"), seconds);
}

/* "copying: 43%, 440 of 1024 MiB", "in step" */
static void disk_state(const json_t *disk, char *out, size_t n_out)
{
    char text[128];

    if (busy(disk)) {
        view_progress(view_number(disk, "done_bytes"), view_number(disk, "total_bytes"),
                      view_number(disk, "rate_bytes"), text, sizeof(text));
        (void)snprintf(out, n_out, "%s: %s", view_text(disk, "state"), text + strspn(text, " "));
    } else {
        (void)snprintf(out, n_out, "%s", view_text(disk, "state"));
    }
}

void view_disk_notes(const json_t *vm)
{
    const json_t *disk;
    char text[192];
    size_t i;

    json_array_foreach(json_object_get(vm, "disks"), i, disk)
    {
        if (!busy(disk) && strcmp(view_text(disk, "state"), "failed") != 0)
            continue;
        disk_state(disk, text, sizeof(text));
        printf("%s: disk %zu, %s: %s\n", view_text(vm, "vm"), i, view_text(disk, "path"), text);
    }
}

/* A figure that is worth a word only when there is something of it. */
static void amount(const json_t *disk, const char *key, const char *word)
{
    char size[32];

    if (view_number(disk, key) <= 0)
        return;
    view_size(view_number(disk, key), size, sizeof(size));
    printf(", %s %s", size, word);
}

void view_disk_lines(const json_t *vm)
{
    const json_t *disk;
    char size[32], state[192];
    size_t i;

    json_array_foreach(json_object_get(vm, "disks"), i, disk)
    {
        view_size(view_number(disk, "size_bytes"), size, sizeof(size));
        disk_state(disk, state, sizeof(state));
        printf("  disk %-5zu %s, %s, %s", i, view_text(disk, "path"), size, state);
        amount(disk, "copied_bytes", "copied");
        amount(disk, "dirty_bytes", "changed");
        amount(disk, "applied_bytes", "applied");
        if (view_number(disk, "durable_epoch") > 0)
            printf(", epoch %.0f on stable storage", view_number(disk, "durable_epoch"));
        putchar('\n');
    }
}

void view_ranges(const json_t *verify, char *out, size_t n_out)
{
    size_t n = json_array_size(json_object_get(verify, "differing"));

    (void)snprintf(out, n_out, "%s%zu range%s",
                   json_is_true(json_object_get(verify, "more")) ? "more than " : "", n,
                   n == 1 ? "" : "s");
}

void view_verify_line(const json_t *vm)
{
    const json_t *verify = json_object_get(vm, "verify");
    const char *error = view_text(verify, "error");
    time_t finished = (time_t)view_number(verify, "finished_at");
    char when[32] = "", text[128], ranges[48];
    struct tm tm;

    if (!json_is_object(verify))
        return;
    view_ranges(verify, ranges, sizeof(ranges));
    printf("  %-10s ", "verify");
    view_progress(view_number(verify, "done_bytes"), view_number(verify, "total_bytes"),
                  view_number(verify, "rate_bytes"), text, sizeof(text));
    if (json_is_true(json_object_get(verify, "running"))) {
        printf("disk %.0f: %s, differing so far: %s\n", view_number(verify, "disk"),
               text + strspn(text, " "), ranges);
        return;
    }
    if (localtime_r(&finished, &tm))
        (void)strftime(when, sizeof(when), " at %F %T", &tm);
    if (error[0])
        printf("failed%s: %s\n", when, error);
    else if (json_array_size(json_object_get(verify, "differing")) == 0)
        printf("the copies were equal%s\n", when);
    else
        printf("the copies differed in %s%s\n", ranges, when);
}
