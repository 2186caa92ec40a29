/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_NBD_RIG_H
#define US_TESTS_NBD_RIG_H

#include <libnbd.h>

#include "disk/server.h"

/* A disk server with one disk in a folder of its own, with the real journal (running) and map, and
 * with libnbd as its clients. All of these fail the test that calls them when something is
 * wrong. */

enum {
    DISK_BYTES = 8 << 20,
    CLIENTS = 3,
    WAIT_MS = 20000,
};

struct nbd_rig {
    char folder[32], image_path[64], map_path[64], socket_path[64];
    struct image image;
    struct disk_map *map;
    struct journal *journal;
    int journal_event;
    struct disk_server *server;
    struct nbd_handle *client[CLIENTS];
    uint64_t epoch; /* the last one cut */
};

/* Serves, with an empty image, in the mode DISK_OPEN. For cmocka: a fixture, with DISK_BYTES and a
 * large journal. */
struct nbd_rig *rig_new(uint64_t disk_bytes, uint64_t journal_bytes);
int rig_setup(void **state);
int rig_teardown(void **state);

/* A client that also sends requests which make no sense. */
struct nbd_handle *rig_connect(const struct nbd_rig *rig);
/* Serves again, after rig_stop(), in the mode DISK_WAITING. */
void rig_serve(struct nbd_rig *rig, bool read_only);
void rig_stop(struct nbd_rig *rig);

/* A call of libnbd went well, or did not. */
void succeeds(int r);
void fails(int r, int expected_errno);
/* Everything that the clients have begun ends, and well. */
void rig_finish(struct nbd_rig *rig);

/* Cuts the open epoch; its records are forgotten with the next cut. */
const struct disk_log *rig_cut(struct nbd_rig *rig);
/* Cuts, and carries the records out on the copy, as a standby does. Returns how many there were. */
unsigned rig_replay(struct nbd_rig *rig, uint8_t *copy);
/* The image is like the copy (DISK_BYTES). */
void rig_compare(const struct nbd_rig *rig, const uint8_t *copy);

/* The same sequence everywhere; the seed is not 0. */
uint64_t random_below(uint64_t *seed, uint64_t n);
void fill_random(uint64_t *seed, uint8_t *bytes, size_t n);

#endif
