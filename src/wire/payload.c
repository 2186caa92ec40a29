/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/payload.h"

#include <errno.h>

#include "wire/layout.h"

static int too_short(struct err *err)
{
    return err_set(err, -EPROTO, "it is too short");
}

static int malformed(struct err *err)
{
    return err_set(err, -EPROTO, "malformed");
}

static int check_nothing(const struct wire_msg *msg, struct err *err)
{
    return 0;
}

/* Heartbeat */

static int heartbeat_check(const struct wire_msg *msg, struct err *err)
{
    if (msg->u.heartbeat.paired > 1)
        return malformed(err);
    return 0;
}

static int heartbeat_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct heartbeat_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->seq = le64_of(msg->u.heartbeat.seq);
    form->term = le64_of(msg->u.heartbeat.term);
    form->paired = msg->u.heartbeat.paired;
    return 0;
}

static int heartbeat_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct heartbeat_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return malformed(err);
    msg->u.heartbeat = (struct wire_heartbeat){
        .seq = le64_get(form->seq), .term = le64_get(form->term), .paired = form->paired};
    return 0;
}

/* Offer */

static int offer_check(const struct wire_msg *msg, struct err *err)
{
    if (msg->u.offer.n_json == 0 || msg->u.offer.n_json > WIRE_OFFER_BYTES_MAX)
        return malformed(err);
    return 0;
}

static int offer_put(const struct wire_msg *msg, struct wire_writer *w)
{
    return wire_put(w, msg->u.offer.json, msg->u.offer.n_json);
}

static int offer_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    uint32_t n = (uint32_t)r->left; /* a header's length fits */

    msg->u.offer = (struct wire_offer){.json = wire_take(r, n), .n_json = n};
    return 0;
}

/* Ready, acknowledgement, begin of an epoch: a term each */

static int term_put(uint64_t term, struct wire_writer *w)
{
    struct term_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->term = le64_of(term);
    return 0;
}

static int term_get(struct wire_reader *r, uint64_t *ret_term, struct err *err)
{
    const struct term_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return too_short(err);
    *ret_term = le64_get(form->term);
    return 0;
}

static int ready_put(const struct wire_msg *msg, struct wire_writer *w)
{
    return term_put(msg->u.ready.term, w);
}

static int ready_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    return term_get(r, &msg->u.ready.term, err);
}

static int ack_put(const struct wire_msg *msg, struct wire_writer *w)
{
    return term_put(msg->u.ack.term, w);
}

static int ack_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    return term_get(r, &msg->u.ack.term, err);
}

static int epoch_begin_put(const struct wire_msg *msg, struct wire_writer *w)
{
    return term_put(msg->u.epoch_begin.pair_term, w);
}

static int epoch_begin_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    return term_get(r, &msg->u.epoch_begin.pair_term, err);
}

/* Refusal */

static int refuse_check(const struct wire_msg *msg, struct err *err)
{
    if (msg->u.refuse.text[0] == '\0')
        return err_set(err, -EPROTO, "no reason given");
    return 0;
}

static int refuse_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct refuse_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    wire_text_put(form->text, sizeof(form->text), msg->u.refuse.text);
    return 0;
}

static int refuse_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct refuse_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return too_short(err);
    if (!wire_text_get(form->text, sizeof(form->text), msg->u.refuse.text))
        return malformed(err);
    return 0;
}

/* Bye */

static int bye_check(const struct wire_msg *msg, struct err *err)
{
    uint16_t reason = msg->u.bye.reason;

    if (reason < WIRE_BYE_STOPPED || reason > WIRE_BYE_DISCARDED)
        return err_set(err, -EPROTO, "unknown reason %u", reason);
    return 0;
}

static int bye_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct bye_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->reason = le16_of(msg->u.bye.reason);
    return 0;
}

static int bye_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct bye_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return malformed(err);
    msg->u.bye.reason = le16_get(form->reason);
    return 0;
}

/* Addresses */

static bool address_valid(const struct wire_address *a)
{
    if (a->nic >= WIRE_NICS_MAX || a->vlan >= 4096)
        return false;
    if (a->family == 4)
        return a->router == 0 && wire_all_zero(a->bytes + 4, sizeof(a->bytes) - 4);
    return a->family == 6 && a->router <= 1;
}

