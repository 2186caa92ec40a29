/* SPDX-License-Identifier: Apache-2.0 */
#include "io/grpc.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "io/keep_alive.h"

/* libcurl's multi interface with our loop: libcurl tells which sockets it waits for and when it
 * wants to be called next; we call curl_multi_socket_action() when one of these has come. A call
 * can only end in there, so what it became is looked for after each, outside of libcurl.
 *
 * libcurl would repeat a request whose kept connection turns out to be dead. It must not, once the
 * request may have been seen: so the body is handed out once, and cannot be rewound. */

enum { PREFIX_BYTES = 5, TEXT_MAX = 256 };

static const unsigned unanswered_ms = 500;

struct grpc_client {
    sd_event *event;
    sd_event_source *timer; /* libcurl's */
    struct grpc_files files;
    uint64_t connect_ms;
    grpc_done_fn *on_done;
    void *user;

    CURLM *multi;
    CURL *easy; /* NULL: no call is under way */
    struct curl_slist *headers;
    char error[CURL_ERROR_SIZE];

    uint8_t request[PREFIX_BYTES + GRPC_REQUEST_MAX];
    size_t n_request, n_given; /* bytes in all, and handed to libcurl */
    uint8_t answer[PREFIX_BYTES + GRPC_ANSWER_MAX];
    size_t n_answer;
    bool too_long; /* it would not have fitted */
    int status;    /* -1: not heard yet */
    char text[TEXT_MAX];
};

static void end_call(struct grpc_client *c)
{
    if (!c->easy)
        return;
    (void)curl_multi_remove_handle(c->multi, c->easy); /* cannot fail for one that is in there */
    curl_easy_cleanup(c->easy);
    curl_slist_free_all(c->headers);
    c->easy = NULL;
    c->headers = NULL;
}

static uint32_t frame_length(const uint8_t *prefix)
{
    return (uint32_t)prefix[1] << 24 | (uint32_t)prefix[2] << 16 | (uint32_t)prefix[3] << 8 |
           prefix[4];
}

/* What an exchange that went well for libcurl means for gRPC. */
static void judge(struct grpc_client *c, struct grpc_result *result)
{
    long http = 0, version = 0;

    (void)curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &http);
    (void)curl_easy_getinfo(c->easy, CURLINFO_HTTP_VERSION, &version);
    result->status = -EPROTO;
    if (version != CURL_HTTP_VERSION_2_0 || http != 200) {
        result->text = "the server does not speak gRPC";
    } else if (c->status < 0) {
        result->text = "the answer was cut off";
    } else if (c->status != GRPC_OK) {
        result->status = c->status;
        result->text = c->text[0] ? c->text : "refused";
    } else if (c->n_answer < PREFIX_BYTES || c->answer[0] != 0 ||
               frame_length(c->answer) != c->n_answer - PREFIX_BYTES) {
        result->text = "a malformed answer";
    } else {
        result->status = GRPC_OK;
        result->message = c->answer + PREFIX_BYTES;
        result->n_message = c->n_answer - PREFIX_BYTES;
    }
}

/* Looks for the end of the call, and tells. */
static void finish(struct grpc_client *c)
{
    struct grpc_result result = {.status = -ECOMM, .sent = c->n_given > 0, .text = ""};
    char error[CURL_ERROR_SIZE];
    CURLMsg *msg;
    int n;

    do
        msg = curl_multi_info_read(c->multi, &n);
    while (msg && (msg->msg != CURLMSG_DONE || msg->easy_handle != c->easy));
    if (!msg)
        return;
    if (msg->data.result == CURLE_OK) {
        judge(c, &result);
    } else {
        (void)snprintf(error, sizeof(error), "%s",
                       c->too_long   ? "an answer too long to be one"
                       : c->error[0] ? c->error
                                     : curl_easy_strerror(msg->data.result));
        result.text = error;
    }
    end_call(c);
    c->on_done(c->user, &result);
}

/* libcurl's own failure, which leaves no way to go on: the call is over. */
static void act(struct grpc_client *c, curl_socket_t fd, int events)
{
    struct grpc_result result = {.status = -EIO, .sent = true, .text = "libcurl failed"};
    int running;

    if (curl_multi_socket_action(c->multi, fd, events, &running) == CURLM_OK) {
        finish(c);
    } else if (c->easy) {
        end_call(c);
        c->on_done(c->user, &result);
    }
}

