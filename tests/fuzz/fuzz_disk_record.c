/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "disk/log.h"

/* Packed records as a redo log has them: what unpacks and passes the check lies within its disk,
 * and packs to the same bytes. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(bool ok)
{
    if (!ok)
        abort();
}

static const uint64_t sizes[] = {1 << 20, (UINT64_C(1) << 40) + 512, UINT64_MAX - 511};
enum { N_DISKS = sizeof(sizes) / sizeof(sizes[0]) };

static void require_within(const struct disk_record *rec)
{
    if (rec->kind == DISK_MARK)
        return;
    require(rec->disk < N_DISKS && rec->n_bytes > 0 && rec->n_data <= DISK_DATA_MAX);
    require(rec->offset < sizes[rec->disk] && rec->n_bytes <= sizes[rec->disk] - rec->offset);
    require(rec->kind != DISK_WRITE || rec->n_data == rec->n_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const struct disk_chunk *chunk = NULL;
    struct disk_log log = {0};
    size_t at = 0, packed = 0;
    struct disk_record rec;
    const uint8_t *bytes;
    struct iovec iov[1];

    while (disk_record_unpack(data, n, &at, &rec, &bytes) == 0) {
        require(at <= n && bytes + rec.n_data == data + at);
        if (disk_record_check(&rec, sizes, N_DISKS, NULL) < 0)
            break;
        require_within(&rec);
        require(disk_log_add(&log, &rec, bytes) == 0);
    }
    while (disk_log_iov(&log, &chunk, iov, 1)) {
        require(memcmp(iov[0].iov_base, data + packed, iov[0].iov_len) == 0);
        packed += iov[0].iov_len;
        if (!chunk)
            break;
    }
    require(packed == log.n_bytes && packed <= at);
    disk_log_clear(&log);
    return 0;
}