static int addresses_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_addresses *addresses = &msg->u.addresses;

    if (addresses->n > WIRE_ADDRESSES_MAX)
        return err_set(err, -EPROTO, "%u addresses", addresses->n);
    for (uint32_t i = 0; i < addresses->n; i++) {
        const struct wire_address *a = &addresses->entry[i];

        if (!address_valid(a))
            return err_set(err, -EPROTO, "address of family %u, router %u, NIC %u, VLAN %u",
                           a->family, a->router, a->nic, a->vlan);
    }
    return 0;
}

static int addresses_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_addresses *addresses = &msg->u.addresses;
    struct addresses_form *form = wire_room(w, sizeof(*form));
    struct address_form *entry = form ? wire_room(w, addresses->n * sizeof(*entry)) : NULL;

    if (!entry)
        return -ENOSPC;
    form->n = le32_of(addresses->n);
    for (uint32_t i = 0; i < addresses->n; i++) {
        const struct wire_address *a = &addresses->entry[i];

        entry[i].nic = a->nic;
        entry[i].family = a->family;
        entry[i].router = a->router;
        entry[i].vlan = le16_of(a->vlan);
        entry[i].age_s = le16_of(a->age_s);
        memcpy(entry[i].bytes, a->bytes, sizeof(entry[i].bytes));
    }
    return 0;
}

static int addresses_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_addresses *addresses = &msg->u.addresses;
    const struct addresses_form *form = wire_take(r, sizeof(*form));
    const struct address_form *entry;

    if (!form)
        return too_short(err);
    addresses->n = le32_get(form->n);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return malformed(err);
    if (addresses->n > WIRE_ADDRESSES_MAX) /* as with pages */
        return err_set(err, -EPROTO, "%u addresses", addresses->n);
    entry = wire_take(r, addresses->n * sizeof(*entry));
    if (!entry)
        return too_short(err);
    for (uint32_t i = 0; i < addresses->n; i++) {
        struct wire_address *a = &addresses->entry[i];

        if (!wire_all_zero(entry[i].zero, sizeof(entry[i].zero)))
            return malformed(err);
        a->nic = entry[i].nic;
        a->family = entry[i].family;
        a->router = entry[i].router;
        a->vlan = le16_get(entry[i].vlan);
        a->age_s = le16_get(entry[i].age_s);
        memcpy(a->bytes, entry[i].bytes, sizeof(a->bytes));
    }
    return 0;
}

/* Pages */

static bool page_length_valid(uint8_t encoding, uint32_t n_bytes)
{
    switch (encoding) {
    case WIRE_ENC_ZERO:
        return n_bytes == 0;
    case WIRE_ENC_RAW:
        return n_bytes == WIRE_PAGE_BYTES;
    case WIRE_ENC_LZ4:
        return n_bytes >= 1 && n_bytes < WIRE_PAGE_BYTES;
    default:
        return false;
    }
}

static int pages_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_pages *pages = &msg->u.pages;

    if (pages->n == 0 || pages->n > WIRE_PAGES_PER_MSG)
        return err_set(err, -EPROTO, "%u pages", pages->n);
    for (uint32_t i = 0; i < pages->n; i++) {
        const struct wire_page *page = &pages->page[i];

        if (page->number >= WIRE_PAGE_NUMBERS || !page_length_valid(page->encoding, page->n_bytes))
            return err_set(err, -EPROTO, "page %llu with encoding %u in %u bytes",
                           (unsigned long long)page->number, page->encoding, page->n_bytes);
    }
    return 0;
}

static int pages_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_pages *pages = &msg->u.pages;
    struct pages_form *form = wire_room(w, sizeof(*form));
    struct page_form *entry = form ? wire_room(w, pages->n * sizeof(*entry)) : NULL;
    int r = 0;

    if (!entry)
        return -ENOSPC;
    form->n = le32_of(pages->n);
    for (uint32_t i = 0; i < pages->n && r == 0; i++) {
        const struct wire_page *page = &pages->page[i];

        entry[i].number = le64_of(page->number);
        entry[i].encoding = page->encoding;
        entry[i].n_bytes = le16_of(page->n_bytes);
        r = wire_put(w, page->bytes, page->n_bytes);
    }
    return r;
}

