/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/buf.h"

#include <errno.h>

static bool printable(uint8_t c)
{
    return c >= 0x20 && c < 0x7f;
}

int wire_put(struct wire_writer *w, const void *bytes, size_t n)
{
    if (n > w->left)
        return -ENOSPC;
    if (n > 0)
        memcpy(w->at, bytes, n);
    w->at += n;
    w->left -= n;
    return 0;
}

bool wire_all_zero(const uint8_t *bytes, size_t n)
{
    return n == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, n - 1) == 0);
}

bool wire_text_get(const uint8_t *field, size_t n, char *ret_text)
{
    size_t n_text = strnlen((const char *)field, n);

    if (n_text == n || !wire_all_zero(field + n_text, n - n_text))
        return false;
    for (size_t i = 0; i < n_text; i++) {
        if (!printable(field[i]))
            return false;
    }
    memcpy(ret_text, field, n);
    return true;
}

void wire_text_put(uint8_t *field, size_t n, const char *text)
{
    size_t n_text = strnlen(text, n - 1);

    memset(field, 0, n);
    for (size_t i = 0; i < n_text; i++)
        field[i] = printable((uint8_t)text[i]) ? (uint8_t)text[i] : '?';
}
