/* SPDX-License-Identifier: Apache-2.0 */
#include <xxhash.h>

#include "pipeline_disk_rig.h"

/* Below TLS: what checksums and the epochs' digest find by themselves. The real sender's bytes are
 * damaged in every way that a seed can think of before the real receiver reads them: whatever it
 * stages all the same is exactly what was sent, and nothing else ever reaches the RAM image or the
 * disks. */

enum {
    HEADER_LENGTH = 4, /* where the payload's length and the checksum are in a header */
    HEADER_CHECKSUM = 16,
    MESSAGES_MAX = 1024,
    BITS_MAX = 40,
    BURST_MAX = 64,
};

enum damage {
    ONE_BIT,
    SOME_BITS,
    BURST,
    CUT,
    GAP,
    REPEATED_BYTES,
    DROPPED,
    DOUBLED,
    SWAPPED,
    ONE_BIT_REPAIRED, /* and the message's checksum agrees: the digest is what is left */
    DAMAGES,
};

static const char *const damage_names[DAMAGES] = {
    [ONE_BIT] = "one bit",
    [SOME_BITS] = "some bits",
    [BURST] = "a burst",
    [CUT] = "cut off",
    [GAP] = "bytes missing",
    [REPEATED_BYTES] = "bytes repeated",
    [DROPPED] = "a message missing",
    [DOUBLED] = "a message twice",
    [SWAPPED] = "two messages swapped",
    [ONE_BIT_REPAIRED] = "one bit, checksum repaired",
};

static struct tally {
    unsigned tried, found, harmless;
} tallies[DAMAGES];

/* ---- messages of a stream ---- */

struct piece {
    size_t at, n;
};

static unsigned split(const struct stream *s, struct piece pieces[static MESSAGES_MAX])
{
    unsigned n = 0;

    for (size_t at = 0; at < s->n; n++) {
        uint32_t length;

        assert_true(n < MESSAGES_MAX);
        memcpy(&length, s->bytes + at + HEADER_LENGTH, sizeof(length));
        pieces[n] = (struct piece){at, WIRE_HEADER_BYTES + length};
        at += pieces[n].n;
    }
    return n;
}

static void add_piece(struct stream *out, const struct stream *s, const struct piece *p)
{
    stream_add(out, s->bytes + p->at, p->n);
}

static void repair_checksum(uint8_t *message, size_t n)
{
    uint64_t sum;

    memset(message + HEADER_CHECKSUM, 0, sizeof(sum));
    sum = XXH3_64bits(message, n);
    memcpy(message + HEADER_CHECKSUM, &sum, sizeof(sum));
}

static void flip(struct stream *s, uint64_t bit)
{
    s->bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
}

/* One bit of what the digest or the counts cover. The term that an epoch gives a right to, and the
 * name of the state's format, are the message checksum's alone. */
static void flip_repaired(struct stream *s, uint64_t *seed)
{
    struct piece pieces[MESSAGES_MAX], *p;
    unsigned n = split(s, pieces);
    uint16_t type;
    size_t skip;

    do {
        p = &pieces[rig_random(seed) % n];
        memcpy(&type, s->bytes + p->at, sizeof(type));
        skip = WIRE_HEADER_BYTES + (type == WIRE_STATE ? WIRE_FORMAT_BYTES : 0);
    } while (type == WIRE_EPOCH_BEGIN);
    flip(s, (p->at + skip) * 8 + rig_random(seed) % ((p->n - skip) * 8));
    repair_checksum(s->bytes + p->at, p->n);
}

/* Messages as they were, but for one; the last is never doubled, since then all is there already.
 */
static struct stream shuffle(const struct stream *s, enum damage how, uint64_t *seed)
{
    struct piece pieces[MESSAGES_MAX];
    unsigned n = split(s, pieces);
    unsigned a = (unsigned)(rig_random(seed) % (n - 1)), b = a + 1;
    struct stream out = {0};

    b += (unsigned)(rig_random(seed) % (n - b));
    for (unsigned i = 0; i < n; i++) {
        if (how == DROPPED && i == a)
            continue;
        add_piece(&out, s,
                  &pieces[how == SWAPPED && i == a   ? b
                          : how == SWAPPED && i == b ? a
                                                     : i]);
        if (how == DOUBLED && i == a)
            add_piece(&out, s, &pieces[i]);
    }
    return out;
}

static struct stream damaged(const struct stream *s, enum damage how, uint64_t *seed)
{
    uint64_t n_bits = how == SOME_BITS ? 2 + rig_random(seed) % BITS_MAX : 1;
    size_t at = rig_random(seed) % s->n, n = 1 + rig_random(seed) % BURST_MAX;
    struct stream out = {0};

