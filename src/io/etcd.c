/* SPDX-License-Identifier: Apache-2.0 */
#include "io/etcd.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/vm_spec.h"

/* The messages, as far as we use them (name = number of the field):
 *
 *   RangeRequest   key = 1, range_end = 2, limit = 3            (linearizable unless asked not to
 * be) PutRequest     key = 1, value = 2 Compare        result = 1, target = 2, key = 3,
 * create_revision = 5 | value = 7 RequestOp      request_range = 1 | request_put = 2 TxnRequest
 * compare = 1, success = 2, failure = 3
 *
 *   ResponseHeader cluster_id = 1, revision = 3
 *   KeyValue       key = 1, value = 5
 *   RangeResponse  header = 1, kvs = 2, more = 3
 *   ResponseOp     response_range = 1
 *   TxnResponse    header = 1, succeeded = 2, responses = 3
 *
 * protobuf: a message is a sequence of fields, each a tag (number << 3 | type) and a value. Fields
 * that are 0 are left out, unknown ones are skipped. */

enum pb_type { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

enum { COMPARE_EQUAL = 0, COMPARE_CREATE = 1, COMPARE_VALUE = 3 };

enum { KEY_MAX = HOST_NAME_BYTES + 16 + WIRE_NAME_BYTES };

static const char method_range[] = "/etcdserverpb.KV/Range";
static const char method_txn[] = "/etcdserverpb.KV/Txn";

/* Writing. All lengths are known and small: too much is our own bug. */

static void put_varint(struct etcd_message *m, uint64_t value)
{
    do {
        assert(m->n_bytes < sizeof(m->bytes));
        m->bytes[m->n_bytes++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value);
}

static void put_number(struct etcd_message *m, unsigned field, uint64_t value)
{
    put_varint(m, field << 3 | PB_VARINT);
    put_varint(m, value);
}

static void put_bytes(struct etcd_message *m, unsigned field, const void *bytes, size_t n)
{
    put_varint(m, field << 3 | PB_BYTES);
    put_varint(m, n);
    assert(n <= sizeof(m->bytes) - m->n_bytes);
    memcpy(m->bytes + m->n_bytes, bytes, n);
    m->n_bytes += n;
}

static void put_text(struct etcd_message *m, unsigned field, const char *text)
{
    put_bytes(m, field, text, strlen(text));
}

static void put_message(struct etcd_message *m, unsigned field, const struct etcd_message *inner)
{
    put_bytes(m, field, inner->bytes, inner->n_bytes);
}

static void key_of(const char *prefix, const char *vm, char out[static KEY_MAX])
{
    (void)snprintf(out, KEY_MAX, "%sregisters/%s", prefix, vm);
}

int etcd_value_format(const struct arb_record *record, char out[static ETCD_VALUE_MAX])
{
    if (record->term > INT64_MAX)
        return -ERANGE;
    (void)snprintf(out, ETCD_VALUE_MAX,
                   "{\"term\":%" PRIu64 ",\"owner\":\"%s\",\"mode\":\"%s\",\"standby\":\"%s\"}",
                   record->term, record->owner, record->mode == ARB_PAIRED ? "paired" : "solo",
                   record->standby);
    return 0;
}

static void encode_swap(const char *key, bool is_void, const char *expected, const char *wanted,
                        struct etcd_message *m)
{
    struct etcd_message compare = {0}, put = {0}, range = {0}, success = {0}, failure = {0};

    put_number(&compare, 1, COMPARE_EQUAL);
    put_number(&compare, 2, is_void ? COMPARE_CREATE : COMPARE_VALUE);
    put_text(&compare, 3, key);
    if (is_void)
        put_number(&compare, 5, 0);
    else
        put_text(&compare, 7, expected);
    put_text(&put, 1, key);
    put_text(&put, 2, wanted);
    put_message(&success, 2, &put);
    put_text(&range, 1, key);
    put_message(&failure, 1, &range);

    put_message(m, 1, &compare);
    put_message(m, 2, &success);
    put_message(m, 3, &failure);
}

int etcd_encode(const char *prefix, const struct wire_arb_request *request,
                struct etcd_message *ret_message, struct err *err)
{
    struct etcd_message *m = ret_message;
    char key[KEY_MAX], expected[ETCD_VALUE_MAX], wanted[ETCD_VALUE_MAX];

    key_of(prefix, request->vm, key);
    m->n_bytes = 0;
    if (request->op == WIRE_ARB_GET) {
        m->method = method_range;
        put_text(m, 1, key);
        return 0;
    }
    if (etcd_value_format(&request->expected, expected) < 0 ||
        etcd_value_format(&request->wanted, wanted) < 0)
        return err_set(err, -ERANGE, "the term is too large for etcd");
    m->method = method_txn;
    encode_swap(key, request->expected.term == 0, expected, wanted, m);
    return 0;
}

void etcd_encode_list(const char *prefix, const char *after_vm, struct etcd_message *ret_message)
{
    char key[KEY_MAX], end[KEY_MAX];
    size_t n_key;

    key_of(prefix, after_vm, key);
    key_of(prefix, "", end);
    end[strlen(end) - 1]++;                      /* the first key after all that begin so */
    n_key = strlen(key) + (after_vm[0] != '\0'); /* with its NUL: the first key after that one */
    *ret_message = (struct etcd_message){.method = method_range};
    put_bytes(ret_message, 1, key, n_key);
    put_text(ret_message, 2, end);
    put_number(ret_message, 3, ETCD_LIST_PAGE);
}

void etcd_encode_nothing(const char *prefix, struct etcd_message *ret_message)
{
    char key[KEY_MAX];

    key_of(prefix, "", key); /* no VM has this name */
    *ret_message = (struct etcd_message){.method = method_range};
    put_text(ret_message, 1, key);
}

/* Reading. */

struct pb {
    const uint8_t *at, *end;
    bool bad; /* it was cut off or is no protobuf; then there are no more fields */
};

struct pb_field {
    uint32_t number;
    enum pb_type type;
    uint64_t value;  /* PB_VARINT */
    struct pb bytes; /* PB_BYTES */
};

static uint64_t get_varint(struct pb *pb)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64 && pb->at < pb->end; shift += 7) {
        uint8_t byte = *pb->at++;

        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return value;
    }
    pb->bad = true;
    return 0;
}

