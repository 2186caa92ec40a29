/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/sender.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "guard/encoding.h"
#include "io/clock.h"
#include "io/lock.h"
#include "io/thread.h"

/* Theory of operation. The guard's main thread appends to a ring of jobs, one job per epoch; the
 * sender's thread takes the front job apart in steps: begin, each chunk, disk records, state, end,
 * each of which becomes messages at the end of the output buffer. The buffer is written when it is
 * well filled, when there is nothing else to do, and at the end of an epoch; so a small epoch is
 * one write, and a large one is on its way while the guard still copies pages.
 *
 * The lock protects everything up to "thread only". A job's state buffer is the guard's until
 * state_ready, then the thread's until the job leaves the ring. `busy` says that the thread is in
 * a step, outside the lock, and uses the transport, the front job and the output buffer; detach
 * waits for its end. The pool's lock ranks below this one. */

enum {
    FLUSH_BYTES = 256 * 1024, /* written when the buffer holds so much */
    OUT_BYTES = FLUSH_BYTES + WIRE_HEADER_BYTES + WIRE_PAYLOAD_MAX,
    RAW_STREAK_MAX = 32,
};

static_assert((int)STAGE_CHUNK_PAGES <= (int)WIRE_PAGES_PER_MSG, "a chunk fits one message");
static_assert((int)WIRE_STATE_PER_MSG <= (int)PAGE_BODY_BYTES, "and so does a piece of state");
static_assert((int)WIRE_DISK_PIECE_BYTES <= (int)PAGE_BODY_BYTES, "and so do disk records");
static_assert((int)DISK_DATA_MAX <= (int)WIRE_DISK_PIECE_BYTES, "a record is one piece");

struct job {
    uint64_t epoch, pair_term;
    struct stage_chunk *chunks; /* oldest first */
    struct stage_chunk **chunks_end;
    const struct disk_log *disk; /* borrowed; NULL = none */
    struct disk_cursor disk_at;
    bool disk_done;
    char format[WIRE_FORMAT_BYTES];
    uint8_t *state;
    uint64_t n_state, state_room; /* bytes used and allocated */
    bool state_ready, ended;      /* set by feeding, in this order */
    bool begun, state_taken;      /* set by the thread when it starts on them */
};

enum step_kind { STEP_NONE, STEP_BEGIN, STEP_CHUNK, STEP_DISK, STEP_STATE, STEP_END, STEP_FLUSH };

struct step {
    enum step_kind kind;
    struct job *job;
    struct stage_chunk *chunk; /* STEP_CHUNK */
};

/* What a step has cost and yielded. */
struct yield {
    uint64_t wire_bytes, encode_ns, write_ns;
    uint64_t pages[WIRE_PAGE_KINDS], page_wire_bytes, state_wire_bytes;
};

struct sender {
    struct stage_pool *pool;
    int notify_fd;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;         /* for the thread: there may be something to do */
    pthread_cond_t idle;         /* for detach: busy has ended */
    struct transport *transport; /* NULL = detached */
    bool active;                 /* there is a transport, without an error, not being detached */
    bool busy, stop;
    struct job *jobs; /* ring of max_jobs */
    unsigned max_jobs, first_job, n_jobs;
    bool feeding; /* the newest job is not ended, and takes chunks and state */
    struct sender_report report;

    /* thread only (and attach, which finds the thread idle) */
    uint8_t *out;
    size_t n_out;
    struct encoding encoding;
    uint64_t n_pages, n_disk_pieces; /* of the epoch in work */
    unsigned raw_streak, raw_left; /* disk writes that did not compress in a row; not to be tried */
    struct wire_msg msg;
};

static struct job *job_at(struct sender *s, unsigned i)
{
    return &s->jobs[(s->first_job + i) % s->max_jobs];
}

/* Gives up what is queued. Under the lock. */
static void drop_jobs(struct sender *s)
{
    for (unsigned i = 0; i < s->n_jobs; i++)
        stage_pool_put(s->pool, job_at(s, i)->chunks);
    s->n_jobs = 0;
    s->feeding = false;
}

/* The thread's half: steps outside the lock. */

