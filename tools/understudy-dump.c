/* SPDX-License-Identifier: Apache-2.0 */
#include <argp.h>
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "witness/store.h"
#include "wire/page.h"
#include "wire/pages.h"

/* understudy-dump: shows, one line each, what one direction of a connection carried (a hello and
 * messages, as any tool records them), or a register of the witness. For looking into failures; it
 * believes nothing that the decoders refuse, and ends there with exit status 1. */

static const char *name_of(const char *const names[], size_t n, unsigned value)
{
    return value < n && names[value] ? names[value] : "?";
}

#define NAME_OF(names, value) name_of(names, sizeof(names) / sizeof((names)[0]), value)

static const char *const channel_names[] = {
    [WIRE_CHANNEL_CONTROL] = "control",
    [WIRE_CHANNEL_DATA] = "data",
    [WIRE_CHANNEL_ARBITER] = "arbiter",
};
static const char *const encoding_names[] = {
    [WIRE_ENC_ZERO] = "zero",
    [WIRE_ENC_RAW] = "raw",
    [WIRE_ENC_LZ4] = "lz4",
    [WIRE_ENC_ZSTD] = "zstd",
};
static const char *const page_names[] = {
    [WIRE_PAGE_ZERO] = "zero",           [WIRE_PAGE_UNCHANGED] = "unchanged",
    [WIRE_PAGE_DUPLICATE] = "duplicate", [WIRE_PAGE_CHANGES] = "changes",
    [WIRE_PAGE_WHOLE] = "whole",
};
static const char *const bye_names[] = {
    [WIRE_BYE_STOPPED] = "stopped",       [WIRE_BYE_VM_DIED] = "VM died",
    [WIRE_BYE_TAKEN_OVER] = "taken over", [WIRE_BYE_DISCARDED] = "discarded",
    [WIRE_BYE_SWITCHOVER] = "switchover",
};
static const char *const copy_names[] = {
    [WIRE_COPY_EMPTY] = "empty",
    [WIRE_COPY_KNOWN] = "known",
    [WIRE_COPY_UNKNOWN] = "unknown",
};
static const char *const ranges_names[] = {
    [WIRE_RANGES_DIRTY] = "dirty",
    [WIRE_RANGES_DIFFER] = "differ",
};
static const char *const piece_names[] = {
    [WIRE_DISK_WRITE] = "write",
    [WIRE_DISK_ZERO] = "zero",
    [WIRE_DISK_DIGEST] = "digest",
    [WIRE_DISK_MARK] = "mark",
};
static const char *const status_names[] = {
    [WIRE_ARB_DONE] = "done",
    [WIRE_ARB_CONFLICT] = "conflict",
    [WIRE_ARB_ERROR] = "error",
    [WIRE_ARB_REFUSED] = "refused",
};

typedef unsigned long long ull; /* for printf */

static void print_record(const char *before, const struct arb_record *record)
{
    if (record->term == 0)
        printf("%s none", before);
    else
        printf("%s {term %llu, %s, owner \"%s\", standby \"%s\"}", before, (ull)record->term,
               record->mode == ARB_PAIRED ? "paired" : "solo", record->owner, record->standby);
}

static void print_hex(const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        printf("%02x", bytes[i]);
}

static void print_hello(const struct wire_hello *h)
{
    printf("hello versions %u-%u channel %s status %u resume %d features %#llx session ",
           h->version_min, h->version_max, NAME_OF(channel_names, h->channel), h->status, h->resume,
           (ull)h->features);
    print_hex(h->session, sizeof(h->session));
    printf(" vm \"%s\" from \"%s\" text \"%s\"\n", h->vm, h->from, h->text);
}

static void print_ready(const struct wire_ready *ready)
{
    printf("ready term %llu disks %u:", (ull)ready->term, ready->n_disks);
    for (uint32_t i = 0; i < ready->n_disks; i++) {
        const struct wire_disk_copy *copy = &ready->disk[i];

        printf(" %s", NAME_OF(copy_names, copy->state));
        if (copy->state == WIRE_COPY_KNOWN) {
            printf("/");
            print_hex(copy->sync, sizeof(copy->sync));
        }
    }
}

static void print_disk_ranges(const struct wire_disk_ranges *ranges)
{
    printf("disk-ranges %s disk %u mark %llu%s %u:", NAME_OF(ranges_names, ranges->kind),
           ranges->disk, (ull)ranges->mark, ranges->last ? " last" : "", ranges->n);
    for (uint32_t i = 0; i < ranges->n; i++)
        printf(" %llu+%llu", (ull)ranges->range[i].offset, (ull)ranges->range[i].n_bytes);
}

static void print_frames(const struct wire_frames *frames)
{
    printf("frames nic %u %u bytes, header ", frames->nic, frames->n_bytes);
    print_hex(frames->bytes, WIRE_FRAME_BYTES_MIN);
}

