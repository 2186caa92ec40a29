/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_IO_VM_JSON_H
#define US_IO_VM_JSON_H

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"
#include "core/vm_spec.h"

/* A VM's definition as JSON: in the record on disk, in `start` on the control socket, and in the
 * offer to a standby. Every key is always there, but for the last
 * three, which old records lack:
 *
 *   {"name": "web", "memory_bytes": 268435456, "cpus": 1, "machine": "pc-i440fx-7.2",
 *    "cpu": "qemu64", "accel": "tcg", "kernel": "/boot/vmlinuz", "initrd": "", "append": "",
 *    "firmware": "", "nics": [{"mac": "52:54:00:12:34:56", "bridge": "br0"}],
 *    "disks": [{"path": "/srv/web.img", "size_bytes": 10737418240, "serial": "data1",
 *               "read_only": false, "cache": "writeback"}], "qemu_args": [],
 *    "protect": {"standby": "hostb", "interval_min_ns": 5000000, "interval_max_ns": 500000000,
 *                "output": "hold", "copy_rate_bytes": 0, "engine": "default",
 *                "max_slowdown_permille": 250, "outrun": "throttle"}} */

enum { VM_JSON_MAX = 64 * 1024 }; /* bytes; more than the largest definition can need */

/* A new JSON object that describes `spec`; the caller owns it. NULL when out of memory, or when a
 * string of `spec` is not UTF-8. */
json_t *vm_json_from_spec(const struct vm_spec *spec);

/* The only decoder, for what a peer, a client or the disk says: exactly the keys above, then
 * vm_spec_check(). `json` is borrowed. 0, or -EPROTO with the reason. */
int vm_json_to_spec(const json_t *json, struct vm_spec *ret_spec, struct err *err) US_MUST_CHECK;

/* The same as text. The caller frees *ret_text. -ENOMEM. */
int vm_json_encode(const struct vm_spec *spec, char **ret_text) US_MUST_CHECK;
int vm_json_decode(const char *text, size_t n_text, struct vm_spec *ret_spec,
                   struct err *err) US_MUST_CHECK;

/* The host does not matter here: every bound and every character of a definition that any host
 * relies on. `*ret_field` names the offending value as the VM file writes it ("nics[0].mac"); it
 * may be NULL. 0, or -EINVAL with the reason, without the field's name. */
int vm_spec_check(const struct vm_spec *spec, char (*ret_field)[32], struct err *err) US_MUST_CHECK;

/* "52:54:00:12:34:56" from and to bytes. mac_parse: 0 or -EINVAL. */
int mac_parse(const char *text, uint8_t mac[static 6]) US_MUST_CHECK;
void mac_format(const uint8_t mac[static 6], char text[static 18]);

#endif
