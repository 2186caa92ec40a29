/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Mapped before main(), so that neither threads nor privileges that are dropped later matter. */
static struct fault_file *file;

__attribute__((constructor)) static void map_file(void)
{
    const char *path = getenv("UNDERSTUDY_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    struct stat st;

    if (fd < 0)
        return;
    if (fstat(fd, &st) == 0 && st.st_size >= (off_t)sizeof(*file))
        file = mmap(NULL, sizeof(*file), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED)
        file = NULL;
    close(fd);
}

static uint64_t hash(const char *name)
{
    uint64_t h = UINT64_C(14695981039346656037);

    for (const char *c = name; *c; c++)
        h = (h ^ (uint8_t)*c) * UINT64_C(1099511628211);
    return h;
}

static void count(const char *name)
{
    uint64_t mine = hash(name), found;

    for (int i = 0; i < FAULT_POINTS_MAX; i++) {
        found = 0;
        if (atomic_compare_exchange_strong(&file->seen[i].name, &found, mine) || found == mine) {
            atomic_fetch_add(&file->seen[i].hits, 1);
            return;
        }
    }
}

/* The number of an errno's name, or EIO. */
static int errno_of(const char *name)
{
    for (int e = 1; e < 4096; e++) {
        const char *known = strerrorname_np(e);

        if (known && strcmp(known, name) == 0)
            return e;
    }
    return EIO;
}

static void wait_ms(const char *text)
{
    long ms = atol(text);
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};

    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

/* Returns the errno to fail with, or 0. */
static int carry_out(const char *action, const char *argument)
{
    int saved = errno;

    atomic_store(&file->pid, (uint32_t)getpid());
    atomic_fetch_add(&file->taken, 1);
    if (strcmp(action, "crash") == 0)
        (void)kill(getpid(), SIGKILL);
    else if (strcmp(action, "stop") == 0)
        (void)raise(SIGSTOP);
    else if (strncmp(action, "delay", 5) == 0)
        wait_ms(argument);
    else if (strncmp(action, "error", 5) == 0)
        return errno_of(argument);
    errno = saved;
    return 0;
}

static int reach(const char *name)
{
    char order[sizeof(file->order)], action[16], argument[32] = "";
    size_t n = strlen(name);
    uint32_t generation, nth, hits;

    if (!file)
        return 0;
    count(name);
    generation = atomic_load(&file->generation);
    if (!generation || strncmp(file->order, name, n) != 0 || file->order[n] != ' ')
        return 0;
    memcpy(order, file->order, sizeof(order));
    order[sizeof(order) - 1] = '\0';
    if (atomic_load(&file->generation) != generation ||
        sscanf(order + n, "%u %15s %31s", &nth, action, argument) < 2)
        return 0;
    hits = atomic_fetch_add(&file->hits, 1) + 1;
    if (hits == nth || (hits > nth && action[strlen(action) - 1] == 's'))
        return carry_out(action, argument);
    return 0;
}

void fault_point(const char *name)
{
    (void)reach(name);
}

int fault_error(const char *name)
{
    int e = reach(name);

    if (e)
        errno = e;
    return -e;
}

void fault_arm(const char *order)
{
    static uint32_t generation;

    if (!file) {
        file = mmap(NULL, sizeof(*file), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (file == MAP_FAILED)
            abort();
    }
    atomic_store(&file->generation, 0);
    atomic_store(&file->hits, 0);
    atomic_store(&file->taken, 0);
    (void)snprintf(file->order, sizeof(file->order), "%s", order ? order : "");
    if (order)
        atomic_store(&file->generation, ++generation);
}

unsigned fault_taken(void)
{
    return file ? atomic_load(&file->taken) : 0;
}
