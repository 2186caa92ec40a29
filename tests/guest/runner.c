/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs what it is told, in a test guest: for each connection the first line is given to /bin/sh;
 * what that prints goes back, then a line "exit STATUS", and the connection ends. Anybody may
 * connect: for networks that a test made, and nothing else.
 */
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RUNNER_PORT = 7004, COMMAND_BYTES = 4096 };

/* Reads up to the newline, which it drops. Returns 0 or a negative errno. */
static int read_line(int fd, char *line, size_t size)
{
    size_t n = 0;

    while (n < size) {
        ssize_t got = read(fd, line + n, 1);

        if (got <= 0)
            return got < 0 ? -errno : -ECONNRESET;
        if (line[n] == '\n') {
            line[n] = '\0';
            return 0;
        }
        n++;
    }
    return -EMSGSIZE;
}

static int run(const char *command, int out)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        dup2(out, STDOUT_FILENO);
        dup2(out, STDERR_FILENO);
        signal(SIGCHLD, SIG_DFL);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return 126;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* A process of its own for each connection, so that a long command holds up nobody. */
static void serve(int fd)
{
    char command[COMMAND_BYTES];

    if (read_line(fd, command, sizeof(command)) == 0)
        dprintf(fd, "exit %d\n", run(command, fd));
}

int main(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(RUNNER_PORT)};
    int one = 1;
    int listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (listen_fd < 0 || setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(listen_fd, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(listen_fd, 16) < 0) {
        fprintf(stderr, "runner: cannot listen on port %d: %s\n", RUNNER_PORT, strerror(errno));
        return 1;
    }
    signal(SIGCHLD, SIG_IGN); /* nobody waits for those that serve */
    printf("runner: listening on port %d\n", RUNNER_PORT);
    fflush(stdout);
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0)
            continue; /* the client has gone again */
        if (fork() == 0) {
            signal(SIGCHLD, SIG_DFL);
            serve(fd);
            _exit(0);
        }
        close(fd);
    }
}