static void print_addresses(const struct wire_addresses *addresses)
{
    printf("addresses %u:", addresses->n);
    for (uint32_t i = 0; i < addresses->n; i++) {
        const struct wire_address *a = &addresses->entry[i];
        char text[INET6_ADDRSTRLEN];

        inet_ntop(a->family == 4 ? AF_INET : AF_INET6, a->bytes, text, sizeof(text));
        printf(" {nic %u, %s%s, vlan %u, age %u s}", a->nic, text, a->router ? " router" : "",
               a->vlan, a->age_s);
    }
}

/* What the body of a message says of its pages; only the standby's memory could tell their bytes.
 */
static void print_body(const struct wire_pages *pages)
{
    static uint8_t body[PAGE_BODY_BYTES];
    static struct page_table table;
    struct packer *packer = packer_new();
    struct err err = {"out of memory"};
    int r = packer ? pages_decode(packer, pages, body, &err) : -ENOMEM;

    if (r == 0)
        r = page_table_unpack(body, pages->n_body, pages->n, &table, &err);
    packer_free(packer);
    if (r < 0)
        printf(" (%s)", err.text);
    for (uint32_t i = 0; r == 0 && i < table.n; i++) {
        const struct page_item *page = &table.page[i];

        printf(" %llu=%s", (ull)page->number, NAME_OF(page_names, page->kind));
        if (page->kind == WIRE_PAGE_CHANGES)
            printf("/%u", page->n_bytes);
        if (page->kind == WIRE_PAGE_DUPLICATE)
            printf("-%u", page_distance_get(page));
    }
}

static void print_pages(const struct wire_pages *pages)
{
    printf("pages %u in %u %s/%u:", pages->n, pages->n_body,
           NAME_OF(encoding_names, pages->encoding), pages->n_bytes);
    print_body(pages);
}

static void print_disk_piece(const struct wire_disk_piece *p)
{
    if (p->kind == WIRE_DISK_MARK) {
        printf(" {mark %llu%s}", (ull)p->offset, p->flags & WIRE_DISK_SYNC ? " sync" : "");
        return;
    }
    printf(" {disk %u, %s%s %llu+%llu", p->disk, NAME_OF(piece_names, p->kind),
           p->flags & WIRE_DISK_PUNCH ? " punch" : "", (ull)p->offset, (ull)p->n_range);
    if (p->kind == WIRE_DISK_WRITE)
        printf(" %s/%u", NAME_OF(encoding_names, p->encoding), p->n_bytes);
    if (p->kind == WIRE_DISK_DIGEST) {
        printf(" ");
        print_hex(p->bytes, p->n_bytes);
    }
    printf("}");
}

static void print_disk(const struct wire_disk *disk)
{
    printf("disk %u:", disk->n);
    for (uint32_t i = 0; i < disk->n; i++)
        print_disk_piece(&disk->piece[i]);
}

static void print_epoch_end(const struct wire_epoch_end *end)
{
    printf("epoch-end pages %llu disk pieces %llu state %llu digest ", (ull)end->n_pages,
           (ull)end->n_disk_pieces, (ull)end->n_state_bytes);
    print_hex(end->digest, sizeof(end->digest));
}

static void print_arb_request(const struct wire_arb_request *request)
{
    printf("arbiter-request %s vm \"%s\"", request->op == WIRE_ARB_CAS ? "swap" : "get",
           request->vm);
    if (request->op == WIRE_ARB_CAS) {
        print_record(" expected", &request->expected);
        print_record(" wanted", &request->wanted);
    }
}

static void print_arb_registers(const struct wire_arb_registers *registers)
{
    printf("arbiter-registers %u%s", registers->n, registers->more ? " and more" : "");
    for (uint32_t i = 0; i < registers->n; i++) {
        printf(" %s", registers->entry[i].vm);
        print_record("", &registers->entry[i].record);
    }
}

