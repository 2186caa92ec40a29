/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "wire/layout.h"
#include "wire/payload.h"

/* Begin of an epoch */

static int epoch_begin_check(const struct wire_msg *msg, struct err *err)
{
    return 0; /* any term is one, and so is none */
}

static int epoch_begin_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct epoch_begin_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->pair_term = le64_of(msg->u.epoch_begin.pair_term);
    form->flushed = msg->u.epoch_begin.flushed;
    return 0;
}

static int epoch_begin_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct epoch_begin_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    if (form->flushed > 1 || !wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    msg->u.epoch_begin =
        (struct wire_epoch_begin){.pair_term = le64_get(form->pair_term), .flushed = form->flushed};
    return 0;
}

const struct payload_codec epoch_begin_codec = {
    .name = "epoch-begin",
    .channel = WIRE_CHANNEL_DATA,
    .needs_epoch = true,
    PAYLOAD_FORM(epoch_begin_form),
    .check = epoch_begin_check,
    .put = epoch_begin_put,
    .get = epoch_begin_get,
};

/* Pages */

/* Of n bytes that are encoded as one. */
static bool encoded_length_valid(uint8_t encoding, uint64_t n, uint32_t n_bytes)
{
    switch (encoding) {
    case WIRE_ENC_RAW:
        return n_bytes == n;
    case WIRE_ENC_LZ4:
    case WIRE_ENC_ZSTD:
        return n_bytes >= 1 && n_bytes < n;
    default:
        return false;
    }
}

static int pages_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_pages *p = &msg->u.pages;

    if (p->n == 0 || p->n > WIRE_PAGES_PER_MSG)
        return err_set(err, -EPROTO, "%u pages", p->n);
    if (p->n_body < p->n * WIRE_BODY_MIN || p->n_body > p->n * WIRE_BODY_MAX ||
        !encoded_length_valid(p->encoding, p->n_body, p->n_bytes))
        return err_set(err, -EPROTO, "%u pages of %u bytes with encoding %u in %u bytes", p->n,
                       p->n_body, p->encoding, p->n_bytes);
    return 0;
}

static int pages_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_pages *p = &msg->u.pages;
    struct pages_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->n = le32_of(p->n);
    form->n_body = le32_of(p->n_body);
    form->n_bytes = le32_of(p->n_bytes);
    form->encoding = p->encoding;
    return wire_put(w, p->bytes, p->n_bytes);
}

static int pages_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_pages *p = &msg->u.pages;
    const struct pages_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    *p = (struct wire_pages){
        .n = le32_get(form->n),
        .n_body = le32_get(form->n_body),
        .n_bytes = le32_get(form->n_bytes),
        .encoding = form->encoding,
    };
    p->bytes = wire_take(r, p->n_bytes);
    return p->bytes ? 0 : payload_too_short(err);
}

/* The most that a message of pages takes, raw; of disk pieces; of device state. */
#define PAGES_MAX (sizeof(struct pages_form) + WIRE_PAGES_PER_MSG * WIRE_BODY_MAX)
#define DISK_MAX                                                                                   \
    (PAYLOAD_LIST(list_form, disk_piece_form, WIRE_DISK_PIECES_PER_MSG) + WIRE_DISK_PIECE_BYTES)
#define STATE_MAX (sizeof(struct state_form) + WIRE_STATE_PER_MSG)

static_assert(PAGES_MAX <= WIRE_PAYLOAD_MAX && DISK_MAX <= WIRE_PAYLOAD_MAX &&
                  STATE_MAX <= WIRE_PAYLOAD_MAX,
              "every message fits a buffer of WIRE_PAYLOAD_MAX");

const struct payload_codec pages_codec = {
    .name = "pages",
    .channel = WIRE_CHANNEL_DATA,
    .needs_epoch = true,
    .min = sizeof(struct pages_form) + 1,
    .max = PAGES_MAX,
    .check = pages_check,
    .put = pages_put,
    .get = pages_get,
};

/* Disk pieces */

