/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "io/control.h"
#include "io/control_line.h"
#include "io/vm_json.h"

/* Lines of the control protocol, and the VM definitions in them, in records and in offers. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(int ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const char *line = (const char *)data;
    struct vm_spec spec, back;
    json_t *json;
    bool is_answer;
    char *text;

    if (control_parse_request(line, n, &json, NULL) == 0) {
        require(json_is_string(json_object_get(json, "command")));
        if (vm_json_to_spec(json_object_get(json, "vm"), &spec, NULL) == 0) {
            require(vm_json_encode(&spec, &text) == 0);
            require(vm_json_decode(text, strlen(text), &back, NULL) == 0);
            require(memcmp(&spec, &back, sizeof(spec)) == 0);
            free(text);
        }
        json_decref(json);
    }
    if (control_parse_answer(line, n, &json, &is_answer, NULL) == 0) {
        require(json_is_object(json));
        json_decref(json);
    }
    if (vm_json_decode(line, n, &spec, NULL) == 0)
        require(vm_spec_check(&spec, NULL, NULL) == 0);
    return 0;
}
