/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_HYP_QEMU_VM_H
#define US_HYP_QEMU_VM_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "hyp/hyp.h"
#include "hyp/qemu/dirty.h"
#include "hyp/qemu/qmp.h"

/* A VM under QEMU: private to the driver.
 *
 * What is under way is one enum, set by vm_set_phase() alone. Handlers of QMP replies, QMP events
 * and descriptors only change the VM; what the caller has to learn is left as one outcome (or the
 * end of QEMU) that a deferred event source delivers as the last thing it does. So callbacks never
 * run inside an operation, and may do anything, vm_close() included.
 *
 * phase       entered from            what is awaited                       leaves to
 * IDLE        launch, attach, any op.   nothing; every operation is allowed   any but ROLLBACK
 * CHECKPOINT  checkpoint()            state saved, or MIGRATION completed   IDLE, ROLLBACK, LOST
 * ROLLBACK    a failed checkpoint     QEMU to end it, and the VM to run     IDLE, LOST
 * FLUSHES     guest_flushes()         the reply to query-blockstats         IDLE, LOST
 * RESUME      resume()                the reply to cont                     IDLE, LOST
 * RESTORE     restore()               MIGRATION completed, vCPUs running    IDLE, LOST
 * LOST        QEMU did not answer     kill(), or QEMU's end                 DYING, GONE
 * DYING       kill(), broken QMP      QEMU's end                            GONE
 * GONE        QEMU's end              close()                               -
 *
 * Every phase but GONE leaves to DYING and GONE too. */
enum vm_phase {
    VM_IDLE,
    VM_CHECKPOINT,
    VM_ROLLBACK,
    VM_FLUSHES,
    VM_RESUME,
    VM_RESTORE,
    VM_LOST,
    VM_DYING,
    VM_GONE,
    VM_N_PHASES,
};

/* What the deferred source has to tell the caller. */
enum vm_outcome {
    VM_OUTCOME_NONE,
    VM_OUTCOME_CHECKPOINT,
    VM_OUTCOME_FLUSHES,
    VM_OUTCOME_RUNNING,
    VM_OUTCOME_FAILURE,
};

/* How QEMU's side of the running migration stands. */
enum vm_migration {
    VM_MIGRATION_NONE,
    VM_MIGRATION_ACTIVE,
    VM_MIGRATION_COMPLETED,
    VM_MIGRATION_FAILED, /* or cancelled: QEMU has given up */
};

enum {
    VM_LAUNCH_TIMEOUT_MS = 10000,
    VM_ATTACH_TIMEOUT_MS = 10000,
    /* With disks: QEMU may have to connect to them first, which it tries every 16 s at worst. */
    VM_ATTACH_DISKS_TIMEOUT_MS = 30000,
    VM_CHECKPOINT_TIMEOUT_MS = 10000,
    /* With disks, whose requests QEMU lets end first: longer than what a sick disk of the host
     * takes until it gives an error. */
    VM_CHECKPOINT_DISKS_TIMEOUT_MS = 300000,
    VM_ANSWER_TIMEOUT_MS = 3000, /* for cont, a roll-back, a restore */
    VM_EXIT_TIMEOUT_MS = 5000,
    VM_EOF_GRACE_MS = 2000, /* from QEMU's closing QMP to its end */
    VM_LATE_MS = 100,       /* a time-out that comes later than this does not count */
    VM_CONT_TRIES = 200,    /* a migration that is just ending may refuse cont for a moment */
};

#define VM_STATE_MAX_BYTES (UINT64_C(256) << 20)

/* Our end of the descriptor that the next checkpoint's device state comes through, and the bytes.
 * It is made, and its other end given to QEMU, before the checkpoint ("armed"). */
struct vm_stream {
    int fd; /* -1: not armed */
    sd_event_source *source;
    uint8_t *bytes;
    size_t n_bytes;
    size_t cap;
    size_t max_bytes;
    bool ended;
    const char *unfit; /* why it makes no checkpoint; NULL: it is fit so far */
};

enum { VM_SAVE_TABLES_BYTES = 20 };

