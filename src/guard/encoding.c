/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/encoding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/clock.h"

int encoding_init(struct encoding *e, uint64_t cache_bytes, bool raw)
{
    *e = (struct encoding){.raw = raw};
    effort_init(&e->effort, raw ? EFFORT_RAW : EFFORT_LZ4, raw);
    e->pages = page_encoder_new(raw ? 0 : cache_bytes);
    e->packer = packer_new();
    e->digest = epoch_digest_new();
    e->body = malloc(PAGE_BODY_BYTES);
    e->scratch = malloc(PAGE_BODY_BYTES);
    if (e->pages && e->packer && e->digest && e->body && e->scratch)
        return 0;
    encoding_done(e);
    return -ENOMEM;
}

void encoding_done(struct encoding *e)
{
    page_encoder_free(e->pages);
    packer_free(e->packer);
    epoch_digest_free(e->digest);
    free(e->body);
    free(e->scratch);
    free(e->sent.bytes);
    *e = (struct encoding){0};
}

void encoding_forget(struct encoding *e)
{
    page_encoder_forget(e->pages);
    e->sent.n = 0;
}

void encoding_begin(struct encoding *e, uint64_t epoch, bool seeding)
{
    epoch_digest_reset(e->digest);
    page_encoder_begin(e->pages, epoch, !seeding);
}

/* Compresses the body in every way that is to be tried; the one in use comes last, so that its
 * bytes are in the scratch memory then. */
static void pack_body(struct encoding *e, struct wire_pages *pages, struct effort_sample *sample)
{
    static const enum wire_encoding encodings[EFFORT_LEVELS] = {
        [EFFORT_LZ4] = WIRE_ENC_LZ4, [EFFORT_ZSTD] = WIRE_ENC_ZSTD};
    enum effort_level level = e->effort.level;

    for (unsigned i = 1; i <= EFFORT_LEVELS; i++) {
        enum effort_level way = (enum effort_level)((level + i) % EFFORT_LEVELS);
        uint64_t start = clock_now_ns();
        uint32_t n;

        if (!effort_tries(&e->effort, way))
            continue;
        n = pack(e->packer, encodings[way], e->body, pages->n_body, e->scratch);
        sample->packed[way] = true;
        sample->pack_ns[way] = clock_now_ns() - start;
        sample->n_packed[way] = n ? n : pages->n_body;
        if (n && way == level) {
            pages->encoding = encodings[way];
            pages->n_bytes = n;
            pages->bytes = e->scratch;
        }
    }
}

void encoding_pages(struct encoding *e, const struct stage_chunk *chunk,
                    struct wire_pages *ret_pages, uint64_t *kinds)
{
    struct effort_sample sample = {.n_pages = chunk->n_pages};
    uint64_t start = clock_now_ns();

    sample.n_body = page_encoder_body(e->pages, chunk->number, chunk->bytes, chunk->n_pages,
                                      e->effort.level > EFFORT_RAW, e->digest, e->body, kinds);
    sample.body_ns = clock_now_ns() - start;
    *ret_pages = (struct wire_pages){.n = chunk->n_pages,
                                     .n_body = sample.n_body,
                                     .encoding = WIRE_ENC_RAW,
                                     .n_bytes = sample.n_body,
                                     .bytes = e->body};
    pack_body(e, ret_pages, &sample);
    if (effort_sample(&e->effort, &sample) && e->effort.level == EFFORT_RAW)
        page_encoder_forget(e->pages);
}

void encoding_state(struct encoding *e, const char *format, const uint8_t *state, uint64_t n,
                    uint64_t at, struct wire_state *ret_piece)
{
    uint32_t n_piece =
        n - at < WIRE_STATE_PER_MSG ? (uint32_t)(n - at) : (uint32_t)WIRE_STATE_PER_MSG;
    /* It is small, so it is compressed at all levels. */
    enum wire_encoding how = e->raw                           ? WIRE_ENC_RAW
                             : e->effort.level == EFFORT_ZSTD ? WIRE_ENC_ZSTD
                                                              : WIRE_ENC_LZ4;

    *ret_piece = (struct wire_state){.total = n, .offset = at};
    strcpy(ret_piece->format, format);
    ret_piece->delta = !e->raw && e->sent.n == n && strcmp(e->sent.format, format) == 0;
    if (ret_piece->delta)
        state_xor(e->body, state + at, e->sent.bytes + at, n_piece);
    state_piece_encode(e->packer, how, ret_piece->delta ? e->body : state + at, n_piece, e->scratch,
                       ret_piece);
}

void encoding_sent(struct encoding *e, struct sent_state *state)
{
    struct sent_state was = e->sent;

    e->sent = *state;
    *state = was;
}
