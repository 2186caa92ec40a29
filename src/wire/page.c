/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include "wire/page.h"

#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "wire/buf.h"
#include "wire/layout.h"

enum {
    LZ4_WORTH_BYTES = WIRE_PAGE_BYTES - WIRE_PAGE_BYTES / 8, /* most that LZ4 may leave */
    BACK_OFF_MAX = 32, /* pages sent raw, untried, after a long row of failures */
};

/* LZ4 finds out that a page does not compress only at the end, so trying each page of, say, an
 * encrypted buffer costs most of what the encoder costs at all. After a failure the next page goes
 * out untried, then two, then four; the first success ends that. Pages of one kind come in rows. */
struct lz4_encoder {
    struct page_encoder base;
    unsigned back_off; /* pages to leave untried after the next failure */
    unsigned skip;     /* pages still to be left untried */
    void *work;        /* LZ4's hash table */
};

static void lz4_encode(struct page_encoder *base, uint64_t number, const uint8_t *page,
                       uint8_t *out, struct wire_page *ret_page)
{
    struct lz4_encoder *enc = (struct lz4_encoder *)base;
    int n;

    *ret_page = (struct wire_page){.number = number, .encoding = WIRE_ENC_ZERO, .bytes = page};
    if (wire_all_zero(page, WIRE_PAGE_BYTES))
        return;
    ret_page->encoding = WIRE_ENC_RAW;
    ret_page->n_bytes = WIRE_PAGE_BYTES;
    if (enc->skip > 0) {
        enc->skip--;
        return;
    }
    n = LZ4_compress_fast_extState(enc->work, (const char *)page, (char *)out, WIRE_PAGE_BYTES,
                                   LZ4_WORTH_BYTES, 1);
    if (n <= 0) { /* it does not fit: not worth it */
        enc->skip = enc->back_off;
        enc->back_off = enc->back_off ? enc->back_off * 2 : 1;
        if (enc->back_off > BACK_OFF_MAX)
            enc->back_off = BACK_OFF_MAX;
        return;
    }
    enc->back_off = 0;
    ret_page->encoding = WIRE_ENC_LZ4;
    ret_page->n_bytes = (uint16_t)n;
    ret_page->bytes = out;
}

static void lz4_free(struct page_encoder *base)
{
    struct lz4_encoder *enc = (struct lz4_encoder *)base;

    free(enc->work);
    free(enc);
}

struct page_encoder *page_encoder_lz4_new(void)
{
    static const struct page_encoder_ops ops = {
        .name = "lz4", .encode = lz4_encode, .free = lz4_free};
    struct lz4_encoder *enc = calloc(1, sizeof(*enc));

    if (!enc)
        return NULL;
    enc->base.ops = &ops;
    enc->work = malloc((size_t)LZ4_sizeofState());
    if (!enc->work) {
        free(enc);
        return NULL;
    }
    return &enc->base;
}

static bool lz4_decode(const uint8_t *bytes, uint32_t n_bytes, uint8_t *out, uint32_t n_out)
{
    return LZ4_decompress_safe((const char *)bytes, (char *)out, (int)n_bytes, (int)n_out) ==
           (int)n_out;
}

int page_decode(const struct wire_page *page, uint8_t out[static WIRE_PAGE_BYTES], struct err *err)
{
    switch (page->encoding) {
    case WIRE_ENC_ZERO:
        if (page->n_bytes != 0)
            break;
        memset(out, 0, WIRE_PAGE_BYTES);
        return 0;
    case WIRE_ENC_RAW:
        if (page->n_bytes != WIRE_PAGE_BYTES)
            break;
        memcpy(out, page->bytes, WIRE_PAGE_BYTES);
        return 0;
    case WIRE_ENC_LZ4:
        if (!lz4_decode(page->bytes, page->n_bytes, out, WIRE_PAGE_BYTES))
            break;
        return 0;
    default:
        break;
    }
    return err_set(err, -EPROTO, "page %llu with encoding %u in %u bytes does not decode",
                   (unsigned long long)page->number, page->encoding, page->n_bytes);
}

/* Encodes n bytes into out where LZ4 saves at least an eighth. Returns the encoded length; 0 where
 * it does not. */
static uint32_t lz4_if_worth(const uint8_t *bytes, uint32_t n, uint8_t *out)
{
    int worth = (int)(n - n / 8) - 1; /* the most that LZ4 may leave */
    int encoded =
        worth > 0 ? LZ4_compress_default((const char *)bytes, (char *)out, (int)n, worth) : 0;

    return encoded > 0 ? (uint32_t)encoded : 0;
}

