/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "wire/layout.h"
#include "wire/payload.h"

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
        return payload_too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)) ||
        !wire_text_get(form->vm, sizeof(form->vm), request->vm))
        return payload_malformed(err);
    request->op = form->op;
    e = record_form_get(&form->expected, &request->expected, err);
    if (e == 0)
        e = record_form_get(&form->wanted, &request->wanted, err);
    return e;
}

const struct payload_codec arb_request_codec = {
    .name = "arbiter-request",
    .channel = WIRE_CHANNEL_ARBITER,
    PAYLOAD_FORM(arb_request_form),
    .check = arb_request_check_msg,
    .put = arb_request_put,
    .get = arb_request_get,
};

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
        return payload_too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    msg->u.arb_reply.status = form->status;
    return record_form_get(&form->current, &msg->u.arb_reply.current, err);
}

const struct payload_codec arb_reply_codec = {
    .name = "arbiter-reply",
    .channel = WIRE_CHANNEL_ARBITER,
    PAYLOAD_FORM(arb_reply_form),
    .check = arb_reply_check,
    .put = arb_reply_put,
    .get = arb_reply_get,
};