static int on_socket(sd_event_source *source, int fd, uint32_t events, void *user)
{
    act(user, fd,
        (events & (EPOLLIN | EPOLLHUP) ? CURL_CSELECT_IN : 0) |
            (events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
            (events & EPOLLERR ? CURL_CSELECT_ERR : 0));
    return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *user)
{
    act(user, CURL_SOCKET_TIMEOUT, 0);
    return 0;
}

/* CURLMOPT_SOCKETFUNCTION. `assigned` is the event source that belongs to the socket. */
static int watch(CURL *easy, curl_socket_t fd, int what, void *user, void *assigned)
{
    uint32_t events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
    struct grpc_client *c = user;
    sd_event_source *source = assigned;
    int r;

    if (what == CURL_POLL_REMOVE) {
        sd_event_source_disable_unref(source);
        return 0;
    }
    if (source) {
        r = sd_event_source_set_io_events(source, events);
    } else {
        r = sd_event_add_io(c->event, &source, fd, events, on_socket, c);
        if (r >= 0)
            (void)sd_event_source_set_priority(source, SD_EVENT_PRIORITY_IMPORTANT);
        if (r >= 0 && curl_multi_assign(c->multi, fd, source) != CURLM_OK) {
            sd_event_source_disable_unref(source);
            r = -ENOMEM;
        }
    }
    return r < 0 ? -1 : 0;
}

/* CURLMOPT_TIMERFUNCTION. */
static int set_timer(CURLM *multi, long timeout_ms, void *user)
{
    struct grpc_client *c = user;

    if (timeout_ms < 0)
        return sd_event_source_set_enabled(c->timer, SD_EVENT_OFF) < 0 ? -1 : 0;
    if (sd_event_source_set_time_relative(c->timer, (uint64_t)timeout_ms * 1000) < 0)
        return -1;
    return sd_event_source_set_enabled(c->timer, SD_EVENT_ONESHOT) < 0 ? -1 : 0;
}

static curl_socket_t open_socket(void *user, curlsocktype purpose, struct curl_sockaddr *address)
{
    int fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);

    if (fd < 0)
        return CURL_SOCKET_BAD;
    keep_alive_asker(fd);
    /* A host that is gone acknowledges nothing; a server that only thinks long does. Best effort.
     */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof(unanswered_ms));
    return fd;
}

static size_t give(char *out, size_t size, size_t n_items, void *user)
{
    struct grpc_client *c = user;
    size_t n = c->n_request - c->n_given;

    if (n > size * n_items)
        n = size * n_items;
    memcpy(out, c->request + c->n_given, n);
    c->n_given += n;
    return n;
}

static size_t take_body(char *in, size_t size, size_t n_items, void *user)
{
    struct grpc_client *c = user;
    size_t n = size * n_items;

    if (n > sizeof(c->answer) - c->n_answer)
        c->too_long = true;
    if (c->too_long)
        return 0; /* ends the call */
    memcpy(c->answer + c->n_answer, in, n);
    c->n_answer += n;
    return n;
}

/* True for a header, or trailer, of that name; its value without the spaces around it. */
static bool header_is(const char *line, size_t n, const char *name, char value[static TEXT_MAX])
{
    size_t n_name = strlen(name), n_value;

    if (n < n_name || strncasecmp(line, name, n_name) != 0)
        return false;
    line += n_name;
    n -= n_name;
    while (n && line[0] == ' ')
        line++, n--;
    while (n && (line[n - 1] == '\r' || line[n - 1] == '\n'))
        n--;
    n_value = n < TEXT_MAX - 1 ? n : TEXT_MAX - 1;
    for (size_t i = 0; i < n_value; i++)
        value[i] = line[i] >= ' ' && line[i] <= '~' ? line[i] : '?';
    value[n_value] = '\0';
    return true;
}

static size_t take_header(char *in, size_t size, size_t n_items, void *user)
{
    struct grpc_client *c = user;
    char value[TEXT_MAX], *end;

    if (header_is(in, size * n_items, "grpc-status:", value)) {
        unsigned long status = strtoul(value, &end, 10);

        /* What is no number, or none of the known ones, is a failure like others. */
        c->status = end != value && *end == '\0' && status <= 16 ? (int)status : 2;
    } else if (header_is(in, size * n_items, "grpc-message:", value)) {
        strcpy(c->text, value);
    }
    return size * n_items;
}

static CURLcode describe_tls(struct grpc_client *c)
{
    CURLcode r = CURLE_OK;

#define SET(option, value) (r = r ? r : curl_easy_setopt(c->easy, option, value))
    SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    SET(CURLOPT_CAINFO, c->files.ca);
    SET(CURLOPT_CAPATH, NULL); /* not the authorities that the system trusts */
    SET(CURLOPT_SSLCERT, c->files.cert);
    SET(CURLOPT_SSLKEY, c->files.key);
    return r;
}

