/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/etcd.h"

/* Answers of etcd, or of whoever speaks in its place, to each kind of request. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(int ok)
{
    if (!ok)
        abort();
}

static void try_answer(const struct wire_arb_request *request, const uint8_t *data, size_t n)
{
    struct wire_arb_reply reply;
    struct etcd_header header;
    struct err err;
    int r = etcd_decode("/p/", request, data, n, &reply, &header, &err);

    require(r == 0 || r == -EPROTO);
    if (r < 0)
        return;
    require(header.cluster_id && header.revision);
    require(arb_record_check(&reply.current, NULL) == 0);
    switch (reply.status) {
    case WIRE_ARB_DONE:
        require(request->op == WIRE_ARB_GET || arb_record_equal(&reply.current, &request->wanted));
        break;
    case WIRE_ARB_CONFLICT:
        require(request->op == WIRE_ARB_CAS);
        break;
    default:
        require(reply.status == WIRE_ARB_ERROR && err.text[0]);
    }
}

static void on_register(void *user, const char *vm, const struct arb_record *record)
{
    require(wire_name_valid(vm) && record->term > 0 && arb_record_check(record, NULL) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const struct wire_arb_request get = {.op = WIRE_ARB_GET, .vm = "web"};
    static const struct wire_arb_request swap = {
        WIRE_ARB_CAS, "web", {7, ARB_SOLO, "hosta", ""}, {8, ARB_PAIRED, "hosta", "hostb"}};
    char value[ETCD_VALUE_MAX], last_vm[WIRE_NAME_BYTES];
    struct arb_record record;

    try_answer(&get, data, n);
    try_answer(&swap, data, n);
    (void)!etcd_decode_list("/p/", data, n, on_register, NULL, last_vm, NULL);
    if (etcd_value_parse((const char *)data, n, &record, NULL) == 0) {
        require(record.term > 0 && arb_record_check(&record, NULL) == 0);
        require(etcd_value_format(&record, value) == 0);
        require(strlen(value) == n && memcmp(value, data, n) == 0);
    }
    return 0;
}