    if (n > s->n - at)
        n = s->n - at;
    switch (how) {
    case DROPPED:
    case DOUBLED:
    case SWAPPED:
        return shuffle(s, how, seed);
    case CUT:
        stream_add(&out, s->bytes, at);
        return out;
    case GAP:
    case REPEATED_BYTES:
        stream_add(&out, s->bytes, at);
        stream_add(&out, s->bytes + at + (how == GAP ? n : 0), s->n - at - (how == GAP ? n : 0));
        if (how == REPEATED_BYTES) { /* these n, again, in the middle */
            out.n = at + n;
            stream_add(&out, s->bytes + at, s->n - at);
        }
        return out;
    default:
        break;
    }
    stream_add(&out, s->bytes, s->n);
    if (how == ONE_BIT_REPAIRED)
        flip_repaired(&out, seed);
    else if (how == BURST)
        while (n--)
            out.bytes[at + n] ^= (uint8_t)(rig_random(seed) % 255 + 1);
    else
        while (n_bits--)
            flip(&out, rig_random(seed) % (s->n * 8));
    return out;
}

/* Plays a damaged epoch. True when it was staged all the same. */
static bool survives(struct rig *rig, const struct stream *s, enum damage how, uint64_t *seed)
{
    struct tally *tally = &tallies[how];
    struct stream bad = damaged(s, how, seed);
    bool same = bad.n >= s->n && memcmp(bad.bytes, s->bytes, s->n) == 0; /* nothing is damaged */
    int rc = same ? -EPROTO : stream_play(rig, bad.bytes, bad.n);

    free(bad.bytes);
    if (rc && rc != -EPROTO && rc != -ECONNRESET)
        fail_msg("%s: %d", damage_names[how], rc);
    tally->tried += !same;
    tally->found += !same && rc;
    tally->harmless += !rc;
    return !rc;
}

/* How many epochs; CORRUPTIONS for a long run. */
static unsigned rounds(void)
{
    const char *text = getenv("CORRUPTIONS");

    return text ? (unsigned)strtoul(text, NULL, 10) : 40;
}

/* Only a bit that is nobody's (a distance in an LZ4 block of equal bytes, say) may be harmless. */
static void print_tallies(void)
{
    for (unsigned i = 0; i < DAMAGES; i++) {
        const struct tally *t = &tallies[i];

        print_message("# %s: %u damaged, %u found, %u harmless\n", damage_names[i], t->tried,
                      t->found, t->harmless);
        assert_true(t->tried > 0);
        if (i != ONE_BIT_REPAIRED)
            assert_int_equal(t->harmless, 0);
        assert_true(t->harmless * 10 <= t->tried);
    }
    memset(tallies, 0, sizeof(tallies));
}

static void memory_and_state(void **state)
{
    uint64_t seed = 20011, last = rounds();
    struct rig rig;

    rig_new(&rig);
    for (uint64_t epoch = 1; epoch <= last; epoch++) {
        struct stream s = stream_record(&rig, epoch);
        bool staged = false;

        for (unsigned i = 0; i < 5 * DAMAGES && !staged; i++) {
            staged = survives(&rig, &s, (enum damage)(i % DAMAGES), &seed);
            /* Still the epoch before: nothing gets there before it is applied. */
            assert_true(memcmp(rig.image, rig.model, sizeof(rig.model)) == 0);
        }
        if (!staged)
            assert_int_equal(stream_play(&rig, s.bytes, s.n), 0);
        rig_apply(&rig);
        rig_assert_applied(&rig, epoch);
        free(s.bytes);
    }
    rig_free(&rig);
    print_tallies();
}

static void disks(void **state)
{
    struct world *w = *state;
    uint64_t seed = 77, last = rounds();

    for (uint64_t epoch = 1; epoch <= last; epoch++) {
        bool staged = false;
        struct stream s;
        int fd = stream_attach(&w->rig);

        for (uint64_t n = 1 + rig_random(&seed) % 12; n; n--)
            any_record(w, &seed, 9000);
        if (epoch % 4 == 0)
            journal_flushed(w->journal);
        feed(w, TERM, ALL);
        s = stream_collect(&w->rig, fd, epoch);
        for (unsigned i = 0; i < 3 * DAMAGES && !staged; i++)
            staged = survives(&w->rig, &s, (enum damage)(i % DAMAGES), &seed);
        if (epoch > 1)
            assert_images(w, &w->cuts[(epoch - 1) % CUTS]);
        if (!staged)
            assert_int_equal(stream_play(&w->rig, s.bytes, s.n), 0);
        apply(w, epoch);
        journal_acked(w->journal, epoch);
        free(s.bytes);
    }
    print_tallies();
}

/* ---- a living link ---- */

