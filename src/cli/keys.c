/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"

/* key and peer: who this host is, and whom it knows. understudyd keeps all of that. */

enum { WORDS_MAX = 4 };

/* The arguments of a command that has commands of its own. */
struct words {
    const char *word[WORDS_MAX];
    unsigned n;
    bool json;
};

static error_t parse_words(int key, char *arg, struct argp_state *state)
{
    struct words *w = state->input;

    switch (key) {
    case 'j':
        w->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (w->n == WORDS_MAX)
            argp_usage(state);
        w->word[w->n++] = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static bool is(const struct words *w, const char *command, unsigned n_min, unsigned n_max)
{
    return w->n >= n_min && w->n <= n_max && strcmp(w->word[0], command) == 0;
}

static int wrong_usage(const char *name)
{
    cli_fail("wrong arguments; see understudy help %s", name);
    return CLI_USAGE;
}

/* Has something changed; says that it is done, and which VMs do not take it over. */
static int change(json_t *request, const char *name, const char *done)
{
    const json_t *not_followed, *text;
    json_t *answer;
    size_t i;
    int result = CLI_OK;

    if (cli_ask(request, &answer) < 0)
        return CLI_FAILED;
    printf("%s: %s\n", name, done);
    not_followed = json_object_get(answer, "not_followed");
    json_array_foreach(not_followed, i, text) result = cli_fail("%s", json_string_value(text));
    json_decref(answer);
    return result;
}

/* ---- key ---- */

/* Prints one of the keys in the answer, and nothing else, so that scripts can take it. */
static int print_key(const char *command, const char *member)
{
    json_t *answer;

    if (cli_ask(json_pack("{s:s}", "command", command), &answer) < 0)
        return CLI_FAILED;
    printf("%s\n", view_text(answer, member));
    if (strcmp(member, "next") != 0 && view_text(answer, "next")[0])
        cli_fail("the next key, not in use yet: %s", view_text(answer, "next"));
    json_decref(answer);
    return CLI_OK;
}

int cli_key(int argc, char **argv)
{
    struct words w = {.n = 0};

    cli_parse("key", argc, argv, NULL, parse_words, &w);
    if (w.n == 0)
        return print_key("key", "key");
    if (is(&w, "new", 1, 1))
        return print_key("key-new", "next");
    if (is(&w, "use", 1, 1))
        return change(json_pack("{s:s}", "command", "key-use"), "key",
                      "the next one is in use now");
    if (is(&w, "forget", 1, 1))
        return change(json_pack("{s:s}", "command", "key-forget"), "key",
                      "the next one is forgotten");
    return wrong_usage("key");
}

/* ---- peer ---- */

static void seen_text(double seen_unix, char *out, size_t n_out)
{
    char duration[32];

    if (seen_unix == 0) {
        (void)snprintf(out, n_out, "-");
        return;
    }
    view_duration((double)time(NULL) - seen_unix, duration, sizeof(duration));
    (void)snprintf(out, n_out, "%s ago", duration);
}

static void print_peers(const json_t *peers)
{
    const json_t *peer, *key;
    size_t i, k;

    if (json_array_size(peers) == 0) {
        printf("no peers; understudy peer add NAME ADDRESS KEY makes one known\n");
        return;
    }
    printf("%-12s  %-22s  %-52s  LAST SEEN\n", "PEER", "ADDRESS", "KEY");
    json_array_foreach(peers, i, peer)
    {
        json_array_foreach(json_object_get(peer, "keys"), k, key)
        {
            char seen[48];

            seen_text(view_number(key, "seen_unix"), seen, sizeof(seen));
            printf("%-12s  %-22s  %-52s  %s\n", view_text(peer, "name"), view_text(peer, "address"),
                   view_text(key, "key"), seen);
        }
    }
}

static int list_peers(bool json)
{
    json_t *answer;

    if (cli_ask(json_pack("{s:s}", "command", "peers"), &answer) < 0)
        return CLI_FAILED;
    if (json) {
        (void)json_object_del(answer, "ok"); /* it is there */
        cli_print_json(answer);
    } else {
        print_peers(json_object_get(answer, "peers"));
    }
    json_decref(answer);
    return CLI_OK;
}

int cli_peer(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", 'j', NULL, 0, "list: print JSON, for programs", 0},
        {0},
    };
    struct words w = {.n = 0};

    cli_parse("peer", argc, argv, options, parse_words, &w);
    if (is(&w, "list", 1, 1))
        return list_peers(w.json);
    if (is(&w, "add", 4, 4))
        return change(json_pack("{s:s, s:s, s:s, s:s}", "command", "peer-add", "name", w.word[1],
                                "address", w.word[2], "key", w.word[3]),
                      w.word[1], "added");
    if (!is(&w, "remove", 2, 3))
        return wrong_usage("peer");
    return change(json_pack("{s:s, s:s, s:s*}", "command", "peer-remove", "name", w.word[1], "key",
                            w.n == 3 ? w.word[2] : NULL),
                  w.word[1], w.n == 3 ? "this key is removed" : "removed");
}
