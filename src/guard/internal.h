/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_GUARD_INTERNAL_H
#define US_GUARD_INTERNAL_H

/* The guard's parts; see guard.h for which file holds what. Private to src/guard. */

#include "core/gate.h"
#include "core/primary.h"
#include "guard/copy_set.h"
#include "guard/estimate.h"
#include "guard/guard.h"
#include "guard/output.h"
#include "guard/pace.h"
#include "guard/resync.h"
#include "guard/sender.h"
#include "guard/stats.h"
#include "io/arbiter_client.h"
#include "io/channel.h"
#include "io/clock.h"
#include "io/control.h"
#include "io/dial.h"
#include "hyp/run_list.h"
#include "io/stage.h"

enum {
    IN_FLIGHT_MAX = CONTROLLER_IN_FLIGHT_MAX, /* epochs */
    SEEDS_IN_FLIGHT = 4,                      /* seeding epochs sent and not acknowledged */
    STOP_MS = 50,                             /* a VM that was told to stop normally has by then */
    CHECKPOINT_FAILURES_MAX = 3,              /* in a row, then the VM goes solo */
    AHEAD_PAGES = 2048,     /* dirty: worth more than one pass, each of which is a scan */
    AHEAD_STEP_PAGES = 512, /* of that pass at a time: about 0.15 ms */
};

/* Event source priorities: the smaller, the sooner. Timers come after descriptors, so that a
 * process that was stopped hears what came meanwhile before it judges silence. */
enum { PRIORITY_LINK = -10, PRIORITY_TIMER = 10, PRIORITY_SEED = 100 };

/* An epoch that was cut and is not acknowledged, with the pages that it carries: should the link
 * break, they go into the first epoch after it. */
struct in_flight {
    uint64_t epoch;
    struct run_list runs;
};

enum capture_phase {
    CAPTURE_IDLE = 0, /* the VM runs */
    CAPTURE_AHEAD,    /* the VM still runs; what is dirty is being copied */
    CAPTURE_STOPPING, /* checkpoint ordered */
    CAPTURE_FROZEN,   /* stopped and kept so: isolated, and the gate is full */
    CAPTURE_COPYING,  /* stopped; dirty pages on their way to the staging memory */
    CAPTURE_WAITING, /* all is copied; a flush is being looked into, or the VM is to stay stopped */
    CAPTURE_RESUMING, /* resume ordered */
};

/* What becomes of the epoch that is being copied. */
enum epoch_fate {
    EPOCH_IN_FLIGHT = 0,
    EPOCH_REBASED,   /* the link broke under it and resumed: its pages go into the next one */
    EPOCH_FORGOTTEN, /* the session is over */
};

/* A flush that was answered without a sync: may it have been the guest's (docs/disks.md, "Flush")?
 */
enum flush_check {
    FLUSH_CLEAR = 0, /* nothing to wait for */
    FLUSH_ASKING,    /* the hypervisor is asked for its guest's flushes */
    FLUSH_SYNCING,   /* it may: the images are being synced */
};

struct capture {
    enum capture_phase phase;
    enum flush_check flush;
    enum epoch_fate fate;
    bool much; /* is dirty: more than one pass pays */
    bool torn; /* the epoch must not be completed */
    struct parallel *parallel;
    struct copy_set set; /* the pages of the epoch that is being made */
    bool epoch_open;     /* an epoch was cut, to be closed when the VM runs */
    uint64_t epoch, term;
    bool estimated;                       /* the epoch is an estimate's */
    struct run_list carry;                /* pages of epochs that were lost with the link */
    struct in_flight ring[IN_FLIGHT_MAX]; /* oldest first */
    unsigned n_in_flight;
    uint64_t begun_ns, ordered_ns, stopped_ns, resumed_ns; /* of the present epoch */
    struct epoch_trace now; /* of the epoch that is being made, or the last one */
    uint64_t late_at_ns; /* STOPPING: when flushes wait no longer for the stop; CORE_NEVER = over */
    struct hyp_state state; /* of the epoch that is being cut */
    uint64_t retry_at_ns;   /* after a failed checkpoint */
    unsigned failures;      /* in a row */
    uint64_t dirty_pages;   /* at the last look */
    sd_event_source *ahead; /* the next piece of the first pass */
};

