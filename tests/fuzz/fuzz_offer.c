/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "io/vm_json.h"

/* A VM's definition as a peer offers it, a client sends it, or the disk has it. What is taken keeps
 * to every bound, and comes back the same from its own text. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(int ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vm_spec spec, back;
    struct err err = {""};
    char *text;

    if (vm_json_decode((const char *)data, n, &spec, &err) < 0) {
        require(err.text[0] != '\0');
        return 0;
    }
    require(vm_spec_check(&spec, NULL, &err) == 0);
    require(vm_json_encode(&spec, &text) == 0);
    require(vm_json_decode(text, strlen(text), &back, &err) == 0);
    require(memcmp(&spec, &back, sizeof(spec)) == 0);
    free(text);
    return 0;
}