static bool piece_data_valid(const struct wire_disk_piece *p)
{
    switch (p->encoding) {
    case WIRE_ENC_ZERO:
        return p->n_bytes == 0 && wire_disk_piece_data(p) == 0;
    case WIRE_ENC_RAW:
        return p->n_bytes != 0 && p->n_bytes == wire_disk_piece_data(p);
    case WIRE_ENC_LZ4:
        return p->kind == WIRE_DISK_WRITE && p->n_bytes >= 1 && p->n_bytes < p->n_range;
    default:
        return false;
    }
}

static bool piece_range_valid(const struct wire_disk_piece *p)
{
    uint64_t max = p->kind == WIRE_DISK_ZERO ? UINT64_MAX : WIRE_DISK_PIECE_BYTES;

    if (p->kind == WIRE_DISK_MARK)
        return p->disk == 0 && p->n_range == 0;
    return p->disk < WIRE_DISKS_MAX && p->n_range != 0 && p->n_range <= max &&
           p->n_range <= UINT64_MAX - p->offset;
}

static bool piece_valid(const struct wire_disk_piece *p)
{
    static const uint8_t flags[] = {
        [WIRE_DISK_WRITE] = 0,
        [WIRE_DISK_ZERO] = WIRE_DISK_PUNCH,
        [WIRE_DISK_DIGEST] = 0,
        [WIRE_DISK_MARK] = WIRE_DISK_SYNC,
    };

    return p->kind >= WIRE_DISK_WRITE && p->kind <= WIRE_DISK_MARK &&
           (p->flags & ~flags[p->kind]) == 0 && piece_range_valid(p) && piece_data_valid(p);
}

static int disk_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_disk *disk = &msg->u.disk;
    uint64_t n_data = 0;

    if (disk->n == 0 || disk->n > WIRE_DISK_PIECES_PER_MSG)
        return err_set(err, -EPROTO, "%u pieces", disk->n);
    for (uint32_t i = 0; i < disk->n; i++) {
        const struct wire_disk_piece *p = &disk->piece[i];

        if (!piece_valid(p))
            return err_set(
                err, -EPROTO,
                "kind %u, flags %u, disk %u, %llu bytes at %llu, encoding %u in %u bytes", p->kind,
                p->flags, p->disk, (unsigned long long)p->n_range, (unsigned long long)p->offset,
                p->encoding, p->n_bytes);
        n_data += wire_disk_piece_data(p);
    }
    if (n_data > WIRE_DISK_PIECE_BYTES)
        return err_set(err, -EPROTO, "%llu bytes of data", (unsigned long long)n_data);
    return 0;
}

static int disk_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_disk *disk = &msg->u.disk;
    struct disk_piece_form *entry = payload_put_list(w, disk->n, sizeof(*entry));
    int r = 0;

    if (!entry)
        return -ENOSPC;
    for (uint32_t i = 0; i < disk->n && r == 0; i++) {
        const struct wire_disk_piece *p = &disk->piece[i];

        entry[i] = (struct disk_piece_form){
            .disk = p->disk,
            .kind = p->kind,
            .flags = p->flags,
            .encoding = p->encoding,
            .n_bytes = le32_of(p->n_bytes),
            .offset = le64_of(p->offset),
            .n_range = le64_of(p->n_range),
        };
        r = wire_put(w, p->bytes, p->n_bytes);
    }
    return r;
}

static int disk_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_disk *disk = &msg->u.disk;
    const struct disk_piece_form *entry;
    const void *list;
    int e = payload_get_list(r, WIRE_DISK_PIECES_PER_MSG, sizeof(*entry), "pieces", &disk->n, &list,
                             err);

    if (e < 0)
        return e;
    entry = list;
    for (uint32_t i = 0; i < disk->n; i++) {
        struct wire_disk_piece *p = &disk->piece[i];

        *p = (struct wire_disk_piece){
            .disk = entry[i].disk,
            .kind = entry[i].kind,
            .flags = entry[i].flags,
            .encoding = entry[i].encoding,
            .n_bytes = le32_get(entry[i].n_bytes),
            .offset = le64_get(entry[i].offset),
            .n_range = le64_get(entry[i].n_range),
        };
        p->bytes = wire_take(r, p->n_bytes);
        if (!p->bytes)
            return payload_too_short(err);
    }
    return 0;
}

