/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HOST_VMFILE_H
#define US_HOST_VMFILE_H

#include <stddef.h>

#include "base/err.h"
#include "core/vm_spec.h"

/* The VM file that a user writes: understudy-vm(5). Reading it fills in every default, except for
 * the machine type ("" = the emulator's newest) and the accelerator, which the hypervisor's
 * preflight settles on the host where the VM starts. */

/* Reads a VM file. Relative paths in it are taken from its own directory; the files that it
 * names must be readable. An image of a disk may be missing: it is made when the VM starts. 0, or
 * -errno with file, line and reason. Blocks on the disk. */
int vmfile_load(const char *path, struct vm_spec *ret_spec, struct err *err) US_MUST_CHECK;

/* As vmfile_load(), from a text; `file` names it in errors and says which directory relative paths
 * start from. Looks at no other file. */
int vmfile_parse(const char *text, size_t n_text, const char *file, struct vm_spec *ret_spec,
                 struct err *err) US_MUST_CHECK;

/* Reads a number of bytes as a VM file has it: "4096", "50M". 0 or -EINVAL. */
int vmfile_bytes(const char *text, uint64_t *ret_bytes) US_MUST_CHECK;

#endif
