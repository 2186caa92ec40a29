/* SPDX-License-Identifier: Apache-2.0 */
#include "io/vm_process.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"

void vm_process_dir(const struct host_config *config, const char *vm, char *out)
{
    (void)snprintf(out, VM_PROCESS_PATH_MAX, "%s/vms/%s", config->run_dir, vm);
}

void vm_process_ram(const struct host_config *config, const char *vm, char *out)
{
    (void)snprintf(out, VM_PROCESS_PATH_MAX, "%s/%s.ram", config->memory_dir, vm);
}

static bool has_memory(pid_t pid, const char *ram_path)
{
    struct stat theirs, ours;
    char path[48];

    (void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, VM_RAM_FD);
    return stat(path, &theirs) == 0 && stat(ram_path, &ours) == 0 && theirs.st_dev == ours.st_dev &&
           theirs.st_ino == ours.st_ino;
}

int vm_process_open(pid_t pid, const char *ram_path, int *ret_pidfd)
{
    CLEANUP_FD int pidfd = -1;

    if (pid <= 1)
        return -ESRCH;
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return -ESRCH;
    /* Looked at only now: the descriptor holds on to the process that has the pid. */
    if (!has_memory(pid, ram_path))
        return -ESRCH;
    *ret_pidfd = take_fd(&pidfd);
    return 0;
}

int vm_process_find(const struct host_config *config, const char *vm, pid_t *ret_pid,
                    int *ret_pidfd)
{
    char dir[VM_PROCESS_PATH_MAX], path[VM_PROCESS_PATH_MAX + sizeof(VM_PID_FILE) + 1];
    FILE *file;
    int pid, n, r;

    vm_process_dir(config, vm, dir);
    (void)snprintf(path, sizeof(path), "%s/" VM_PID_FILE, dir);
    file = fopen(path, "re");
    if (!file)
        return -ESRCH;
    n = fscanf(file, "%d", &pid);
    (void)fclose(file); /* only read */
    if (n != 1)
        return -ESRCH;
    vm_process_ram(config, vm, dir);
    r = vm_process_open(pid, dir, ret_pidfd);
    if (r == 0)
        *ret_pid = pid;
    return r;
}

static bool listens_at(int sock, const char *path)
{
    struct sockaddr_un address = {0};
    socklen_t n_address = sizeof(address), n = sizeof(int);
    int listening = 0, type = 0;

    return getsockopt(sock, SOL_SOCKET, SO_ACCEPTCONN, &listening, &n) == 0 && listening &&
           getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &n) == 0 && type == SOCK_STREAM &&
           getsockname(sock, (struct sockaddr *)&address, &n_address) == 0 &&
           address.sun_family == AF_UNIX &&
           strncmp(address.sun_path, path, sizeof(address.sun_path)) == 0;
}

int vm_process_kept(int pidfd, unsigned n, const char *path, int *ret_sock)
{
    CLEANUP_FD int sock = (int)syscall(SYS_pidfd_getfd, pidfd, VM_KEPT_FD + (int)n, 0);

    /* The hypervisor may be in the hands of its guest. */
    if (sock < 0 || !listens_at(sock, path))
        return -EBADF;
    *ret_sock = take_fd(&sock);
    return 0;
}
