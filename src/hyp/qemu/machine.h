/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_MACHINE_H
#define US_HYP_QEMU_MACHINE_H

#include <stddef.h>

#include "base/err.h"

/* Maps a machine type as people write it ("", "pc", "q35", "pc-i440fx-7.2") to the versioned name
 * that the emulator knows it by, because an alias means another machine in another version of
 * QEMU. "" is the emulator's default. Asks the emulator: blocks for at most 5 s. Stores at most n
 * bytes with the NUL. Returns 0, or -errno with the reason. */
int qemu_resolve_machine(const char *emulator, const char *asked, char *ret_name, size_t n,
                         struct err *err) US_MUST_CHECK;

/* The same on a text that `EMULATOR -machine help` printed. */
int qemu_find_machine(const char *help, const char *asked, char *ret_name, size_t n,
                      struct err *err) US_MUST_CHECK;

/* Reads the version out of what `EMULATOR -version` printed, as 100 * major + minor. Returns
 * -EINVAL when it is not QEMU's. */
int qemu_parse_version(const char *text, int *ret_version) US_MUST_CHECK;

/* Asks the emulator for its version, as above; refuses one that is too old. Blocks for at most
 * 5 s. Returns 0, or -errno with the reason. */
int qemu_check_version(const char *emulator, struct err *err) US_MUST_CHECK;

#endif
