/* SPDX-License-Identifier: Apache-2.0 */
#include "witness/daemon.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include "base/cleanup.h"
#include "io/log.h"
#include "io/thread.h"
#include "io/tls.h"
#include "witness/hosts.h"
#include "witness/server.h"
#include "witness/state.h"
#include "witness/store.h"

struct daemon {
    sd_event *event;
    sd_event_source *watch;
    struct store *store;
    struct tls_context *tls;
    struct server *server;
};

/* A witness that waits for the CPU makes an outage longer. It needs next to no time itself. */
static void raise_priority(void)
{
    (void)thread_raise_priority(); /* not allowed: then without */
}

/* A connection takes a descriptor, and the usual limit is low for old programs' sake. */
static void raise_files(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit); /* then it serves fewer */
    }
}

/* Ends the loop on SIGTERM and SIGINT: without a handler, sd-event exits with the data as code. */
static int add_signals(sd_event *event)
{
    int r = sd_event_add_signal(event, NULL, SIGTERM | SD_EVENT_SIGNAL_PROCMASK, NULL, NULL);

    if (r >= 0)
        r = sd_event_add_signal(event, NULL, SIGINT | SD_EVENT_SIGNAL_PROCMASK, NULL, NULL);
    return r;
}

/* The key, made at the first start; a sub-command that makes it at the same time is waited for. */
static int load_identity(struct identity **ret_identity, struct err *err)
{
    CLEANUP_FD int lock = -1;
    int r = state_lock(&lock, err);

    return r < 0 ? r : identity_load(STATE_KEY, true, ret_identity, err);
}

static void hosts_changed(struct daemon *d)
{
    struct hosts *hosts;
    struct err err = {""};

    if (hosts_load(STATE_HOSTS, &hosts, &err) < 0) {
        log_error("keeping the hosts as they were: %s", err.text);
        return;
    }
    log_info("%u hosts are allowed now", hosts->n);
    server_change_hosts(d->server, hosts);
}

static void key_changed(struct daemon *d)
{
    char text[PUBLIC_KEY_TEXT];
    struct identity *identity;
    struct err err = {""};
    int r = identity_load(STATE_KEY, false, &identity, &err);

    if (r == 0) {
        r = tls_context_change(d->tls, identity, &err);
        public_key_format(identity_public(identity), text);
        identity_free(identity);
    }
    if (r < 0)
        log_error("keeping the key as it was: %s", err.text);
    else
        log_info("its key is %s now", text);
}

/* Files are only ever replaced as a whole. A lost event (overflow) may have been of any of them. */
static int on_change(sd_event_source *source, const struct inotify_event *change, void *user)
{
    struct daemon *d = user;
    bool lost = change->mask & IN_Q_OVERFLOW;

    if (lost || (change->len > 0 && strcmp(change->name, STATE_HOSTS) == 0))
        hosts_changed(d);
    if (lost || (change->len > 0 && strcmp(change->name, STATE_KEY) == 0))
        key_changed(d);
    return 0;
}

/* Everything but the event loop's own: what has to be there before anybody is served. */
static int open_all(struct daemon *d, const char *listen, struct err *err)
{
    CLEANUP_FREE struct hosts *hosts = NULL;
    struct identity *identity = NULL;
    int r;

    if (mkdir(STATE_REGISTERS, 0700) < 0 && errno != EEXIST)
        return err_sys(err, -errno, "%s", STATE_REGISTERS);
    r = store_open(STATE_REGISTERS, &d->store, err);
    if (r == 0)
        r = load_identity(&identity, err);
    if (r == 0)
        r = tls_context_new(identity, &d->tls, err);
    identity_free(identity);
    if (r < 0)
        return r;
    /* The watch first: a change that comes after hosts_load() is seen by it. */
    r = sd_event_add_inotify(d->event, &d->watch, ".", IN_MOVED_TO | IN_ONLYDIR, on_change, d);
    if (r < 0)
        return err_sys(err, r, "watch the state directory");
    r = hosts_load(STATE_HOSTS, &hosts, err);
    if (r == 0)
        r = server_new(d->event, listen, d->store, d->tls, take_ptr(hosts), &d->server, err);
    return r;
}

static int serve(struct daemon *d, const char *dir, struct err *err)
{
    int r;

    raise_priority();
    log_info("listening on %s, registers in %s", server_address(d->server), dir);
    (void)sd_notifyf(0, "READY=1\nSTATUS=Listening on %s", server_address(d->server));
    r = sd_event_loop(d->event);
    return r < 0 ? err_sys(err, r, "event loop") : r;
}

int daemon_run(const char *listen, const char *dir, struct err *err)
{
    struct daemon d = {0};
    int r;

    raise_files();
    r = sd_event_new(&d.event);
    if (r >= 0)
        r = add_signals(d.event);
    if (r < 0)
        (void)err_sys(err, r, "event loop");
    else
        r = open_all(&d, listen, err);
    if (r == 0)
        r = serve(&d, dir, err);
    server_free(d.server);
    tls_context_free(d.tls);
    store_close(d.store);
    sd_event_source_disable_unref(d.watch);
    sd_event_unref(d.event);
    return r;
}
