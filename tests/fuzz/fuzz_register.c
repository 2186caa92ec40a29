/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "witness/store.h"

/* A register's file that a witness finds when it starts. The checksum, its last 8 bytes, is put
 * right. What is taken is a record as the wire would take it. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(int ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint8_t file[STORE_FILE_BYTES] = {0};
    struct arb_record record;
    struct err err = {""};
    uint64_t sum;

    memcpy(file, data, n < sizeof(file) ? n : sizeof(file));
    sum = XXH3_64bits(file, sizeof(file) - 8);
    for (int i = 0; i < 8; i++)
        file[sizeof(file) - 8 + i] = (uint8_t)(sum >> 8 * i);
    if (store_file_decode(file, "web", &record, &err) < 0) {
        require(err.text[0] != '\0');
        return 0;
    }
    require(record.term > 0 && arb_record_check(&record, &err) == 0);
    return 0;
}