static CURLcode describe(struct grpc_client *c, const char *url)
{
    const long year_s = 365L * 24 * 60 * 60;
    CURLcode r = describe_tls(c);

    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, "https");
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    SET(CURLOPT_PROXY, ""); /* whatever the environment says */
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_QUICK_EXIT, 1L); /* ending a call does not wait for a resolver's thread */
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)c->connect_ms);
    SET(CURLOPT_MAXAGE_CONN, year_s); /* kept however long it was idle */
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_ERRORBUFFER, c->error);
    SET(CURLOPT_HTTPHEADER, c->headers);
    SET(CURLOPT_POST, 1L);
    SET(CURLOPT_POSTFIELDSIZE, (long)c->n_request);
    SET(CURLOPT_READFUNCTION, give);
    SET(CURLOPT_READDATA, c);
    SET(CURLOPT_WRITEFUNCTION, take_body);
    SET(CURLOPT_WRITEDATA, c);
    SET(CURLOPT_HEADERFUNCTION, take_header);
    SET(CURLOPT_HEADERDATA, c);
#undef SET
    return r;
}

/* Each header that libcurl would send by itself and gRPC does not know is taken out by "Name:". */
static int make_headers(struct grpc_client *c)
{
    static const char *const lines[] = {"Content-Type: application/grpc", "TE: trailers",
                                        "Accept:", "Expect:", "hasleader: true"};

    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct curl_slist *longer = curl_slist_append(c->headers, lines[i]);

        if (!longer)
            return -ENOMEM;
        c->headers = longer;
    }
    return 0;
}

int grpc_call(struct grpc_client *c, const char *url, const char *method, const void *message,
              size_t n_message)
{
    char full[512];

    if (n_message > GRPC_REQUEST_MAX ||
        snprintf(full, sizeof(full), "%s%s", url, method) >= (int)sizeof(full))
        return -E2BIG;
    end_call(c);
    memset(c->request, 0, PREFIX_BYTES); /* not compressed, and the length: */
    c->request[3] = (uint8_t)(n_message >> 8);
    c->request[4] = (uint8_t)n_message;
    memcpy(c->request + PREFIX_BYTES, message, n_message);
    c->n_request = PREFIX_BYTES + n_message;
    c->n_given = c->n_answer = 0;
    c->too_long = false;
    c->status = -1;
    c->text[0] = c->error[0] = '\0';
    c->easy = curl_easy_init();
    if (c->easy && make_headers(c) == 0 && describe(c, full) == CURLE_OK &&
        curl_multi_add_handle(c->multi, c->easy) == CURLM_OK)
        return 0;
    end_call(c);
    return -ENOMEM;
}

bool grpc_busy(const struct grpc_client *c)
{
    return c->easy;
}

int grpc_client_new(sd_event *event, const struct grpc_files *files, uint64_t connect_ms,
                    grpc_done_fn *on_done, void *user, struct grpc_client **ret_client)
{
    struct grpc_client *c = calloc(1, sizeof(*c));
    int r;

    if (!c)
        return -ENOMEM;
    c->event = sd_event_ref(event);
    c->files = *files;
    c->connect_ms = connect_ms;
    c->on_done = on_done;
    c->user = user;
    r = sd_event_add_time_relative(event, &c->timer, CLOCK_MONOTONIC, 0, 1, on_timer, c);
    if (r >= 0)
        r = sd_event_source_set_priority(c->timer, SD_EVENT_PRIORITY_IMPORTANT);
    if (r >= 0)
        r = sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
    if (r >= 0 && curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
        c->multi = curl_multi_init();
    if (!c->multi || curl_multi_setopt(c->multi, CURLMOPT_SOCKETFUNCTION, watch) != CURLM_OK ||
        curl_multi_setopt(c->multi, CURLMOPT_SOCKETDATA, c) != CURLM_OK ||
        curl_multi_setopt(c->multi, CURLMOPT_TIMERFUNCTION, set_timer) != CURLM_OK ||
        curl_multi_setopt(c->multi, CURLMOPT_TIMERDATA, c) != CURLM_OK ||
        curl_multi_setopt(c->multi, CURLMOPT_MAXCONNECTS, 1L) != CURLM_OK) {
        grpc_client_free(c);
        return -ENOMEM;
    }
    *ret_client = c;
    return 0;
}

void grpc_client_free(struct grpc_client *c)
{
    if (!c)
        return;
    end_call(c);
    (void)curl_multi_cleanup(c->multi); /* NULL is allowed; takes its sockets out of the loop */
    sd_event_source_disable_unref(c->timer);
    sd_event_unref(c->event);
    free(c);
}