static int flush(struct sender *s, struct yield *yield)
{
    struct iovec iov = {.iov_base = s->out, .iov_len = s->n_out};
    uint64_t start = clock_now_ns();
    int rc = fault_error("guard.send") ?: transport_write_all(s->transport, &iov, 1);

    start = clock_now_ns() - start;
    yield->write_ns += start;
    effort_written(&s->encoding.effort, s->n_out, start);
    if (rc == 0)
        yield->wire_bytes += s->n_out;
    s->n_out = 0;
    return rc;
}

/* Puts s->msg into the output buffer. */
static int put_msg(struct sender *s, uint16_t type, uint64_t epoch, struct yield *yield)
{
    int64_t n;

    s->msg.type = type;
    s->msg.epoch = epoch;
    n = wire_msg_encode(&s->msg, s->out + s->n_out, OUT_BYTES - s->n_out);
    if (n < 0)
        return (int)n;
    s->n_out += (size_t)n;
    return s->n_out >= FLUSH_BYTES ? flush(s, yield) : 0;
}

static int put_begin(struct sender *s, const struct job *job, struct yield *yield)
{
    encoding_begin(&s->encoding, job->epoch, job->pair_term == 0);
    s->n_pages = s->n_disk_pieces = 0;
    fault_point("guard.send-begin");
    s->msg.u.epoch_begin = (struct wire_epoch_begin){
        .pair_term = job->pair_term,
        .flushed = job->disk && job->disk->flushed,
    };
    return put_msg(s, WIRE_EPOCH_BEGIN, job->epoch, yield);
}

/* The guard's loop, which must not be kept, has left it to us. */
static void copy_pages(struct stage_chunk *chunk)
{
    for (uint32_t i = 0; i < chunk->n_pages; i++)
        memcpy(chunk->bytes + (size_t)i * STAGE_PAGE_BYTES,
               chunk->ram + chunk->number[i] * STAGE_PAGE_BYTES, STAGE_PAGE_BYTES);
}

static int put_chunk(struct sender *s, const struct job *job, struct stage_chunk *chunk,
                     struct yield *yield)
{
    struct wire_pages *pages = &s->msg.u.pages;
    uint64_t start;

    if (chunk->n_pages == 0)
        return 0;
    if (chunk->ram)
        copy_pages(chunk);
    start = clock_now_ns();
    encoding_pages(&s->encoding, chunk, pages, yield->pages);
    yield->encode_ns += clock_now_ns() - start;
    yield->page_wire_bytes += pages->n_bytes;
    s->n_pages += chunk->n_pages;
    return put_msg(s, WIRE_PAGES, job->epoch, yield);
}

/* Trying to compress what does not compress costs more than all the rest; data of a kind comes
 * together. So after each failure the next ones are not tried, ever more of them. */
static void encode_piece(struct sender *s, const struct disk_record *rec, const uint8_t *data,
                         uint8_t *out, struct wire_disk_piece *piece)
{
    if (rec->kind == DISK_WRITE && s->raw_left) {
        s->raw_left--;
    } else if (rec->kind == DISK_WRITE) {
        disk_piece_encode(s->encoding.packer, data, rec->n_data, out, piece);
        s->raw_streak = piece->encoding == WIRE_ENC_RAW ? s->raw_streak + 1 : 0;
        s->raw_left = s->raw_streak < RAW_STREAK_MAX ? s->raw_streak : RAW_STREAK_MAX;
        return;
    }
    piece->encoding = rec->n_data ? WIRE_ENC_RAW : WIRE_ENC_ZERO;
    piece->bytes = data;
    piece->n_bytes = rec->n_data;
}

