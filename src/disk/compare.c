/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/compare.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxh_x86dispatch.h>

static int note_difference(struct compare *c, const struct disk_record *rec)
{
    struct range_list *list = &c->found.differing;
    struct disk_range *last = list->n ? &list->v[list->n - 1] : NULL;

    if (last && last->disk == rec->disk && last->offset + last->n_bytes == rec->offset) {
        last->n_bytes += rec->n_bytes;
        return 0;
    }
    if (list->n == APPLIER_DIFFERENCES_MAX) {
        c->found.more = true;
        return 0;
    }
    return range_list_add(list, rec->disk, rec->offset, rec->n_bytes);
}

/* 1 = the range lies in a hole; 0 = it may hold data. Asks the file system once for many ranges:
 * each answer may cost it a walk through the file. */
static int in_hole(struct compare *c, const struct image *image, const struct disk_record *rec)
{
    struct compare_stretch *s = &c->stretch;

    if (!s->known || s->disk != rec->disk || rec->offset < s->hole || rec->offset >= s->end) {
        int r = image_next_data(image, rec->offset, &s->start, &s->end);

        s->known = r >= 0;
        if (r < 0)
            return r;
        if (r == 0)
            s->start = s->end = image->size_bytes;
        s->disk = rec->disk;
        s->hole = rec->offset;
    }
    return rec->offset + rec->n_bytes <= s->start;
}

int compare_digest(struct compare *c, const struct image *images, const struct disk_record *rec,
                   const uint8_t *digest)
{
    const struct image *image = &images[rec->disk];
    XXH128_canonical_t own;
    int r;

    if (!c->unit)
        c->unit = malloc(DISK_DIGEST_UNIT);
    if (!c->unit)
        return -ENOMEM;
    r = in_hole(c, image, rec);
    if (r > 0)
        memset(c->unit, 0, rec->n_bytes);
    else if (r == 0)
        r = image_read(image, c->unit, rec->n_bytes, rec->offset);
    if (r < 0)
        return r;
    XXH128_canonicalFromHash(&own, XXH3_128bits(c->unit, rec->n_bytes));
    return memcmp(&own, digest, sizeof(own)) == 0 ? 0 : note_difference(c, rec);
}

void compare_written(struct compare *c, uint8_t disk)
{
    if (c->stretch.disk == disk)
        c->stretch.hole = c->stretch.start;
}

struct applier_mark compare_take(struct compare *c)
{
    struct applier_mark found = c->found;

    c->found = (struct applier_mark){0};
    return found;
}

void compare_done(struct compare *c)
{
    range_list_free(&c->found.differing);
    free(c->unit);
}
