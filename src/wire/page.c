/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/page.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxh_x86dispatch.h>

#include "base/cleanup.h"
#include "wire/layout.h"

void disk_piece_encode(struct packer *p, const uint8_t *raw, uint32_t n, uint8_t *out,
                       struct wire_disk_piece *piece)
{
    uint32_t n_lz4 = piece->kind == WIRE_DISK_WRITE ? pack(p, WIRE_ENC_LZ4, raw, n, out) : 0;

    piece->encoding = n_lz4 ? WIRE_ENC_LZ4 : n ? WIRE_ENC_RAW : WIRE_ENC_ZERO;
    piece->n_bytes = n_lz4 ? n_lz4 : n;
    piece->bytes = n_lz4 ? out : raw;
}

int disk_piece_decode(struct packer *p, const struct wire_disk_piece *piece, uint8_t *out,
                      struct err *err)
{
    uint64_t n = wire_disk_piece_data(piece);

    if (n == 0 && piece->encoding == WIRE_ENC_ZERO && piece->n_bytes == 0)
        return 0;
    if (n > 0 && n <= WIRE_DISK_PIECE_BYTES && piece->encoding != WIRE_ENC_ZSTD &&
        unpack(p, piece->encoding, piece->bytes, piece->n_bytes, out, (uint32_t)n))
        return 0;
    return err_set(err, -EPROTO,
                   "disk %u: %llu bytes at %llu with encoding %u in %u bytes do not decode",
                   piece->disk, (unsigned long long)n, (unsigned long long)piece->offset,
                   piece->encoding, piece->n_bytes);
}

void state_piece_encode(struct packer *p, enum wire_encoding how, const uint8_t *bytes,
                        uint32_t n_raw, uint8_t *out, struct wire_state *piece)
{
    uint32_t n_packed = how == WIRE_ENC_RAW ? 0 : pack(p, how, bytes, n_raw, out);

    piece->n_raw = n_raw;
    piece->encoding = n_packed ? (uint8_t)how : WIRE_ENC_RAW;
    piece->n_bytes = n_packed ? n_packed : n_raw;
    piece->bytes = n_packed ? out : bytes;
}

int state_piece_decode(struct packer *p, const struct wire_state *piece, uint8_t *out,
                       struct err *err)
{
    if (piece->n_raw <= WIRE_STATE_PER_MSG &&
        unpack(p, piece->encoding, piece->bytes, piece->n_bytes, out, piece->n_raw))
        return 0;
    return err_set(err, -EPROTO,
                   "device state at %llu with encoding %u in %u bytes does not decode",
                   (unsigned long long)piece->offset, piece->encoding, piece->n_bytes);
}

void state_xor(uint8_t *out, const uint8_t *a, const uint8_t *b, size_t n)
{
    uint64_t x[8], y[8]; /* so many at a time become vector operations */
    size_t at = 0;

    for (; at + sizeof(x) <= n; at += sizeof(x)) {
        memcpy(x, a + at, sizeof(x));
        memcpy(y, b + at, sizeof(y));
        for (unsigned i = 0; i < sizeof(x) / sizeof(x[0]); i++)
            x[i] ^= y[i];
        memcpy(out + at, x, sizeof(x));
    }
    for (; at < n; at++)
        out[at] = a[at] ^ b[at];
}

int pages_decode(struct packer *p, const struct wire_pages *pages, uint8_t *out, struct err *err)
{
    if (pages->n <= WIRE_PAGES_PER_MSG && pages->n_body <= pages->n * WIRE_BODY_MAX &&
        unpack(p, pages->encoding, pages->bytes, pages->n_bytes, out, pages->n_body))
        return 0;
    return err_set(err, -EPROTO, "%u pages with encoding %u in %u bytes do not decode", pages->n,
                   pages->encoding, pages->n_bytes);
}

struct page_hash page_hash(const uint8_t page[static WIRE_PAGE_BYTES])
{
    XXH128_canonical_t canonical;
    struct page_hash hash;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(page, WIRE_PAGE_BYTES));
    memcpy(hash.bytes, canonical.digest, sizeof(hash.bytes));
    return hash;
}

struct page_hash page_hash_zero(void)
{
    return (struct page_hash){{0x3e, 0xe8, 0xdc, 0x4f, 0x9e, 0x7e, 0xe4, 0x95, 0x93, 0xd7, 0x6f,
                               0xe1, 0x48, 0xc6, 0x89, 0xba}};
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

void epoch_digest_page(struct epoch_digest *d, uint64_t number, const struct page_hash *hash)
{
    struct le64 form = le64_of(number);

    XXH3_128bits_update(d->state, &form, sizeof(form));
    XXH3_128bits_update(d->state, hash->bytes, sizeof(hash->bytes));
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