/* One message's worth of the disks' records. */
static int put_disk(struct sender *s, struct job *job, struct yield *yield)
{
    struct wire_disk *disk = &s->msg.u.disk;
    struct disk_record rec;
    const uint8_t *data;
    size_t used = 0;

    for (disk->n = 0; disk->n < WIRE_DISK_PIECES_PER_MSG;) {
        struct wire_disk_piece *piece = &disk->piece[disk->n];
        struct disk_cursor at = job->disk_at;

        if (!disk_log_next(job->disk, &at, &rec, &data)) {
            job->disk_done = true;
            break;
        }
        if (used + rec.n_data > WIRE_DISK_PIECE_BYTES)
            break;
        *piece = (struct wire_disk_piece){
            .disk = rec.disk,
            .kind = rec.kind,
            .flags = rec.flags,
            .offset = rec.offset,
            .n_range = rec.n_bytes,
        };
        encode_piece(s, &rec, data, s->encoding.scratch + used, piece);
        epoch_digest_disk(s->encoding.digest, piece, data, rec.n_data);
        used += rec.n_data;
        job->disk_at = at;
        disk->n++;
    }
    s->n_disk_pieces += disk->n;
    fault_point("guard.send-disk");
    return disk->n ? put_msg(s, WIRE_DISK, job->epoch, yield) : 0;
}

static int put_state(struct sender *s, const struct job *job, struct yield *yield)
{
    struct wire_state *piece = &s->msg.u.state;
    uint64_t start = clock_now_ns();
    int rc = 0;

    fault_point("guard.send-state");
    epoch_digest_state(s->encoding.digest, job->state, job->n_state);
    for (uint64_t at = 0; at < job->n_state && rc == 0; at += piece->n_raw) {
        encoding_state(&s->encoding, job->format, job->state, job->n_state, at, piece);
        yield->state_wire_bytes += piece->n_bytes;
        yield->encode_ns += clock_now_ns() - start;
        rc = put_msg(s, WIRE_STATE, job->epoch, yield);
        start = clock_now_ns();
    }
    return rc;
}

static int put_end(struct sender *s, const struct job *job, struct yield *yield)
{
    struct wire_epoch_end *end = &s->msg.u.epoch_end;
    int rc;

    *end = (struct wire_epoch_end){.n_pages = s->n_pages,
                                   .n_disk_pieces = s->n_disk_pieces,
                                   .n_state_bytes = job->state_ready ? job->n_state : 0};
    epoch_digest_get(s->encoding.digest, end->digest);
    fault_point("guard.send-end");
    rc = put_msg(s, WIRE_EPOCH_END, job->epoch, yield);
    return rc == 0 && s->n_out ? flush(s, yield) : rc;
}

static int do_step(struct sender *s, const struct step *step, struct yield *yield)
{
    switch (step->kind) {
    case STEP_BEGIN:
        return put_begin(s, step->job, yield);
    case STEP_CHUNK:
        fault_point("guard.sending");
        return put_chunk(s, step->job, step->chunk, yield);
    case STEP_DISK:
        return put_disk(s, step->job, yield);
    case STEP_STATE:
        return put_state(s, step->job, yield);
    case STEP_END:
        return put_end(s, step->job, yield);
    case STEP_FLUSH:
        return flush(s, yield);
    case STEP_NONE:
        break;
    }
    return 0;
}

/* The thread's half: between steps, under the lock. */

static struct step next_step(struct sender *s)
{
    struct step step = {.job = s->n_jobs ? job_at(s, 0) : NULL};
    struct job *job = step.job;

    if (!s->active)
        return step;
    if (job && !job->begun) {
        job->begun = true;
        step.kind = STEP_BEGIN;
    } else if (job && job->chunks) {
        step.kind = STEP_CHUNK;
        step.chunk = job->chunks;
        job->chunks = step.chunk->next;
        if (!job->chunks)
            job->chunks_end = &job->chunks;
        step.chunk->next = NULL;
    } else if (job && !job->disk_done && (job->state_ready || job->ended)) {
        step.kind = STEP_DISK; /* no chunk will come any more */
    } else if (job && job->state_ready && !job->state_taken) {
        job->state_taken = true;
        step.kind = STEP_STATE;
    } else if (job && job->ended) {
        step.kind = STEP_END;
        s->report.encoded_epoch = job->epoch;
        effort_epoch(&s->encoding.effort, s->n_jobs > 1 && job_at(s, 1)->ended);
    } else if (s->n_out) {
        step.kind = STEP_FLUSH;
    }
    return step;
}

