/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STANDBY_INTERNAL_H
#define US_STANDBY_INTERNAL_H

/* The standby's parts; private to src/standby.
 *   standby.c  the loop: events in, actions out, taking over, the end
 *   session.c  connections from the primary
 *   disks.c    the copies of the VM's disks
 *   orders.c   what an operator asks and orders */

#include "core/standby.h"
#include "io/arbiter_client.h"
#include "io/channel.h"
#include "io/clock.h"
#include "io/frame_queue.h"
#include "standby/receiver.h"
#include "standby/standby.h"

struct standby_shell {
    sd_event *event;
    const struct host_config *config;
    struct tls_context *tls;
    const struct hyp_ops *hyp;
    char vm[VM_NAME_MAX];
    int (*preflight)(struct vm_spec *spec, const struct host_config *config, struct err *err);
    void (*on_won)(void *user, struct vm_spec *spec, const char *primary);
    void (*on_takeover)(void *user, const struct takeover *takeover);
    int (*on_complete)(void *user, const struct vm_spec *spec, const char *primary,
                       struct err *err);
    void *user;

    bool serving; /* the offer was accepted: core, body, receiver and arbiter are there */
    struct standby core;
    struct body *body;
    struct stage_pool *pool;
    struct receiver *receiver;
    int receiver_notify; /* eventfd */
    sd_event_source *receiver_source;
    struct applier *applier; /* NULL: no disks */
    sd_event_source *disks_source;
    struct arbiter_client *arbiter;

    char primary[WIRE_NAME_BYTES];
    uint8_t session[WIRE_SESSION_BYTES];
    struct channel *control;  /* NULL while the link is lost */
    bool control_failed;      /* handled when the loop comes round */
    struct frame_queue *late; /* frames that the primary got for a VM that it has handed over */
    uint64_t heartbeat_seq;
    sd_event_source *heartbeat, *timer, *post, *finish;

    struct takeover takeover;
    struct control_request *failover_request; /* answered when it is decided */
    uint64_t started_ns;
    char why_finished[256];
    bool vm_lost;
};

/* standby.c */
void standby_event(struct standby_shell *s, const struct standby_event *ev);
void standby_simple_event(struct standby_shell *s, enum standby_event_type type);
/* The primary offers the VM: open everything. 0 or -errno with what to refuse it with. */
int standby_serve(struct standby_shell *s, const char *json, size_t n_json,
                  struct err *err) US_MUST_CHECK;
/* Takes notice of epochs that have become whole, and of a broken data channel. */
void standby_look_at_receiver(struct standby_shell *s);
/* Ends the process from the loop. */
void standby_finish(struct standby_shell *s, const char *why);

/* session.c */
/* Takes a connection from the peer listener; its hello has not been read. */
int session_adopt(struct standby_shell *s, int fd, struct err *err) US_MUST_CHECK;
void session_send_ack(struct standby_shell *s, uint64_t epoch, uint64_t term);
/* Tells the primary why this host does not, or no longer, back the VM. */
void session_refuse(struct standby_shell *s, const char *why);
/* Gives the guest, which runs here now, what the primary got for it meanwhile. */
void session_deliver_late(struct standby_shell *s);
/* Peers have changed: a link whose key does not count any more ends. */
void session_keys_changed(struct standby_shell *s);
/* Closes control and data; bye 0 = says nothing. */
void session_drop(struct standby_shell *s, uint16_t bye);
int session_start_heartbeat(struct standby_shell *s) US_MUST_CHECK;

/* disks.c */
/* Opens what the VM's disks need; *ret_disks is for the receiver. */
int standby_disks_open(struct standby_shell *s, struct receiver_disks *ret_disks,
                       struct err *err) US_MUST_CHECK;
/* Says what is here of the disks: fills in ready, after sending what may differ. */
void standby_disks_describe(struct standby_shell *s, struct wire_ready *ready);
/* Newest epoch that survives a loss of power here; 0 = none. */
uint64_t standby_disks_durable(const struct standby_shell *s);

#endif
