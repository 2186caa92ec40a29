/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "wire/buf.h"
#include "wire/layout.h"
#include "wire/msg.h"

bool wire_name_valid(const char *name)
{
    size_t n = strnlen(name, WIRE_NAME_BYTES);

    if (n == 0 || n == WIRE_NAME_BYTES || name[0] == '-')
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];

        if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '-')
            return false;
    }
    return true;
}

bool arb_record_equal(const struct arb_record *a, const struct arb_record *b)
{
    return a->term == b->term && a->mode == b->mode &&
           strncmp(a->owner, b->owner, WIRE_NAME_BYTES) == 0 &&
           strncmp(a->standby, b->standby, WIRE_NAME_BYTES) == 0;
}

int arb_record_check(const struct arb_record *record, struct err *err)
{
    bool owner_valid = wire_name_valid(record->owner);

    if (record->term == 0) {
        if (record->mode != 0 || record->owner[0] || record->standby[0])
            return err_set(err, -EPROTO, "a record without a term must be empty");
        return 0;
    }
    switch (record->mode) {
    case ARB_SOLO:
        if ((record->owner[0] && !owner_valid) || record->standby[0])
            return err_set(err, -EPROTO, "the names in a solo record are not valid");
        return 0;
    case ARB_PAIRED:
        if (!owner_valid || !wire_name_valid(record->standby) ||
            strcmp(record->owner, record->standby) == 0)
            return err_set(err, -EPROTO, "the names in a paired record are not valid");
        return 0;
    default:
        return err_set(err, -EPROTO, "record with unknown mode %u", record->mode);
    }
}

int arb_request_check(const struct wire_arb_request *request, struct err *err)
{
    static const struct arb_record none;
    const struct arb_record *expected = &request->expected, *wanted = &request->wanted;
    int r;

    if (!wire_name_valid(request->vm))
        return err_set(err, -EPROTO, "request for a VM without a valid name");
    r = arb_record_check(expected, err);
    if (r == 0)
        r = arb_record_check(wanted, err);
    if (r < 0)
        return r;
    switch (request->op) {
    case WIRE_ARB_GET:
        if (!arb_record_equal(expected, &none) || !arb_record_equal(wanted, &none))
            return err_set(err, -EPROTO, "a get request must carry no records");
        return 0;
    case WIRE_ARB_CAS:
        /* After the last term comes 0, which the check refuses too: a wanted record has a term. */
        if (wanted->term == 0 || wanted->term != expected->term + 1)
            return err_set(err, -EPROTO, "a swap must raise the term by one");
        return 0;
    default:
        return err_set(err, -EPROTO, "unknown arbiter operation %u", request->op);
    }
}

bool arb_request_allowed(const struct wire_arb_request *request, const char *asker)
{
    const struct arb_record *expected = &request->expected, *wanted = &request->wanted;
    bool is_owner = strcmp(expected->owner, asker) == 0;

    if (request->op != WIRE_ARB_CAS)
        return true;
    if (!wanted->owner[0])
        return is_owner;
    return strcmp(wanted->owner, asker) == 0 && (wanted->mode == ARB_SOLO || is_owner);
}

void arb_register_apply(struct arb_record *reg, const struct wire_arb_request *request,
                        struct wire_arb_reply *ret_reply)
{
    uint8_t status = WIRE_ARB_DONE;

    if (request->op == WIRE_ARB_CAS) {
        if (arb_record_equal(reg, &request->expected))
            *reg = request->wanted;
        else
            status = WIRE_ARB_CONFLICT;
    }
    *ret_reply = (struct wire_arb_reply){.status = status, .current = *reg};
}

void record_form_put(struct record_form *form, const struct arb_record *record)
{
    *form = (struct record_form){.term = le64_of(record->term), .mode = record->mode};
    wire_text_put(form->owner, sizeof(form->owner), record->owner);
    wire_text_put(form->standby, sizeof(form->standby), record->standby);
}

int record_form_get(const struct record_form *form, struct arb_record *ret_record, struct err *err)
{
    struct arb_record record = {.term = le64_get(form->term), .mode = form->mode};
    int r;

    if (!wire_all_zero(form->zero, sizeof(form->zero)) ||
        !wire_text_get(form->owner, sizeof(form->owner), record.owner) ||
        !wire_text_get(form->standby, sizeof(form->standby), record.standby))
        return err_set(err, -EPROTO, "malformed record");
    r = arb_record_check(&record, err);
    if (r == 0)
        *ret_record = record;
    return r;
}
