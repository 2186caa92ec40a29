/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp-pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "core/vm_spec.h"
#include "hyp-tap.h"

/* What page or block i holds when `newest` was counted last. */
static uint32_t wanted(uint32_t newest, uint32_t n_pages, uint32_t i)
{
    return newest < i ? 0 : newest - (newest - i) % n_pages;
}

uint32_t hyp_pattern_memory(const uint8_t *base, uint32_t n_pages, uint32_t *ret_newest)
{
    uint32_t newest = 0, bad = 0;

    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < n_pages; i++) {
            uint32_t value;

            memcpy(&value, base + i * VM_PAGE_BYTES, sizeof(value));
            if (pass == 0)
                newest = value > newest ? value : newest;
            else
                bad += value != wanted(newest, n_pages, i);
        }
    }
    *ret_newest = newest;
    return bad;
}

uint32_t hyp_pattern_disk(const char *path, uint32_t n_pages, uint32_t newest)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint32_t bad = 0;

    for (uint32_t i = 0; i < n_pages; i++) {
        uint32_t value = 0, want = wanted(newest, n_pages, i);
        uint32_t before = want > n_pages ? want - n_pages : 0;

        if (pread(fd, &value, sizeof(value), (off_t)((i + 1) * VM_PAGE_BYTES)) != sizeof(value))
            bail_out("%s: %s", path, strerror(errno));
        bad += value != want && !(want == newest && value == before);
    }
    return bad;
}
