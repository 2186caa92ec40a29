/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/nbd.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#define GREETING_MAGIC 0x4e42444d41474943ULL /* "NBDMAGIC" */
#define OPTION_MAGIC   0x49484156454f5054ULL /* "IHAVEOPT" */
#define ANSWER_MAGIC   0x0003e889045565a9ULL
#define REQUEST_MAGIC  0x25609513U
#define REPLY_MAGIC    0x67446698U

enum { /* flags of the greeting, and of the client's answer */
       FIXED_NEWSTYLE = 1 << 0,
       NO_ZEROES = 1 << 1,
};

enum { /* flags of an export */
       HAS_FLAGS = 1 << 0,
       READ_ONLY = 1 << 1,
       SEND_FLUSH = 1 << 2,
       SEND_FUA = 1 << 3,
       SEND_TRIM = 1 << 5,
       SEND_WRITE_ZEROES = 1 << 6,
       CAN_MULTI_CONN = 1 << 8, /* all connections see the same cache, and flush all of it */
};

enum {
    OPT_EXPORT_NAME = 1,
    OPT_ABORT = 2,
    OPT_LIST = 3,
    OPT_INFO = 6,
    OPT_GO = 7,
};

enum {
    REP_ACK = 1,
    REP_SERVER = 2,
    REP_INFO = 3,
};

#define REP_ERROR(n)    (1U << 31 | (n))
#define REP_UNSUPPORTED REP_ERROR(1)
#define REP_INVALID     REP_ERROR(3)
#define REP_UNKNOWN     REP_ERROR(6)

enum { INFO_EXPORT = 0, INFO_BLOCK_SIZE = 3 };
enum { BLOCK_MIN = 1, BLOCK_PREFERRED = 4096 };
enum { EXPORT_NAME_PADDING = 124 };

enum { /* flags of a request */
       CMD_FUA = 1 << 0,
       CMD_NO_HOLE = 1 << 1,
};

static uint16_t get16(const uint8_t *in)
{
    uint16_t v;

    memcpy(&v, in, sizeof(v));
    return be16toh(v);
}

static uint32_t get32(const uint8_t *in)
{
    uint32_t v;

    memcpy(&v, in, sizeof(v));
    return be32toh(v);
}

static uint64_t get64(const uint8_t *in)
{
    uint64_t v;

    memcpy(&v, in, sizeof(v));
    return be64toh(v);
}

/* Each puts a number at *out, and returns where the next one goes. */
static uint8_t *put16(uint8_t *out, uint16_t v)
{
    v = htobe16(v);
    memcpy(out, &v, sizeof(v));
    return out + sizeof(v);
}

static uint8_t *put32(uint8_t *out, uint32_t v)
{
    v = htobe32(v);
    memcpy(out, &v, sizeof(v));
    return out + sizeof(v);
}

static uint8_t *put64(uint8_t *out, uint64_t v)
{
    v = htobe64(v);
    memcpy(out, &v, sizeof(v));
    return out + sizeof(v);
}

void nbd_greeting_encode(uint8_t out[static NBD_GREETING_BYTES])
{
    out = put64(out, GREETING_MAGIC);
    out = put64(out, OPTION_MAGIC);
    (void)put16(out, FIXED_NEWSTYLE | NO_ZEROES);
}

int nbd_flags_decode(const uint8_t in[static NBD_FLAGS_BYTES], bool *ret_no_zeroes, struct err *err)
{
    uint32_t flags = get32(in);

    if (flags & ~(uint32_t)(FIXED_NEWSTYLE | NO_ZEROES))
        return err_set(err, -EPROTO, "unknown client flags 0x%x", flags);
    *ret_no_zeroes = flags & NO_ZEROES;
    return 0;
}

int nbd_option_decode(const uint8_t in[static NBD_OPTION_BYTES], struct nbd_option *ret_option,
                      struct err *err)
{
    struct nbd_option option = {.number = get32(in + 8), .n_data = get32(in + 12)};

    if (get64(in) != OPTION_MAGIC)
        return err_set(err, -EPROTO, "not an NBD option");
    if (option.n_data > NBD_OPTION_DATA_MAX)
        return err_set(err, -EPROTO, "an NBD option of %u bytes", option.n_data);
    *ret_option = option;
    return 0;
}

static uint16_t export_flags(const struct nbd_export *export)
{
    uint16_t flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;

    return flags | (export->read_only ? READ_ONLY : SEND_TRIM | SEND_WRITE_ZEROES);
}

static uint8_t *put_answer(uint8_t *out, uint32_t option, uint32_t type, uint32_t n_data)
{
    out = put64(out, ANSWER_MAGIC);
    out = put32(out, option);
    out = put32(out, type);
    return put32(out, n_data);
}

/* The oldest way to begin, which knows no answer but the export. */
static enum nbd_next answer_export_name(const struct nbd_export *export, bool no_zeroes,
                                        uint32_t n_name, uint8_t **out)
{
    if (n_name > 0)
        return NBD_NEXT_CLOSE;
    *out = put64(*out, export->size_bytes);
    *out = put16(*out, export_flags(export));
    if (!no_zeroes) {
        memset(*out, 0, EXPORT_NAME_PADDING);
        *out += EXPORT_NAME_PADDING;
    }
    return NBD_NEXT_REQUEST;
}

/* INFO and GO: the name's length, the name, the number of wishes, the wishes. Returns the type of
 * the final answer, having put others before it at *out. */
