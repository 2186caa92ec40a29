/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "wire/layout.h"
#include "wire/payload.h"

/* Heartbeat */

static int heartbeat_check(const struct wire_msg *msg, struct err *err)
{
    if (msg->u.heartbeat.paired > 1)
        return payload_malformed(err);
    return 0;
}

static int heartbeat_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct heartbeat_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->seq = le64_of(msg->u.heartbeat.seq);
    form->term = le64_of(msg->u.heartbeat.term);
    form->paired = msg->u.heartbeat.paired;
    return 0;
}

static int heartbeat_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct heartbeat_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    msg->u.heartbeat = (struct wire_heartbeat){
        .seq = le64_get(form->seq), .term = le64_get(form->term), .paired = form->paired};
    return 0;
}

const struct payload_codec heartbeat_codec = {
    .name = "heartbeat",
    .channel = WIRE_CHANNEL_CONTROL,
    PAYLOAD_FORM(heartbeat_form),
    .check = heartbeat_check,
    .put = heartbeat_put,
    .get = heartbeat_get,
};

/* Offer */

static int offer_check(const struct wire_msg *msg, struct err *err)
{
    if (msg->u.offer.n_json == 0 || msg->u.offer.n_json > WIRE_OFFER_BYTES_MAX)
        return payload_malformed(err);
    return 0;
}

static int offer_put(const struct wire_msg *msg, struct wire_writer *w)
{
    return wire_put(w, msg->u.offer.json, msg->u.offer.n_json);
}

static int offer_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    uint32_t n = (uint32_t)r->left; /* a header's length fits */

    msg->u.offer = (struct wire_offer){.json = wire_take(r, n), .n_json = n};
    return 0;
}

const struct payload_codec offer_codec = {
    .name = "offer",
    .channel = WIRE_CHANNEL_CONTROL,
    .min = 1,
    .max = WIRE_OFFER_BYTES_MAX,
    .check = offer_check,
    .put = offer_put,
    .get = offer_get,
};

/* Ready */

static bool copy_valid(const struct wire_disk_copy *copy)
{
    bool no_sync = wire_all_zero(copy->sync, sizeof(copy->sync));

    return copy->state == WIRE_COPY_KNOWN
               ? !no_sync
               : no_sync && (copy->state == WIRE_COPY_EMPTY || copy->state == WIRE_COPY_UNKNOWN);
}

static int ready_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_ready *ready = &msg->u.ready;

    if (ready->n_disks > WIRE_DISKS_MAX)
        return err_set(err, -EPROTO, "%u disks", ready->n_disks);
    for (uint32_t i = 0; i < ready->n_disks; i++) {
        if (!copy_valid(&ready->disk[i]))
            return err_set(err, -EPROTO, "disk %u: copy in state %u", i, ready->disk[i].state);
    }
    return 0;
}

static int ready_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_ready *ready = &msg->u.ready;
    struct ready_form *form = wire_room(w, sizeof(*form));
    struct copy_form *copy = form ? wire_room(w, ready->n_disks * sizeof(*copy)) : NULL;

    if (!copy)
        return -ENOSPC;
    form->term = le64_of(ready->term);
    form->n = ready->n_disks;
    for (uint32_t i = 0; i < ready->n_disks; i++) {
        copy[i].state = ready->disk[i].state;
        memcpy(copy[i].sync, ready->disk[i].sync, sizeof(copy[i].sync));
    }
    return 0;
}

static int ready_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_ready *ready = &msg->u.ready;
    const struct ready_form *form = wire_take(r, sizeof(*form));
    const struct copy_form *copy;
    const void *list;
    int e;

    if (!form)
        return payload_too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    e = payload_take_list(r, form->n, WIRE_DISKS_MAX, sizeof(*copy), "disks", &list, err);
    if (e < 0)
        return e;
    copy = list;
    ready->term = le64_get(form->term);
    ready->n_disks = form->n;
    for (uint32_t i = 0; i < ready->n_disks; i++) {
        if (!wire_all_zero(copy[i].zero, sizeof(copy[i].zero)))
            return payload_malformed(err);
        ready->disk[i].state = copy[i].state;
        memcpy(ready->disk[i].sync, copy[i].sync, sizeof(copy[i].sync));
    }
    return 0;
}

const struct payload_codec ready_codec = {
    .name = "ready",
    .channel = WIRE_CHANNEL_CONTROL,
    .min = sizeof(struct ready_form),
    .max = PAYLOAD_LIST(ready_form, copy_form, WIRE_DISKS_MAX),
    .check = ready_check,
    .put = ready_put,
    .get = ready_get,
};

/* Refusal */

static int refuse_check(const struct wire_msg *msg, struct err *err)
{
    if (msg->u.refuse.text[0] == '\0')
        return err_set(err, -EPROTO, "no reason given");
    return 0;
}

static int refuse_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct refuse_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    wire_text_put(form->text, sizeof(form->text), msg->u.refuse.text);
    return 0;
}

static int refuse_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct refuse_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    if (!wire_text_get(form->text, sizeof(form->text), msg->u.refuse.text))
        return payload_malformed(err);
    return 0;
}

