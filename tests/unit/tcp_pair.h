/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_TCP_PAIR_H
#define US_TESTS_TCP_PAIR_H

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include "unit.h"

/* Two connected sockets on the loopback, blocking. */
static inline void tcp_pair(int fd[2])
{
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(where);
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(listening, (struct sockaddr *)&where, n), 0);
    assert_int_equal(getsockname(listening, (struct sockaddr *)&where, &n), 0);
    assert_int_equal(listen(listening, 1), 0);
    fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd[0], (struct sockaddr *)&where, n), 0);
    fd[1] = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd[1] >= 0);
    close(listening);
}

#endif
