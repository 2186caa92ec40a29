/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "golden/register.h"
#include "unit.h"
#include "witness/store.h"

/* These stand in for libc's functions of the same name, so that the disk can be made to fail. */

enum fault { FAULT_ERROR, FAULT_SHORT_WRITE, FAULT_LIE };

static struct {
    int calls;   /* since arm() */
    int fail_at; /* the number of the call that fails; 0 = none */
    enum fault how;
    bool no_sync; /* skip syncing where a test only needs many files */
} disk;

static bool failing(void)
{
    disk.calls++;
    if (disk.calls != disk.fail_at)
        return false;
    errno = EIO;
    return true;
}

ssize_t write(int fd, const void *bytes, size_t n)
{
    if (failing()) {
        if (disk.how != FAULT_SHORT_WRITE || n < 2)
            return -1;
        n /= 2;
    }
    return syscall(SYS_write, fd, bytes, n);
}

int fdatasync(int fd)
{
    return disk.no_sync ? 0 : failing() ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    return disk.no_sync ? 0 : failing() ? -1 : (int)syscall(SYS_fsync, fd);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    if (failing()) {
        if (disk.how == FAULT_LIE) { /* done, and yet reported as failed */
            (void)syscall(SYS_renameat, from_dir, from, to_dir, to);
            errno = EIO;
        }
        return -1;
    }
    return (int)syscall(SYS_renameat, from_dir, from, to_dir, to);
}

int mkdirat(int parent, const char *name, mode_t mode)
{
    return failing() ? -1 : (int)syscall(SYS_mkdirat, parent, name, mode);
}

static const struct arb_record none;
static const struct arb_record solo = {1, ARB_SOLO, "hosta", ""};
static const struct arb_record paired = {2, ARB_PAIRED, "hosta", "hostb"};

static const struct store_asker hosta = {"pair", "hosta"}, hostb = {"pair", "hostb"};
static const struct store_asker other = {"other", "hosta"};

static char dir[] = "/tmp/us-store-XXXXXX";

/* Of a register in the group "pair". */
static const char *path(const char *name)
{
    static char text[512];

    (void)snprintf(text, sizeof(text), "%s/pair/%s", dir, name);
    return text;
}

static int remove_entry(const char *name, const struct stat *st, int type, struct FTW *at)
{
    return remove(name);
}

static void empty_dir(void)
{
    assert_int_equal(nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
    assert_int_equal(mkdir(dir, 0700), 0);
}

static int setup(void **state)
{
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    return rmdir(dir);
}

static int clean(void **state)
{
    memset(&disk, 0, sizeof(disk));
    empty_dir();
    return 0;
}

static struct store *open_store(void)
{
    struct store *store = NULL;
    struct err err = {""};

    if (store_open(dir, &store, &err) < 0)
        fail_msg("%s", err.text);
    return store;
}

static struct wire_arb_reply apply_as(struct store *store, const struct store_asker *asker,
                                      uint8_t op, const char *vm, const struct arb_record *expected,
                                      const struct arb_record *wanted)
{
    struct wire_arb_request request = {.op = op, .expected = *expected, .wanted = *wanted};
    struct wire_arb_reply reply;

    strcpy(request.vm, vm);
    assert_int_equal(store_apply(store, asker, &request, &reply, NULL), 0);
    return reply;
}

static struct wire_arb_reply apply(struct store *store, uint8_t op, const char *vm,
                                   const struct arb_record *expected,
                                   const struct arb_record *wanted)
{
    return apply_as(store, &hosta, op, vm, expected, wanted);
}

static void assert_holds(const char *vm, const struct arb_record *record)
{
    struct store *store = open_store();
    struct wire_arb_reply reply = apply(store, WIRE_ARB_GET, vm, &none, &none);

    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_true(arb_record_equal(&reply.current, record));
    store_close(store);
}

static void put_solo(void)
{
    struct store *store = open_store();

    assert_int_equal(apply(store, WIRE_ARB_CAS, "web", &none, &solo).status, WIRE_ARB_DONE);
    store_close(store);
}

static void test_swaps_survive_reopening(void **state)
{
    struct store *store;
    struct wire_arb_reply reply;

    assert_holds("web", &none);
    put_solo();
    assert_holds("web", &solo);
    store = open_store();
    reply = apply(store, WIRE_ARB_CAS, "web", &none, &solo);
    assert_int_equal(reply.status, WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&reply.current, &solo));
    reply = apply(store, WIRE_ARB_CAS, "web", &solo, &paired);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    reply = apply(store, WIRE_ARB_CAS, "db", &none, &solo);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    store_close(store);
    assert_holds("web", &paired);
    assert_holds("db", &solo);
    assert_holds("mail", &none);
}

