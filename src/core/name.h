/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_NAME_H
#define US_CORE_NAME_H

#include <string.h>

#include "wire/msg.h"

/* Copies a name of a host; the rest of dst becomes zero. An overlong one, which validation keeps
 * out, would be cut. */
static inline void name_copy(char dst[static WIRE_NAME_BYTES], const char *src)
{
    size_t n = strnlen(src, WIRE_NAME_BYTES - 1);

    memcpy(dst, src, n);
    memset(dst + n, 0, WIRE_NAME_BYTES - n);
}

#endif
