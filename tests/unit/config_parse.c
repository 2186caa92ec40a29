/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/config.h"
#include "io/yamlfile.h"
#include "keys.h"
#include "unit.h"

/* Four lines, so that what follows begins in line 5. */
#define HEAD                                                                                       \
    "name: hosta\nlisten: 192.0.2.1:7700\narbiter:\n  {witness: '192.0.2.9:7701', key: '" KEY_1    \
    "'}\n"

/* The same without the arbiter, whose line is the third. */
#define ARBITER(text) "name: hosta\nlisten: 192.0.2.1:7700\narbiter: {" text "}\n"
#define ETCD(url)     "etcd: ['" url "'], ca: /ca, cert: /cert, key: /key"

static int parse(const char *text, struct host_config *config, struct err *err)
{
    return host_config_parse(text, strlen(text), "u.yaml", config, err);
}

static void test_defaults(void **state)
{
    struct host_config c;
    struct err err = {""};

    assert_int_equal(parse(HEAD, &c, &err), 0);
    assert_string_equal(c.name, "hosta");
    assert_string_equal(c.listen, "192.0.2.1:7700");
    assert_int_equal(c.arbiter.kind, ARBITER_WITNESS);
    assert_string_equal(c.arbiter.address, "192.0.2.9:7701");
    assert_int_equal(c.arbiter.key.bytes[31], 1);
    assert_int_equal(c.n_peers, 0);
    assert_string_equal(c.emulator_user, "understudy-qemu");
    assert_string_equal(c.control_group, "");
    assert_string_equal(c.state_dir, "/var/lib/understudy");
    assert_string_equal(c.run_dir, "/run/understudy");
    assert_string_equal(c.memory_dir, "/dev/shm/understudy");
    assert_string_equal(c.emulator, "qemu-system-x86_64");
    assert_non_null(strstr(c.guard, "/understudy-guard"));
    assert_int_equal(c.timeouts.heartbeat_ms, 20);
    assert_int_equal(c.timeouts.standby_ms, 100);
    assert_int_equal(c.timeouts.primary_ms, 150);
    assert_int_equal(c.staging_mib, 256);
    assert_int_equal(c.gate_mib, 64);
    assert_int_equal(c.delta_cache_mib, 64);
    assert_int_equal(c.disk_journal_mib, 128);
    assert_int_equal(c.n_disk_dirs, 1);
    assert_string_equal(c.disk_dirs[0], "/var/lib/understudy/images");
}

static void test_everything(void **state)
{
    struct host_config c;
    struct err err = {""};

    assert_int_equal(parse("name: hosta\n"
                           "listen: '[2001:db8::1]:7700'\n"
                           "arbiter:\n"
                           "  etcd: ['https://192.0.2.7:2379', 'https://etcd.example:1']\n"
                           "  ca: /etc/ca.pem\n"
                           "  cert: /etc/cert.pem\n"
                           "  key: /etc/key.pem\n"
                           "  prefix: /site/\n"
                           "state_dir: /srv/state/\n"
                           "run_dir: /srv/run\n"
                           "memory_dir: /srv/memory\n"
                           "emulator: /opt/qemu\n"
                           "guard: /opt/guard\n"
                           "emulator_user: '64055:107'\n"
                           "control_group: operators\n"
                           "timeouts: {heartbeat_ms: 50, standby_ms: 150, primary_ms: 151}\n"
                           "staging_mib: 16\n"
                           "gate_mib: 1\n"
                           "delta_cache_mib: 0\n"
                           "disk_journal_mib: 4096\n"
                           "disk_dirs: [/srv/images/, /dev/vg0]\n",
                           &c, &err),
                     0);
    assert_int_equal(c.arbiter.kind, ARBITER_ETCD);
    assert_int_equal(c.arbiter.n_etcd, 2);
    assert_string_equal(c.arbiter.etcd[1], "https://etcd.example:1");
    assert_string_equal(c.arbiter.ca, "/etc/ca.pem");
    assert_string_equal(c.arbiter.cert_file, "/etc/cert.pem");
    assert_string_equal(c.arbiter.key_file, "/etc/key.pem");
    assert_string_equal(c.arbiter.prefix, "/site/");
    assert_string_equal(c.emulator_user, "64055:107");
    assert_string_equal(c.control_group, "operators");
    assert_string_equal(c.state_dir, "/srv/state");
    assert_string_equal(c.emulator, "/opt/qemu");
    assert_string_equal(c.guard, "/opt/guard");
    assert_int_equal(c.timeouts.standby_ms, 150);
    assert_int_equal(c.gate_mib, 1);
    assert_int_equal(c.delta_cache_mib, 0);
    assert_int_equal(c.disk_journal_mib, 4096);
    assert_int_equal(c.n_disk_dirs, 2);
    assert_string_equal(c.disk_dirs[0], "/srv/images");
    assert_string_equal(c.disk_dirs[1], "/dev/vg0");
}

