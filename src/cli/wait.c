/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/progress.h"

/* Waiting until a VM is protected. It only watches: whatever happens to this command, the VM's
 * process goes on. */

enum { LOOK_MS = 200, PATIENCE_S = 2 };

struct watch {
    const char *vm;
    struct cli_progress progress;
    double moved;  /* when something last did */
    char what[32]; /* what is being copied, as last seen */
    double done;   /* and how many bytes of it */
};

static void show(struct watch *w, const json_t *vm)
{
    double done, total;
    const char *what = view_copying(vm, &done, &total);
    char text[256];

    if (!what) {
        /* At first it is normal not to be connected yet. */
        if (strcmp(view_text(vm, "state"), "solo") == 0 && cli_now() - w->moved >= PATIENCE_S) {
            view_protection(vm, text, sizeof(text));
            cli_progress_say(&w->progress, text);
        }
        return;
    }
    if (done != w->done || strcmp(what, w->what) != 0)
        w->moved = cli_now();
    w->done = done;
    (void)snprintf(w->what, sizeof(w->what), "%s", what);
    cli_progress_show(&w->progress, what, done, total);
}

/* One look. True: it is over, with *ret_exit. */
static bool look(struct watch *w, unsigned timeout_s, int *ret_exit)
{
    json_t *vm = cli_vm_status(w->vm);
    const char *role = view_text(vm, "role"), *state = view_text(vm, "state");
    char text[256];
    bool over = true;

    *ret_exit = CLI_FAILED;
    if (!vm)
        return true;
    if (json_is_true(json_object_get(vm, "protected"))) {
        view_protection(vm, text, sizeof(text));
        cli_progress_say(&w->progress, text);
        *ret_exit = CLI_OK;
    } else if (strcmp(role, "primary") != 0) {
        cli_progress_end(&w->progress);
        cli_fail("%s: %s: %s", w->vm, state, view_text(vm, "reason"));
    } else if (cli_now() - w->moved > timeout_s) {
        cli_progress_end(&w->progress);
        view_protection(vm, text, sizeof(text));
        cli_fail("%s: runs, but is %s\nIt goes on trying: understudy status %s", w->vm, text,
                 w->vm);
        *ret_exit = CLI_UNPROTECTED;
    } else {
        show(w, vm);
        over = false;
    }
    json_decref(vm);
    return over;
}

int cli_wait_protected(const char *vm, unsigned timeout_s)
{
    struct watch w = {.vm = vm, .moved = cli_now()};
    int result;

    cli_progress_init(&w.progress, vm);
    cli_catch_interrupt();
    while (!look(&w, timeout_s, &result)) {
        if (cli_pause(LOOK_MS)) {
            cli_progress_end(&w.progress);
            cli_fail("%s: runs and goes on without this command: understudy status %s", vm, vm);
            return CLI_INTERRUPTED;
        }
    }
    return result;
}
