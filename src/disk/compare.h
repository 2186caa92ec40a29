/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_COMPARE_H
#define US_DISK_COMPARE_H

#include "disk/applier.h"

/* Compares the digests of another copy with what the images hold, and gathers what differs. Not
 * thread-safe; init with {0}. */

/* What the last look at the holes of an image has shown: a hole, then data, up to `end`. Data may
 * have become a hole since; a hole becomes data only by compare_written(). */
struct compare_stretch {
    bool known;
    uint8_t disk;
    uint64_t hole, start, end;
};

struct compare {
    struct applier_mark found; /* without its number */
    struct compare_stretch stretch;
    uint8_t *unit; /* DISK_DIGEST_UNIT */
};

/* Looks at the range of a DIGEST that has passed disk_record_check(); holes are not read. 0, also
 * when it differs; -ENOMEM, -EIO ... */
int compare_digest(struct compare *c, const struct image *images, const struct disk_record *rec,
                   const uint8_t *digest) US_MUST_CHECK;

/* Something is about to be written to that disk. */
void compare_written(struct compare *c, uint8_t disk);

/* What differed since the last take; the list is the caller's. */
struct applier_mark compare_take(struct compare *c);

void compare_done(struct compare *c);

#endif
