/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_HYP_FAKE_QEMU_H
#define US_TESTS_HYP_FAKE_QEMU_H

#include <jansson.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hyp/qemu/args.h"

/* Plays QEMU as far as the driver can see: the control protocol and migrations, with the one
 * misbehaviour that the environment variable FAKE_QEMU names ("" = none). Devices can be saved
 * without a migration when that name begins with "save". */

struct fake_monitor {
    int fd;
    char text[4096];
    size_t n;
    int depth;
};

struct fake {
    struct fake_monitor monitors[2], *at; /* the one that the command came by */
    int fd;                               /* passed by the last command that took one; -1 = none */
    int save_fd;
    unsigned int epoch; /* how often the VM was stopped for a checkpoint */
    bool running;
    bool incoming;
    unsigned int conts; /* refused so far */
    unsigned int looks; /* of the driver that has attached */
    bool started;       /* the VM has run */
};

static bool misbehaves(const char *how)
{
    return strcmp(getenv("FAKE_QEMU"), how) == 0;
}

static void say(const struct fake *q, const char *text)
{
    if (write(q->at->fd, text, strlen(text)) < 0)
        _exit(7);
}

/* Events come at both, however much the driver listens to one only. */
static void say_event(const struct fake *q, const char *text)
{
    for (unsigned int i = 0; i < 2; i++)
        (void)send(q->monitors[i].fd, text, strlen(text), MSG_NOSIGNAL);
}

static void reply(const struct fake *q, json_int_t id, const char *body)
{
    char line[1100];

    (void)snprintf(line, sizeof(line), "{%s, \"id\": %lld}\r\n", body, (long long)id);
    say(q, line);
}

static void say_status(const struct fake *q, const char *status)
{
    char line[256];

    (void)snprintf(line, sizeof(line),
                   "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"%s\"}}\r\n", status);
    say_event(q, line);
}

static bool can_save(void)
{
    return strncmp(getenv("FAKE_QEMU"), "save", 4) == 0;
}

static void set_running(struct fake *q, bool running)
{
    if (q->running != running)
        say_event(q, running ? "{\"event\": \"RESUME\"}\r\n" : "{\"event\": \"STOP\"}\r\n");
    q->running = running;
    q->started |= running;
}

/* What a migration writes is this and the devices; what is saved, a header and the devices. */
#define FAKE_BASE   "QEVMthree ROMs, "
#define FAKE_HEADER "QEVM-hdr"

enum { FAKE_DEVICES_MAX = 100 };

static int fake_devices(unsigned int epoch, char *ret_text)
{
    /* The ACPI tables are asked for after the third checkpoint of "save-tables". */
    return snprintf(ret_text, FAKE_DEVICES_MAX, "devices at %u, \nacpi_build%09d.end", epoch,
                    misbehaves("save-tables") && epoch > 3);
}

static void fake_save(struct fake *q, json_int_t id)
{
    char text[FAKE_DEVICES_MAX];
    int n = fake_devices(q->epoch, text);

    while (misbehaves("save-hang") && q->epoch == 3)
        (void)pause();
    if (misbehaves("save-never") || (misbehaves("save-fail") && q->epoch == 3)) {
        reply(q, id, "\"error\": {\"desc\": \"no space\"}");
        return;
    }
    if (misbehaves("save-clock") || (misbehaves("save-tick") && q->epoch == 1))
        text[0]++;
    if (ftruncate(q->save_fd, 0) < 0 || write(q->save_fd, FAKE_HEADER, 8) != 8 ||
        write(q->save_fd, text, (size_t)n) != n)
        _exit(10);
    reply(q, id, "\"return\": {}");
}

static void fake_stop(struct fake *q, json_int_t id)
{
    q->epoch++;
    if (misbehaves("save-reset") && q->epoch == 3)
        say_event(q, "{\"event\": \"RESET\", \"data\": {\"guest\": true}}\r\n");
    if (misbehaves("save-asleep") && q->epoch == 3) /* it is suspended, and does not stop again */
        q->running = false;
    set_running(q, false);
    reply(q, id, "\"return\": {}");
}

static void fake_ramblocks(const struct fake *q, json_int_t id)
{
    char text[300];

    (void)snprintf(text, sizeof(text),
                   "\"return\": {\"human-readable-text\": \"   Block Name   PSize\\n"
                   "    ram0  4 KiB\\n  pc.bios  4 KiB\\n /rom@etc/acpi/tables 4 KiB\\n%s\"}",
                   misbehaves("save-vga") ? "  vga.vram 4 KiB\\n" : "");
    reply(q, id, can_save() ? text : "\"error\": {\"desc\": \"unknown command\"}");
}