const struct payload_codec refuse_codec = {
    .name = "refuse",
    .channel = WIRE_CHANNEL_CONTROL,
    PAYLOAD_FORM(refuse_form),
    .check = refuse_check,
    .put = refuse_put,
    .get = refuse_get,
};

/* Acknowledgement */

static int ack_check(const struct wire_msg *msg, struct err *err)
{
    if (msg->u.ack.durable > msg->epoch)
        return err_set(err, -EPROTO, "durable up to epoch %llu, which is not here",
                       (unsigned long long)msg->u.ack.durable);
    return 0;
}

static int ack_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct ack_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->term = le64_of(msg->u.ack.term);
    form->durable = le64_of(msg->u.ack.durable);
    return 0;
}

static int ack_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct ack_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    msg->u.ack =
        (struct wire_ack){.term = le64_get(form->term), .durable = le64_get(form->durable)};
    return 0;
}

const struct payload_codec ack_codec = {
    .name = "ack",
    .channel = WIRE_CHANNEL_CONTROL,
    .needs_epoch = true,
    PAYLOAD_FORM(ack_form),
    .check = ack_check,
    .put = ack_put,
    .get = ack_get,
};

/* Bye */

static int bye_check(const struct wire_msg *msg, struct err *err)
{
    uint16_t reason = msg->u.bye.reason;

    if (reason < WIRE_BYE_STOPPED || reason > WIRE_BYE_SWITCHOVER)
        return err_set(err, -EPROTO, "unknown reason %u", reason);
    return 0;
}

static int bye_put(const struct wire_msg *msg, struct wire_writer *w)
{
    struct bye_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->reason = le16_of(msg->u.bye.reason);
    return 0;
}

static int bye_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    const struct bye_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    msg->u.bye.reason = le16_get(form->reason);
    return 0;
}

const struct payload_codec bye_codec = {
    .name = "bye",
    .channel = WIRE_CHANNEL_CONTROL,
    PAYLOAD_FORM(bye_form),
    .check = bye_check,
    .put = bye_put,
    .get = bye_get,
};

/* Addresses */

static bool address_valid(const struct wire_address *a)
{
    if (a->nic >= WIRE_NICS_MAX || a->vlan >= 4096)
        return false;
    if (a->family == 4)
        return a->router == 0 && wire_all_zero(a->bytes + 4, sizeof(a->bytes) - 4);
    return a->family == 6 && a->router <= 1;
}

static int addresses_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_addresses *addresses = &msg->u.addresses;

    if (addresses->n > WIRE_ADDRESSES_MAX)
        return err_set(err, -EPROTO, "%u addresses", addresses->n);
    for (uint32_t i = 0; i < addresses->n; i++) {
        const struct wire_address *a = &addresses->entry[i];

        if (!address_valid(a))
            return err_set(err, -EPROTO, "address of family %u, router %u, NIC %u, VLAN %u",
                           a->family, a->router, a->nic, a->vlan);
    }
    return 0;
}

static int addresses_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_addresses *addresses = &msg->u.addresses;
    struct address_form *entry = payload_put_list(w, addresses->n, sizeof(*entry));

    if (!entry)
        return -ENOSPC;
    for (uint32_t i = 0; i < addresses->n; i++) {
        const struct wire_address *a = &addresses->entry[i];

        entry[i].nic = a->nic;
        entry[i].family = a->family;
        entry[i].router = a->router;
        entry[i].vlan = le16_of(a->vlan);
        entry[i].age_s = le16_of(a->age_s);
        memcpy(entry[i].bytes, a->bytes, sizeof(entry[i].bytes));
    }
    return 0;
}

static int addresses_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_addresses *addresses = &msg->u.addresses;
    const struct address_form *entry;
    const void *list;
    int e = payload_get_list(r, WIRE_ADDRESSES_MAX, sizeof(*entry), "addresses", &addresses->n,
                             &list, err);

    if (e < 0)
        return e;
    entry = list;
    for (uint32_t i = 0; i < addresses->n; i++) {
        struct wire_address *a = &addresses->entry[i];

        if (!wire_all_zero(entry[i].zero, sizeof(entry[i].zero)))
            return payload_malformed(err);
        a->nic = entry[i].nic;
        a->family = entry[i].family;
        a->router = entry[i].router;
        a->vlan = le16_get(entry[i].vlan);
        a->age_s = le16_get(entry[i].age_s);
        memcpy(a->bytes, entry[i].bytes, sizeof(a->bytes));
    }
    return 0;
}

const struct payload_codec addresses_codec = {
    .name = "addresses",
    .channel = WIRE_CHANNEL_CONTROL,
    .min = sizeof(struct list_form),
    .max = PAYLOAD_LIST(list_form, address_form, WIRE_ADDRESSES_MAX),
    .check = addresses_check,
    .put = addresses_put,
    .get = addresses_get,
};

/* Ranges of a disk */

