/* SPDX-License-Identifier: Apache-2.0 */
#define XXH_STATIC_LINKING_ONLY
#include "witness/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "wire/buf.h"
#include "wire/layout.h"

/* docs/protocol.md, "The witness's files". */
struct file_form {
    uint8_t magic[8];
    struct le32 version;
    uint8_t zero1[4];
    uint8_t vm[WIRE_NAME_BYTES];
    struct record_form record;
    uint8_t zero2[24];
    struct le64 checksum; /* XXH3-64 of the bytes before it */
};
WIRE_FORM(file_form, STORE_FILE_BYTES);

#define FILE_MAGIC "undrsreg"
#define FILE_NEW   ".new" /* not a VM's name */

enum { FILE_VERSION = 1 };

struct store {
    int dir_fd; /* locked */
};

static void cleanup_dir(DIR **dir)
{
    if (*dir)
        closedir(*dir);
}

/* For listing a directory; the caller closes it. */
static int dir_open(int dir_fd, DIR **ret_dir)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;

    if (fd < 0)
        return -errno;
    *ret_dir = fdopendir(fd); /* takes fd */
    if (*ret_dir)
        return 0;
    r = -errno;
    close(fd);
    return r;
}

/* The next entry that is named as a group or a VM may be, or NULL: errno is 0 at the end. What has
 * another name is not ours and is left alone. */
static const char *dir_next(DIR *dir)
{
    struct dirent *entry;

    do {
        errno = 0;
        entry = readdir(dir);
    } while (entry && !wire_name_valid(entry->d_name));
    return entry ? entry->d_name : NULL;
}

static uint64_t file_checksum(const struct file_form *form)
{
    return XXH3_64bits(form, offsetof(struct file_form, checksum));
}

bool store_file_recognize(const uint8_t bytes[static STORE_FILE_BYTES])
{
    return memcmp(bytes, FILE_MAGIC, sizeof(((struct file_form *)NULL)->magic)) == 0;
}

int store_file_decode(const uint8_t bytes[static STORE_FILE_BYTES], const char *vm,
                      struct arb_record *ret_record, struct err *err)
{
    struct file_form form;
    struct arb_record record;
    char name[WIRE_NAME_BYTES];

    memcpy(&form, bytes, sizeof(form));
    if (!store_file_recognize(bytes))
        return err_set(err, -EBADMSG, "%s: not a register of a witness", vm);
    if (le64_get(form.checksum) != file_checksum(&form))
        return err_set(err, -EBADMSG, "%s: damaged: wrong checksum", vm);
    if (le32_get(form.version) != FILE_VERSION)
        return err_set(err, -EBADMSG, "%s: unknown version %u", vm, le32_get(form.version));
    if (!wire_all_zero(form.zero1, sizeof(form.zero1)) ||
        !wire_all_zero(form.zero2, sizeof(form.zero2)) ||
        !wire_text_get(form.vm, sizeof(form.vm), name) || strcmp(name, vm) != 0 ||
        record_form_get(&form.record, &record, NULL) < 0 || record.term == 0)
        return err_set(err, -EBADMSG, "%s: does not hold a record of this VM", vm);
    *ret_record = record;
    return 0;
}

/* Reads as much as the file has, at most n bytes. */
static ssize_t read_up_to(int fd, uint8_t *buf, size_t n)
{
    size_t got = 0;

    while (got < n) {
        ssize_t r = FAULTY("witness.read", read(fd, buf + got, n - got));

        if (r < 0 && errno != EINTR)
            return -errno;
        if (r == 0)
            break;
        if (r > 0)
            got += (size_t)r;
    }
    return (ssize_t)got;
}

/* Opens a group's directory. One that is not there is made, or, without `make`, -ENOENT. */
static int group_open(const struct store *store, const char *group, bool make, int *ret_fd,
                      struct err *err)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(store->dir_fd, group, flags);

    if (fd < 0 && errno == ENOENT && make) {
        if (FAULTY("witness.make-group", mkdirat(store->dir_fd, group, 0700)) < 0)
            return err_sys(err, -errno, "%s: cannot make the group's directory", group);
        if (FAULTY("witness.sync-group", fsync(store->dir_fd)) <
            0) /* registers in it would be lost with it */
            return err_sys(err, -ENOTRECOVERABLE, "%s: sync: %s", group, strerror(errno));
        fd = openat(store->dir_fd, group, flags);
    }
    if (fd < 0)
        return err_sys(err, -errno, "%s", group);
    *ret_fd = fd;
    return 0;
}

