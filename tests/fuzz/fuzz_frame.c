/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "io/announce.h"

/* Ethernet frames as a guest may send them. The input is a row of frames: a length (2 bytes), then
 * its bytes. Whatever is learned of them must be addresses that can be told to a peer and announced
 * on the guest's network. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

static void require(int ok)
{
    if (!ok)
        abort();
}

static void check_address(const struct guest_address *a)
{
    static const uint8_t none[16];
    uint8_t frame[ANNOUNCE_FRAME_MAX];

    require((a->family == 4 || a->family == 6) && a->vlan < 4095);
    require(memcmp(a->bytes, none, a->family == 4 ? 4 : 16) != 0);
    if (a->family == 6) {
        require(a->bytes[0] != 0xff); /* multicast */
        require(announce_neighbour(mac, a, frame) <= sizeof(frame));
        return;
    }
    require(a->bytes[0] < 224 && memcmp(a->bytes + 4, none, 12) == 0);
    require(announce_arp_request(mac, a, frame) <= sizeof(frame));
    require(announce_arp_reply(mac, a, frame) <= sizeof(frame));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct guest_address out[GUEST_ADDRESSES_MAX], again[GUEST_ADDRESSES_MAX];
    struct guest_addresses table = {0}, copy = {0};
    uint64_t now_s = 1;
    size_t n_out, at = 0;

    while (n - at >= 2) {
        size_t n_frame = data[at] | (size_t)data[at + 1] << 8;
        uint8_t *frame;

        at += 2;
        if (n_frame > n - at)
            n_frame = n - at;
        frame = malloc(n_frame + !n_frame); /* of its size, so that a read beyond it is seen */
        require(frame != NULL);
        memcpy(frame, data + at, n_frame);
        guest_addresses_learn(&table, mac, frame, n_frame, now_s++);
        free(frame);
        at += n_frame;
    }
    n_out = guest_addresses_export(&table, now_s, out);
    require(n_out <= GUEST_ADDRESSES_MAX);
    for (size_t i = 0; i < n_out; i++)
        check_address(&out[i]);
    guest_addresses_import(&copy, now_s, out, n_out);
    require(guest_addresses_export(&copy, now_s, again) == n_out);
    return 0;
}
