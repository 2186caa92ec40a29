/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CORE_VM_SPEC_H
#define US_CORE_VM_SPEC_H

#include <stdbool.h>
#include <stdint.h>

/* The definition of a VM: what a VM file says, with the defaults filled in. Plain data, no
 * pointers, so that it can be copied, compared and sent. Strings are NUL-terminated; "" means
 * "not given". The standby gets the primary's definition, so both start the same machine. */

enum {
    VM_NAME_MAX = 64, /* bytes with the NUL; names match [a-z0-9][a-z0-9-]* */
    HOST_NAME_BYTES = 64,
    VM_PATH_MAX = 256,
    VM_APPEND_MAX = 1024,
    VM_NICS_MAX = 8,
    VM_ARGS_MAX = 32,
    VM_ARG_LEN_MAX = 256,
    VM_BRIDGE_MAX = 16, /* IFNAMSIZ */
    VM_DISKS_MAX = 8,
    VM_SERIAL_BYTES = 21, /* virtio-blk's 20 and the NUL */
};

#define VM_PAGE_BYTES UINT64_C(4096)

/* Which interfaces the guest's virtio NICs and disks offer. */
enum vm_virtio {
    VM_VIRTIO_LEGACY = 1,   /* the one before version 1.0, which is quicker to checkpoint */
    VM_VIRTIO_TRANSITIONAL, /* that and version 1.0's: QEMU's default */
};

struct vm_nic {
    uint8_t mac[6];
    char bridge[VM_BRIDGE_MAX]; /* the bridge on the host that the NIC is plugged into */
};

/* What the guest is told of a cache in its disk. Either way the host's page cache is used. */
enum vm_disk_cache {
    VM_CACHE_WRITEBACK = 1, /* there is one, which the guest flushes */
    VM_CACHE_WRITETHROUGH,  /* there is none: each write is on stable storage when it is answered */
};

struct vm_disk {
    char path[VM_PATH_MAX]; /* raw file or block device, the same on both hosts */
    uint64_t size_bytes;    /* a multiple of 4096 */
    char serial[VM_SERIAL_BYTES];
    bool read_only;
    enum vm_disk_cache cache;
};

/* What happens to the VM's frames while their epoch is not committed. */
enum vm_output {
    VM_OUTPUT_HOLD = 1, /* held by the gate (output commit; Remus, NSDI 2008, section 2) */
};

/* How checkpoints are made. */
enum vm_engine {
    VM_ENGINE_DEFAULT = 1,
    VM_ENGINE_REMUS, /* as published (Remus, NSDI 2008), for comparison: a fixed interval, all dirty
                      * pages are copied in the pause */
};

/* What happens when the guest dirties memory faster than the link carries it, for long. */
enum vm_outrun {
    VM_OUTRUN_THROTTLE = 1, /* it is slowed down to the link's speed */
    VM_OUTRUN_SOLO,         /* it goes on unprotected, with an alarm */
};

enum { VM_SLOWDOWN_DEFAULT_PERMILLE = 70 };

struct vm_protect {
    char standby[HOST_NAME_BYTES]; /* "" = do not protect */
    uint64_t interval_min_ns;      /* shortest time between two cuts */
    uint64_t interval_max_ns;      /* longest time between two cuts */
    enum vm_output output;
    enum vm_engine engine;
    uint64_t copy_rate_bytes;       /* per second, for copying disks; 0 = no limit */
    uint32_t max_slowdown_permille; /* of a busy guest's time that checkpoints may take */
    enum vm_outrun outrun;
};

struct vm_spec {
    char name[VM_NAME_MAX];
    uint64_t memory_bytes; /* a multiple of 1 MiB */
    uint32_t cpus;
    char machine[64];   /* versioned machine type, e.g. pc-i440fx-7.2 */
    char cpu_model[64]; /* e.g. qemu64 */
    char accel[16];     /* "tcg" or "kvm" once resolved */
    char kernel[VM_PATH_MAX];
    char initrd[VM_PATH_MAX];
    char append[VM_APPEND_MAX];
    char firmware[VM_PATH_MAX]; /* instead of kernel: a firmware image */
    enum vm_virtio virtio;
    uint32_t n_nics;
    struct vm_nic nics[VM_NICS_MAX];
    uint32_t n_disks;
    struct vm_disk disks[VM_DISKS_MAX];
    uint32_t n_qemu_args;
    char qemu_args[VM_ARGS_MAX][VM_ARG_LEN_MAX]; /* passed through untouched */
    struct vm_protect protect;
};

#endif
