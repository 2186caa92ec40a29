/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_GUEST_H
#define US_TESTS_HYP_GUEST_H

#include <stdint.h>
#include <string.h>

/* A guest of 60 bytes, as firmware: it counts and writes the count to page (count mod n_pages), so
 * that in a consistent memory image the highest count says what each page must hold. */

enum {
    HYP_GUEST_BASE = 1 << 20, /* where it writes */
    HYP_GUEST_BYTES = 65536,  /* of the image */
};

/* Makes the firmware image (static). The guest writes to n_pages pages, a power of two, from 1 MiB
 * on, and turns `delay` rounds in between two of them. */
static const uint8_t *hyp_guest(uint32_t n_pages, uint32_t delay)
{
    static uint8_t image[HYP_GUEST_BYTES];
    static const uint8_t reset[] = {0xea, 0x00, 0x00, 0x00, 0xf0}; /* jmp 0xf000:0 */
    static const uint8_t enter[] = {
        0xfa,                                           /* cli */
        0x2e, 0x0f, 0x01, 0x16, 0x00, 0x01,             /* lgdt cs:[0x100] */
        0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, /* cr0 |= 1 */
        0x66, 0xea, 0x40, 0x00, 0x0f, 0x00, 0x08, 0x00, /* jmp 8:0xf0040 */
    };
    static const uint8_t gdtr[] = {0x17, 0x00, 0x10, 0x01, 0x0f, 0x00}; /* 24 bytes at 0xf0110 */
    /* Flat code and data. Marked as accessed, since the CPU cannot write the mark into ROM. */
    static const uint64_t gdt[] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
    uint8_t code[] = {
        0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, /* ds = 0x10 */
        0x31, 0xdb,                         /* ebx = 0 */
        0x43,                               /* again: ebx++ */
        0x89, 0xd8,                         /* eax = ebx */
        0x25, 0,    0,    0,    0,          /* eax &= n_pages - 1 */
        0xc1, 0xe0, 0x0c,                   /* eax <<= 12 */
        0x89, 0x98, 0x00, 0x00, 0x10, 0x00, /* [eax + 1 MiB] = ebx */
        0xb9, 0,    0,    0,    0,          /* ecx = delay */
        0xe2, 0xfe,                         /* loop on itself */
        0xeb, 0xe4,                         /* jmp again */
    };
    uint32_t mask = n_pages - 1;

    memcpy(code + 12, &mask, sizeof(mask));
    memcpy(code + 26, &delay, sizeof(delay));
    code[sizeof(code) - 1] = (uint8_t)(8 - (int)sizeof(code));
    memcpy(image, enter, sizeof(enter));
    memcpy(image + 0x40, code, sizeof(code));
    memcpy(image + 0x100, gdtr, sizeof(gdtr));
    memcpy(image + 0x110, gdt, sizeof(gdt));
    memcpy(image + 0xfff0, reset, sizeof(reset));
    return image;
}

#endif
