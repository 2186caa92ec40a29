/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "disk/nbd.h"

/* Everything that an NBD client can send: a byte that chooses the export, then the client's bytes
 * as they come from the socket. What is let through must be safe to carry out. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct input {
    const uint8_t *at;
    size_t n;
};

static void require(int ok)
{
    if (!ok)
        abort();
}

/* A copy of the next n bytes, so that reading beyond them is seen. NULL: there are not so many. */
static uint8_t *take(struct input *in, size_t n)
{
    uint8_t *copy;

    if (in->n < n)
        return NULL;
    copy = malloc(n);
    require(copy != NULL);
    memcpy(copy, in->at, n);
    in->at += n;
    in->n -= n;
    return copy;
}

static int flags(struct input *in, bool *ret_no_zeroes)
{
    uint8_t *raw = take(in, NBD_FLAGS_BYTES);
    struct err err;
    int r = raw ? nbd_flags_decode(raw, ret_no_zeroes, &err) : -1;

    free(raw);
    return r;
}

static enum nbd_next option(struct input *in, const struct nbd_export *export, bool no_zeroes)
{
    uint8_t *raw = take(in, NBD_OPTION_BYTES), *data, answer[NBD_ANSWER_MAX];
    enum nbd_next next = NBD_NEXT_CLOSE;
    struct nbd_option opt;
    struct err err;
    size_t n;

    if (raw && nbd_option_decode(raw, &opt, &err) == 0) {
        require(opt.n_data <= NBD_OPTION_DATA_MAX);
        data = take(in, opt.n_data);
        if (data) {
            next = nbd_option_answer(export, no_zeroes, &opt, data, answer, &n);
            require(n <= sizeof(answer) && (n > 0 || next == NBD_NEXT_CLOSE));
        }
        free(data);
    }
    free(raw);
    return next;
}

static void check(const struct nbd_request *q, const struct nbd_export *export)
{
    require(q->n_payload <= NBD_DATA_MAX);
    require(q->n_payload == 0 || q->command == NBD_WRITE);
    require(q->refusal <= 0);
    if (q->refusal < 0)
        return;
    switch (q->command) {
    case NBD_READ:
        require(q->n_bytes <= NBD_DATA_MAX);
        break;
    case NBD_WRITE:
        require(q->n_payload == q->n_bytes && !export->read_only);
        break;
    case NBD_TRIM:
    case NBD_WRITE_ZEROES:
        require(!export->read_only);
        break;
    case NBD_FLUSH:
    case NBD_DISC:
        require(q->offset == 0 && q->n_bytes == 0);
        return;
    default:
        require(0);
    }
    require(q->n_bytes > 0 && q->offset < export->size_bytes &&
            q->n_bytes <= export->size_bytes - q->offset);
}

/* False: the connection ends. */
static bool request(struct input *in, const struct nbd_export *export)
{
    uint8_t *raw = take(in, NBD_REQUEST_BYTES), reply[NBD_REPLY_BYTES];
    struct nbd_request q;
    struct err err;
    bool goes_on = raw && nbd_request_decode(raw, export, &q, &err) == 0;

    free(raw);
    if (!goes_on)
        return false;
    check(&q, export);
    nbd_reply_encode(q.cookie, q.refusal, reply);
    in->at += q.n_payload < in->n ? q.n_payload : in->n;
    in->n -= q.n_payload < in->n ? q.n_payload : in->n;
    return q.command != NBD_DISC;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct input in;
    struct nbd_export export = {.size_bytes = 8 << 20};
    enum nbd_next next = NBD_NEXT_OPTION;
    bool no_zeroes;

    if (n == 0)
        return 0;
    in = (struct input){data + 1, n - 1};
    export.read_only = data[0] & 1;
    if (data[0] & 2)
        export.size_bytes = UINT64_MAX / 512 * 512;
    if (flags(&in, &no_zeroes) < 0)
        return 0;
    while (next == NBD_NEXT_OPTION)
        next = option(&in, &export, no_zeroes);
    if (next == NBD_NEXT_CLOSE)
        return 0;
    while (request(&in, &export))
        ;
    return 0;
}