/* The shorter way to the device state: save.c. */
struct vm_save {
    int fd;                               /* the file that QEMU writes; -1: the way is closed */
    int writer;                           /* the same, as QEMU has it */
    uint8_t *bytes;                       /* the base, then the devices */
    char arguments[80];                   /* of the order to write */
    size_t n_base;                        /* bytes before the devices; 0: not learnt */
    uint8_t tables[VM_SAVE_TABLES_BYTES]; /* the section "acpi_build" from its name on */
    size_t tables_at;                     /* where that is, from the end; 0: it has none */
    bool stopping;                        /* ordered, and the order to write waits for the vCPUs */
    unsigned int stops_due;               /* replies */
    bool learnable;                       /* from the migration that is under way */
    unsigned int learn_tries;             /* in vain */
};

/* What is known of the guest's flushes since the VM stands still. */
enum vm_flushes {
    VM_FLUSHES_UNASKED,
    VM_FLUSHES_ASKED,
    VM_FLUSHES_ANSWERED,
};

/* The device state on its way into an incoming VM. */
struct vm_feed {
    int fd;
    sd_event_source *source;
    uint8_t *bytes;
    size_t n_bytes;
    size_t n_sent;
};

struct hyp_vm {
    sd_event *event;
    const struct hyp_callbacks *callbacks;
    void *user;

    char machine[64];
    uint64_t ram_bytes;
    char *ram_path;
    char *log_path;
    char *qmp_path, *stop_path;
    char *pid_path;
    char hyp_paths[VM_NICS_MAX][sizeof(((struct hyp_nic_paths *)0)->hyp_path)];
    size_t n_nics;
    uint32_t n_disks;

    pid_t pid;
    int pidfd;    /* -1: no process */
    bool adopted; /* not our child: its exit status is not ours to know */
    struct qmp *qmp;
    struct qmp *stopper; /* takes the order to stop alone; NULL: this QEMU has none (save.c) */
    struct dirty *dirty; /* NULL: not tracked */
    sd_event_source *exit_source;
    sd_event_source *timer_source;
    sd_event_source *report_source;

    unsigned int checkpoint_timeout_ms; /* changed by tests only */
    unsigned int answer_timeout_ms;
    unsigned int timer_ms; /* what the timer was last set to */
    enum vm_phase phase;
    bool incoming; /* and not restored yet */
    bool running;  /* by QEMU's STOP and RESUME */

    /* CHECKPOINT, ROLLBACK, RESTORE */
    enum vm_migration migration;
    bool was_running;
    bool stopped_due; /* on_stopped has to be called */
    bool arm_due;     /* the next checkpoint has to be prepared */
    uint64_t order_ns;
    struct hyp_timing timing;
    struct vm_stream stream;
    struct vm_save save;
    struct vm_feed feed;
    const uint8_t *state; /* of the last checkpoint, in one of those */
    size_t n_state_bytes;
    unsigned int cont_tries;

    enum vm_outcome outcome;
    enum vm_flushes guest_flushes;
    bool flushes_known;
    uint64_t flushes[VM_DISKS_MAX];
    bool failure_running;
    char failure[512];

    enum hyp_exit exit_how;
    char exit_detail[512];
    bool exit_reported;
};

/* driver.c */
void vm_set_phase(struct hyp_vm *vm, enum vm_phase phase, const char *because);
/* Wakes the phase's time-out handling `ms` from now. */
void vm_set_timer(struct hyp_vm *vm, unsigned int ms);
/* The vCPUs of a VM that is being checkpointed stand still: the caller is told. */
void vm_stopped(struct hyp_vm *vm);
/* Ends the operation, to `phase` (IDLE or LOST), and the caller learns the outcome. */
void vm_end(struct hyp_vm *vm, enum vm_phase phase, enum vm_outcome outcome, const char *because);
/* The same with a failure. */
void vm_fail(struct hyp_vm *vm, enum vm_phase phase, const char *why);
/* Refuses an operation that the phase does not allow. */
int vm_check_idle(const struct hyp_vm *vm, struct err *err) US_MUST_CHECK;
/* Kills QEMU; on_exit will say `how` and `detail`. */
void vm_kill_because(struct hyp_vm *vm, enum hyp_exit how, const char *detail);
void vm_close(struct hyp_vm *vm);
/* As vm_close(), but leaves the process and its files as they are. */
void vm_let_go(struct hyp_vm *vm);
extern const struct qmp_callbacks vm_qmp_callbacks, vm_stop_callbacks;

/* launch.c */
int vm_launch(const struct hyp_launch *launch, struct hyp_vm **ret_vm,
              struct err *err) US_MUST_CHECK;
