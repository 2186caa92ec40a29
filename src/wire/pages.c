/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/pages.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "wire/buf.h"
#include "wire/endian.h"

/* Changes: a mask of the page's blocks of 64 bytes, the first one in the lowest bit; for each block
 * in it a mask of its words of 8 bytes; then the words. Measured against blocks alone, and against
 * XOR: docs/performance.md, "Encoding". */
enum {
    WORD_BYTES = 8,
    BLOCK_WORDS = 8,
    BLOCK_BYTES = BLOCK_WORDS * WORD_BYTES,
    BLOCKS = WIRE_PAGE_BYTES / BLOCK_BYTES,
    VARINT_BYTES = 8, /* the longest: 52 bits, 7 in a byte */
};

static_assert(BLOCKS == 64, "a mask of blocks is one word");
static_assert(WIRE_BODY_MAX == 1 + VARINT_BYTES + WIRE_PAGE_BYTES, "kind, number, data");

/* Numbers: how many pages lie between a page and the one before it in the message, modulo the
 * number of pages that there can be; 7 bits a byte, the lowest first, the top bit: another byte
 * follows. */
static uint8_t *put_gap(uint8_t *at, uint64_t gap)
{
    for (; gap >= 0x80; gap >>= 7)
        *at++ = (uint8_t)(gap | 0x80);
    *at++ = (uint8_t)gap;
    return at;
}

/* False: no number, or not in its shortest form. */
static bool get_gap(struct wire_reader *r, uint64_t *ret_gap)
{
    uint64_t gap = 0;

    for (unsigned i = 0; i < VARINT_BYTES; i++) {
        const uint8_t *byte = wire_take(r, 1);

        if (!byte || (*byte == 0 && i > 0))
            return false;
        gap |= (uint64_t)(*byte & 0x7f) << 7 * i;
        if (!(*byte & 0x80)) {
            *ret_gap = gap;
            return gap < WIRE_PAGE_NUMBERS;
        }
    }
    return false;
}

uint32_t page_table_pack(const struct page_table *table, uint8_t *out)
{
    uint64_t next = 0;
    uint8_t *at = out;

    for (uint32_t i = 0; i < table->n; i++)
        *at++ = table->page[i].kind;
    for (uint32_t i = 0; i < table->n; i++) {
        at = put_gap(at, (table->page[i].number - next) % WIRE_PAGE_NUMBERS);
        next = table->page[i].number + 1;
    }
    for (uint32_t i = 0; i < table->n; i++) {
        const struct page_item *page = &table->page[i];

        if (page->n_bytes)
            memcpy(at, page->bytes, page->n_bytes);
        at += page->n_bytes;
    }
    return (uint32_t)(at - out);
}

/* The length of the changes at the reader's place, which is left alone. 0: they are not valid. */
static uint32_t changes_length(struct wire_reader r)
{
    const struct le64 *blocks = wire_take(&r, sizeof(*blocks));
    uint32_t n_blocks = blocks ? (uint32_t)__builtin_popcountll(le64_get(*blocks)) : 0, n_words = 0;
    const uint8_t *words = wire_take(&r, n_blocks);
    uint32_t length;

    for (uint32_t i = 0; words && i < n_blocks; i++) {
        if (words[i] == 0)
            return 0;
        n_words += (uint32_t)__builtin_popcount(words[i]);
    }
    length = (uint32_t)sizeof(*blocks) + n_blocks + n_words * WORD_BYTES;
    if (!n_words || length >= WIRE_PAGE_BYTES || !wire_take(&r, n_words * WORD_BYTES))
        return 0;
    return length;
}

/* The data of a page whose kind is known. */
static bool take_data(struct wire_reader *r, struct page_item *page)
{
    switch (page->kind) {
    case WIRE_PAGE_ZERO:
    case WIRE_PAGE_UNCHANGED:
        return true;
    case WIRE_PAGE_DUPLICATE:
        page->n_bytes = PAGE_DISTANCE_BYTES;
        break;
    case WIRE_PAGE_CHANGES:
        page->n_bytes = (uint16_t)changes_length(*r);
        break;
    case WIRE_PAGE_WHOLE:
        page->n_bytes = WIRE_PAGE_BYTES;
        break;
    default:
        return false;
    }
    page->bytes = page->n_bytes ? wire_take(r, page->n_bytes) : NULL;
    return page->bytes && (page->kind != WIRE_PAGE_DUPLICATE || page_distance_get(page) > 0);
}

