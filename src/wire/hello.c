/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "wire/buf.h"
#include "wire/layout.h"
#include "wire/msg.h"

static uint64_t hello_checksum(const struct hello_form *form)
{
    return XXH3_64bits(form, offsetof(struct hello_form, checksum));
}

void wire_hello_encode(const struct wire_hello *hello, uint8_t out[static WIRE_HELLO_BYTES])
{
    struct hello_form form = {
        .version_min = le16_of(hello->version_min),
        .version_max = le16_of(hello->version_max),
        .channel = hello->channel,
        .status = hello->status,
        .resume = hello->resume,
        .features = le64_of(hello->features),
    };

    memcpy(form.magic, HELLO_MAGIC, sizeof(form.magic));
    memcpy(form.session, hello->session, sizeof(form.session));
    wire_text_put(form.vm, sizeof(form.vm), hello->vm);
    wire_text_put(form.from, sizeof(form.from), hello->from);
    wire_text_put(form.text, sizeof(form.text), hello->text);
    form.checksum = le64_of(hello_checksum(&form));
    memcpy(out, &form, sizeof(form));
}

/* What a hello must fulfil on its channel. */
static int hello_check(const struct wire_hello *h, struct err *err)
{
    bool session = !wire_all_zero(h->session, sizeof(h->session));

    if (h->version_min == 0 || h->version_min > h->version_max)
        return err_set(err, -EPROTO, "hello with versions %u to %u", h->version_min,
                       h->version_max);
    if (!wire_name_valid(h->from))
        return err_set(err, -EPROTO, "hello without a valid name of its sender");
    if (h->resume && h->channel != WIRE_CHANNEL_CONTROL)
        return err_set(err, -EPROTO, "hello resumes on a channel that cannot");
    switch (h->channel) {
    case WIRE_CHANNEL_CONTROL:
    case WIRE_CHANNEL_DATA:
        if (!session || !wire_name_valid(h->vm))
            return err_set(err, -EPROTO, "hello without a session or a valid VM");
        return 0;
    case WIRE_CHANNEL_ARBITER:
        if (session || h->vm[0])
            return err_set(err, -EPROTO, "hello to an arbiter with a session or a VM");
        return 0;
    default:
        return err_set(err, -EPROTO, "hello for unknown channel %u", h->channel);
    }
}

int wire_hello_decode(const uint8_t in[static WIRE_HELLO_BYTES], struct wire_hello *ret_hello,
                      struct err *err)
{
    struct hello_form form;
    struct wire_hello hello;
    int r;

    memcpy(&form, in, sizeof(form));
    if (memcmp(form.magic, HELLO_MAGIC, sizeof(form.magic)) != 0)
        return err_set(err, -EPROTO, "the peer does not speak this protocol");
    if (le64_get(form.checksum) != hello_checksum(&form))
        return err_set(err, -EPROTO, "hello damaged on its way");
    hello = (struct wire_hello){
        .version_min = le16_get(form.version_min),
        .version_max = le16_get(form.version_max),
        .channel = form.channel,
        .status = form.status,
        .resume = form.resume == 1,
        .features = le64_get(form.features),
    };
    memcpy(hello.session, form.session, sizeof(hello.session));
    if (form.resume > 1 || form.zero1[0] || !wire_all_zero(form.zero2, sizeof(form.zero2)) ||
        !wire_text_get(form.vm, sizeof(form.vm), hello.vm) ||
        !wire_text_get(form.from, sizeof(form.from), hello.from) ||
        !wire_text_get(form.text, sizeof(form.text), hello.text))
        return err_set(err, -EPROTO, "malformed hello");
    r = hello_check(&hello, err);
    if (r == 0)
        *ret_hello = hello;
    return r;
}

uint16_t wire_version_choose(const struct wire_hello *theirs)
{
    uint16_t highest =
        theirs->version_max < WIRE_VERSION_MAX ? theirs->version_max : WIRE_VERSION_MAX;

    if (theirs->features != 0 || highest < WIRE_VERSION_MIN || highest < theirs->version_min)
        return 0;
    return highest;
}

/* Sets a text field; what does not fit is cut. */
static void set_text(char *field, size_t n, const char *text)
{
    memset(field, 0, n);
    memcpy(field, text, strnlen(text, n - 1));
}

void wire_hello_answer(const struct wire_hello *theirs, const char *from, uint8_t status,
                       const char *text, struct wire_hello *ret_answer)
{
    uint16_t version = wire_version_choose(theirs);
    struct wire_hello answer = *theirs;

    answer.version_min = version ? version : WIRE_VERSION_MIN;
    answer.version_max = version ? version : WIRE_VERSION_MAX;
    answer.status = status;
    answer.features = 0;
    set_text(answer.from, sizeof(answer.from), from);
    set_text(answer.text, sizeof(answer.text), text);
    if (!version && status == WIRE_OK) {
        answer.status = WIRE_REFUSED_VERSION;
        set_text(answer.text, sizeof(answer.text), "no version or feature set in common");
    }
    *ret_answer = answer;
}

int wire_hello_check_answer(const struct wire_hello *sent, const struct wire_hello *answer,
                            struct err *err)
{
    if (answer->status != WIRE_OK)
        return err_set(err, -ECONNREFUSED, "refused by %s: %s", answer->from,
                       answer->text[0] ? answer->text : "no reason given");
    if (answer->version_min != answer->version_max || answer->version_min < sent->version_min ||
        answer->version_min > sent->version_max || answer->features != 0)
        return err_set(err, -EPROTO, "%s chose a version that was not offered", answer->from);
    if (answer->channel != sent->channel || answer->resume != sent->resume ||
        memcmp(answer->session, sent->session, sizeof(sent->session)) != 0 ||
        strncmp(answer->vm, sent->vm, sizeof(sent->vm)) != 0)
        return err_set(err, -EPROTO, "%s answered another hello", answer->from);
    return 0;
}
