/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "wire/page.h"
#include "wire/pages.h"

/* Everything that a peer can make us decode. Input: a byte that chooses what follows (0: a hello,
 * 1 to 3: a message on that channel), then its bytes. Length and checksum are put right first, or
 * no mutation would ever get past them; what they refuse is the unit tests' matter.
 *
 * Whatever decodes must encode to the same bytes again: there is one form of each message. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void seal(uint8_t *at, uint64_t value, int n)
{
    for (int i = 0; i < n; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static void require(int ok)
{
    if (!ok)
        abort();
}

static void fuzz_hello(const uint8_t *data, size_t n)
{
    uint8_t raw[WIRE_HELLO_BYTES] = {0}, again[WIRE_HELLO_BYTES];
    struct wire_hello hello, answer;
    struct err err;

    memcpy(raw, data, n < sizeof(raw) ? n : sizeof(raw));
    seal(raw + sizeof(raw) - 8, XXH3_64bits(raw, sizeof(raw) - 8), 8);
    if (wire_hello_decode(raw, &hello, &err) < 0)
        return;
    wire_hello_encode(&hello, again);
    require(memcmp(raw, again, sizeof(raw)) == 0);
    wire_hello_answer(&hello, "fuzz", WIRE_OK, "", &answer);
    wire_hello_encode(&answer, raw);
    require(wire_hello_decode(raw, &answer, NULL) == 0);
    (void)!wire_hello_check_answer(&hello, &answer, &err);
}

/* A body that is taken apart has one form too; its pages, in a small image, decode to something. */
static void decode_pages(struct packer *packer, const struct wire_pages *pages)
{
    static struct page_table table;
    uint8_t *body = malloc(pages->n_body), *again = malloc(pages->n * (size_t)WIRE_BODY_MAX);
    uint8_t page[WIRE_PAGE_BYTES] = {0};
    struct err err;

    require(body && again);
    if (pages_decode(packer, pages, body, &err) == 0 &&
        page_table_unpack(body, pages->n_body, pages->n, &table, &err) == 0) {
        require(page_table_pack(&table, again) == pages->n_body);
        require(memcmp(body, again, pages->n_body) == 0);
        for (uint32_t i = 0; i < table.n; i++)
            if (table.page[i].kind == WIRE_PAGE_CHANGES)
                page_patch(&table.page[i], page);
    }
    free(body);
    free(again);
}

static void decode_state(struct packer *packer, const struct wire_state *state)
{
    uint8_t *out = malloc(state->n_raw);
    struct err err;

    require(out != NULL);
    (void)!state_piece_decode(packer, state, out, &err);
    free(out);
}

static void decode_disk(struct packer *packer, const struct wire_disk *disk)
{
    struct err err;

    for (uint32_t i = 0; i < disk->n; i++) {
        uint64_t n = wire_disk_piece_data(&disk->piece[i]);
        uint8_t *out = malloc(n + !n);

        require(out && n <= WIRE_DISK_PIECE_BYTES);
        (void)!disk_piece_decode(packer, &disk->piece[i], out, &err);
        free(out);
    }
}

static void fuzz_msg(uint8_t *raw, size_t n, enum wire_channel channel)
{
    static struct packer *packer;
    struct wire_header header;
    struct wire_msg msg;
    struct err err;
    uint8_t *again;

    seal(raw + 4, n - WIRE_HEADER_BYTES, 4);
    seal(raw + 16, 0, 8);
    seal(raw + 16, XXH3_64bits(raw, n), 8);
    if (wire_header_decode(raw, channel, &header, &err) < 0 ||
        wire_msg_decode(raw, &header, raw + WIRE_HEADER_BYTES, &msg, &err) < 0)
        return;
    again = malloc(n);
    require(again && wire_msg_encode(&msg, again, n) == (int64_t)n);
    require(memcmp(raw, again, n) == 0);
    free(again);
    if (!packer)
        packer = packer_new();
    require(packer != NULL);
    if (msg.type == WIRE_PAGES)
        decode_pages(packer, &msg.u.pages);
    else if (msg.type == WIRE_DISK)
        decode_disk(packer, &msg.u.disk);
    else if (msg.type == WIRE_STATE)
        decode_state(packer, &msg.u.state);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint8_t *raw;

    if (n == 0)
        return 0;
    if (data[0] == 0) {
        fuzz_hello(data + 1, n - 1);
        return 0;
    }
    if (data[0] > WIRE_CHANNEL_ARBITER || n - 1 < WIRE_HEADER_BYTES)
        return 0;
    raw = malloc(n - 1);
    require(raw != NULL);
    memcpy(raw, data + 1, n - 1);
    fuzz_msg(raw, n - 1, data[0]);
    free(raw);
    return 0;
}