static struct pb get_bytes(struct pb *pb, uint64_t n)
{
    struct pb bytes = {pb->at, pb->at, false};

    if (n > (uint64_t)(pb->end - pb->at)) {
        pb->bad = true;
        return bytes;
    }
    pb->at += n;
    bytes.end = pb->at;
    return bytes;
}

/* The next field; false at the end, or when the message turns out to be bad. */
static bool next_field(struct pb *pb, struct pb_field *f)
{
    uint64_t tag;

    if (pb->bad || pb->at == pb->end)
        return false;
    tag = get_varint(pb);
    *f = (struct pb_field){.number = (uint32_t)(tag >> 3), .type = tag & 7};
    switch (f->type) {
    case PB_VARINT:
        f->value = get_varint(pb);
        break;
    case PB_FIXED64:
        (void)get_bytes(pb, 8);
        break;
    case PB_BYTES:
        f->bytes = get_bytes(pb, get_varint(pb));
        break;
    case PB_FIXED32:
        (void)get_bytes(pb, 4);
        break;
    default:
        pb->bad = true;
    }
    if (f->number == 0 || tag >> 32)
        pb->bad = true;
    return !pb->bad;
}

/* True for that field; one of that number and another type is none of the messages we know. */
static bool is(struct pb *pb, const struct pb_field *f, uint32_t number, enum pb_type type)
{
    if (f->number == number && f->type != type)
        pb->bad = true;
    return f->number == number && f->type == type;
}