/* Reads a VM's register; no file = no record. */
static int register_read(int group_fd, const char *vm, bool sync, struct arb_record *ret_record,
                         struct err *err)
{
    CLEANUP_FD int fd = openat(group_fd, vm, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    uint8_t bytes[STORE_FILE_BYTES + 1]; /* one more, to see a file that is too long */
    ssize_t n;

    if (fd < 0 && errno == ENOENT) {
        *ret_record = (struct arb_record){0};
        return 0;
    }
    if (fd < 0 || (sync && fsync(fd) < 0))
        return err_sys(err, -errno, "%s", vm);
    n = read_up_to(fd, bytes, sizeof(bytes));
    if (n < 0)
        return err_sys(err, (int)n, "%s", vm);
    if (n != STORE_FILE_BYTES)
        return err_set(err, -EBADMSG, "%s: damaged: not %d bytes long", vm, STORE_FILE_BYTES);
    return store_file_decode(bytes, vm, ret_record, err);
}

static int new_file_write(int group_fd, const struct file_form *form)
{
    /* One that could not be removed earlier is nobody's. */
    CLEANUP_FD int fd =
        FAULTY("witness.make", openat(group_fd, FILE_NEW,
                                      O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
    ssize_t n;

    if (fd < 0)
        return -errno;
    n = FAULTY("witness.write", write(fd, form, sizeof(*form)));
    if (n < 0)
        return -errno;
    if (n < (ssize_t)sizeof(*form))
        return -ENOSPC; /* short: there was room for a part only */
    return FAULTY("witness.sync", fdatasync(fd)) < 0 ? -errno : 0;
}

/* Replaces a VM's register, which holds `old` now. 0; -ENOTRECOVERABLE as store_apply(); another
 * negative errno: it still holds `old`. */
static int register_write(int group_fd, const char *vm, const struct arb_record *old,
                          const struct arb_record *record, struct err *err)
{
    struct file_form form = {.version = le32_of(FILE_VERSION)};
    struct arb_record there;
    int r;

    memcpy(form.magic, FILE_MAGIC, sizeof(form.magic));
    wire_text_put(form.vm, sizeof(form.vm), vm);
    record_form_put(&form.record, record);
    form.checksum = le64_of(file_checksum(&form));
    r = new_file_write(group_fd, &form);
    if (r == 0 && FAULTY("witness.rename", renameat(group_fd, FILE_NEW, group_fd, vm)) < 0) {
        r = -errno;
        /* A failed rename changed nothing, but not every file system keeps to that. */
        if (register_read(group_fd, vm, false, &there, NULL) < 0 || !arb_record_equal(&there, old))
            return err_sys(err, -ENOTRECOVERABLE, "%s: rename failed half-way: %s", vm,
                           strerror(-r));
    }
    if (r < 0) {
        (void)unlinkat(group_fd, FILE_NEW, 0); /* if it stays, it does no harm */
        return err_sys(err, r, "%s: cannot store term %llu", vm, (unsigned long long)record->term);
    }
    if (FAULTY("witness.sync-dir", fsync(group_fd)) < 0)
        return err_sys(err, -ENOTRECOVERABLE, "%s: term %llu may be on the disk or not: sync: %s",
                       vm, (unsigned long long)record->term, strerror(errno));
    return 0;
}

/* Whether there is room for one VM more. */
static int group_check_room(int group_fd, struct err *err)
{
    CLEANUP(cleanup_dir) DIR *dir = NULL;
    unsigned n = 0;
    int r = dir_open(group_fd, &dir);

    if (r < 0)
        return err_sys(err, r, "list");
    while (dir_next(dir))
        n++;
    if (errno)
        return err_sys(err, -errno, "list");
    return n < STORE_VMS_MAX ? 0 : err_set(err, -ENOSPC, "the group has %u VMs already", n);
}

/* Carries out a request on a register which holds `old`. *group_fd is -1 when there is no such
 * directory yet. As store_apply(), but errors that leave the register alone are returned. */
static int apply(const struct store *store, int *group_fd, const struct store_asker *asker,
                 const struct wire_arb_request *request, const struct arb_record *old,
                 struct wire_arb_reply *ret_reply, struct err *err)
{
    struct arb_record reg = *old;
    int r = 0;

    arb_register_apply(&reg, request, ret_reply);
    if (arb_record_equal(&reg, old))
        return 0;
    if (!arb_request_allowed(request, asker->host)) {
        *ret_reply = (struct wire_arb_reply){.status = WIRE_ARB_REFUSED, .current = *old};
        return err_set(err, 0, "%s: not for %s to change", request->vm, asker->host);
    }
    if (*group_fd < 0)
        r = group_open(store, asker->group, true, group_fd, err);
    if (r == 0 && old->term == 0)
        r = group_check_room(*group_fd, err);
    return r < 0 ? r : register_write(*group_fd, request->vm, old, &reg, err);
}

int store_apply(struct store *store, const struct store_asker *asker,
                const struct wire_arb_request *request, struct wire_arb_reply *ret_reply,
                struct err *err)
{
    struct arb_record old = {0};
    CLEANUP_FD int group_fd = -1;
    int r = group_open(store, asker->group, false, &group_fd, err);

    if (r == 0)
        r = register_read(group_fd, request->vm, false, &old, err);
    else if (r == -ENOENT)
        r = 0; /* no VM of this group was started yet */
    if (r == -EBADMSG)
        return -ENOTRECOVERABLE; /* damaged under our eyes: the next start names it */
    if (r == 0)
        r = apply(store, &group_fd, asker, request, &old, ret_reply, err);
    if (r < 0 && r != -ENOTRECOVERABLE) {
        *ret_reply = (struct wire_arb_reply){.status = WIRE_ARB_ERROR, .current = old};
        r = 0;
    }
    return r;
}

/* Puts a name into a sorted list of at most n_max, from which the last one then falls out. */
static void insert_name(struct wire_arb_register *list, uint32_t *n, uint32_t n_max,
                        const char *name)
{
    uint32_t at = *n;

    while (at > 0 && strcmp(list[at - 1].vm, name) > 0)
        at--;
    if (at == n_max)
        return;
    if (*n < n_max)
        ++*n;
    memmove(&list[at + 1], &list[at], (*n - at - 1) * sizeof(list[0]));
    strcpy(list[at].vm, name); /* valid, so it fits */
}

int store_list(struct store *store, const char *group, const char *after,
               struct wire_arb_registers *ret_registers, struct err *err)
{
    struct wire_arb_registers registers = {0};
    CLEANUP(cleanup_dir) DIR *dir = NULL;
    CLEANUP_FD int group_fd = -1;
    const char *name;
    int r = group_open(store, group, false, &group_fd, err);

    if (r == -ENOENT) {
        *ret_registers = registers;
        return 0;
    }
    if (r < 0)
        return r;
    r = dir_open(group_fd, &dir);
    if (r < 0)
        return err_sys(err, r, "%s: list", group);
    while ((name = dir_next(dir)) != NULL) {
        if (strcmp(name, after) <= 0)
            continue;
        registers.more = registers.n == WIRE_ARB_REGISTERS_PER_MSG;
        insert_name(registers.entry, &registers.n, WIRE_ARB_REGISTERS_PER_MSG, name);
    }
    if (errno)
        return err_sys(err, -errno, "%s: list", group);
    for (uint32_t i = 0; i < registers.n; i++) {
        struct wire_arb_register *entry = &registers.entry[i];

        r = register_read(group_fd, entry->vm, false, &entry->record, err);
        if (r == 0 && entry->record.term == 0)
            r = err_set(err, -ENOENT, "%s: removed under our eyes", entry->vm);
        if (r < 0)
            return r;
    }
    *ret_registers = registers;
    return 0;
}

/* Removes what a crash left over, verifies and syncs every register of a group. */
static int group_verify(int group_fd, struct err *err)
{
    CLEANUP(cleanup_dir) DIR *dir = NULL;
    struct arb_record record;
    const char *name;
    int r = dir_open(group_fd, &dir);

    if (r < 0)
        return err_sys(err, r, "open");
    /* Where nothing can be written, reading still makes sense. */
    if (unlinkat(group_fd, FILE_NEW, 0) < 0 && errno != ENOENT && errno != EROFS)
        return err_sys(err, -errno, "remove " FILE_NEW);
    while ((name = dir_next(dir)) != NULL) {
        r = register_read(group_fd, name, true, &record, err);
        if (r < 0)
            return r;
    }
    if (errno)
        return err_sys(err, -errno, "list");
    return fsync(group_fd) < 0 ? err_sys(err, -errno, "sync") : 0;
}

static int store_verify(struct store *store, struct err *err)
{
    CLEANUP(cleanup_dir) DIR *dir = NULL;
    const char *name;
    int r = dir_open(store->dir_fd, &dir);

    if (r < 0)
        return err_sys(err, r, "open");
    while ((name = dir_next(dir)) != NULL) {
        CLEANUP_FD int group_fd = -1;

        r = group_open(store, name, false, &group_fd, err);
        if (r < 0)
            return r;
        r = group_verify(group_fd, err);
        if (r < 0) {
            err_prefix(err, "%s", name);
            return r;
        }
    }
    if (errno)
        return err_sys(err, -errno, "list");
    return fsync(store->dir_fd) < 0 ? err_sys(err, -errno, "sync") : 0;
}

static int store_take(struct store *store, const char *dir, struct err *err)
{
    store->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->dir_fd < 0)
        return err_sys(err, -errno, "open");
    if (flock(store->dir_fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? err_set(err, -EBUSY, "another witness uses it")
                                    : err_sys(err, -errno, "lock");
    return 0;
}

int store_open(const char *dir, struct store **ret_store, struct err *err)
{
    struct store *store = calloc(1, sizeof(*store));
    int r;

    if (!store)
        return err_sys(err, -ENOMEM, "%s", dir);
    r = store_take(store, dir, err);
    if (r == 0)
        r = store_verify(store, err);
    if (r < 0) {
        err_prefix(err, "%s", dir);
        store_close(store);
        return r;
    }
    *ret_store = store;
    return 0;
}

void store_close(struct store *store)
{
    if (!store)
        return;
    if (store->dir_fd >= 0)
        close(store->dir_fd);
    free(store);
}