static void fake_write_state(const struct fake *q)
{
    char devices[FAKE_DEVICES_MAX];
    struct iovec text[] = {{(void *)(uintptr_t)FAKE_BASE, strlen(FAKE_BASE)}, {devices, 0}};

    if (can_save())
        text[1].iov_len = (size_t)fake_devices(q->epoch, devices);
    else
        text[0] = (struct iovec){(void *)(uintptr_t) "state", 5};
    if (writev(q->fd, text, 2) != (ssize_t)(text[0].iov_len + text[1].iov_len))
        _exit(6);
}

/* Migrates as QEMU does, but for what it shall do wrong. */
static void fake_migrate(struct fake *q, json_int_t id)
{
    bool was_running = q->running;

    q->epoch += was_running;

    if (misbehaves("refuse")) {
        reply(q, id, "\"error\": {\"desc\": \"device x blocks it\"}");
        return;
    }
    reply(q, id, "\"return\": {}");
    say_status(q, "active");
    if (misbehaves("hang"))
        return;
    set_running(q, false);
    if (misbehaves("die")) {
        fprintf(stderr, "fake: first line\nfake: \x1b[1mout of order\n");
        _exit(3);
    }
    if (misbehaves("shutdown")) {
        say_event(q, "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, "
                     "\"reason\": \"guest-shutdown\"}}\r\n");
        _exit(0);
    }
    if (misbehaves("garbage"))
        say(q, "\x01\x02 not JSON\r\n");
    if (misbehaves("fail")) {
        say_status(q, "failed");
        set_running(q, was_running);
    } else {
        if (!misbehaves("empty"))
            fake_write_state(q);
        say_status(q, "completed");
    }
    if (misbehaves("endless"))
        return; /* the stream stays open */
    close(q->fd);
    q->fd = -1;
}

static void fake_migrate_incoming(struct fake *q, json_int_t id)
{
    char bytes[64];
    ssize_t n, total = 0;

    reply(q, id, "\"return\": {}");
    while ((n = read(q->fd, bytes + total, sizeof(bytes) - (size_t)total)) > 0)
        total += n;
    if (total != 5 || memcmp(bytes, "state", 5) != 0) {
        fprintf(stderr, "fake: load of migration failed\n");
        _exit(1);
    }
    if (!misbehaves("paused"))
        set_running(q, true);
    say_status(q, "completed");
    q->incoming = false;
}

/* Two disks, among other devices. */
static void fake_blockstats(const struct fake *q, json_int_t id)
{
    static const char disk[] = "{\"device\": \"\", \"node-name\": \"disk%d\", "
                               "\"qdev\": \"/machine/peripheral/disk%d/virtio-backend\", "
                               "\"stats\": {\"flush_operations\": %s, "
                               "\"failed_flush_operations\": %d}}";
    char list[1024];
    int n = snprintf(list, sizeof(list), "\"return\": [{\"device\": \"cd\", \"stats\": {}}, ");

    if (misbehaves("no-stats")) {
        reply(q, id, "\"error\": {\"desc\": \"out of paper\"}");
        return;
    }
    if (misbehaves("mute"))
        return;
    n += snprintf(list + n, sizeof(list) - (size_t)n, disk, 1, 1, "7", 0);
    if (!misbehaves("lost-disk")) {
        n += snprintf(list + n, sizeof(list) - (size_t)n, ", ");
        n += snprintf(list + n, sizeof(list) - (size_t)n, disk, 0, 0,
                      misbehaves("odd-stats") ? "-1" : "40", 2);
    }
    (void)snprintf(list + n, sizeof(list) - (size_t)n, "]");
    reply(q, id, list);
}

static void fake_query_migrate(struct fake *q, json_int_t id)
{
    if (misbehaves("blocked"))
        reply(q, id, "\"return\": {\"blocked-reasons\": [\"device y\"]}");
    else if (misbehaves("late-end") && q->looks++ < 3)
        reply(q, id, "\"return\": {\"status\": \"active\"}");
    else
        reply(q, id, "\"return\": {\"error-desc\": \"no luck\"}");
}

static void fake_query_status(const struct fake *q, json_int_t id)
{
    if (misbehaves("no-status"))
        reply(q, id, "\"return\": {\"status\": 7}");
    else if (misbehaves("late-end") && q->looks == 4)
        reply(q, id, "\"return\": {\"status\": \"finish-migrate\"}");
    else
        reply(q, id,
              q->running    ? "\"return\": {\"status\": \"running\"}"
              : q->incoming ? "\"return\": {\"status\": \"inmigrate\"}"
              : q->started  ? "\"return\": {\"status\": \"postmigrate\"}"
                            : "\"return\": {\"status\": \"prelaunch\"}");
}

