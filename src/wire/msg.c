/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "wire/buf.h"
#include "wire/layout.h"
#include "wire/payload.h"

/* Header and checksum; the payloads are payload.c's. Decoding happens in two steps, because a
 * reader must know the length before it can read the rest: the header is checked as far as it goes
 * (known type, possible length, reserved bytes), and nothing of it is acted upon but its length
 * until the checksum over header and payload has been verified. */

static uint64_t checksum(struct header_form header, const uint8_t *payload, size_t n_payload)
{
    XXH3_state_t state;

    header.checksum = le64_of(0);
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, &header, sizeof(header));
    if (n_payload > 0)
        XXH3_64bits_update(&state, payload, n_payload);
    return XXH3_64bits_digest(&state);
}

int64_t wire_msg_encode(const struct wire_msg *msg, uint8_t *out, size_t n_out)
{
    const struct payload_codec *codec = payload_codec(msg->type);
    struct wire_writer w = {out, n_out};
    struct header_form header = {.type = le16_of(msg->type), .epoch = le64_of(msg->epoch)};
    size_t n_payload;
    int r;

    if (!codec || (codec->needs_epoch && msg->epoch == 0) || codec->check(msg, NULL) < 0)
        return -EINVAL;
    if (!wire_room(&w, sizeof(header)))
        return -ENOSPC;
    r = codec->put(msg, &w);
    if (r < 0)
        return r;
    n_payload = (size_t)(w.at - out) - sizeof(header);
    header.length = le32_of((uint32_t)n_payload);
    header.checksum = le64_of(checksum(header, out + sizeof(header), n_payload));
    memcpy(out, &header, sizeof(header));
    return (int64_t)(sizeof(header) + n_payload);
}

int wire_header_decode(const uint8_t in[static WIRE_HEADER_BYTES], enum wire_channel channel,
                       struct wire_header *ret_header, struct err *err)
{
    struct header_form form;
    struct wire_header header;
    const struct payload_codec *codec;

    memcpy(&form, in, sizeof(form));
    header = (struct wire_header){
        .type = le16_get(form.type),
        .length = le32_get(form.length),
        .epoch = le64_get(form.epoch),
        .checksum = le64_get(form.checksum),
    };
    codec = payload_codec(header.type);
    if (!codec || codec->channel != channel)
        return err_set(err, -EPROTO, "message of type %u on channel %u", header.type, channel);
    if (header.length < codec->min || header.length > codec->max)
        return err_set(err, -EPROTO, "%s message of %u bytes", codec->name, header.length);
    if (!wire_all_zero(form.zero1, sizeof(form.zero1)) ||
        !wire_all_zero(form.zero2, sizeof(form.zero2)))
        return err_set(err, -EPROTO, "%s message with a malformed header", codec->name);
    if (codec->needs_epoch && header.epoch == 0)
        return err_set(err, -EPROTO, "%s message without an epoch", codec->name);
    *ret_header = header;
    return 0;
}

int wire_msg_decode(const uint8_t raw_header[static WIRE_HEADER_BYTES],
                    const struct wire_header *header, const uint8_t *payload,
                    struct wire_msg *ret_msg, struct err *err)
{
    const struct payload_codec *codec = payload_codec(header->type);
    struct wire_reader r = {payload, header->length};
    struct wire_msg msg = {.type = header->type, .epoch = header->epoch};
    struct header_form form;
    int e;

    if (!codec)
        return err_set(err, -EPROTO, "message of unknown type %u", header->type);
    memcpy(&form, raw_header, sizeof(form));
    if (checksum(form, payload, header->length) != header->checksum)
        return err_set(err, -EPROTO, "%s message damaged on its way", codec->name);
    e = codec->get(&r, &msg, err);
    if (e == 0 && r.left > 0)
        e = err_set(err, -EPROTO, "it has %zu bytes too many", r.left);
    if (e == 0)
        e = codec->check(&msg, err);
    if (e < 0) {
        err_prefix(err, "%s message", codec->name);
        return e;
    }
    *ret_msg = msg;
    return 0;
}