static int pages_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_pages *pages = &msg->u.pages;
    const struct pages_form *form = wire_take(r, sizeof(*form));
    const struct page_form *entry;

    if (!form)
        return too_short(err);
    pages->n = le32_get(form->n);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return malformed(err);
    if (pages->n > WIRE_PAGES_PER_MSG) /* before the multiplication, and the array is no longer */
        return err_set(err, -EPROTO, "%u pages", pages->n);
    entry = wire_take(r, pages->n * sizeof(*entry));
    if (!entry)
        return too_short(err);
    for (uint32_t i = 0; i < pages->n; i++) {
        struct wire_page *page = &pages->page[i];

        if (!wire_all_zero(entry[i].zero1, sizeof(entry[i].zero1)) ||
            !wire_all_zero(entry[i].zero2, sizeof(entry[i].zero2)))
            return malformed(err);
        page->number = le64_get(entry[i].number);
        page->encoding = entry[i].encoding;
        page->n_bytes = le16_get(entry[i].n_bytes);
        page->bytes = wire_take(r, page->n_bytes);
        if (!page->bytes)
            return too_short(err);
    }
    return 0;
}

/* Device state */

static int state_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_state *s = &msg->u.state;
    bool length_valid = s->encoding == WIRE_ENC_RAW   ? s->n_bytes == s->n_raw
                        : s->encoding == WIRE_ENC_LZ4 ? s->n_bytes >= 1 && s->n_bytes < s->n_raw
                                                      : false;

    if (s->format[0] == '\0')
        return err_set(err, -EPROTO, "no format given");
    if (s->n_raw == 0 || s->n_raw > WIRE_STATE_PER_MSG || !length_valid)
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
    return wire_put(w, s->bytes, s->n_bytes);
}

static int state_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_state *s = &msg->u.state;
    const struct state_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return too_short(err);
    s->total = le64_get(form->total);
    s->offset = le64_get(form->offset);
    s->n_raw = le32_get(form->n_raw);
    s->n_bytes = le32_get(form->n_bytes);
    s->encoding = form->encoding;
    if (!wire_all_zero(form->zero, sizeof(form->zero)) ||
        !wire_text_get(form->format, sizeof(form->format), s->format))
        return malformed(err);
    s->bytes = wire_take(r, s->n_bytes);
    if (!s->bytes)
        return too_short(err);
    return 0;
}

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
    form->n_state_bytes = le64_of(msg->u.epoch_end.n_state_bytes);
    memcpy(form->digest, msg->u.epoch_end.digest, sizeof(form->digest));
    return 0;
}

static int epoch_end_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct epoch_end_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return too_short(err);
    msg->u.epoch_end.n_pages = le64_get(form->n_pages);
    msg->u.epoch_end.n_state_bytes = le64_get(form->n_state_bytes);
    memcpy(msg->u.epoch_end.digest, form->digest, sizeof(form->digest));
    return 0;
}

/* Arbiter */

static int arb_request_check_msg(const struct wire_msg *msg, struct err *err)
{
    return arb_request_check(&msg->u.arb_request, err);
}

static int arb_request_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_arb_request *request = &msg->u.arb_request;
    struct arb_request_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->op = request->op;
    wire_text_put(form->vm, sizeof(form->vm), request->vm);
    record_form_put(&form->expected, &request->expected);
    record_form_put(&form->wanted, &request->wanted);
    return 0;
}

static int arb_request_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_arb_request *request = &msg->u.arb_request;
    const struct arb_request_form *form = wire_take(r, sizeof(*form));
    int e;

    if (!form)
        return too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)) ||
        !wire_text_get(form->vm, sizeof(form->vm), request->vm))
        return malformed(err);
    request->op = form->op;
    e = record_form_get(&form->expected, &request->expected, err);
    if (e == 0)
        e = record_form_get(&form->wanted, &request->wanted, err);
    return e;
}