static int disk_ranges_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_disk_ranges *ranges = &msg->u.disk_ranges;
    uint64_t from = 0;

    if (ranges->kind != WIRE_RANGES_DIRTY && ranges->kind != WIRE_RANGES_DIFFER)
        return err_set(err, -EPROTO, "unknown kind %u", ranges->kind);
    if (ranges->kind == WIRE_RANGES_DIRTY && (ranges->last || ranges->mark != 0))
        return err_set(err, -EPROTO, "dirty ranges that answer a mark");
    if (ranges->disk >= WIRE_DISKS_MAX || ranges->n > WIRE_RANGES_PER_MSG)
        return err_set(err, -EPROTO, "%u ranges of disk %u", ranges->n, ranges->disk);
    for (uint32_t i = 0; i < ranges->n; i++) {
        const struct wire_range *range = &ranges->range[i];

        if (range->offset < from || range->n_bytes == 0 ||
            range->n_bytes > UINT64_MAX - range->offset)
            return err_set(err, -EPROTO, "%llu bytes at %llu", (unsigned long long)range->n_bytes,
                           (unsigned long long)range->offset);
        from = range->offset + range->n_bytes;
    }
    return 0;
}

static int disk_ranges_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_disk_ranges *ranges = &msg->u.disk_ranges;
    struct disk_ranges_form *form = wire_room(w, sizeof(*form));
    struct range_form *entry = form ? wire_room(w, ranges->n * sizeof(*entry)) : NULL;

    if (!entry)
        return -ENOSPC;
    form->kind = ranges->kind;
    form->disk = ranges->disk;
    form->last = ranges->last;
    form->n = le32_of(ranges->n);
    form->mark = le64_of(ranges->mark);
    for (uint32_t i = 0; i < ranges->n; i++) {
        entry[i].offset = le64_of(ranges->range[i].offset);
        entry[i].n_bytes = le64_of(ranges->range[i].n_bytes);
    }
    return 0;
}

static int disk_ranges_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_disk_ranges *ranges = &msg->u.disk_ranges;
    const struct disk_ranges_form *form = wire_take(r, sizeof(*form));
    const struct range_form *entry;
    const void *list;
    int e;

    if (!form)
        return payload_too_short(err);
    if (form->last > 1 || !wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    ranges->kind = form->kind;
    ranges->disk = form->disk;
    ranges->last = form->last;
    ranges->n = le32_get(form->n);
    ranges->mark = le64_get(form->mark);
    e = payload_take_list(r, ranges->n, WIRE_RANGES_PER_MSG, sizeof(*entry), "ranges", &list, err);
    if (e < 0)
        return e;
    entry = list;
    for (uint32_t i = 0; i < ranges->n; i++)
        ranges->range[i] = (struct wire_range){.offset = le64_get(entry[i].offset),
                                               .n_bytes = le64_get(entry[i].n_bytes)};
    return 0;
}

const struct payload_codec disk_ranges_codec = {
    .name = "disk-ranges",
    .channel = WIRE_CHANNEL_CONTROL,
    .min = sizeof(struct disk_ranges_form),
    .max = PAYLOAD_LIST(disk_ranges_form, range_form, WIRE_RANGES_PER_MSG),
    .check = disk_ranges_check,
    .put = disk_ranges_put,
    .get = disk_ranges_get,
};

/* Frames */

static int frames_check(const struct wire_msg *msg, struct err *err)
{
    const struct wire_frames *frames = &msg->u.frames;

    if (frames->nic >= WIRE_NICS_MAX || frames->n_bytes < WIRE_FRAME_BYTES_MIN ||
        frames->n_bytes > WIRE_FRAME_BYTES_MAX)
        return err_set(err, -EPROTO, "%u bytes for NIC %u", frames->n_bytes, frames->nic);
    return 0;
}

static int frames_put(const struct wire_msg *msg, struct wire_writer *w)
{
    const struct wire_frames *frames = &msg->u.frames;
    struct frames_form *form = wire_room(w, sizeof(*form));

    if (!form)
        return -ENOSPC;
    form->nic = frames->nic;
    form->n_bytes = le32_of(frames->n_bytes);
    return wire_put(w, frames->bytes, frames->n_bytes);
}

static int frames_get(struct wire_reader *r, struct wire_msg *msg, struct err *err)
{
    struct wire_frames *frames = &msg->u.frames;
    const struct frames_form *form = wire_take(r, sizeof(*form));

    if (!form)
        return payload_too_short(err);
    if (!wire_all_zero(form->zero, sizeof(form->zero)))
        return payload_malformed(err);
    frames->nic = form->nic;
    frames->n_bytes = le32_get(form->n_bytes);
    frames->bytes = wire_take(r, frames->n_bytes);
    return frames->bytes ? 0 : payload_too_short(err);
}

const struct payload_codec frames_codec = {
    .name = "frames",
    .channel = WIRE_CHANNEL_CONTROL,
    .min = sizeof(struct frames_form) + WIRE_FRAME_BYTES_MIN,
    .max = sizeof(struct frames_form) + WIRE_FRAME_BYTES_MAX,
    .check = frames_check,
    .put = frames_put,
    .get = frames_get,
};
