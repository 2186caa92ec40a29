/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/range_list.h"

#include <errno.h>
#include <stdlib.h>

#include "disk/log.h"

int range_list_add(struct range_list *list, uint32_t disk, uint64_t offset, uint64_t n_bytes)
{
    if (list->n == list->room) {
        uint32_t room = list->room ? list->room * 2 : 64;
        struct disk_range *v = reallocarray(list->v, room, sizeof(*v));

        if (!v)
            return -ENOMEM;
        list->v = v;
        list->room = room;
    }
    list->v[list->n++] = (struct disk_range){(uint8_t)disk, offset, n_bytes};
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct disk_range *x = a, *y = b;

    if (x->disk != y->disk)
        return x->disk < y->disk ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

void range_list_join(struct range_list *list, uint64_t gap_bytes)
{
    uint32_t i, n = 0;

    if (list->n)
        qsort(list->v, list->n, sizeof(*list->v), by_place);
    for (i = 0; i < list->n; i++) {
        struct disk_range *last = n ? &list->v[n - 1] : NULL, r = list->v[i];
        uint64_t end = last ? last->offset + last->n_bytes : 0;

        if (!last || r.disk != last->disk || (r.offset > end && r.offset - end > gap_bytes))
            list->v[n++] = r;
        else if (r.offset + r.n_bytes > end)
            last->n_bytes = r.offset + r.n_bytes - last->offset;
    }
    list->n = n;
}

void range_list_coarsen(struct range_list *list, uint32_t max)
{
    uint64_t gap = DISK_BLOCK_BYTES - 1;

    range_list_join(list, 0);
    while (list->n > max && gap != UINT64_MAX) {
        gap = 2 * gap + 1;
        range_list_join(list, gap);
    }
}

uint64_t range_list_bytes(const struct range_list *list)
{
    uint64_t bytes = 0;
    uint32_t i;

    for (i = 0; i < list->n; i++)
        bytes += list->v[i].n_bytes;
    return bytes;
}

void range_list_free(struct range_list *list)
{
    free(list->v);
    *list = (struct range_list){NULL, 0, 0};
}