static void report_yield(struct sender_report *report, const struct yield *yield)
{
    report->wire_bytes += yield->wire_bytes;
    report->page_wire_bytes += yield->page_wire_bytes;
    report->state_wire_bytes += yield->state_wire_bytes;
    report->encode_ns += yield->encode_ns;
    report->write_ns += yield->write_ns;
    for (int i = 0; i < WIRE_PAGE_KINDS; i++)
        report->pages[i] += yield->pages[i];
}

/* The epoch was sent: its device state is what the next one's is told against, and the memory of
 * the one before is the job's. */
static void keep_state(struct sender *s, struct job *job)
{
    struct sent_state state = {
        .bytes = job->state, .n = job->state_ready ? job->n_state : 0, .room = job->state_room};

    memcpy(state.format, job->format, sizeof(state.format));
    encoding_sent(&s->encoding, &state);
    job->state = state.bytes;
    job->state_room = state.room;
}

/* Returns true when there is news for the main thread: an error, an epoch that was sent, or staging
 * memory that it may wait for. */
static bool finish_step(struct sender *s, const struct step *step, int rc,
                        const struct yield *yield)
{
    bool news = rc != 0 || step->kind == STEP_END;

    report_yield(&s->report, yield);
    s->report.level = s->encoding.effort.level;
    if (step->kind == STEP_CHUNK) {
        s->report.page_bytes += (uint64_t)step->chunk->n_pages * STAGE_PAGE_BYTES;
        s->report.raw_bytes += (uint64_t)step->chunk->n_pages * STAGE_PAGE_BYTES;
        news |= stage_pool_put(s->pool, step->chunk);
    } else if (step->kind == STEP_STATE) {
        s->report.state_bytes += step->job->n_state;
        s->report.raw_bytes += step->job->n_state;
    } else if (step->kind == STEP_END && rc == 0) {
        s->report.sent_epoch = step->job->epoch;
        fault_point("guard.sent");
        keep_state(s, step->job);
        s->first_job = (s->first_job + 1) % s->max_jobs;
        s->n_jobs--;
    }
    if (rc && s->active) { /* else detach has caused it */
        s->active = false;
        s->report.error = rc;
        drop_jobs(s);
    }
    return news;
}

/* Lets go of the lock: the main thread, which preempts this one, would only run into it. */
static void notify(struct sender *s)
{
    uint64_t one = 1;

    pthread_mutex_unlock(&s->lock);
    (void)!write(s->notify_fd, &one, sizeof(one)); /* a full eventfd is readable as well */
    pthread_mutex_lock(&s->lock);
}

