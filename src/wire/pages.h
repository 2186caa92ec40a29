/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_WIRE_PAGES_H
#define US_WIRE_PAGES_H

#include <stddef.h>
#include <stdint.h>

#include "wire/msg.h"

/* The body of a message of pages (docs/protocol.md, "Pages"): what is said of each page, in three
 * parts, so that what is alike lies together and compresses: kinds, numbers, data. */

/* What is said of one page. */
struct page_item {
    uint64_t number;      /* guest page, below WIRE_PAGE_NUMBERS */
    uint8_t kind;         /* enum wire_page_kind */
    uint16_t n_bytes;     /* of data: 0 (zero, unchanged), 4 (duplicate), 4096 (whole), or those of
                           * the changes, below 4096 */
    const uint8_t *bytes; /* borrowed */
};

struct page_table {
    uint32_t n; /* 1..WIRE_PAGES_PER_MSG */
    struct page_item page[WIRE_PAGES_PER_MSG];
};

enum { PAGE_BODY_BYTES = WIRE_PAGES_PER_MSG * WIRE_BODY_MAX }; /* the longest body */

/* Writes the body of a table's valid pages into out (room for n * WIRE_BODY_MAX bytes). Returns its
 * length. */
uint32_t page_table_pack(const struct page_table *table, uint8_t *out);

/* Takes a body of n pages apart and checks all of it; the table borrows from it. 0, or -EPROTO;
 * then the table holds anything. Whatever is accepted packs to the same bytes again. */
int page_table_unpack(const uint8_t *body, uint32_t n_body, uint32_t n,
                      struct page_table *ret_table, struct err *err) US_MUST_CHECK;

/* The data of a duplicate: how many pages before it the other one came, 1 = the page just before;
 * across messages, within the epoch. */
enum { PAGE_DISTANCE_BYTES = 4 };
void page_distance_put(uint8_t out[static PAGE_DISTANCE_BYTES], uint32_t distance);
uint32_t page_distance_get(const struct page_item *page);

/* The changes that make `before` into `after`, into out (room for WIRE_PAGE_BYTES bytes). Returns
 * their length: 0 when the pages are the same, WIRE_PAGE_BYTES when the changes are as long as the
 * page, and so not worth having. */
uint32_t page_diff(const uint8_t before[static WIRE_PAGE_BYTES],
                   const uint8_t after[static WIRE_PAGE_BYTES], uint8_t *out);

/* Puts the changes of an unpacked page into `page`, which holds the page as it was. */
void page_patch(const struct page_item *changes, uint8_t page[static WIRE_PAGE_BYTES]);

#endif