static const struct {
    const char *text, *error;
} mistakes[] = {
    {"", "u.yaml: the file is empty"},
    {"# nothing\n", "u.yaml: the file is empty"},
    {"hosta\n", "u.yaml:1: keys with values belong here (key: value)"},
    {"- a\n", "u.yaml:1: keys with values belong here (key: value)"},
    {"name: hosta\n", "u.yaml:1: \"listen\" is missing"},
    {"{}\n", "u.yaml:1: \"name\" is missing"},
    {"name: hosta\n name: b\n", "u.yaml:2: not valid YAML: mapping values are not allowed in this "
                                "context"},
    {"name: 'hosta\n", "u.yaml:2: not valid YAML: found unexpected end of stream"},
    {"name: a\n\nx: \xff\n", "u.yaml:3: not valid YAML: invalid leading UTF-8 octet"},
    {"name: hosta\nname: hosta\n", "u.yaml:2: name: given twice"},
    {"name: &a hosta\nlisten: *a\n", "u.yaml:2: aliases (*name) are not supported"},
    {HEAD "---\nname: b\n", "u.yaml:5: one document per file only"},
    {"name: \"a\\0b\"\n", "u.yaml:1: a NUL byte is not allowed"},
    {"? [a]\n: b\n", "u.yaml:1: a key must be a plain word"},
    {"a: [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]\n", "u.yaml:1: nested too deeply"},
    {HEAD "\nport: 7\n", "u.yaml:6: unknown key \"port\""},
    {HEAD "timeouts:\n  standby: 7\n", "u.yaml:6: timeouts: unknown key \"standby\""},
    {HEAD "timeouts:\n", "u.yaml:5: timeouts: keys with values belong here (key: value)"},
    {HEAD "state_dir: [/a]\n", "u.yaml:5: state_dir: a single value belongs here"},
    {HEAD "state_dir:\n", "u.yaml:5: state_dir: has no value"},
    {HEAD "state_dir: here\n", "u.yaml:5: state_dir: \"here\" is not an absolute path"},
    {HEAD "gate_mib: many\n", "u.yaml:5: gate_mib: not a number in range"},
    {HEAD "gate_mib: -1\n", "u.yaml:5: gate_mib: not a number in range"},
    {HEAD "gate_mib: 0\n", "u.yaml:5: gate_mib: 0 is not in 1 to 4096"},
    {HEAD "disk_journal_mib: 15\n", "u.yaml:5: disk_journal_mib: 15 is not in 16 to 4096"},
    {HEAD "disk_dirs: /srv\n", "u.yaml:5: disk_dirs: a list belongs here"},
    {HEAD "disk_dirs:\n- /srv\n- images\n",
     "u.yaml:7: disk_dirs[1]: \"images\" is not an absolute path"},
    {HEAD "peers:\n- name: hostb\n",
     "u.yaml:5: peers: peers are not listed here; each is made known by `understudy peer add NAME "
     "ADDRESS KEY`"},
    {HEAD "emulator_user: 0\n", "u.yaml:5: emulator_user: \"0\" is neither a user nor UID:GID"},
    {HEAD "emulator_user: '1:-1'\n",
     "u.yaml:5: emulator_user: \"1:-1\" is neither a user nor UID:GID"},
    {HEAD "emulator_user: '1:1:1'\n",
     "u.yaml:5: emulator_user: \"1:1:1\" is neither a user nor UID:GID"},
    {HEAD "emulator_user: '1:9999999999'\n",
     "u.yaml:5: emulator_user: \"1:9999999999\" is neither a user nor UID:GID"},
    {HEAD "control_group: 'a b'\n", "u.yaml:5: control_group: \"a b\" is not a group"},
    {HEAD "control_group: '7:7'\n", "u.yaml:5: control_group: \"7:7\" is not a group"},
    {ARBITER(""), "u.yaml:3: arbiter: either \"witness\" or \"etcd\" belongs here"},
    {ARBITER("key: /key"), "u.yaml:3: arbiter: either \"witness\" or \"etcd\" belongs here"},
    {ARBITER("witness: '1.1.1.1:1', " ETCD("https://a")),
     "u.yaml:3: arbiter: either \"witness\" or \"etcd\" belongs here, not both"},
    {ARBITER("witness: '1.1.1.1:1'"),
     "u.yaml:3: arbiter: \"key\" is missing: what `understudy-witness key` says there"},
    {ARBITER("witness: '1.1.1.1', key: x"),
     "u.yaml:3: arbiter.witness: \"1.1.1.1\" is not IP:PORT (as 192.0.2.1:7700 or "
     "[2001:db8::1]:7700)"},
    {ARBITER("witness: '1.1.1.1:1', key: /key"),
     "u.yaml:3: arbiter.key: '/key' is no public key: expected ed25519:..."},
    {ARBITER("witness: '1.1.1.1:1', key: x, prefix: /a/"),
     "u.yaml:3: arbiter.prefix: does not belong to a witness"},
    {ARBITER("witness: '1.1.1.1:1', key: x, ca: /a"),
     "u.yaml:3: arbiter.ca: does not belong to a witness"},
    {ARBITER("etcd: []"), "u.yaml:3: arbiter.etcd: at least one endpoint is needed"},
    {ARBITER(ETCD("http://a:1")),
     "u.yaml:3: arbiter.etcd[0]: \"http://a:1\" is not https://HOST:PORT"},
    {ARBITER(ETCD("https://a:1/")),
     "u.yaml:3: arbiter.etcd[0]: \"https://a:1/\" is not https://HOST:PORT"},
    {ARBITER(ETCD("https://me@a:1")),
     "u.yaml:3: arbiter.etcd[0]: \"https://me@a:1\" is not https://HOST:PORT"},
    {ARBITER(ETCD("https://")), "u.yaml:3: arbiter.etcd[0]: \"https://\" is not https://HOST:PORT"},
    {ARBITER("etcd: ['https://a'], ca: /a, key: /k"),
     "u.yaml:3: arbiter.cert: a file is needed to authenticate with etcd"},
    {ARBITER("etcd: ['https://a'], ca: a, cert: /c, key: /k"),
     "u.yaml:3: arbiter.ca: \"a\" is not an absolute path"},
    {ARBITER(ETCD("https://a") ", prefix: /a"),
     "u.yaml:3: arbiter.prefix: \"/a\" does not end with /"},
    {HEAD "timeouts: {heartbeat_ms: 40}\n",
     "u.yaml:5: timeouts.standby_ms: 100 ms is less than three heartbeats of 40 ms"},
    {HEAD "timeouts:\n  primary_ms: 100\n",
     "u.yaml:6: timeouts.primary_ms: 100 ms must be more than standby_ms (100 ms): where only the "
     "link breaks, the primary has to be the first to ask the arbiter"},
};

