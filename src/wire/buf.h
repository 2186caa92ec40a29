/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_BUF_H
#define US_WIRE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/err.h"

/* The only way that codecs touch a buffer: everything is bounds-checked here. */

struct wire_reader {
    const uint8_t *at;
    size_t left;
};

struct wire_writer {
    uint8_t *at;
    size_t left;
};

/* The next n bytes (borrowed), or NULL when fewer are left. */
static inline const void *wire_take(struct wire_reader *r, size_t n)
{
    const uint8_t *taken = r->at;

    if (n > r->left)
        return NULL;
    r->at += n;
    r->left -= n;
    return taken;
}

/* Room for a form of n bytes, zeroed, or NULL when it does not fit. */
static inline void *wire_room(struct wire_writer *w, size_t n)
{
    uint8_t *room = w->at;

    if (n > w->left)
        return NULL;
    w->at += n;
    w->left -= n;
    return memset(room, 0, n);
}

/* Appends n bytes. 0 or -ENOSPC. */
int wire_put(struct wire_writer *w, const void *bytes, size_t n) US_MUST_CHECK;

/* True when all n bytes are zero. */
bool wire_all_zero(const uint8_t *bytes, size_t n);

/* A text in a field of n bytes: printable ASCII, then at least one NUL, then only NULs.
 * text_get checks that and copies all n bytes; false = malformed. text_put writes such a field from
 * a C string: what does not fit is cut, what is not printable becomes '?'. */
bool wire_text_get(const uint8_t *field, size_t n, char *ret_text) US_MUST_CHECK;
void wire_text_put(uint8_t *field, size_t n, const char *text);

#endif
