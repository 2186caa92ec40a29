/* SPDX-License-Identifier: Apache-2.0 */
#include "gate_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "io/tap.h"

enum { MTU = 9000, LOOP_ROUNDS_MAX = 10000, HEADER_MAX = 44 };

static const uint8_t neighbour[6] = {0x52, 0x54, 0x00, 0x99, 0x99, 0x99};
const uint8_t guest_mac[NICS][6] = {{0x52, 0x54, 0x00, 0x12, 0x34, 0x56},
                                    {0x52, 0x54, 0x00, 0x12, 0x34, 0x57}};

struct kind {
    const char *what;
    uint8_t to[6];
    bool stays; /* the bridge does not forward it: only seen at its port */
    uint32_t n_bytes, n_header;
    uint8_t header[HEADER_MAX]; /* from the type on */
};

/* clang-format off */
#define NEIGHBOUR {0x52, 0x54, 0x00, 0x99, 0x99, 0x99}
#define EVERYBODY {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
#define ARP_BODY(op) 0, 1, 8, 0, 6, 4, 0, op, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 192, 0, 2, 7

static const struct kind kinds[KINDS] = {
    [IPV4] = {"IPv4", NEIGHBOUR, false, 98, 22, {0x08, 0x00, 0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 17,
     0xb6, 0x89, 192, 0, 2, 7, 192, 0, 2, 8}},
    [IPV6] = {"IPv6", {0x33, 0x33, 0, 0, 0, 1}, false, 94, 42, {0x86, 0xdd, 0x60, 0, 0, 0, 0, 40,
     17, 64, 0xfe, 0x80, [25] = 7, 0xff, 0x02, [41] = 1}},
    {"ARP request", EVERYBODY, false, 60, 20, {0x08, 0x06, ARP_BODY(1)}},
    {"ARP reply", NEIGHBOUR, false, 60, 20, {0x08, 0x06, ARP_BODY(2)}},
    {"802.1Q", NEIGHBOUR, false, 64, 24, {0x81, 0, 0x60, 7, 0x08, 0x06, ARP_BODY(1)}},
    {"QinQ", NEIGHBOUR, false, 80, 10, {0x88, 0xa8, 0, 9, 0x81, 0, 0, 7, 0x08, 0}},
    {"LLDP", {0x01, 0x80, 0xc2, 0, 0, 0x0e}, true, 60, 4, {0x88, 0xcc, 0x02, 0x07}},
    {"STP", {0x01, 0x80, 0xc2, 0, 0, 0}, false, 60, 5, {0, 38, 0x42, 0x42, 0x03}},
    [SHORT] = {"unknown type", NEIGHBOUR, false, 18, 2, {0x88, 0xb5}},
    {"shortest", NEIGHBOUR, false, NETPORT_FRAME_MIN, 2, {0x88, 0xb6}},
    {"longest", NEIGHBOUR, false, MTU + 14, 2, {0x88, 0xb5}},
    {"longest, tagged", NEIGHBOUR, false, MTU + 18, 6, {0x81, 0, 0, 7, 0x88, 0xb5}},
    [GIANT] = {"longer than the MTU", NEIGHBOUR, true, NETPORT_FRAME_MAX, 2, {0x88, 0xb5}},
};
/* clang-format on */

struct gate_rig rig;

static struct {
    char dir[32], hyp_path[NICS][64], guard_path[NICS][64];
    int hyp_fd[NICS];
    unsigned port[NICS]; /* device numbers of the taps */
    struct {
        uint8_t nic, kind;
    } log[LOG_FRAMES];
    uint32_t n_said, n_heard[NICS]; /* of the neighbour's frames */
} own;

/* ---- the hypervisor ---- */

static uint32_t make_frame(uint32_t number, uint8_t *frame)
{
    const struct kind *kind = &kinds[own.log[number].kind];
    uint32_t used = 12 + kind->n_header;

    memset(frame, (int)number, kind->n_bytes);
    memcpy(frame, kind->to, 6);
    memcpy(frame + 6, guest_mac[own.log[number].nic], 6);
    memcpy(frame + 12, kind->header, kind->n_header);
    if (kind->n_bytes >= used + sizeof(number))
        memcpy(frame + used, &number, sizeof(number));
    return kind->n_bytes;
}