static uint32_t answer_info(const struct nbd_export *export, const struct nbd_option *option,
                            const uint8_t *data, uint8_t **out)
{
    uint32_t n_name, n_wishes;
    bool block_size = false;

    if (option->n_data < 6)
        return REP_INVALID;
    n_name = get32(data);
    if (n_name > option->n_data - 6)
        return REP_INVALID;
    n_wishes = get16(data + 4 + n_name);
    if (option->n_data != 6 + n_name + 2 * n_wishes)
        return REP_INVALID;
    if (n_name > 0)
        return REP_UNKNOWN;
    for (uint32_t i = 0; i < n_wishes; i++)
        block_size = block_size || get16(data + 6 + 2 * i) == INFO_BLOCK_SIZE;

    *out = put_answer(*out, option->number, REP_INFO, 12);
    *out = put16(*out, INFO_EXPORT);
    *out = put64(*out, export->size_bytes);
    *out = put16(*out, export_flags(export));
    if (block_size) {
        *out = put_answer(*out, option->number, REP_INFO, 14);
        *out = put16(*out, INFO_BLOCK_SIZE);
        *out = put32(*out, BLOCK_MIN);
        *out = put32(*out, BLOCK_PREFERRED);
        *out = put32(*out, NBD_DATA_MAX);
    }
    return REP_ACK;
}

/* One export, without a name. */
static uint32_t answer_list(const struct nbd_option *option, uint8_t **out)
{
    if (option->n_data > 0)
        return REP_INVALID;
    *out = put_answer(*out, option->number, REP_SERVER, 4);
    *out = put32(*out, 0);
    return REP_ACK;
}

enum nbd_next nbd_option_answer(const struct nbd_export *export, bool no_zeroes,
                                const struct nbd_option *option, const uint8_t *data,
                                uint8_t out[static NBD_ANSWER_MAX], size_t *ret_n_out)
{
    enum nbd_next next = NBD_NEXT_OPTION;
    uint32_t type = REP_UNSUPPORTED;
    uint8_t *at = out;

    if (option->number == OPT_EXPORT_NAME) {
        next = answer_export_name(export, no_zeroes, option->n_data, &at);
    } else {
        if (option->number == OPT_LIST)
            type = answer_list(option, &at);
        else if (option->number == OPT_INFO || option->number == OPT_GO)
            type = answer_info(export, option, data, &at);
        else if (option->number == OPT_ABORT)
            type = REP_ACK;
        if (option->number == OPT_ABORT)
            next = NBD_NEXT_CLOSE;
        else if (option->number == OPT_GO && type == REP_ACK)
            next = NBD_NEXT_REQUEST;
        at = put_answer(at, option->number, type, 0);
    }
    *ret_n_out = (size_t)(at - out);
    assert(*ret_n_out <= NBD_ANSWER_MAX);
    return next;
}

/* 0, or why a request with this command, flags and range is not carried out. */
static int judge(uint16_t command, uint16_t flags, uint64_t offset, uint32_t n_bytes,
                 const struct nbd_export *export)
{
    bool inside = offset <= export->size_bytes && n_bytes <= export->size_bytes - offset;

    if (command == NBD_DISC)
        return 0;
    if (flags & ~(command == NBD_WRITE_ZEROES ? CMD_FUA | CMD_NO_HOLE : CMD_FUA))
        return -EINVAL;
    switch (command) {
    case NBD_FLUSH:
        return offset == 0 && n_bytes == 0 ? 0 : -EINVAL;
    case NBD_READ:
        return inside && n_bytes > 0 && n_bytes <= NBD_DATA_MAX ? 0 : -EINVAL;
    case NBD_WRITE:
    case NBD_TRIM:
    case NBD_WRITE_ZEROES:
        if (export->read_only)
            return -EPERM;
        if (n_bytes == 0)
            return -EINVAL;
        return inside ? 0 : -ENOSPC;
    default:
        return -EINVAL;
    }
}

int nbd_request_decode(const uint8_t in[static NBD_REQUEST_BYTES], const struct nbd_export *export,
                       struct nbd_request *ret_request, struct err *err)
{
    uint16_t flags = get16(in + 4), command = get16(in + 6);
    uint32_t n_bytes = get32(in + 24);
    struct nbd_request request = {
        .command = command,
        .fua = flags & CMD_FUA,
        .no_hole = flags & CMD_NO_HOLE,
        .cookie = get64(in + 8),
        .offset = get64(in + 16),
        .n_bytes = n_bytes,
        .n_payload = command == NBD_WRITE ? n_bytes : 0,
    };

    if (get32(in) != REQUEST_MAGIC)
        return err_set(err, -EPROTO, "not an NBD request");
    if (request.n_payload > NBD_DATA_MAX)
        return err_set(err, -EPROTO, "an NBD write of %u bytes", n_bytes);
    request.refusal = judge(command, flags, request.offset, n_bytes, export);
    if (command == NBD_DISC)
        request.offset = request.n_bytes = 0;
    *ret_request = request;
    return 0;
}

static uint32_t error_code(int error)
{
    switch (error) {
    case 0:
        return 0;
    case -EPERM:
    case -EACCES:
    case -EROFS:
        return 1;
    case -ENOMEM:
        return 12;
    case -EINVAL:
        return 22;
    case -ENOSPC:
    case -EDQUOT:
    case -EFBIG:
        return 28;
    case -EOVERFLOW:
        return 75;
    case -EOPNOTSUPP:
        return 95;
    case -ESHUTDOWN:
        return 108;
    default:
        return 5; /* an I/O error */
    }
}

void nbd_reply_encode(uint64_t cookie, int error, uint8_t out[static NBD_REPLY_BYTES])
{
    out = put32(out, REPLY_MAGIC);
    out = put32(out, error_code(error));
    (void)put64(out, cookie);
}