/* Every answer has one; what has none is no answer, though it might pass for an empty one. */
static bool get_header(struct pb pb, struct etcd_header *ret_header)
{
    struct etcd_header header = {0};
    struct pb_field f;

    while (next_field(&pb, &f)) {
        if (is(&pb, &f, 1, PB_VARINT))
            header.cluster_id = f.value;
        else if (is(&pb, &f, 3, PB_VARINT))
            header.revision = f.value;
    }
    *ret_header = header;
    return !pb.bad && header.cluster_id && header.revision;
}

struct key_value {
    struct pb key, value;
};

static bool get_key_value(struct pb pb, struct key_value *kv)
{
    struct pb_field f;

    *kv = (struct key_value){0};
    while (next_field(&pb, &f)) {
        if (is(&pb, &f, 1, PB_BYTES))
            kv->key = f.bytes;
        else if (is(&pb, &f, 5, PB_BYTES))
            kv->value = f.bytes;
    }
    return !pb.bad;
}

static size_t length(const struct pb *pb)
{
    return (size_t)(pb->end - pb->at);
}

static bool text_is(const struct pb *pb, const char *text)
{
    return length(pb) == strlen(text) && memcmp(pb->at, text, length(pb)) == 0;
}

static int malformed(struct err *err)
{
    return err_set(err, -EPROTO, "a malformed answer");
}

int etcd_value_parse(const char *value, size_t n, struct arb_record *ret_record, struct err *err)
{
    struct arb_record record = {0};
    const char *owner, *mode, *standby;
    char again[ETCD_VALUE_MAX];
    json_t *json = NULL;
    json_int_t term;
    int r = -EBADMSG;

    if (n < ETCD_VALUE_MAX)
        json = json_loadb(value, n, 0, NULL);
    if (json &&
        json_unpack(json, "{s:I,s:s,s:s,s:s!}", "term", &term, "owner", &owner, "mode", &mode,
                    "standby", &standby) == 0 &&
        term > 0 && strlen(owner) < sizeof(record.owner) &&
        strlen(standby) < sizeof(record.standby)) {
        record.term = (uint64_t)term;
        record.mode = strcmp(mode, "paired") == 0 ? ARB_PAIRED : ARB_SOLO;
        strcpy(record.owner, owner);
        strcpy(record.standby, standby);
        /* Another spelling of the same record could be read, but never be swapped. */
        if (arb_record_check(&record, NULL) == 0 && etcd_value_format(&record, again) == 0 &&
            strlen(again) == n && memcmp(again, value, n) == 0)
            r = 0;
    }
    json_decref(json);
    if (r < 0)
        return err_set(err, r, "its value was not written by Understudy");
    *ret_record = record;
    return 0;
}

/* The register out of a range of this key: 0, -EPROTO, -EBADMSG. */
static int get_register(struct pb range, const char *key, struct arb_record *ret_record,
                        struct err *err)
{
    struct key_value kv;
    struct pb_field f;
    unsigned n = 0;
    int r;

    while (next_field(&range, &f)) {
        if (is(&range, &f, 2, PB_BYTES) &&
            (n++ || !get_key_value(f.bytes, &kv) || !text_is(&kv.key, key)))
            return malformed(err);
        if (is(&range, &f, 3, PB_VARINT) && f.value)
            return malformed(err);
    }
    if (range.bad)
        return malformed(err);
    *ret_record = (struct arb_record){0};
    if (n == 0)
        return 0; /* nobody ever wrote it */
    r = etcd_value_parse((const char *)kv.value.at, length(&kv.value), ret_record, err);
    if (r < 0)
        err_prefix(err, "the register %s", key);
    return r;
}

