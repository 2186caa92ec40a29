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
    unsigned n_vms;
};

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

/* Reads a VM's register; no file = no record. */
static int register_read(const struct store *store, const char *vm, bool sync,
                         struct arb_record *ret_record, struct err *err)
{
    CLEANUP_FD int fd = openat(store->dir_fd, vm, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
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

static int new_file_write(const struct store *store, const struct file_form *form)
{
    CLEANUP_FD int fd =
        FAULTY("witness.make", openat(store->dir_fd, FILE_NEW,
                                      O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
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
static int register_write(const struct store *store, const char *vm, const struct arb_record *old,
                          const struct arb_record *record, struct err *err)
{
    struct file_form form = {.version = le32_of(FILE_VERSION)};
    struct arb_record there;
    int r;

    memcpy(form.magic, FILE_MAGIC, sizeof(form.magic));
    wire_text_put(form.vm, sizeof(form.vm), vm);
    record_form_put(&form.record, record);
    form.checksum = le64_of(file_checksum(&form));
    r = new_file_write(store, &form);
    if (r == 0 &&
        FAULTY("witness.rename", renameat(store->dir_fd, FILE_NEW, store->dir_fd, vm)) < 0) {
        r = -errno;
        /* A failed rename changed nothing, but not every file system keeps to that. */
        if (register_read(store, vm, false, &there, NULL) < 0 || !arb_record_equal(&there, old))
            return err_sys(err, -ENOTRECOVERABLE, "%s: rename failed half-way: %s", vm,
                           strerror(-r));
    }
    if (r < 0) {
        (void)unlinkat(store->dir_fd, FILE_NEW, 0); /* if it stays, the next write says so */
        return err_sys(err, r, "%s: cannot store term %llu", vm, (unsigned long long)record->term);
    }
    if (FAULTY("witness.sync-dir", fsync(store->dir_fd)) < 0)
        return err_sys(err, -ENOTRECOVERABLE, "%s: term %llu may be on the disk or not: sync: %s",
                       vm, (unsigned long long)record->term, strerror(errno));
    return 0;
}

int store_apply(struct store *store, const struct wire_arb_request *request,
                struct wire_arb_reply *ret_reply, struct err *err)
{
    struct arb_record old = {0}, reg;
    int r = register_read(store, request->vm, false, &old, err);

    reg = old;
    if (r == -EBADMSG)
        return -ENOTRECOVERABLE; /* damaged under our eyes: the next start names it */
    if (r == 0) {
        arb_register_apply(&reg, request, ret_reply);
        if (arb_record_equal(&reg, &old))
            return 0;
        if (old.term == 0 && store->n_vms >= STORE_VMS_MAX)
            r = err_set(err, -ENOSPC, "%s: already %u VMs", request->vm, store->n_vms);
        else
            r = register_write(store, request->vm, &old, &reg, err);
    }
    if (r == -ENOTRECOVERABLE)
        return r;
    if (r < 0)
        *ret_reply = (struct wire_arb_reply){.status = WIRE_ARB_ERROR, .current = old};
    else if (old.term == 0)
        store->n_vms++;
    return 0;
}

static void cleanup_dir(DIR **dir)
{
    if (*dir)
        closedir(*dir);
}

/* Verifies and syncs every register. Files with other names are not ours and are left alone. */
static int store_verify(struct store *store, struct err *err)
{
    CLEANUP(cleanup_dir) DIR *dir = NULL;
    struct dirent *entry;
    struct arb_record record;
    int fd = openat(store->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;

    if (fd < 0)
        return err_sys(err, -errno, "open");
    dir = fdopendir(fd); /* takes fd */
    if (!dir) {
        r = -errno;
        close(fd);
        return err_sys(err, r, "open");
    }
    while (errno = 0, (entry = readdir(dir)) != NULL) {
        if (!wire_name_valid(entry->d_name))
            continue;
        r = register_read(store, entry->d_name, true, &record, err);
        if (r < 0)
            return r;
        store->n_vms++;
    }
    if (errno)
        return err_sys(err, -errno, "list");
    return 0;
}

static int store_take(struct store *store, const char *dir, struct err *err)
{
    store->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->dir_fd < 0)
        return err_sys(err, -errno, "open");
    if (flock(store->dir_fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? err_set(err, -EBUSY, "another witness uses it")
                                    : err_sys(err, -errno, "lock");
    if (unlinkat(store->dir_fd, FILE_NEW, 0) < 0 && errno != ENOENT)
        return err_sys(err, -errno, "remove " FILE_NEW);
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
    if (r == 0 && fsync(store->dir_fd) < 0)
        r = err_sys(err, -errno, "sync");
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
