/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STANDBY_INTERNAL_H
#define US_STANDBY_INTERNAL_H

/* The standby's parts; private to src/standby.
 *   standby.c  the loop: events in, actions out, taking over, the end
 *   session.c  connections from the primary
 *   orders.c   what an operator asks and orders */

#include "core/standby.h"
#include "io/arbiter_client.h"
#include "io/channel.h"
#include "io/clock.h"
#include "standby/receiver.h"
#include "standby/standby.h"

struct standby_shell {
    sd_event *event;
    const struct host_config *config;
    const struct hyp_ops *hyp;
    char vm[VM_NAME_MAX];
    int (*preflight)(struct vm_spec *spec, const struct host_config *config, struct err *err);
    void (*on_takeover)(void *user, const struct takeover *takeover);
    void *user;

    bool serving; /* the offer was accepted: core, body, receiver and arbiter are there */
    struct standby core;
    struct body *body;
    struct stage_pool *pool;
    struct receiver *receiver;
    int receiver_notify; /* eventfd */
    sd_event_source *receiver_source;
    struct arbiter_client *arbiter;

    char primary[WIRE_NAME_BYTES];
    uint8_t session[WIRE_SESSION_BYTES];
    struct channel *control; /* NULL while the link is lost */
    bool control_failed;     /* handled when the loop comes round */
    uint64_t heartbeat_seq;
    sd_event_source *heartbeat, *timer, *post, *finish;

    struct takeover takeover;
    struct control_request *failover_request; /* answered when it is decided */
    uint64_t started_ns;
    char why_finished[256];
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
/* Closes control and data; bye 0 = says nothing. */
void session_drop(struct standby_shell *s, uint16_t bye);
int session_start_heartbeat(struct standby_shell *s) US_MUST_CHECK;

#endif