/* Out of an answer to a swap: whether it was done, and if not, the range that tells why. */
static bool get_txn(struct pb pb, bool *ret_done, struct pb *ret_range)
{
    struct pb_field f, op;
    unsigned n = 0, n_ranges = 0;
    bool done = false;

    while (next_field(&pb, &f)) {
        if (is(&pb, &f, 2, PB_VARINT))
            done = f.value != 0;
        if (!is(&pb, &f, 3, PB_BYTES))
            continue;
        n++;
        while (next_field(&f.bytes, &op)) {
            if (is(&f.bytes, &op, 1, PB_BYTES)) {
                *ret_range = op.bytes;
                n_ranges++;
            }
        }
        if (f.bytes.bad)
            return false;
    }
    *ret_done = done;
    return !pb.bad && n == 1 && n_ranges == !done;
}

static bool find_header(struct pb pb, struct etcd_header *ret_header)
{
    struct pb_field f;

    while (next_field(&pb, &f)) {
        if (is(&pb, &f, 1, PB_BYTES))
            return get_header(f.bytes, ret_header);
    }
    return false;
}

int etcd_decode(const char *prefix, const struct wire_arb_request *request, const uint8_t *bytes,
                size_t n, struct wire_arb_reply *ret_reply, struct etcd_header *ret_header,
                struct err *err)
{
    struct wire_arb_reply reply = {.status = WIRE_ARB_DONE};
    struct pb answer = {bytes, bytes + n, false}, range = answer;
    char key[KEY_MAX];
    bool done = false;
    int r;

    err_set(err, 0, "%s", "");
    key_of(prefix, request->vm, key);
    if (!find_header(answer, ret_header))
        return malformed(err);
    if (request->op == WIRE_ARB_CAS && !get_txn(answer, &done, &range))
        return malformed(err);
    if (done) {
        reply.current = request->wanted;
    } else {
        r = get_register(range, key, &reply.current, err);
        if (r == -EPROTO)
            return r;
        if (r < 0)
            reply.status = WIRE_ARB_ERROR;
        else if (request->op == WIRE_ARB_CAS)
            reply.status = WIRE_ARB_CONFLICT;
    }
    *ret_reply = reply;
    return 0;
}

/* The VM whose register has this key, "" when it is none's. */
static void vm_of(const char *prefix, const struct pb *key, char vm[static WIRE_NAME_BYTES])
{
    char before[KEY_MAX];
    size_t n_before, n = length(key);

    key_of(prefix, "", before);
    n_before = strlen(before);
    vm[0] = '\0';
    if (n <= n_before || n - n_before >= WIRE_NAME_BYTES || memcmp(key->at, before, n_before) != 0)
        return;
    memcpy(vm, key->at + n_before, n - n_before);
    vm[n - n_before] = '\0';
    if (strlen(vm) != n - n_before || !wire_name_valid(vm))
        vm[0] = '\0';
}

int etcd_decode_list(const char *prefix, const uint8_t *bytes, size_t n,
                     void (*each)(void *user, const char *vm, const struct arb_record *record),
                     void *user, char last_vm[static WIRE_NAME_BYTES], struct err *err)
{
    struct pb answer = {bytes, bytes + n, false};
    struct arb_record record;
    struct key_value kv;
    struct pb_field f;
    struct etcd_header header;
    unsigned n_kvs = 0;
    bool more = false;
    int r;

    if (!find_header(answer, &header))
        return malformed(err);
    while (next_field(&answer, &f)) {
        if (is(&answer, &f, 3, PB_VARINT))
            more = f.value != 0;
        if (!is(&answer, &f, 2, PB_BYTES))
            continue;
        if (!get_key_value(f.bytes, &kv))
            return malformed(err);
        vm_of(prefix, &kv.key, last_vm);
        if (!last_vm[0])
            return err_set(err, -EBADMSG, "there is a key among the registers that is none");
        r = etcd_value_parse((const char *)kv.value.at, length(&kv.value), &record, err);
        if (r < 0) {
            err_prefix(err, "the register of %s", last_vm);
            return r;
        }
        each(user, last_vm, &record);
        n_kvs++;
    }
    if (answer.bad || (more && n_kvs == 0)) /* "more" without progress would never end */
        return malformed(err);
    return more;
}