static size_t read_file(const char *name, uint8_t *out, size_t n)
{
    FILE *f = fopen(path(name), "rb");

    assert_non_null(f);
    n = fread(out, 1, n, f);
    fclose(f);
    return n;
}

static void write_file(const char *name, const uint8_t *bytes, size_t n)
{
    int fd;

    (void)mkdir(path(""), 0700); /* the group; it may be there */
    fd = open(path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(syscall(SYS_write, fd, bytes, n), n);
    close(fd);
}

static void test_golden_file(void **state)
{
    uint8_t bytes[512];
    struct store *store = open_store();
    struct stat st;

    assert_int_equal(apply(store, WIRE_ARB_CAS, "web", &none, &solo).status, WIRE_ARB_DONE);
    assert_int_equal(apply(store, WIRE_ARB_CAS, "web", &solo, &paired).status, WIRE_ARB_DONE);
    store_close(store);
    assert_int_equal(read_file("web", bytes, sizeof(bytes)), sizeof(golden_register));
    assert_memory_equal(bytes, golden_register, sizeof(golden_register));
    assert_int_equal(stat(path("web"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    empty_dir();
    write_file("web", golden_register, sizeof(golden_register));
    assert_holds("web", &paired);
}

static void assert_open_fails(int code, const char *names)
{
    struct store *store;
    struct err err = {""};

    assert_int_equal(store_open(dir, &store, &err), code);
    assert_non_null(strstr(err.text, names));
}

static void test_damaged_files_are_refused(void **state)
{
    uint8_t bytes[sizeof(golden_register) + 1] = {0};

    memcpy(bytes, golden_register, sizeof(golden_register));
    for (size_t i = 0; i < sizeof(golden_register); i++) {
        bytes[i] ^= 0x01;
        write_file("web", bytes, sizeof(golden_register));
        assert_open_fails(-EBADMSG, "web: ");
        bytes[i] ^= 0x01;
    }
    for (size_t n = 0; n <= sizeof(bytes); n++) {
        write_file("web", bytes, n);
        if (n != sizeof(golden_register))
            assert_open_fails(-EBADMSG, "web: ");
    }
    write_file("web", bytes, sizeof(golden_register));
    assert_holds("web", &paired);
    write_file("db", bytes, sizeof(golden_register)); /* a copy under another name */
    assert_open_fails(-EBADMSG, "db: ");
    assert_int_equal(remove(path("db")), 0);
    assert_int_equal(mkdir(path("db"), 0700), 0);
    assert_open_fails(-EISDIR, "db: ");
}

static void test_damage_while_open_ends_the_store(void **state)
{
    struct wire_arb_request get = {.op = WIRE_ARB_GET, .vm = "web"};
    struct wire_arb_reply reply;
    struct store *store;
    struct err err = {""};

    put_solo();
    store = open_store();
    write_file("web", golden_register, 100);
    assert_int_equal(store_apply(store, &hosta, &get, &reply, &err), -ENOTRECOVERABLE);
    assert_non_null(strstr(err.text, "web: "));
    store_close(store);
}

static void test_one_process_only(void **state)
{
    struct store *store = open_store();

    assert_open_fails(-EBUSY, "another witness");
    store_close(store);
    store_close(open_store());
}

static void test_directory_must_exist(void **state)
{
    struct store *store;

    assert_int_equal(store_open("/nonexistent/us-store", &store, NULL), -ENOENT);
}

static void test_other_files(void **state)
{
    struct stat st;

    write_file(".new", golden_register, 17); /* left over from a crash */
    write_file("README.txt", golden_register, 3);
    put_solo();
    assert_holds("web", &solo);
    assert_int_equal(stat(path(".new"), &st), -1);
    assert_int_equal(stat(path("README.txt"), &st), 0);
}

/* Every write, sync and rename of a swap fails in turn, until none is left. Whatever is answered is
 * the truth, and the same swap goes through once the disk works again. */
static void run_faults(enum fault how)
{
    struct wire_arb_request swap = {
        .op = WIRE_ARB_CAS, .vm = "web", .expected = solo, .wanted = paired};
    struct wire_arb_reply reply;
    int n_failed = 0, n_fatal = 0, r;

    for (int n = 1;; n++) {
        struct store *store;

        empty_dir();
        put_solo();
        store = open_store();
        disk.calls = 0;
        disk.fail_at = n;
        disk.how = how;
        r = store_apply(store, &hosta, &swap, &reply, NULL);
        disk.fail_at = 0;
        if (disk.calls < n) { /* nothing failed any more */
            assert_int_equal(r, 0);
            assert_int_equal(reply.status, WIRE_ARB_DONE);
            store_close(store);
            break;
        }
        if (r == -ENOTRECOVERABLE) {
            n_fatal++;
        } else {
            assert_int_equal(r, 0);
            assert_int_equal(reply.status, WIRE_ARB_ERROR);
            assert_true(arb_record_equal(&reply.current, &solo));
            n_failed++;
            reply = apply(store, WIRE_ARB_CAS, "web", &solo, &paired);
            assert_int_equal(reply.status, WIRE_ARB_DONE);
        }
        store_close(store);
        assert_holds("web",
                     &paired); /* also after a fatal fault: all of them are past the rename */
    }
    assert_int_equal(n_failed, how == FAULT_LIE ? 2 : 3);
    assert_int_equal(n_fatal, how == FAULT_LIE ? 2 : 1);
}

static void test_each_call_fails(void **state)
{
    run_faults(FAULT_ERROR);
}

static void test_short_write(void **state)
{
    run_faults(FAULT_SHORT_WRITE);
}

static void test_rename_that_lies(void **state)
{
    run_faults(FAULT_LIE);
}

static void test_failing_sync_at_opening(void **state)
{
    put_solo();
    disk.calls = 0;
    disk.fail_at = 1; /* of the file: what it shows may not be on the disk */
    assert_open_fails(-EIO, "web");
    disk.calls = 0;
    disk.fail_at = 2; /* of the group's directory */
    assert_open_fails(-EIO, "pair: sync");
    disk.calls = 0;
    disk.fail_at = 3; /* of the directory of groups */
    assert_open_fails(-EIO, "sync");
    disk.fail_at = 0;
    assert_holds("web", &solo);
}

static void test_number_of_vms_is_bounded(void **state)
{
    struct store *store = open_store();
    char vm[16];

    disk.no_sync = true;
    for (int i = 0; i <= STORE_VMS_MAX; i++) {
        (void)snprintf(vm, sizeof(vm), "vm-%d", i);
        assert_int_equal(apply(store, WIRE_ARB_CAS, vm, &none, &solo).status,
                         i < STORE_VMS_MAX ? WIRE_ARB_DONE : WIRE_ARB_ERROR);
    }
    assert_int_equal(apply(store, WIRE_ARB_CAS, "vm-0", &solo, &paired).status, WIRE_ARB_DONE);
    store_close(store);
    store = open_store();
    assert_int_equal(apply(store, WIRE_ARB_CAS, vm, &none, &solo).status, WIRE_ARB_ERROR);
    store_close(store);
}

/* The first swap of a group makes its directory: each step of that fails too. */
static void test_first_swap_of_a_group(void **state)
{
    static const int fatal[] = {2, 6}; /* syncs of directories: of all groups', of the group's */
    struct wire_arb_request swap = {
        .op = WIRE_ARB_CAS, .vm = "web", .expected = none, .wanted = solo};
    struct wire_arb_reply reply;
    struct store *store;

    for (int n = 1; n <= 6; n++) {
        bool ends = n == fatal[0] || n == fatal[1];

        empty_dir();
        store = open_store();
        disk.calls = 0;
        disk.fail_at = n;
        assert_int_equal(store_apply(store, &hosta, &swap, &reply, NULL),
                         ends ? -ENOTRECOVERABLE : 0);
        if (!ends)
            assert_int_equal(reply.status, WIRE_ARB_ERROR);
        disk.fail_at = 0;
        if (!ends)
            assert_int_equal(apply(store, WIRE_ARB_CAS, "web", &none, &solo).status, WIRE_ARB_DONE);
        store_close(store);
        assert_holds("web", n == fatal[0] ? &none : &solo);
    }
}

static void test_groups_are_strangers(void **state)
{
    struct wire_arb_registers registers;
    struct wire_arb_reply reply;
    struct store *store;

    put_solo();
    store = open_store();
    reply = apply_as(store, &other, WIRE_ARB_GET, "web", &none, &none);
    assert_true(arb_record_equal(&reply.current, &none));
    reply = apply_as(store, &other, WIRE_ARB_CAS, "web", &solo, &paired);
    assert_int_equal(reply.status, WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&reply.current, &none));
    assert_int_equal(store_list(store, other.group, "", &registers, NULL), 0);
    assert_int_equal(registers.n, 0);
    reply = apply_as(store, &other, WIRE_ARB_CAS, "web", &none, &solo);
    assert_int_equal(reply.status, WIRE_ARB_DONE);
    assert_int_equal(apply(store, WIRE_ARB_CAS, "web", &solo, &paired).status, WIRE_ARB_DONE);
    reply = apply_as(store, &other, WIRE_ARB_GET, "web", &none, &none);
    assert_true(arb_record_equal(&reply.current, &solo));
    store_close(store);
    assert_holds("web", &paired);
}

/* What the rules do not let a host change stays; what has changed meanwhile is a conflict first. */
static void test_swaps_of_others_are_refused(void **state)
{
    static const struct arb_record stopped = {2, ARB_SOLO, "", ""};
    struct wire_arb_reply reply;
    struct store *store;

    put_solo();
    store = open_store();
    reply = apply_as(store, &hostb, WIRE_ARB_CAS, "web", &solo, &paired);
    assert_int_equal(reply.status, WIRE_ARB_REFUSED);
    assert_true(arb_record_equal(&reply.current, &solo));
    reply = apply_as(store, &hostb, WIRE_ARB_CAS, "web", &solo, &stopped);
    assert_int_equal(reply.status, WIRE_ARB_REFUSED);
    reply = apply_as(store, &hostb, WIRE_ARB_CAS, "db", &none, &solo);
    assert_int_equal(reply.status, WIRE_ARB_REFUSED);
    assert_int_equal(apply(store, WIRE_ARB_CAS, "web", &solo, &paired).status, WIRE_ARB_DONE);
    reply = apply_as(store, &hostb, WIRE_ARB_CAS, "web", &solo, &stopped);
    assert_int_equal(reply.status, WIRE_ARB_CONFLICT);
    assert_true(arb_record_equal(&reply.current, &paired));
    store_close(store);
    assert_holds("web", &paired);
    assert_holds("db", &none);
}

static void test_list(void **state)
{
    enum { N = 2 * WIRE_ARB_REGISTERS_PER_MSG };
    struct wire_arb_registers registers;
    char vm[WIRE_NAME_BYTES], after[WIRE_NAME_BYTES] = "";
    struct store *store = open_store();
    int told = 0;

    disk.no_sync = true;
    for (int i = 0; i < N; i++) {
        (void)snprintf(vm, sizeof(vm), "vm-%03d", (i * 37) % N); /* in any order */
        assert_int_equal(apply(store, WIRE_ARB_CAS, vm, &none, &solo).status, WIRE_ARB_DONE);
        write_file("README.txt", golden_register, 3);
    }
    do {
        assert_int_equal(store_list(store, hosta.group, after, &registers, NULL), 0);
        assert_int_equal(registers.n, WIRE_ARB_REGISTERS_PER_MSG);
        for (uint32_t i = 0; i < registers.n; i++) {
            (void)snprintf(vm, sizeof(vm), "vm-%03d", told++);
            assert_string_equal(registers.entry[i].vm, vm);
            assert_true(arb_record_equal(&registers.entry[i].record, &solo));
        }
        strcpy(after, vm);
        assert_int_equal(registers.more, told < N);
    } while (registers.more);
    assert_int_equal(store_list(store, hosta.group, after, &registers, NULL), 0);
    assert_int_equal(registers.n, 0);
    write_file("vm-000", golden_register, 100);
    assert_int_equal(store_list(store, hosta.group, "", &registers, NULL), -EBADMSG);
    store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_swaps_survive_reopening, clean),
        cmocka_unit_test_teardown(test_golden_file, clean),
        cmocka_unit_test_teardown(test_damaged_files_are_refused, clean),
        cmocka_unit_test_teardown(test_damage_while_open_ends_the_store, clean),
        cmocka_unit_test_teardown(test_one_process_only, clean),
        cmocka_unit_test_teardown(test_directory_must_exist, clean),
        cmocka_unit_test_teardown(test_other_files, clean),
        cmocka_unit_test_teardown(test_each_call_fails, clean),
        cmocka_unit_test_teardown(test_short_write, clean),
        cmocka_unit_test_teardown(test_rename_that_lies, clean),
        cmocka_unit_test_teardown(test_failing_sync_at_opening, clean),
        cmocka_unit_test_teardown(test_first_swap_of_a_group, clean),
        cmocka_unit_test_teardown(test_groups_are_strangers, clean),
        cmocka_unit_test_teardown(test_swaps_of_others_are_refused, clean),
        cmocka_unit_test_teardown(test_list, clean),
        cmocka_unit_test_teardown(test_number_of_vms_is_bounded, clean),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
