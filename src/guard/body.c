/* SPDX-License-Identifier: Apache-2.0 */
#include "guard/body.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "io/log.h"
#include "io/user.h"

enum { LEFTOVER_WAIT_MS = 5000 };

#define NICS_DIR "nics" /* in the VM's directory: where the hypervisor binds its sockets */

/* The driver's callbacks go to whatever role is in charge now. */

static void on_checkpoint(void *user, const struct hyp_state *state,
                          const struct hyp_timing *timing)
{
    struct body *b = user;

    b->callbacks->on_checkpoint(b->user, state, timing);
}

static void on_stopped(void *user)
{
    struct body *b = user;

    b->callbacks->on_stopped(b->user);
}

static void on_guest_flushes(void *user, const uint64_t *flushes)
{
    struct body *b = user;

    b->callbacks->on_guest_flushes(b->user, flushes);
}

static void on_running(void *user)
{
    struct body *b = user;

    b->callbacks->on_running(b->user);
}

static void on_failure(void *user, const char *why, bool running)
{
    struct body *b = user;

    b->callbacks->on_failure(b->user, why, running);
}

static void on_exit_(void *user, enum hyp_exit how, const char *detail)
{
    struct body *b = user;

    b->callbacks->on_exit(b->user, how, detail);
}

static const struct hyp_callbacks forwarders = {
    .on_stopped = on_stopped,
    .on_guest_flushes = on_guest_flushes,
    .on_checkpoint = on_checkpoint,
    .on_running = on_running,
    .on_failure = on_failure,
    .on_exit = on_exit_,
};

static int open_lock(struct body *b, struct err *err)
{
    char path[VM_PROCESS_PATH_MAX + 8];
    CLEANUP_FD int fd = -1;
    struct stat st;

    (void)snprintf(path, sizeof(path), "%s.lock", b->own_dir);
    fd = FAULTY("body.open-lock", open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (fd < 0)
        return err_sys(err, -errno, "%s", path);
    /* A file without a name was given up by its last holder just now: its lock means nothing. */
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &st) < 0 || st.st_nlink == 0)
        return err_set(err, -EBUSY, "another process of this host runs or backs it already");
    b->lock_fd = take_fd(&fd);
    return 0;
}

/* Gives a file to the hypervisor's user. */
static int give(const struct body *b, const char *path, struct err *err)
{
    return lchown(path, b->uid, b->gid) < 0 ? err_sys(err, -errno, "%s: chown", path) : 0;
}

/* The hypervisor may go into the VM's directory, through a descriptor that only it has, and make
 * sockets in a directory of its own there. The rest is ours. */
static int make_own_dir(const struct body *b, struct err *err)
{
    char nics[VM_PROCESS_PATH_MAX + 8];

    (void)snprintf(nics, sizeof(nics), "%s/" NICS_DIR, b->own_dir);
    if ((FAULTY("body.make-dir", mkdir(b->own_dir, 0711)) < 0 && errno != EEXIST) ||
        chmod(b->own_dir, 0711) < 0)
        return err_sys(err, -errno, "%s", b->own_dir);
    if (mkdir(nics, 0700) < 0 && errno != EEXIST)
        return err_sys(err, -errno, "%s", nics);
    return give(b, nics, err);
}

/* A guard that crashed left its hypervisor behind: mute, since nobody moved its frames, but with
 * the VM's memory. We hold the lock, so nobody needs it any more. */
static void kill_leftover(const struct body *b)
{
    CLEANUP_FD int pidfd = -1;
    struct pollfd gone;
    pid_t pid;

    if (vm_process_find(b->config, b->spec.name, &pid, &pidfd) < 0)
        return;
    log_warning("killing the hypervisor that a crashed guard left behind, pid %d", (int)pid);
    if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0)
        return;
    gone = (struct pollfd){.fd = pidfd, .events = POLLIN};
    (void)poll(&gone, 1, LEFTOVER_WAIT_MS); /* late or not: its memory is unlinked next */
}

static int map_ram(struct body *b, struct err *err)
{
    b->ram = mmap(NULL, b->spec.memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, b->ram_fd, 0);
    if (b->ram == MAP_FAILED) {
        b->ram = NULL;
        return err_sys(err, -errno, "%s: mmap", b->ram_path);
    }
    b->n_pages = b->spec.memory_bytes / VM_PAGE_BYTES;
    return 0;
}