int page_table_unpack(const uint8_t *body, uint32_t n_body, uint32_t n,
                      struct page_table *ret_table, struct err *err)
{
    struct wire_reader r = {body, n_body};
    const uint8_t *kinds = n <= WIRE_PAGES_PER_MSG ? wire_take(&r, n) : NULL;
    uint64_t next = 0, gap;

    if (!kinds)
        return err_set(err, -EPROTO, "%u pages in a body of %u bytes", n, n_body);
    ret_table->n = n;
    for (uint32_t i = 0; i < n; i++) {
        if (!get_gap(&r, &gap))
            return err_set(err, -EPROTO, "page %u of a message has no valid number", i);
        ret_table->page[i] =
            (struct page_item){.number = (next + gap) % WIRE_PAGE_NUMBERS, .kind = kinds[i]};
        next = ret_table->page[i].number + 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct page_item *page = &ret_table->page[i];

        if (!take_data(&r, page))
            return err_set(err, -EPROTO, "page %llu, of kind %u, does not decode",
                           (unsigned long long)page->number, page->kind);
    }
    if (r.left > 0)
        return err_set(err, -EPROTO, "%zu bytes too many after the pages", r.left);
    return 0;
}

void page_distance_put(uint8_t out[static PAGE_DISTANCE_BYTES], uint32_t distance)
{
    struct le32 form = le32_of(distance);

    memcpy(out, &form, sizeof(form));
}

uint32_t page_distance_get(const struct page_item *page)
{
    struct le32 form;

    memcpy(&form, page->bytes, sizeof(form));
    return le32_get(form);
}

/* Which words of a block differ. */
static uint8_t words_changed(const uint8_t *before, const uint8_t *after)
{
    uint64_t x[BLOCK_WORDS], y[BLOCK_WORDS], any = 0;
    uint8_t words = 0;

    memcpy(x, before, sizeof(x));
    memcpy(y, after, sizeof(y));
    for (unsigned i = 0; i < BLOCK_WORDS; i++)
        any |= x[i] ^ y[i];
    if (any == 0) /* most blocks */
        return 0;
    for (unsigned i = 0; i < BLOCK_WORDS; i++)
        words |= (uint8_t)((x[i] != y[i]) << i);
    return words;
}

uint32_t page_diff(const uint8_t before[static WIRE_PAGE_BYTES],
                   const uint8_t after[static WIRE_PAGE_BYTES], uint8_t *out)
{
    uint8_t words[BLOCKS], *at;
    uint64_t blocks = 0;
    unsigned n_blocks = 0, n_words = 0;
    struct le64 form;

    for (unsigned i = 0; i < BLOCKS; i++) {
        words[n_blocks] = words_changed(before + i * BLOCK_BYTES, after + i * BLOCK_BYTES);
        if (words[n_blocks] == 0)
            continue;
        blocks |= UINT64_C(1) << i;
        n_words += (unsigned)__builtin_popcount(words[n_blocks++]);
    }
    if (!blocks)
        return 0;
    if (sizeof(form) + n_blocks + n_words * WORD_BYTES >= WIRE_PAGE_BYTES)
        return WIRE_PAGE_BYTES;
    form = le64_of(blocks);
    memcpy(out, &form, sizeof(form));
    memcpy(out + sizeof(form), words, n_blocks);
    at = out + sizeof(form) + n_blocks;
    for (unsigned b = 0; blocks; blocks &= blocks - 1, b++) {
        const uint8_t *block = after + __builtin_ctzll(blocks) * BLOCK_BYTES;

        for (unsigned left = words[b]; left; left &= left - 1, at += WORD_BYTES)
            memcpy(at, block + __builtin_ctz(left) * WORD_BYTES, WORD_BYTES);
    }
    return (uint32_t)(at - out);
}

void page_patch(const struct page_item *changes, uint8_t page[static WIRE_PAGE_BYTES])
{
    const uint8_t *words, *at;
    uint64_t blocks;
    struct le64 form;

    memcpy(&form, changes->bytes, sizeof(form));
    blocks = le64_get(form);
    words = changes->bytes + sizeof(form);
    at = words + __builtin_popcountll(blocks);
    for (; blocks; blocks &= blocks - 1) {
        uint8_t *block = page + __builtin_ctzll(blocks) * BLOCK_BYTES;

        for (unsigned left = *words++; left; left &= left - 1, at += WORD_BYTES)
            memcpy(block + __builtin_ctz(left) * WORD_BYTES, at, WORD_BYTES);
    }
}