static int arb_reply_check(const struct wire_msg *msg, struct err *err)
{
    uint8_t status = msg->u.arb_reply.status;

    if (status < WIRE_ARB_DONE || status > WIRE_ARB_ERROR)
        return err_set(err, -EPROTO, "unknown status %u", status);
    return arb_record_check(&msg->u.arb_reply.current, err);
}

static int arb_reply_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct arb_reply_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->status = msg->u.arb_reply.status;
    record_form_put(&form->current, &msg->u.arb_reply.current);
    return 0;
}

static int arb_reply_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct arb_reply_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return malformed(err);
    msg->u.arb_reply.status = form->status;
    return record_form_get(&form->current, &msg->u.arb_reply.current, err);
}

#define FIXED(form) sizeof(struct form), sizeof(struct form)

static const struct payload_codec codecs[] = {
    [WIRE_HEARTBEAT] = {"heartbeat", WIRE_CHANNEL_CONTROL, false, FIXED(heartbeat_form),
                        heartbeat_check, heartbeat_put, heartbeat_get},
    [WIRE_OFFER] = {"offer", WIRE_CHANNEL_CONTROL, false, 1, WIRE_OFFER_BYTES_MAX, offer_check,
                    offer_put, offer_get},
    [WIRE_READY] = {"ready", WIRE_CHANNEL_CONTROL, false, FIXED(term_form), check_nothing,
                    ready_put, ready_get},
    [WIRE_REFUSE] = {"refuse", WIRE_CHANNEL_CONTROL, false, FIXED(refuse_form), refuse_check,
                     refuse_put, refuse_get},
    [WIRE_ACK] = {"ack", WIRE_CHANNEL_CONTROL, true, FIXED(term_form), check_nothing, ack_put,
                  ack_get},
    [WIRE_BYE] = {"bye", WIRE_CHANNEL_CONTROL, false, FIXED(bye_form), bye_check, bye_put, bye_get},
    [WIRE_ADDRESSES] = {"addresses", WIRE_CHANNEL_CONTROL, false, sizeof(struct addresses_form),
                        sizeof(struct addresses_form) +
                            WIRE_ADDRESSES_MAX * sizeof(struct address_form),
                        addresses_check, addresses_put, addresses_get},
    [WIRE_EPOCH_BEGIN] = {"epoch-begin", WIRE_CHANNEL_DATA, true, FIXED(term_form), check_nothing,
                          epoch_begin_put, epoch_begin_get},
    [WIRE_PAGES] = {"pages", WIRE_CHANNEL_DATA, true,
                    sizeof(struct pages_form) + sizeof(struct page_form),
                    sizeof(struct pages_form) +
                        WIRE_PAGES_PER_MSG *(sizeof(struct page_form) + WIRE_PAGE_BYTES),
                    pages_check, pages_put, pages_get},
    [WIRE_STATE] = {"state", WIRE_CHANNEL_DATA, true, sizeof(struct state_form) + 1,
                    sizeof(struct state_form) + WIRE_STATE_PER_MSG, state_check, state_put,
                    state_get},
    [WIRE_EPOCH_END] = {"epoch-end", WIRE_CHANNEL_DATA, true, FIXED(epoch_end_form),
                        epoch_end_check, epoch_end_put, epoch_end_get},
    [WIRE_ARB_REQUEST] = {"arbiter-request", WIRE_CHANNEL_ARBITER, false, FIXED(arb_request_form),
                          arb_request_check_msg, arb_request_put, arb_request_get},
    [WIRE_ARB_REPLY] = {"arbiter-reply", WIRE_CHANNEL_ARBITER, false, FIXED(arb_reply_form),
                        arb_reply_check, arb_reply_put, arb_reply_get},
};

static_assert(sizeof(struct pages_form) +
                          WIRE_PAGES_PER_MSG * (sizeof(struct page_form) + WIRE_PAGE_BYTES) <=
                      WIRE_PAYLOAD_MAX &&
                  sizeof(struct state_form) + WIRE_STATE_PER_MSG <= WIRE_PAYLOAD_MAX,
              "every message fits a buffer of WIRE_PAYLOAD_MAX");

const struct payload_codec *payload_codec(uint16_t type)
{
    if (type >= sizeof(codecs) / sizeof(codecs[0]) || !codecs[type].name)
        return NULL;
    return &codecs[type];
}
