/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_LOG_H
#define US_DISK_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

/* What happened to a VM's disks, in order: the journal of an epoch on the primary, the staged epoch
 * on the standby, and the body of an epoch in the redo log are all lists of these records. Not
 * thread-safe.
 *
 * A packed record is a header of DISK_HEADER_BYTES, integers little-endian, and then its data,
 * without padding:
 *
 *     at  bytes
 *      0  8     offset
 *      8  8     n_bytes
 *     16  4     n_data
 *     20  1     disk
 *     21  1     kind
 *     22  1     flags
 *     23  1     0 */

enum disk_record_kind {
    DISK_WRITE = 1,  /* n_bytes of data */
    DISK_ZERO = 2,   /* reads as zeros from now on; DISK_PUNCH: may become a hole. No data */
    DISK_DIGEST = 3, /* data: XXH3-128 (canonical) of the range, at this place in the order */
    DISK_MARK = 4,   /* tell the primary when you are here: offset is the mark's number. No data */
};

enum { DISK_PUNCH = 1, DISK_SYNC = 2 /* MARK: the images are synced first */ };

enum {
    DISK_DATA_MAX = 1 << 20,      /* bytes of data in one record */
    DISK_DIGEST_UNIT = 64 * 1024, /* bytes that one DIGEST covers, less at the end of the disk */
    DISK_DIGEST_BYTES = 16,       /* of the digest itself */
    DISK_BLOCK_BYTES = 4096,      /* grain of the dirty map */
    DISK_HEADER_BYTES = 24,       /* of a packed record */
};

struct disk_record {
    uint8_t disk; /* number at the VM; MARK: 0 */
    uint8_t kind; /* enum disk_record_kind */
    uint8_t flags;
    uint32_t n_data;  /* bytes of data that follow: n_bytes (WRITE), 16 (DIGEST), 0 */
    uint64_t offset;  /* bytes; MARK: its number */
    uint64_t n_bytes; /* length of the range; 0 for MARK */
};

struct disk_chunk; /* memory of a log: whole packed records */

/* All zero is an empty log. */
struct disk_log {
    struct disk_chunk *first, *last;
    uint64_t n_bytes; /* of packed records: data and their headers */
    uint64_t n_records;
    bool flushed; /* a guest's flush or FUA write is among them */
};

/* A place in a log; all zero = its beginning. Valid until the log is stripped or cleared. */
struct disk_cursor {
    const struct disk_chunk *chunk;
    size_t at;
};

/* Appends a record; data (rec->n_data bytes, at most DISK_DATA_MAX) is copied. 0 or -ENOMEM
 * (nothing changed). The record must be well-formed (disk_record_check). */
int disk_log_add(struct disk_log *log, const struct disk_record *rec,
                 const void *data) US_MUST_CHECK;

/* Moves all of *from behind what *to has, and its `flushed`. Does not copy. *from is empty then. */
void disk_log_move(struct disk_log *to, struct disk_log *from);

/* Removes DIGEST and MARK records: they make sense only where they stood. */
void disk_log_strip(struct disk_log *log);

/* The record at the cursor, which goes on to the next. False at the end. *ret_data borrows. */
bool disk_log_next(const struct disk_log *log, struct disk_cursor *cursor,
                   struct disk_record *ret_rec, const uint8_t **ret_data);

/* The packed bytes, chunk by chunk, for writing to a file: iov for up to n_iov chunks starting with
 * *chunk (NULL: the first); *chunk becomes the next one or NULL. Returns how many were filled, 0
 * for an empty log. */
unsigned disk_log_iov(const struct disk_log *log, const struct disk_chunk **chunk,
                      struct iovec *iov, unsigned n_iov);

/* Frees the records. The log is empty and can be used again. */
void disk_log_clear(struct disk_log *log);

/* Checks a record against the VM's disks (n_disks sizes in bytes): kind, flags, data length, range
 * inside the disk and not empty, a digest's range a whole unit. 0 or -EPROTO. Everything from a
 * peer or a file passes here. */
int disk_record_check(const struct disk_record *rec, const uint64_t *sizes, uint32_t n_disks,
                      struct err *err) US_MUST_CHECK;

/* Reads the packed record at bytes[*at] (*at <= n), advancing *at behind its data, which *ret_data
 * borrows. 0; -EPROTO when it is not whole, and then nothing was changed. Not checked against the
 * disks. For reading a redo log's body. */
int disk_record_unpack(const uint8_t *bytes, size_t n, size_t *at, struct disk_record *ret_rec,
                       const uint8_t **ret_data) US_MUST_CHECK;

#endif