static void *sender_thread(void *arg)
{
    struct sender *s = arg;

    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        struct step step = next_step(s);
        struct yield yield = {0};
        bool news;
        int rc;

        if (step.kind == STEP_NONE) {
            pthread_cond_wait(&s->wake, &s->lock);
            continue;
        }
        s->busy = true;
        pthread_mutex_unlock(&s->lock);
        rc = do_step(s, &step, &yield);
        pthread_mutex_lock(&s->lock);
        s->busy = false;
        news = finish_step(s, &step, rc, &yield);
        pthread_cond_signal(&s->idle);
        if (news)
            notify(s);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* The main thread's half. */

int sender_begin(struct sender *s, uint64_t epoch, uint64_t pair_term, const struct disk_log *disk)
{
    int rc = 0;

    pthread_mutex_lock(&s->lock);
    if (s->active && s->n_jobs == s->max_jobs) {
        rc = -EBUSY;
    } else if (s->active) {
        struct job *job = job_at(s, s->n_jobs++);

        *job = (struct job){.epoch = epoch,
                            .pair_term = pair_term,
                            .chunks_end = &job->chunks,
                            .disk = disk,
                            .disk_done = !disk,
                            .state = job->state,
                            .state_room = job->state_room};
        s->feeding = true;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
    return rc;
}

void sender_chunk(struct sender *s, struct stage_chunk *chunk)
{
    chunk->next = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->feeding) {
        struct job *job = job_at(s, s->n_jobs - 1);

        *job->chunks_end = chunk;
        job->chunks_end = &chunk->next;
        pthread_cond_signal(&s->wake);
    } else {
        stage_pool_put(s->pool, chunk);
    }
    pthread_mutex_unlock(&s->lock);
}

int sender_state(struct sender *s, const char *format, const uint8_t *bytes, uint64_t n_bytes)
{
    struct job *job = NULL;

    if (!n_bytes || n_bytes > WIRE_STATE_MAX || !format[0] || strlen(format) >= WIRE_FORMAT_BYTES)
        return -EINVAL;
    pthread_mutex_lock(&s->lock);
    if (s->feeding)
        job = job_at(s, s->n_jobs - 1);
    pthread_mutex_unlock(&s->lock);
    if (!job)
        return 0;
    /* Outside the lock: the job's state is ours, even when the thread drops the job meanwhile. */
    if (job->state_room < n_bytes) {
        uint8_t *room = FAULTY_ALLOC("guard.state-room", realloc(job->state, n_bytes));

        if (!room)
            return -ENOMEM;
        job->state = room;
        job->state_room = n_bytes;
    }
    memcpy(job->state, bytes, n_bytes);
    strcpy(job->format, format);
    job->n_state = n_bytes;
    pthread_mutex_lock(&s->lock);
    job->state_ready = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

void sender_end(struct sender *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->feeding) {
        job_at(s, s->n_jobs - 1)->ended = true;
        s->feeding = false;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
}

int sender_attach(struct sender *s, struct transport *t)
{
    int rc;

    if (s->transport)
        return -EBUSY;
    rc = transport_set_blocking(t, true);
    if (rc)
        return rc;
    pthread_mutex_lock(&s->lock);
    s->transport = t;
    s->n_out = 0;
    encoding_forget(&s->encoding);
    s->report.sent_epoch = s->report.encoded_epoch = 0;
    s->report.error = 0;
    s->active = true;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

void sender_detach(struct sender *s)
{
    struct transport *t;

    pthread_mutex_lock(&s->lock);
    s->active = false;
    if (s->transport)
        s->transport->ops->shutdown(s->transport);
    while (s->busy)
        pthread_cond_wait(&s->idle, &s->lock);
    drop_jobs(s);
    t = s->transport;
    s->transport = NULL;
    pthread_mutex_unlock(&s->lock);
    if (t)
        t->ops->close(t);
}

void sender_report_get(struct sender *s, struct sender_report *ret_report)
{
    pthread_mutex_lock(&s->lock);
    *ret_report = s->report;
    pthread_mutex_unlock(&s->lock);
}

static void sender_free(struct sender *s)
{
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    pthread_cond_destroy(&s->idle);
    for (unsigned i = 0; s->jobs && i < s->max_jobs; i++)
        free(s->jobs[i].state);
    encoding_done(&s->encoding);
    free(s->jobs);
    free(s->out);
    free(s);
}

int sender_new(struct stage_pool *pool, unsigned max_epochs, int notify_fd,
               const struct sender_options *options, struct sender **ret_sender)
{
    struct sender *s = calloc(1, sizeof(*s));
    int rc = -ENOMEM;

    if (!s)
        return -ENOMEM;
    lock_init(&s->lock);
    pthread_cond_init(&s->wake, NULL);
    pthread_cond_init(&s->idle, NULL);
    s->pool = pool;
    s->notify_fd = notify_fd;
    s->max_jobs = max_epochs;
    s->jobs = calloc(max_epochs, sizeof(*s->jobs));
    s->out = malloc(OUT_BYTES);
    if (s->jobs && s->out)
        rc = encoding_init(&s->encoding, options->delta_cache_bytes, options->raw);
    if (rc == 0) {
        s->report.level = s->encoding.effort.level;
        rc = thread_start(&s->thread, "us-send", sender_thread, s);
    }
    if (rc)
        sender_free(s);
    else
        *ret_sender = s;
    return rc;
}

void sender_close(struct sender *s)
{
    if (!s)
        return;
    sender_detach(s);
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    (void)pthread_join(s->thread, NULL); /* cannot fail: it is ours and joined once */
    sender_free(s);
}