static int make_ram(struct body *b, struct err *err)
{
    (void)unlink(b->ram_path); /* a leftover: we hold the lock */
    b->ram_fd = open(b->ram_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (b->ram_fd < 0)
        return err_sys(err, -errno, "%s", b->ram_path);
    if (fchown(b->ram_fd, b->uid, b->gid) < 0 ||
        FAULTY("body.size-memory", ftruncate(b->ram_fd, (off_t)b->spec.memory_bytes)) < 0)
        return err_sys(err, -errno, "%s", b->ram_path);
    return map_ram(b, err);
}

/* The memory of a VM that lives. */
static int find_ram(struct body *b, struct err *err)
{
    struct stat st;

    b->ram_fd = open(b->ram_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (b->ram_fd < 0 || fstat(b->ram_fd, &st) < 0)
        return err_sys(err, errno == ENOENT ? -ESRCH : -errno, "%s", b->ram_path);
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != b->spec.memory_bytes)
        return err_set(err, -EINVAL, "%s: not the memory of this VM: %lld bytes, it has %llu",
                       b->ram_path, (long long)st.st_size,
                       (unsigned long long)b->spec.memory_bytes);
    return map_ram(b, err);
}

/* One end of a NIC's datagram path, in the VM's directory. */
static int socket_path(const struct body *b, uint32_t nic, const char *form,
                       char ret_path[static 108], struct err *err)
{
    int n = snprintf(ret_path, 108, form, b->own_dir, nic);

    if (n < 0 || n >= 108)
        return err_set(err, -ENAMETOOLONG,
                       "%s: too long for a socket's path, use a shorter run_dir", b->own_dir);
    return 0;
}

static int open_ports(struct body *b, struct hyp_nic_paths *paths, struct err *err)
{
    uint32_t i;
    int r;

    for (i = 0; i < b->spec.n_nics; i++) {
        struct netport_config config = {
            .vm = b->spec.name,
            .nic = i,
            .bridge = b->spec.nics[i].bridge,
            .hyp_path = paths[i].hyp_path,
            .guard_path = paths[i].guard_path,
        };

        if ((r = socket_path(b, i, "%s/" NICS_DIR "/nic%u", paths[i].hyp_path, err)) < 0 ||
            (r = socket_path(b, i, "%s/nic%u", paths[i].guard_path, err)) < 0)
            return r;
        memcpy(config.mac, b->spec.nics[i].mac, sizeof(config.mac));
        r = netport_open(&config, &b->ports[i], err);
        if (r == 0)
            r = give(b, paths[i].guard_path, err);
        if (r < 0) {
            err_prefix(err, "nics[%u]", i);
            return r;
        }
    }
    return 0;
}

static int open_disks(struct body *b, enum disks_use use, struct err *err)
{
    int r = disks_open(b->config, &b->spec, b->own_dir, use, b->event, &b->disks, err);

    for (uint32_t i = 0; r >= 0 && b->disks && i < b->disks->n; i++)
        r = give(b, b->disks->sockets[i], err);
    return r < 0 ? r : 0;
}

static void fill_launch(struct body *b, struct hyp_nic_paths *paths, struct hyp_launch *ret_launch)
{
    *ret_launch = (struct hyp_launch){
        .spec = &b->spec,
        .run_dir = b->own_dir,
        .ram_path = b->ram_path,
        .emulator = b->config->emulator,
        .uid = b->uid,
        .gid = b->gid,
        .nics = paths,
        .disk_sockets = b->disks ? b->disks->socket_list : NULL,
        .disk_listeners = b->disks ? b->disks->listeners : NULL,
        .event = b->event,
        .callbacks = &forwarders,
        .user = b,
    };
}

/* Frees all but the lock; what the hypervisor uses stays. */
static void let_go(struct body *b)
{
    disks_close(b->disks);
    for (uint32_t i = 0; i < b->spec.n_nics; i++)
        netport_close(b->ports[i]);
    if (b->ram)
        (void)munmap(b->ram, b->spec.memory_bytes);
    if (b->ram_fd >= 0)
        close(b->ram_fd);
}

static void abandon(struct body *b)
{
    let_go(b);
    close(b->lock_fd);
    free(b);
}

static int body_new(const struct host_config *config, const struct vm_spec *spec,
                    const struct hyp_ops *ops, sd_event *event,
                    const struct hyp_callbacks *callbacks, void *user, struct body **ret_body,
                    struct err *err)
{
    struct body *b = calloc(1, sizeof(*b));
    int r;

    if (!b)
        return err_sys(err, -ENOMEM, "%s", spec->name);
    b->event = event;
    b->config = config;
    b->spec = *spec;
    b->ops = ops;
    b->ram_fd = b->lock_fd = -1;
    b->callbacks = callbacks;
    b->user = user;
    vm_process_dir(config, spec->name, b->own_dir);
    vm_process_ram(config, spec->name, b->ram_path);
    r = user_lookup(config->emulator_user, &b->uid, &b->gid, err);
    if (r < 0)
        err_prefix(err, "emulator_user");
    else
        r = open_lock(b, err);
    if (r < 0)
        free(b);
    else
        *ret_body = b;
    return r;
}

int body_open(const struct host_config *config, const struct vm_spec *spec,
              const struct hyp_ops *ops, sd_event *event, bool incoming,
              const struct hyp_callbacks *callbacks, void *user, struct body **ret_body,
              struct err *err)
{
    struct hyp_nic_paths paths[VM_NICS_MAX];
    struct hyp_launch launch;
    struct body *b;
    int r = body_new(config, spec, ops, event, callbacks, user, &b, err);

    if (r < 0)
        return r;
    kill_leftover(b);
    if ((r = make_own_dir(b, err)) == 0 && (r = make_ram(b, err)) == 0 &&
        (r = open_ports(b, paths, err)) == 0 &&
        (r = open_disks(b, incoming ? DISKS_STANDBY : DISKS_START, err)) == 0) {
        fill_launch(b, paths, &launch);
        launch.incoming = incoming;
        fault_point("body.launch");
        r = ops->launch(&launch, &b->vm, err);
        fault_point("body.launched");
    }
    if (r < 0) {
        body_close(b);
        return r;
    }
    *ret_body = b;
    return 0;
}

int body_attach(const struct host_config *config, const struct vm_spec *spec,
                const struct hyp_ops *ops, sd_event *event, const struct hyp_callbacks *callbacks,
                void *user, struct body **ret_body, bool *ret_running, struct err *err)
{
    struct hyp_nic_paths paths[VM_NICS_MAX];
    CLEANUP_FD int pidfd = -1;
    struct hyp_launch launch;
    struct body *b;
    pid_t pid;
    int r = body_new(config, spec, ops, event, callbacks, user, &b, err);

    if (r < 0)
        return r;
    r = vm_process_find(config, spec->name, &pid, &pidfd);
    if (r < 0)
        err_set(err, r, "%s has no hypervisor on this host", spec->name);
    if (r == 0 && (r = find_ram(b, err)) == 0 && (r = open_ports(b, paths, err)) == 0 &&
        (r = open_disks(b, DISKS_GO_ON, err)) == 0) {
        fill_launch(b, paths, &launch);
        fault_point("body.attach");
        r = ops->attach(&launch, pid, &b->vm, ret_running, err);
    }
    if (r == -ESRCH) /* what never ran its VM is of no use to whoever tries again */
        kill_leftover(b);
    if (r < 0) {
        abandon(b);
        return r;
    }
    *ret_body = b;
    return 0;
}

static void remove_dir(const char *path)
{
    struct dirent *entry;
    DIR *dir = opendir(path);

    while (dir && (entry = readdir(dir)))
        (void)unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    (void)rmdir(path);
}

/* What is left there is the hypervisor's log; its last words were quoted when it died. */
static void remove_own_dir(const struct body *b)
{
    char nics[VM_PROCESS_PATH_MAX + 8];

    (void)snprintf(nics, sizeof(nics), "%s/" NICS_DIR, b->own_dir);
    remove_dir(nics);
    remove_dir(b->own_dir);
}

void body_close(struct body *b)
{
    char path[VM_PROCESS_PATH_MAX + 8];

    if (!b)
        return;
    b->ops->close(b->vm);
    let_go(b);
    if (b->ram_fd >= 0)
        (void)unlink(b->ram_path);
    remove_own_dir(b);
    /* Unlinked while it is locked, so that nobody locks a file that has no name. */
    (void)snprintf(path, sizeof(path), "%s.lock", b->own_dir);
    (void)unlink(path);
    close(b->lock_fd);
    free(b);
}
