/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

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

    if (status < WIRE_ARB_DONE || status > WIRE_ARB_REFUSED)
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

static int arb_list_check(const struct wire_msg *msg, struct err *err)
{
    const char *after = msg->u.arb_list.after;

    return !after[0] || wire_name_valid(after) ? 0 : err_set(err, -EPROTO, "not a VM's name");
}

static int arb_list_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct arb_list_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    wire_text_put(form->after, sizeof(form->after), msg->u.arb_list.after);
    return 0;
}

static int arb_list_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct arb_list_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    if (!wire_text_get(form->after, sizeof(form->after), msg->u.arb_list.after))
        return payload_malformed(err);
    return 0;
}

const struct payload_codec arb_list_codec = {
    .name = "arbiter-list",
    .channel = WIRE_CHANNEL_ARBITER,
    PAYLOAD_FORM(arb_list_form),
    .check = arb_list_check,
    .put = arb_list_put,
    .get = arb_list_get,
};

static int arb_registers_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_arb_registers *registers = &msg->u.arb_registers;
    const char *last = "";

    if (registers->n > WIRE_ARB_REGISTERS_PER_MSG)
        return err_set(err, -EPROTO, "%u registers", registers->n);
    if (registers->more && registers->n == 0)
        return err_set(err, -EPROTO, "more after nothing");
    for (uint32_t i = 0; i < registers->n; i++) {
        const struct wire_arb_register *entry = &registers->entry[i];

        if (!wire_name_valid(entry->vm) || strcmp(entry->vm, last) <= 0)
            return err_set(err, -EPROTO, "names that are not in order");
        if (entry->record.term == 0)
            return err_set(err, -EPROTO, "a register without a record");
        if (arb_record_check(&entry->record, err) < 0)
            return -EPROTO;
        last = entry->vm;
    }
    return 0;
}

static int arb_registers_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_arb_registers *registers = &msg->u.arb_registers;
    struct arb_registers_form *form = wire_room(w, sizeof(*form));
    struct arb_register_form *list = wire_room(w, registers->n * sizeof(*list));

    if (!form || !list)
        return -ENOSPC;
    form->n = le32_of(registers->n);
    form->more = registers->more;
    for (uint32_t i = 0; i < registers->n; i++) {
        wire_text_put(list[i].vm, sizeof(list[i].vm), registers->entry[i].vm);
        record_form_put(&list[i].record, &registers->entry[i].record);
    }
    return 0;
}

static int arb_registers_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_arb_registers *registers = &msg->u.arb_registers;
    const struct arb_registers_form *form = wire_take(r, sizeof(*form));
    const struct arb_register_form *list;
    const void *taken;
    int e;

    if (!form)
        return payload_too_short(err);
    if (form->more > 1 || !wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    e = payload_take_list(r, le32_get(form->n), WIRE_ARB_REGISTERS_PER_MSG, sizeof(*list),
                          "registers", &taken, err);
    if (e < 0)
        return e;
    list = taken;
    registers->more = form->more;
    registers->n = le32_get(form->n);
    for (uint32_t i = 0; e == 0 && i < registers->n; i++) {
        if (!wire_text_get(list[i].vm, sizeof(list[i].vm), registers->entry[i].vm))
            return payload_malformed(err);
        e = record_form_get(&list[i].record, &registers->entry[i].record, err);
    }
    return e;
}

const struct payload_codec arb_registers_codec = {
    .name = "arbiter-registers",
    .channel = WIRE_CHANNEL_ARBITER,
    .min = sizeof(struct arb_registers_form),
    .max = PAYLOAD_LIST(arb_registers_form, arb_register_form, WIRE_ARB_REGISTERS_PER_MSG),
    .check = arb_registers_check,
    .put = arb_registers_put,
    .get = arb_registers_get,
};
