/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISK_SERVER_INTERNAL_H
#define US_DISK_SERVER_INTERNAL_H

#include <pthread.h>
#include <sys/un.h>

#include "disk/nbd.h"
#include "disk/range.h"
#include "disk/server.h"
#include "io/log.h"

/* Theory of operation. The server's thread waits for sockets and for the helpers (server.c), owns
 * the connections and does all that is done to them (server_conn.c): it reads a request whole, has
 * it carried out, and sends the reply when it can. server_io.c carries out requests: reads of what
 * is cached and writes, which go to the page cache, at once; the rest (reads from the disk, syncs,
 * zeroes) is a job for one of the helper threads, which gives it back when it is done. So a slow
 * disk does not keep others waiting, and a write, which most requests are, changes no thread.
 *
 * A change of the disk: take the range, mark the map, change the image, append the record, drop the
 * range, reply. Whoever waits in there, for a range or for room in the journal, delays what comes
 * behind; that is how a guest is slowed down to the link's speed.
 *
 * A connection that breaks takes its requests with it: those not begun are forgotten, those that a
 * helper works on are waited for. So nothing of a connection changes the disk once its client
 * can have connected anew and have sent something newer.
 *
 * `lock` protects what is said below to be under it, and is held for moments only. Ranks: a
 * range, then the journal's lock or `lock`. */

enum { DISK_HELPERS = 4 };

struct connection;

struct request {
    struct request *next; /* in whatever list it is */
    struct connection *connection;
    struct nbd_request nbd;
    int error;     /* of the reply; a negative errno */
    size_t n_sent; /* bytes of the reply */
    uint8_t reply[NBD_REPLY_BYTES];
    uint8_t data[]; /* nbd.n_bytes of a READ, nbd.n_payload of a WRITE */
};

/* First in, first out. */
struct request_list {
    struct request *first, *last;
};

/* Something that the server's thread waits for. The first member of what it belongs to. */
struct watch {
    void (*ready)(struct watch *w, uint32_t events); /* EPOLLIN ... */
    int fd;
};

struct server_disk {
    struct watch listener;
    struct disk_server *server;
    uint8_t number;
    struct image *image;
    struct disk_map *map; /* or NULL */
    struct nbd_export export;
    char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct range_lock ranges;
    unsigned n_connections; /* server's thread */

    /* under lock */
    struct disk_flushes flushes;
    uint64_t n_changes; /* begins with 1: what was written before may not be on stable storage */
    uint64_t n_synced;  /* of the changes, this many are on stable storage */
    int sync_error;     /* a sync failed: no later one can be believed */
};

struct helper {
    struct disk_server *server;
    pthread_t thread;
    struct connection *busy_for; /* under lock; NULL: idle */
};

struct disk_server {
    struct journal *journal;
    int epoll_fd;
    struct watch wake; /* an eventfd: something under lock has changed */
    pthread_t thread;
    struct connection *connections; /* server's thread */
    struct log_limit breaks;        /* server's thread */

    pthread_mutex_t lock;
    pthread_cond_t work; /* for helpers: a job, or the end */
    pthread_cond_t idle; /* for connections that end: a helper is done */
    /* under lock */
    enum disk_mode mode;
    enum disk_phase phase;
    bool stop;
    struct request_list jobs, done;
    struct log_limit failures;

    struct helper helpers[DISK_HELPERS];
    unsigned n_helpers;
    uint32_t n_disks;
    struct server_disk disks[];
};

void request_list_add(struct request_list *list, struct request *q);
/* The first one, or NULL. */
struct request *request_list_take(struct request_list *list);

/* server.c */
/* Begins to watch a descriptor, until it is closed; changes what it is watched for. 0 or -errno. */
int server_watch(struct disk_server *s, struct watch *w, uint32_t events) US_MUST_CHECK;
int server_rewatch(struct disk_server *s, struct watch *w, uint32_t events) US_MUST_CHECK;
/* Has the server's thread look at what is under lock. */
void server_wake(struct disk_server *s);

/* server_conn.c; the server's thread */
struct server_disk *connection_disk(const struct connection *c);
/* A client that was accepted; takes sock in any case. */
void connection_new(struct server_disk *disk, int sock);
/* Sends what can be sent, reads on when there is room, and frees a connection that has ended. */
void connections_update(struct disk_server *s);
void connections_close(struct disk_server *s);
/* Tries again what was held. */
void connections_retry(struct disk_server *s);
/* The request was carried out: its reply goes out with the next update. */
void connection_reply(struct request *q, int error);
/* The request has to wait for another mode or phase. */
void connection_hold(struct request *q);

/* server_io.c */
/* Carries out a request, now or by a helper, or holds it. The server's thread. */
void request_begin(struct request *q);
/* Forgets the jobs of a connection; returns when no helper works for it any more. */
void jobs_cancel(struct disk_server *s, const struct connection *c);
void *helper_thread(void *helper);

#endif
