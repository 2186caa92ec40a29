/* SPDX-License-Identifier: Apache-2.0 */
#include "tls_rig.h"

static struct tls_host hosts[3];

static int setup(void **state)
{
    for (size_t i = 0; i < N_OF(hosts); i++)
        tls_host_new(&hosts[i]);
    return 0;
}

static int teardown(void **state)
{
    for (size_t i = 0; i < N_OF(hosts); i++)
        tls_host_free(&hosts[i]);
    return 0;
}

/* Both ends send a little, and both get it. Blocking: it fits the sockets. */
static void exchange(struct transport *t[2])
{
    for (int i = 0; i < 2; i++) {
        struct iovec out[2] = {{.iov_base = (char[]){"hel"}, .iov_len = 3},
                               {.iov_base = (char[]){"lo"}, .iov_len = 3}};
        char in[6] = "";

        assert_int_equal(transport_set_blocking(t[i], true), 0);
        assert_int_equal(transport_set_blocking(t[!i], true), 0);
        assert_int_equal(transport_write_all(t[i], out, 2), 0);
        assert_int_equal(transport_read_all(t[!i], in, sizeof(in)), 0);
        assert_string_equal(in, "hello");
    }
}

static void known_keys_meet(void **state)
{
    struct transport *t[2];

    tls_pair(&hosts[0], &hosts[1], TLS_ROOM, t);
    assert_string_equal(t[0]->ops->name, "tls");
    assert_true(public_key_equal(tls_peer_key(t[0]), identity_public(hosts[1].identity)));
    assert_true(public_key_equal(tls_peer_key(t[1]), identity_public(hosts[0].identity)));
    exchange(t);
    tls_pair_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_keys_meet),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
