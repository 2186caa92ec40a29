/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_PLAIN_TRANSPORT_H
#define US_TESTS_PLAIN_TRANSPORT_H

#include "io/transport.h"

/* A transport without TLS. The product has none: this one is for tests of what is above, for what
 * TLS is compared with, and for those who knock at a door without it. */

/* Wraps a connected TCP or UNIX socket, set up. Takes fd also on failure. NULL when out of memory.
 */
struct transport *transport_tcp_new(int fd);

#endif
