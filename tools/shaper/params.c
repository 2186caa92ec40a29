/* SPDX-License-Identifier: Apache-2.0 */
#include "params.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 64 KiB: what a home router holds back; nine seconds of a modem. */
enum { DEFAULT_QUEUE_BYTES = 64 << 10 };

enum kind { TIME, CHANCE, RATE, BYTES, SWITCH };

static const struct key {
    const char *name;
    enum kind kind;
    size_t offset;
} keys[] = {
    {"delay", TIME, offsetof(struct params, delay_ns)},
    {"jitter", TIME, offsetof(struct params, jitter_ns)},
    {"rate", RATE, offsetof(struct params, rate_bps)},
    {"queue", BYTES, offsetof(struct params, queue_bytes)},
    {"loss", CHANCE, offsetof(struct params, loss)},
    {"duplicate", CHANCE, offsetof(struct params, duplicate)},
    {"reorder", CHANCE, offsetof(struct params, reorder)},
    {"flip", CHANCE, offsetof(struct params, flip)},
    {"repair", SWITCH, offsetof(struct params, repair_checksum)},
    {"blackhole", SWITCH, offsetof(struct params, blackhole)},
};

/* What may follow a number, and by how much it multiplies. Each is bounded so that no sum of due
 * times and no product of rates overflows. */
static const struct unit {
    enum kind kind;
    const char *name;
    double factor, max;
} units[] = {
    {TIME, "us", 1e3, 60e9},
    {TIME, "ms", 1e6, 60e9},
    {TIME, "s", 1e9, 60e9},
    {TIME, "", 1e9, 0},
    {CHANCE, "", 1, 1},
    {CHANCE, "%", 0.01, 1},
    {RATE, "", 1, 1e11},
    {RATE, "k", 1e3, 1e11},
    {RATE, "m", 1e6, 1e11},
    {RATE, "g", 1e9, 1e11},
    {BYTES, "", 1, 1 << 30},
    {BYTES, "k", 1 << 10, 1 << 30},
    {BYTES, "m", 1 << 20, 1 << 30},
};

#define N_OF(array) (sizeof(array) / sizeof((array)[0]))

void params_init(struct params *p)
{
    *p = (struct params){.queue_bytes = DEFAULT_QUEUE_BYTES};
}

static int parse_number(enum kind kind, const char *text, double *ret_value)
{
    char *end;
    double number = strtod(text, &end);

    if (end == text)
        return -EINVAL;
    for (size_t i = 0; i < N_OF(units); i++) {
        double value = number * units[i].factor;

        if (units[i].kind != kind || strcmp(units[i].name, end) != 0)
            continue;
        if (!(value >= 0 && value <= units[i].max))
            return -EINVAL;
        *ret_value = value;
        return 0;
    }
    return -EINVAL;
}

int params_set(struct params *p, const char *word, struct err *err)
{
    const char *value = strchr(word, '=');
    size_t n_name = value ? (size_t)(value++ - word) : 0;
    double number;

    for (size_t i = 0; n_name && i < N_OF(keys); i++) {
        void *field = (char *)p + keys[i].offset;

        if (strlen(keys[i].name) != n_name || strncmp(keys[i].name, word, n_name) != 0)
            continue;
        if (keys[i].kind == SWITCH) {
            if (strcmp(value, "on") != 0 && strcmp(value, "off") != 0)
                break;
            *(bool *)field = strcmp(value, "on") == 0;
            return 0;
        }
        if (parse_number(keys[i].kind, value, &number))
            break;
        if (keys[i].kind == CHANCE)
            *(double *)field = number;
        else
            *(uint64_t *)field = (uint64_t)number;
        return 0;
    }
    return err_set(err, -EINVAL, "'%s' is not a parameter with its value", word);
}

void params_show(const struct params *p, char *text, size_t n)
{
    struct params nothing;
    size_t at = 0;

    params_init(&nothing);
    text[0] = '\0';
    for (size_t i = 0; i < N_OF(keys); i++) {
        const void *field = (const char *)p + keys[i].offset;
        const void *plain = (const char *)&nothing + keys[i].offset;
        const char *name = keys[i].name;
        int len = 0;

        switch (keys[i].kind) {
        case SWITCH:
            if (*(const bool *)field)
                len = snprintf(text + at, n - at, "%s=on ", name);
            break;
        case CHANCE:
            if (*(const double *)field > 0)
                len = snprintf(text + at, n - at, "%s=%g ", name, *(const double *)field);
            break;
        case TIME:
            if (*(const uint64_t *)field)
                len = snprintf(text + at, n - at, "%s=%gms ", name,
                               (double)*(const uint64_t *)field / 1e6);
            break;
        default:
            if (*(const uint64_t *)field != *(const uint64_t *)plain)
                len = snprintf(text + at, n - at, "%s=%llu ", name,
                               (unsigned long long)*(const uint64_t *)field);
        }
        if (len < 0 || (size_t)len >= n - at)
            return;
        at += (size_t)len;
    }
}
