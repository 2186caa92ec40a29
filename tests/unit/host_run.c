/* SPDX-License-Identifier: Apache-2.0 */
#include "host_run.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/control.h"
#include "io/peers.h"
#include "keys.h"
#include "unit.h"

static const char *understudyd, *fake_guard;

bool host_run_programs(const char *understudyd_path, const char *fake_guard_path)
{
    understudyd = realpath(understudyd_path, NULL); /* the configuration wants whole paths */
    fake_guard = realpath(fake_guard_path, NULL);
    return understudyd && fake_guard;
}

static unsigned free_port(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(addr);
    int sock = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(sock, (struct sockaddr *)&addr, n), 0);
    assert_int_equal(getsockname(sock, (struct sockaddr *)&addr, &n), 0);
    close(sock);
    return ntohs(addr.sin_port);
}

/* Makes the peer's key, and the file that has it. */
static void make_peer(struct host_run *h)
{
    struct host_config config = {.name = "hostb"};
    char path[64];
    struct err err;

    (void)snprintf(config.state_dir, sizeof(config.state_dir), "%s/state", h->dir);
    (void)snprintf(path, sizeof(path), "%s/hosta.key", h->dir);
    assert_int_equal(mkdir(config.state_dir, 0700), 0);
    assert_int_equal(identity_load(path, true, &h->hosta, &err), 0);
    assert_int_equal(peers_add(&config, "hosta", "127.0.0.1:1", identity_public(h->hosta), &err),
                     0);
    assert_int_equal(peers_save(&config, &err), 0);
}

void host_run_configure(const struct host_run *h, const char *line)
{
    FILE *config = fopen(h->config, "a");

    fprintf(config, "%s\n", line);
    assert_int_equal(fclose(config), 0);
}

static void init(struct host_run *h)
{
    FILE *config;

    *h = (struct host_run){.dir = "/tmp/host.XXXXXX"};
    assert_non_null(mkdtemp(h->dir));
    (void)snprintf(h->config, sizeof(h->config), "%s/u.yaml", h->dir);
    (void)snprintf(h->socket, sizeof(h->socket), "%s/run/understudyd.sock", h->dir);
    h->port = free_port();
    config = fopen(h->config, "w");
    fprintf(config,
            "name: hostb\nlisten: 127.0.0.1:%u\n"
            "arbiter: {witness: '127.0.0.1:1', key: '" KEY_1
            "'}\nstate_dir: %s/state\nrun_dir: %s/run\n"
            "memory_dir: %s/memory\nguard: %s\n",
            h->port, h->dir, h->dir, h->dir, fake_guard);
    assert_int_equal(fclose(config), 0);
    make_peer(h);
}

void host_run_wait(const struct host_run *h, bool (*done)(const struct host_run *h))
{
    for (int i = 0; i < 1000; i++) {
        if (done(h))
            return;
        (void)poll(NULL, 0, 10);
    }
    fail_msg("waited for 10 s");
}

int host_run_ask(const struct host_run *h, json_t *request, json_t **ret_answer, struct err *err)
{
    int r = control_ask(h->socket, request, 20000, NULL, NULL, ret_answer, err);

    json_decref(request);
    return r;
}

const char *host_run_text(const struct host_run *h, json_t *request)
{
    static char text[8192];
    struct err err;
    json_t *answer;

    if (host_run_ask(h, request, &answer, &err) < 0) {
        (void)snprintf(text, sizeof(text), "%s", err.text);
    } else {
        char *dump = json_dumps(answer, JSON_COMPACT);

        (void)snprintf(text, sizeof(text), "%s", dump);
        free(dump);
        json_decref(answer);
    }
    return text;
}