/* Makes the VM, without a process. */
int vm_new(const struct hyp_launch *launch, struct hyp_vm **ret_vm, struct err *err) US_MUST_CHECK;
/* Sets once what every checkpoint and restore relies on. */
int vm_prepare(struct hyp_vm *vm, const struct qmp_wait *wait, struct err *err) US_MUST_CHECK;
/* Adds the VM's event sources to the loop; driver.c. */
int vm_join_loop(struct hyp_vm *vm) US_MUST_CHECK;
/* Puts the last line of QEMU's log, cleaned of control characters, into ret_line ("" = none). */
void vm_last_words(const char *log_path, char *ret_line, size_t n);

/* attach.c */
int vm_attach(const struct hyp_launch *launch, pid_t pid, struct hyp_vm **ret_vm, bool *ret_running,
              struct err *err) US_MUST_CHECK;

/* checkpoint.c */
int vm_checkpoint(struct hyp_vm *vm, struct err *err) US_MUST_CHECK;
int vm_resume(struct hyp_vm *vm, struct err *err) US_MUST_CHECK;
/* Prepares the order for the next checkpoint; does nothing if that was done. */
int vm_arm(struct hyp_vm *vm) US_MUST_CHECK;
/* Sends cont; on its success the phase's work is done. */
void vm_cont(struct hyp_vm *vm);
/* The vCPUs run, as resume() or restore() wanted: done. Prepares the next checkpoint. */
void vm_now_running(struct hyp_vm *vm);
/* Makes the checkpoint that is under way a migration. */
void vm_migrate(struct hyp_vm *vm);
/* It is complete; the bytes stay until the next one. */
void vm_checkpoint_end(struct hyp_vm *vm, const uint8_t *bytes, size_t n_bytes);
/* It has failed: the VM continues if it ran before, and the caller learns of it. */
void vm_checkpoint_fail(struct hyp_vm *vm, const char *why);
void vm_checkpoint_event(struct hyp_vm *vm); /* migration or running have changed */
void vm_checkpoint_timeout(struct hyp_vm *vm);
void vm_stream_done(struct vm_stream *stream);

/* save.c */
void vm_save_init(struct vm_save *save);
void vm_save_done(struct vm_save *save);
/* Finds out whether the shorter way may be had, and prepares it. Blocks. */
void vm_save_prepare(struct hyp_vm *vm, const struct qmp_wait *wait);
/* The next checkpoint can go that way. */
bool vm_save_ready(const struct hyp_vm *vm);
/* Types the orders ahead. */
void vm_save_arm(struct hyp_vm *vm);
/* Orders it. */
int vm_save(struct hyp_vm *vm) US_MUST_CHECK;
/* The vCPUs stand still. */
void vm_save_stopped(struct hyp_vm *vm);
/* What was learnt does not hold any more. */
void vm_save_forget(struct hyp_vm *vm);
/* A migration is complete: learns from it, and ends the checkpoint then. False: nothing to learn.
 */
bool vm_save_learn(struct hyp_vm *vm);

/* flushes.c */
/* Asks ahead for what vm_guest_flushes() is to tell. */
void vm_ask_flushes(struct hyp_vm *vm);
int vm_guest_flushes(struct hyp_vm *vm, struct err *err) US_MUST_CHECK;
void vm_guest_flushes_timeout(struct hyp_vm *vm);

/* restore.c */
int vm_prepare_restore(struct hyp_vm *vm, const struct qmp_wait *wait,
                       struct err *err) US_MUST_CHECK;
int vm_restore(struct hyp_vm *vm, const struct hyp_state *state, struct err *err) US_MUST_CHECK;
void vm_restore_event(struct hyp_vm *vm); /* migration or running have changed */
void vm_feed_done(struct vm_feed *feed);

/* track.c */
int vm_track(struct hyp_vm *vm, struct err *err) US_MUST_CHECK;
int vm_dirty_take(struct hyp_vm *vm, struct run_list *list) US_MUST_CHECK;
int vm_dirty_count(struct hyp_vm *vm, uint64_t limit, uint64_t *ret_pages) US_MUST_CHECK;
void vm_dirty_settle(struct hyp_vm *vm);

/* preflight.c */
int vm_preflight(struct vm_spec *spec, const char *emulator, struct err *err) US_MUST_CHECK;

#endif