static void print_msg(const struct wire_msg *m)
{
    printf("%llu ", (ull)m->epoch);
    switch (m->type) {
    case WIRE_HEARTBEAT:
        printf("heartbeat seq %llu term %llu paired %u", (ull)m->u.heartbeat.seq,
               (ull)m->u.heartbeat.term, m->u.heartbeat.paired);
        break;
    case WIRE_OFFER:
        printf("offer %.*s", (int)m->u.offer.n_json, m->u.offer.json);
        break;
    case WIRE_READY:
        print_ready(&m->u.ready);
        break;
    case WIRE_REFUSE:
        printf("refuse \"%s\"", m->u.refuse.text);
        break;
    case WIRE_ACK:
        printf("ack term %llu durable %llu", (ull)m->u.ack.term, (ull)m->u.ack.durable);
        break;
    case WIRE_BYE:
        printf("bye %s", NAME_OF(bye_names, m->u.bye.reason));
        break;
    case WIRE_ADDRESSES:
        print_addresses(&m->u.addresses);
        break;
    case WIRE_DISK_RANGES:
        print_disk_ranges(&m->u.disk_ranges);
        break;
    case WIRE_FRAMES:
        print_frames(&m->u.frames);
        break;
    case WIRE_EPOCH_BEGIN:
        printf("epoch-begin pair term %llu%s", (ull)m->u.epoch_begin.pair_term,
               m->u.epoch_begin.flushed ? " flushed" : "");
        break;
    case WIRE_PAGES:
        print_pages(&m->u.pages);
        break;
    case WIRE_DISK:
        print_disk(&m->u.disk);
        break;
    case WIRE_STATE:
        printf("state %s %llu+%u of %llu%s %s/%u", m->u.state.format, (ull)m->u.state.offset,
               m->u.state.n_raw, (ull)m->u.state.total, m->u.state.delta ? " delta" : "",
               NAME_OF(encoding_names, m->u.state.encoding), m->u.state.n_bytes);
        break;
    case WIRE_EPOCH_END:
        print_epoch_end(&m->u.epoch_end);
        break;
    case WIRE_ARB_REQUEST:
        print_arb_request(&m->u.arb_request);
        break;
    case WIRE_ARB_REPLY:
        printf("arbiter-reply %s", NAME_OF(status_names, m->u.arb_reply.status));
        print_record(" current", &m->u.arb_reply.current);
        break;
    case WIRE_ARB_LIST:
        printf("arbiter-list after \"%s\"", m->u.arb_list.after);
        break;
    case WIRE_ARB_REGISTERS:
        print_arb_registers(&m->u.arb_registers);
        break;
    }
    printf("\n");
}

/* 1: read; 0: the input ends before it; -EPROTO: it ends in the middle. */
static int read_exactly(FILE *in, void *out, size_t n, struct err *err)
{
    size_t got = fread(out, 1, n, in);

    if (got == n)
        return 1;
    return got == 0 && !ferror(in) ? 0 : err_set(err, -EPROTO, "cut off");
}

static int dump_messages(FILE *in, enum wire_channel channel, struct err *err)
{
    CLEANUP_FREE uint8_t *payload = malloc(WIRE_PAYLOAD_MAX);
    uint8_t raw[WIRE_HEADER_BYTES];
    struct wire_header header;
    struct wire_msg msg;
    int r;

    if (!payload)
        return err_sys(err, -ENOMEM, "buffer");
    while ((r = read_exactly(in, raw, sizeof(raw), err)) > 0) {
        r = wire_header_decode(raw, channel, &header, err);
        if (r == 0 && read_exactly(in, payload, header.length, err) <= 0)
            r = err_set(err, -EPROTO, "cut off");
        if (r == 0)
            r = wire_msg_decode(raw, &header, payload, &msg, err);
        if (r < 0)
            return r;
        print_msg(&msg);
    }
    return r;
}

static int dump(FILE *in, const char *vm, struct err *err)
{
    uint8_t first[WIRE_HELLO_BYTES];
    struct arb_record record;
    struct wire_hello hello;
    int r;

    static_assert(sizeof(first) == STORE_FILE_BYTES, "both kinds of input begin with as much");
    if (read_exactly(in, first, sizeof(first), err) <= 0)
        return err_set(err, -EPROTO, "too short");
    if (store_file_recognize(first)) {
        r = store_file_decode(first, vm, &record, err);
        if (r == 0) {
            print_record(vm, &record);
            printf("\n");
        }
        return r;
    }
    r = wire_hello_decode(first, &hello, err);
    if (r < 0)
        return r;
    print_hello(&hello);
    return dump_messages(in, hello.channel, err);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    char **path = state->input;

    switch (key) {
    case ARGP_KEY_ARG:
        if (*path)
            argp_error(state, "one file at a time");
        *path = arg;
        return 0;
    case ARGP_KEY_END:
        if (!*path)
            argp_error(state, "which file?");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int main(int argc, char **argv)
{
    static const struct argp argp = {
        .parser = parse_option,
        .args_doc = "FILE",
        .doc = "Shows what one direction of a connection carried, or a register of the witness.",
    };
    char *path = NULL;
    struct err err = {""};
    FILE *in;
    int r;

    argp_parse(&argp, argc, argv, 0, NULL, &path);
    in = fopen(path, "rbe");
    if (!in) {
        fprintf(stderr, "understudy-dump: %s: %s\n", path, strerror(errno));
        return EXIT_FAILURE;
    }
    r = dump(in, basename(path), &err);
    if (r < 0)
        fprintf(stderr, "understudy-dump: %s: byte %ld: %s\n", path, ftell(in), err.text);
    fclose(in);
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