/* A transport that turns bits over on the way in, each at least a byte behind the one before. */
struct corrupt {
    struct transport base;
    struct transport *inner;
    uint64_t seed, at, flip_at; /* bytes of the stream */
    uint64_t distance;          /* from one flip to the next, at most; bytes */
};

static ssize_t corrupt_readv(struct transport *t, const struct iovec *iov, int n_iov)
{
    struct corrupt *c = (struct corrupt *)t;
    ssize_t got = c->inner->ops->readv(c->inner, iov, n_iov);
    size_t left = got > 0 ? (size_t)got : 0;

    for (int i = 0; i < n_iov && left; i++) {
        size_t n = left < iov[i].iov_len ? left : iov[i].iov_len;
        uint8_t *bytes = iov[i].iov_base;

        for (; c->flip_at < c->at + n; c->flip_at += 1 + rig_random(&c->seed) % c->distance)
            bytes[c->flip_at - c->at] ^= (uint8_t)(1 << rig_random(&c->seed) % 8);
        c->at += n;
        left -= n;
    }
    return got;
}

static ssize_t corrupt_writev(struct transport *t, const struct iovec *iov, int n_iov)
{
    struct corrupt *c = (struct corrupt *)t;

    return c->inner->ops->writev(c->inner, iov, n_iov);
}

static int corrupt_fd(const struct transport *t)
{
    const struct corrupt *c = (const struct corrupt *)t;

    return c->inner->ops->fd(c->inner);
}

static void corrupt_shutdown(struct transport *t)
{
    struct corrupt *c = (struct corrupt *)t;

    c->inner->ops->shutdown(c->inner);
}

static void corrupt_close(struct transport *t)
{
    struct corrupt *c = (struct corrupt *)t;

    c->inner->ops->close(c->inner);
    free(c);
}

static const struct transport_ops corrupt_ops = {
    .name = "corrupt",
    .readv = corrupt_readv,
    .writev = corrupt_writev,
    .fd = corrupt_fd,
    .shutdown = corrupt_shutdown,
    .close = corrupt_close,
};

static void attach_corrupt(struct rig *rig, int fd, uint64_t *seed, uint64_t distance)
{
    struct corrupt *c = calloc(1, sizeof(*c));

    assert_non_null(c);
    c->base.ops = &corrupt_ops;
    c->inner = transport_tcp_new(fd);
    assert_non_null(c->inner);
    c->seed = rig_random(seed);
    c->distance = distance;
    c->flip_at = rig_random(seed) % distance;
    assert_int_equal(receiver_attach(rig->receiver, &c->base), 0);
}

/* Sends epochs until `last` is applied or the link has an error, which it returns; checks the image
 * after each. */
static int run_link(struct rig *rig, uint64_t next, uint64_t last)
{
    struct receiver_report report;

    for (;;) {
        while (next <= last && rig_feed(rig, next) == 0)
            next++;
        receiver_report_get(rig->receiver, &report);
        if (report.staged_epoch > report.applied_epoch) {
            rig_apply(rig);
            rig_assert_applied(rig, report.staged_epoch);
        } else if (report.error || report.applied_epoch == last) {
            return report.error;
        } else {
            rig_wait(rig);
        }
    }
}

/* Sender and receiver at work, several epochs in flight; after each error both attach anew, and go
 * on after the newest epoch that the standby has. */
static void damaged_in_flight(void **state)
{
    uint64_t seed = 31, n_links = 10 * (uint64_t)rounds(), n_errors = 0;
    struct receiver_report report;
    struct rig rig;

    rig_new(&rig);
    for (uint64_t link = 0; link < n_links; link++) {
        int fd[2], rc;

        tcp_pair(fd);
        receiver_report_get(rig.receiver, &report);
        rig_attach_sender(&rig, fd[0]);
        attach_corrupt(&rig, fd[1], &seed, link % 2 ? 2000000 : 20000);
        rc = run_link(&rig, report.staged_epoch + 1, report.staged_epoch + 6);
        n_errors += rc != 0;
        if (rc && rc != -EPROTO && rc != -ECONNRESET)
            fail_msg("link %llu: %d", (unsigned long long)link, rc);
        receiver_detach(rig.receiver); /* which frees a sender that is stuck */
        sender_detach(rig.sender);
        receiver_report_get(rig.receiver, &report);
        rig_assert_applied(&rig, report.applied_epoch);
    }
    print_message("# %llu links, %llu broken, %llu epochs\n", (unsigned long long)n_links,
                  (unsigned long long)n_errors, (unsigned long long)report.applied_epoch);
    assert_true(n_errors > n_links / 2);
    assert_true(report.applied_epoch > n_links / 4);
    rig_free(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_and_state),
        cmocka_unit_test_setup_teardown(disks, setup, teardown),
        cmocka_unit_test(damaged_in_flight),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