struct seed {
    bool active;
    unsigned round;         /* 0: all pages; later ones: what was written meanwhile */
    uint64_t next_page;     /* round 0 */
    uint64_t extent_end;    /* round 0: end of the present extent of the RAM file, in pages */
    struct run_list dirty;  /* later rounds: what to send */
    struct run_cursor next; /* ... and how far that is done */
    bool round_done;        /* all is copied, but not yet acknowledged */
    bool epoch_open;
    uint64_t epoch_pages;
    uint64_t last_epoch;
    uint64_t done_pages, total_pages; /* of round 0, for people */
    sd_event_source *source;
};

/* What the standby was told of the guest's addresses. */
struct told {
    uint64_t at_ns; /* 0: nothing on this link */
    struct wire_addresses addresses;
};

struct link {
    struct dial *dial; /* a connection that is being made, for the channel `dialed` */
    enum wire_channel dialed;
    struct channel *control;
    struct channel *data; /* until its hellos are done; then the sender has the transport */
    struct channel *next; /* relinking: the control channel that is to replace the present one */
    bool relinking;
    bool old_gone;              /* relinking: the present link has failed meanwhile */
    struct public_key peer_key; /* whom `control` was authenticated by */
    bool distrusted;            /* ... and that key was removed since */
    bool resume;
    bool up;
    bool poisoned; /* this session must not be resumed */
    bool failed;   /* link_broken() was called: handled when the loop comes round */
    uint8_t session[WIRE_SESSION_BYTES];
    struct wire_ready ready;
    uint64_t ready_epoch;
    uint64_t heartbeat_seq;
    struct told told;
    sd_event_source *deadline;  /* while connecting */
    sd_event_source *heartbeat; /* while up */
    char why[WIRE_TEXT_BYTES];  /* the last failure, for status */
};

struct guard {
    sd_event *event;
    const struct host_config *config;
    struct tls_context *tls;
    struct body *body;
    struct primary core;
    struct gate gate;
    struct pace pace;
    struct output *output;
    struct stage_pool *pool;
    struct sender *sender;
    int sender_notify; /* eventfd */
    sd_event_source *sender_source;
    struct arbiter_client *arbiter;
    struct capture capture;
    struct seed seed;
    struct estimate estimate;
    struct resync resync;
    struct link link;
    struct stats stats;
    sd_event_source *timer, *post;
    void (*on_started)(void *user, const char *refused);
    void *user;
    struct control_request *stop_request;   /* answered at the end */
    struct control_request *switch_request; /* answered when it is decided */
    sd_event_source *finish;                /* deferred end */
    struct takeover takeover;               /* epoch 0: this host started the VM itself */
    char why_ended[WIRE_TEXT_BYTES];
    bool crashed; /* the hypervisor died, by nobody's order */
};

/* guard.c */
void guard_event(struct guard *g, const struct primary_event *ev);
void guard_simple_event(struct guard *g, enum primary_event_type type);

/* capture.c */
extern const struct hyp_callbacks capture_callbacks;
/* The VM may be cut now: it has a standby to receive that, or an estimate is being made. */
bool capture_may_cut(const struct guard *g);
void capture_begin(struct guard *g);
/* When capture_continue() must be called at the latest. */
uint64_t capture_deadline(const struct guard *g);
/* Goes on where it waited for staging memory, or thaws a frozen VM when that has become possible.
 */
void capture_continue(struct guard *g);
/* The VM is not handed over after all: lets it run. */
void capture_release(struct guard *g);
void capture_committed(struct guard *g, uint64_t epoch);
/* The link resumed: what is unacknowledged goes into the next epoch. */
void capture_rebase(struct guard *g);
/* The link is gone for good: nothing is in flight any more. */
void capture_forget(struct guard *g);
/* When the body, the staging memory and the loop are there. 0 or -errno. */
int capture_setup(struct guard *g) US_MUST_CHECK;
void capture_free(struct guard *g);