bool rig_try_send_bytes(unsigned nic, const uint8_t *bytes, size_t n_bytes)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};

    memcpy(to.sun_path, own.guard_path[nic], strlen(own.guard_path[nic]));
    if (sendto(own.hyp_fd[nic], bytes, n_bytes, 0, (struct sockaddr *)&to, sizeof(to)) >= 0)
        return true;
    assert_int_equal(errno, EAGAIN);
    return false;
}

bool rig_try_send(unsigned nic, unsigned kind)
{
    static uint8_t frame[LAN_FRAME_MAX];

    assert_true(rig.n_sent < LOG_FRAMES);
    own.log[rig.n_sent].nic = (uint8_t)nic;
    own.log[rig.n_sent].kind = (uint8_t)kind;
    if (!rig_try_send_bytes(nic, frame, make_frame(rig.n_sent, frame)))
        return false;
    rig.n_sent++;
    return true;
}

void rig_send(unsigned nic, unsigned kind)
{
    assert_true(rig_try_send(nic, kind));
    rig_run_loop();
}

void rig_send_all_kinds(void)
{
    for (unsigned i = 0; i < NICS * KINDS; i++)
        rig_send((i / KINDS + i) % NICS, i % KINDS);
}

static int on_inbound(sd_event_source *source, int fd, uint32_t events, void *user)
{
    static uint8_t frame[LAN_FRAME_MAX];
    uint32_t *n_heard = user;
    ssize_t n = recv(fd, frame, sizeof(frame), MSG_DONTWAIT);

    if (n == 60 && memcmp(frame + 6, neighbour, 6) == 0)
        (*n_heard)++; /* others come from the guest's other NIC */
    return 0;
}

void rig_hear(void)
{
    uint8_t frame[60] = EVERYBODY;

    memcpy(frame + 6, neighbour, 6);
    lan_write(frame, sizeof(frame));
    own.n_said++;
    for (int i = 0; own.n_heard[0] < own.n_said || own.n_heard[1] < own.n_said; i++) {
        assert_true(i < LOOP_ROUNDS_MAX);
        assert_true(sd_event_run(rig.body.event, WAIT_MS * 1000) > 0);
    }
}

/* ---- the guard ---- */

void rig_run_loop(void)
{
    for (int i = 0; i < LOOP_ROUNDS_MAX; i++) {
        int r = sd_event_run(rig.body.event, 0);

        assert_true(r >= 0);
        if (r == 0)
            return;
    }
    fail_msg("the event loop never rests");
}

void rig_cut(void)
{
    output_take(rig.output);
    gate_cut(&rig.gate, rig.gate.open_epoch);
}

void rig_commit(uint64_t epoch)
{
    rig.gate.committed = epoch;
    output_flush(rig.output);
}

void rig_flow(void)
{
    rig.gate.holding = false;
    output_flush(rig.output);
}

/* ---- what leaves ---- */

/* Returns the port at which it was seen. */
static unsigned expect_frame_at(enum lan_place place, const uint8_t *bytes, size_t n_bytes,
                                const char *what)
{
    static uint8_t frame[LAN_FRAME_MAX];
    unsigned port;
    size_t n = lan_read(place, WAIT_MS, frame, &port);

    if (!n)
        fail_msg("%s of %zu bytes did not leave", what, n_bytes);
    if (n != n_bytes || memcmp(frame, bytes, n) != 0)
        fail_msg("a frame of %zu bytes and type %02x%02x left instead of %s of %zu", n, frame[12],
                 frame[13], what, n_bytes);
    return port;
}

void rig_expect_frame(unsigned nic, bool at_wire, const uint8_t *bytes, size_t n_bytes,
                      const char *what)
{
    assert_int_equal(expect_frame_at(LAN_PORTS, bytes, n_bytes, what), own.port[nic]);
    if (at_wire)
        (void)expect_frame_at(LAN_WIRE, bytes, n_bytes, what);
}