static void test_mistakes(void **state)
{
    for (size_t i = 0; i < N_OF(mistakes); i++) {
        struct host_config c;
        struct err err = {""};

        assert_int_equal(parse(mistakes[i].text, &c, &err), -EINVAL);
        assert_string_equal(err.text, mistakes[i].error);
    }
}

static void test_addresses(void **state)
{
    static const char *const bad[] = {
        "7700",      "192.0.2.1",       "192.0.2.1:",     ":7700",         "192.0.2.1:0",
        "a.b:7700",  "192.0.2.1:99999", "192.0.2.1:77a",  "2001:db8::1:7", "[192.0.2.1]:7700",
        "[::1:7700", "::1]:7700",       "192.0.2.1:-700", "[]:7700",
    };

    for (size_t i = 0; i < N_OF(bad); i++) {
        struct host_config c;
        struct err err = {""};
        char text[256], expected[256];

        (void)snprintf(text, sizeof(text), "name: a\nlisten: '%s'\narbiter: {witness: x}\n",
                       bad[i]);
        (void)snprintf(expected, sizeof(expected),
                       "u.yaml:2: listen: \"%s\" is not IP:PORT (as 192.0.2.1:7700 or "
                       "[2001:db8::1]:7700)",
                       bad[i]);
        assert_int_equal(parse(text, &c, &err), -EINVAL);
        assert_string_equal(err.text, expected);
    }
}

