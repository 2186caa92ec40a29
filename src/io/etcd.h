/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_ETCD_H
#define US_IO_ETCD_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "wire/msg.h"

/* Registers in etcd (docs/protocol.md, "Registers in etcd"): what is asked of it and what it
 * answers, as messages of its API v3 (api/etcdserverpb/rpc.proto) in the encoding of protobuf. No
 * I/O: bytes in, bytes out. Nothing that etcd, or whoever speaks in its place, sends is trusted. */

enum {
    ETCD_MESSAGE_MAX = 2048, /* bytes of the longest request */
    ETCD_LIST_PAGE = 64,     /* registers in one answer to a list request */
    ETCD_VALUE_MAX = 256,    /* bytes of the longest value, with the NUL */
};

struct etcd_message {
    const char *method; /* the gRPC path that it is for */
    size_t n_bytes;
    uint8_t bytes[ETCD_MESSAGE_MAX];
};

/* A valid record as it is kept: JSON in one spelling only, so that equal records are equal bytes.
 * 0, or -ERANGE when the term is above 2^63 - 1, which is more than JSON's numbers hold here. */
int etcd_value_format(const struct arb_record *record,
                      char out[static ETCD_VALUE_MAX]) US_MUST_CHECK;

/* Reads exactly what etcd_value_format() writes, of a valid record that has a term. 0, or -EBADMSG
 * with the reason. */
int etcd_value_parse(const char *value, size_t n, struct arb_record *ret_record,
                     struct err *err) US_MUST_CHECK;

/* Encodes a valid request; prefix is a configuration's. 0 or -ERANGE (the term). */
int etcd_encode(const char *prefix, const struct wire_arb_request *request,
                struct etcd_message *ret_message, struct err *err) US_MUST_CHECK;

/* Encodes a request for the registers of all VMs after this one; "" for all. */
void etcd_encode_list(const char *prefix, const char *after_vm, struct etcd_message *ret_message);

/* Encodes a request that reads nothing, for a first round trip. */
void etcd_encode_nothing(const char *prefix, struct etcd_message *ret_message);

/* What every answer says about the cluster that gave it. */
struct etcd_header {
    uint64_t cluster_id; /* not 0 */
    uint64_t revision;   /* of the whole store, not 0; never goes back */
};

/* Decodes the answer to a request. A register that cannot be read becomes WIRE_ARB_ERROR with the
 * reason in err, whatever was asked for; else err is "". 0, or -EPROTO when it is no answer to that
 * request. */
int etcd_decode(const char *prefix, const struct wire_arb_request *request, const uint8_t *bytes,
                size_t n, struct wire_arb_reply *ret_reply, struct etcd_header *ret_header,
                struct err *err) US_MUST_CHECK;

/* Decodes the answer to a list request: calls each for the registers in it, puts the last one's
 * name into last_vm. Returns 1 when there are more, 0 at the end; -EPROTO; -EBADMSG for a register
 * that cannot be read. */
int etcd_decode_list(const char *prefix, const uint8_t *bytes, size_t n,
                     void (*each)(void *user, const char *vm, const struct arb_record *record),
                     void *user, char last_vm[static WIRE_NAME_BYTES],
                     struct err *err) US_MUST_CHECK;

#endif
