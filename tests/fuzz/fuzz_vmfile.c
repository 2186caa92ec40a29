/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "host/vmfile.h"
#include "io/config.h"
#include "io/vm_json.h"

/* The files that people write. What parses as a VM must be a definition that the strict JSON
 * decoder takes, and come back from it the same; whatever does not parse must say why, with the
 * file's name. The same bytes are tried as a host's configuration. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(int ok)
{
    if (!ok)
        abort();
}

static void check_spec(const struct vm_spec *spec)
{
    struct vm_spec back;
    char *text;

    require(vm_json_encode(spec, &text) == 0);
    require(vm_json_decode(text, strlen(text), &back, NULL) == 0);
    require(memcmp(spec, &back, sizeof(back)) == 0);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct host_config config;
    struct vm_spec spec;
    struct err err = {""};

    if (vmfile_parse((const char *)data, n, "/vm", &spec, &err) == 0)
        check_spec(&spec);
    else
        require(strncmp(err.text, "/vm:", 4) == 0);

    if (host_config_parse((const char *)data, n, "/host", &config, &err) < 0)
        require(strncmp(err.text, "/host:", 6) == 0);
    return 0;
}