/* seed.c */
void seed_begin(struct guard *g);
/* Dirty tracking begins, with all pages clean. */
int seed_track(struct guard *g, struct err *err) US_MUST_CHECK;
void seed_stop(struct guard *g);
/* Goes on after staging memory or acknowledgements came. */
void seed_continue(struct guard *g);
/* Another seeding epoch may be in flight. */
bool seed_may_cut(const struct guard *g);
/* Numbers a seeding epoch and begins to send it, with what the disks' journal has. */
void seed_begin_epoch(struct guard *g);

/* resync.c */
/* Opens what a VM with disks needs. */
int resync_setup(struct guard *g, struct err *err) US_MUST_CHECK;
void resync_free(struct guard *g);
/* A new session is being made: forgets what an earlier standby told. */
void resync_connect(struct guard *g);
/* Seeding begins: brings the standby's copies up to date, beginning with what link.ready says of
 * them. */
void resync_begin(struct guard *g);
/* One step. True when all copies are equal and verified, and memory may follow. */
bool resync_step(struct guard *g);
/* An epoch is cut: returns its records for the sender, or NULL. */
const struct disk_log *resync_cut(struct guard *g, uint64_t epoch, uint64_t term);
/* The standby has the epochs up to this one; ... on stable storage. */
void resync_committed(struct guard *g, uint64_t epoch);
void resync_durable(struct guard *g, uint64_t epoch);
void resync_ranges(struct guard *g, const struct wire_disk_ranges *ranges);
void resync_rebase(struct guard *g);
/* The session is over for good, and the sender has let go of the link. */
void resync_end(struct guard *g);
/* The journal wants a cut. talking: the guest has sent frames lately, which wait for every epoch in
 * front of theirs; otherwise larger epochs disturb it less often. */
bool resync_presses(struct guard *g, bool talking);
json_t *resync_status(struct guard *g);
void resync_request_verify(struct guard *g, struct control_request *req);

/* link.c */
void link_connect(struct guard *g, bool resume);
void link_drop(struct guard *g, uint16_t bye);
/* Says bye, if there is somebody to say it to, and keeps the link. */
void link_say_bye(struct guard *g, uint16_t bye);
/* Sends a heartbeat if one is due: to be called in the midst of what keeps the loop for longer than
 * some milliseconds. It says, as any other, that the loop gets on. */
void link_beat(struct guard *g);
/* Peers, or this host's own key (own), have changed: what rests on a key that does not count any
 * more is made anew. */
void link_keys_changed(struct guard *g, bool own);
/* Reports the link broken from anywhere: acted upon when the loop comes round. */
void link_broken(struct guard *g, const char *why);

/* addresses.c */
/* Tells the standby the guest's addresses if there is something to tell. The link is up. */
void addresses_tell(struct guard *g);

/* estimate.c */
void estimate_request(struct guard *g, struct control_request *req);
/* The VM is to be protected now, or is gone: ends what is being made. `why`: for people. */
void estimate_end(struct guard *g, const char *why);
/* While one is being made: numbers an epoch; frames have left that an epoch should cover; an epoch
 * was closed; was written. */
uint64_t estimate_cut(struct guard *g);
bool estimate_frames_wait(struct guard *g);
void estimate_epoch(struct guard *g, const struct epoch_trace *trace);
void estimate_sent(struct guard *g, uint64_t epoch);
/* For status; NULL: none was made. */
json_t *estimate_json(struct guard *g);
void estimate_free(struct guard *g);

/* figures.c */
/* What is measured, for status. */
json_t *figures_json(struct guard *g);
/* What the controller goes by. */
json_t *figures_pace(const struct guard *g);
/* The last epochs, oldest first: {"epochs": [...]}. */
json_t *figures_trace(const struct guard *g);

/* status.c */
json_t *status_json(struct guard *g);
/* Tells who ordered a switchover that it came to nothing. */
void status_answer_switchover(struct guard *g);
void status_write_ended(const struct guard *g, const char *reason);

#endif