void rig_expect_left(uint32_t n)
{
    static uint8_t frame[LAN_FRAME_MAX];

    for (; n; n--, rig.n_left++) {
        const struct kind *kind = &kinds[own.log[rig.n_left].kind];
        uint32_t n_bytes = make_frame(rig.n_left, frame);

        assert_true(rig.n_left < rig.n_sent);
        rig_expect_frame(own.log[rig.n_left].nic, !kind->stays, frame, n_bytes, kind->what);
    }
    for (enum lan_place place = LAN_PORTS; place <= LAN_WIRE; place++) {
        size_t more = lan_read(place, 0, frame, NULL);

        if (more)
            fail_msg("a frame of %zu bytes and type %02x%02x left, too", more, frame[12],
                     frame[13]);
    }
}

void rig_expect_stats(uint64_t held, uint64_t released, uint64_t dropped)
{
    struct output_stats s;

    output_stats_get(rig.output, &s);
    assert_int_equal(s.held_frames, held);
    assert_int_equal(s.released_frames, released);
    assert_int_equal(s.dropped_frames, dropped);
}

/* ---- set-up ---- */

int rig_make_network(void **state)
{
    (void)snprintf(own.dir, sizeof(own.dir), "/tmp/gate.XXXXXX");
    assert_non_null(mkdtemp(own.dir));
    for (int i = 0; i < NICS; i++) {
        (void)snprintf(own.hyp_path[i], sizeof(own.hyp_path[i]), "%s/hyp-%d.sock", own.dir, i);
        (void)snprintf(own.guard_path[i], sizeof(own.guard_path[i]), "%s/guard-%d.sock", own.dir,
                       i);
    }
    lan_open(MTU);
    return 0;
}

int rig_remove_network(void **state)
{
    lan_close();
    return rmdir(own.dir); /* fails when a test leaves something behind */
}

static void start_nic(unsigned nic)
{
    struct netport_config config = {.vm = "web",
                                    .nic = nic,
                                    .bridge = "br0",
                                    .hyp_path = own.hyp_path[nic],
                                    .guard_path = own.guard_path[nic]};
    struct sockaddr_un hyp = {.sun_family = AF_UNIX};
    char name[IFNAMSIZ];
    struct err err = {""};

    memcpy(config.mac, guest_mac[nic], 6);
    if (netport_open(&config, &rig.body.ports[nic], &err) < 0)
        fail_msg("%s", err.text);
    tap_name("web", nic, name);
    own.port[nic] = if_nametoindex(name);
    memcpy(hyp.sun_path, own.hyp_path[nic], strlen(own.hyp_path[nic]));
    own.hyp_fd[nic] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(own.hyp_fd[nic], (struct sockaddr *)&hyp, sizeof(hyp)), 0);
    assert_true(sd_event_add_io(rig.body.event, NULL, own.hyp_fd[nic], EPOLLIN, on_inbound,
                                &own.n_heard[nic]) >= 0);
}

int rig_open(void **state)
{
    static const struct host_config config = {.gate_mib = GATE_BYTES >> 20};
    static uint8_t frame[LAN_FRAME_MAX];
    struct err err = {""};

    own.n_said = own.n_heard[0] = own.n_heard[1] = 0;
    rig = (struct gate_rig){.body = {.config = &config, .spec.n_nics = NICS}};
    gate_init(&rig.gate, 1);
    rig.gate.holding = true;
    assert_int_equal(sd_event_new(&rig.body.event), 0);
    for (unsigned i = 0; i < NICS; i++)
        start_nic(i);
    if (output_new(&rig.body, &rig.gate, &rig.output, &err) < 0)
        fail_msg("%s", err.text);
    for (enum lan_place place = LAN_PORTS; place <= LAN_WIRE; place++) {
        while (lan_read(place, 0, frame, NULL)) /* what a test before that failed did not read */
            ;
    }
    rig_hear();
    return 0;
}

int rig_close(void **state)
{
    output_close(rig.output);
    sd_event_unref(rig.body.event);
    for (int i = 0; i < NICS; i++) {
        netport_close(rig.body.ports[i]);
        close(own.hyp_fd[i]);
        (void)unlink(own.hyp_path[i]);
    }
    return 0;
}
