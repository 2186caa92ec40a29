/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_ARBITER_ARGS_H
#define US_TESTS_ARBITER_ARGS_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "io/config.h"

/* A cluster of etcd as an argument: "etcd,DIR,NAME,PREFIX,URL[,URL...]", where DIR has ca.pem,
 * NAME.pem and NAME.key. False when it is not one. */
static inline bool arbiter_args(char *text, struct arbiter_config *ret_config)
{
    struct arbiter_config config = {.kind = ARBITER_ETCD};
    const char *kind = strtok(text, ","), *dir = strtok(NULL, ","), *name = strtok(NULL, ",");
    const char *prefix = strtok(NULL, ","), *url;

    if (!prefix || strcmp(kind, "etcd") != 0)
        return false;
    (void)snprintf(config.ca, sizeof(config.ca), "%s/ca.pem", dir);
    (void)snprintf(config.cert_file, sizeof(config.cert_file), "%s/%s.pem", dir, name);
    (void)snprintf(config.key_file, sizeof(config.key_file), "%s/%s.key", dir, name);
    (void)snprintf(config.prefix, sizeof(config.prefix), "%s", prefix);
    while (config.n_etcd < ARBITER_ETCD_MAX && (url = strtok(NULL, ",")))
        (void)snprintf(config.etcd[config.n_etcd++], ARBITER_URL_MAX, "%s", url);
    *ret_config = config;
    return config.n_etcd > 0;
}

#endif
