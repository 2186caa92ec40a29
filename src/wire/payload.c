/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/payload.h"

#include <errno.h>

#include "wire/layout.h"

static const struct payload_codec *const codecs[] = {
    [WIRE_HEARTBEAT] = &heartbeat_codec,
    [WIRE_OFFER] = &offer_codec,
    [WIRE_READY] = &ready_codec,
    [WIRE_REFUSE] = &refuse_codec,
    [WIRE_ACK] = &ack_codec,
    [WIRE_BYE] = &bye_codec,
    [WIRE_ADDRESSES] = &addresses_codec,
    [WIRE_DISK_RANGES] = &disk_ranges_codec,
    [WIRE_FRAMES] = &frames_codec,
    [WIRE_EPOCH_BEGIN] = &epoch_begin_codec,
    [WIRE_PAGES] = &pages_codec,
    [WIRE_STATE] = &state_codec,
    [WIRE_EPOCH_END] = &epoch_end_codec,
    [WIRE_DISK] = &disk_codec,
    [WIRE_ARB_REQUEST] = &arb_request_codec,
    [WIRE_ARB_REPLY] = &arb_reply_codec,
    [WIRE_ARB_LIST] = &arb_list_codec,
    [WIRE_ARB_REGISTERS] = &arb_registers_codec,
};

const struct payload_codec *payload_codec(uint16_t type)
{
    return type < sizeof(codecs) / sizeof(codecs[0]) ? codecs[type] : NULL;
}

int payload_too_short(struct err *err)
{
    return err_set(err, -EPROTO, "it is too short");
}

int payload_malformed(struct err *err)
{
    return err_set(err, -EPROTO, "malformed");
}

void *payload_put_list(struct wire_writer *w, uint32_t n, size_t n_form)
{
    struct list_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return NULL;
    form->n = le32_of(n);
    return wire_room(w, n * n_form);
}

int payload_get_list(struct wire_reader *r, uint32_t max, size_t n_form, const char *what,
                     uint32_t *ret_n, const void **ret_list, struct err *err)
{
    const struct list_form *form = wire_take(r, sizeof(*form));
    int e;

    if (!form)
        return payload_too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    e = payload_take_list(r, le32_get(form->n), max, n_form, what, ret_list, err);
    if (e == 0)
        *ret_n = le32_get(form->n);
    return e;
}

int payload_take_list(struct wire_reader *r, uint32_t n, uint32_t max, size_t n_form,
                      const char *what, const void **ret_list, struct err *err)
{
    const void *list;

    if (n > max)
        return err_set(err, -EPROTO, "%u %s", n, what);
    list = wire_take(r, n * n_form);
    if (!list)
        return payload_too_short(err);
    *ret_list = list;
    return 0;
}