const struct payload_codec disk_codec = {
    .name = "disk",
    .channel = WIRE_CHANNEL_DATA,
    .needs_epoch = true,
    .min = PAYLOAD_LIST(list_form, disk_piece_form, 1),
    .max = DISK_MAX,
    .check = disk_check,
    .put = disk_put,
    .get = disk_get,
};

/* Device state */

static int state_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_state *s = &msg->u.state;

    if (s->format[0] == '\0')
        return err_set(err, -EPROTO, "no format given");
    if (s->n_raw == 0 || s->n_raw > WIRE_STATE_PER_MSG ||
        !encoded_length_valid(s->encoding, s->n_raw, s->n_bytes))
        return err_set(err, -EPROTO, "%u bytes with encoding %u in %u bytes", s->n_raw, s->encoding,
                       s->n_bytes);
    if (s->total > WIRE_STATE_MAX || s->offset > s->total || s->n_raw > s->total - s->offset)
        return err_set(err, -EPROTO, "%u bytes at %llu of %llu", s->n_raw,
                       (unsigned long long)s->offset, (unsigned long long)s->total);
    return 0;
}

static int state_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_state *s = &msg->u.state;
    struct state_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    wire_text_put(form->format, sizeof(form->format), s->format);
    form->total = le64_of(s->total);
    form->offset = le64_of(s->offset);
    form->n_raw = le32_of(s->n_raw);
    form->n_bytes = le32_of(s->n_bytes);
    form->encoding = s->encoding;
    form->delta = s->delta;
    return wire_put(w, s->bytes, s->n_bytes);
}

static int state_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_state *s = &msg->u.state;
    const struct state_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    s->total = le64_get(form->total);
    s->offset = le64_get(form->offset);
    s->n_raw = le32_get(form->n_raw);
    s->n_bytes = le32_get(form->n_bytes);
    s->encoding = form->encoding;
    s->delta = form->delta;
    if (form->delta > 1 || !wire_all_zero(form->zero, sizeof(form->zero)) ||
        !wire_text_get(form->format, sizeof(form->format), s->format))
        return payload_malformed(err);
    s->bytes = wire_take(r, s->n_bytes);
    if (!s->bytes)
        return payload_too_short(err);
    return 0;
}

const struct payload_codec state_codec = {
    .name = "state",
    .channel = WIRE_CHANNEL_DATA,
    .needs_epoch = true,
    .min = sizeof(struct state_form) + 1,
    .max = STATE_MAX,
    .check = state_check,
    .put = state_put,
    .get = state_get,
};

/* End of an epoch */

static int epoch_end_check(const struct wire_msg *msg, struct err *err)
{
    if (msg->u.epoch_end.n_pages > WIRE_PAGE_NUMBERS ||
        msg->u.epoch_end.n_state_bytes > WIRE_STATE_MAX)
        return err_set(err, -EPROTO, "impossible counts");
    return 0;
}

static int epoch_end_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct epoch_end_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->n_pages = le64_of(msg->u.epoch_end.n_pages);
    form->n_disk_pieces = le64_of(msg->u.epoch_end.n_disk_pieces);
    form->n_state_bytes = le64_of(msg->u.epoch_end.n_state_bytes);
    memcpy(form->digest, msg->u.epoch_end.digest, sizeof(form->digest));
    return 0;
}

static int epoch_end_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct epoch_end_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    msg->u.epoch_end.n_pages = le64_get(form->n_pages);
    msg->u.epoch_end.n_disk_pieces = le64_get(form->n_disk_pieces);
    msg->u.epoch_end.n_state_bytes = le64_get(form->n_state_bytes);
    memcpy(msg->u.epoch_end.digest, form->digest, sizeof(form->digest));
    return 0;
}

const struct payload_codec epoch_end_codec = {
    .name = "epoch-end",
    .channel = WIRE_CHANNEL_DATA,
    .needs_epoch = true,
    PAYLOAD_FORM(epoch_end_form),
    .check = epoch_end_check,
    .put = epoch_end_put,
    .get = epoch_end_get,
};