/* Decodes what lz4_if_worth() encoded, or bytes that it left raw, into out: n_out bytes. */
static bool bulk_decode(uint8_t encoding, const uint8_t *bytes, uint32_t n_bytes, uint8_t *out,
                        uint32_t n_out)
{
    if (encoding == WIRE_ENC_RAW && n_bytes == n_out) {
        memcpy(out, bytes, n_out);
        return true;
    }
    return encoding == WIRE_ENC_LZ4 && n_bytes < n_out && lz4_decode(bytes, n_bytes, out, n_out);
}

void disk_piece_encode(const uint8_t *raw, uint32_t n, uint8_t *out, struct wire_disk_piece *piece)
{
    uint32_t n_lz4 = piece->kind == WIRE_DISK_WRITE ? lz4_if_worth(raw, n, out) : 0;

    piece->encoding = n_lz4 ? WIRE_ENC_LZ4 : n ? WIRE_ENC_RAW : WIRE_ENC_ZERO;
    piece->n_bytes = n_lz4 ? n_lz4 : n;
    piece->bytes = n_lz4 ? out : raw;
}

int disk_piece_decode(const struct wire_disk_piece *piece, uint8_t *out, struct err *err)
{
    uint64_t n = wire_disk_piece_data(piece);

    if (n == 0 && piece->encoding == WIRE_ENC_ZERO && piece->n_bytes == 0)
        return 0;
    if (n > 0 && n <= WIRE_DISK_PIECE_BYTES &&
        bulk_decode(piece->encoding, piece->bytes, piece->n_bytes, out, (uint32_t)n))
        return 0;
    return err_set(err, -EPROTO,
                   "disk %u: %llu bytes at %llu with encoding %u in %u bytes do not decode",
                   piece->disk, (unsigned long long)n, (unsigned long long)piece->offset,
                   piece->encoding, piece->n_bytes);
}

void state_piece_encode(const uint8_t *bytes, uint32_t n_raw, uint8_t *out,
                        struct wire_state *piece)
{
    uint32_t n_lz4 = lz4_if_worth(bytes, n_raw, out);

    piece->n_raw = n_raw;
    piece->encoding = n_lz4 ? WIRE_ENC_LZ4 : WIRE_ENC_RAW;
    piece->n_bytes = n_lz4 ? n_lz4 : n_raw;
    piece->bytes = n_lz4 ? out : bytes;
}

int state_piece_decode(const struct wire_state *piece, uint8_t *out, struct err *err)
{
    if (piece->n_raw <= WIRE_STATE_PER_MSG &&
        bulk_decode(piece->encoding, piece->bytes, piece->n_bytes, out, piece->n_raw))
        return 0;
    return err_set(err, -EPROTO,
                   "device state at %llu with encoding %u in %u bytes does not decode",
                   (unsigned long long)piece->offset, piece->encoding, piece->n_bytes);
}

struct epoch_digest {
    XXH3_state_t *state; /* from XXH3_createState(): it has an alignment of its own */
};

struct epoch_digest *epoch_digest_new(void)
{
    CLEANUP_FREE struct epoch_digest *d = calloc(1, sizeof(*d));

    if (!d)
        return NULL;
    d->state = XXH3_createState();
    if (!d->state)
        return NULL;
    epoch_digest_reset(d);
    return take_ptr(d);
}

void epoch_digest_reset(struct epoch_digest *d)
{
    XXH3_128bits_reset(d->state);
}

void epoch_digest_page(struct epoch_digest *d, uint64_t number,
                       const uint8_t page[static WIRE_PAGE_BYTES])
{
    struct le64 form = le64_of(number);

    XXH3_128bits_update(d->state, &form, sizeof(form));
    XXH3_128bits_update(d->state, page, WIRE_PAGE_BYTES);
}

void epoch_digest_disk(struct epoch_digest *d, const struct wire_disk_piece *piece,
                       const uint8_t *decoded, uint64_t n_decoded)
{
    struct disk_digest_form form = {
        .disk = piece->disk,
        .kind = piece->kind,
        .flags = piece->flags,
        .offset = le64_of(piece->offset),
        .n_range = le64_of(piece->n_range),
    };

    XXH3_128bits_update(d->state, &form, sizeof(form));
    if (n_decoded > 0)
        XXH3_128bits_update(d->state, decoded, n_decoded);
}

void epoch_digest_state(struct epoch_digest *d, const uint8_t *bytes, uint64_t n_bytes)
{
    if (n_bytes > 0)
        XXH3_128bits_update(d->state, bytes, n_bytes);
}

void epoch_digest_get(const struct epoch_digest *d, uint8_t out[static WIRE_DIGEST_BYTES])
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(d->state));
    memcpy(out, canonical.digest, WIRE_DIGEST_BYTES);
}

void epoch_digest_free(struct epoch_digest *d)
{
    if (!d)
        return;
    XXH3_freeState(d->state);
    free(d);
}
