/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_NBD_H
#define US_DISK_NBD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* The bytes of NBD, as far as a server for QEMU needs them: fixed newstyle negotiation, one export
 * (""), simple replies. Knows no sockets. Source: the protocol's description,
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 *
 * The order: the server sends a greeting; the client its flags; then the client sends options (a
 * header, and data), each of which is answered, until one of them begins the transmission of
 * requests (a header, and data for a write), each of which gets a reply (a header, and data for a
 * read). All numbers are big-endian. */

enum {
    NBD_GREETING_BYTES = 18,
    NBD_FLAGS_BYTES = 4,
    NBD_OPTION_BYTES = 16,       /* the header */
    NBD_OPTION_DATA_MAX = 8192,  /* a name of 4096 bytes fits */
    NBD_ANSWER_MAX = 256,        /* bytes of the answer to an option */
    NBD_REQUEST_BYTES = 28,      /* the header */
    NBD_REPLY_BYTES = 16,        /* the header */
    NBD_DATA_MAX = 32 * 1 << 20, /* bytes that one request reads or writes */
};

struct nbd_export {
    uint64_t size_bytes;
    bool read_only;
};

void nbd_greeting_encode(uint8_t out[static NBD_GREETING_BYTES]);

/* *ret_no_zeroes: the client wants no padding (nbd_option_answer). -EPROTO: it wants what was not
 * offered. */
int nbd_flags_decode(const uint8_t in[static NBD_FLAGS_BYTES], bool *ret_no_zeroes,
                     struct err *err) US_MUST_CHECK;

struct nbd_option {
    uint32_t number;
    uint32_t n_data; /* bytes that follow; at most NBD_OPTION_DATA_MAX */
};

int nbd_option_decode(const uint8_t in[static NBD_OPTION_BYTES], struct nbd_option *ret_option,
                      struct err *err) US_MUST_CHECK;

enum nbd_next {
    NBD_NEXT_OPTION = 0, /* the client goes on negotiating */
    NBD_NEXT_REQUEST,    /* transmission begins */
    NBD_NEXT_CLOSE,      /* after the answer, if any */
};

/* The answer to an option with its data (option->n_data bytes; whatever they are is answered). */
enum nbd_next nbd_option_answer(const struct nbd_export *export, bool no_zeroes,
                                const struct nbd_option *option, const uint8_t *data,
                                uint8_t out[static NBD_ANSWER_MAX], size_t *ret_n_out);

enum nbd_command {
    NBD_READ = 0,
    NBD_WRITE = 1,
    NBD_DISC = 2, /* the client takes its leave; no reply */
    NBD_FLUSH = 3,
    NBD_TRIM = 4,
    NBD_WRITE_ZEROES = 6,
};

struct nbd_request {
    enum nbd_command command; /* meaningful unless refused */
    bool fua;                 /* on stable storage before the reply. Of WRITE, TRIM, WRITE_ZEROES */
    bool no_hole;             /* of WRITE_ZEROES */
    int refusal;              /* 0; or the negative errno to reply with, nothing being done */
    uint64_t cookie;          /* the client's, for the reply */
    uint64_t offset, n_bytes; /* inside the disk and not empty; 0 for FLUSH and DISC */
    uint32_t n_payload;       /* bytes that follow, also those of a refused WRITE */
};

/* Everything that relies on a request relies on what is checked here. -EPROTO: it makes no sense,
 * or is so large that the connection cannot go on. */
int nbd_request_decode(const uint8_t in[static NBD_REQUEST_BYTES], const struct nbd_export *export,
                       struct nbd_request *ret_request, struct err *err) US_MUST_CHECK;

/* error: 0 or a negative errno, which becomes the nearest one that NBD has. The data of a READ
 * follows unless there is an error. */
void nbd_reply_encode(uint64_t cookie, int error, uint8_t out[static NBD_REPLY_BYTES]);

#endif
