/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks one of a test guest's servers a question, and prints its answer:
 *   guest-ask ADDRESS PORT LINE [SECONDS [EVERY_MS]]
 * Waits at most SECONDS (default 10) for the server to listen, and as long for its answer. With
 * EVERY_MS it asks again and again, over the same connection, until it is ended by a signal.
 * Exit status: 0 answered, 1 no answer or "ERR ...", 2 usage.
 */
#include "line_client.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char answer[256];
    int fd;

    if (argc < 4 || argc > 6) {
        fprintf(stderr, "usage: guest-ask ADDRESS PORT LINE [SECONDS [EVERY_MS]]\n");
        return 2;
    }

    int port = atoi(argv[2]);
    int seconds = argc >= 5 ? atoi(argv[4]) : 10;
    int every_ms = argc == 6 ? atoi(argv[5]) : 0;

    if (port < 1 || port > 65535 || seconds < 1 || seconds > 3600 || every_ms < 0) {
        fprintf(stderr, "guest-ask: bad port or number of seconds\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);

    int err = line_connect(argv[1], (uint16_t)port, seconds * 1000, seconds * 1000, &fd);

    if (!err) {
        do {
            err = line_exchange(fd, argv[3], answer, sizeof(answer), seconds * 1000);
            if (!err)
                puts(answer);
        } while (!err && every_ms && poll(NULL, 0, every_ms) == 0);
        close(fd);
    }
    if (err) {
        fprintf(stderr, "guest-ask: %s port %d: %s\n", argv[1], port, strerror(-err));
        return 1;
    }
    return strncmp(answer, "ERR", 3) == 0;
}
