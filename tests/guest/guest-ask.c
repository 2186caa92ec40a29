/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks one of a test guest's servers one question, and prints its answer:
 *   guest-ask ADDRESS PORT LINE [SECONDS]
 * Waits at most SECONDS (default 10) for the server to listen, and as long for its answer.
 * Exit status: 0 answered, 1 no answer or "ERR ...", 2 usage.
 */
#include "line_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char answer[256];
    int fd;

    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: guest-ask ADDRESS PORT LINE [SECONDS]\n");
        return 2;
    }

    int port = atoi(argv[2]);
    int seconds = argc == 5 ? atoi(argv[4]) : 10;

    if (port < 1 || port > 65535 || seconds < 1 || seconds > 3600) {
        fprintf(stderr, "guest-ask: bad port or number of seconds\n");
        return 2;
    }

    int err = line_connect(argv[1], (uint16_t)port, seconds * 1000, seconds * 1000, &fd);

    if (!err) {
        err = line_exchange(fd, argv[3], answer, sizeof(answer), seconds * 1000);
        close(fd);
    }
    if (err) {
        fprintf(stderr, "guest-ask: %s port %d: %s\n", argv[1], port, strerror(-err));
        return 1;
    }
    puts(answer);
    return strncmp(answer, "ERR", 3) == 0;
}
