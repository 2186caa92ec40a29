/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/pack.h"

#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/cleanup.h"

enum {
    ZSTD_LEVEL = 1, /* higher ones cost more than they save (docs/performance.md, "Encoding") */
    LZ4_ACCELERATION = 1,
};

/* The four bytes that a frame of Zstandard begins with, and nothing else that the library reads
 * (skippable frames, formats of its past). */
static const uint8_t zstd_magic[4] = {0x28, 0xb5, 0x2f, 0xfd};

struct packer {
    void *lz4; /* its hash table */
    ZSTD_CCtx *compress;
    ZSTD_DCtx *decompress;
};

struct packer *packer_new(void)
{
    struct packer *p = calloc(1, sizeof(*p));

    if (!p)
        return NULL;
    p->lz4 = malloc((size_t)LZ4_sizeofState());
    p->compress = ZSTD_createCCtx();
    p->decompress = ZSTD_createDCtx();
    if (p->lz4 && p->compress && p->decompress)
        return p;
    packer_free(p);
    return NULL;
}

void packer_free(struct packer *p)
{
    if (!p)
        return;
    free(p->lz4);
    ZSTD_freeCCtx(p->compress);
    ZSTD_freeDCtx(p->decompress);
    free(p);
}

uint32_t pack(struct packer *p, enum wire_encoding how, const uint8_t *bytes, uint32_t n,
              uint8_t *out)
{
    uint32_t worth = n - n / 16;
    size_t n_zstd;
    int n_lz4;

    if (worth == n)
        return 0; /* too short to be worth anything */
    if (how == WIRE_ENC_LZ4) {
        n_lz4 = LZ4_compress_fast_extState(p->lz4, (const char *)bytes, (char *)out, (int)n,
                                           (int)worth, LZ4_ACCELERATION);
        return n_lz4 > 0 ? (uint32_t)n_lz4 : 0;
    }
    n_zstd = ZSTD_compressCCtx(p->compress, out, worth, bytes, n, ZSTD_LEVEL);
    return ZSTD_isError(n_zstd) ? 0 : (uint32_t)n_zstd;
}

/* One whole frame, which says that it holds n_out bytes. */
static bool unpack_zstd(struct packer *p, const uint8_t *bytes, uint32_t n_bytes, uint8_t *out,
                        uint32_t n_out)
{
    return n_bytes > sizeof(zstd_magic) && memcmp(bytes, zstd_magic, sizeof(zstd_magic)) == 0 &&
           ZSTD_getFrameContentSize(bytes, n_bytes) == n_out &&
           ZSTD_findFrameCompressedSize(bytes, n_bytes) == n_bytes &&
           ZSTD_decompressDCtx(p->decompress, out, n_out, bytes, n_bytes) == n_out;
}

bool unpack(struct packer *p, uint8_t encoding, const uint8_t *bytes, uint32_t n_bytes,
            uint8_t *out, uint32_t n_out)
{
    switch (encoding) {
    case WIRE_ENC_RAW:
        if (n_bytes != n_out)
            return false;
        memcpy(out, bytes, n_out);
        return true;
    case WIRE_ENC_LZ4:
        return n_bytes < n_out && LZ4_decompress_safe((const char *)bytes, (char *)out,
                                                      (int)n_bytes, (int)n_out) == (int)n_out;
    case WIRE_ENC_ZSTD:
        return n_bytes < n_out && unpack_zstd(p, bytes, n_bytes, out, n_out);
    default:
        return false;
    }
}
