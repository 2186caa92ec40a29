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
    HYP_BOOT_BASE = 1 << 16,  /* where the boot sector's guest writes */
    HYP_BOOT_PAGES_MAX = 128,
    HYP_BOOT_BYTES = 512,
};

/* Makes the firmware image (static). The guest writes to n_pages pages, a power of two, from 1 MiB
 * on, and turns `delay` rounds in between two of them. */
static inline const uint8_t *hyp_guest(uint32_t n_pages, uint32_t delay)
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

/* The same guest as a boot sector (static), which writes each page's first 512 bytes to the disk as
 * well: to that disk block of 4 KiB that follows the first one by the page's number. It asks the
 * BIOS to, so one write is under way at a time. */
static inline const uint8_t *hyp_boot_guest(uint32_t n_pages)
{
    static uint8_t image[HYP_BOOT_BYTES];
    uint8_t code[] = {
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, /* cli; ds = ss = 0 */
        0xbc, 0x00, 0x7c, 0xfb,                   /* sp = 0x7c00; sti */
        0x66, 0x31, 0xdb,                         /* ebx = 0 */
        0x66, 0x43,                               /* again: ebx++ */
        0x89, 0xd8, 0x25, 0,    0,                /* ax = bx & (n_pages - 1) */
        0x89, 0xc1,                               /* cx = ax */
        0xc1, 0xe0, 0x08, 0x05, 0x00, 0x10,       /* ax = (ax << 8) + 0x1000 */
        0x8e, 0xc0,                               /* es = ax */
        0x26, 0x66, 0x89, 0x1e, 0x00, 0x00,       /* es:[0] = ebx */
        0xa3, 0x06, 0x7d,                         /* the request's segment = ax */
        0xc1, 0xe1, 0x03, 0x83, 0xc1, 0x08,       /* cx = (cx << 3) + 8 */
        0x89, 0x0e, 0x08, 0x7d,                   /* the request's sector = cx */
        0xbe, 0x00, 0x7d,                         /* si = the request */
        0xb8, 0x00, 0x43, 0xcd, 0x13,             /* write to the disk in dl */
        0xeb, 0x00,                               /* jmp again */
    };
    static const uint8_t request[16] = {16, 0, 1}; /* one sector */

    code[19] = (uint8_t)(n_pages - 1);
    code[sizeof(code) - 1] = (uint8_t)(14 - (int)sizeof(code));
    memcpy(image, code, sizeof(code));
    memcpy(image + 0x100, request, sizeof(request));
    image[510] = 0x55;
    image[511] = 0xaa;
    return image;
}

#endif
