/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "io/config.h"
#include "io/control.h"
#include "io/peers.h"
#include "io/tls.h"
#include "wire/msg.h"

/* Stands in for understudy-guard in the test of understudyd. The VM's name says what it does:
 *
 *   crash*   writes a line to its log and aborts before it is ready
 *   refuse*  refuses to start
 *   slow*    standby: is ready once a byte follows the hello on its connection
 *   old*     does not know "reload"
 *   busy*    refuses connections
 *   deaf*    never answers `status`
 *   seized*, recovered*  has to be started with that option, and nothing else with it
 *   copies*  copies its disk, 1 MiB with each look at its status
 *   stays*   refuses to switch over
 *   differs*, broken*, endless*  how `verify` ends; otherwise the copies are equal
 *
 * Anything else runs, answers what it is asked, and ends when it is stopped. It never outlives the
 * test by more than a minute. */

static char name[VM_NAME_MAX];
static const char *role;
static struct host_config config;
static sd_event *event;
static const char *config_path;
static struct tls_context *tls;
static unsigned adopted, reloads;
static struct control_request *held;
static json_int_t looks;          /* at its status */
static json_int_t verify_at = -1; /* `looks` when `verify` came; -1: it has not */
static json_int_t verify_rate;

#define MIB 1048576

static bool is(const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static bool trusted(void *user, const struct public_key *theirs)
{
    return host_config_peer_by_key(&config, theirs) != NULL;
}

/* The room: makes TLS on a connection, reads the hello in it, and accepts it. What is open stays so
 * until the end. */
static bool welcome(int fd)
{
    struct tls_params params = {.role = TLS_SERVER, .purpose = TLS_ROOM, .trusted = trusted};
    struct transport *t = transport_tls_new(tls, fd, &params);
    uint8_t raw[WIRE_HELLO_BYTES];
    struct iovec iov = {raw, sizeof(raw)};
    struct wire_hello hello, answer;

    if (!t || transport_set_blocking(t, true) < 0 || transport_read_all(t, raw, sizeof(raw)) < 0 ||
        wire_hello_decode(raw, &hello, NULL) < 0)
        return false;
    wire_hello_answer(&hello, config.name, WIRE_OK, name, &answer);
    wire_hello_encode(&answer, raw);
    return transport_write_all(t, &iov, 1) == 0;
}

/* The peer comes in only after the answer. */
static void adopt(struct control_request *req, int fd)
{
    adopted++;
    control_reply(req, NULL);
    (void)welcome(fd); /* the test sees it */
}

static void reload(struct control_request *req)
{
    struct err err;

    if (is("old") || host_config_load(config_path, &config, &err) < 0) {
        control_fail(req, "unknown command \"reload\"");
        return;
    }
    reloads++;
    control_reply(req, NULL);
}

static json_t *disks_status(void)
{
    return json_pack("[{s:s, s:I, s:s, s:I, s:I, s:I, s:I}]", "path", "/srv/disk.img", "size_bytes",
                     (json_int_t)64 * MIB, "state", is("copies") ? "copying" : "in step",
                     "done_bytes", looks * MIB, "total_bytes", (json_int_t)64 * MIB, "copied_bytes",
                     (json_int_t)MIB, "dirty_bytes", (json_int_t)0);
}

/* A comparison takes two looks. */
static json_t *verify_status(void)
{
    bool running = is("endless") || looks - verify_at < 2;
    json_t *verify =
        json_pack("{s:b, s:i, s:I, s:I, s:[], s:b, s:I, s:I}", "running", running, "disk", 0,
                  "done_bytes", (looks - verify_at) * 32 * MIB, "total_bytes", (json_int_t)64 * MIB,
                  "differing", "more", 0, "finished_at", (json_int_t)1, "asked_rate", verify_rate);
    json_t *differing = json_object_get(verify, "differing");

    if (!running && is("broken"))
        json_object_set_new(verify, "error", json_string("the link broke"));
    for (int i = 0; !running && is("differs") && i < 2; i++)
        json_array_append_new(differing, json_pack("{s:i, s:i, s:i}", "disk", i, "offset",
                                                   (i + 1) * 65536, "bytes", 4096));
    return verify;
}

static json_t *status(void)
{
    json_t *json = json_pack("{s:s, s:s, s:i, s:i, s:i, s:o, s:s}", "vm", name, "role", role, "pid",
                             (int)getpid(), "adopted", (int)adopted, "reloads", (int)reloads,
                             "disks", disks_status(), "state", "protected");

    if (verify_at >= 0)
        json_object_set_new(json, "verify", verify_status());
    looks++;
    return json;
}

static void verify(struct control_request *req)
{
    verify_at = looks;
    verify_rate = json_integer_value(json_object_get(control_body(req), "rate_bytes"));
    control_reply(req, NULL);
}

static void on_request(void *user, struct control_request *req)
{
    const char *command = control_command(req);
    int fd = control_take_fd(req);

    if (strcmp(command, "status") == 0 && is("deaf")) {
        held = req;
    } else if (strcmp(command, "status") == 0) {
        control_reply(req, json_pack("{s:o}", "status", status()));
    } else if (strcmp(command, "verify") == 0) {
        verify(req);
    } else if (strcmp(command, "switchover") == 0 && is("stays")) {
        control_fail(req, "%s: hosta does not answer; it goes on here", name);
    } else if (strcmp(command, "adopt") == 0 && (is("busy") || fd < 0)) {
        control_fail(req, "%s: runs here", name);
    } else if (strcmp(command, "adopt") == 0) {
        adopt(req, take_fd(&fd));
    } else if (strcmp(command, "reload") == 0) {
        reload(req);
    } else if (strcmp(command, "stop") == 0) {
        control_reply(req, NULL);
        (void)sd_event_exit(event, 0);
    } else {
        control_progress(req, json_pack("{s:s}", "text", command));
        control_reply(req, json_pack("{s:s}", "to", control_string(req, "to")));
    }
    if (fd >= 0)
        close(fd);
}

static void ready(int fd, const char *line)
{
    if (write(fd, line, strlen(line)) < 0)
        exit(9);
    close(fd);
}

/* FILE is .../NAME.json for a primary, NAME for a standby. */
static void take_name(const char *text)
{
    const char *slash = strrchr(text, '/');

    (void)snprintf(name, sizeof(name), "%s", slash ? slash + 1 : text);
    name[strcspn(name, ".")] = '\0';
}

static int serve(void)
{
    struct control_server *server;
    char path[VM_PATH_MAX + VM_NAME_MAX + 16], key_path[STATE_PATH_MAX];
    struct identity *identity;
    struct err err;

    host_key_path(&config, key_path);
    if (identity_load(key_path, false, &identity, &err) < 0 ||
        tls_context_new(identity, &tls, &err) < 0)
        return 9;

    (void)snprintf(path, sizeof(path), "%s/vms/%s.sock", config.run_dir, name);
    if (sd_event_new(&event) < 0 ||
        control_server_new(event, path, on_request, NULL, &server, &err) < 0)
        return 9;
    return 0;
}

int main(int argc, char **argv)
{
    int ready_fd = -1, conn_fd = -1;
    bool seize = false, recover = false;
    struct err err;

    alarm(60);
    role = argc > 1 ? argv[1] : "";
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--seize") == 0)
            seize = true;
        else if (strcmp(argv[i], "--recover") == 0)
            recover = true;
        else if (i + 1 == argc)
            return 9;
        else if (strcmp(argv[i], "--config") == 0)
            config_path = argv[++i];
        else if (strcmp(argv[i], "--vm") == 0)
            take_name(argv[++i]);
        else if (strcmp(argv[i], "--ready-fd") == 0)
            ready_fd = atoi(argv[++i]);
        else if (strcmp(argv[i], "--conn-fd") == 0)
            conn_fd = atoi(argv[++i]);
    }
    if (host_config_load(config_path, &config, &err) < 0)
        return 9;
    if (is("crash")) {
        fprintf(stderr, "it went wrong\n");
        abort();
    }
    if (is("refuse")) {
        ready(ready_fd, "{\"ok\":false,\"error\":\"no room for it\"}\n");
        return 1;
    }
    if (is("seized") != seize || is("recovered") != recover || serve() != 0)
        return 9;
    if (conn_fd >= 0 && !welcome(conn_fd))
        return 9;
    if (is("slow") && poll(&(struct pollfd){.fd = conn_fd, .events = POLLIN}, 1, -1) != 1)
        return 9;
    ready(ready_fd, "{\"ok\":true}\n");
    return sd_event_loop(event);
}