static void test_files(void **state)
{
    char path[] = "/tmp/config_parse.XXXXXX";
    int fd = mkstemp(path);
    struct host_config c;
    struct err err = {""};

    assert_true(fd >= 0);
    assert_int_equal(write(fd, HEAD, strlen(HEAD)), strlen(HEAD));
    assert_int_equal(host_config_load(path, &c, &err), 0);
    assert_string_equal(c.name, "hosta");
    assert_int_equal(ftruncate(fd, YAML_TEXT_MAX + 1), 0);
    assert_int_equal(host_config_load(path, &c, &err), -EFBIG);
    close(fd);
    unlink(path);
    assert_int_equal(host_config_load(path, &c, &err), -ENOENT);
    assert_int_equal(host_config_load("/tmp", &c, &err), -EINVAL);
    assert_string_equal(err.text, "/tmp: not a regular file");
}

static void test_which_file(void **state)
{
    unsetenv("UNDERSTUDY_CONFIG");
    assert_string_equal(host_config_path(NULL), HOST_CONFIG_DEFAULT_PATH);
    setenv("UNDERSTUDY_CONFIG", "/x.yaml", 1);
    assert_string_equal(host_config_path(NULL), "/x.yaml");
    assert_string_equal(host_config_path("/y.yaml"), "/y.yaml");
}

/* May a standby open that image, when disk_dirs are a file that the first disk is on, and `top`?
 * Paths that begin with "@" start from `dir`. */
static int allowed(const char *dir, const char *image, const char *top)
{
    struct host_config c = {.name = "hostb", .n_disk_dirs = 2};
    struct vm_spec spec = {.n_disks = 2};
    struct err err = {""};
    int r;

    (void)snprintf(c.disk_dirs[0], VM_PATH_MAX, "%s/none", dir);
    (void)snprintf(c.disk_dirs[1], VM_PATH_MAX, "%s%s", top[0] == '@' ? dir : "",
                   top + (top[0] == '@'));
    (void)snprintf(spec.disks[0].path, VM_PATH_MAX, "%s/none", dir);
    (void)snprintf(spec.disks[1].path, VM_PATH_MAX, "%s%s", image[0] == '@' ? dir : "",
                   image + (image[0] == '@'));
    r = vm_disks_allowed(&spec, &c, &err);
    if (r < 0)
        assert_non_null(strstr(err.text, "disks[1]: "));
    return r;
}

static void test_disk_dirs(void **state)
{
    static const struct {
        const char *image, *top;
        int r;
    } cases[] = {
        {"@/in/x.img", "@/in", 0},
        {"@/in/deep/x.img", "@/in", 0},
        {"@/in/x.img", "@/alias", 0},
        {"@/alias/x.img", "@/in", 0},
        {"/x.img", "/", 0},
        {"/dev/vda", "/dev/vda", 0},
        {"/dev/vdb", "/dev/vda", -EACCES},
        {"@/inner/x.img", "@/in", -EACCES},
        {"@/x.img", "@/in", -EACCES},
        {"@/in/out/x.img", "@/in", -EACCES},
        {"@/in/none/x.img", "@/in", -ENOENT},
    };
    struct host_config none = {.name = "hostb"};
    struct vm_spec spec = {.n_disks = 1, .disks = {{.path = "/tmp/x.img"}}};
    char dir[] = "/tmp/config_parse.XXXXXX";
    char old[VM_PATH_MAX];
    struct err err = {""};

    assert_non_null(getcwd(old, sizeof(old)));
    assert_non_null(mkdtemp(dir));
    assert_int_equal(chdir(dir), 0);
    assert_int_equal(mkdir("in", 0700) | mkdir("in/deep", 0700) | mkdir("inner", 0700), 0);
    assert_int_equal(symlink("/etc", "in/out") | symlink("in", "alias"), 0);

    for (size_t i = 0; i < N_OF(cases); i++) {
        if (allowed(dir, cases[i].image, cases[i].top) != cases[i].r)
            fail_msg("%s in %s", cases[i].image, cases[i].top);
    }
    assert_int_equal(vm_disks_allowed(&spec, &none, &err), -EACCES);
    assert_string_equal(err.text, "disks[0]: /tmp/x.img is not in the disk_dirs of hostb "
                                  "(understudy.yaml)");

    assert_int_equal(unlink("in/out") | unlink("alias"), 0);
    assert_int_equal(rmdir("in/deep") | rmdir("in") | rmdir("inner"), 0);
    assert_int_equal(chdir(old), 0);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),  cmocka_unit_test(test_everything),
        cmocka_unit_test(test_mistakes),  cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_files),     cmocka_unit_test(test_which_file),
        cmocka_unit_test(test_disk_dirs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
