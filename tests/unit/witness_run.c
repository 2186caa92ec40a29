/* SPDX-License-Identifier: Apache-2.0 */
#include "witness_run.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"

enum { READY_MS = 20000 };

struct arbiter_config witness_config(const char *address)
{
    struct arbiter_config config = {.kind = ARBITER_WITNESS};

    assert_true(strlen(address) < sizeof(config.address));
    strcpy(config.address, address);
    return config;
}

void witness_run_init(struct witness_run *w, const char *program)
{
    *w = (struct witness_run){.program = program, .dir = "/tmp/us-witness-XXXXXX"};
    assert_non_null(mkdtemp(w->dir));
    strcpy(w->address, "127.0.0.1:0");
}

/* Listens where the witness reports that it is ready; the kernel chooses the (abstract) name. */
static int notify_socket(char *ret_name, size_t n)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    socklen_t len = sizeof(addr.sun_family);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, len), 0);
    len = sizeof(addr);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
    (void)snprintf(ret_name, n, "@%.*s", (int)(len - offsetof(struct sockaddr_un, sun_path) - 1),
                   addr.sun_path + 1);
    return fd;
}

static void spawn(struct witness_run *w, const char *notify, int stderr_fd)
{
    w->pid = fork();
    assert_true(w->pid >= 0);
    if (w->pid > 0)
        return;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* no witness outlives a test that crashed */
    setenv("NOTIFY_SOCKET", notify, 1);
    unsetenv("JOURNAL_STREAM");
    dup2(stderr_fd, STDERR_FILENO);
    execl(w->program, w->program, "--listen", w->address, "--state", w->dir, NULL);
    _exit(127);
}

void witness_run_start(struct witness_run *w)
{
    char name[64], text[256] = "";
    int notify = notify_socket(name, sizeof(name)), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    struct pollfd p = {.fd = notify, .events = POLLIN};
    const char *listening;
    ssize_t n;

    spawn(w, name, null);
    close(null);
    assert_int_equal(poll(&p, 1, READY_MS), 1);
    n = recv(notify, text, sizeof(text) - 1, 0);
    assert_true(n > 0);
    close(notify);
    listening = strstr(text, "Listening on ");
    assert_non_null(listening);
    assert_int_equal(sscanf(listening, "Listening on %63s", w->address), 1);
}

int witness_run_refused(struct witness_run *w, char *ret_text, size_t n_text)
{
    int pipe_fd[2], status;
    size_t used = 0;
    ssize_t n;

    assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
    spawn(w, "", pipe_fd[1]);
    close(pipe_fd[1]);
    while ((n = read(pipe_fd[0], ret_text + used, n_text - 1 - used)) > 0)
        used += (size_t)n;
    ret_text[used] = '\0';
    close(pipe_fd[0]);
    status = witness_run_wait(w);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

void witness_run_signal(struct witness_run *w, int signal)
{
    assert_int_equal(kill(w->pid, signal), 0);
}

int witness_run_wait(struct witness_run *w)
{
    int status;

    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    w->pid = 0;
    return status;
}

void witness_run_done(struct witness_run *w)
{
    DIR *dir = opendir(w->dir);
    struct dirent *entry;

    if (w->pid > 0) {
        witness_run_signal(w, SIGKILL);
        (void)witness_run_wait(w);
    }
    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(dirfd(dir), entry->d_name, 0); /* or rmdir() fails */
    }
    closedir(dir);
    assert_int_equal(rmdir(w->dir), 0);
}