const char *host_run_start_vm(const struct host_run *h, const char *vm, bool seize)
{
    json_t *spec =
        json_pack("{s:s, s:i, s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:[], s:[], s:[], "
                  "s:{s:s, s:i, s:i, s:s, s:i}}",
                  "name", vm, "memory_bytes", 64 << 20, "cpus", 1, "machine", "", "cpu", "",
                  "accel", "", "kernel", "/k", "initrd", "", "append", "", "firmware", "", "nics",
                  "disks", "qemu_args", "protect", "standby", "hosta", "interval_min_ns", 5000000,
                  "interval_max_ns", 500000000, "output", "hold", "copy_rate_bytes", 0);

    return host_run_text(
        h, json_pack("{s:s, s:o, s:b}", "command", "start", "vm", spec, "seize", seize));
}

bool host_run_is_up(const struct host_run *h)
{
    json_t *answer;
    struct err err;

    assert_int_equal(waitpid(h->daemon, NULL, WNOHANG), 0);
    if (host_run_ask(h, json_pack("{s:s}", "command", "ping"), &answer, &err) < 0)
        return false;
    json_decref(answer);
    return true;
}

void host_run_start(struct host_run *h)
{
    h->daemon = fork();
    assert_true(h->daemon >= 0);
    if (h->daemon == 0) {
        char log[64];
        int fd;

        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)snprintf(log, sizeof(log), "%s/understudyd.log", h->dir);
        fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        (void)dup2(fd, STDERR_FILENO);
        (void)execl(understudyd, understudyd, "--config", h->config, NULL);
        _exit(127);
    }
    host_run_wait(h, host_run_is_up);
}

int host_run_end(struct host_run *h, int signal)
{
    int status;

    assert_int_equal(kill(h->daemon, signal), 0);
    assert_int_equal(waitpid(h->daemon, &status, 0), h->daemon);
    h->daemon = 0;
    return status;
}

json_t *host_run_status(const struct host_run *h, const char *vm)
{
    json_t *answer, *one;
    struct err err;

    if (host_run_ask(h, json_pack("{s:s, s:s}", "command", "status", "vm", vm), &answer, &err) < 0)
        return NULL;
    one = json_incref(json_array_get(json_object_get(answer, "vms"), 0));
    json_decref(answer);
    return one;
}

int host_run_number(const struct host_run *h, const char *vm, const char *key)
{
    json_t *status = host_run_status(h, vm);
    int number = (int)json_integer_value(json_object_get(status, key));

    json_decref(status);
    return number;
}

unsigned host_run_logged(const struct host_run *h, const char *text)
{
    char path[64], line[1024];
    unsigned n = 0;
    FILE *log;

    (void)snprintf(path, sizeof(path), "%s/understudyd.log", h->dir);
    log = fopen(path, "r");
    assert_non_null(log);
    while (fgets(line, sizeof(line), log))
        n += strstr(line, text) != NULL;
    (void)fclose(log); /* only read */
    return n;
}

bool host_run_exists(const struct host_run *h, const char *path)
{
    char full[128];

    (void)snprintf(full, sizeof(full), "%s/%s", h->dir, path);
    return access(full, F_OK) == 0;
}

static void done(struct host_run *h)
{
    char command[64];
    json_t *answer, *vm;
    struct err err;
    size_t i;

    if (h->daemon && host_run_ask(h, json_pack("{s:s}", "command", "status"), &answer, &err) == 0) {
        json_array_foreach(json_object_get(answer, "vms"), i, vm)
        {
            if (json_integer_value(json_object_get(vm, "pid")) > 1)
                (void)kill((pid_t)json_integer_value(json_object_get(vm, "pid")), SIGKILL);
        }
        json_decref(answer);
    }
    if (h->daemon)
        (void)host_run_end(h, SIGKILL);
    identity_free(h->hosta);
    (void)snprintf(command, sizeof(command), "rm -rf %s", h->dir);
    assert_int_equal(system(command), 0);
}

int host_run_setup(void **state)
{
    struct host_run *h = malloc(sizeof(*h));

    init(h);
    host_run_start(h);
    *state = h;
    return 0;
}

int host_run_teardown(void **state)
{
    done(*state);
    free(*state);
    return 0;
}