static void fake_command(struct fake *q, const json_t *command)
{
    const char *what = json_string_value(json_object_get(command, "execute"));
    json_int_t id = json_integer_value(json_object_get(command, "id"));

    if (!what || json_object_get(command, "void")) {
        reply(q, id, "\"error\": {\"desc\": \"QMP input member 'void' is unexpected\"}");
    } else if (strcmp(what, "migrate") == 0) {
        fake_migrate(q, id);
    } else if (strcmp(what, "migrate-incoming") == 0) {
        fake_migrate_incoming(q, id);
    } else if (strcmp(what, "migrate_cancel") == 0) {
        if (misbehaves("")) /* it may be the end of a VM with disks */
            _exit(9);
        reply(q, id, "\"return\": {}");
        if (!misbehaves("hang"))
            say_status(q, "cancelled");
    } else if (strcmp(what, "query-migrate") == 0) {
        fake_query_migrate(q, id);
    } else if (strcmp(what, "query-status") == 0) {
        fake_query_status(q, id);
    } else if (strcmp(what, "x-query-ramblock") == 0) {
        fake_ramblocks(q, id);
    } else if (strcmp(what, "add-fd") == 0) {
        q->save_fd = q->fd;
        reply(q, id, "\"return\": {\"fd\": 9, \"fdset-id\": 3}");
    } else if (strcmp(what, "xen-save-devices-state") == 0) {
        fake_save(q, id);
    } else if (strcmp(what, "stop") == 0) {
        fake_stop(q, id);
    } else if (strcmp(what, "query-blockstats") == 0) {
        fake_blockstats(q, id);
    } else if (strcmp(what, "cont") == 0 && misbehaves("cont-late") && q->conts++ < 3) {
        reply(q, id, "\"error\": {\"desc\": \"Migration is not finalized yet\"}");
    } else if (strcmp(what, "cont") == 0 && misbehaves("cont-never")) {
        reply(q, id, "\"error\": {\"desc\": \"never\"}");
    } else {
        if (strcmp(what, "cont") == 0)
            set_running(q, true);
        reply(q, id, "\"return\": {}");
    }
}

/* Greets who comes. What the one before had typed in part is forgotten. */
static void fake_accept(struct fake *q, unsigned int monitor)
{
    struct fake_monitor *m = &q->monitors[monitor];

    m->fd = accept(monitor ? STOP_LISTEN_FD : QMP_LISTEN_FD, NULL, NULL);
    m->n = 0;
    m->depth = 0;
    q->at = m;
    say(q, "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\", 3]}}\r\n");
    if (misbehaves("save-stale") && q->started) /* what the last client was owed */
        say(q, "{\"return\": {}, \"id\": 7}\r\n");
}

/* Reads one byte, with the descriptor that may come along. 0: the driver is gone, as far as the
 * fake can tell. */
static char fake_read(struct fake *q)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    char c;
    struct iovec iov = {&c, 1};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *cmsg;

    if (recvmsg(q->at->fd, &msg, MSG_CMSG_CLOEXEC) != 1)
        return 0;
    cmsg = CMSG_FIRSTHDR(&msg);
    if (cmsg)
        memcpy(&q->fd, CMSG_DATA(cmsg), sizeof(q->fd));
    return c;
}

/* Takes what has come at one control socket: a byte, or another client. */
static void fake_take(struct fake *q, unsigned int monitor)
{
    struct fake_monitor *m = q->at = &q->monitors[monitor];
    char c = fake_read(q);

    if (!c) {
        if (misbehaves("ends"))
            _exit(0);
        close(m->fd);
        m->fd = -1;
        return;
    }
    if (m->n + 1 == sizeof(m->text))
        _exit(8);
    m->text[m->n++] = c;
    m->depth += c == '{' ? 1 : c == '}' ? -1 : 0; /* our commands have no braces in strings */
    if (m->depth == 0 && c == '}') {
        json_auto_t *command = json_loadb(m->text, m->n, 0, NULL);

        m->n = 0;
        fake_command(q, command);
    }
}

/* What is listened to for a monitor: its client, or for one. */
static int fake_fd(const struct fake *q, unsigned int monitor)
{
    static const int listeners[] = {QMP_LISTEN_FD, STOP_LISTEN_FD};
    int fd = q->monitors[monitor].fd;

    return fd < 0 ? listeners[monitor] : fd;
}

static int play_qemu(int argc, char **argv)
{
    static struct fake q = {.fd = -1, .monitors = {{.fd = -1}, {.fd = -1}}};

    if (misbehaves("stillborn")) {
        fprintf(stderr, "fake: Property 'pc.ram' not found\n");
        return 1;
    }
    for (int i = 1; i < argc; i++)
        q.incoming |= strcmp(argv[i], "-incoming") == 0;
    for (;;) {
        struct pollfd fds[2];

        for (unsigned int i = 0; i < 2; i++)
            fds[i] = (struct pollfd){.fd = fake_fd(&q, i), .events = POLLIN};
        if (poll(fds, 2, -1) < 1)
            return 11;
        for (unsigned int i = 0; i < 2; i++) {
            if (fds[i].revents && q.monitors[i].fd < 0)
                fake_accept(&q, i);
            else if (fds[i].revents)
                fake_take(&q, i);
        }
    }
}

#endif
